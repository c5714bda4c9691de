"""The untuned and the tuned model side by side."""

import numpy as np
import pandas as pd
from datasets import DatasetDict
from transformers import EvalPrediction

from peft_helpers.analysis.significance import accuracy_interval, check_same_rows, compare_paired, f1_interval
from peft_helpers.metrics import compute_metrics, report_per_class

METRIC_NAMES = {
    "accuracy": "accuracy",
    "precision": "precision (macro)",
    "recall": "recall (macro)",
    "f1": "F1 (macro)",
}


def majority_class(dataset: DatasetDict) -> EvalPrediction:
    """Return the output, on the test rows, that always answers with the most frequent label of the training rows."""
    counts = np.bincount(dataset["train"]["label"][:], minlength=dataset["train"].features["label"].num_classes)
    references = np.asarray(dataset["test"]["label"][:])
    always = np.tile(np.eye(len(counts))[counts.argmax()], (len(references), 1))
    return EvalPrediction(predictions=always, label_ids=references)


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
    numbers = compare(untuned, tuned)
    paired = compare_paired(predicted_labels(untuned), predicted_labels(tuned), tuned.label_ids)
    text = numbers.map("{:.3f}".format)
    text["difference"] = numbers["difference"].map("{:+.3f}".format)
    for name in ("accuracy", "F1 (macro)"):
        for column, output in (("untuned", untuned), ("tuned", tuned)):
            text.loc[name, column] += format_interval(*_INTERVALS[name](predicted_labels(output), output.label_ids))
        text.loc[name, "difference"] += format_interval(paired[f"{name}, low"], paired[f"{name}, high"], sign="+")
    text.loc["trainable parameters"] = ["0", f"{trainable_parameters:,}", f"+{trainable_parameters:,}"]
    text.loc["adapter, MB"] = ["0", f"{megabytes:.2f}", f"+{megabytes:.2f}"]
    text.loc["McNemar's exact test"] = ["", "", format_p_value(paired["p"])]
    return text


_INTERVALS = {"accuracy": accuracy_interval, "F1 (macro)": f1_interval}


def format_interval(low: float, high: float, sign: str = "") -> str:
    """Return an interval as text that follows its number; ``sign="+"`` writes the sign of positive bounds too."""
    return f" [{low:{sign}.3f}, {high:{sign}.3f}]"


def format_p_value(p: float) -> str:
    """Return a p-value as text; one below 0.001 is not written as 0."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def compare_per_class(untuned: EvalPrediction, tuned: EvalPrediction, label_names: list[str]) -> pd.DataFrame:
    """Return `report_per_class` of both models, side by side."""
    reports = {"untuned": report_per_class(untuned, label_names), "tuned": report_per_class(tuned, label_names)}
    return pd.concat(reports, axis=1)
