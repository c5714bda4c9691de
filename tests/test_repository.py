"""The shape that the project is delivered in."""

import ast
import json
import statistics
import subprocess
from pathlib import Path

import pytest

import peft_helpers

TOP = {"LightweightFineTuning.ipynb", "peft_helpers", "tests", "requirements.txt", "environment.yml", "README.md"}
PACKAGE = Path(peft_helpers.__file__).parent


def test_the_top_level_is_as_agreed():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")
    top = {path.split("/")[0] for path in tracked if path}
    assert {name for name in top if not name.startswith(".")} == TOP


def test_the_environment_takes_its_packages_from_the_requirements():
    text = Path("environment.yml").read_text()
    assert "python>=3.11,<3.14" in text
    assert "-r requirements.txt" in text


# Folders of the package, "" being the core, that modules of each folder may import; app may import all.
ROOMS = {"": {""}, "analysis": {"", "analysis"}}
ROOMS |= {room: {"", "analysis", room} for room in ("sources", "comparison", "language_modeling", "submission")}
CORE = ("arguments", "data", "tokenization", "modeling", "metrics", "training", "adapters", "pipeline")


def read_modules() -> dict[str, str]:
    """Return the source of each module of the package, by its path in it."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "tiny_gpt2"]
    return {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def imported_rooms(source: str) -> set[str]:
    """Return the folders of the package that a module imports from; what only type checkers import does not count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {f"{getattr(node, 'module', '')}.{alias.name}".strip(".") for node in imports for alias in node.names}
    heads = {name.split(".")[1] for name in names if name.startswith("peft_helpers.")}
    # tiny_gpt2 says only where the embedded model is.
    return {head if head != "tiny_gpt2" and (PACKAGE / head).is_dir() else "" for head in heads}


def test_a_folder_imports_the_core_and_no_other_folder():
    for name, source in read_modules().items():
        room = name.rpartition("/")[0]
        if room != "app" and name not in ("__init__.py", "__main__.py"):
            assert imported_rooms(source) <= ROOMS["analysis" if name == "pipeline.py" else room], name


@pytest.mark.parametrize(
    ("source", "rooms"),
    [
        ("from peft_helpers.data import prepare_splits", {""}),
        ("from peft_helpers import analysis", {"analysis"}),
        ("def late():\n    import peft_helpers.sources.hub", {"sources"}),
        ("if TYPE_CHECKING:\n    from peft_helpers.app import profiles\nimport torch", set()),
    ],
)
def test_the_import_rule_sees_every_form_of_import(source, rooms):
    assert imported_rooms(source) == rooms


def test_the_core_is_short_and_no_module_is_long():
    lines = {name: len(source.splitlines()) for name, source in read_modules().items()}
    core = {name: lines[f"{name}.py"] for name in CORE}
    assert sum(core.values()) <= 1_100, core
    assert max(core.values()) <= 200, core
    assert {name: count for name, count in lines.items() if count > 300} == {}
    assert len([name for name in lines if "/" not in name]) <= 14


def test_each_module_has_its_tests():
    modules = {path.relative_to("peft_helpers") for path in Path("peft_helpers").rglob("*.py")}
    tested = {path.relative_to("tests") for path in Path("tests").rglob("test_*.py")}
    for module in modules:
        if (
            not module.stem.startswith("__")
            and module.parent.name != "tiny_gpt2"
            and module.stem not in ("cells", "facts")
        ):
            assert module.with_name(f"test_{module.name}") in tested, module


def test_every_public_name_can_be_imported_and_is_documented():
    for name in peft_helpers.__all__:
        value = getattr(peft_helpers, name)
        assert not callable(value) or value.__doc__
        assert name in dir(peft_helpers)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'peft_helpers' has no attribute 'predictt'"):
        _ = peft_helpers.predictt


def test_the_benchmarks_speeds_are_the_medians_of_what_was_measured():
    table = Path("tests/benchmarks/README.md").read_text(encoding="utf-8").split("<!-- short -->")[1].strip()
    runs = json.loads(Path("tests/benchmarks/results/gpt2_short.json").read_text())["runs"]
    for name in ("Trainer and peft, group_by_length", "this package"):
        median = statistics.median(512 / run["train_seconds"] for run in runs[name])
        assert f"| {name} | {median:.3g} (" in table
