import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from transformers import EvalPrediction

from peft_helpers.analysis.report import (
    compare,
    compare_per_class,
    format_comparison,
    majority_class,
)


def output(predicted, true=(0, 0, 1, 1)) -> EvalPrediction:
    return EvalPrediction(predictions=np.eye(2)[list(predicted)], label_ids=np.array(true))


def test_difference_is_tuned_minus_untuned():
    table = compare(output([0, 0, 0, 0]), output([0, 0, 1, 0]))
    assert table.loc["accuracy"].tolist() == [0.5, 0.75, 0.25]
    assert table.index.tolist() == ["accuracy", "precision (macro)", "recall (macro)", "F1 (macro)"]


@pytest.mark.reliability("bad input")
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


def test_majority_class_answers_the_training_rows_most_frequent_label():
    label = Features({"label": ClassLabel(names=["no", "so-so", "yes"])})
    rows = {"train": [2, 0, 2], "test": [0, 1, 0, 0]}  # in the test another one is
    dataset = DatasetDict({name: Dataset.from_dict({"label": labels}, label) for name, labels in rows.items()})
    majority = majority_class(dataset)
    assert majority.predictions.tolist() == [[0, 0, 1]] * 4
    assert majority.label_ids.tolist() == rows["test"]
