import numpy as np
import pandas as pd
import pytest
from transformers import EvalPrediction

from peft_helpers.comparison import (
    compare,
    compare_per_class,
    format_comparison,
    format_methods,
    majority_class,
    summarize_methods,
)


def output(predicted, true=(0, 0, 1, 1)) -> EvalPrediction:
    return EvalPrediction(predictions=np.eye(2)[list(predicted)], label_ids=np.array(true))


def test_difference_is_tuned_minus_untuned():
    table = compare(output([0, 0, 0, 0]), output([0, 0, 1, 0]))
    assert table.loc["accuracy"].tolist() == [0.5, 0.75, 0.25]
    assert table.index.tolist() == ["accuracy", "precision (macro)", "recall (macro)", "F1 (macro)"]


def test_other_rows_cannot_be_compared():
    with pytest.raises(ValueError, match="not tested on the same rows in the same order"):
        compare(output([0, 0, 0, 0]), output([0, 0, 0, 0], true=(0, 1, 0, 1)))


def test_text_has_intervals_signs_thousands_costs_and_the_test():
    text = format_comparison(output([0, 0, 1, 1]), output([0, 0, 1, 0]), 66176, 0.268744)
    # Wilson's interval of 4 of 4 is [4 / (4 + 1.96^2), 1].
    assert text.loc["accuracy"].tolist() == ["1.000 [0.510, 1.000]", "0.750 [0.301, 0.954]", "-0.250 [-0.750, +0.000]"]
    assert text.loc["recall (macro)"].tolist() == ["1.000", "0.750", "-0.250"]
    assert text.loc["F1 (macro)", "untuned"] == "1.000 [1.000, 1.000]"
    assert text.loc["trainable parameters"].tolist() == ["0", "66,176", "+66,176"]
    assert text.loc["adapter, MB", "tuned"] == "0.27"
    assert text.loc["McNemar's exact test", "difference"] == "p = 1.000"


def test_a_small_p_value_is_not_written_as_zero():
    many = (0,) * 40
    text = format_comparison(output([1] * 40, many), output([0] * 40, many), 1, 1)
    assert text.loc["McNemar's exact test", "difference"] == "p < 0.001"


def test_classes_are_compared_side_by_side():
    table = compare_per_class(output([0, 0, 0, 0]), output([0, 0, 1, 1]), ["no", "yes"])
    assert table.loc["yes", ("untuned", "recall")] == 0
    assert table.loc["yes", ("tuned", "recall")] == 1


@pytest.fixture
def results():
    run = {"parameters": 1000, "error": None, "train_seconds": 2.0, "peak_memory_mb": 10.0, "adapter_mb": 0.5}
    right, half = [0, 0, 1, 1], [0, 0, 0, 0]
    return pd.DataFrame([
        run | {"method": "full", "trainable_parameters": 1000, "accuracy": 1.0, "f1": 1.0, "predictions": right,
               "reload_verified": None},
        run | {"method": "ia3", "trainable_parameters": 20, "accuracy": 1.0, "f1": 1.0, "predictions": right,
               "reload_verified": True},
        run | {"method": "ia3", "trainable_parameters": 20, "accuracy": 0.5, "f1": 1 / 3, "predictions": half,
               "reload_verified": True},
        {"method": "dora", "error": "RuntimeError: no memory"},
    ])  # fmt: skip


def test_methods_are_summarised_over_seeds(results):
    summary = summarize_methods(results, np.array([0, 0, 1, 1]))
    assert summary.index.tolist() == ["ia3", "full"]
    ia3 = summary.loc["ia3"]
    assert (ia3["seeds"], ia3["accuracy"], ia3["share"]) == (2, 0.75, 0.02)
    assert (ia3["f1"], ia3["f1_min"], ia3["f1_max"]) == pytest.approx((2 / 3, 1 / 3, 1))
    assert ia3["f1_low"] < ia3["f1"] < ia3["f1_high"]


def test_methods_are_readable(results):
    text = format_methods(summarize_methods(results, np.array([0, 0, 1, 1])))
    assert text.loc["ia3", "F1, worst to best seed"] == "0.333 to 1.000, 2 seeds"
    assert text.loc["full", "F1, worst to best seed"] == ""
    assert text["reload verified"].tolist() == ["yes", "not kept"]
    assert text["share"].tolist() == ["2.00%", "100.00%"]


def test_majority_class_answers_one_label_on_the_same_rows():
    majority = majority_class(output([0, 1, 0, 1], true=(1, 1, 0, 1)))
    assert majority.predictions.argmax(-1).tolist() == [1, 1, 1, 1]
    assert majority.label_ids.tolist() == [1, 1, 0, 1]
