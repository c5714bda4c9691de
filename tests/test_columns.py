import pytest
from datasets import Dataset, DatasetDict

from peft_helpers import make_arguments, prepare_splits
from peft_helpers.columns import join_texts

TEXTS = [f"text number {number}" for number in range(40)]


def make(**columns) -> DatasetDict:
    return DatasetDict(train=Dataset.from_dict(columns))


def test_the_only_candidates_are_found():
    raw = make(id=list(range(40)), sentence=TEXTS, kind=["a", "b"] * 20)
    assert prepare_splits(raw, make_arguments())["train"].features["label"].names == ["a", "b"]


@pytest.mark.reliability("bad input")
def test_several_text_columns_have_to_be_told_apart():
    raw = make(title=TEXTS, body=TEXTS, label=[0, 1] * 20)
    message = r"Name the text_column: .* found \['title', 'body'\]; .* title: string, body: string, label: int64"
    with pytest.raises(ValueError, match=message):
        prepare_splits(raw, make_arguments())
    assert prepare_splits(raw, make_arguments(text_column="body"))["train"].column_names == ["text", "label"]


@pytest.mark.reliability("bad input")
def test_no_label_column_is_an_error():
    with pytest.raises(ValueError, match=r"Name the label_column: .* found none; the columns are text: string"):
        prepare_splits(make(text=TEXTS), make_arguments())


@pytest.mark.parametrize("option", ["text_column", "label_column"])
@pytest.mark.reliability("bad input")
def test_a_named_column_that_is_missing_lists_the_columns(option):
    with pytest.raises(ValueError, match=rf"Name the {option}: .* found \['stars'\]; the columns are text"):
        prepare_splits(make(text=TEXTS, label=[0, 1] * 20), make_arguments(**{option: "stars"}))


PAIRS = {"question": [f"is it {text}?" for text in TEXTS], "answer": TEXTS, "label": [0, 1] * 20}


def test_the_other_text_column_is_found_beside_that_of_the_second_texts():
    for first, second in (("question", "answer"), ("answer", "question")):
        train = prepare_splits(make(**PAIRS), make_arguments(text_pair_column=second))["train"]
        assert set(train.column_names) == {"text", "text_pair", "label"}
        row = PAIRS[first].index(train["text"][0])
        assert PAIRS[second][row] == train["text_pair"][0]


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("column", ["answers", "question", "label"], ids=["missing", "the texts", "the labels"])
def test_a_pair_column_has_to_be_another_one(column):
    message = rf"text_pair_column: expected one column beside those of texts and labels, found \['{column}'\]; .*answer"
    with pytest.raises(ValueError, match=message):
        prepare_splits(make(**PAIRS), make_arguments(text_column="question", text_pair_column=column))


def test_a_pair_is_joined_and_one_that_lacks_a_text_is_nothing():
    batch = {"text": ["a", "b", None, " "], "text_pair": ["c", "", "d", "e"], "label": [0] * 4}
    assert join_texts(batch) == ["a\nc", "", "", ""]
    assert join_texts({"text": ["a", None]}) == ["a", ""]
