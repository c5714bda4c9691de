"""Texts to token ids: padding for GPT-2, truncation, and texts without a single token."""

from datasets import Dataset, DatasetDict
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


def encode_texts(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, return_overflowing_tokens: bool = False
) -> BatchEncoding:
    """Return ``input_ids`` and ``attention_mask`` of each text, at most ``max_length`` tokens, not padded.

    With ``return_overflowing_tokens``, what is cut follows as further passages, and ``overflow_to_sample_mapping``
    tells the text of each. A text without tokens becomes one pad token that is attended to: the model pools it alike
    in every batch. Where the pad token is ``<|endoftext|>``, one that ends a text has no effect: the model pools the
    token before it, whatever the padding, and no earlier token sees it.

    Raises:
        ValueError: ``texts`` is no list, is empty, or holds something else than a string of whole characters.
    """
    texts = _check_texts(texts)
    encoded = tokenizer(
        texts, truncation=True, max_length=max_length, return_overflowing_tokens=return_overflowing_tokens
    )
    for ids, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True):
        if not ids:
            ids.append(tokenizer.pad_token_id)
            mask.append(1)
    return encoded


def _check_texts(texts: list[str]) -> list[str]:
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
                "expected whole characters. text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') joins "
                "the halves and replaces those without the other."
            ) from error
    return list(texts)


def tokenize_dataset(
    dataset: Dataset | DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Dataset | DatasetDict:
    """Return ``dataset`` with ``input_ids``, ``attention_mask``, ``labels`` and two lengths, in tokens.

    ``length`` is that of ``input_ids``, by which `predict` forms batches; ``text_length`` that of the whole text.

    Raises:
        ValueError: the tokenizer is not one of the ``tokenizers`` library, which alone tells what was cut.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is not backed by the tokenizers library; choose another model.")
    return dataset.map(
        tokenize_batch, batched=True, fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=["text", "label"],
    )  # fmt: skip


def tokenize_batch(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list]:
    """Return the columns of `tokenize_dataset` for a batch of the columns ``text`` and ``label``."""
    encoded = encode_texts(batch["text"], tokenizer, max_length)
    special = tokenizer.num_special_tokens_to_add()  # every part that was cut off has its own
    length = [len(ids) for ids in encoded["input_ids"]]
    cut = [sum(len(part.ids) - special for part in encoding.overflowing) for encoding in encoded.encodings]
    text_length = [kept + lost for kept, lost in zip(length, cut, strict=True)]
    return dict(encoded) | {"length": length, "text_length": text_length, "labels": batch["label"]}


def tokenize_passages(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Return a row for each passage of ``max_length`` tokens of each text, with the text's label: rows to train on.

    A long text teaches with all it says rather than with its beginning only. The last passage is left out when it is
    shorter than a quarter of ``max_length``.
    """
    return dataset.map(
        tokenize_passages_batch, batched=True, fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=dataset.column_names,
    )  # fmt: skip


def tokenize_passages_batch(
    batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list]:
    """Return the columns of `tokenize_passages` for a batch of the columns ``text`` and ``label``."""
    encoded = encode_texts(batch["text"], tokenizer, max_length, return_overflowing_tokens=True)
    texts = encoded.pop("overflow_to_sample_mapping")
    kept = [
        number
        for number, ids in enumerate(encoded["input_ids"])
        if number == 0 or texts[number] != texts[number - 1] or len(ids) >= max_length / 4
    ]
    rows = {name: [values[number] for number in kept] for name, values in encoded.items()}
    rows["labels"] = [batch["label"][texts[number]] for number in kept]
    return rows | {"length": [len(ids) for ids in rows["input_ids"]]}
