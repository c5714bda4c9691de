"""How sure a result on these test rows is: 95 % intervals, and a paired test of two models."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from transformers import EvalPrediction

CONFIDENCE = 0.95
RESAMPLES = 2000  # the 50 most extreme on each side then bound a 95 % interval


def accuracy_interval(predictions: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy (Wilson 1927, without continuity correction).

    ``predictions`` and ``references`` are label numbers, shape (rows,). Unlike the usual normal approximation, the
    interval keeps its meaning at 0 and 1 and with few rows (Newcombe 1998, method 3).
    """
    hits = np.equal(predictions, references)
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def f1_interval(predictions: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the macro F1, by the percentiles of a bootstrap over the rows.

    ``predictions`` are label numbers, shape (rows,), or (models, rows) for the mean of several models, such as one
    method with several seeds, each tested on the same resampled rows; ``references`` has the shape (rows,).
    """
    labels = np.unique(references)

    def mean_f1(weights: np.ndarray, references: np.ndarray, *models: np.ndarray) -> np.ndarray:
        return np.mean([macro_f1(weights, predictions, references, labels) for predictions in models], axis=0)

    return _bootstrap((references, *np.atleast_2d(predictions)), mean_f1)


def macro_f1(weights: np.ndarray, predictions: np.ndarray, references: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the macro F1 of each resample, shape (resamples,), over those of ``labels`` that occur in it.

    ``weights`` says how often each row occurs in each, shape (resamples, rows); the rows are label numbers, shape
    (rows,). It is what `compute_metrics` gives for each of thousands of resamples, of which scikit-learn's ``f1_score``
    takes one a call.
    """
    total, present = np.zeros(len(weights)), np.zeros(len(weights))
    for label in labels:
        true, predicted = references == label, predictions == label
        support = weights @ true
        total += (support > 0) * 2 * (weights @ (true & predicted)) / np.maximum(support + weights @ predicted, 1)
        present += support > 0
    return total / present


def mcnemar_p_value(left_correct: np.ndarray, right_correct: np.ndarray) -> float:
    """Return the p-value of McNemar's exact test, two-sided, from which rows each of two models got right.

    Both are boolean, shape (rows,). Rows on which the models agree say nothing about a difference; among the others,
    equal models would win as often as lose, which is a binomial test (McNemar 1947; exact form in Agresti 2013, 11.1).
    """
    left_only = int(np.sum(left_correct & ~right_correct))
    right_only = int(np.sum(~left_correct & right_correct))
    discordant = left_only + right_only
    return 1.0 if discordant == 0 else float(binomtest(left_only, discordant).pvalue)


def compare_paired(left: np.ndarray, right: np.ndarray, references: np.ndarray) -> pd.Series:
    """Return by how much ``right`` beats ``left`` in accuracy and macro F1, with 95 % intervals, and McNemar's p.

    ``left`` and ``right`` are the label numbers that two models predict for the same rows, ``references`` the true
    ones, all of shape (rows,). Every resample of the bootstrap takes the same rows of both. The names are ``accuracy``,
    ``accuracy, low``, ``accuracy, high``, the same of ``F1 (macro)``, and ``p``.
    """
    labels = np.unique(references)

    def accuracy_difference(weights, references, left, right):
        return weights @ ((right == references) - (left == references).astype(float)) / weights.sum(-1)

    def f1_difference(weights, references, left, right):
        return macro_f1(weights, right, references, labels) - macro_f1(weights, left, references, labels)

    rows, once = {}, np.ones((1, len(references)))
    for name, statistic in (("accuracy", accuracy_difference), ("F1 (macro)", f1_difference)):
        low, high = _bootstrap((references, left, right), statistic)
        rows[name] = float(statistic(once, references, left, right)[0])
        rows[f"{name}, low"], rows[f"{name}, high"] = low, high
    rows["p"] = mcnemar_p_value(left == references, right == references)
    return pd.Series(rows, name="paired comparison")


def check_same_rows(left: EvalPrediction, right: EvalPrediction) -> None:
    """Check that two outputs of `predict` can be compared row by row.

    Raises:
        ValueError: the outputs are not of the same rows in the same order.
    """
    if not np.array_equal(left.label_ids, right.label_ids):
        raise ValueError(
            "The two models were not tested on the same rows in the same order; call predict on one split."
        )


def _bootstrap(data: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray]) -> tuple[float, float]:
    """Return the percentiles of ``statistic(weights, *data)`` over resampled rows.

    Rows that are alike in all of ``data`` are one kind, and a resample is a multinomial draw of how often each kind
    occurs: the same distribution as drawing rows, in time and memory of the number of kinds. The bias-corrected
    interval is undefined where every row is right.
    """
    kinds, counts = np.unique(np.stack(data), axis=1, return_counts=True)
    generator = np.random.default_rng(0)
    parts = []
    for _ in range(RESAMPLES // 100):
        weights = generator.multinomial(counts.sum(), counts / counts.sum(), size=100)
        parts.append(statistic(weights.astype(float), *kinds))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(parts), [tail, 100 - tail])
    return float(low), float(high)
