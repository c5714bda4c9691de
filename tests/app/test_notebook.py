import ast
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from peft_helpers.app import notebook
from peft_helpers.app.notebook import REQUIREMENTS, check_requirements, warn_offline

# The name of a package where it is not that of the module.
PACKAGES = {"sklearn": "scikit-learn", "IPython": "ipython"}
# In peft_helpers/optional_requirements.txt, for the tests of CI, or in the environment of a benchmark.
OPTIONAL = {"gradio", "playwright", "optuna", "cleanlab", "onnxruntime", "adapters"}


def imported_modules() -> set[str]:
    paths = [*Path("peft_helpers").rglob("*.py"), *Path("tests").rglob("*.py")]
    sources = [path.read_text(encoding="utf-8") for path in paths]
    cells = nbformat.read("LightweightFineTuning.ipynb", as_version=4).cells
    sources += [cell.source for cell in cells if cell.cell_type == "code"]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names


def test_whatever_is_imported_is_required():
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    required = {Requirement(line).name for line in lines if not line.startswith("#")}
    ours = {"peft_helpers", "tests"} | {path.stem for path in Path("tests").rglob("*.py")}
    assert {PACKAGES.get(name, name) for name in imported_modules() - ours - OPTIONAL} <= required


def test_what_is_installed_here_is_enough():
    check_requirements()


@pytest.mark.reliability("fault")
def test_what_is_missing_or_too_old_is_named_with_the_command(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("torch>=1\nno-such-package>=2,<3\nnumpy>=99\n# for the tests\nno-such-test-package\n")
    with pytest.raises(ImportError) as error:
        check_requirements(path)
    message = str(error.value)
    assert message.startswith("Missing or too old: no-such-package (not installed, expected <3,>=2), numpy (found ")
    assert "expected >=99). Run `%pip install -r requirements.txt` in a cell" in message
    assert "torch" not in message
    assert "no-such-test-package" not in message


def test_newer_than_tested_is_no_error(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("numpy>=1,<1.1\n")
    check_requirements(path)


@pytest.mark.reliability("fault")
def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(notebook, "OLDEST_PYTHON", (9, 9))
    with pytest.raises(ImportError, match=r"Expected Python 3\.11 or newer, found 3\.\d+\.\d+; choose another kernel"):
        check_requirements()


def test_the_check_itself_needs_nothing_that_may_be_missing():
    code = "import sys, peft_helpers as helpers; helpers.check_requirements(); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "peft", "datasets", "numpy", "pandas"} & set(output.split())


def test_a_warning_is_a_box_in_a_notebook_and_a_line_elsewhere(monkeypatch, capsys):
    names, shown = (["<large>", "all"], ["<small>", "some"]), []
    warn_offline(*names)
    line = capsys.readouterr().out.removesuffix("\n")
    assert line.startswith("Offline: <small> and some in place of <large> and all. ")
    monkeypatch.setattr("IPython.get_ipython", object)
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append((data, raw)))
    warn_offline(*names)
    ((data, raw),) = shown
    assert (data["text/plain"], raw, capsys.readouterr().out) == (line, True, "")
    assert data["text/html"].startswith("<table")
    assert "Offline</h3><p>&lt;small&gt; and some in place of &lt;large&gt; and all. " in data["text/html"]
