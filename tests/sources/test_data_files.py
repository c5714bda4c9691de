import csv
import gzip
import io
import json

import pytest
from datasets import Dataset, load_dataset

from peft_helpers import Arguments, load_dataset_arguments, prepare_splits
from peft_helpers.sources.data_files import data_files_arguments

ROWS = [{"text": f"text {number}", "label": number % 2} for number in range(40)]
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    Dataset.from_dict({name: [row[name] for row in rows] for name in ("text", "label")}).to_parquet(buffer)
    return buffer.getvalue()


def load(path) -> tuple[list[str], list[str]]:
    """Return the texts of all splits, sorted, and the names of the labels."""
    args = Arguments(dataset_name=str(path))
    dataset = prepare_splits(load_dataset(**load_dataset_arguments(args)), args)
    return sorted(text for split in dataset.values() for text in split["text"]), dataset["train"].features[
        "label"
    ].names


bad_input = pytest.mark.reliability("bad input")
fault = pytest.mark.reliability("fault")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(name, content, message, marks=mark, id=f"{case} {name}")
        for mark, case, name, content, message in [
            (bad_input, "latin-1", "rows.csv", CSV.replace("text 30", "café").encode("latin-1"),
             r"is not UTF-8: line 32 has the byte 0xe9\. Expected UTF-8; convert it"),
            (bad_input, "latin-1", "rows.jsonl", '{"text": "é", "label": 0}\n'.encode("latin-1"),
             r"is not UTF-8: line 1 has the byte 0xe9"),
            (bad_input, "encoded surrogate", "rows.csv", CSV.replace("text 30", "\ud800").encode("utf-8",
             "surrogatepass"),
             r"is not UTF-8: line 32 has the byte 0xed"),
            (bad_input, "utf-16", "rows.csv", CSV.encode("utf-16"), "seems to be UTF-16. Expected UTF-8; convert it"),
            (bad_input, "utf-16 without mark", "rows.tsv", CSV.replace(",", "\t").encode("utf-16-le"),
             "seems to be UTF-16"),
            (bad_input, "open quote", "rows.csv", CSV.replace("text 30", '"text 30').encode(),
             r"cannot be parsed: EOF inside string starting at row 31\. Expected as many fields .* put quotes around"),
            (bad_input, "more fields in a line", "rows.csv", CSV.replace("text 30", "text, 30").encode(),
             r"cannot be parsed: Expected 2 fields in line 32, saw 3\. Expected as many fields"),
            (bad_input, "more fields in the first line", "rows.csv", CSV.replace("text 0", "text, 0").encode(),
             "has more fields in a line than in the header"),
            (bad_input, "more fields in every line", "rows.csv", CSV.replace("text ", "text, ").encode(),
             "has more fields in a line than in the header"),
            (bad_input, "repeated column", "rows.csv", b"text,label,text\na,0,b\n",
             r"with 'text' repeated\. Expected a name"),
            (bad_input, "semicolons", "rows.csv", CSV.replace(",", ";").encode(),
             r"has the header 'text;label'\. Expected fields with commas, not ';', between them"),
            (bad_input, "commas", "rows.tsv", CSV.encode(), "Expected fields with tabs, not ',', between them"),
            (bad_input, "no header", "rows.csv", CSV.partition("\n")[2].encode(),
             r"has the header 'text 0', '0'\. Expected names of columns, not numbers"),
            (bad_input, "blank lines only", "rows.csv", b"\n\n", r"rows\.csv is empty: expected at least one row"),
            (bad_input, "broken line", "rows.jsonl", JSONL.replace('"text 30"', '"text 30').encode(),
             r"cannot be parsed: JSON parse error: .* in row 30\. Expected an object in each line"),
            (fault, "truncated", "rows.jsonl", JSONL[:-6].encode(), r"cannot be parsed: .* in row 39"),
            (fault, "truncated", "rows.json", json.dumps(ROWS)[:-6].encode(),
             "cannot be parsed: .* or one list of such objects"),
            (bad_input, "no object", "rows.json", b"3", "cannot be parsed: .*Expected an object in each line"),
            (bad_input, "null for a row", "rows.json", b'[null, {"text": "a"}]',
             r"has null for its first row\. Expected an object"),
            (bad_input, "null for a row", "rows.jsonl", b"null\n", "has null for its first row"),
            (bad_input, "repeated key", "rows.jsonl", b'{"text": "a", "text": "b"}\n',
             r"Column\(/text\) was specified twice"),
            (bad_input, "half of a pair", "rows.jsonl", JSONL.replace("text 30", r"\\ \ud83d!").encode(),
             r"has half of a surrogate pair, \\ud83d, in line 31\. Expected whole characters"),
            (bad_input, "half of a pair", "rows.json", json.dumps([{"text": "a \udc00", "label": 0}]).encode(),
             r"has half of a surrogate pair, \\udc00, in line 1"),
            (bad_input, "text", "rows.parquet", CSV.encode(),
             "cannot be read: Parquet magic bytes .* Expected a whole parquet"),
            (fault, "truncated", "rows.parquet", parquet(ROWS)[:-20],
             "cannot be read: .* Expected a whole parquet file"),
            (bad_input, "gzipped", "rows.parquet.gz", gzip.compress(parquet(ROWS)),
             "Expected a whole parquet file, not gzipped"),
            (bad_input, "no rows", "rows.parquet", parquet([]), r"rows\.parquet is empty: expected at least one row"),
            (bad_input, "not gzipped", "rows.csv.gz", CSV.encode(), "cannot be unpacked: Not a gzipped file"),
            (fault, "truncated", "rows.csv.gz", gzip.compress(CSV.encode())[:-20],
             "cannot be unpacked: .*Expected a whole gzip"),
            (fault, "damaged", "rows.csv.gz", gzip.compress(CSV.encode())[:30] + b"\xff" * 99, "cannot be unpacked: "),
        ]
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset_arguments(Arguments(dataset_name=str(tmp_path / name)))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.reliability("bad input")
def test_files_whose_columns_differ_are_named(tmp_path):
    (tmp_path / "train.csv").write_text(CSV)
    (tmp_path / "test.csv").write_text("text\na film\n")
    with pytest.raises(
        ValueError, match=r"train\.csv has the columns \['text', 'label'\], but .*test\.csv has \['text'\]"
    ):
        load_dataset_arguments(Arguments(dataset_name=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("byte order mark.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("byte order mark.tsv", b"\xef\xbb\xbf" + CSV.replace(",", "\t").encode()),
        ("byte order mark.jsonl", b"\xef\xbb\xbf" + JSONL.encode()),
        ("byte order mark.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        ("carriage returns.csv", CSV.replace("\n", "\r").encode()),
        ("carriage returns.tsv", CSV.replace("\n", "\r\n").replace(",", "\t").encode()),
        ("blank lines.csv", b"\n\n" + CSV.replace("\n", "\n\n").encode()),
        ("comma after each line.csv", CSV.replace("\n", ",\n").encode()),
        ("list in a jsonl.jsonl", json.dumps(ROWS).encode()),
        ("lines in a json.json", JSONL.encode()),
        ("indented.json", json.dumps(ROWS, indent=2).encode()),
        ("brackets [1] (2)*.csv", CSV.encode()),
        ("brackets [1].jsonl", JSONL.encode()),
        ("brackets [1].parquet", parquet(ROWS)),
        ("gzipped.jsonl.gz", gzip.compress(JSONL.encode())),
    ],
)
def test_an_unusual_file_is_read_as_it_is_meant(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert load(tmp_path / name) == (sorted(row["text"] for row in ROWS), ["0", "1"])


def test_quotes_line_breaks_and_delimiters_in_a_field_are_kept(tmp_path):
    texts = [f'number {number}, "so-called",\nor\r\nnot; \'\t' for number in range(40)]
    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((text, number % 2) for number, text in enumerate(texts))])
    assert load(tmp_path / "rows.csv") == (sorted(texts), ["0", "1"])


@pytest.mark.parametrize("column", ["text", "label"])
def test_a_value_after_the_first_10_000_rows_may_be_of_another_type(tmp_path, column):
    rows = [{"text": f"{n}" if column == "text" else f"{n} words", "label": n % 3} for n in range(11_000)]
    rows[10_500] |= {"text": "words"} if column == "text" else {"label": ""}
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    kept = [row["text"] for row in rows if row["label"] != ""]
    assert load(tmp_path / "rows.csv") == (sorted(kept), ["0", "1", "2"])


def test_a_column_of_numbers_is_no_text_and_may_differ_between_files(tmp_path):
    (tmp_path / "train.csv").write_text("id,text,label\n" + "".join(f"{n},text {n},{n % 2}\n" for n in range(40)))
    (tmp_path / "test.csv").write_text("label,id,text\n0,0.5,a film\n,0.7,no label\n1,0.9,a joy\n")
    texts, names = load(tmp_path)
    assert len(texts) == 42
    assert names == ["0", "1"]


def test_a_short_line_lacks_a_label_and_is_left_out(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text(CSV.replace("text 30,0", "text 30"))
    assert len(load(tmp_path / "rows.csv")[0]) == 39
    assert "train: 1 of 40 rows have no label or no text and are left out." in capsys.readouterr().out


def test_codes_with_leading_zeros_stay_different_labels(tmp_path):
    file = tmp_path / "codes.csv"
    file.write_text("text,label,stars\n" + "a b,01,1\nb c,1,2\nc d,,3\n" * 3)
    loaded = load_dataset(**data_files_arguments({"train": [file]}), split="train")
    assert loaded["label"][:3] == ["01", "1", ""]  # blank: left out later
    assert loaded["stars"][:3] == [1, 2, 3]
