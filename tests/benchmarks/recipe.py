"""One recipe in a process of its own, started by ``speed.py``: trains, predicts, prints one line of JSON.

``plain`` is transformers and peft with care; ``package`` calls this package as ``LightweightFineTuning.ipynb`` does.
"""

import json
import resource
import sys
import tempfile
import time

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

import peft_helpers as helpers
from peft_helpers.distributed import compute_dtype
from peft_helpers.modeling import load_model, uses_conv1d
from peft_helpers.training import NO_EVALUATION, LengthTrainer

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
        lora_dropout=0.0,
        target_modules=settings["target_modules"],
        exclude_modules=["score"],
        fan_in_fan_out=uses_conv1d(model),
    )


def plain(settings: dict, tokenizer: PreTrainedTokenizerBase, train: Dataset, test: Dataset) -> tuple[float, float]:
    """Return the seconds of training and of evaluation with the Trainer and peft as their examples have it."""
    model = AutoModelForSequenceClassification.from_pretrained(settings["model"], num_labels=2)
    model.config.pad_token_id = tokenizer.pad_token_id
    trainer = Trainer(
        model=get_peft_model(model, lora_config(settings, model)),
        args=TrainingArguments(
            tempfile.mkdtemp(),
            num_train_epochs=1,
            learning_rate=5e-4,
            per_device_train_batch_size=settings["batch_size"],
            per_device_eval_batch_size=settings["batch_size"],
            train_sampling_strategy="group_by_length" if settings["padding"] == "longest" else "random",
            bf16=settings["bf16"],
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=train,
        data_collator=DataCollatorWithPadding(tokenizer, padding=settings["padding"], max_length=1024),
    )
    seconds = trainer.train().metrics["train_runtime"]
    return seconds, trainer.predict(test.remove_columns("length")).metrics["test_runtime"]


def package(settings: dict, tokenizer: PreTrainedTokenizerBase, train: Dataset, test: Dataset) -> tuple[float, float]:
    """Return the seconds of training and of evaluation with this package."""
    args = helpers.make_arguments(
        model_name_or_path=settings["model"],
        num_train_epochs=1,
        per_device_train_batch_size=settings["batch_size"],
        output_dir=tempfile.mkdtemp(),
        disable_tqdm=True,
        bf16=settings["bf16"],
        **settings.get("options", {}),
        **NO_EVALUATION,
    )
    model = load_model(args, tokenizer, helpers.CLASSIFICATION, LABELS)
    model = get_peft_model(model, lora_config(settings, model))
    collate = DataCollatorWithPadding(tokenizer)
    seconds = LengthTrainer(model, args.training, collate, train).train().metrics["train_runtime"]
    return seconds, helpers.predict(model, tokenizer, test, args).metrics["test_runtime"]


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
        seconds = {"plain": plain, "package": package}[settings["path"]](settings, tokenizer, train, test)
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
