"""What has to be installed, checked before anything is imported that fails without it in words of its own."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS = Path(__file__).parent.parent / "requirements.txt"
OLDEST_PYTHON = (3, 11)


def check_requirements(path: Path = REQUIREMENTS) -> None:
    """Check that the packages of ``requirements.txt`` are installed, in the versions named there or newer ones.

    What stands below the line ``# for the tests`` is left out.

    Raises:
        ImportError: Python or a package is too old, or missing; the message lists them and has the command to run.
    """
    if sys.version_info < OLDEST_PYTHON:
        raise ImportError(f"Expected Python 3.11 or newer, found {sys.version.split()[0]}; choose another kernel.")
    from packaging.requirements import Requirement  # here, so that what is older fails with the line above

    lines = path.read_text(encoding="utf-8").partition("# for the tests")[0].split()
    problems = filter(None, (_find_problem(Requirement(line)) for line in lines))
    if message := ", ".join(problems):
        raise ImportError(
            f"Missing or too old: {message}. Run `%pip install -r {REQUIREMENTS.name}` in a cell (in a terminal, "
            f"`python -m pip install -r {REQUIREMENTS.name}`), then restart the kernel and begin again."
        )


def _find_problem(requirement) -> str | None:
    """Return what is wrong with an installed package; newer than what was tested is not wrong."""
    lowest = [bound for bound in requirement.specifier if bound.operator in (">=", "==")]
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} (not installed, expected {requirement.specifier})"
    if all(type(requirement.specifier)(f">={bound.version}").contains(found, prereleases=True) for bound in lowest):
        return None
    return f"{requirement.name} (found {found}, expected {requirement.specifier})"
