"""One way of measuring, for the untuned, the tuned and the reloaded model, without the network."""

import datasets
import evaluate
import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.metrics import accuracy_score, classification_report, log_loss, precision_recall_fscore_support
from transformers import EvalPrediction


class ClassificationMetrics(evaluate.Metric):
    """Accuracy and macro-averaged precision, recall and F1, from scikit-learn.

    ``evaluate.load`` would fetch a script from the Hub for each of them. The macro average is over the labels that
    occur in the references, so that it is over the same ones for every model; one never predicted has a precision of 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="accuracy, macro precision, macro recall and macro F1",
            citation="",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, labels=np.unique(references), average="macro", zero_division=0
        )
        accuracy = accuracy_score(references, predictions)
        return {"accuracy": accuracy, "precision": float(precision), "recall": float(recall), "f1": float(f1)}


def compute_metrics(output: EvalPrediction) -> dict[str, float]:
    """Return accuracy, precision, recall and f1 (macro) of ``output``, as `Trainer` and `predict` give it.

    ``output.predictions`` are logits, shape (rows, labels); ``output.label_ids`` the true labels, shape (rows,).
    """
    metric = ClassificationMetrics(keep_in_memory=True)
    return metric.compute(predictions=np.argmax(output.predictions, axis=-1), references=output.label_ids)


def compute_metrics_and_loss(output: EvalPrediction) -> dict[str, float]:
    """Return `compute_metrics` and ``loss``, the mean cross-entropy of a row in nats.

    For the Trainer, whose own ``eval_loss`` weighs each batch alike, however many rows it has.
    """
    loss = log_loss(output.label_ids, softmax(output.predictions, axis=-1), labels=range(output.predictions.shape[1]))
    return compute_metrics(output) | {"loss": loss}


def report_per_class(output: EvalPrediction, label_names: list[str]) -> pd.DataFrame:
    """Return precision, recall, F1 and number of rows (``support``) of each label that occurs, and their averages."""
    labels = np.unique(output.label_ids)
    report = classification_report(
        output.label_ids,
        np.argmax(output.predictions, axis=-1),
        labels=labels,
        target_names=[label_names[label] for label in labels],
        output_dict=True,
        zero_division=0,
    )
    return pd.DataFrame({name: row for name, row in report.items() if isinstance(row, dict)}).T.astype({"support": int})
