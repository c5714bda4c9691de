"""What the notebook needs around its cells: the right packages, clean output, and a box for what must be seen."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
OLDEST_PYTHON = (3, 11)


def check_requirements(path: Path = REQUIREMENTS) -> None:
    """Check that the packages of ``requirements.txt`` are installed, in the versions named there or newer ones.

    It imports nothing that may be missing. What stands below the line ``# for the tests`` is left out.

    Raises:
        ImportError: Python or a package is too old, or missing; the message lists them and has the command to run.
    """
    if sys.version_info < OLDEST_PYTHON:
        raise ImportError(f"Expected Python 3.11 or newer, found {sys.version.split()[0]}; choose another kernel.")
    lines = path.read_text(encoding="utf-8").partition("# for the tests")[0].split()
    if message := ", ".join(filter(None, map(_find_problem, lines))):
        raise ImportError(
            f"Missing or too old: {message}. Run `%pip install -r {REQUIREMENTS.name}` in a cell (in a terminal, "
            f"`python -m pip install -r {REQUIREMENTS.name}`), then restart the kernel and begin again."
        )


def _find_problem(line: str) -> str | None:
    """Return what is wrong with the package of a line; newer than what was tested is not wrong."""
    from packaging.requirements import Requirement  # here, so that an old Python is reported first
    from packaging.version import Version

    requirement = Requirement(line)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} (not installed, expected {requirement.specifier})"
    lowest = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==")]
    is_old = any(Version(found) < Version(bound) for bound in lowest)
    return f"{requirement.name} (found {found}, expected {requirement.specifier})" if is_old else None


def keep_output_clean() -> None:
    """Silence what the libraries write to stderr and as widgets; the Trainer's progress stays.

    Saved widgets can keep GitHub from rendering a notebook. The warning of a newly initialized head is expected here.
    """
    import logging
    import warnings

    import datasets
    import huggingface_hub
    import pandas as pd
    import transformers

    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    pd.options.display.max_colwidth = 100
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # on a new machine it builds a font cache
    # peft 0.21 reads a property that transformers 5 has renamed.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # An adapter trained on 4-bit layers is checked on the shapes of GPT-2's own ones.
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False but", category=UserWarning)
    # What peft 0.21 says of LN tuning and of AdaLoRA where both do what they should: each reload is checked.
    warnings.filterwarnings("ignore", message="Unsupported layer type .*LayerNorm", category=UserWarning)
    warnings.filterwarnings("ignore", message="The following rank_pattern keys .*lora_E", category=RuntimeWarning)


@dataclass
class Box:
    """A heading and a text: a frame in a notebook, a line where it is printed."""

    heading: str
    text: str

    def __repr__(self) -> str:
        return f"{self.heading}: {self.text}"

    def _repr_html_(self) -> str:
        # A table, since GitHub takes the styles away and leaves a table its lines.
        content = f"<h3>\u26a0\ufe0f {escape(self.heading)}</h3><p>{escape(self.text)}</p>"
        frame = "border: 4px solid #d9480f; width: 100%; font-size: 1rem"
        return f'<table style="{frame}"><tr><td style="text-align: left; padding: 0 1em">{content}</td></tr></table>'


def warn_offline(wanted: Iterable[str], taken: Iterable[str]) -> None:
    """Show, in a notebook in a box, that this machine is offline and which names replace which."""
    from IPython.display import display

    text = (
        f"{' and '.join(taken)} in place of {' and '.join(wanted)}. That shows whether everything works, not how good "
        "the results are. Connect this machine to the Hugging Face Hub and run it again."
    )
    display(Box("Offline", text))
