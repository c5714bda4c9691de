import pytest
import torch
from conftest import BAD, GOOD
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from peft_helpers import encode_texts, prepare_splits, set_padding, tokenize_dataset, tokenize_passages


def test_padding_is_set_on_tokenizer_and_model_without_resizing(tokenizer, model):
    tokenizer.padding_side, tokenizer.pad_token, model.config.pad_token_id = "left", None, None
    set_padding(tokenizer, model)
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.config.pad_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings


def test_an_existing_pad_token_is_kept(tokenizer, model):
    tokenizer.pad_token = "a"
    set_padding(tokenizer, model)
    assert model.config.pad_token_id == tokenizer.convert_tokens_to_ids("a")


def test_texts_are_cut_at_max_length_and_no_end_is_appended(tokenizer, model):
    encoded = encode_texts(["the cast is a joy to watch", "good"], tokenizer, max_length=3)
    assert [len(ids) for ids in encoded["input_ids"]] == [3, len(tokenizer("good")["input_ids"])]
    assert tokenizer.eos_token_id not in encoded["input_ids"][1]


def test_a_text_without_tokens_gets_one_that_is_attended_to(tokenizer, model):
    encoded = encode_texts(["", "good"], tokenizer, max_length=8)
    assert encoded["input_ids"][0] == [tokenizer.pad_token_id]
    assert encoded["attention_mask"][0] == [1]


TEXTS = [
    "",
    " ",
    "good",
    "the cast is a joy to watch from start to end",
    "a film<|endoftext|>",
    "<|endoftext|>",
    "\0é漢",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_row_gives_the_same_logits_alone_and_in_a_batch(text, tokenizer, peft_model):
    peft_model.eval()
    rows = [encode_texts([text], tokenizer, 32), encode_texts([*TEXTS, text], tokenizer, 32)]
    with torch.inference_mode():
        alone, batch = (peft_model(**tokenizer.pad(row, return_tensors="pt")).logits for row in rows)
    torch.testing.assert_close(alone[0], batch[-1], rtol=0, atol=1e-5)


def test_dataset_has_what_training_and_the_figure_need(tokenized, raw, tokenizer):
    train = tokenized["train"]
    assert set(train.column_names) == {"input_ids", "attention_mask", "labels", "length", "text_length"}
    assert train["input_ids"][:] == tokenizer(raw["train"]["text"][:])["input_ids"]
    assert train["length"][:] == [len(ids) for ids in train["input_ids"]]


def test_text_length_counts_what_is_cut(raw, args, tokenizer, model):
    short = tokenize_dataset(prepare_splits(raw, args), tokenizer, max_length=4)["train"]
    whole = [len(ids) for ids in tokenizer(raw["train"]["text"][:])["input_ids"]]
    assert max(whole) > 8
    assert short["text_length"][:] == whole
    assert short["length"][:] == [min(length, 4) for length in whole]


def test_special_tokens_of_what_is_cut_are_not_counted(tokenizer, model):
    eos = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    texts = ["the cast is a joy to watch from start to end", "good"]
    dataset = Dataset.from_dict({"text": texts, "label": [0, 1]})
    whole = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    assert tokenize_dataset(dataset, tokenizer, max_length=4)["text_length"][:] == whole


@pytest.mark.reliability("bad input")
def test_a_tokenizer_that_cannot_tell_what_was_cut_is_refused(tokenizer, raw, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="not backed by the tokenizers library"):
        tokenize_dataset(raw, tokenizer, max_length=4)


def test_passages_cover_a_long_text_and_keep_its_label(tokenizer, model):
    texts = ["good", GOOD[3], "", BAD[3]]
    rows = tokenize_passages(Dataset.from_dict({"text": texts, "label": [1, 1, 0, 0]}), tokenizer, max_length=8)
    whole = [tokenizer(text)["input_ids"] or [tokenizer.pad_token_id] for text in texts]
    expected = []
    for ids, label in zip(whole, [1, 1, 0, 0], strict=True):
        passages = [ids[start : start + 8] for start in range(0, len(ids), 8)]
        expected += [(passage, label) for n, passage in enumerate(passages) if n == 0 or len(passage) >= 2]
    assert len(expected) > len(texts)
    assert list(zip(rows["input_ids"], rows["labels"], strict=True)) == expected
    assert rows["length"][:] == [len(ids) for ids in rows["input_ids"]]
    assert rows["attention_mask"][:] == [[1] * len(ids) for ids in rows["input_ids"]]


def test_a_short_rest_is_left_out_unless_it_is_all_there_is(tokenizer, model):
    ids = tokenizer(GOOD[3])["input_ids"]
    dataset = Dataset.from_dict({"text": [GOOD[3]], "label": [0]})
    assert len(tokenize_passages(dataset, tokenizer, max_length=len(ids) - 1)) == 1
    assert len(tokenize_passages(dataset, tokenizer, max_length=4 * len(ids))) == 1
