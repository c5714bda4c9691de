import csv
import gzip
import io
import json
from itertools import chain

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from peft_helpers import dataset_arguments, load_bbc_news, load_documents, load_splits, make_arguments
from peft_helpers.arguments import BBC_NEWS, WIKITEXT, DataArguments
from peft_helpers.data import rename_splits
from peft_helpers.sources import files as files_module
from peft_helpers.sources.files import join_articles, load_labelled_examples, load_raw, load_texts

ROWS = [{"text": f"text {number}", "label": number % 2} for number in range(40)]
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    Dataset.from_dict({name: [row[name] for row in rows] for name in ("text", "label")}).to_parquet(buffer)
    return buffer.getvalue()


def load(path) -> tuple[list[str], list[str]]:
    """Return the texts of all splits, sorted, and the names of the labels."""
    dataset = load_splits(make_arguments(dataset_name=str(path)))
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
             "'utf-8' codec can't decode byte 0xe9 .*Expected UTF-8 .*converts"),
            (bad_input, "latin-1", "rows.jsonl", '{"text": "é", "label": 0}\n'.encode("latin-1"),
             "'utf-8' codec can't decode byte 0xe9 .*Expected UTF-8 .*converts"),
            (bad_input, "encoded surrogate", "rows.csv", CSV.replace("text 30", "\ud800").encode("utf-8",
             "surrogatepass"),
             "'utf-8' codec can't decode byte 0xed"),
            (bad_input, "utf-16", "rows.csv", CSV.encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
            (bad_input, "open quote", "rows.csv", CSV.replace("text 30", '"text 30').encode(),
             r"EOF inside string starting at row 31\. Expected .*as many fields .* and .* quotes around"),
            (bad_input, "more fields in a line", "rows.csv", CSV.replace("text 30", "text, 30").encode(),
             r"Expected 2 fields in line 32, saw 3\. Expected .*as many fields"),
            (bad_input, "more fields in the first line", "rows.csv", CSV.replace("text 0", "text, 0").encode(),
             "Expected 2 fields in line 2, saw 3"),
            (bad_input, "more fields in every line", "rows.csv", CSV.replace("text ", "text, ").encode(),
             "Expected 2 fields in line 2, saw 3"),
            (bad_input, "repeated column", "rows.csv", b"text,label,text\na,0,b\n",
             r"its header is \['text', 'label', 'text'\].* Expected .*a name of its own for each column"),
            (bad_input, "semicolons", "rows.csv", CSV.replace(",", ";").encode(),
             r"its header is \['text;label'\].* Expected .*commas .* between them"),
            (bad_input, "commas", "rows.tsv", CSV.encode(), "Expected .*tabs.* between them"),
            (bad_input, "no header", "rows.csv", CSV.partition("\n")[2].encode(),
             r"its header is \['text 0', '0'\].* Expected .*a header"),
            (bad_input, "blank lines only", "rows.csv", b"\n\n", "No columns to parse from file"),
            (bad_input, "broken line", "rows.jsonl", JSONL.replace('"text 30"', '"text 30').encode(),
             r"JSON parse error: .* in row 30\. Expected .*an object a line"),
            (fault, "truncated", "rows.jsonl", JSONL[:-6].encode(), "JSON parse error: .* in row 39"),
            (fault, "truncated", "rows.json", json.dumps(ROWS)[:-6].encode(), "or one list of such objects"),
            (bad_input, "no object", "rows.json", b"3", "Expected .*an object a line"),
            (bad_input, "null for a row", "rows.json", b'[null, {"text": "a"}]',
             r"it begins with null\. Expected .*an object a line"),
            (bad_input, "null for a row", "rows.jsonl", b"null\n", "it begins with null"),
            (bad_input, "repeated key", "rows.jsonl", b'{"text": "a", "text": "b"}\n',
             r"Column\(/text\) was specified twice"),
            (bad_input, "half of a pair", "rows.jsonl", JSONL.replace("text 30", r"\\ \ud83d!").encode(),
             "The surrogate pair in string is invalid. in row 30"),
            (bad_input, "half of a pair", "rows.json", json.dumps([{"text": "a \udc00", "label": 0}]).encode(),
             "surrogates not allowed"),
            (bad_input, "text", "rows.parquet", CSV.encode(), "Parquet magic bytes .* Expected a whole parquet"),
            (fault, "truncated", "rows.parquet", parquet(ROWS)[:-20], "Expected a whole parquet file"),
            (bad_input, "gzipped", "rows.parquet.gz", gzip.compress(parquet(ROWS), mtime=0),
             "Expected a whole parquet file with at least one row, not gzipped"),
            (bad_input, "no rows", "rows.parquet", parquet([]), "no data.* Expected .*at least one row"),
            (bad_input, "not gzipped", "rows.csv.gz", CSV.encode(), "Not a gzipped file"),
            (fault, "truncated", "rows.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:-20], "Compressed file ended"),
            (fault, "damaged", "rows.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:30] + b"\xff" * 99, ""),
        ]
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_with_what_to_do(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot be read: .*{message}") as error:
        load_raw(DataArguments(dataset_name=str(tmp_path / name)))
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.reliability("bad input")
def test_a_column_that_one_of_the_files_lacks_is_named(tmp_path):
    (tmp_path / "test.csv").write_text(CSV)
    (tmp_path / "train.csv").write_text("text\na film\n")
    with pytest.raises(ValueError, match=r'train\.csv cannot be read: .*"label" does not exist'):
        load_raw(DataArguments(dataset_name=str(tmp_path)))


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
        ("gzipped.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)),
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


@pytest.mark.slow
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
    loaded = load_raw(DataArguments(dataset_name=str(file)))["train"]
    assert loaded["label"][:3] == ["01", "1", ""]  # blank: left out later
    assert loaded["stars"][:3] == ["1", "2", "3"]


def test_a_hub_id_is_handed_on():
    args = DataArguments(dataset_name="stanfordnlp/sst2", dataset_config_name="default")
    assert dataset_arguments(args) == {"path": "stanfordnlp/sst2", "name": "default", "streaming": False}


@pytest.mark.parametrize("extension", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_each_kind_of_file_is_loaded(tmp_path, extension):
    path = tmp_path / f"rows.{extension}"
    rows = Dataset.from_dict({"review": [row["text"] for row in ROWS], "label": ["good", "bad"] * 20}).to_pandas()
    {
        "csv": lambda: rows.to_csv(path, index=False),
        "tsv": lambda: rows.to_csv(path, index=False, sep="\t"),
        "json": lambda: rows.to_json(path, orient="records"),
        "jsonl": lambda: rows.to_json(path, orient="records", lines=True),
        "parquet": lambda: rows.to_parquet(path),
    }[extension]()
    dataset = load_splits(make_arguments(dataset_name=str(path)))
    assert {name: split.num_rows for name, split in dataset.items()} == {"train": 29, "validation": 3, "test": 8}
    assert dataset["train"].features["label"].names == ["bad", "good"]


def test_a_folder_has_one_file_a_split_and_validation_becomes_the_test(tmp_path):
    # As GLUE has it: quotes are characters, and "null" is a word.
    with gzip.open(tmp_path / "train.tsv.gz", "wt") as file:
        rows = [f'"a fine film {number}\t1\n' for number in range(10)] + ["null\t0\n"]
        file.write("sentence\tlabel\n" + "".join(rows) + "".join(f"dull {number}\t0\n" for number in range(9)))
    (tmp_path / "dev.tsv").write_text('sentence\tlabel\nso-called "humour\t0\na joy\t1\n')
    dataset = load_splits(make_arguments(dataset_name=str(tmp_path)))
    assert dataset["test"]["text"][:] == ['so-called "humour', "a joy"]
    texts = {*dataset["train"]["text"], *dataset["validation"]["text"]}
    assert {'"a fine film 0', "null"} < texts
    assert len(texts) == 20
    assert dataset["train"].features["label"].names == ["0", "1"]


@pytest.mark.parametrize("name", ["missing.csv", "./missing", "/no/such/folder", "missing.tsv.gz"])
@pytest.mark.reliability("bad input")
def test_a_missing_file_is_named(name):
    with pytest.raises(FileNotFoundError, match=r"no data file there. Expected a file or a folder"):
        load_raw(DataArguments(dataset_name=name))


@pytest.mark.reliability("bad input")
def test_a_folder_without_data_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no data file there"):
        load_raw(DataArguments(dataset_name=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.csv", b""), ("train.csv", b"text,label\n"), ("train.tsv.gz", gzip.compress(b"text\tlabel\n", mtime=0)),
     ("train.json", b"[]"), ("train.jsonl", b"\n"), ("train.parquet", b"")],
)  # fmt: skip
@pytest.mark.reliability("bad input")
def test_a_file_without_rows_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} cannot be read: .* Expected .*at least one row"):
        load_raw(DataArguments(dataset_name=str(tmp_path)))


@pytest.mark.reliability("bad input")
def test_files_of_several_kinds_are_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n")
    (tmp_path / "test.json").write_text("[]")
    with pytest.raises(ValueError, match="several kinds"):
        load_raw(DataArguments(dataset_name=str(tmp_path)))


# Files for a saved adapter

LABELS = ["negative", "positive"]


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_are_numbered_as_the_adapter_numbers_them(tmp_path):
    file = write(tmp_path / "rows.csv", "text,label\ngood,positive \nbad,negative\nfine,positive\nsad,negative\n")
    rows = load_labelled_examples(file, ["positive", "neutral", "negative"])
    assert rows[:] == {"text": ["good", "bad", "fine", "sad"], "label": [0, 2, 0, 2]}
    assert rows.features["label"].names == ["positive", "neutral", "negative"]


@pytest.mark.parametrize("values", [[3, 1, 3, 1], [3.0, 1.0, 3.0, 1.0], ["3", "1", "3", "1"]])
def test_numbers_are_names(tmp_path, values):
    Dataset.from_dict({"text": list("abcd"), "label": values}).to_parquet(tmp_path / "rows.parquet")
    assert load_labelled_examples(tmp_path / "rows.parquet", ["1", "2", "3"])["label"][:] == [2, 0, 2, 0]


def test_booleans_are_names(tmp_path):
    Dataset.from_dict({"text": list("ab"), "label": [True, False]}).to_parquet(tmp_path / "rows.parquet")
    assert load_labelled_examples(tmp_path / "rows.parquet", ["False", "True"])["label"][:] == [1, 0]


def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path, capsys):
    lines = [f'{{"text": {text}, "label": {label}}}' for text, label in
             (('"good"', 1), ('" "', 1), ("null", 0), ('"bad"', 0), ('"odd"', -1), ('"odd"', "null"))]  # fmt: skip
    rows = load_labelled_examples(write(tmp_path / "rows.jsonl", "\n".join(lines)), ["0", "1"])
    assert rows[:] == {"text": ["good", "bad"], "label": [1, 0]}
    assert "4 of 6 rows have no label or no text and are left out." in capsys.readouterr().out


@pytest.mark.reliability("bad input")
def test_labels_that_the_adapter_does_not_know_are_named(tmp_path):
    file = write(tmp_path / "rows.csv", "text,label\na,positive\nb,neutral\nc,positive\nd,neutral\n")
    with pytest.raises(ValueError, match=r"labels \['neutral'\] are not among \['negative', 'positive'\]; correct"):
        load_labelled_examples(file, LABELS)


@pytest.mark.reliability("bad input")
def test_a_file_without_a_labelled_row_is_refused(tmp_path):
    file = write(tmp_path / "rows.csv", "text,label\na,\nb,\n")
    with pytest.raises(ValueError, match=r"No row of .*rows\.csv has both a text and a label"):
        load_labelled_examples(file, LABELS)


def test_each_line_of_a_text_file_is_a_text(tmp_path):
    text = "\ufeffone\r\n\ntwo \u2028 same\r\r\nthree\rsame\n"
    assert load_texts(write(tmp_path / "a.txt", text)) == ["one", "", "two \u2028 same", "three\rsame"]
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("eins\nzwei ä".encode()))
    assert load_texts(tmp_path / "b.txt.gz") == ["eins", "zwei ä"]


def test_the_texts_of_a_table_keep_their_rows(tmp_path):
    file = write(tmp_path / "rows.json", '[{"text": "a", "title": "x"}, {"text": null, "title": "y"}]')
    assert load_texts(file) == ["a", ""]
    assert load_texts(file, "title") == ["x", "y"]
    assert load_texts(file, "title", "text") == [("x", "a"), ("y", "")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "one,two\na,b\nc,d\n", r"Name the text_column: .* found \['one', 'two'\]"),
        ("a.md", "text", "no data file there. Expected a file"),
        ("a.txt", "", "a.txt is empty; expected at least one text"),
    ],
)
@pytest.mark.reliability("bad input")
def test_texts_that_cannot_be_told_are_refused(tmp_path, name, content, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_texts(write(tmp_path / name, content))


@pytest.mark.reliability("bad input")
def test_a_text_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes("schön".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt cannot be read: .*decode byte 0xf6 .* a text file in UTF-8"):
        load_texts(tmp_path / "a.txt")


def test_texts_are_found_beside_labels_and_in_files_of_pandas(tmp_path):
    rows = pd.DataFrame({"review": [f"film {number}" for number in range(12)], "opinion": ["good", "bad"] * 6})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    rows.to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        assert load_texts(tmp_path / name) == rows["review"].tolist()


def test_each_file_of_a_folder_belongs_to_the_split_that_its_name_begins_with(tmp_path):
    files = {name: tmp_path / name for name in ("Dev.csv", "notes.txt", "train-0.csv", "train-1.csv")}
    for file in files.values():
        file.write_text(CSV)
    data = DataArguments(dataset_name=str(tmp_path))
    found = dataset_arguments(data)["data_files"]
    names = {split: [file.rpartition("/")[2] for file in part] for split, part in found.items()}
    assert names == {"dev": ["Dev.csv"], "train": ["train-0.csv", "train-1.csv"]}
    assert {name: len(rows) for name, rows in rename_splits(load_raw(data)).items()} == {"validation": 40, "train": 80}


def test_shards_of_a_split_are_loaded_together(tmp_path):
    for part in range(2):
        rows = Dataset.from_list(ROWS[part::2])
        rows.to_parquet(tmp_path / f"train-0000{part}-of-00002.parquet")
    assert len(load(tmp_path)[0]) == 40


@pytest.mark.parametrize("missing", ["", "-1"])
def test_a_label_that_is_missing_in_a_csv_is_no_class(tmp_path, missing):
    (tmp_path / "rows.csv").write_text(CSV.replace("text 6,0", f"text 6,{missing}"))
    texts, names = load(tmp_path / "rows.csv")
    assert len(texts) == 39
    assert names == ["0", "1"]


def test_numbers_in_a_csv_are_ordered_as_numbers(tmp_path):
    rows = "".join(f"text {number},{number % 3 * 5}.0\n" for number in range(40))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    assert load(tmp_path / "rows.csv")[1] == ["0", "5", "10"]


# Documents for language modeling


def texts_of(documents) -> dict[str, list[str]]:
    return {name: rows["text"][:] for name, rows in documents.items()}


@pytest.mark.slow
def test_one_topic_keeps_the_splits_of_bbc_news(args):
    found = texts_of(load_documents(args.replace(dataset_name=BBC_NEWS, dataset_config_name="tech")))
    articles = load_bbc_news()
    for name, rows in articles.items():
        tech = rows.features["label"].str2int("tech")
        assert found[name] == [row["text"] for row in rows if row["label"] == tech]


def test_a_text_file_is_split_by_paragraph_and_each_is_kept_once(args, tmp_path):
    paragraphs = [f"Paragraph {number}\nhas two lines." for number in range(20)]
    file = tmp_path / "novel.txt"
    file.write_text("\r\n \r\n".join([*paragraphs, paragraphs[3]]) + "\n", encoding="utf-8")
    found = texts_of(load_documents(args.replace(dataset_name=str(file))))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 14, "validation": 2, "test": 4}
    assert sorted(chain.from_iterable(found.values())) == sorted(paragraphs)


def test_a_gzipped_text_file_and_a_byte_order_mark_are_read(args, tmp_path):
    file = tmp_path / "novel.txt.gz"
    file.write_bytes(gzip.compress("\n\n".join(f"{number} £" for number in range(10)).encode("utf-8-sig")))
    found = texts_of(load_documents(args.replace(dataset_name=str(file))))
    assert sorted(chain.from_iterable(found.values())) == [f"{number} £" for number in range(10)]


def test_a_table_gives_its_column_of_texts_and_blank_rows_are_left_out(args, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("number,words\n" + "".join(f"{number},words {number}\n" for number in range(10)) + "10, \n")
    found = texts_of(load_documents(args.replace(dataset_name=str(file))))
    assert sorted(chain.from_iterable(found.values())) == [f"words {number}" for number in range(10)]


def test_a_named_column_wins_over_one_called_text(args, monkeypatch):
    rows = Dataset.from_dict({"text": [f"a{n}" for n in range(12)], "body": [f"b{n}" for n in range(12)]})
    monkeypatch.setattr(files_module, "load_raw", lambda data: DatasetDict(train=rows))
    found = load_documents(args.replace(dataset_name="some/texts", text_column="body"))
    assert all(text.startswith("b") for text in chain.from_iterable(texts_of(found).values()))


def test_wikitext_comes_as_articles_and_what_straddles_splits_is_in_the_test_only(args, monkeypatch, capsys):
    def lines(*titles):
        return Dataset.from_dict({
            "text": [line for title in titles
                     for line in ("", f" = {title} = \n", f" Of {title} . \n", f" = = {title} = = \n", " More . \n")]
        })  # fmt: skip

    raw = DatasetDict(test=lines("A", "B"), train=lines("B", "C", "D"), validation=lines("E"))
    monkeypatch.setattr(files_module, "load_raw", lambda data: raw)
    found = texts_of(load_documents(args.replace(dataset_name=WIKITEXT, dataset_config_name="wikitext-2-raw-v1")))
    assert {name: [text[2] for text in rows] for name, rows in found.items()} == {
        "train": ["C", "D"], "validation": ["E"], "test": ["A", "B"],
    }  # fmt: skip
    assert found["train"][0] == "= C = \n Of C . \n = = C = = \n More ."
    assert "train: 1 of 3 rows stand in another split" in capsys.readouterr().out


def test_no_line_of_wikitext_is_lost():
    lines = ["", "before any title\n", " = Title = \n", " x = y = z \n", " = = Part = = \n", " text \n"]
    assert join_articles(lines) == ["before any title\n", " = Title = \n x = y = z \n = = Part = = \n text \n"]


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "latin.txt",
            b"caf\xe9",
            "latin.txt cannot be read: .*decode byte 0xe9 .* converts",
        ),
        ("plain.txt.gz", b"not gzipped", r"plain.txt.gz cannot be read: Not a gzipped file"),
        ("two.csv", b"a,b\n" + b"x,y\n" * 9, "Name the text_column: .*the columns are a: string, b: string"),
        (
            "none.csv",
            b"a,b\n" + b"1,2\n" * 9,
            "Name the text_column: .*found none; the columns are a: string",
        ),
        (None, b"", "No such file or directory: .*missing.txt"),
    ],
    ids=["not UTF-8", "not gzipped", "two columns", "no column", "no file"],
)
def test_texts_that_cannot_be_used_are_named(name, content, message, args, tmp_path):
    file = tmp_path / (name or "missing.txt")
    if name is not None:
        file.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_documents(args.replace(dataset_name=str(file)))


@pytest.mark.slow
@pytest.mark.reliability("bad input")
def test_an_unknown_topic_is_answered_with_the_topics(args):
    with pytest.raises(ValueError, match="'weather'; the topics of bbc-news are business, entertainment, politics"):
        load_documents(args.replace(dataset_name=BBC_NEWS, dataset_config_name="weather"))


@pytest.mark.reliability("fault")
def test_a_text_file_that_was_cut_off_is_named(args, tmp_path):
    file = tmp_path / "cut.txt.gz"
    file.write_bytes(gzip.compress(b"many words " * 1000)[:40])
    with pytest.raises(ValueError, match=r"cut.txt.gz cannot be read: Compressed file ended before"):
        load_documents(args.replace(dataset_name=str(file)))
