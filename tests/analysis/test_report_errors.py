import numpy as np
import pytest
from datasets import Dataset
from transformers import EvalPrediction

from peft_helpers.analysis.report import most_confident_errors

NAMES = ["bad", "good"]


@pytest.fixture
def test_examples():
    return Dataset.from_dict({"text": ["a", "b", "c" * 400, "d"], "label": [0, 1, 1, 0]})


def output(logits) -> EvalPrediction:
    return EvalPrediction(predictions=np.array(logits, dtype=float), label_ids=np.array([0, 1, 1, 0]))


def test_only_errors_come_and_the_most_confident_first(test_examples):
    table = most_confident_errors(output([[0, 1], [0, 9], [3, 0], [5, 0]]), test_examples, NAMES)
    assert table.index.tolist() == [2, 0]
    assert table["true label"].tolist() == ["good", "bad"]
    assert table["predicted"].tolist() == ["bad", "good"]
    assert table["probability"].tolist() == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1))])
    assert len(table["text"].iloc[0]) == 301
    assert len(most_confident_errors(output([[0, 1], [0, 9], [3, 0], [5, 0]]), test_examples, NAMES, top=1)) == 1


def test_a_perfect_model_has_no_errors(test_examples):
    assert most_confident_errors(output([[1, 0], [0, 1], [0, 1], [1, 0]]), test_examples, NAMES).empty


@pytest.mark.reliability("bad input")
def test_examples_of_another_split_are_refused(test_examples):
    with pytest.raises(ValueError, match="not the same examples in the same order"):
        most_confident_errors(output([[1, 0]] * 4), test_examples.select([1, 0, 2, 3]), NAMES)
