from itertools import chain

import pytest
from datasets import Dataset, DatasetDict

from peft_helpers.language_modeling.blocks import make_blocks


def to_splits(**texts: list[str]) -> DatasetDict:
    return DatasetDict({name: Dataset.from_dict({"text": rows}) for name, rows in texts.items()})


@pytest.mark.parametrize("block_size", [2, 7, 32])
def test_blocks_hold_the_tokens_of_the_documents_in_order_but_the_remainder(block_size, tokenizer):
    texts = ["a fine film", "bad", "what a sad, cold and tired story " * 30]
    expected = list(chain.from_iterable([*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts))
    tokenizer.model_max_length = block_size
    blocks = make_blocks(to_splits(test=texts), tokenizer)["test"]
    rows = blocks["input_ids"][:]
    kept = list(chain.from_iterable(rows))
    assert kept == expected[: len(kept)]
    assert 0 <= len(expected) - len(kept) < block_size
    assert {len(row) for row in rows} == {block_size}
    assert blocks["labels"][:] == rows
    assert blocks["length"][:] == [block_size] * len(rows)
    assert blocks["attention_mask"][:] == [[1] * block_size] * len(rows)


def test_a_document_may_be_longer_than_the_positions(tokenizer, caplog):
    blocks = make_blocks(to_splits(test=["what a sad story " * 100]), tokenizer)["test"]
    assert blocks.num_rows * 32 > 64
    assert "longer than the specified maximum" not in caplog.text


def test_there_are_no_more_blocks_than_the_limits_drawn_by_the_seed(args, tokenizer):
    texts = [f"text {number} of it" for number in range(30)]
    documents = to_splits(train=texts, validation=texts, test=texts)
    limited = args.replace(max_train_samples=5, max_eval_samples=3)
    tokenizer.model_max_length = 4
    blocks = make_blocks(documents, tokenizer, limited)
    assert {name: split.num_rows for name, split in blocks.items()} == {"train": 5, "validation": 3, "test": 3}
    assert make_blocks(documents, tokenizer, limited)["train"][:] == blocks["train"][:]
    assert make_blocks(documents, tokenizer, limited.replace(seed=1))["train"][:] != blocks["train"][:]
    alone = make_blocks(DatasetDict(test=documents["test"]), tokenizer, limited)["test"]
    assert alone[:] == blocks["test"][:]
    assert make_blocks(documents, tokenizer, args)["train"].num_rows > 5


@pytest.mark.reliability("bad input")
def test_documents_shorter_than_a_block_are_an_error_that_says_what_to_do(tokenizer):
    documents = to_splits(train=["what a sad story " * 10], test=["a story"])
    with pytest.raises(ValueError, match=r"of test make no block of 32 tokens.*smaller --block_size"):
        make_blocks(documents, tokenizer)
