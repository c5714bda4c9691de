import numpy as np
import pytest
from transformers import EvalPrediction

from peft_helpers import compare, format_comparison, majority_class


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


def test_text_has_signs_thousands_and_costs():
    text = format_comparison(compare(output([0, 0, 1, 1]), output([0, 0, 1, 0])), 66176, 0.268744)
    assert text.loc["accuracy"].tolist() == ["1.000", "0.750", "-0.250"]
    assert text.loc["trainable parameters"].tolist() == ["0", "66,176", "+66,176"]
    assert text.loc["adapter, MB", "tuned"] == "0.27"


def test_majority_class_answers_one_label_on_the_same_rows():
    majority = majority_class(output([0, 1, 0, 1], true=(1, 1, 0, 1)))
    assert majority.predictions.argmax(-1).tolist() == [1, 1, 1, 1]
    assert majority.label_ids.tolist() == [1, 1, 0, 1]
