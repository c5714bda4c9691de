"""How certain a result on these test examples is: 95 % intervals, and a paired test of two models."""

from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest, bootstrap


def accuracy_interval(predictions: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """Return Wilson's 95 % interval of the accuracy, also right near 0 and 1; both are label numbers."""
    hits = int(np.sum(predictions == references))
    return tuple(binomtest(hits, len(references)).proportion_ci(0.95, method="wilson"))


def f1_interval(
    predictions: np.ndarray, references: np.ndarray, minus: np.ndarray | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of the macro F1, by a bootstrap over the examples; too narrow when errors are rare.

    ``predictions`` are label numbers, shape (examples,), or (models, examples) for the mean F1 of several models.
    With ``minus``, of the same form, the interval is that of the difference of the two means.
    """
    groups = {sign: np.atleast_2d(group) for sign, group in ((1, predictions), (-1, minus)) if group is not None}
    weights = np.concatenate([np.full(len(group), sign / len(group)) for sign, group in groups.items()])

    def mean_f1(references: np.ndarray, *models: np.ndarray, axis: int) -> np.ndarray:
        return weights @ np.stack([macro_f1(predictions, references) for predictions in models])

    return tuple(map(float, _bootstrap(mean_f1, references, *np.concatenate([*groups.values()]))))


def macro_f1(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the F1 of `compute_metrics` for thousands of resamples in less than a second, shape (resamples,).

    Both are label numbers, shape (resamples, examples). The mean is over the labels that occur in the references.
    """
    number = 1 + max(predictions.max(), references.max())
    first = number * np.arange(len(references))[:, None]  # each resample counts in bins of its own

    def count(labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount((first + labels).ravel(), weights, minlength=first.size * number).reshape(-1, number)

    hits = count(references, (predictions == references).ravel())
    support = count(references)
    return (2 * hits / np.maximum(count(predictions) + support, 1)).sum(axis=-1) / (support > 0).sum(axis=-1)


def mcnemar_p_value(left_correct: np.ndarray, right_correct: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test, two-sided, from which examples each of two models got right."""
    # Equally good models would each win half of the examples on which they differ.
    left_only, right_only = int(np.sum(left_correct & ~right_correct)), int(np.sum(right_correct & ~left_correct))
    return float(binomtest(left_only, left_only + right_only).pvalue) if left_only + right_only else 1.0


def compare_paired(left: np.ndarray, right: np.ndarray, references: np.ndarray) -> dict[str, float | list[float]]:
    """Return how much better ``right`` is than ``left``: accuracy, macro F1, their 95 % intervals, and McNemar's p.

    All are label numbers, shape (examples,). Each resample of the bootstrap takes the same examples of both models.
    """
    left_correct, right_correct = left == references, right == references
    gains = right_correct.astype(int) - left_correct
    return {
        "accuracy": float(gains.mean()),
        "f1": (macro_f1(right[None], references[None]) - macro_f1(left[None], references[None])).item(),
        "accuracy_interval": [float(bound) for bound in _bootstrap(np.mean, gains)],
        "f1_interval": [*f1_interval(right, references, minus=left)],
        "mcnemar_p_value": mcnemar_p_value(left_correct, right_correct),
    }


def check_same_examples(left: np.ndarray, right: np.ndarray) -> None:
    """Raise a ValueError if the true labels of two outputs or splits, shape (examples,), are not the same."""
    if not np.array_equal(left, right):
        raise ValueError("These are not the same examples in the same order; call predict on the split that you pass.")


def _bootstrap(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The percentiles also exist where every prediction is right; SciPy's default, BCa, does not. Nor does SciPy take a
    # single example: two copies of it resample to the same.
    samples = [np.resize(sample, max(2, len(sample))) for sample in samples]
    options = {"paired": True, "vectorized": True, "confidence_level": 0.95, "method": "percentile", "rng": 0}
    batch = max(1, 100_000 // len(samples[0]))
    return bootstrap(samples, statistic, n_resamples=2000, batch=batch, **options).confidence_interval
