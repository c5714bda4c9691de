"""What has to be installed, checked before anything is imported that fails without it in words of its own."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
OLDEST_PYTHON = (3, 11)


def check_requirements(path: Path = REQUIREMENTS) -> None:
    """Check that the packages of ``requirements.txt`` are installed, in the versions named there or newer ones.

    What stands below the line ``# for the tests`` is left out.

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
    from packaging.requirements import Requirement  # here, so that an old Python is told of first
    from packaging.version import Version

    requirement = Requirement(line)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} (not installed, expected {requirement.specifier})"
    lowest = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==")]
    is_old = any(Version(found) < Version(bound) for bound in lowest)
    return f"{requirement.name} (found {found}, expected {requirement.specifier})" if is_old else None
