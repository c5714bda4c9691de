import errno
import json
import os
import shutil
import time
from pathlib import Path
from zipfile import ZipFile

import nbformat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from safetensors.numpy import save_file

from peft_helpers import submission
from peft_helpers.submission import check_submission, package_submission, read_notebook

OURS = Path("LightweightFineTuning.ipynb")
OPTIONAL = {"QLoRA with bitsandbytes", "several PEFT configurations"}

# A notebook in the form of the project, by name of the cell: its code and what it shows.
FORM = {
    "imports": (
        "!pip install -q peft\n"
        "import numpy as np\n"
        "from datasets import load_dataset\n"
        "from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments",
        "",
    ),
    "data": ("dataset = load_dataset('imdb')", ""),
    "tokenizer": ("tokenizer = AutoTokenizer.from_pretrained('gpt2')\nrows = dataset.map(tokenizer)", ""),
    "model": ("model = AutoModelForSequenceClassification.from_pretrained('gpt2', num_labels=2)", ""),
    "metric": (
        "def compute_metrics(output):\n    return {'accuracy': (output[0].argmax(-1) == output[1]).mean()}",
        "",
    ),
    "untuned": (
        "trainer = Trainer(model=model, eval_dataset=rows['test'], compute_metrics=compute_metrics)\n"
        "trainer.evaluate()",
        "{'eval_loss': 0.69, 'eval_accuracy': 0.51, 'eval_runtime': 3.0}",
    ),
    "peft config": ("config = LoraConfig(task_type='SEQ_CLS', r=8)", ""),
    "peft model": (
        "peft_model = get_peft_model(model, config)\npeft_model.print_trainable_parameters()",
        "trainable params: 296,448 || all params: 124,736,256 || trainable%: 0.2377",
    ),
    "training": (
        "peft_trainer = Trainer(model=peft_model, args=TrainingArguments('out'), train_dataset=rows['train'])\n"
        "peft_trainer.train()",
        "TrainOutput(global_step=500, training_loss=0.4, metrics={'train_runtime': 60.0, 'epoch': 1.0})",
    ),
    "save": ("peft_model.save_pretrained('adapter')", ""),
    "reload": ("loaded = AutoPeftModelForSequenceClassification.from_pretrained('adapter')", ""),
    "tuned": (
        "Trainer(model=loaded, eval_dataset=rows['test'], compute_metrics=compute_metrics).evaluate()",
        "{'eval_loss': 0.31, 'eval_accuracy': 0.89}",
    ),
    "comparison": ("", "The accuracy improved from 0.51 to 0.89."),
}

LOOP = """
def evaluate_model(model):
    predictions = []
    for batch in loader:
        with torch.no_grad():
            predictions.extend(model(**batch).logits.argmax(-1))
    return accuracy_score(labels, predictions)
"""
# Other ways to the same end: the cells that differ.
GOOD = {
    "Trainer": {},
    "sklearn and a loop": {
        "imports": (
            "import torch\nimport transformers as t\nfrom datasets import load_dataset as load\n"
            "from peft import PeftModel, get_peft_model, LoraConfig\nfrom sklearn.metrics import accuracy_score",
            "",
        ),
        "data": ("dataset = load('imdb')", ""),
        "tokenizer": ("tokenizer = t.GPT2TokenizerFast.from_pretrained('gpt2')", ""),
        "model": ("model = t.AutoModelForSequenceClassification.from_pretrained('gpt2')", ""),
        "metric": (LOOP, ""),
        "untuned": ("before = evaluate_model(model)\nprint(f'Acc. {before:.1%}')", "Acc. 51.0%"),
        "training": (
            "%%time\nfor epoch in range(1):\n    for batch in loader:\n        loss = peft_model(**batch).loss\n"
            "        loss.backward()\n        optimizer.step()\n    print(f'Epoch {epoch}: {loss}')",
            "Epoch 0: 0.5",
        ),
        "reload": (
            "base = t.AutoModelForSequenceClassification.from_pretrained('gpt2')\n"
            "model = PeftModel.from_pretrained(base, './adapter/')",
            "",
        ),
        "tuned": ("after = evaluate_model(model)\nprint(f'Accuracy: {after:.1%}')", "Accuracy: 89.0%"),
        "comparison": ("pd.DataFrame({'untuned': [before], 'tuned': [after]})", "   untuned  tuned\n0     0.51   0.89"),
    },
    "evaluate.load, numpy 2 and a table": {
        "metric": (
            "import evaluate\nmetric = evaluate.load('f1')\ndef compute_metrics(output):\n"
            "    return metric.compute(predictions=output[0].argmax(-1), references=output[1])",
            "",
        ),
        "untuned": (
            "trainer = Trainer(model=model, compute_metrics=compute_metrics)\nbefore = trainer.evaluate()\nbefore",
            "{'eval_f1': np.float64(0.51)}",
        ),
        "save": ("peft_trainer.save_model('adapter')", ""),
        "tuned": ("trainer = Trainer(model=loaded)\nafter = trainer.evaluate()", ""),
        "comparison": (
            "pd.DataFrame([before, after], index=['before', 'after'])",
            "<table><thead><tr><th></th><th>eval_f1</th></tr></thead><tbody><tr><th>before</th><td>0.51</td></tr>"
            "<tr><th>after</th><td>0.89</td></tr></tbody></table>",
        ),
    },
    "reports of scikit-learn": {
        "untuned": (
            "output = Trainer(model=model).predict(rows['test'])\n"
            "print(classification_report(output.label_ids, output.predictions.argmax(-1)))",
            "          precision    recall  f1-score   support\n\n     neg       0.51      0.50      0.50       436",
        ),
        "tuned": (
            "output = Trainer(model=loaded).predict(rows['test'])\n"
            "print(classification_report(output.label_ids, output.predictions.argmax(-1)))",
            "          precision    recall  f1-score   support\n\n     neg       0.89      0.90      0.89       436",
        ),
    },
    "functions for every step": {
        "model": (
            "def load():\n    return AutoModelForSequenceClassification.from_pretrained('gpt2')\n"
            "def measure(model):\n    trainer = Trainer(model=model)\n    return trainer.evaluate()\n"
            "def fit(model):\n    trainer = Trainer(model=model)\n    trainer.train()\n    return model",
            "",
        ),
        "untuned": ("model = load()\nresults = {'untuned': measure(model)}\nprint(results)", "'eval_accuracy': 0.51"),
        "training": ("peft_model = fit(peft_model)", "[250/250 01:00, Epoch 1/1]"),
        "tuned": ("results['tuned'] = measure(loaded)\nprint(results)", "{'untuned': {'accuracy': 0.51}, ...}"),
    },
    "the adapter's folder given to transformers": {
        "save": ("folder = 'adapter'\npeft_trainer.model.save_pretrained(folder)", ""),
        "reload": ("loaded = AutoModelForSequenceClassification.from_pretrained(folder)", ""),
    },
    "everything is shown at the end": {
        "untuned": ("trainer = Trainer(model=model)\nbefore = trainer.evaluate()", ""),
        "tuned": ("after = Trainer(model=loaded).evaluate()", ""),
        "comparison": ("print(before, after)", "\x1b[1m{'eval_accuracy': 0.51}\x1b[0m {'eval_accuracy': 0.89}"),
    },
    "the check in a cell that failed before": {
        "check": ("import peft_helpers as h\nh.package_submission('n.ipynb', 'adapter')", ValueError),
    },
}  # fmt: skip


def code_cell(source, shown, count) -> nbformat.NotebookNode:
    if isinstance(shown, type):
        outputs = [new_output("error", ename=shown.__name__, evalue="", traceback=["Traceback"])]
    elif shown.startswith("<"):
        outputs = [new_output("execute_result", {"text/html": shown, "text/plain": "<IPython...HTML object>"})]
    else:
        outputs = [new_output("stream", text=shown)] if shown else []
    return new_code_cell(source, outputs=outputs, execution_count=count)


def write_notebook(path: Path, cells: dict[str, tuple]) -> Path:
    """Write a notebook of ``cells``; one without code is markdown, one with a third value has it as its count."""
    written = [
        code_cell(source, shown, *(count or [number])) if source else new_markdown_cell(shown)
        for number, (source, shown, *count) in enumerate(cells.values(), 1)
    ]
    nbformat.write(new_notebook(cells=written), path)
    return path


def make_adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "gpt2"}')
    save_file({"base_model.model.score.weight": np.zeros((2, 4), np.float32)}, folder / "adapter_model.safetensors")
    (folder / "README.md").write_text("# Model card")
    return folder


@pytest.fixture
def adapter(tmp_path):
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def notebook(tmp_path, adapter):
    return write_notebook(tmp_path / "n.ipynb", FORM)


def missing(notebook, adapter, **arguments) -> dict[str, str]:
    """Return the required rows that are not found: what is to be done for each."""
    table = check_submission(notebook, adapter, **arguments)
    rows = table[table["required"] & ~table["found"]]
    return dict(zip(rows["requirement"], rows["to_do"], strict=True))


@pytest.mark.parametrize("name", GOOD)
def test_a_complete_hand_in_in_many_forms(name, tmp_path, adapter):
    table = check_submission(write_notebook(tmp_path / "n.ipynb", FORM | GOOD[name]), adapter)
    assert set(table["requirement"][~table["found"]]) == OPTIONAL
    assert list(table.columns) == ["requirement", "required", "found", "where", "to_do"]
    assert set(table["requirement"][~table["required"]]) == OPTIONAL
    assert (table["to_do"] == "").tolist() == table["found"].tolist()


def test_our_notebook_is_complete(tmp_path):
    make_adapter(tmp_path / "lora_adapter")
    notebook = shutil.copy(OURS, tmp_path)
    table = check_submission(notebook, tmp_path / "lora_adapter")
    assert set(table["requirement"][~table["found"]]) <= OPTIONAL


def test_a_cell_without_code_need_not_have_been_run(tmp_path, adapter):
    assert missing(write_notebook(tmp_path / "n.ipynb", FORM | {"more": ("# To be done.", "", None)}), adapter) == {}


def test_where_is_the_cells_number(notebook, adapter):
    where = check_submission(notebook, adapter).set_index("requirement")["where"]
    assert where["a pre-trained sequence classifier is loaded"] == "cell 4"
    assert where["a metric of the untuned model is shown"] == "cell 6"
    assert where["the same metric of the loaded model is shown"] == "cell 12"
    assert where["the two are compared"] == "cell 13"


@pytest.mark.parametrize(
    ("source", "requirement"),
    [
        ("q = BitsAndBytesConfig(load_in_4bit=True)", "QLoRA with bitsandbytes"),
        ("q = helpers.quantization_config('gpt2')", "QLoRA with bitsandbytes"),
        ("configs = [LoraConfig(), IA3Config()]", "several PEFT configurations"),
        ("for r in (4, 8):\n    config = LoraConfig(r=r)", "several PEFT configurations"),
        ("results = helpers.run_methods(runs, *comparison)", "several PEFT configurations"),
    ],
)
def test_ways_to_stand_out(source, requirement, tmp_path, adapter):
    notebook = write_notebook(tmp_path / "n.ipynb", FORM | {"peft config": (source, "")})
    table = check_submission(notebook, adapter)
    assert table.set_index("requirement")["found"][requirement]


TRAINING = FORM["training"][0]
ACCURACY = FORM["tuned"][1]
BAD = {
    "no classifier": (
        {"model": ("model = AutoModelForCausalLM.from_pretrained('gpt2')", "")},
        "a pre-trained sequence classifier is loaded",
        "AutoModelForSequenceClassification.from_pretrained",
    ),
    "no data set": ({"data": ("rows = pd.read_csv('x')", "")}, "a Hugging Face data set is loaded", "load_dataset"),
    "no tokenizer": ({"tokenizer": ("rows = dataset", "")}, "a Hugging Face tokenizer prepares it", "AutoTokenizer"),
    "untuned not measured": ({"untuned": ("x = 1", "")}, "a metric of the untuned model is shown", "before training"),
    "untuned measured and not shown": (
        {"untuned": (FORM["untuned"][0], "")}, "a metric of the untuned model is shown", "show its accuracy or F1"),
    "untuned measured after training": (
        {"untuned": ("x = 1", ""), "save": (f"{FORM['save'][0]}\nTrainer(model).evaluate()", ACCURACY)},
        "a metric of the untuned model is shown",
        "before training",
    ),
    "only the loss of the untuned": (
        {"untuned": (FORM["untuned"][0], "{'eval_loss': 0.69}")},
        "a metric of the untuned model is shown",
        "show its accuracy or F1",
    ),
    "no PEFT configuration": ({"peft config": ("config = None", "")}, "a PEFT configuration is made", "LoraConfig"),
    "no PEFT model": ({"peft model": ("peft_model = model", "")}, "a PEFT model is made from it", "get_peft_model"),
    "no training": (
        {"training": ("peft_model.train()", "")}, "at least one epoch is trained", "train with num_train_epochs=1"),
    "a part of an epoch": (
        {"training": (TRAINING, "{'train_runtime': 9.0, 'epoch': 0.32}")},
        "at least one epoch is trained",
        "the output says 0.32",
    ),
    "training interrupted": (
        {"training": (TRAINING, KeyboardInterrupt)}, "at least one epoch is trained", "to its end"),
    "only the tokenizer is saved": (
        {"save": ("tokenizer.save_pretrained('adapter')", "")},
        "the adapter is saved after training",
        "save_pretrained of the PEFT model",
    ),
    "saved before training": (
        {"peft model": (f"{FORM['peft model'][0]}\npeft_model.save_pretrained('adapter')", ""), "save": ("x = 1", "")},
        "the adapter is saved after training",
        "after training",
    ),
    "another folder is handed in": (
        {"save": ("peft_model.save_pretrained('run_2')", ""),
         "reload": ("loaded = AutoPeftModelForSequenceClassification.from_pretrained('run_2')", "")},
        "the adapter is saved after training",
        "the folder that the notebook saves, run_2, not adapter",
    ),
    "not loaded": (
        {"reload": ("loaded = peft_model", "")}, "the saved adapter is loaded", "on the folder after saving"),
    "another folder is loaded": (
        {"reload": ("loaded = AutoPeftModelForSequenceClassification.from_pretrained('out/checkpoint-9')", "")},
        "the saved adapter is loaded",
        "adapter, not out/checkpoint-9",
    ),
    "never saved": (
        {"save": ("x = 1", ""),
         "reload": ("loaded = AutoPeftModelForSequenceClassification.from_pretrained('out/checkpoint-9')", "")},
        "the saved adapter is loaded",
        "on the folder after saving",
    ),
    "loaded model not measured": (
        {"tuned": ("loaded.eval()", "")}, "the same metric of the loaded model is shown", "show accuracy"),
    "the old trainer is measured": (
        {"tuned": ("peft_trainer.evaluate()", ACCURACY)},
        "the same metric of the loaded model is shown",
        "cell 12 measures the model in memory: make a new Trainer",
    ),
    "the old trainer is measured, under the new model's name": (
        {"reload": ("peft_model = AutoPeftModelForSequenceClassification.from_pretrained('adapter')", ""),
         "tuned": ("peft_model.eval()\nafter = peft_trainer.evaluate()\nprint(after)", ACCURACY)},
        "the same metric of the loaded model is shown",
        "cell 12 measures the model in memory",
    ),
    "another metric after than before": (
        {"tuned": (FORM["tuned"][0], "{'eval_f1': 0.89}")},
        "the same metric of the loaded model is shown",
        "show accuracy: the loaded model has f1 only",
    ),
    "not compared": ({"comparison": ("", "Done. It is better.")}, "the two are compared", "side by side"),
    "compared before it is measured": (
        {"metric": ("", FORM["comparison"][1]), "comparison": ("", "Done.")}, "the two are compared", "what changed"),
    "a cell not run": (
        {"more": ("print(1)", "", None)}, "every cell was run", "run these cells, save the notebook"),
    "an error": ({"more": ("1 / 0", ZeroDivisionError)}, "no cell ended in an error", "mend these cells"),
    "not in order": (
        {"data": (FORM["data"][0], "", 40)}, "the cells were run from top to bottom", "restart the kernel"),
}  # fmt: skip


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("name", BAD)
def test_a_notebook_that_lacks_something(name, tmp_path, adapter):
    cells, requirement, to_do = BAD[name]
    notebook = write_notebook(tmp_path / "n.ipynb", FORM | cells)
    found = missing(notebook, adapter)
    assert to_do in found[requirement]
    with pytest.raises(ValueError, match="The hand-in is incomplete") as error:
        package_submission(notebook, adapter)
    assert requirement in str(error.value)
    assert to_do in str(error.value)
    assert not (tmp_path / "n.zip").exists()


@pytest.mark.reliability("bad input")
def test_a_notebook_saved_without_being_run(tmp_path, adapter):
    cells = {name: (source, shown if not source else "", None) for name, (source, shown) in FORM.items()}
    found = missing(write_notebook(tmp_path / "n.ipynb", cells), adapter)
    assert "the notebook on disk is not executed: run it, save it (Ctrl-S)" in found["every cell was run"]
    assert "a metric of the untuned model is shown" in found


@pytest.mark.reliability("bad input")
def test_a_notebook_saved_before_this_runs_adapter(notebook, adapter):
    adapters_time = (adapter / "adapter_model.safetensors").stat().st_mtime
    os.utime(notebook, (adapters_time - 60, adapters_time - 60))
    found = missing(notebook, adapter)
    assert list(found) == ["the notebook was saved after the adapter"]
    assert "may show an earlier run: save it (Ctrl-S)" in found["the notebook was saved after the adapter"]


def test_the_cell_that_makes_the_check_need_not_have_been_run(tmp_path, adapter):
    check = ("import peft_helpers as h\ntable = h.check_submission('n.ipynb', 'adapter')\ntable", "", None)
    assert missing(write_notebook(tmp_path / "n.ipynb", FORM | {"check": check}), adapter) == {}


def no_folder(adapter):
    shutil.rmtree(adapter)


def empty_folder(adapter):
    shutil.rmtree(adapter)
    adapter.mkdir()


def no_config(adapter):
    (adapter / "adapter_config.json").unlink()


def broken_config(adapter):
    (adapter / "adapter_config.json").write_text('{"peft_type": ')


def other_config(adapter):
    (adapter / "adapter_config.json").write_text('["LORA"]')


def no_weights(adapter):
    (adapter / "adapter_model.safetensors").unlink()


def truncated_weights(adapter):
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def empty_weights(adapter):
    (adapter / "adapter_model.safetensors").write_bytes(b"")


def pickled_weights(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def weights_without_a_tensor(adapter):
    save_file({}, adapter / "adapter_model.safetensors")


def whole_model(adapter):
    empty_folder(adapter)
    (adapter / "config.json").write_text("{}")
    save_file({"score.weight": np.zeros(4)}, adapter / "model.safetensors")


def merged_model_beside(adapter):
    save_file({"score.weight": np.zeros(4)}, adapter / "model.safetensors")


def checkpoints(adapter):
    shutil.copytree(adapter, adapter / "checkpoint-500")
    (adapter / "checkpoint-500" / "optimizer.pt").touch()


FOLDERS = [
    (no_folder, "the adapter has a folder of its own beside the notebook", "adapter is no folder"),
    (empty_folder, "it holds adapter_config.json", "adapter holds nothing"),
    (no_config, "it holds adapter_config.json", "holds README.md, adapter_model.safetensors"),
    (broken_config, "it holds adapter_config.json", "call save_pretrained of the PEFT model"),
    (other_config, "it holds adapter_config.json", "call save_pretrained of the PEFT model"),
    (no_weights, "it holds adapter_model.safetensors", "holds README.md, adapter_config.json"),
    (truncated_weights, "it holds adapter_model.safetensors", "call save_pretrained of the PEFT model"),
    (empty_weights, "it holds adapter_model.safetensors", "call save_pretrained of the PEFT model"),
    (weights_without_a_tensor, "it holds adapter_model.safetensors", "call save_pretrained of the PEFT model"),
    (pickled_weights, "it holds no pickled weights", "remove adapter_model.bin: opening a pickle runs its code"),
    (whole_model, "it holds adapter_config.json", "holds config.json, model.safetensors"),
    (merged_model_beside, "it holds no whole model", "save the adapter only: remove model.safetensors"),
    (checkpoints, "it holds no checkpoints", "and 1 more"),
]


def test_what_is_only_left_out_of_the_zip_does_not_make_a_folder_incomplete(notebook, adapter):
    for name in ("training_args.bin", "notes.docx"):
        (adapter / name).touch()
    assert missing(notebook, adapter) == {}


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(("spoil", "requirement", "to_do"), FOLDERS, ids=[case[0].__name__ for case in FOLDERS])
def test_a_folder_that_is_no_adapters(spoil, requirement, to_do, notebook, adapter):
    assert missing(notebook, adapter) == {}
    spoil(adapter)
    assert to_do in missing(notebook, adapter)[requirement]


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("place", ["elsewhere/adapter", "."])
def test_an_adapter_that_stands_elsewhere(place, notebook, adapter, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(adapter, tmp_path / place, dirs_exist_ok=True)
    found = missing(notebook, tmp_path / place)
    assert "in a folder beside n.ipynb" in found["the adapter has a folder of its own beside the notebook"]


@pytest.mark.reliability("bad input")
def test_a_hand_in_over_the_limit(notebook, adapter):
    size = (notebook.stat().st_size + sum(path.stat().st_size for path in adapter.iterdir())) / 1e6
    assert missing(notebook, adapter, max_folder_mb=size) == {}
    (requirement, to_do), = missing(notebook, adapter, max_folder_mb=size / 2).items()  # fmt: skip
    assert requirement == f"notebook and adapter take at most {size / 2:g} MB"
    assert f"they take {size:.1f} MB" in to_do


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"nbformat": 99}', '{"nbformat": 4, "cells": [{"cell_type": "code", "source": "x"}]}', "\0"],
    ids=["empty", "a list", "no fields", "a version to come", "no metadata", "binary"],
)
def test_a_file_that_is_no_notebook(text, tmp_path, adapter):
    (tmp_path / "n.ipynb").write_text(text)
    with pytest.raises(ValueError, match=r"n.ipynb' is not a valid notebook \(.*; save it again"):
        check_submission(tmp_path / "n.ipynb", adapter)


@pytest.mark.reliability("bad input")
def test_a_notebook_that_does_not_exist(tmp_path, adapter):
    with pytest.raises(FileNotFoundError, match=r"There is no notebook .*save it first, or name another"):
        package_submission(tmp_path / "n.ipynb", adapter)


def test_old_and_incomplete_notebooks_are_read(tmp_path):
    cells = [
        {"cell_type": "code", "source": ["import peft\n", "x = 1"], "metadata": {}},
        {"cell_type": "code", "source": "", "outputs": [{}, {"output_type": "display_data"}, {"output_type": "error"}]},
        {"cell_type": "raw"},
        {"cell_type": "code", "source": "x", "execution_count": "*",
         "outputs": [{"output_type": "stream", "text": ["accuracy:", " 0.5"]}]},
    ]  # fmt: skip
    cells = [cell | {"metadata": {}} for cell in cells]
    (tmp_path / "n.ipynb").write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}))
    read, _ = read_notebook(tmp_path / "n.ipynb")
    assert [cell.execution_count for cell in read] == [None] * 4
    assert read[3].metrics == {"accuracy"}
    old = {"cell_type": "code", "input": "load_dataset('x')", "prompt_number": 7, "outputs": [], "language": "python"}
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [old], "metadata": {}}]}
    (tmp_path / "n.ipynb").write_text(json.dumps(old))
    (cell,), (step,) = read_notebook(tmp_path / "n.ipynb")
    assert (cell.execution_count, step.kind) == (7, "dataset")


@pytest.mark.parametrize("long", ["accuracy " * 200_000, "0" * 1_000_000, "<style" * 90_000, "<" * 1_000_000])
def test_long_outputs_are_read_in_time(long, tmp_path, adapter):
    notebook = write_notebook(tmp_path / "n.ipynb", FORM | {"more": ("x", long), "training": (TRAINING, f"{long}\n")})
    start = time.monotonic()
    assert missing(notebook, adapter) == {}
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("text", "metrics"),
    [
        ("{'eval_accuracy': 0.91, 'eval_f1': np.float64(0.9)}", {"accuracy", "f1"}),
        ("Accuracy on 872 rows = 91%", {"accuracy"}),
        ("val_acc=.9", {"accuracy"}),
        ("Accuracy: 1", {"accuracy"}),
        ("accuracy\x1b[31m:\x1b[0m 1", {"accuracy"}),
        ("   precision  recall\n0       0.9     0.8", {"precision", "recall"}),
        ("ROC-AUC 0.97", {"roc-auc"}),
        ("Accuracy is computed next", set()),
        ("metric_for_best_model='accuracy', seed=42", set()),
        ("accelerate 1.15.0", set()),
        ("mapping accounts: 0.5", set()),
    ],
)
def test_metrics_are_found_in_what_is_shown(text, metrics, tmp_path):
    notebook = write_notebook(tmp_path / "n.ipynb", {"a": ("x", text)})
    assert read_notebook(notebook)[0][0].metrics == metrics


def names(zip_path) -> list[str]:
    with ZipFile(zip_path) as archive:
        assert archive.testzip() is None
        return archive.namelist()


def test_the_zip_holds_notebook_and_adapter(notebook, adapter, tmp_path):
    files = package_submission(notebook, adapter)
    expected = ["adapter/README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "n.ipynb"]
    assert names(tmp_path / "n.zip") == expected
    assert sorted(files["file"]) == expected
    assert files.set_index("file")["MB"]["n.ipynb"] == notebook.stat().st_size / 1e6
    with ZipFile(tmp_path / "n.zip") as archive:
        archive.extractall(tmp_path / "reviewer")
    assert missing(tmp_path / "reviewer" / "n.ipynb", tmp_path / "reviewer" / "adapter") == {}
    assert not list(tmp_path.glob(".*"))


def test_only_what_loads_the_adapter_is_taken(notebook, adapter, tmp_path, capsys):
    checkpoints(adapter)
    (adapter / ".ipynb_checkpoints").mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (adapter / "secret.json").symlink_to(tmp_path / "secret.json")
    (adapter / "elsewhere").symlink_to(tmp_path)
    (adapter / ".ipynb_checkpoints" / "README.md").touch()
    for name in ("training_args.bin", "adapter_model.bin", "model.safetensors", "optimizer.pt", "events.log"):
        (adapter / name).touch()
    package_submission(notebook, adapter, allow_incomplete=True)
    kept = ["adapter/README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "n.ipynb"]
    assert names(tmp_path / "n.zip") == kept
    left_out = capsys.readouterr().out
    for name in ("training_args.bin", "model.safetensors", "secret.json", "checkpoint-500/optimizer.pt"):
        assert name in left_out


def test_a_folder_that_is_no_adapters_is_never_taken(notebook, adapter, tmp_path):
    no_config(adapter)
    package_submission(notebook, adapter, allow_incomplete=True)
    assert names(tmp_path / "n.zip") == ["n.ipynb"]


def test_the_same_files_give_the_same_bytes(notebook, adapter, tmp_path):
    package_submission(notebook, adapter, tmp_path / "a.zip")
    for path in (notebook, *adapter.iterdir()):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o600)
    package_submission(notebook, adapter, tmp_path / "b.zip")
    package_submission(notebook, adapter, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    (adapter / "README.md").write_text("# Another card")
    package_submission(notebook, adapter, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() != (tmp_path / "b.zip").read_bytes()


@settings(max_examples=25, deadline=None)
@given(files=st.dictionaries(st.text("abcé", min_size=1, max_size=8), st.binary(max_size=300), max_size=5))
def test_any_files_give_the_same_bytes_twice_and_come_back(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hand_in")
    adapter = make_adapter(folder / "adapter")
    notebook = write_notebook(folder / "n.ipynb", FORM)
    for name, content in files.items():
        (adapter / f"{name}.txt").write_bytes(content)
    package_submission(notebook, adapter, folder / "a.zip")
    package_submission(notebook, adapter, folder / "b.zip")
    assert (folder / "a.zip").read_bytes() == (folder / "b.zip").read_bytes()
    with ZipFile(folder / "a.zip") as archive:
        assert {name: archive.read(f"adapter/{name}.txt") for name in files} == files


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("make", [lambda path: path.touch(), lambda path: ZipFile(path, "w").close(), Path.mkdir])
def test_a_file_of_the_users_is_not_replaced(make, notebook, adapter, tmp_path):
    make(tmp_path / "thesis.zip")
    before = (tmp_path / "thesis.zip").stat().st_mtime_ns, list(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="is not a hand-in written before; choose another zip_path"):
        package_submission(notebook, adapter, tmp_path / "thesis.zip")
    assert ((tmp_path / "thesis.zip").stat().st_mtime_ns, list(tmp_path.iterdir())) == before


@pytest.mark.reliability("bad input")
def test_a_folder_for_the_zip_that_does_not_exist(notebook, adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*none.* to write a.zip in; make it"):
        package_submission(notebook, adapter, tmp_path / "none" / "a.zip")


@pytest.mark.reliability("fault")
def test_a_full_disk_leaves_the_earlier_zip_whole(notebook, adapter, tmp_path, monkeypatch):
    package_submission(notebook, adapter)
    before = (tmp_path / "n.zip").read_bytes()
    left = iter([None, OSError(errno.ENOSPC, "No space left on device")])

    def copy(source, target):
        if error := next(left):
            raise error
        target.write(source.read())

    monkeypatch.setattr(submission.shutil, "copyfileobj", copy)
    with pytest.raises(OSError, match="No space left"):
        package_submission(notebook, adapter)
    assert (tmp_path / "n.zip").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "n.ipynb", "n.zip"}
