"""Properties that hold for any input: 1,000 drawn examples each, 50,000 with ``--hypothesis-profile=thorough``."""

import re
from contextlib import nullcontext
from itertools import chain
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import LABELS
from datasets import ClassLabel, Dataset, DatasetDict, disable_progress_bars, enable_progress_bars
from datasets.fingerprint import Hasher
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer
from transformers.trainer_utils import PredictionOutput

import peft_helpers as helpers
from peft_helpers import prediction
from peft_helpers.data import encode_labels, stratified_order
from peft_helpers.tokenization import tokenize_batch, tokenize_passages_batch

PIECES = ["a film", "good ", " ", "\n", "\0", "é", "漢", "😀", "\u202e", "<|endoftext|>", "<|end"]
TEXT = st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
TEXTS = st.lists(TEXT, min_size=1, max_size=6)
MAX_LENGTH = st.integers(1, 24)


@pytest.fixture(scope="module", autouse=True)
def quick_datasets():
    """Without progress bars, and without the fingerprints of tables, which name cache files that are not made here."""
    disable_progress_bars()
    with patch.object(Hasher, "hash", return_value="0"):
        yield
    enable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def classifier(tiny_model_dir, tokenizer):
    model = helpers.load_base_model(helpers.Arguments(model_name_or_path=tiny_model_dir), LABELS, tokenizer)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", fan_in_fan_out=True, init_lora_weights=False)
    return get_peft_model(model, lora).eval()


# Tokenization


@given(texts=TEXTS, max_length=MAX_LENGTH)
def test_each_text_has_tokens_that_depend_on_it_alone(tokenizer, classifier, texts, max_length):
    encoded = helpers.encode_texts(texts, tokenizer, max_length)
    for text, ids, mask in zip(texts, encoded["input_ids"], encoded["attention_mask"], strict=True):
        assert 1 <= len(ids) <= max_length
        assert mask == [1] * len(ids)
        assert helpers.encode_texts([text], tokenizer, max_length)["input_ids"] == [ids]
        if text and len(ids) < max_length:
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@given(texts=st.lists(st.text(alphabet=st.characters(exclude_categories=()), max_size=8), min_size=1, max_size=4))
def test_any_string_is_encoded_but_halves_of_surrogate_pairs(tokenizer, classifier, texts):
    halves = [number for number, text in enumerate(texts) if re.search("[\ud800-\udfff]", text)]
    if halves:
        with pytest.raises(ValueError, match=f"Text {halves[0]} has half of a surrogate pair"):
            helpers.encode_texts(texts, tokenizer, 16)
    else:
        assert len(helpers.encode_texts(texts, tokenizer, 16)["input_ids"]) == len(texts)


@given(texts=TEXTS, max_length=MAX_LENGTH)
def test_lengths_count_what_is_kept_and_what_there_was(tokenizer, classifier, texts, max_length):
    rows = tokenize_batch({"text": texts, "label": [0] * len(texts)}, tokenizer, max_length)
    whole = [max(1, len(tokenizer(text)["input_ids"])) for text in texts]
    assert rows["text_length"] == whole
    assert rows["length"] == [len(ids) for ids in rows["input_ids"]] == [min(length, max_length) for length in whole]


@given(texts=TEXTS, max_length=MAX_LENGTH)
def test_passages_cover_each_text_but_for_a_short_end(tokenizer, classifier, texts, max_length):
    rows = tokenize_passages_batch({"text": texts, "label": list(range(len(texts)))}, tokenizer, max_length)
    assert rows["labels"] == sorted(rows["labels"])
    assert rows["attention_mask"] == [[1] * length for length in rows["length"]]
    for number, text in enumerate(texts):
        parts = [ids for ids, label in zip(rows["input_ids"], rows["labels"], strict=True) if label == number]
        whole, covered = tokenizer(text)["input_ids"] or [tokenizer.pad_token_id], list(chain(*parts))
        assert covered == whole[: len(covered)]
        assert len(whole) - len(covered) < max_length / 4
        assert all(len(part) == max_length for part in parts[:-1])
        assert 1 <= len(parts[-1]) <= max_length


# Padding and the order of predictions


@given(texts=TEXTS, others=TEXTS)
def test_the_logits_of_a_text_do_not_depend_on_its_batch(tokenizer, classifier, texts, others):
    def logits(batch: list[str]) -> torch.Tensor:
        encoded = helpers.encode_texts(batch, tokenizer, 24)
        with torch.inference_mode():
            return classifier(**tokenizer.pad(encoded, return_tensors="pt")).logits

    torch.testing.assert_close(logits([*others, *texts])[-1:], logits(texts[-1:]), rtol=0, atol=1e-5)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_predictions_come_back_in_the_order_of_the_rows(lengths):
    batches = []

    def predict(dataset: Dataset) -> PredictionOutput:
        batches.append(dataset["length"][:])
        rows = np.array(dataset["labels"][:])
        return PredictionOutput(np.stack([rows, -rows], axis=1), rows, {})

    dataset = Dataset.from_dict({"length": lengths, "labels": list(range(len(lengths)))})
    with (
        patch.object(prediction, "LengthTrainer", return_value=SimpleNamespace(predict=predict)),
        patch.object(prediction, "OneDeviceArguments"),
        patch.object(prediction, "explain_out_of_memory", return_value=nullcontext()),
    ):
        output = helpers.predict(None, None, dataset, helpers.Arguments())
    assert batches == [sorted(lengths, reverse=True)]
    assert output.label_ids.tolist() == output.predictions[:, 0].tolist() == list(range(len(lengths)))


# Metrics

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(rows=ROWS, seed=st.integers(0, 2**32 - 1))
def test_metrics_equal_their_definition_in_any_order_of_the_rows(rows, seed):
    references, predictions = np.array(rows).T
    labels = sorted(set(references.tolist()))
    right = {label: np.sum((references == label) & (predictions == label)) for label in labels}
    precision = [right[label] / max(1, np.sum(predictions == label)) for label in labels]
    recall = [right[label] / np.sum(references == label) for label in labels]
    f1 = [2 * right[label] / (np.sum(predictions == label) + np.sum(references == label)) for label in labels]
    expected = {
        "accuracy": np.mean(references == predictions), "precision": np.mean(precision), "recall": np.mean(recall),
        "f1": np.mean(f1),
    }  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(rows))
    metrics = helpers.ClassificationMetrics()._compute(predictions[order], references[order])
    assert metrics == pytest.approx(expected)
    assert all(0 <= value <= 1 for value in metrics.values())
    assert (metrics["f1"] == 1) == (metrics["accuracy"] == 1) == bool((references == predictions).all())


# Labels and splits

LABEL = st.one_of(
    st.lists(st.integers(-5, 9) | st.none(), min_size=1, max_size=12),
    st.lists(st.booleans() | st.none(), min_size=1, max_size=12),
    st.lists(st.integers(-5, 9).map(float) | st.just(float("nan")), min_size=1, max_size=12),
    st.lists(st.text(max_size=3) | st.sampled_from([" a", "a", "-1", "1", ""]) | st.none(), min_size=1, max_size=12),
)


@given(labels=LABEL)
def test_labels_become_classes_and_their_names_lead_back(labels):
    labels = labels * 2  # classes recur
    raw = DatasetDict(train=Dataset.from_dict({"text": list(map(str, range(len(labels)))), "label": labels}))

    def name(label) -> str | None:
        if label is None or label != label or label == -1 or not str(label).strip():
            return None
        return str(int(label)) if isinstance(label, float) else str(label).strip()

    names = list(map(name, labels))
    strings = any(isinstance(label, str) for label in labels)
    if strings and all(re.fullmatch(r"-?\d+", known) for known in filter(None, names)):
        names = [None if known == "-1" else known for known in names]
    expected = {str(number): known for number, known in enumerate(names) if known is not None}
    encoded = encode_labels(raw, "text", "label")
    if not expected:
        assert not encoded
        return
    feature = encoded["train"].features["label"]
    assert isinstance(feature, ClassLabel)
    assert set(feature.names) == set(expected.values())
    assert len(feature.names) == len(set(feature.names))
    assert dict(zip(encoded["train"]["text"], feature.int2str(encoded["train"]["label"][:]), strict=True)) == expected


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=80), seed=st.integers(0, 2**32 - 1))
def test_every_beginning_of_a_stratified_order_has_the_proportions(labels, seed):
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    counts = np.cumsum(np.eye(6)[np.array(labels)[order]], axis=0)
    share, classes = counts[-1] / len(labels), np.count_nonzero(counts[-1])
    expected = np.arange(1, len(labels) + 1)[:, None] * share
    # Of each class, half a row too many or too few; and the sum of these is shared out.
    assert np.all(np.abs(counts - expected) <= 0.5 + share * classes / 2 + 1e-9)
    if classes <= 2:
        assert np.all(np.abs(counts - expected) <= 1 + 1e-9)


@given(
    texts=st.lists(st.integers(0, 30), min_size=8, max_size=50), given_splits=st.sets(st.sampled_from("vt")),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_no_text_is_in_two_splits_and_none_is_lost(texts, given_splits, seed):
    rows = Dataset.from_dict({"text": [f"text {number}" for number in texts], "label": [n % 2 for n in texts]})
    raw = DatasetDict(train=rows)
    for name in sorted(given_splits):
        raw[{"v": "validation", "t": "test"}[name]] = rows.select(range(4))
    splits = helpers.data._drop_straddling_texts(helpers.data._carve_missing_splits(raw, helpers.Arguments(seed=seed)))
    found = [set(split["text"]) for split in splits.values()]
    assert set(splits) == {"train", "validation", "test"}
    assert set.union(*found) == set(rows["text"])
    assert sum(map(len, found)) == len(set.union(*found))
