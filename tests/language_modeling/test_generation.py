import pytest
from datasets import Dataset

from peft_helpers.language_modeling.generation import first_words, generate_texts
from peft_helpers.language_modeling.task import LANGUAGE_MODELING
from peft_helpers.modeling import load_model

PROMPTS = ["a fine", "what a sad, cold and tired"]


@pytest.fixture
def language_model(args, tokenizer):
    return load_model(args, tokenizer, LANGUAGE_MODELING)


def test_each_text_goes_on_from_its_prompt_by_the_seed(language_model, tokenizer, recwarn, caplog):
    texts = generate_texts(language_model, tokenizer, PROMPTS, seed=1)
    assert all(text.startswith(prompt) and text != prompt for text, prompt in zip(texts, PROMPTS, strict=True))
    assert generate_texts(language_model, tokenizer, PROMPTS, seed=1) == texts
    assert generate_texts(language_model, tokenizer, PROMPTS, seed=2) != texts
    assert tokenizer.padding_side == "right"
    assert not [record for record in caplog.records if "pad" in record.getMessage() or "mask" in record.getMessage()]
    assert not recwarn


def test_prompts_are_padded_on_the_left_and_the_model_is_told(language_model, tokenizer, monkeypatch):
    given = {}
    monkeypatch.setattr(language_model, "generate", lambda **names: (given.update(names), names["input_ids"])[1])
    assert generate_texts(language_model, tokenizer, PROMPTS, seed=1) == PROMPTS
    mask = given["attention_mask"]
    assert mask[0].tolist() == sorted(mask[0].tolist())
    assert mask[:, -1].all()
    assert not mask.all()
    assert given["pad_token_id"] == tokenizer.pad_token_id


def test_prompts_are_the_first_words_of_the_documents():
    texts = Dataset.from_dict({"text": ["one two\nthree four five six seven eight nine", "short", "third", "fourth"]})
    assert first_words(texts) == ["one two three four five six seven eight", "short", "third"]


def test_a_prompt_of_a_script_without_spaces_is_cut():
    assert first_words(Dataset.from_dict({"text": ["\u6587" * 5000, "one two"]})) == ["\u6587" * 100, "one two"]
