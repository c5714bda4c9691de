"""Accuracy against seconds of training: this package's defaults beside the best that others have, on the same rows.

    python -m tests.benchmarks.race --output_file race.png --model_name_or_path MODEL --dataset_name DATA

What is not named here is an option of the notebook (``LFT_ARGS``). A recipe's learning rate is the best of several on
the validation rows, in one run each, or of an earlier race; this package keeps its default. Then each recipe is a
process of its own, they take turns, and the test rows are evaluated at several points of the training, while the clock
stands still.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from datasets import DatasetDict, concatenate_datasets
from scipy.stats import binomtest
from transformers import AutoTokenizer

import peft_helpers as helpers
from peft_helpers.distributed import compute_dtype
from peft_helpers.tokenization import tokenize_dataset

CAREFUL, PACKAGE = "Trainer and peft", "this package"
LORA_RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3]
# Name: function in racer.py, whether it computes in bfloat16 where the processor has it, learning rates to choose from.
RECIPES = {
    CAREFUL: ("lora", False, LORA_RATES),
    f"{CAREFUL}, bf16=True": ("lora", True, LORA_RATES),
    "AdapterHub, bf16=True": ("adapterhub", True, [5e-4, 1e-3, 2e-3]),
    "full fine-tuning, bf16=True": ("full", True, [2e-5, 5e-5, 1e-4, 2e-4, 5e-4]),
    "last two layers, bf16=True": ("last_layers", True, [1e-4, 3e-4, 1e-3, 3e-3]),
    "frozen features, logistic regression": ("frozen_features", True, [None]),
    "TF-IDF, logistic regression": ("tf_idf", False, [None]),
    PACKAGE: ("package", True, [None]),
    f"{PACKAGE}, --bf16 false": ("package", False, [None]),
}
REPEATED = (CAREFUL, PACKAGE)  # what these names begin with runs with every seed, the others with the first


def write_rows(args: helpers.Arguments, folder: str) -> dict:
    """Save the rows, with their tokens, to ``folder``; return what every recipe has to know."""
    dataset = helpers.load_splits(args)
    name = args.model.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=args.data.max_length)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = {
        name: concatenate_datasets([split, tokenize_dataset(split, tokenizer)], axis=1)
        for name, split in dataset.items()
    }
    DatasetDict(rows).save_to_disk(folder)
    print(", ".join(f"{split.num_rows:,} {name} rows" for name, split in rows.items()), file=sys.stderr)
    return {
        "model": name,
        "rows": folder,
        "test_rows": rows["test"].num_rows,
        "labels": dataset["train"].features["label"].names,
        "pad": tokenizer.pad_token_id,
        "epochs": args.training.num_train_epochs,
        "package": {"learning_rate": args.training.learning_rate, "lora_alpha": args.lora.lora_alpha},
        "batch_size": args.training.per_device_train_batch_size,
        "has_bf16": compute_dtype() == torch.bfloat16,
    }


def run_recipe(name: str, common: dict, python: str, **settings) -> dict:
    """Return what ``racer.py`` measured."""
    recipe, bf16, _ = RECIPES[name]
    settings = common | {"recipe": recipe, "bf16": bf16 and common["has_bf16"]} | settings
    environment = os.environ | {"PYTHONPATH": ".", "PYTHONWARNINGS": "ignore"}
    process = subprocess.run(
        [python, str(Path(__file__).with_name("racer.py"))],
        input=json.dumps(settings), env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(process.stdout.splitlines()[-1])


def try_rates(names: list[str], common: dict, pythons: dict[str, str], seed: int) -> dict[str, dict[str, float]]:
    """Return the validation accuracy that each function in ``racer.py`` reaches with each of its learning rates."""
    tried = {}
    for name in names:
        recipe, _, rates = RECIPES[name]
        if len(rates) > 1 and recipe not in tried:
            short = {
                "bf16": common["has_bf16"],
                "points": 1,
                "evaluate_on": "validation",
                "seed": seed,
            }
            runs = [run_recipe(name, common, pythons[recipe], learning_rate=rate, **short) for rate in rates]
            tried[recipe] = {str(run["learning_rate"]): run["curve"][-1][1] for run in runs}
            print(f"{recipe}: {tried[recipe]}", file=sys.stderr, flush=True)
    return tried


def mean_curve(runs: list[dict]) -> np.ndarray:
    """Return seconds and accuracy at each point, shape (points, 2): the means over the seeds."""
    return np.mean([run["curve"] for run in runs], axis=0)


def seconds_to(accuracy: float, curve: np.ndarray) -> float | None:
    """Return the seconds at the first point that is as good as ``accuracy``; None: there is none."""
    return next((float(seconds) for seconds, reached in curve if reached >= accuracy), None)


def summarize(runs: dict[str, list[dict]], test_rows: int) -> list[dict[str, str]]:
    """Return the table's rows: at the end of the training, and when the best of the careful user's was reached."""
    target = mean_curve(runs[CAREFUL])[:, 1].max() if CAREFUL in runs else np.inf
    table = []
    for name, of_recipe in runs.items():
        curve, rate = mean_curve(of_recipe), of_recipe[0]["learning_rate"]
        seconds, accuracy = curve[-1]
        low, high = binomtest(round(accuracy * test_rows), test_rows).proportion_ci(0.95, method="wilson")
        reached = seconds_to(target, curve)
        table.append(
            {
                "recipe": name,
                "learning rate": "" if rate is None else f"{rate:g}",
                "seeds": str(len(of_recipe)),
                "training, s": f"{seconds:.1f}",
                "accuracy [95 %]": f"{accuracy:.3f} [{low:.3f}, {high:.3f}]",
                f"s to {target:.3f}": "not reached" if reached is None else f"{reached:.1f}",
                "peak memory, GB": f"{statistics.median(run['peak_memory'] for run in of_recipe) / 1e9:.2f}",
            }
        )
    return table


def plot(runs: dict[str, list[dict]], title: str, path: Path) -> None:
    """Save the figure; lines differ in their marks, so that it can be read without colors."""
    _, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for (name, of_recipe), marker in zip(runs.items(), "osD^vP*XX", strict=False):
        curve, ours = mean_curve(of_recipe), name.startswith(PACKAGE)
        style = {"color": "black" if ours else "0.55", "linestyle": "--" if "false" in name else "-"}
        axes.plot(*curve.T, marker=marker, markersize=5, linewidth=2 if ours else 1, label=name, **style)
    axes.set(xscale="log", xlabel="seconds of training", ylabel="accuracy on the test rows", title=title)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    plt.savefig(path, dpi=120)


def race(options: argparse.Namespace, args: helpers.Arguments) -> tuple[dict, dict]:
    """Run the recipes in turns; return what was measured, which is kept after each run, and what all have in common."""
    names = [name for name, (recipe, *_) in RECIPES.items() if options.adapters_python or recipe != "adapterhub"]
    pythons = dict.fromkeys([recipe for recipe, *_ in RECIPES.values()], sys.executable)
    pythons["adapterhub"] = options.adapters_python
    content = {"environment": helpers.describe_environment().to_dict(), "runs": {name: [] for name in names}}
    with tempfile.TemporaryDirectory() as folder:
        common = write_rows(args, folder)
        earlier = options.rates_from and json.loads(options.rates_from.read_text())["validation"]
        content["validation"] = earlier or try_rates(names, common, pythons, options.seeds[0])
        best = {recipe: float(max(tried, key=tried.get)) for recipe, tried in content["validation"].items()}
        if missing := {RECIPES[name][0] for name in names if len(RECIPES[name][2]) > 1} - best.keys():
            raise ValueError(f"{options.rates_from} has no learning rates of {', '.join(missing)}.")
        for seed in options.seeds:
            for name in names:
                if seed == options.seeds[0] or name.startswith(REPEATED):
                    recipe = RECIPES[name][0]
                    settings = {"points": options.points, "evaluate_on": "test", "seed": seed}
                    run = run_recipe(name, common, pythons[recipe], learning_rate=best.get(recipe), **settings)
                    content["runs"][name].append(run)
                    options.output_file.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
                    print(f"seed {seed}, {name}: {run['curve'][-1]}", file=sys.stderr, flush=True)
    return content, common


def main() -> None:
    """Parse the options, run the race, print the table and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_file", type=Path, default=Path("race.png"), help="the figure; JSON goes beside it")
    parser.add_argument("--points", type=int, default=10, help="evaluations on the way")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--rates_from", type=Path, help="JSON of an earlier race, whose learning rates are taken")
    parser.add_argument("--adapters_python", help="python with AdapterHub's adapters (default: without that recipe)")
    options, rest = parser.parse_known_args()
    args = helpers.parse_arguments(shlex.join(rest), num_train_epochs=1, max_train_samples=2_000)
    content, common = race(options, args)
    table = summarize(content["runs"], common["test_rows"])
    print(f"{', '.join(f'{name} {value}' for name, value in content['environment'].items())}\n")
    print("| " + " | ".join(table[0]) + " |\n|" + "---|" * len(table[0]))
    for row in table:
        print("| " + " | ".join(row.values()) + " |")
    plot(content["runs"], f"{Path(common['model']).name}, {Path(args.data.dataset_name).name}", options.output_file)


if __name__ == "__main__":
    main()
