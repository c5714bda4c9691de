"""What the notebook needs around its cells: the right packages, clean output, and a box for what must be seen."""

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from html import escape
from importlib.metadata import distributions
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
OLDEST_PYTHON = (3, 11)


def check_requirements(path: Path = REQUIREMENTS) -> None:
    """Raise an ImportError that says what to do where Python or a package, but for the tests, is missing or too old."""
    if sys.version_info < OLDEST_PYTHON:
        raise ImportError(f"Expected Python 3.11 or newer, found {sys.version.split()[0]}; choose another kernel.")
    from packaging.requirements import Requirement  # here, so that an old Python is reported first

    problems = []
    for line in path.read_text(encoding="utf-8").partition("# for the tests")[0].split():
        package = Requirement(line)
        bounds = [bound for bound in package.specifier if bound.operator in (">=", "==")]  # newer than tested is fine
        installed = next((distribution.version for distribution in distributions(name=package.name)), None)
        if not installed or not all(bound.contains(installed, prereleases=True) for bound in bounds):
            found = f"found {installed}" if installed else "not installed"
            problems.append(f"{package.name} ({found}, expected {package.specifier})")
    if problems:
        to_do = f"Run `%pip install -r {REQUIREMENTS.name}` in a cell, then restart the kernel and begin again."
        raise ImportError(f"Missing or too old: {', '.join(problems)}. {to_do}")


def keep_output_clean() -> None:
    """Silence widgets, which GitHub may not render, warnings, and all processes but the first; progress stays."""
    import datasets
    import pandas as pd
    import transformers

    from peft_helpers.distributed import process_state

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()  # also those of huggingface_hub
    transformers.logging.set_verbosity_error()
    pd.options.display.max_colwidth = 100
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # on a new machine it builds a font cache
    for message in (
        "`is_gradient_checkpointing` is deprecated",  # peft 0.21 reads a property that transformers 5 has renamed
        "fan_in_fan_out is set to False but",  # an adapter of 4-bit layers is checked on the shapes of GPT-2's own ones
        "Unsupported layer type .*LayerNorm",  # peft 0.21, of LN tuning, which does what it should
    ):
        warnings.filterwarnings("ignore", message)
    if not process_state().is_main_process:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (for the rest of the process)
        warnings.simplefilter("ignore")


def warn_offline(wanted: Iterable[str], taken: Iterable[str]) -> None:
    """Show, in a notebook in a box, that this machine is offline and which names replace which."""
    from IPython import get_ipython
    from IPython.display import display

    advice = "It shows whether everything works, not how good the results are; for these, connect to the Hub."
    text = f"{' and '.join(taken)} in place of {' and '.join(wanted)}. {advice}"
    if get_ipython() is None:
        print(f"Offline: {text}")
        return
    # A table, since GitHub takes the styles away and leaves a table its lines.
    content = f"<h3>\u26a0\ufe0f Offline</h3><p>{escape(text)}</p>"
    frame = "border: 4px solid #d9480f; width: 100%; font-size: 1rem"
    box = f'<table style="{frame}"><tr><td style="text-align: left; padding: 0 1em">{content}</td></tr></table>'
    display({"text/plain": f"Offline: {text}", "text/html": box}, raw=True)
