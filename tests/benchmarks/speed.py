"""How fast this package trains and evaluates, beside the usual recipes: one table, each recipe in its own process.

    python -m tests.benchmarks.speed --model gpt2 --rows short

Rows of random tokens in the lengths of SST-2's phrases or of long reviews; GPT-2's shape with random weights, or the
tiny GPT-2. Recipes take turns, so that a machine whose speed drifts is fair to each; shares are of the rate that a
large matrix product had in the same process, just before and after.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed

import peft_helpers as helpers
from peft_helpers.tiny_gpt2 import TINY_GPT2

PLAIN = {"path": "plain", "padding": "longest", "bf16": False}
PACKAGE = {"path": "package", "bf16": None, "options": {}}


def draw_lengths(kind: str, count: int, seed: int) -> list[int]:
    """Return ``count`` lengths in tokens: ``short`` as SST-2's phrases, ``long`` from 400 to 512.

    ``passages`` are those of the offline notebook's training rows: whole ones of 128 tokens, and what is left at the
    end of a text, which is one of 4.6 (6,815 passages of 1,488 texts).
    """
    generator = np.random.default_rng(seed)
    if kind == "passages":
        last = generator.random(count) < 1 / 4.6
        return np.where(last, generator.integers(32, 128, count), 128).tolist()
    if kind == "long":
        return generator.integers(400, 513, count).tolist()
    # GPT-2's tokenizer gives 2,000 of SST-2's training phrases a median of 9 tokens, a mean of 12.2 and at most 60.
    return generator.lognormal(np.log(9), 0.78, count).clip(1, 60).astype(int).tolist()


def make_recipes(options: argparse.Namespace) -> dict[str, dict]:
    """Return the recipes by name."""
    batch = options.batch_size or {"short": 32, "long": 8, "passages": 16}[options.rows]
    same = {"batch_size": batch, "target_modules": ["c_attn"] if options.model == "gpt2" else "all-linear"}
    recipes = {
        "Trainer and peft, group_by_length": PLAIN | same,
        "the same with bf16=True": PLAIN | same | {"bf16": True},
        "this package": PACKAGE | same,
        "this package, --bf16 false": PACKAGE | same | {"bf16": False},
    }
    for variant in options.variants:
        recipes[f"this package, --{variant}"] = PACKAGE | same | {"options": {variant: True}}
    if options.rows == "short" and options.model == "gpt2" and not options.without_seeds_recipe:
        recipes["the seeds' recipe: padding to 1,024, batch 2"] = (
            PLAIN | same | {"padding": "max_length", "batch_size": 2}
        )
    if options.without_bfloat16:
        recipes = {name: recipe for name, recipe in recipes.items() if recipe["bf16"] is not True}
    return recipes


def make_model(options: argparse.Namespace, folder: str) -> int:
    """Save the model and the tokenizer to ``folder``; return the number of the blocks' parameters."""
    name = options.tokenizer or TINY_GPT2  # it pads, and names the tokens that rows are drawn from
    bare = Path(name).is_dir() and not Path(name, "config.json").exists()  # GPT-2's two files do not tell what they are
    tokenizer = AutoTokenizer.from_pretrained(name, **({"tokenizer_type": "gpt2"} if bare else {}))
    tokenizer.save_pretrained(folder)
    set_seed(0)
    tiny = {"n_embd": 128, "n_layer": 4, "n_head": 4, "vocab_size": len(tokenizer)}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    config = GPT2Config(**(tiny if options.model == "tiny" else {}), **special)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.transformer.h.parameters())


def run_recipe(recipe: dict, model: str, lengths: dict[str, list[int]], options: argparse.Namespace) -> dict:
    """Return what ``recipe.py`` measured."""
    limited = recipe.get("padding") == "max_length"
    # What padding to 1,024 tokens takes may be more than there is: an error in place of a killed process.
    memory = psutil.virtual_memory().available if limited else None
    count = 4 if limited else None  # rows: one takes many seconds
    settings = recipe | {"model": model, "memory": memory}
    settings |= {name: values[: count and max(count, recipe["batch_size"])] for name, values in lengths.items()}
    environment = os.environ | {"PYTHONPATH": ".", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    if options.without_bfloat16:
        environment |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    process = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("recipe.py"))],
        input=json.dumps(settings), env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    result = json.loads(process.stdout.splitlines()[-1])
    return result | {"train_lengths": settings["train_lengths"], "test_lengths": settings["test_lengths"]}


def summarize(name: str, runs: list[dict], parameters: int) -> dict:
    """Return a row of the table: medians, and for the rows a second the least and the most."""
    if "error" in runs[0]:
        return {"recipe": name, "train rows/s": runs[0]["error"]}
    row = {"recipe": name}
    for part, passes in (("train", 4), ("test", 2)):  # FLOP a parameter and token, no gradient of frozen weights
        rates = [len(run[f"{part}_lengths"]) / run[f"{part}_seconds"] for run in runs]
        useful = [passes * parameters * sum(run[f"{part}_lengths"]) / run[f"{part}_seconds"] / 1e9 for run in runs]
        shares = [rate / run["matrix_gflops"] for rate, run in zip(useful, runs, strict=True)]
        title = {"train": "train", "test": "eval"}[part]
        row |= {
            f"{title} rows/s": f"{statistics.median(rates):.3g} ({min(rates):.3g} to {max(rates):.3g})",
            f"{title} useful GFLOP/s": f"{statistics.median(useful):.0f}",
            f"{title} share": f"{statistics.median(shares):.2f}",
        }
    return row | {"peak memory, GB": f"{statistics.median(run['peak_memory'] for run in runs) / 1e9:.2f}"}


def main() -> None:
    """Parse the options, run the recipes in turns, print the table and keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["gpt2", "tiny"], default="gpt2", help="GPT-2's shape, or the tiny one's")
    parser.add_argument("--rows", choices=["short", "long", "passages"], default="short")
    parser.add_argument("--tokenizer", help="Hub id, or folder (default: the tiny GPT-2's)")
    parser.add_argument("--without_bfloat16", action="store_true", help="as on a CPU with AVX2 only, which is imitated")
    parser.add_argument("--without_seeds_recipe", action="store_true", help="it takes a minute for four rows")
    parser.add_argument("--variants", nargs="*", default=[], help="options of this package to turn on: torch_compile")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--batch_size", type=int, help="default: 32 short rows, 8 long ones, 16 passages")
    parser.add_argument("--train_rows", type=int, help="default: 512 short rows, 16 long ones, 2,048 passages")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output_file", help="JSON with every measurement")
    options = parser.parse_args()
    count = options.train_rows or {"short": 512, "long": 16, "passages": 2_048}[options.rows]
    lengths = {
        "train_lengths": draw_lengths(options.rows, count, seed=0),
        "test_lengths": draw_lengths(options.rows, 2 * count, seed=1),
    }
    recipes = make_recipes(options)
    runs = {name: [] for name in recipes}
    with tempfile.TemporaryDirectory() as folder:
        parameters = make_model(options, folder)
        for turn in range(options.repetitions):
            for name, recipe in recipes.items():
                if not (runs[name] and "error" in runs[name][0]):
                    runs[name].append(run_recipe(recipe, folder, lengths, options))
                print(f"{turn + 1} of {options.repetitions}: {name}", file=sys.stderr, flush=True)
    rates = [run["matrix_gflops"] for measured in runs.values() for run in measured if "error" not in run]
    table = pd.DataFrame([summarize(name, measured, parameters) for name, measured in runs.items()]).fillna("")
    environment = helpers.describe_environment()
    print(f"\n{options.model}, {options.rows} rows: {count} to train on, {2 * count} to evaluate, ", end="")
    spread = f"{statistics.median(rates):.0f} GFLOP/s ({min(rates):.0f} to {max(rates):.0f})"
    print(f"{options.repetitions} repetitions; large matrix product: {spread}")
    print(f"{', '.join(f'{name} {value}' for name, value in environment.items())}\n")
    print("| " + " | ".join(table.columns) + " |\n|" + "---|" * len(table.columns))
    for row in table.itertuples(index=False):
        print("| " + " | ".join(row) + " |")
    if options.output_file:
        kept = {
            name: [{key: value for key, value in run.items() if not key.endswith("lengths")} for run in measured]
            for name, measured in runs.items()
        }
        content = {"options": vars(options), "environment": environment.to_dict(), "runs": kept}
        Path(options.output_file).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
