from collections import Counter

import numpy as np
import pandas as pd
import pytest
from conftest import python_peak
from datasets import ClassLabel, Dataset, DatasetDict

from peft_helpers import make_arguments, prepare_splits
from peft_helpers.data import take_stratified

TEXTS = [f"text {number}" for number in range(40)]


def make(**columns) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict(columns))


# Splits


@pytest.mark.reliability("bad input")
def test_a_split_that_lacks_a_column_is_named(raw):
    raw["test"] = raw["test"].rename_column("label", "class")
    with pytest.raises(ValueError, match=r"Column name \['label'\] not in the dataset.*\['text', 'class'\]"):
        prepare_splits(raw, make_arguments())


@pytest.mark.reliability("bad input")
def test_a_data_set_without_train_lists_its_splits(raw):
    with pytest.raises(ValueError, match=r"has the splits \['test'\]; expected train"):
        prepare_splits(DatasetDict(test=raw["test"]), make_arguments())


# Labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a"], ["a", "b"]),
        ([10, 2], ["2", "10"]),
        ([True, False], ["False", "True"]),
        ([1.0, 0.0], ["0", "1"]),
    ],
)
def test_labels_of_any_type_keep_their_names(labels, names):
    raw = make(text=TEXTS, label=labels * 20)
    dataset = prepare_splits(raw, make_arguments())
    assert dataset["train"].features["label"] == ClassLabel(names=names)
    for row in dataset["train"]:
        original = labels[TEXTS.index(row["text"]) % 2]
        assert names[row["label"]] == str(int(original) if isinstance(original, float) else original)


def test_class_label_names_keep_their_order():
    raw = make(text=TEXTS, label=[0, 1] * 20).cast_column("label", ClassLabel(names=["zebra", "ant"]))
    dataset = prepare_splits(raw, make_arguments())
    assert dataset["train"].features["label"].names == ["zebra", "ant"]


def test_unlabelled_rows_are_left_out_and_counted(capsys):
    raw = make(text=["x", None, *TEXTS[2:]], label=[-1, 0] + [0, 1] * 19)
    dataset = prepare_splits(raw, make_arguments())
    assert sum(split.num_rows for split in dataset.values()) == 38
    assert "train: 2 of 40 rows have no label or no text and are left out." in capsys.readouterr().out


def test_the_unlabelled_splits_of_sst2_and_imdb_are_left_out(raw, capsys):
    label = ClassLabel(names=["negative", "positive"])
    raw = raw.cast_column("label", label)
    unlabelled = raw["test"].map(lambda row: {"label": -1})
    raw["test"], raw["unsupervised"] = unlabelled, unlabelled
    dataset = prepare_splits(raw, make_arguments())
    assert dataset["test"]["text"][:] == raw["validation"]["text"][:]
    assert set(dataset) == {"train", "validation", "test"}
    printed = capsys.readouterr().out
    assert "test: 16 of 16 rows" in printed


def test_nan_is_no_label():
    dataset = prepare_splits(make(text=TEXTS, label=[float("nan"), 0.0] + [0.0, 1.0] * 19), make_arguments())
    assert dataset["train"].features["label"].names == ["0", "1"]


@pytest.mark.reliability("bad input")
def test_several_labels_a_row_are_refused():
    with pytest.raises(ValueError, match=r"label_column: expected one column with one label a row, .*label: List"):
        prepare_splits(make(text=TEXTS, label=[[0], [1]] * 20), make_arguments())


def test_an_unlabelled_test_split_is_replaced_by_validation(raw, capsys):
    raw["test"] = raw["test"].map(lambda row: {"label": None})
    validation = raw["validation"]["text"][:]
    dataset = prepare_splits(raw, make_arguments())
    assert dataset["test"]["text"][:] == validation
    assert "test: 16 of 16 rows" in capsys.readouterr().out
    assert dataset["train"].num_rows + dataset["validation"].num_rows == raw["train"].num_rows


@pytest.mark.reliability("bad input")
def test_one_label_only_is_an_error():
    with pytest.raises(ValueError, match=r"one label only, \{'1'\}; expected two. -1 means 'no label'"):
        prepare_splits(make(text=TEXTS, label=[-1, 1] * 20), make_arguments())


@pytest.mark.reliability("bad input")
def test_no_label_at_all_is_an_error():
    with pytest.raises(ValueError, match=r"no rows with text and label left: \{'train': 0"):
        prepare_splits(make(text=TEXTS, label=[-1] * 40), make_arguments())


@pytest.mark.reliability("bad input")
def test_a_label_that_train_lacks_is_named(raw):
    raw["test"] = raw["test"].map(lambda row: {"label": "mixed"})
    with pytest.raises(ValueError, match=r"has the labels \['mixed'\], which train lacks"):
        prepare_splits(raw, make_arguments())


@pytest.mark.reliability("bad input")
def test_fractions_are_no_classes():
    with pytest.raises(ValueError, match=r"such as 0.5; expected classes that recur, and no fractions"):
        prepare_splits(make(text=TEXTS, label=[0.5, 1.0] * 20), make_arguments())


# Splits


def test_a_text_of_the_test_is_in_no_other_split(capsys):
    texts = [*TEXTS[:30], *TEXTS[:10]]
    dataset = prepare_splits(make(text=texts, label=[0, 1] * 20), make_arguments())
    train, validation, test = (set(dataset[name]["text"]) for name in ("train", "validation", "test"))
    assert not train & test
    assert not validation & test
    assert not train & validation
    assert train | validation | test == set(texts)
    assert "rows have a text of another split and are left out" in capsys.readouterr().out


@pytest.mark.reliability("bad input")
def test_two_validation_splits_are_refused(raw):
    raw["dev"] = raw["validation"]
    with pytest.raises(ValueError, match="expected train, and at most one for validation"):
        prepare_splits(raw, make_arguments())


@pytest.mark.reliability("bad input")
def test_a_subset_that_lacks_a_label_is_an_error():
    raw = make(text=[f"text {number}" for number in range(1000)], label=["a"] * 970 + ["b"] * 20 + ["c"] * 10)
    with pytest.raises(ValueError, match=r"one label only|labels .* which train lacks \(its 12 rows"):
        prepare_splits(raw, make_arguments(max_train_samples=12))


@pytest.mark.parametrize(("max_train_samples", "rows"), [(None, 480), (9000, 480), (2000, 200), (30, 100)])
def test_a_short_run_is_judged_on_fewer_validation_rows(max_train_samples, rows):
    raw = make(text=[f"text {number}" for number in range(6000)], label=[0, 1] * 3000)
    splits = prepare_splits(raw, make_arguments(max_train_samples=max_train_samples))
    assert (splits["validation"].num_rows, splits["test"].num_rows) == (rows, 1200)


@pytest.mark.reliability("bad input")
def test_a_data_set_too_small_for_three_splits_is_an_error():
    with pytest.raises(ValueError, match=r"no rows .*\{'train': 3, 'validation': 0, 'test': 1\}"):
        prepare_splits(make(text=TEXTS[:4], label=[0, 1, 0, 1]), make_arguments())


@pytest.mark.slow
def test_the_texts_are_never_in_memory_at_once():
    def peak(rows: int) -> int:
        raw = make(text=[f"{row} {'long ' * 400}" for row in range(rows)], label=[0, 1] * (rows // 2))
        return python_peak(lambda: prepare_splits(raw, make_arguments()))

    peak(100)  # what is imported at the first call
    growth = peak(10_000) - peak(4_000)
    assert growth < 0.2 * 6_000 * 2000  # the texts have 2000 bytes each


def test_given_splits_are_kept(raw):
    dataset = prepare_splits(raw, make_arguments())
    assert {name: rows["text"][:] for name, rows in dataset.items()} == {n: r["text"][:] for n, r in raw.items()}


def test_carved_splits_are_disjoint_stratified_and_reproducible():
    labels = ["a"] * 30 + ["b"] * 10
    dataset = prepare_splits(make(text=TEXTS, label=labels), make_arguments(seed=3))
    texts = [text for split in dataset.values() for text in split["text"]]
    assert sorted(texts) == sorted(TEXTS)
    assert Counter(dataset["test"]["label"]) == {0: 6, 1: 2}
    again = prepare_splits(make(text=TEXTS, label=labels), make_arguments(seed=3))
    assert again["test"][:] == dataset["test"][:]
    other = prepare_splits(make(text=TEXTS, label=labels), make_arguments(seed=4))
    assert other["test"][:] != dataset["test"][:]


def test_subsets_are_stratified(raw):
    dataset = prepare_splits(raw, make_arguments(max_train_samples=10, max_eval_samples=4))
    counts = {name: Counter(split["label"]) for name, split in dataset.items()}
    assert counts == {"train": {0: 5, 1: 5}, "validation": {0: 2, 1: 2}, "test": {0: 2, 1: 2}}


def test_a_stratified_sample_has_the_proportions_and_lies_within_a_larger_one():
    rows = pd.DataFrame({"label": np.repeat([0, 1, 2], [60, 30, 1])})
    larger = take_stratified(rows, None, seed=0)
    assert larger.equals(rows)
    for size in (90, 60, 30, 10, 3):
        sample = take_stratified(rows, size, seed=0)
        counts = np.bincount(sample["label"], minlength=3)
        assert counts.sum() == size
        assert counts[0] == pytest.approx(2 * counts[1], abs=2)
        assert set(sample.index) <= set(larger.index)
        larger = sample


# Pairs


def test_a_pair_is_a_duplicate_only_if_both_texts_are(capsys):
    first, second = ["same text", "same text", *TEXTS[:38]], ["one", "two", *TEXTS[:38]]
    raw = make(text=first, pair=second, label=[0, 1] * 20)
    raw["test"] = Dataset.from_dict({"text": ["same text", "x"], "pair": ["one", "x"], "label": [0, 1]})
    splits = prepare_splits(raw, make_arguments(text_pair_column="pair"))
    known = [pair for name in ("train", "validation") for pair in splits[name]["text_pair"]]
    assert "two" in known
    assert "one" not in known
    assert "1 of 36 rows have a text of another split" in capsys.readouterr().out


def test_a_pair_without_one_of_its_texts_is_left_out(capsys):
    raw = make(text=["", *TEXTS[1:]], pair=["a", None, " ", *TEXTS[3:]], label=[0, 1] * 20)
    assert sum(split.num_rows for split in prepare_splits(raw, make_arguments(text_pair_column="pair")).values()) == 37
    assert "train: 3 of 40 rows have no label or no text" in capsys.readouterr().out
