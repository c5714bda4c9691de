import pytest
from transformers import AutoModelForCausalLM

from peft_helpers.language_modeling.generation import encode_prompts, generate_texts
from peft_helpers.tokenization import set_padding

PROMPTS = ["a fine", "what a sad, cold and tired"]


@pytest.fixture
def language_model(args, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(args.model.model_name_or_path)
    set_padding(tokenizer, model)
    return model


def test_each_text_goes_on_from_its_prompt_by_the_seed(language_model, tokenizer, recwarn, caplog):
    texts = generate_texts(language_model, tokenizer, PROMPTS, seed=1, max_new_tokens=8)
    assert all(text.startswith(prompt) and text != prompt for text, prompt in zip(texts, PROMPTS, strict=True))
    assert generate_texts(language_model, tokenizer, PROMPTS, seed=1, max_new_tokens=8) == texts
    assert generate_texts(language_model, tokenizer, PROMPTS, seed=2, max_new_tokens=8) != texts
    assert not [record for record in caplog.records if "pad" in record.getMessage() or "mask" in record.getMessage()]
    assert not recwarn


def test_prompts_are_padded_on_the_left_and_the_tokenizer_stays_as_it_was(language_model, tokenizer):
    encoded = encode_prompts(PROMPTS, tokenizer, language_model)
    assert encoded["attention_mask"][0].tolist() == sorted(encoded["attention_mask"][0].tolist())
    assert encoded["attention_mask"][:, -1].all()
    assert tokenizer.padding_side == "right"


def test_padding_changes_nothing_of_what_is_most_probable(language_model, tokenizer):
    together = encode_prompts(PROMPTS, tokenizer, language_model, 6)
    alone = encode_prompts(PROMPTS[:1], tokenizer, language_model, 6)
    outputs = [
        language_model.generate(**inputs, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        for inputs in (together, alone)
    ]
    assert outputs[0][0, -6:].tolist() == outputs[1][0, -6:].tolist()


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("one text", "Expected a list of prompts, each a string; found 'one text'"),
        ([], r"Expected a list of prompts, each a string; found \[\]"),
        ([None], r"found \[None\]"),
        (["good", ""], "The prompt '' has no token to go on from"),
        (
            ["bad " * 40],
            r"longest prompt has \d+ tokens; with 40 new ones that is more than the model's 64 positions",
        ),
    ],
)
def test_prompts_that_cannot_be_continued_are_named(prompts, message, language_model, tokenizer):
    with pytest.raises(ValueError, match=message):
        encode_prompts(prompts, tokenizer, language_model)


def test_prompt_and_new_tokens_may_fill_the_positions_but_not_more(language_model, tokenizer):
    tokens = encode_prompts(["good"], tokenizer, language_model)["input_ids"].shape[1]
    encode_prompts(["good"], tokenizer, language_model, 64 - tokens)
    with pytest.raises(ValueError, match=f"has {tokens} tokens; with {65 - tokens} new ones"):
        encode_prompts(["good"], tokenizer, language_model, 65 - tokens)


def test_the_model_is_told_which_tokens_are_padding(language_model, tokenizer, monkeypatch):
    inputs = encode_prompts(PROMPTS, tokenizer, language_model)
    given = {}
    monkeypatch.setattr(language_model, "generate", lambda **names: (given.update(names), names["input_ids"])[1])
    assert generate_texts(language_model, tokenizer, PROMPTS, seed=1) == PROMPTS
    assert given["pad_token_id"] == tokenizer.pad_token_id
    assert given["attention_mask"].tolist() == inputs["attention_mask"].tolist()
