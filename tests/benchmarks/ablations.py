"""What each part of the defaults brings: with and without it in turns, and the interval of the ratio.

    python -m tests.benchmarks.ablations

GPT-2's shape with random weights, LoRA on all linear layers, rows of random tokens. Each pair trains on (forward and
backward) and evaluates (forward) the same rows, first with all parts and then without one, in one process.
"""

import argparse
import json
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from peft import get_peft_model
from scipy.stats import bootstrap
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer
from transformers.activations import NewGELUActivation

import peft_helpers as helpers
from peft_helpers import batches
from peft_helpers.modeling import load_model
from peft_helpers.training import NO_EVALUATION, LengthTrainer
from tests.benchmarks.recipe import LABELS, lora_config, make_rows
from tests.benchmarks.speed import draw_lengths, make_model

BATCH = {"short": 32, "long": 8, "passages": 16}
PARTS = ("bfloat16", "weights held in bfloat16", "inputs of LoRA kept in bfloat16", "eager attention",
         "length-grouped batches", "fused GELU", "no dropout in the frozen model",
         "no cache of keys and values")  # fmt: skip


def make_trainer(folder: str, rows: str, lengths: list[int], without: str) -> LengthTrainer:
    """Return the Trainer of this package, less one part."""
    args = helpers.make_arguments(
        model_name_or_path=folder, per_device_train_batch_size=BATCH[rows], output_dir=tempfile.mkdtemp(),
        bf16=False if without == "bfloat16" else None, **NO_EVALUATION,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_model(args, tokenizer, helpers.CLASSIFICATION, LABELS)
    for module in model.modules():
        if without.startswith("no dropout") and isinstance(module, torch.nn.Dropout):
            module.p = 0.1
        if without == "fused GELU" and hasattr(module, "c_fc"):
            module.act = NewGELUActivation()
    model.config.use_cache = without.startswith("no cache")
    model = get_peft_model(model, lora_config({"target_modules": "all-linear"}, model))
    collate, train = DataCollatorWithPadding(tokenizer), make_rows(lengths, len(tokenizer), seed=0)
    with patch.object(batches, "hold_in_bfloat16", (lambda _: None) if "held" in without else batches.hold_in_bfloat16):
        return LengthTrainer(model, args.training, collate, train)


def time_epoch(trainer: LengthTrainer, without: str) -> tuple[float, float]:
    """Return the seconds of training on all rows, and of evaluating them."""
    sampler = trainer._get_train_sampler() if "length" not in without else Trainer._get_train_sampler(trainer)
    with patch.object(trainer, "_get_train_sampler", lambda *_: sampler):
        loaded = [trainer._prepare_inputs(batch) for batch in trainer.get_train_dataloader()]
    seconds, keep_inputs = [], nullcontext() if without.startswith("inputs") else trainer._keep_input_dtype()
    eager_tokens = 0 if without == "eager attention" else batches.EAGER_TOKENS
    with keep_inputs, patch.object(batches, "EAGER_TOKENS", eager_tokens):
        for is_training in (True, False):
            trainer.model.train(is_training)
            start = time.perf_counter()
            for batch in loaded:
                with torch.set_grad_enabled(is_training), trainer.accelerator.autocast():
                    loss = trainer.compute_loss(trainer.model, batch)
                if is_training:
                    loss.backward()
                loss.item()
            seconds.append(time.perf_counter() - start)
    return tuple(seconds)


def main() -> None:
    """Time the pairs, print the table and keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["gpt2", "tiny"], default="gpt2")
    parser.add_argument("--rows", choices=["short", "long", "passages"], default="short")
    parser.add_argument("--count", type=int, help="rows (default: 128, but 8 long ones)")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output_file", help="JSON with every measurement")
    options = parser.parse_args()
    options.tokenizer = None
    count = options.count or (8 if options.rows == "long" else 128)
    lengths = draw_lengths(options.rows, count, seed=0)
    rows, measured = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(options, folder)
        everything = make_trainer(folder, options.rows, lengths, "")
        for part in options.parts:
            other = make_trainer(folder, options.rows, lengths, part)
            pairs = [(time_epoch(everything, ""), time_epoch(other, part)) for _ in range(options.pairs + 1)][1:]
            measured[part], rows[part] = pairs, {}
            for number, name in enumerate(("training", "evaluation")):
                ratios = np.array([without[number] / with_it[number] for with_it, without in pairs])
                low, high = bootstrap([ratios], np.median, rng=0, method="percentile").confidence_interval
                rows[part][f"{name}: times as fast with it [95 %]"] = f"{np.median(ratios):.2f} [{low:.2f}, {high:.2f}]"
            print(part, rows[part], flush=True)
    table = pd.DataFrame(rows).T
    print("| part | " + " | ".join(table.columns) + " |\n|" + "---|" * (1 + len(table.columns)))
    for name, row in table.iterrows():
        print(f"| {name} | " + " | ".join(row) + " |")
    if options.output_file:
        content = {"options": vars(options), "environment": helpers.describe_environment().to_dict(), "pairs": measured}
        Path(options.output_file).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
