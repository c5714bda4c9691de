"""The results of several methods in one table, and what they say."""

import numpy as np
import pandas as pd

from peft_helpers.analysis.report import format_interval, format_p_value
from peft_helpers.analysis.significance import compare_paired, f1_interval
from peft_helpers.comparison.baselines import CLASSICAL
from peft_helpers.comparison.methods import METHODS


def summarize_methods(results: list[dict], references: np.ndarray) -> pd.DataFrame:
    """Return a row for each method of `run_methods` and `run_reference_points`, from its runs with several seeds.

    Scores, seconds and MB are means over the seeds; ``f1_low`` and ``f1_high`` the 95 % interval of the mean F1 over
    the test rows; ``f1_min`` and ``f1_max`` the worst and best seed. What has no such number has NaN.
    ``reload_verified`` is text.

    Args:
        results: what they return, one after the other.
        references: true labels of the test rows, shape (rows,).
    """
    rows = {}
    for method, runs in _successful(results).groupby("method", sort=False):
        low, high = f1_interval(np.stack(runs["predictions"]), references)
        means = runs[["accuracy", "f1", "train_seconds", "peak_memory_mb", "adapter_mb"]].astype(float).mean()
        rows[method] = means.to_dict() | {
            "seeds": len(runs),
            "trainable_parameters": int(runs["trainable_parameters"].iloc[0]),
            "share": float(runs["trainable_parameters"].iloc[0] / runs["parameters"].iloc[0]),
            "f1_low": low, "f1_high": high, "f1_min": runs["f1"].min(), "f1_max": runs["f1"].max(),
            "reload_verified": _RELOAD[runs["reload_verified"].iloc[0]],
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("trainable_parameters")


# What `run_methods` gives; `run_reference_points` gives a part of it.
_COLUMNS = ("method", "seed", "parameters", "trainable_parameters", "accuracy", "f1", "predictions", "train_seconds",
            "peak_memory_mb", "adapter_mb", "reload_verified")  # fmt: skip
_RELOAD = {True: "yes", None: "not kept", "": ""}


def _successful(results: list[dict]) -> pd.DataFrame:
    nothing = dict.fromkeys(_COLUMNS, np.nan) | {"reload_verified": ""}
    rows = [nothing | {name: row[name] for name in _COLUMNS if name in row} for row in results if row["error"] is None]
    return pd.DataFrame(rows, dtype=object)  # a None stays one


def compare_methods_to(baseline: str, results: list[dict], references: np.ndarray) -> pd.DataFrame:
    """Return by how much each method beats ``baseline`` in macro F1, as text, best first, from each one's first seed.

    The p-values are of one comparison each, not corrected for their number.

    Raises:
        ValueError: the baseline is not among the results.
    """
    first = _successful(results).drop_duplicates("method").set_index("method")["predictions"].map(np.array)
    if baseline not in first.index:
        raise ValueError(f"{baseline!r} is not among the results: {', '.join(first.index)}.")
    rows = {name: compare_paired(first[baseline], first[name], references) for name in first.index.drop(baseline)}
    columns = ["F1 (macro)", "F1 (macro), low", "F1 (macro), high", "p"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).sort_values("F1 (macro)", ascending=False)
    score = [
        f"{row['F1 (macro)']:+.3f}{format_interval(row['F1 (macro), low'], row['F1 (macro), high'], sign='+')}"
        for _, row in table.iterrows()
    ]
    names = {"F1 (macro)": f"F1 (macro) beyond {baseline} [95 %]", "p": "McNemar's exact test"}
    p = table["p"].map(format_p_value)
    return pd.DataFrame({names["F1 (macro)"]: score, names["p"]: p}, index=table.index)


def format_methods(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the table of `summarize_methods` as text to read."""

    def score(row: pd.Series) -> str:
        return f"{row['f1']:.3f}{format_interval(row['f1_low'], row['f1_high'])}"

    def several_seeds(row: pd.Series) -> str:
        return f"{row['f1_min']:.3f} to {row['f1_max']:.3f}, {row['seeds']} seeds" if row["seeds"] > 1 else ""

    return pd.DataFrame({
        "trainable": summary["trainable_parameters"].map("{:,}".format),
        "share": summary["share"].map("{:.2%}".format).replace("nan%", ""),
        "accuracy": summary["accuracy"].map("{:.3f}".format),
        "F1 (macro) [95 %]": [score(row) for _, row in summary.iterrows()],
        "F1, worst to best seed": [several_seeds(row) for _, row in summary.iterrows()],
        "training, s": summary["train_seconds"].map("{:.0f}".format),
        "peak memory, MB": summary["peak_memory_mb"].map("{:.0f}".format).replace("nan", ""),
        "adapter, MB": summary["adapter_mb"].map("{:.2f}".format).replace("nan", ""),
        "reload verified": summary["reload_verified"],
    })  # fmt: skip


def describe_methods(results: list[dict], references: np.ndarray) -> str:
    """Return what the comparison says: the best PEFT method against full fine-tuning and against the classical model.

    The best is best on the test rows, and so by a little too good; its difference from the others tells by how much.
    """
    summary = summarize_methods(results, references)
    of_peft = [name for name in summary.index if name in METHODS and METHODS[name].make_config is not None]
    if not of_peft:
        return "No PEFT method was compared."
    best = summary.loc[of_peft, "f1"].idxmax()
    lines = [f"The best PEFT method here is {best}: macro F1 {summary.loc[best, 'f1']:.3f}."]
    for other, name in (("full", "Full fine-tuning"), (CLASSICAL, CLASSICAL)):
        if other in summary.index:
            gap = summary.loc[best, "f1"] - summary.loc[other, "f1"]
            lines.append(f"{name} reaches {summary.loc[other, 'f1']:.3f}: {best} is {_beside(gap)}.")
    return "\n".join(lines)


def _beside(gap: float) -> str:
    return (
        "level with it"
        if f"{gap:.3f}" in ("0.000", "-0.000")
        else f"{abs(gap):.3f} {'above' if gap > 0 else 'below'} it"
    )
