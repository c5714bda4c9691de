"""The shape that the project is delivered in."""

import json
import statistics
import subprocess
from pathlib import Path

import pytest

import peft_helpers

TOP = {"LightweightFineTuning.ipynb", "peft_helpers", "tests", "requirements.txt", "environment.yml", "README.md"}


def test_the_top_level_is_as_agreed():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split("\n")
    top = {path.split("/")[0] for path in tracked if path}
    assert {name for name in top if not name.startswith(".")} == TOP


def test_the_environment_takes_its_packages_from_the_requirements():
    text = Path("environment.yml").read_text()
    assert "python>=3.11,<3.14" in text
    assert "-r requirements.txt" in text


def test_each_module_has_its_tests():
    modules = {path.relative_to("peft_helpers") for path in Path("peft_helpers").rglob("*.py")}
    tested = {path.relative_to("tests") for path in Path("tests").rglob("test_*.py")}
    for module in modules:
        if not module.stem.startswith("__") and module.parent.name != "tiny_gpt2" and module.stem != "cells":
            assert module.with_name(f"test_{module.name}") in tested, module


def test_every_public_name_can_be_imported_and_is_documented():
    for name in peft_helpers.__all__:
        value = getattr(peft_helpers, name)
        assert not callable(value) or value.__doc__
        assert name in dir(peft_helpers)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'peft_helpers' has no attribute 'predictt'"):
        _ = peft_helpers.predictt


def test_the_readmes_speeds_are_the_benchmarks():
    table = Path("README.md").read_text(encoding="utf-8").split("<!-- speed -->")[1].strip()
    assert len(table.splitlines()) > 4
    assert table in Path("tests/benchmarks/README.md").read_text(encoding="utf-8")
    # The medians of what was kept.
    runs = json.loads(Path("tests/benchmarks/results/gpt2_short.json").read_text())["runs"]
    for name in ("dynamic padding, random order, batch 32", "this package, batch 32"):
        median = statistics.median(512 / run["train_seconds"] for run in runs[name])
        assert f"| {name} | {median:.3g} (" in table
