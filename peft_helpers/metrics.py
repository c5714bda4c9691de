"""One way of measuring, without the network; and what is asserted: which parameters moved, equal predictions."""

import hashlib

import datasets
import evaluate
import numpy as np
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support
from transformers import EvalPrediction
from transformers.trainer_utils import PredictionOutput

from peft_helpers.distributed import compute_dtype

METRIC_NAMES = {"accuracy": "accuracy"} | {name.lower(): f"{name} (macro)" for name in ("precision", "recall", "F1")}


class ClassificationMetrics(evaluate.Metric):
    """Accuracy and macro-averaged precision, recall and F1, from scikit-learn.

    ``evaluate.load`` would fetch a script from the Hub for each of them. The macro average is over the labels that
    occur in the references, so that it is over the same ones for every model; one never predicted has a precision of 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({name: datasets.Value("int64") for name in ("predictions", "references")})
        return evaluate.MetricInfo(description="accuracy; macro precision, recall, F1", citation="", features=features)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        precision, recall, f1, _ = precision_recall_fscore_support(
            references, predictions, labels=np.unique(references), average="macro", zero_division=0
        )
        accuracy = accuracy_score(references, predictions)
        return {"accuracy": accuracy, "precision": float(precision), "recall": float(recall), "f1": float(f1)}


def predicted_labels(output: EvalPrediction) -> np.ndarray:
    """Return the label number of the largest logit of each example, shape (examples,)."""
    return np.argmax(output.predictions, axis=-1)


def compute_metrics(output: EvalPrediction) -> dict[str, float]:
    """Return accuracy, precision, recall and f1 (macro) of ``output``, as `Trainer` and `predict` give it.

    ``output.predictions`` are logits, shape (examples, labels); ``label_ids`` the true labels, shape (examples,).
    """
    metric = ClassificationMetrics(keep_in_memory=True)
    return metric.compute(predictions=predicted_labels(output), references=output.label_ids)


def compute_metrics_and_loss(output: EvalPrediction) -> dict[str, float]:
    """Return `compute_metrics` and ``loss``, the mean cross-entropy of an example in nats."""
    # The Trainer's own eval_loss weighs each batch alike, however many examples it has.
    loss = log_loss(output.label_ids, softmax(output.predictions, axis=-1), labels=range(output.predictions.shape[1]))
    return compute_metrics(output) | {"loss": loss}


def fingerprint_parameters(model: torch.nn.Module) -> dict[str, str]:
    """Return the SHA-256 of the bytes of each parameter by name: 32 bytes to remember in place of a copy."""
    return {
        name: hashlib.sha256(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        for name, parameter in model.named_parameters()
    }


def changed_parameters(before: dict[str, str], model: torch.nn.Module) -> set[str]:
    """Return the names of parameters whose bytes differ from ``before``; it is a KeyError if the names differ."""
    after = fingerprint_parameters(model)
    return {name for name in before | after if before[name] != after[name]}


def rounding_bound(dtype: torch.dtype) -> float:
    """Return how far two computations of the same logits in ``dtype`` may lie apart, relative to the largest logit.

    Kernels, batches and processors add up in other orders: 2^-15 for float32, 2^-8 for float16, 2^-5 for bfloat16.
    """
    # A product of GPT-2 adds up to 3,072 terms, and its classifier multiplies 48 times in a row (4 in each of 12
    # layers). Rounding errors are independent of each other: n of them add up to about sqrt(n), sqrt(48) < 8 and
    # sqrt(3072) < 64. The sums themselves are kept in float32 where the factors are in 16 bits.
    roundings = 8 * 64 if dtype == torch.float32 else 8
    return roundings * torch.finfo(dtype).eps / 2  # the error of one rounding is half of eps


def assert_same_predictions(left: PredictionOutput, right: PredictionOutput, dtype: torch.dtype | None = None) -> float:
    """Return the largest difference of two outputs of `predict`, after asserting that they agree.

    Their logits, or where none were kept their losses, have to agree within `rounding_bound` of the ``dtype`` that
    they were computed in, by default `compute_dtype`, times the largest one. The same path on the same machine usually
    gives the same bits, which the returned 0.0 tells. NaN agrees with nothing. Else there is an AssertionError.
    """
    first, second = (
        np.asarray(output.metrics["test_loss"] if output.predictions is None else output.predictions)
        for output in (left, right)
    )
    tolerance = rounding_bound(dtype or compute_dtype()) * np.nanmax(np.abs(first), initial=0)
    np.testing.assert_allclose(first, second, rtol=0, atol=tolerance, equal_nan=False)
    return float(np.abs(first - second).max())
