"""The untuned and the tuned model side by side."""

import numpy as np
import pandas as pd
from transformers import EvalPrediction

from peft_helpers.metrics import compute_metrics, report_per_class
from peft_helpers.significance import accuracy_interval, check_same_rows, compare_paired, f1_interval

METRIC_NAMES = {
    "accuracy": "accuracy",
    "precision": "precision (macro)",
    "recall": "recall (macro)",
    "f1": "F1 (macro)",
}


def majority_class(output: EvalPrediction) -> EvalPrediction:
    """Return the output that always answers with the most frequent label of ``output.label_ids``, shape (rows,)."""
    counts = np.bincount(output.label_ids, minlength=output.predictions.shape[1])
    always = np.tile(np.eye(len(counts))[counts.argmax()], (len(output.label_ids), 1))
    return EvalPrediction(predictions=always, label_ids=output.label_ids)


def predicted_labels(output: EvalPrediction) -> np.ndarray:
    """Return the label number of the largest logit of each row, shape (rows,)."""
    return np.argmax(output.predictions, axis=-1)


def compare(untuned: EvalPrediction, tuned: EvalPrediction) -> pd.DataFrame:
    """Return each metric of two outputs of `predict`, and the difference.

    Raises:
        ValueError: the outputs are not of the same rows in the same order.
    """
    check_same_rows(untuned, tuned)
    table = pd.DataFrame({"untuned": compute_metrics(untuned), "tuned": compute_metrics(tuned)}).rename(METRIC_NAMES)
    table["difference"] = table["tuned"] - table["untuned"]
    return table


def format_comparison(
    untuned: EvalPrediction, tuned: EvalPrediction, trainable_parameters: int, megabytes: float
) -> pd.DataFrame:
    """Return the table of `compare` as text to read, with 95 % intervals and what the tuned model costs.

    Accuracy and F1 have intervals, and so has their difference, which is paired: both models on the same rows. The
    costs are trainable parameters and MB (10^6 bytes) of adapter. The last row is the p-value of McNemar's exact test.
    """
    numbers, paired = compare(untuned, tuned), compare_paired(untuned, tuned)
    text = numbers.map("{:.3f}".format)
    text["difference"] = numbers["difference"].map("{:+.3f}".format)
    for name in ("accuracy", "F1 (macro)"):
        for column, output in (("untuned", untuned), ("tuned", tuned)):
            text.loc[name, column] += _format_interval(*_INTERVALS[name](predicted_labels(output), output.label_ids))
        text.loc[name, "difference"] += _format_interval(paired[f"{name}, low"], paired[f"{name}, high"], sign="+")
    text.loc["trainable parameters"] = ["0", f"{trainable_parameters:,}", f"+{trainable_parameters:,}"]
    text.loc["adapter, MB"] = ["0", f"{megabytes:.2f}", f"+{megabytes:.2f}"]
    text.loc["McNemar's exact test"] = ["", "", _format_p_value(paired["p"])]
    return text


_INTERVALS = {"accuracy": accuracy_interval, "F1 (macro)": f1_interval}


def _format_interval(low: float, high: float, sign: str = "") -> str:
    return f" [{low:{sign}.3f}, {high:{sign}.3f}]"


def _format_p_value(p: float) -> str:
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def compare_per_class(untuned: EvalPrediction, tuned: EvalPrediction, label_names: list[str]) -> pd.DataFrame:
    """Return `report_per_class` of both models, side by side."""
    reports = {"untuned": report_per_class(untuned, label_names), "tuned": report_per_class(tuned, label_names)}
    return pd.concat(reports, axis=1)


def summarize_methods(results: pd.DataFrame, references: np.ndarray) -> pd.DataFrame:
    """Return a row for each method of `run_methods` and `run_reference_points`, from its runs with several seeds.

    Scores, seconds and MB are means over the seeds; ``f1_low`` and ``f1_high`` the 95 % interval of the mean F1 over
    the test rows; ``f1_min`` and ``f1_max`` the worst and best seed.

    Args:
        results: a row for each run.
        references: true labels of the test rows, shape (rows,).
    """
    rows = {}
    for method, runs in results[results["error"].isna()].groupby("method", sort=False):
        low, high = f1_interval(np.stack(runs["predictions"]), references)
        means = runs[["accuracy", "f1", "train_seconds", "peak_memory_mb", "adapter_mb"]].astype(float).mean()
        rows[method] = means.to_dict() | {
            "seeds": len(runs),
            "trainable_parameters": int(runs["trainable_parameters"].iloc[0]),
            "share": runs["trainable_parameters"].iloc[0] / runs["parameters"].iloc[0],
            "f1_low": low, "f1_high": high, "f1_min": runs["f1"].min(), "f1_max": runs["f1"].max(),
            "reload_verified": runs["reload_verified"].iloc[0],
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("trainable_parameters")


def format_methods(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the table of `summarize_methods` as text to read."""

    def score(row: pd.Series) -> str:
        return f"{row['f1']:.3f}{_format_interval(row['f1_low'], row['f1_high'])}"

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
        "reload verified": summary["reload_verified"].map({True: "yes", None: "not kept"}).fillna(""),
    })  # fmt: skip
