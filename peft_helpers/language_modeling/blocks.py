"""Documents to blocks of tokens, all of the same length."""

from itertools import chain

from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from peft_helpers.arguments import Arguments


def make_blocks(
    documents: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: Arguments | None = None
) -> DatasetDict:
    """Return the documents of each split, column ``text``, as blocks of ``tokenizer.model_max_length`` tokens.

    Documents are joined, each closed by the end-of-text token, and cut. What is left at the end of every 1,000
    documents is dropped, so that the mean loss of blocks is that of tokens. The columns are those of
    `tokenize_dataset`; ``labels`` are the ``input_ids``, since the model shifts them itself. With ``args``, there are
    at most ``max_train_samples`` blocks to train on and ``max_eval_samples`` in the other splits, drawn by ``seed``.

    Raises:
        ValueError: a split makes no block.
    """
    blocks = documents.map(cut_blocks, batched=True, fn_kwargs={"tokenizer": tokenizer}, remove_columns=["text"])
    for name, split in blocks.items():
        if split.num_rows == 0:
            raise ValueError(
                f"The documents of {name} make no block of {tokenizer.model_max_length} tokens. Choose a smaller "
                "--block_size, or use more or longer documents."
            )
        limit = args and (args.data.max_train_samples if name == "train" else args.data.max_eval_samples)
        if limit and limit < split.num_rows:
            blocks[name] = split.shuffle(seed=args.training.seed).select(range(limit))
    return blocks


def cut_blocks(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase) -> dict[str, list]:
    """Return the columns of `make_blocks` for a batch of the column ``text``."""
    size = tokenizer.model_max_length
    # A document may be longer than the model's positions, of which the tokenizer would warn: the blocks are not.
    encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
    ids = list(chain.from_iterable([*document, tokenizer.eos_token_id] for document in encoded))
    blocks = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    attention_mask, length = [[1] * size] * len(blocks), [size] * len(blocks)
    return {"input_ids": blocks, "attention_mask": attention_mask, "labels": blocks, "length": length}
