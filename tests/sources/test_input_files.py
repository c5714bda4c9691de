import gzip

import pandas as pd
import pytest
from datasets import Dataset

from peft_helpers.sources.input_files import load_labelled_rows, load_texts

LABELS = ["negative", "positive"]


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_are_numbered_as_the_adapter_numbers_them(tmp_path):
    file = write(tmp_path / "rows.csv", "text,label\ngood,positive \nbad,negative\nfine,positive\nsad,negative\n")
    rows = load_labelled_rows(file, ["positive", "neutral", "negative"])
    assert rows[:] == {"text": ["good", "bad", "fine", "sad"], "label": [0, 2, 0, 2]}
    assert rows.features["label"].names == ["positive", "neutral", "negative"]


@pytest.mark.parametrize("values", [[3, 1, 3, 1], [3.0, 1.0, 3.0, 1.0], ["3", "1", "3", "1"]])
def test_numbers_are_names(tmp_path, values):
    Dataset.from_dict({"text": list("abcd"), "label": values}).to_parquet(tmp_path / "rows.parquet")
    assert load_labelled_rows(tmp_path / "rows.parquet", ["1", "2", "3"])["label"][:] == [2, 0, 2, 0]


def test_booleans_are_names(tmp_path):
    Dataset.from_dict({"text": list("ab"), "label": [True, False]}).to_parquet(tmp_path / "rows.parquet")
    assert load_labelled_rows(tmp_path / "rows.parquet", ["False", "True"])["label"][:] == [1, 0]


def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path, capsys):
    lines = [f'{{"text": {text}, "label": {label}}}' for text, label in
             (('"good"', 1), ('" "', 1), ("null", 0), ('"bad"', 0), ('"odd"', -1), ('"odd"', "null"))]  # fmt: skip
    rows = load_labelled_rows(write(tmp_path / "rows.jsonl", "\n".join(lines)), ["0", "1"])
    assert rows[:] == {"text": ["good", "bad"], "label": [1, 0]}
    assert "4 of 6 rows have no label or no text and are left out." in capsys.readouterr().out


@pytest.mark.reliability("bad input")
def test_labels_that_the_adapter_does_not_know_are_named(tmp_path):
    file = write(tmp_path / "rows.csv", "text,label\na,positive\nb,neutral\nc,positive\nd,neutral\n")
    with pytest.raises(ValueError, match=r"has the labels \['neutral'\], which the adapter does not know; it knows"):
        load_labelled_rows(file, LABELS)


@pytest.mark.reliability("bad input")
def test_a_file_without_a_labelled_row_is_refused(tmp_path):
    file = write(tmp_path / "rows.csv", "text,label\na,\nb,\n")
    with pytest.raises(ValueError, match=r"No row of .*rows\.csv has both a text and a label"):
        load_labelled_rows(file, LABELS)


def test_each_line_of_a_text_file_is_a_text(tmp_path):
    assert load_texts(write(tmp_path / "a.txt", "\ufeffone\r\n\ntwo \u2028 same\n")) == ["one", "", "two \u2028 same"]
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("eins\nzwei ä".encode()))
    assert load_texts(tmp_path / "b.txt.gz") == ["eins", "zwei ä"]


def test_the_texts_of_a_table_keep_their_rows(tmp_path):
    file = write(tmp_path / "rows.json", '[{"text": "a", "title": "x"}, {"text": null, "title": "y"}]')
    assert load_texts(file) == ["a", ""]
    assert load_texts(file, "title") == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "one,two\na,b\nc,d\n", r"Name the column with the texts by --text_column; .* \['one', 'two'\]"),
        ("a.txt", "", "is empty; expected at least one text"),
        ("a.md", "text", "no data file there. Expected a file"),
    ],
)
@pytest.mark.reliability("bad input")
def test_texts_that_cannot_be_told_are_refused(tmp_path, name, content, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_texts(write(tmp_path / name, content))


@pytest.mark.reliability("bad input")
def test_a_text_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("schön".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8: line 1 has the byte 0xf6"):
        load_texts(tmp_path / "a.txt")


def test_texts_are_found_beside_labels_and_in_files_of_pandas(tmp_path):
    rows = pd.DataFrame({"review": [f"film {number}" for number in range(12)], "opinion": ["good", "bad"] * 6})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows.to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        assert load_texts(tmp_path / name) == rows["review"].tolist()
