import html

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from peft_helpers import load_bbc_news
from peft_helpers.sources.bbc_news import load_bbc_topic

pytestmark = pytest.mark.slow  # each reads and weighs 2,225 articles


@pytest.fixture(scope="module")
def splits():
    return load_bbc_news()


@pytest.mark.slow
def test_five_topics_in_three_stratified_splits(splits):
    assert {name: rows.num_rows for name, rows in splits.items()} == {"train": 1444, "validation": 202, "test": 426}
    assert splits["train"].features["label"].names == ["business", "entertainment", "politics", "sports", "tech"]
    shares = {name: [rows[:]["label"].count(label) / len(rows) for label in range(5)] for name, rows in splits.items()}
    for name in ("validation", "test"):
        assert shares[name] == pytest.approx(shares["train"], abs=0.01)


def test_no_article_stands_in_two_splits(splits):
    texts = {name: {" ".join(text.split()) for text in rows["text"]} for name, rows in splits.items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"sublinear_tf": True}, {"stop_words": "english"}, {"min_df": 2}])
def test_no_article_is_nearly_identical_to_one_that_is_held_out_from_it(options, splits):
    vectorizer = TfidfVectorizer(**options).fit(splits["train"]["text"])
    vectors = {name: vectorizer.transform(rows["text"]) for name, rows in splits.items()}
    for name, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert (vectors[name] @ vectors[other].T).max() <= 0.8


def test_what_is_left_out_is_counted(capsys):
    load_bbc_news.cache_clear()
    load_bbc_news()
    assert capsys.readouterr().out == (
        "train: 44 of 1,488 articles are nearly identical to a held-out one and are left out.\n"
        "validation: 11 of 213 articles are nearly identical to a held-out one and are left out.\n"
    )


def test_a_topic_is_that_part_of_the_same_splits(splits):
    topic = load_bbc_topic("tech")
    assert {name: rows.column_names for name, rows in topic.items()} == {name: ["text"] for name in splits}
    tech = splits["test"].features["label"].str2int("tech")
    assert topic["test"]["text"][:] == splits["test"].filter(lambda row: row["label"] == tech)["text"][:]


@pytest.mark.slow
def test_the_split_is_the_same_each_time(splits):
    load_bbc_news.cache_clear()
    assert load_bbc_news()["test"][:] == splits["test"][:]


def test_neither_mojibake_nor_html_entities_remain(splits):
    texts = [text for rows in splits.values() for text in rows["text"]]
    assert {character for text in texts for character in text if not character.isascii()} == set("£éóôã")
    assert not [text for text in texts if html.unescape(text) != text or "Â£" in text]
