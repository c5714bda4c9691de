"""Odd texts and labels through the whole path: what comes out is right, or a clear error."""

import csv
import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Value

from peft_helpers import classify_texts, load_splits, make_arguments, predict, prepare_splits, tokenize_dataset
from peft_helpers.tokenization import encode_texts

ODD_TEXTS = {
    "emoji": "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "beyond the basic plane": "𝔉𝔦𝔩𝔪 🀄",
    "control characters": "\x01\x02\x1b[31m\x7f",
    "NUL": "a\0b\0",
    "NUL only": "\0",
    "right to left": "\u202bسرد رائع שלום\u202c",
    "combining": "e\u0301" + "\u0300" * 50,
    "byte order mark": "\ufeffa film",
    "zero width": "\u200b\u200d",
    "replacement character": "\ufffd\uffff",
    "line separators": "a\u2028b\u2029c\x85d\re\nf",
    "end of text": "a film<|endoftext|>",
    "ends of text only": "<|endoftext|><|endoftext|>",
    "null as a word": "null",
    "number": "1e5",
    "html": "<br />&amp;",
    "1 MB in one word": "x" * 1_000_000,
    "1 MB of words": "a film " * 143_000,
}
PLAIN = [f"text {number}" for number in range(40)]


def make(**columns) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict(columns))


def label_names(labels: list) -> list[str]:
    return prepare_splits(make(text=PLAIN, label=labels), make_arguments())["train"].features["label"].names


# Texts


def write(path, texts: list[str]) -> None:
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(texts)]
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *(row.values() for row in rows)])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        Dataset.from_list(rows).to_parquet(path)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_odd_texts_are_read_from_a_file_as_they_are(tmp_path, name):
    texts = [*ODD_TEXTS.values(), *PLAIN]
    write(tmp_path / name, [*texts, "", " \t\n"])
    args = make_arguments(dataset_name=str(tmp_path / name))
    dataset = load_splits(args)
    assert sorted(text for split in dataset.values() for text in split["text"]) == sorted(texts)


@pytest.mark.slow
def test_odd_texts_are_trained_on_and_predicted_like_others(peft_model, tokenizer, args):
    texts = [*ODD_TEXTS.values(), "", " "]
    rows = Dataset.from_dict({"text": texts, "label": [0, 1] * (len(texts) // 2)})
    output = predict(peft_model, tokenizer, tokenize_dataset(rows, tokenizer), args)
    assert np.isfinite(output.predictions).all()
    alone = [classify_texts(peft_model, tokenizer, [text])["P(positive)"][0] for text in ["a film", texts[-2]]]
    end = np.exp(output.predictions) / np.exp(output.predictions).sum(axis=1, keepdims=True)
    np.testing.assert_allclose([end[list(ODD_TEXTS).index("end of text"), 1], end[-2, 1]], alone, atol=1e-6)
    chunks = tokenize_dataset(rows, tokenizer, chunks=True)
    assert max(chunks["length"]) <= 32
    assert min(chunks["length"]) >= 1


@pytest.mark.parametrize("ends", ["<|endoftext|>", "<|endoftext|>" * 5, "<|endoftext|>" * 40])
def test_an_end_of_text_at_the_end_has_no_effect_alone_or_among_others(peft_model, tokenizer, ends):
    peft_model.eval()

    def logits(texts: list[str]) -> torch.Tensor:
        with torch.inference_mode():
            return peft_model(**tokenizer.pad(encode_texts(texts, tokenizer), return_tensors="pt")).logits

    plain = logits(["a film"])[0]
    torch.testing.assert_close(logits(["a film" + ends])[0], plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        logits(["a film" + ends, "the cast is a joy to watch from start to end"])[0], plain, rtol=0, atol=1e-6
    )


def test_rows_without_a_text_are_left_out_and_counted(capsys):
    dataset = prepare_splits(make(text=["", " \t", None, *PLAIN[3:]], label=[0, 1] * 20), make_arguments())
    assert sum(split.num_rows for split in dataset.values()) == 37
    assert "train: 3 of 40 rows have no label or no text and are left out." in capsys.readouterr().out


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("good", "Expected a list of texts, found 'good'"),
        ([], r"Expected a list of texts, found \[\]"),
        (["good", None], "Text 1 is None; expected a string"),
        (["good", 3], "Text 1 is 3; expected a string"),
        (["good", b"bad"], "Text 1 is b'bad'; expected a string"),
        (["good", "a\ud800"], r"Text 1 has half of a surrogate pair: .*'\\ud800' in position 1"),
        (["a\udc00b"], r"Text 0 has half of a surrogate pair: .*'\\udc00' in position 1"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_named(peft_model, tokenizer, texts, message):
    with pytest.raises(ValueError, match=message):
        classify_texts(peft_model, tokenizer, texts)


def test_a_column_of_a_data_set_is_a_list_of_texts(peft_model, tokenizer, raw):
    assert len(classify_texts(peft_model, tokenizer, raw["validation"]["text"])) == 8


# Labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 5, 9, 5], ["1", "5", "9"]),
        ([-3, 0, 7, 7], ["-3", "0", "7"]),
        ([0.0, 1.0, None, 1.0], ["0", "1"]),
        ([True, False, None, True], ["False", "True"]),
        ([" pos", "pos", "neg\t", "neg"], ["neg", "pos"]),
        (["pos", "neg", " ", ""], ["neg", "pos"]),
        (["positiv 😀", "négatif", "null", "None"], ["None", "null", "négatif", "positiv 😀"]),
        (["a\0", "a", "A", "a b"], ["A", "a", "a\0", "a b"]),
    ],
)
def test_odd_labels_are_classes_with_their_names(labels, names):
    assert label_names(labels * 10) == names


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_class_of_few_rows_is_learnt_from(rows):
    labels = ["common"] * (40 - rows) + ["rare"] * rows
    dataset = prepare_splits(make(text=PLAIN, label=labels), make_arguments())
    assert dataset["train"].features["label"].names == ["common", "rare"]
    assert 1 in dataset["train"]["label"]


def test_the_same_text_with_another_label_is_kept_in_one_split():
    texts = [*PLAIN[:36], *PLAIN[:4]]
    dataset = prepare_splits(make(text=texts, label=[0, 1] * 18 + [1, 0] * 2), make_arguments())
    splits = [set(split["text"]) for split in dataset.values()]
    assert sum(map(len, splits)) == len(set.union(*splits))
    assert any(split["text"][:].count(text) == 2 for split in dataset.values() for text in PLAIN[:4])


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"text": PLAIN, "label": list(range(40))}, {}, "There are 40 labels in 40 rows, .*; expected classes"),
        ({"text": PLAIN, "label": PLAIN}, {}, "There are 40 labels in 40 rows"),
        ({"text": PLAIN, "label": [0.25, 0.75] * 20}, {}, r"such as 0\.[27]5; expected classes .*no fractions"),
        ({"text": PLAIN, "label": [{"id": 0}] * 40}, {}, "label_column: .* one label a row, .*'id'"),
        ({"text": PLAIN, "label": [" "] * 40}, {}, "no rows with text and label left: .*'train': 0"),
        ({"text": [" "] * 40, "label": [0, 1] * 20}, {}, "no rows with text and label left: .*'train': 0"),
        ({"text": list(range(40)), "label": [0, 1] * 20}, {},
         "Name the text_column: .* found none; the columns are text: int64, label: int64"),
        ({"text": list(range(40)), "label": [0, 1] * 20}, {"text_column": "text"},
         "text_column: expected one column of strings, found .*text: int64"),
        ({"text": [{"body": text} for text in PLAIN], "label": [0, 1] * 20}, {"text_column": "text"},
         "text_column: expected one column of strings, found .*text: .*'body'"),
        ({"text": [text.encode() for text in PLAIN], "label": [0, 1] * 20}, {}, "the columns are text: binary, label"),
    ],
)  # fmt: skip
def test_columns_of_no_use_are_named(columns, options, message):
    with pytest.raises(ValueError, match=message):
        prepare_splits(make(**columns), make_arguments(**options))


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "a label of two types",
            {"text": "a", "label": "good"},
            "one label a row, .*label: Json",
        ),
        ("a text of two types", {"text": 3, "label": 1}, "found none; the columns are text: Json"),
        ("a nested text", {"text": {"body": "a"}, "label": 1}, "found none; the columns are text: Json"),
    ],
)
def test_a_json_row_that_differs_is_an_error(tmp_path, name, row, message):
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(PLAIN)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*rows, row]))
    args = make_arguments(dataset_name=str(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match=message):
        load_splits(args)


def test_a_key_that_a_json_row_lacks_is_a_missing_value(tmp_path, capsys):
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(PLAIN)]
    del rows[5]["label"], rows[6]["text"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = make_arguments(dataset_name=str(tmp_path / "rows.jsonl"))
    load_splits(args)
    assert "train: 2 of 40 rows have no label or no text and are left out." in capsys.readouterr().out


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("other", [Value("string"), Value("int64")])
def test_labels_that_differ_between_the_splits_are_an_error(raw, other):
    raw = raw.cast_column("label", ClassLabel(names=["negative", "positive"]))
    raw["test"] = raw["test"].cast_column("label", other)
    with pytest.raises(ValueError, match=r"has the labels \['0', '1'\], which train lacks"):
        prepare_splits(raw, make_arguments())


def test_labels_that_are_numbered_otherwise_in_another_split_are_told_by_name(raw):
    numbered = raw["test"].cast_column("label", ClassLabel(names=["positive", "negative"]))
    raw = raw.cast_column("label", ClassLabel(names=["negative", "positive"]))
    test = prepare_splits(DatasetDict(raw | {"test": numbered}), make_arguments())["test"]
    assert test[:] == raw["test"][:]
