import sys

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from transformers import EvalPrediction

from peft_helpers import Calibration, load_bbc_news, most_confident_errors, prepare_splits, suspicious_labels

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


def test_a_threshold_decides_which_answers_are_wrong_and_leaves_the_probabilities(test_examples):
    logits, calibration = [[2, 0], [0, 9], [0, 3], [3, 0]], Calibration(temperature=2.0, threshold=0.2, label=1)
    table = most_confident_errors(output(logits), test_examples, NAMES, calibration)
    assert table.index.tolist() == [0]  # P(good) is 0.27
    assert table["predicted"].tolist() == ["good"]
    assert table["probability"].tolist() == pytest.approx([1 / (1 + np.e)])


def test_a_perfect_model_has_no_errors(test_examples):
    assert most_confident_errors(output([[1, 0], [0, 1], [0, 1], [1, 0]]), test_examples, NAMES).empty


@pytest.mark.reliability("bad input")
def test_examples_of_another_split_are_refused(test_examples):
    with pytest.raises(ValueError, match="not the same examples in the same order"):
        most_confident_errors(output([[1, 0]] * 4), test_examples.select([1, 0, 2, 3]), NAMES)


# Suspicious labels


def plant(dataset: Dataset, classes: int) -> tuple[Dataset, list[int]]:
    """Give 5 % of the rows another label; return them too."""
    generator, labels = np.random.default_rng(0), np.array(dataset["label"][:])
    planted = generator.choice(len(labels), round(0.05 * len(labels)), replace=False)
    labels[planted] = (labels[planted] + generator.integers(1, classes, len(planted))) % classes
    return dataset.remove_columns("label").add_column("label", labels), planted.tolist()


def test_most_of_the_planted_labels_are_among_the_most_suspicious(args):
    pytest.importorskip("cleanlab")
    test = prepare_splits(load_bbc_news(), args)["test"]
    names = test.features["label"].names
    dataset, planted = plant(test, len(names))
    table = suspicious_labels(dataset, names, top=len(planted))
    assert len(set(table.index) & set(planted)) >= len(planted) / 2  # by chance: 5 % of them
    flagged = table.index[table["flagged"]]
    assert len(set(flagged) & set(planted)) > len(flagged) / 2
    row = table.iloc[0]
    assert row["label"] == names[dataset[int(row.name)]["label"]] != row["predicted"]
    assert row["text"][:300] == dataset[int(row.name)]["text"][:300]


def test_the_outputs_of_a_model_are_taken_as_they_are():
    pytest.importorskip("cleanlab")
    dataset = Dataset.from_dict({"text": list("abcdef"), "label": [0, 1, 0, 1, 0, 1]})
    logits = np.array([[2, 0], [0, 2], [-4, 0], [0, 2], [2, 0], [1, 0]], dtype=float)
    table = suspicious_labels(dataset, ["bad", "good"], EvalPrediction(logits, np.array(dataset["label"][:])), top=2)
    assert table["text"].tolist() == ["c", "f"]
    assert table["label"].tolist() == ["bad", "good"]
    assert table["predicted"].tolist() == ["good", "bad"]
    assert table["P(label)"].tolist() == pytest.approx([1 / (1 + np.exp(4)), 1 / (1 + np.exp(1))])


def test_a_label_without_examples_and_a_rare_one_do_no_harm():
    pytest.importorskip("cleanlab")
    rows = Dataset.from_dict({"text": ["a good film", "a bad film"] * 5, "label": [2, 0] * 5})
    dataset = concatenate_datasets([rows, Dataset.from_dict({"text": ["a film"], "label": [3]})])
    table = suspicious_labels(dataset, ["bad", "never", "good", "rare"], top=1)
    assert table["label"].tolist() == ["rare"]


@pytest.mark.reliability("bad input")
def test_another_split_is_refused_and_so_is_a_missing_package(monkeypatch):
    pytest.importorskip("cleanlab")
    dataset = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    with pytest.raises(ValueError, match="not the same examples in the same order"):
        suspicious_labels(dataset, ["bad", "good"], EvalPrediction(np.eye(2), np.array([1, 0])))
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(ImportError, match=r"need cleanlab.* `python -m pip install -r .*optional_requirements\.txt`"):
        suspicious_labels(dataset, ["bad", "good"])
