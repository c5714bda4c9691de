"""How certain a result on these test examples is: 95 % intervals, and a paired test of two models."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import binomtest, bootstrap

CONFIDENCE = 0.95
RESAMPLES = 2000  # the 50 most extreme on each side then bound a 95 % interval
BATCH = 100_000  # examples that are drawn at a time


def accuracy_interval(predictions: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy (Wilson 1927, without continuity correction).

    ``predictions`` and ``references`` are label numbers, shape (examples,). Unlike the usual normal approximation, the
    interval is also right near 0 and 1 and with few examples (Newcombe 1998, method 3).
    """
    hits = np.equal(predictions, references)
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def f1_interval(predictions: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the macro F1, by a bootstrap over the examples; too narrow when errors are rare.

    ``predictions`` are label numbers, shape (examples,), or (models, examples) for the mean of several models, such as
    one method with several seeds; ``references`` has the shape (examples,).
    """

    def mean_f1(references: np.ndarray, *models: np.ndarray, axis: int) -> np.ndarray:
        return np.mean([macro_f1(predictions, references) for predictions in models], axis=0)

    low, high = _bootstrap(mean_f1, references, *np.atleast_2d(predictions))
    return float(low), float(high)


def macro_f1(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the macro F1 of each resample, shape (resamples,), over the labels that occur in its references.

    Both are label numbers, shape (resamples, examples). This is the F1 of `compute_metrics`, for thousands of
    resamples in less than a second.
    """
    number = 1 + max(predictions.max(), references.max())
    first = number * np.arange(len(references))[:, None]  # each resample counts in bins of its own

    def count(labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount((first + labels).ravel(), weights, minlength=first.size * number).reshape(-1, number)

    hits = count(references, (predictions == references).ravel())
    support = count(references)
    return (2 * hits / np.maximum(count(predictions) + support, 1)).sum(axis=-1) / (support > 0).sum(axis=-1)


def mcnemar_p_value(left_correct: np.ndarray, right_correct: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test, two-sided, from which examples each of two models got right.

    Both are boolean, shape (examples,). Only examples on which the models differ tell them apart; equally good models
    would win half of those each, which is a binomial test (McNemar 1947; exact form in Agresti 2013, 11.1).
    """
    left_only = int(np.sum(left_correct & ~right_correct))
    discordant = int(np.sum(left_correct != right_correct))
    return float(binomtest(left_only, discordant).pvalue) if discordant else 1.0


def compare_paired(left: np.ndarray, right: np.ndarray, references: np.ndarray) -> pd.Series:
    """Return how much better ``right`` is than ``left`` in accuracy and macro F1, with 95 % intervals, and McNemar's p.

    ``left`` and ``right`` are the label numbers that two models predict for the same examples, ``references`` the true
    ones, all of shape (examples,). Each resample of the bootstrap takes the same examples of both. The names are
    ``accuracy``, ``accuracy, low``, ``accuracy, high``, the same of ``F1 (macro)``, and ``p``.
    """

    def difference(references: np.ndarray, left: np.ndarray, right: np.ndarray, axis: int = -1) -> np.ndarray:
        accuracy = (right == references).mean(axis) - (left == references).mean(axis)
        return np.stack([accuracy, macro_f1(right, references) - macro_f1(left, references)])

    low, high = _bootstrap(difference, references, left, right)
    observed = difference(references[None], left[None], right[None])[:, 0]
    result = {}
    for number, name in enumerate(("accuracy", "F1 (macro)")):
        result |= {name: observed[number], f"{name}, low": low[number], f"{name}, high": high[number]}
    result["p"] = mcnemar_p_value(left == references, right == references)
    return pd.Series(result, name="paired comparison")


def check_same_examples(left: np.ndarray, right: np.ndarray) -> None:
    """Check, by their true labels, shape (examples,), that two outputs or splits are of the same examples.

    Raises:
        ValueError: they are not the same, or not in the same order.
    """
    if not np.array_equal(left, right):
        raise ValueError("These are not the same examples in the same order; call predict on the split that you pass.")


def _bootstrap(statistic: Callable[..., np.ndarray], *samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The percentiles also exist where every prediction is right; SciPy's default, BCa, does not. Nor does SciPy take a
    # single example: two copies of it resample to the same.
    samples = [np.resize(sample, max(2, len(sample))) for sample in samples]
    return bootstrap(
        samples, statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
        batch=max(1, BATCH // len(samples[0])), method="percentile", rng=0,
    ).confidence_interval  # fmt: skip
