import pytest
import torch
from conftest import BAD, GOOD
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from peft_helpers import prepare_splits, tokenize_dataset, tokenize_splits
from peft_helpers.tokenization import encode_texts, set_padding


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


def test_texts_are_truncated_and_no_end_is_appended(tokenizer, model):
    tokenizer.model_max_length = 3
    rows = tokenize_dataset(
        Dataset.from_dict({"text": ["the cast is a joy to watch", "good"], "label": [0, 1]}), tokenizer
    )
    assert [len(ids) for ids in rows["input_ids"]] == [3, len(tokenizer("good")["input_ids"])]
    assert tokenizer.eos_token_id not in rows["input_ids"][1]


def test_a_text_without_tokens_gets_one_that_is_attended_to(tokenizer, model):
    encoded = encode_texts(["", "good"], tokenizer)
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
    rows = [encode_texts(texts, tokenizer) for texts in ([text], [*TEXTS, text])]
    with torch.inference_mode():
        for row in rows:
            row.pop("overflow_to_sample_mapping")
        alone, batch = (peft_model(**tokenizer.pad(row, return_tensors="pt")).logits for row in rows)
    torch.testing.assert_close(alone[0], batch[-1], rtol=0, atol=1e-5)


def test_a_dataset_has_what_training_needs(tokenized, raw, tokenizer):
    train = tokenized["train"]
    assert set(train.column_names) == {"input_ids", "attention_mask", "labels", "length", "is_first"}
    assert train["input_ids"][:] == tokenizer(raw["train"]["text"][:])["input_ids"]
    assert train["length"][:] == [len(ids) for ids in train["input_ids"]]


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("good", "Expected a list of texts, found 'good'"),
        ([], r"Expected a list of texts, found \[\]"),
        (["good", None], "Text 1 is None; expected a string"),
        (["\ud83d film"], "Text 0 has half of a surrogate pair.*in position 0"),
        ([("good", "bad"), ("good", None)], r"Text 1 is \('good', None\); expected a string, or for a pair"),
        ([("good", "a \ud83d")], "Text 0 has half of a surrogate pair.*in position 6"),
    ],
)
def test_what_is_no_list_of_whole_texts_is_an_error(texts, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        encode_texts(texts, tokenizer)


def test_chunks_cover_a_long_text_and_keep_its_label(tokenizer, model):
    tokenizer.model_max_length = 8
    texts = ["good", GOOD[3], "", BAD[3]]
    rows = tokenize_dataset(Dataset.from_dict({"text": texts, "label": [1, 1, 0, 0]}), tokenizer, chunks=True)
    whole = [tokenizer(text, truncation=False)["input_ids"] or [tokenizer.pad_token_id] for text in texts]
    expected = []
    for ids, label in zip(whole, [1, 1, 0, 0], strict=True):
        chunks = [ids[start : start + 8] for start in range(0, len(ids), 8)]
        expected += [(chunk, label) for n, chunk in enumerate(chunks) if n == 0 or len(chunk) >= 2]
    assert len(expected) > len(texts)
    assert list(zip(rows["input_ids"], rows["labels"], strict=True)) == expected
    assert rows["length"][:] == [len(ids) for ids in rows["input_ids"]]
    assert rows["attention_mask"][:] == [[1] * len(ids) for ids in rows["input_ids"]]


def test_a_short_rest_is_left_out_unless_it_is_all_there_is(tokenizer, model):
    ids = tokenizer(GOOD[3])["input_ids"]
    dataset = Dataset.from_dict({"text": [GOOD[3]], "label": [0]})
    for max_length in (len(ids) - 1, 4 * len(ids)):
        tokenizer.model_max_length = max_length
        assert len(tokenize_dataset(dataset, tokenizer, chunks=True)) == 1


def test_only_the_training_texts_are_chunked(raw, args, tokenizer, model):
    tokenizer.model_max_length = 8
    dataset = prepare_splits(raw, args)
    rows = tokenize_splits(dataset, tokenizer)
    assert rows["train"].num_rows > dataset["train"].num_rows
    assert [rows[name].num_rows for name in ("validation", "test")] == [8, 16]


def test_a_tokenizer_that_reads_all_chunks_keeps_them_of_every_split(raw, args, tokenizer, tmp_path):
    read = AutoTokenizer.from_pretrained(args.model.model_name_or_path, model_max_length=8, average_chunks=True)
    read.save_pretrained(tmp_path)
    dataset = prepare_splits(raw, args)
    rows = tokenize_splits(dataset, AutoTokenizer.from_pretrained(tmp_path))
    for name in ("train", "validation", "test"):
        is_first = rows[name]["is_first"][:]
        assert sum(is_first) == dataset[name].num_rows < len(is_first)
    tokenizer.model_max_length = 8
    first = tokenize_dataset(dataset["test"], tokenizer)
    assert all(first["is_first"])
    assert first["input_ids"][:] == [row["input_ids"] for row in rows["test"] if row["is_first"]]


PAIRS = {"text": ["good", "a film"], "text_pair": ["a film", "good"], "label": [0, 1]}


def test_gpt2_reads_both_texts_of_a_pair_with_a_line_break_between_also_when_loaded_again(tokenizer, model, tmp_path):
    rows = tokenize_dataset(Dataset.from_dict(PAIRS), tokenizer)
    assert tokenizer.batch_decode(rows["input_ids"][:]) == ["good\na film", "a film\ngood"]
    assert rows["labels"][:] == [0, 1]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(PAIRS["text"], PAIRS["text_pair"])["input_ids"] == rows["input_ids"][:]
    assert loaded("good")["input_ids"] == tokenizer("good")["input_ids"]


@pytest.fixture
def bert_tokenizer():
    """A tokenizer with the templates of BERT."""
    words = {word: number for number, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "good", "a", "film"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_max_length=6,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def test_bert_gets_its_own_separators_and_segments(bert_tokenizer, model):
    set_padding(bert_tokenizer, model)
    rows = tokenize_dataset(Dataset.from_dict(PAIRS), bert_tokenizer)
    assert rows["input_ids"][:] == [[1, 3, 2, 4, 5, 2], [1, 4, 5, 2, 3, 2]]
    assert rows["token_type_ids"][:] == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]


def test_of_a_pair_the_longer_text_is_truncated_and_nothing_becomes_a_chunk(bert_tokenizer, model):
    dataset = Dataset.from_dict({"text": ["good"], "text_pair": ["a film a film"], "label": [1]})
    assert tokenize_dataset(dataset, bert_tokenizer, chunks=True)["input_ids"][:] == [[1, 3, 2, 4, 5, 2]]
