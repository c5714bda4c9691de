"""A GPT-2 of our own, small enough to lie beside the code: what it is called, and where it is."""

import os
from pathlib import Path

_TINY_GPT2 = Path(__file__).parent
try:
    # "./" keeps the name from being read as a Hub id, wherever the notebook runs.
    TINY_GPT2 = "./" + os.path.relpath(_TINY_GPT2).replace(os.sep, "/")
except ValueError:  # on another drive of Windows
    TINY_GPT2 = _TINY_GPT2.as_posix()


def find_model(model_name_or_path: str) -> str:
    """Return the name that the model is loaded by from here: `TINY_GPT2` for the embedded one, else the name itself.

    An adapter names it by a path that leads nowhere from another folder or machine.
    """
    path = Path(model_name_or_path)
    is_gone = path.parts[-2:] == _TINY_GPT2.parts[-2:] and not path.exists()
    return TINY_GPT2 if is_gone or path.resolve() == _TINY_GPT2.resolve() else model_name_or_path
