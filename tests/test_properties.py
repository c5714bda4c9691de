"""Properties that hold for any input: 300 drawn examples each, 50,000 with ``--hypothesis-profile=thorough``."""

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
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer
from transformers.trainer_utils import PredictionOutput

from peft_helpers import CLASSIFICATION, make_arguments, prepare_splits, training
from peft_helpers.metrics import ClassificationMetrics
from peft_helpers.modeling import load_model
from peft_helpers.tokenization import encode_texts, tokenize_batch

pytestmark = pytest.mark.slow

PIECES = ["a film", "good ", " ", "\n", "\0", "é", "漢", "😀", "\u202e", "<|endoftext|>", "<|end"]
TEXT = st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
TEXTS = st.lists(TEXT, min_size=1, max_size=6)
MAX_LENGTH = st.integers(1, 24)
ARGS = make_arguments()


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
    model = load_model(make_arguments(model_name_or_path=tiny_model_dir), tokenizer, CLASSIFICATION, LABELS)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", fan_in_fan_out=True, init_lora_weights=False)
    return get_peft_model(model, lora).eval()


# Tokenization


@pytest.mark.slow
@given(texts=TEXTS, max_length=MAX_LENGTH)
def test_each_text_has_tokens_that_depend_on_it_alone(tokenizer, classifier, texts, max_length):
    tokenizer.model_max_length = max_length
    rows = tokenize_batch({"text": texts, "label": list(range(len(texts)))}, tokenizer, chunks=False)
    assert rows["labels"] == list(range(len(texts)))
    assert rows["length"] == [len(ids) for ids in rows["input_ids"]]
    for text, ids, mask in zip(texts, rows["input_ids"], rows["attention_mask"], strict=True):
        assert 1 <= len(ids) <= max_length
        assert mask == [1] * len(ids)
        assert encode_texts([text], tokenizer)["input_ids"][0] == ids
        if text and len(ids) < max_length:
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.slow
@given(texts=st.lists(st.text(alphabet=st.characters(exclude_categories=()), max_size=8), min_size=1, max_size=4))
def test_any_string_is_encoded_but_halves_of_surrogate_pairs(tokenizer, classifier, texts):
    halves = [number for number, text in enumerate(texts) if re.search("[\ud800-\udfff]", text)]
    if halves:
        with pytest.raises(ValueError, match=f"Text {halves[0]} has half of a surrogate pair"):
            encode_texts(texts, tokenizer)
    else:
        assert len(encode_texts(texts, tokenizer)["input_ids"]) >= len(texts)


@pytest.mark.slow
@given(texts=TEXTS, max_length=MAX_LENGTH)
def test_chunks_cover_each_text_but_for_a_short_end(tokenizer, classifier, texts, max_length):
    tokenizer.model_max_length = max_length
    rows = tokenize_batch({"text": texts, "label": list(range(len(texts)))}, tokenizer, chunks=True)
    assert rows["labels"] == sorted(rows["labels"])
    assert rows["attention_mask"] == [[1] * length for length in rows["length"]]
    for number, text in enumerate(texts):
        parts = [ids for ids, label in zip(rows["input_ids"], rows["labels"], strict=True) if label == number]
        whole = tokenizer(text, truncation=False)["input_ids"] or [tokenizer.pad_token_id]
        covered = list(chain(*parts))
        assert covered == whole[: len(covered)]
        assert len(whole) - len(covered) < max_length / 4
        assert all(len(part) == max_length for part in parts[:-1])
        assert 1 <= len(parts[-1]) <= max_length


# Padding and the order of predictions


@pytest.mark.slow
@given(texts=TEXTS, others=TEXTS)
def test_the_logits_of_a_text_do_not_depend_on_its_batch(tokenizer, classifier, texts, others):
    tokenizer.model_max_length = 24

    def logits(batch: list[str]) -> torch.Tensor:
        encoded = encode_texts(batch, tokenizer)
        del encoded["overflow_to_sample_mapping"]
        with torch.inference_mode():
            return classifier(**tokenizer.pad(encoded, return_tensors="pt")).logits[-1]

    torch.testing.assert_close(logits([*others, *texts]), logits(texts[-1:]), rtol=0, atol=1e-5)


@pytest.mark.slow
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=30))
def test_predictions_come_back_in_the_order_of_the_rows(lengths):
    batches = []

    def predict(dataset: Dataset) -> PredictionOutput:
        batches.append(dataset["length"][:])
        rows = np.array(dataset["labels"][:])
        return PredictionOutput(np.stack([rows, -rows], axis=1), rows, {})

    dataset = Dataset.from_dict({"length": lengths, "labels": list(range(len(lengths)))})
    with (
        patch.object(training, "LengthTrainer", return_value=SimpleNamespace(predict=predict)),
        patch.object(training, "replace"),
        patch.object(training, "explain_out_of_memory", return_value=nullcontext()),
    ):
        output = training.predict(SimpleNamespace(), None, dataset, ARGS)
    assert batches == [sorted(lengths, reverse=True)]
    assert output.label_ids.tolist() == output.predictions[:, 0].tolist() == list(range(len(lengths)))


# Metrics

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@pytest.mark.slow
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
    metrics = ClassificationMetrics()._compute(predictions[order], references[order])
    assert metrics == pytest.approx(expected)
    assert all(0 <= value <= 1 for value in metrics.values())
    assert (metrics["f1"] == 1) == (metrics["accuracy"] == 1) == bool((references == predictions).all())


# Labels and splits, for fewer examples: each makes three datasets

FEW = settings(max_examples=settings().max_examples // 5)
LABEL = st.one_of(
    st.lists(st.integers(-5, 9) | st.none(), min_size=2, max_size=12),
    st.lists(st.booleans() | st.none(), min_size=2, max_size=12),
    st.lists(st.integers(-5, 9).map(float) | st.just(float("nan")), min_size=2, max_size=12),
    st.lists(st.text(max_size=3) | st.sampled_from([" a", "a", "-1", "1", ""]) | st.none(), min_size=2, max_size=12),
)


def name_label(label: object) -> str | None:
    if label is None or label != label or label == -1 or not str(label).strip():
        return None
    return str(int(label)) if isinstance(label, float) else str(label).strip()


@pytest.mark.slow
@FEW
@given(labels=LABEL)
def test_labels_become_classes_and_their_names_lead_back(labels):
    names = list(map(name_label, labels))
    strings = any(isinstance(label, str) for label in labels)
    if strings and all(re.fullmatch(r"-?\d+", known) for known in filter(None, names)):
        names = [None if known == "-1" else known for known in names]
    assume(len(set(names) - {None}) > 1)
    rows = 10 * len(labels)  # each class has enough for three splits
    raw = DatasetDict(train=Dataset.from_dict({"text": list(map(str, range(rows))), "label": labels * 10}))
    expected = {str(number): known for number, known in enumerate(names * 10) if known is not None}
    found = {}
    for split in prepare_splits(raw, ARGS).values():
        feature = split.features["label"]
        assert isinstance(feature, ClassLabel)
        assert sorted(feature.names) == sorted(set(expected.values()))
        found |= dict(zip(split["text"], feature.int2str(split["label"][:]), strict=True))
    assert found == expected


@pytest.mark.slow
@FEW
@given(
    labels=st.lists(st.integers(0, 5), max_size=50),
    sizes=st.tuples(st.integers(15, 30), st.integers(15, 30)).map(sorted),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_subset_has_the_proportions_and_lies_within_the_larger_ones(labels, sizes, seed):
    labels = [*range(6)] * 5 + labels
    rows = Dataset.from_dict({"text": [f"text {number}" for number in range(len(labels))], "label": labels})
    raw = DatasetDict(train=rows)
    for name in ("validation", "test"):
        raw[name] = Dataset.from_dict({"text": [name], "label": [max(labels, key=labels.count)]})
    share = np.bincount(labels) / len(labels)
    subsets = []
    for size in sizes:
        train = prepare_splits(raw, ARGS.replace(max_train_samples=size, seed=seed))["train"]
        assert len(train) == size
        # Of each class, half a row too many or too few; and the sum of these is shared out.
        difference = np.bincount(train["label"][:], minlength=6) - size * share
        assert np.all(np.abs(difference) <= 0.5 + share * 6 / 2 + 1e-9)
        subsets.append(set(train["text"]))
    assert subsets[0] <= subsets[1]


@pytest.mark.slow
@FEW
@given(
    texts=st.lists(st.integers(0, 30), min_size=20, max_size=50),
    given_splits=st.sets(st.sampled_from(["validation", "test"])),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_text_is_in_two_splits_and_none_is_lost(texts, given_splits, seed):
    texts = [*range(100, 130), *texts]
    rows = Dataset.from_dict({"text": [f"text {number}" for number in texts], "label": [n % 2 for n in texts]})
    raw = DatasetDict(train=rows, **{name: rows.select(range(4, 4 + len(name))) for name in given_splits})
    splits = prepare_splits(raw, ARGS.replace(seed=seed))
    found = [set(split["text"]) for split in splits.values()]
    assert set(splits) == {"train", "validation", "test"}
    assert set.union(*found) == set(rows["text"])
    assert sum(map(len, found)) == len(set.union(*found))
