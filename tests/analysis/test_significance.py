import numpy as np
import pytest
from conftest import python_peak
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from peft_helpers.analysis.significance import (
    accuracy_interval,
    check_same_examples,
    compare_paired,
    f1_interval,
    macro_f1,
    mcnemar_p_value,
)


def outcomes(hits: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(examples) < hits, np.ones(examples, dtype=bool)


@pytest.mark.parametrize(
    ("hits", "examples", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_the_accuracy_is_the_textbooks(hits, examples, low, high):
    assert accuracy_interval(*outcomes(hits, examples)) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("left_only", "right_only", "p"),
    # Fagerland, Lydersen, Laake 2013 (airway responsiveness: 0.0703); the documentation of statsmodels (4.434e-06);
    # 5 against 0 by hand: 2 / 2^5; nothing to tell them apart: 1.
    [(1, 7, 0.0703125), (121, 59, 4.434444926375551e-06), (0, 5, 0.0625), (0, 0, 1.0)],
)
def test_mcnemars_p_is_the_textbooks(left_only, right_only, p):
    left = np.array([True] * left_only + [False] * right_only + [True, False] * 10)
    right = np.array([False] * left_only + [True] * right_only + [True, False] * 10)
    assert mcnemar_p_value(left, right) == pytest.approx(p, rel=1e-6)
    assert mcnemar_p_value(right, left) == pytest.approx(p, rel=1e-6)


def test_macro_f1_is_scikit_learns_on_every_resample():
    references, predictions = np.random.default_rng(0).integers(0, 4, (2, 50, 8))  # some lack a label
    expected = [
        f1_score(true, predicted, average="macro", labels=np.unique(true), zero_division=0)
        for true, predicted in zip(references, predictions, strict=True)
    ]
    np.testing.assert_allclose(macro_f1(predictions, references), expected, rtol=1e-12)


@pytest.mark.slow
def test_the_bootstrap_resamples_examples_in_pairs():
    """The same with scikit-learn's F1 and other random numbers: the percentiles agree within their noise."""
    generator = np.random.default_rng(1)
    references = generator.integers(0, 3, 400)
    left, right = (np.where(generator.random(400) < share, references, 0) for share in (0.6, 0.8))

    def difference(references, left, right):
        return f1_score(references, right, average="macro") - f1_score(references, left, average="macro")

    expected = bootstrap(
        (references, left, right), difference, paired=True, vectorized=False, n_resamples=250, method="percentile",
        rng=generator,
    ).confidence_interval  # fmt: skip
    found = compare_paired(left, right, references)
    assert found["f1_interval"][0] == pytest.approx(expected.low, abs=0.01)
    assert found["f1_interval"][1] == pytest.approx(expected.high, abs=0.01)


def test_many_examples_take_little_memory():
    references, left, right = np.random.default_rng(0).integers(0, 2, (3, 10_000))
    peak = python_peak(lambda: compare_paired(left, right, references))
    assert peak < 30e6  # all 2,000 resamples at once would be 160 MB for each of the three


def test_the_interval_of_f1_holds_the_score_and_narrows_with_more_examples():
    generator = np.random.default_rng(0)
    references = generator.integers(0, 3, 900)
    predictions = np.where(generator.random(900) < 0.8, references, 0)
    score = f1_score(references, predictions, average="macro")
    low, high = f1_interval(predictions, references)
    assert low < score < high
    few_low, few_high = f1_interval(predictions[:90], references[:90])
    # the width goes with the square root of the number of examples
    assert (few_high - few_low) / (high - low) == pytest.approx(np.sqrt(10), rel=0.35)


def test_the_interval_of_several_models_is_of_their_mean():
    references = np.array([0, 1] * 20)
    right, wrong = references, 1 - references
    assert f1_interval(right, references) == (1.0, 1.0)
    assert f1_interval(np.stack([right, wrong]), references) == (0.5, 0.5)


def test_a_pair_of_models_is_compared_example_by_example():
    references = np.array([0, 1] * 50)
    worse = references.copy()
    worse[:20] = 1 - worse[:20]
    result = compare_paired(worse, references, references)
    assert result["accuracy"] == pytest.approx(0.2)
    assert result["accuracy_interval"][0] == pytest.approx(0.12, abs=0.03)  # 0.2 ± 1.96 · 0.04
    assert result["accuracy_interval"][1] == pytest.approx(0.28, abs=0.03)
    assert result["f1_interval"][0] < result["f1"] < result["f1_interval"][1]
    assert result["mcnemar_p_value"] == pytest.approx(2 / 2**20)


def test_the_pairing_narrows_the_interval():
    """Two models that err on the same examples differ by nothing, however uncertain each score is."""
    references, predicted = np.array([0, 1] * 10), np.array([0, 0] * 10)
    result = compare_paired(predicted, predicted, references)
    assert result["accuracy_interval"] == result["f1_interval"] == [0, 0]
    assert result["mcnemar_p_value"] == 1


@pytest.mark.reliability("bad input")
def test_a_single_test_example_is_compared_too():
    one, other = np.array([1]), np.array([0])
    assert f1_interval(one, one) == (1, 1)
    assert compare_paired(other, one, one)["f1_interval"] == [1, 1]


@pytest.mark.reliability("bad input")
def test_outputs_of_other_examples_are_refused():
    with pytest.raises(ValueError, match="not the same examples in the same order; call predict on"):
        check_same_examples(np.array([0, 1]), np.array([1, 0]))


def test_the_difference_of_two_means_is_paired_by_example():
    generator = np.random.default_rng(1)
    references = generator.integers(0, 3, 400)
    left, right, other = (np.where(generator.random(400) < share, references, 0) for share in (0.6, 0.8, 0.7))
    paired = compare_paired(left, right, references)["f1_interval"]
    assert f1_interval(right, references, minus=left) == pytest.approx(paired)
    assert f1_interval([right, other], references, minus=[other, right]) == pytest.approx((0, 0), abs=1e-12)
    low, high = f1_interval([right, other], references, minus=left)
    assert paired[0] > low > f1_interval(other, references, minus=left)[0]  # half of the lead
    assert low < high
