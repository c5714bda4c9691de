"""How many labelled examples it takes: several methods on more and more of the training examples."""

import numpy as np
import pandas as pd
from datasets import DatasetDict

from peft_helpers.analysis.linear_probe import count_in_steps
from peft_helpers.analysis.plots import CLASSICAL, FROZEN
from peft_helpers.analysis.report import format_score
from peft_helpers.analysis.significance import f1_interval
from peft_helpers.arguments import Arguments
from peft_helpers.batches import count_steps, format_seconds
from peft_helpers.comparison.baselines import BASELINES
from peft_helpers.comparison.runner import Prepared, check_comparison, find_or_run, find_result, prepare, time_method
from peft_helpers.comparison.tables import summarize_methods
from peft_helpers.data import take_stratified

LORA = "lora-all-linear"
COMPARED = (LORA, "full", "head-only", FROZEN, CLASSICAL)


def measure_learning_curve(dataset: DatasetDict, args: Arguments) -> tuple[list[dict], np.ndarray]:
    """Run `COMPARED` on ``train_sizes`` examples; return the results and the true labels of the test examples.

    Results are as in `compare_methods`, and are kept and found like them. Each of ``comparison_seeds`` seeds draws a
    head and stratified samples, the smaller within the larger. Every method is trained for ``num_train_epochs`` passes,
    but for ``comparison_steps`` steps at least: a few passes over a few examples change too little (Zhang et al. 2021,
    arXiv 2006.05987). ``comparison_minutes`` does not count. See also `check_comparison` and `choose_sizes`.
    """
    check_comparison(args)
    sizes, runs = choose_sizes(dataset["train"].num_rows, args), []
    labels = dataset["train"].select_columns("label").to_pandas()
    for seed in range(args.training.seed, args.training.seed + args.comparison.comparison_seeds):
        for size in sizes:
            train = dataset["train"].select(take_stratified(labels, size, seed).index)
            data = prepare(DatasetDict(train=train, test=dataset["test"]), args)
            steps = max(count_steps(data.tokenized["train"], args.training), args.comparison.comparison_steps)
            runs += [(name, args.replace(seed=seed, comparison_steps=steps), data) for name in COMPARED]
    _tell_time(runs)
    return find_or_run(runs), np.array(dataset["test"]["label"][:])


def _tell_time(runs: list[tuple[str, Arguments, Prepared]]) -> None:
    to_do = [run for run in runs if not find_result(*run)]
    trained = [(name, args.comparison.comparison_steps) for name, args, _ in to_do if name not in BASELINES]
    seconds = {name: time_method(name, *runs[-1][1:]) for name in dict(trained)}  # on the largest sample
    total = format_seconds(sum(seconds[name][0] + count_in_steps(steps) * seconds[name][1] for name, steps in trained))
    print(f"{len(to_do)} of {len(runs)} to run: about {total} for the {len(trained)} that train the model.", flush=True)


def choose_sizes(examples: int, args: Arguments) -> list[int]:
    """Return ``train_sizes``, ascending; by default the powers of two from 16 on, then all ``examples``."""
    powers = [2**power for power in range(4, examples.bit_length())]
    sizes = sorted({*(args.comparison.train_sizes or [*powers, examples])})
    if not 2 <= sizes[0] <= sizes[-1] <= examples:
        raise ValueError(
            f"train_sizes is {sizes}; expected from 2 to the {examples:,} training examples that there are. Name "
            "smaller ones, or take more examples (--max_train_samples)."
        )
    return sizes


def summarize_learning_curve(results: list[dict], references: np.ndarray) -> pd.DataFrame:
    """Return `summarize_methods` of each number of training examples; the index is ``examples`` and ``method``."""
    rows = pd.DataFrame([row for row in results if row["error"] is None])
    tables = {size: summarize_methods(group.to_dict("records"), references) for size, group in rows.groupby("examples")}
    return pd.concat(tables, names=["examples", "method"])


def describe_lead(results: list[dict], references: np.ndarray) -> str:
    """Return, as a sentence, from how many examples on, if any, LoRA leads TF-IDF: the 95 % interval is above 0."""
    leads, rows = {}, pd.DataFrame([row for row in results if row["error"] is None])
    for size, of_size in rows.groupby("examples"):
        lora, classical = (of_size[of_size["method"] == name] for name in (LORA, CLASSICAL))
        if len(lora) and len(classical):  # else a run has failed
            interval = f1_interval(np.stack(lora["predictions"]), references, np.stack(classical["predictions"]))
            leads[size] = format_score(lora["f1"].mean() - classical["f1"].mean(), interval, "+"), interval[0] > 0
    behind = [size for size, (_, is_ahead) in leads.items() if not is_ahead]
    ahead = [size for size in leads if size > max(behind, default=0)]
    size = min(ahead, default=max(leads, default=0))
    where = f"from {size:,} training examples on" if ahead else f"at no size for good; with {size:,} training examples"
    return f"LoRA is ahead of {CLASSICAL} {where}: {leads.get(size, ['unknown'])[0]} macro F1 [95 %]."
