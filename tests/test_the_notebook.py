"""The notebook runs from the first to the last cell, and the committed one holds the output of such a run."""

import ast
import html
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import CPU_HAS_BFLOAT16
from nbclient import NotebookClient

from peft_helpers import distributed
from peft_helpers.app.command_line import main

NOTEBOOK = Path("LightweightFineTuning.ipynb")
BUDGET = "--profile offline --max_train_samples 40 --max_eval_samples 20 --max_length 32 --num_train_epochs 1"


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook) -> str:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    adapter = tmp_path_factory.mktemp("notebook") / "adapter"
    comparison = f"--comparison_methods head-only ia3 lora-r8 qlora full --comparison_file {adapter}.jsonl"
    shorter = "--comparison_steps 2 --comparison_seeds 1 --lm_max_eval_samples 32"
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LFT_ARGS", f"{BUDGET} {comparison} {shorter} --output_dir {adapter}")
        NotebookClient(notebook, timeout=240, kernel_name="python3", store_widget_state=False).execute()
    return notebook, adapter


def test_every_cell_runs_and_the_asserts_hold(executed):
    notebook, _ = executed
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    text = printed(notebook)
    # The same path, in one process, on the same batches, in float32: the same bits.
    assert "before and after LoRA was added: 0.0" in text
    assert "logits of the model in memory and of the reloaded one: 0.0" in text
    assert re.search(r"LoRA, reloaded +\d+\.\d", text)  # perplexity
    assert re.search(r"[1-9]\d* of \d+ trainable tensors changed\n0 of \d+ frozen tensors changed", text)
    assert re.search(r"untuned, .* with the loaded adapter.\nNext: save this notebook, then run `python -m ", text)


def test_the_run_leaves_an_adapter_that_is_complete_and_small(executed):
    _, adapter = executed
    names = {path.name for path in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer.json"} <= names
    assert sum(path.stat().st_size for path in adapter.iterdir()) < 2_000_000
    assert json.loads((adapter / "tokenizer_config.json").read_text())["model_max_length"] == 32


def test_the_adapter_predicts_from_another_folder(executed, tmp_path):
    _, adapter = executed
    command = [sys.executable, "-m", "peft_helpers", "predict", str(adapter), "Shares rose after record profits."]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert sum(json.loads(answer.stdout)["probabilities"].values()) == pytest.approx(1)
    assert not list(tmp_path.iterdir())


def test_the_command_line_gives_the_notebooks_metrics_and_adapter(executed, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "cpu_has_bfloat16", CPU_HAS_BFLOAT16)  # as in the notebook
    notebook, adapter = executed
    folder = tmp_path / "adapter"
    assert main([*BUDGET.split(), "--output_dir", str(folder)]) == 0
    results = json.loads((folder / "results.json").read_text())["metrics"]
    shown = [output["data"].get("text/plain", "") for cell in code_cells(notebook) for output in cell.outputs
             if "data" in output]  # fmt: skip
    untuned, tuned = (ast.literal_eval(text) for text in shown if text.startswith("{'accuracy': "))
    for expected, found in ((untuned, results["untuned"]), (tuned, results["tuned"])):
        assert {name: found[name] for name in expected} == expected
    assert len(tuned) == 4
    for name in ("adapter_model.safetensors", "adapter_config.json", "config.json", "run_config.json"):
        assert (folder / name).read_bytes() == (adapter / name).read_bytes()


@pytest.mark.parametrize("which", ["committed", pytest.param("executed", marks=pytest.mark.slow)])
def test_outputs_are_clean(which, request):
    found = request.getfixturevalue(which)
    notebook = found if which == "committed" else found[0]
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def test_the_committed_notebook_is_one_run_in_order_without_settings(committed):
    counts = [cell.execution_count for cell in code_cells(committed)]
    assert counts == list(range(1, len(counts) + 1))
    text = printed(committed)
    assert "Profile offline: as asked for." in text
    assert re.search(r"max_train_samples +None", text)
    assert str(Path.cwd()) not in NOTEBOOK.read_text(encoding="utf-8")


def test_the_form_of_the_project_is_kept(committed):
    markdown = "\n".join(cell.source for cell in committed.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^#{1,2} .*$", markdown, re.MULTILINE)
    assert headings == [
        "# Lightweight Fine-Tuning Project",
        "## Loading and Evaluating a Foundation Model",
        "## Performing Parameter-Efficient Fine-Tuning",
        "## Performing Inference with a PEFT Model",
        "## Comparing PEFT Methods",
        "## Appendix: Language Modeling",
        "## What to Hand In",
    ]
    for choice in ("PEFT technique", "Model", "Evaluation approach", "Fine-tuning dataset"):
        assert f"* **{choice}:**" in markdown


def test_the_first_cell_says_what_is_missing_before_anything_fails_obscurely(committed, tmp_path):
    command = [sys.executable, "-c", code_cells(committed)[0].source]
    subprocess.run(command, check=True)
    elsewhere = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "folder peft_helpers does not lie beside this notebook. Copy the whole project here" in elsewhere.stderr


def test_no_cell_defines_what_the_package_should_have(committed):
    for cell in code_cells(committed):
        assert not re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE)
        assert len(cell.source.splitlines()) <= 20


def readme_rows(name: str) -> list[list[str]]:
    table = Path("README.md").read_text(encoding="utf-8").split(f"<!-- {name} -->")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    return [lines[0][1:], *lines[2:]]  # the header's first cell is the README's own, the second line is dashes


def html_rows(notebook, column: str) -> list[list[str]]:
    """Return the rows of the only table of ``notebook`` that has a column of that name."""
    outputs = [output.get("data", {}).get("text/html", "") for cell in code_cells(notebook) for output in cell.outputs]
    (table,) = [each for each in outputs if f"<th>{column}</th>" in each]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"(?s)<tr.*?</tr>", table)]
    return [[html.unescape(cell) for cell in row] for row in (rows[0][1:], *rows[1:])]


@pytest.mark.parametrize(("name", "column"), [("results", "difference"), ("methods", "reload verified")])
def test_the_readmes_tables_are_the_committed_notebooks(name, column, committed):
    assert readme_rows(name) == html_rows(committed, column)


def test_the_notebook_is_short(committed):
    markdown = [cell.source for cell in committed.cells if cell.cell_type == "markdown"]
    assert len(committed.cells) <= 60
    assert statistics.median(len(text.split()) for text in markdown) <= 30
    names = {name for cell in code_cells(committed) for name in re.findall(r"helpers\.(\w+)", cell.source)}
    assert len(names) <= 48


def test_the_result_stands_on_top(executed):
    notebook, _ = executed
    boxes = [output["data"]["text/markdown"] for cell in code_cells(notebook)[:3] for output in cell.outputs
             if "text/markdown" in output.get("data", {})]  # fmt: skip
    assert re.search(r"\*\*0\.\d{3}\*\* \| \*\*0\.\d{3}\*\* \| \*\*66,176\*\*", boxes[0])
