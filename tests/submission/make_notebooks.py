"""Notebooks made by hand: a complete one, cell by cell, from which each case differs in a few cells."""

import json
import struct
from pathlib import Path

# By name of the cell: its code and what it shows; a cell without code is Markdown.
COMPLETE = {
    "title": (
        "",
        "# Lightweight Fine-Tuning\n* PEFT technique: LoRA\n* Model: pre-trained gpt2\n* Evaluation: accuracy",
    ),
    "imports": (
        "!pip install -q peft  # once\n"
        "import numpy as np\n"
        "from datasets import load_dataset\n"
        "from peft import AutoPeftModelForSequenceClassification, LoraConfig, TaskType, get_peft_model\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments",
        "",
    ),
    "data": ("dataset = load_dataset('imdb', split='train[:500]').train_test_split(test_size=0.2)", ""),
    "tokenizer": (
        "tokenizer = AutoTokenizer.from_pretrained('gpt2')\n"
        "def preprocess(rows):\n    return tokenizer(rows['text'], truncation=True)\n"
        "tokenized = dataset.map(preprocess, batched=True)",
        "",
    ),
    "model": (
        "model = AutoModelForSequenceClassification.from_pretrained('gpt2', num_labels=2)\n"
        "model.config.pad_token_id = tokenizer.pad_token_id",
        "",
    ),
    "metric": (
        "def compute_metrics(eval_pred):\n    predictions, labels = eval_pred\n"
        "    return {'accuracy': (np.argmax(predictions, axis=1) == labels).mean()}",
        "",
    ),
    "untuned": (
        "trainer = Trainer(model=model, args=TrainingArguments('out'), eval_dataset=tokenized['test'],\n"
        "                  compute_metrics=compute_metrics)\ntrainer.evaluate()",
        "{'eval_loss': 0.69, 'eval_accuracy': 0.51, 'eval_runtime': 3.1}",
    ),
    "configuration": ("config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8)", ""),
    "peft model": (
        "lora_model = get_peft_model(model, config)\nlora_model.print_trainable_parameters()",
        "trainable params: 296,448 || all params: 124,736,256 || trainable%: 0.2377",
    ),
    "training heading": ("", "## Training\nTODO: train, then compare the results to those from prior to fine-tuning."),
    "training": (
        "lora_trainer = Trainer(model=lora_model, args=TrainingArguments('out', num_train_epochs=1),\n"
        "                       train_dataset=tokenized['train'], compute_metrics=compute_metrics)\n"
        "lora_trainer.train()",
        "TrainOutput(global_step=50, training_loss=0.4, metrics={'train_runtime': 60.0, 'epoch': 1.0})",
    ),
    "save": ("lora_model.save_pretrained('gpt-lora')", ""),
    "reload": ("loaded_model = AutoPeftModelForSequenceClassification.from_pretrained('gpt-lora')", ""),
    "tuned": (
        "new_trainer = Trainer(model=loaded_model, args=TrainingArguments('out'), eval_dataset=tokenized['test'],\n"
        "                      compute_metrics=compute_metrics)\nnew_trainer.evaluate()",
        "{'eval_loss': 0.31, 'eval_accuracy': 0.89, 'eval_runtime': 3.2}",
    ),
    "comparison": ("", "The fine-tuned model is better than the original: accuracy rose from 0.51 to 0.89."),
}


def make_cell(source: str, shown: object, count: int | None) -> dict:
    if not source:
        return {"cell_type": "markdown", "metadata": {}, "source": shown}
    outputs = []
    if isinstance(shown, type):
        outputs = [{"output_type": "error", "ename": shown.__name__, "evalue": "", "traceback": []}]
    elif isinstance(shown, dict):
        outputs = [{"output_type": "display_data", "metadata": {}, "data": shown}]
    elif shown:
        outputs = [{"output_type": "stream", "name": "stdout", "text": shown.splitlines(keepends=True)}]
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": outputs, "execution_count": count}


def write_notebook(path: Path, changes: dict | None = None, counts: bool = True) -> Path:
    """Write the complete notebook with some cells changed, added at the end, or left out where they are None.

    A third value of a cell is its execution count.
    """
    cells = [cell for cell in (COMPLETE | (changes or {})).values() if cell]
    made = [
        make_cell(source, shown, *(count or [number if counts else None]))
        for number, (source, shown, *count) in enumerate(cells, 1)
    ]
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path


def number_of(name: str, changes: dict | None = None) -> int:
    """Return the number of a cell of `write_notebook`."""
    cells = COMPLETE | (changes or {})
    return [each for each in cells if cells[each]].index(name) + 1


def make_weights(length: int = 16) -> bytes:
    header = json.dumps(
        {"score.weight": {"dtype": "F32", "shape": [length // 4], "data_offsets": [0, length]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(length)


def make_adapter(folder: Path, **config) -> Path:
    """Write what save_pretrained of a PEFT model writes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "gpt2"} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(make_weights())
    (folder / "README.md").write_text("# Model card")
    return folder
