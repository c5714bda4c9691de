"""One recipe in a process of its own, started by ``speed.py``: trains, predicts, prints one line of JSON.

``usual`` is what most notebooks write; ``defaults`` calls this package as ``LightweightFineTuning.ipynb`` does.
"""

import json
import resource
import sys
import tempfile
import time
from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.activations import NewGELUActivation

import peft_helpers as helpers
from peft_helpers.distributed import compute_dtype
from peft_helpers.modeling import load_model, uses_conv1d
from peft_helpers.training import LengthTrainer

MATRIX = 2048  # rows and columns: large enough for the highest rate
LABELS = ["negative", "positive"]


def matrix_rate() -> float:
    """Return the GFLOP/s of a large matrix product in the precision that the training computes in."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 4 * MATRIX if device == "cuda" else MATRIX
    left, right = torch.randn(2, size, size, device=device, dtype=compute_dtype())
    left @ right
    _wait()
    start = time.perf_counter()
    for _ in range(10):
        left @ right
    _wait()
    return 10 * 2 * size**3 / (time.perf_counter() - start) / 1e9


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_rows(lengths: list[int], vocabulary: int, seed: int) -> Dataset:
    """Return rows of random tokens: how fast a model reads does not depend on what it reads."""
    generator = np.random.default_rng(seed)
    rows = [generator.integers(0, vocabulary - 1, length).tolist() for length in lengths]  # the last one is padding
    labels = generator.integers(0, 2, len(lengths)).tolist()
    return Dataset.from_dict(
        {"input_ids": rows, "attention_mask": [[1] * length for length in lengths], "labels": labels, "length": lengths}
    )


def lora_config(settings: dict, model) -> LoraConfig:
    """Return the LoRA that every recipe of a comparison trains: of the same rank on the same layers."""
    return LoraConfig(
        task_type="SEQ_CLS",
        r=8,
        lora_alpha=16,
        lora_dropout=settings["lora_dropout"],
        target_modules=settings["target_modules"],
        exclude_modules=["score"],
        fan_in_fan_out=uses_conv1d(model),
    )


def usual(settings: dict, tokenizer: PreTrainedTokenizerBase, train: Dataset, test: Dataset) -> tuple[float, float]:
    """Return the seconds of training and of evaluation with the Trainer's defaults, padded as ``settings`` say."""
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"], num_labels=2)
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = Trainer(
        model=get_peft_model(model, lora_config(settings, model)),
        args=TrainingArguments(
            tempfile.mkdtemp(),
            num_train_epochs=1,
            per_device_train_batch_size=settings["batch_size"],
            per_device_eval_batch_size=settings["batch_size"],
            bf16=torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=train.remove_columns("length"),
        data_collator=DataCollatorWithPadding(tokenizer, padding=settings["padding"], max_length=1024),
    )
    seconds = trainer.train().metrics["train_runtime"]
    return seconds, trainer.predict(test.remove_columns("length")).metrics["test_runtime"]


def defaults(settings: dict, tokenizer: PreTrainedTokenizerBase, train: Dataset, test: Dataset) -> tuple[float, float]:
    """Return the seconds of training and of evaluation with this package; ``settings["without"]`` leaves a part out."""
    args = helpers.make_arguments(
        model_name_or_path=settings["model"],
        num_train_epochs=1,
        per_device_train_batch_size=settings["batch_size"],
        output_dir=tempfile.mkdtemp(),
    )
    model = load_model(args, tokenizer, helpers.CLASSIFICATION, LABELS)
    for module in list(model.modules()):
        if "no_dropout" in settings["without"] and isinstance(module, torch.nn.Dropout):
            module.p = 0.1
        if "fused_gelu" in settings["without"] and hasattr(module, "c_fc"):
            module.act = NewGELUActivation()
    if "no_cache" in settings["without"]:
        model.config.use_cache = True
    model = get_peft_model(model, lora_config(settings, model))
    arguments = replace(
        args.training,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
    )
    trainer_class = Trainer if "like_lengths" in settings["without"] else LengthTrainer
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=train, data_collator=DataCollatorWithPadding(tokenizer)
    )
    seconds = trainer.train().metrics["train_runtime"]
    return seconds, helpers.predict(model, tokenizer, test, args, disable_tqdm=True).metrics["test_runtime"]


def main() -> None:
    """Run the recipe that the JSON on standard input describes."""
    settings = json.load(sys.stdin)
    if settings["memory"] is not None:
        resource.setrlimit(resource.RLIMIT_AS, (settings["memory"],) * 2)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    tokenizer.pad_token = tokenizer.eos_token
    train, test = (
        make_rows(settings[name], len(tokenizer), seed) for seed, name in enumerate(("train_lengths", "test_lengths"))
    )
    before = matrix_rate()
    try:
        seconds = {"usual": usual, "defaults": defaults}[settings["path"]](settings, tokenizer, train, test)
    except RuntimeError as error:  # torch's allocators; a killed process would tell nothing
        if "memory" not in str(error):
            raise
        print(json.dumps({"error": "out of memory"}))
        return
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "train_seconds": seconds[0],
        "test_seconds": seconds[1],
        "peak_memory": memory,
        "matrix_gflops": (before + matrix_rate()) / 2,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
