import gzip
from itertools import chain

import pytest
from datasets import Dataset, DatasetDict

from peft_helpers import load_bbc_news
from peft_helpers.arguments import BBC_NEWS
from peft_helpers.sources import documents as documents_module
from peft_helpers.sources.documents import WIKITEXT, join_articles, load_documents


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
    monkeypatch.setattr(documents_module, "load_raw", lambda data: DatasetDict(train=rows))
    found = load_documents(args.replace(dataset_name="some/texts", text_column="body"))
    assert all(text.startswith("b") for text in chain.from_iterable(texts_of(found).values()))


def test_wikitext_comes_as_articles_and_what_straddles_splits_is_in_the_test_only(args, monkeypatch, capsys):
    def lines(*titles):
        return Dataset.from_dict({
            "text": [line for title in titles
                     for line in ("", f" = {title} = \n", f" Of {title} . \n", f" = = {title} = = \n", " More . \n")]
        })  # fmt: skip

    raw = DatasetDict(test=lines("A", "B"), train=lines("B", "C", "D"), validation=lines("E"))
    monkeypatch.setattr(documents_module, "load_raw", lambda data: raw)
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
