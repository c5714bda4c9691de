import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from peft_helpers.analysis.plots import CLASSICAL, MAJORITY
from peft_helpers.comparison.baselines import classify_with_tfidf, run_baselines
from peft_helpers.data import prepare_splits


@pytest.fixture
def dataset(raw, args):
    return prepare_splits(raw, args)


def test_the_classical_model_learns_words_and_answers_in_order(dataset):
    output, weights = classify_with_tfidf(dataset, seed=0)
    assert output.label_ids.tolist() == dataset["test"]["label"][:]
    assert (np.argmax(output.predictions, axis=-1) == output.label_ids).mean() > 0.8
    np.testing.assert_allclose(output.predictions.sum(axis=1), 1)
    assert weights > 2


def test_test_examples_choose_nothing(dataset):
    """With other labels on the test examples, the predictions are the same."""
    flipped = dataset["test"].map(lambda row: {"label": 1 - row["label"]})
    output, _ = classify_with_tfidf(dataset, seed=0)
    other, _ = classify_with_tfidf(DatasetDict(dataset | {"test": flipped}), seed=0)
    np.testing.assert_array_equal(output.predictions, other.predictions)


def test_a_label_that_train_lacks_keeps_its_column():
    rows = {"text": ["good film", "fine film", "bad film", "sad film"] * 3, "label": [2, 2, 0, 0] * 3}
    split = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=["bad", "so-so", "good"]))
    output, _ = classify_with_tfidf(DatasetDict(train=split, test=split), seed=0)
    assert output.predictions.shape == (12, 3)
    assert (output.predictions[:, 1] == 0).all()
    assert np.argmax(output.predictions, axis=-1).tolist() == rows["label"]


def test_the_results_look_like_those_of_a_method(dataset):
    majority, classical = run_baselines(dataset, seed=0)
    assert (majority["method"], classical["method"]) == (MAJORITY, CLASSICAL)
    assert majority["accuracy"] == 0.5
    assert classical["f1"] > majority["f1"]
    assert len(majority["predictions"]) == len(classical["predictions"]) == dataset["test"].num_rows


def test_the_classical_model_reads_both_texts_of_a_pair():
    columns = {"text": ["same"] * 12, "text_pair": ["good film", "bad film"] * 6, "label": [1, 0] * 6}
    split = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=["bad", "good"]))
    output, _ = classify_with_tfidf(DatasetDict(train=split, test=split), seed=0)
    assert np.argmax(output.predictions, axis=-1).tolist() == columns["label"]


@pytest.mark.reliability("bad input")
def test_texts_without_a_word_leave_the_other_baseline(dataset, capsys):
    letters = DatasetDict({name: split.map(lambda row: {"text": "a b"}) for name, split in dataset.items()})
    majority, classical = run_baselines(letters, seed=0)
    assert majority["error"] is None
    assert "empty vocabulary" in classical["error"]
    assert f"{CLASSICAL}, seed 0: failed, ValueError" in capsys.readouterr().out
