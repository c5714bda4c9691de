import gzip
from collections import Counter

import numpy as np
import pytest
from conftest import python_peak
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset

from peft_helpers import Arguments, count_classes, load_dataset_arguments, prepare_splits
from peft_helpers.data import stratified_order

TEXTS = [f"text {number}" for number in range(40)]


def load(dataset_name, **changes) -> DatasetDict:
    args = Arguments(dataset_name=str(dataset_name), **changes)
    return prepare_splits(load_dataset(**load_dataset_arguments(args)), args)


def make(**columns) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict(columns))


# Loading


def test_a_hub_id_is_handed_on():
    args = Arguments(dataset_name="stanfordnlp/sst2", dataset_config_name="default")
    assert load_dataset_arguments(args) == {"path": "stanfordnlp/sst2", "name": "default"}


@pytest.mark.parametrize("extension", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_each_kind_of_file_is_loaded(tmp_path, extension):
    path = tmp_path / f"rows.{extension}"
    rows = Dataset.from_dict({"review": TEXTS, "label": ["good", "bad"] * 20}).to_pandas()
    {
        "csv": lambda: rows.to_csv(path, index=False),
        "tsv": lambda: rows.to_csv(path, index=False, sep="\t"),
        "json": lambda: rows.to_json(path, orient="records"),
        "jsonl": lambda: rows.to_json(path, orient="records", lines=True),
        "parquet": lambda: rows.to_parquet(path),
    }[extension]()
    dataset = load(path)
    assert {name: split.num_rows for name, split in dataset.items()} == {"train": 29, "validation": 3, "test": 8}
    assert dataset["train"].features["label"].names == ["bad", "good"]


def test_a_folder_has_one_file_a_split_and_validation_becomes_the_test(tmp_path):
    # As GLUE has it: quotes are characters, and "null" is a word.
    with gzip.open(tmp_path / "train.tsv.gz", "wt") as file:
        rows = [f'"a fine film {number}\t1\n' for number in range(10)] + ["null\t0\n"]
        file.write("sentence\tlabel\n" + "".join(rows) + "".join(f"dull {number}\t0\n" for number in range(9)))
    (tmp_path / "dev.tsv").write_text('sentence\tlabel\nso-called "humour\t0\na joy\t1\n')
    dataset = load(tmp_path)
    assert dataset["test"]["text"][:] == ['so-called "humour', "a joy"]
    texts = {*dataset["train"]["text"], *dataset["validation"]["text"]}
    assert {'"a fine film 0', "null"} < texts
    assert len(texts) == 20
    assert dataset["train"].features["label"].names == ["0", "1"]


@pytest.mark.parametrize("name", ["missing.csv", "./missing", "/no/such/folder", "missing.tsv.gz"])
@pytest.mark.reliability("bad input")
def test_a_missing_file_is_named(name):
    with pytest.raises(FileNotFoundError, match=r"no data file there. Expected a file or a folder"):
        load_dataset_arguments(Arguments(dataset_name=name))


@pytest.mark.reliability("bad input")
def test_a_folder_without_data_lists_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"holds notes\.txt"):
        load_dataset_arguments(Arguments(dataset_name=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.csv", b""), ("train.csv", b"text,label\n"), ("train.tsv.gz", gzip.compress(b"text\tlabel\n")),
     ("train.json", b"[]"), ("train.jsonl", b"\n"), ("train.parquet", b"")],
)  # fmt: skip
@pytest.mark.reliability("bad input")
def test_a_file_without_rows_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is empty: expected at least one row"):
        load_dataset_arguments(Arguments(dataset_name=str(tmp_path)))


@pytest.mark.reliability("bad input")
def test_files_of_several_kinds_are_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n")
    (tmp_path / "test.json").write_text("[]")
    with pytest.raises(ValueError, match="several kinds"):
        load_dataset_arguments(Arguments(dataset_name=str(tmp_path)))


@pytest.mark.reliability("bad input")
def test_a_split_without_rows_is_an_error():
    with pytest.raises(ValueError, match=r"train has no rows; its columns are \['text', 'label'\]"):
        prepare_splits(make(text=[], label=[]), Arguments())


# Columns


def test_the_only_candidates_are_found():
    raw = make(id=list(range(40)), sentence=TEXTS, kind=["a", "b"] * 20)
    assert prepare_splits(raw, Arguments())["train"].features["label"].names == ["a", "b"]


@pytest.mark.reliability("bad input")
def test_several_text_columns_have_to_be_told_apart():
    raw = make(title=TEXTS, body=TEXTS, label=[0, 1] * 20)
    with pytest.raises(
        ValueError, match=r"Name the text_column: \['title', 'body'\].*title: string, body: string, label: int64"
    ):
        prepare_splits(raw, Arguments())
    assert prepare_splits(raw, Arguments(text_column="body"))["train"].column_names == ["text", "label"]


@pytest.mark.reliability("bad input")
def test_no_label_column_is_an_error():
    with pytest.raises(ValueError, match=r"Name the label_column: no column could be it; the columns are text"):
        prepare_splits(make(text=TEXTS), Arguments())


@pytest.mark.parametrize("option", ["text_column", "label_column"])
@pytest.mark.reliability("bad input")
def test_a_named_column_that_is_missing_lists_the_columns(option):
    with pytest.raises(ValueError, match=f"{option} is 'stars', which the data set lacks; its columns are text, label"):
        prepare_splits(make(text=TEXTS, label=[0, 1] * 20), Arguments(**{option: "stars"}))


@pytest.mark.reliability("bad input")
def test_a_split_that_lacks_a_column_is_named(raw):
    raw["test"] = raw["test"].rename_column("label", "class")
    with pytest.raises(ValueError, match=r"split test lacks \['label'\]; its columns are \['text', 'class'\]"):
        prepare_splits(raw, Arguments())


@pytest.mark.reliability("bad input")
def test_a_data_set_without_train_lists_its_splits(raw):
    with pytest.raises(ValueError, match=r"has the splits \['test'\]; expected one named train"):
        prepare_splits(DatasetDict(test=raw["test"]), Arguments())


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
    dataset = prepare_splits(raw, Arguments())
    assert dataset["train"].features["label"] == ClassLabel(names=names)
    for row in dataset["train"]:
        original = labels[TEXTS.index(row["text"]) % 2]
        assert names[row["label"]] == str(int(original) if isinstance(original, float) else original)


def test_class_label_names_keep_their_order():
    raw = make(text=TEXTS, label=[0, 1] * 20).cast_column("label", ClassLabel(names=["zebra", "ant"]))
    dataset = prepare_splits(raw, Arguments())
    assert dataset["train"].features["label"].names == ["zebra", "ant"]


def test_unlabelled_rows_are_left_out_and_counted(capsys):
    raw = make(text=["x", None, *TEXTS[2:]], label=[-1, 0] + [0, 1] * 19)
    dataset = prepare_splits(raw, Arguments())
    assert sum(split.num_rows for split in dataset.values()) == 38
    assert "train: 2 of 40 rows have no label or no text and are left out." in capsys.readouterr().out


def test_the_unlabelled_splits_of_sst2_and_imdb_are_left_out(raw, capsys):
    label = ClassLabel(names=["negative", "positive"])
    raw = raw.cast_column("label", label)
    unlabelled = raw["test"].map(lambda row: {"label": -1})
    raw["test"], raw["unsupervised"] = unlabelled, unlabelled
    dataset = prepare_splits(raw, Arguments())
    assert dataset["test"]["text"][:] == raw["validation"]["text"][:]
    assert set(dataset) == {"train", "validation", "test"}
    printed = capsys.readouterr().out
    assert "test: 16 of 16 rows" in printed
    assert "unsupervised: 16 of 16 rows" in printed


@pytest.mark.parametrize("missing", ["", "-1"])
def test_a_label_that_is_missing_in_a_csv_is_no_class(tmp_path, missing):
    rows = [f"text {number},{number % 2}" for number in range(40)]
    rows[5], rows[6] = "text 5,", f"text 6,{missing}"
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    dataset = load(tmp_path / "rows.csv")
    assert dataset["train"].features["label"].names == ["0", "1"]
    assert sum(split.num_rows for split in dataset.values()) == 38


def test_nan_is_no_label():
    dataset = prepare_splits(make(text=TEXTS, label=[float("nan"), 0.0] + [0.0, 1.0] * 19), Arguments())
    assert dataset["train"].features["label"].names == ["0", "1"]


@pytest.mark.reliability("bad input")
def test_several_labels_a_row_are_refused():
    with pytest.raises(ValueError, match=r"'label' is of type List.*expected one label a row"):
        prepare_splits(make(text=TEXTS, label=[[0], [1]] * 20), Arguments())


def test_an_unlabelled_test_split_is_replaced_by_validation(raw, capsys):
    raw["test"] = raw["test"].map(lambda row: {"label": None})
    validation = raw["validation"]["text"][:]
    dataset = prepare_splits(raw, Arguments())
    assert dataset["test"]["text"][:] == validation
    assert "test: 16 of 16 rows" in capsys.readouterr().out
    assert dataset["train"].num_rows + dataset["validation"].num_rows == raw["train"].num_rows


@pytest.mark.reliability("bad input")
def test_one_label_only_is_an_error():
    with pytest.raises(ValueError, match=r"one label only, '1'; expected at least two. Note that -1 means 'no label'"):
        prepare_splits(make(text=TEXTS, label=[-1, 1] * 20), Arguments())


@pytest.mark.reliability("bad input")
def test_no_label_at_all_is_an_error():
    with pytest.raises(ValueError, match="No row of the split train has both a text and a label"):
        prepare_splits(make(text=TEXTS, label=[-1] * 40), Arguments())


@pytest.mark.reliability("bad input")
def test_a_label_that_train_lacks_is_named(raw):
    raw["test"] = raw["test"].map(lambda row: {"label": "mixed"})
    with pytest.raises(ValueError, match=r"split test has the labels \['mixed'\], which train lacks"):
        prepare_splits(raw, Arguments())


@pytest.mark.reliability("bad input")
def test_fractions_are_no_classes():
    with pytest.raises(ValueError, match=r"holds fractions such as 0.5; expected classes"):
        prepare_splits(make(text=TEXTS, label=[0.5, 1.0] * 20), Arguments())


# Splits


def test_a_text_of_the_test_is_in_no_other_split(capsys):
    texts = [*TEXTS[:30], *TEXTS[:10]]
    dataset = prepare_splits(make(text=texts, label=[0, 1] * 20), Arguments())
    train, validation, test = (set(dataset[name]["text"]) for name in ("train", "validation", "test"))
    assert not train & test
    assert not validation & test
    assert not train & validation
    assert train | validation | test == set(texts)
    assert "rows have a text of another split and are left out" in capsys.readouterr().out


def test_shards_of_a_split_are_loaded_together(tmp_path):
    for part in range(2):
        rows = Dataset.from_dict({"text": TEXTS[part::2], "label": [0, 1] * 10})
        rows.to_parquet(tmp_path / f"train-0000{part}-of-00002.parquet")
    assert sum(split.num_rows for split in load(tmp_path).values()) == 40


@pytest.mark.reliability("bad input")
def test_two_validation_splits_are_refused(raw):
    raw["dev"] = raw["validation"]
    with pytest.raises(ValueError, match="Several of the splits"):
        prepare_splits(raw, Arguments())


@pytest.mark.reliability("bad input")
def test_a_subset_that_lacks_a_label_is_an_error():
    raw = make(text=[f"text {number}" for number in range(1000)], label=["a"] * 970 + ["b"] * 20 + ["c"] * 10)
    with pytest.raises(ValueError, match=r"one label only|labels .* which train lacks \(its 12 rows"):
        prepare_splits(raw, Arguments(max_train_samples=12))


@pytest.mark.parametrize(("max_train_samples", "rows"), [(None, 480), (9000, 480), (2000, 200), (30, 100)])
def test_a_short_run_is_judged_on_fewer_validation_rows(max_train_samples, rows):
    raw = make(text=[f"text {number}" for number in range(6000)], label=[0, 1] * 3000)
    splits = prepare_splits(raw, Arguments(max_train_samples=max_train_samples))
    assert (splits["validation"].num_rows, splits["test"].num_rows) == (rows, 1200)


@pytest.mark.reliability("bad input")
def test_a_data_set_too_small_for_three_splits_is_an_error():
    with pytest.raises(
        ValueError, match=r"No rows are left for validation: \{'train': 3, 'validation': 0, 'test': 1\}"
    ):
        prepare_splits(make(text=TEXTS[:4], label=[0, 1, 0, 1]), Arguments())


def test_the_texts_are_never_in_memory_at_once():
    def peak(rows: int) -> int:
        raw = make(text=[f"{row} {'long ' * 400}" for row in range(rows)], label=[0, 1] * (rows // 2))
        return python_peak(lambda: count_classes(prepare_splits(raw, Arguments())))

    peak(100)  # what is imported at the first call
    growth = peak(10_000) - peak(4_000)
    assert growth < 0.2 * 6_000 * 2000  # the texts have 2000 bytes each


def test_given_splits_are_kept(raw):
    dataset = prepare_splits(raw, Arguments())
    assert {name: rows["text"][:] for name, rows in dataset.items()} == {n: r["text"][:] for n, r in raw.items()}


def test_carved_splits_are_disjoint_stratified_and_reproducible():
    labels = ["a"] * 30 + ["b"] * 10
    dataset = prepare_splits(make(text=TEXTS, label=labels), Arguments(seed=3))
    texts = [text for split in dataset.values() for text in split["text"]]
    assert sorted(texts) == sorted(TEXTS)
    assert Counter(dataset["test"]["label"]) == {0: 6, 1: 2}
    again = prepare_splits(make(text=TEXTS, label=labels), Arguments(seed=3))
    assert again["test"][:] == dataset["test"][:]
    other = prepare_splits(make(text=TEXTS, label=labels), Arguments(seed=4))
    assert other["test"][:] != dataset["test"][:]


def test_subsets_are_stratified(raw):
    dataset = prepare_splits(raw, Arguments(max_train_samples=10, max_eval_samples=4))
    assert count_classes(dataset).to_dict() == {
        "train": {"negative": 5, "positive": 5},
        "validation": {"negative": 2, "positive": 2},
        "test": {"negative": 2, "positive": 2},
    }


def test_stratified_order_is_a_permutation_whose_beginnings_have_the_proportions():
    labels = np.repeat([0, 1, 2], [60, 30, 1])
    order = stratified_order(labels, seed=0)
    assert sorted(order) == list(range(91))
    for rows in (3, 10, 30, 60, 90):
        counts = np.bincount(labels[order[:rows]], minlength=3)
        assert counts[0] == pytest.approx(2 * counts[1], abs=2)
