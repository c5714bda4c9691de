"""Texts to token ids: padding for GPT-2, truncation, chunks of long texts, and texts without a single token."""

from datasets import Dataset, DatasetDict, IterableDataset
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase


def set_padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Pad on the right, with ``<|endoftext|>`` if there is no pad token, in the tokenizer and the model alike.

    GPT-2 numbers its positions from the left, so padding there would shift them. A new ``[PAD]`` token would resize the
    embedding, and the adapter would then carry all of it.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id


def encode_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> BatchEncoding:
    """Return ``input_ids`` and ``attention_mask`` of each text, in chunks of ``tokenizer.model_max_length`` tokens.

    ``overflow_to_sample_mapping`` tells which text each chunk belongs to. A text without tokens becomes one pad token
    with an attention mask of 1: the model pools it alike in every batch. Where the pad token is ``<|endoftext|>``, one
    at the end of a text has no effect: the model pools the token before it, and no earlier token sees it.

    Raises:
        ValueError: ``texts`` is not a list, is empty, or holds something else than a string of whole characters.
    """
    texts = check_texts(texts)
    encoded = tokenizer(texts, truncation=True, return_overflowing_tokens=True)
    for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True):
        if not ids:
            ids.append(tokenizer.pad_token_id)
            mask.append(1)
    return encoded


def check_texts(texts: list[str]) -> list[str]:
    """Return ``texts`` as a list, after checking that each is a string of whole characters.

    Raises:
        ValueError: it is not; the message has the number of the text.
    """
    if isinstance(texts, str) or len(texts) == 0:
        raise ValueError(f"Expected a list of texts, found {texts!r}.")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"Text {number} is {text!r}; expected a string.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Text {number} has half of a surrogate pair, {text[error.start]!r}, at position {error.start}; "
                "expected whole characters."
            ) from error
    return list(texts)


def tokenize_splits(dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Return validation and test truncated, and train in chunks, so that a long text teaches with all it says."""
    return DatasetDict(
        {name: tokenize_dataset(split, tokenizer, chunks=name == "train") for name, split in dataset.items()}
    )


def tokenize_dataset(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, chunks: bool = False
) -> Dataset | IterableDataset:
    """Return ``input_ids``, ``attention_mask``, ``labels`` and ``length``, in tokens, for each text.

    Each text is truncated to ``tokenizer.model_max_length`` tokens. With ``chunks``, what would be cut off follows as
    further examples with the text's label; the last one is left out if it is shorter than a quarter of that length.
    """
    return dataset.map(
        tokenize_batch,
        batched=True,
        fn_kwargs={"tokenizer": tokenizer, "chunks": chunks},
        remove_columns=["text", "label"],
    )


def tokenize_batch(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, chunks: bool) -> dict[str, list]:
    """Return the columns of `tokenize_dataset` for a batch of the columns ``text`` and ``label``."""
    encoded = encode_texts(batch["text"], tokenizer)
    texts = encoded.pop("overflow_to_sample_mapping")
    shortest = tokenizer.model_max_length / 4
    kept = [
        number
        for number, ids in enumerate(encoded["input_ids"])
        if number == 0 or texts[number] != texts[number - 1] or (chunks and len(ids) >= shortest)
    ]
    columns = {name: [values[number] for number in kept] for name, values in encoded.items()}
    columns["labels"] = [batch["label"][texts[number]] for number in kept]
    return columns | {"length": [len(ids) for ids in columns["input_ids"]]}
