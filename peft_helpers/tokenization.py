"""Texts to token ids: padding for GPT-2, truncation, chunks of long texts, and texts without a single token."""

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

Text = str | tuple[str, str]  # or a pair


def set_padding(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Pad on the right, with ``<|endoftext|>`` if there is no pad token, in the tokenizer and the model alike.

    GPT-2 numbers its positions from the left, so padding there would shift them. A new ``[PAD]`` token would resize the
    embedding, and the adapter would then carry all of it. A tokenizer without a separator of pairs gets a line break.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if tokenizer.num_special_tokens_to_add(pair=True) == 0:
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.tokenize("\n")}
        template = TemplateProcessing(single="$A", pair=["$A", *ids, "$B"], special_tokens=[*ids.items()])
        tokenizer.backend_tokenizer.post_processor = template


def encode_texts(texts: list[Text], tokenizer: PreTrainedTokenizerBase) -> BatchEncoding:
    """Return ``input_ids`` and ``attention_mask`` of each text, in chunks of ``tokenizer.model_max_length`` tokens.

    ``overflow_to_sample_mapping`` tells which text each chunk belongs to. Pairs have no chunks: the longer text of
    each is truncated. A text without tokens becomes one pad token with an attention mask of 1, so that the model pools
    it alike in every batch. ``<|endoftext|>`` at the end of a text has no effect where it is the pad token.
    Anything but a list of strings of whole characters, or of pairs of them, is a ValueError; so is an empty one.
    """
    _check_texts(texts)
    encoded = tokenizer(list(texts), truncation=True, return_overflowing_tokens=isinstance(texts[0], str))
    for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True):
        if not ids:
            ids.append(tokenizer.pad_token_id)
            mask.append(1)
    return encoded


def _check_texts(texts: list[Text]) -> None:
    if isinstance(texts, str) or len(texts) == 0:
        raise ValueError(f"Expected a list of texts, found {texts!r}.")
    for number, text in enumerate(texts):
        parts = text if isinstance(text, tuple) else (text,)
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"Text {number} is {text!r}; expected a string, or for a pair a tuple of two.")
        try:
            "".join(parts).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"Text {number} has half of a surrogate pair: {error}") from error


def tokenize_splits(dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """Return train in chunks, so that a long text teaches with all it says, the others as the tokenizer is to read."""
    return DatasetDict({name: tokenize_dataset(split, tokenizer, name == "train") for name, split in dataset.items()})


def tokenize_dataset(
    dataset: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, chunks: bool = False
) -> Dataset | IterableDataset:
    """Return ``input_ids``, ``attention_mask``, ``labels``, ``length``, in tokens, and ``is_first`` for each text.

    Each text is truncated to ``tokenizer.model_max_length`` tokens. With ``chunks``, or a tokenizer loaded with
    ``average_chunks=True``, what would be cut off follows as further examples with the text's label, not ``is_first``;
    the last one is left out if it is shorter than a quarter of that length.
    """
    options = {"tokenizer": tokenizer, "chunks": chunks}
    return dataset.map(tokenize_batch, batched=True, fn_kwargs=options, remove_columns=dataset.column_names)


def tokenize_batch(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, chunks: bool) -> dict[str, list]:
    """Return the columns of `tokenize_dataset` for a batch of those of `prepare_splits`; ``text`` may have pairs."""
    texts = list(zip(batch["text"], batch["text_pair"], strict=True)) if "text_pair" in batch else batch["text"]
    encoded = encode_texts(texts, tokenizer)
    numbers = encoded.pop("overflow_to_sample_mapping", range(len(texts)))
    is_first, lengths = np.diff(numbers, prepend=-1) > 0, np.array([len(ids) for ids in encoded["input_ids"]])
    chunks = chunks or tokenizer.init_kwargs.get("average_chunks", False)
    kept = np.flatnonzero(is_first | (chunks & (lengths >= tokenizer.model_max_length / 4)))
    columns = {name: [values[number] for number in kept] for name, values in encoded.items()}
    columns["labels"] = [batch["label"][numbers[number]] for number in kept]
    return columns | {"length": lengths[kept].tolist(), "is_first": is_first[kept].tolist()}
