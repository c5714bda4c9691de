"""The untuned and the tuned model side by side."""

import numpy as np
import pandas as pd
from transformers import EvalPrediction

from peft_helpers.metrics import compute_metrics
from peft_helpers.significance import check_same_rows

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


def compare(untuned: EvalPrediction, tuned: EvalPrediction) -> pd.DataFrame:
    """Return each metric of two outputs of `predict`, and the difference.

    Raises:
        ValueError: the outputs are not of the same rows in the same order.
    """
    check_same_rows(untuned, tuned)
    table = pd.DataFrame({"untuned": compute_metrics(untuned), "tuned": compute_metrics(tuned)}).rename(METRIC_NAMES)
    table["difference"] = table["tuned"] - table["untuned"]
    return table


def format_comparison(table: pd.DataFrame, trainable_parameters: int, megabytes: float) -> pd.DataFrame:
    """Return ``table`` of `compare` as text to read, with what the tuned model costs: parameters and MB of adapter."""
    text = table.map("{:.3f}".format)
    text["difference"] = table["difference"].map("{:+.3f}".format)
    text.loc["trainable parameters"] = ["0", f"{trainable_parameters:,}", f"+{trainable_parameters:,}"]
    text.loc["adapter, MB"] = ["0", f"{megabytes:.2f}", f"+{megabytes:.2f}"]
    return text
