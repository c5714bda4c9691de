import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM

from peft_helpers.analysis.plots import CLASSICAL, FROZEN, MAJORITY, PROMPTED
from peft_helpers.comparison import baselines
from peft_helpers.comparison.baselines import (
    BASELINES,
    CONTENT_FREE,
    classify_with_prompts,
    classify_with_tfidf,
    plan_baselines,
    run_baseline,
    score_answers,
)
from peft_helpers.data import prepare_splits
from peft_helpers.modeling import prepare_model


@pytest.fixture
def dataset(raw, args):
    return prepare_splits(raw, args)


def test_the_classical_model_learns_words_and_answers_in_order(dataset):
    output, weights = classify_with_tfidf(dataset, seed=0)
    assert output.label_ids.tolist() == dataset["test"]["label"][:]
    assert (np.argmax(output.predictions, axis=-1) == output.label_ids).mean() > 0.8
    np.testing.assert_allclose(output.predictions.sum(axis=1), 1)
    assert weights > 2


def test_test_examples_choose_nothing(dataset):
    """With other labels on the test examples, the predictions are the same."""
    flipped = dataset["test"].map(lambda row: {"label": 1 - row["label"]})
    output, _ = classify_with_tfidf(dataset, seed=0)
    other, _ = classify_with_tfidf(DatasetDict(dataset | {"test": flipped}), seed=0)
    np.testing.assert_array_equal(output.predictions, other.predictions)


def test_a_label_that_train_lacks_keeps_its_column():
    rows = {"text": ["good film", "fine film", "bad film", "sad film"] * 3, "label": [2, 2, 0, 0] * 3}
    split = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=["bad", "so-so", "good"]))
    output, _ = classify_with_tfidf(DatasetDict(train=split, test=split), seed=0)
    assert output.predictions.shape == (12, 3)
    assert (output.predictions[:, 1] == 0).all()
    assert np.argmax(output.predictions, axis=-1).tolist() == rows["label"]


@pytest.mark.parametrize("name", BASELINES)
def test_the_results_look_like_those_of_a_method(name, dataset, tokenizer, args):
    row = run_baseline(name, dataset, tokenizer, args)
    hits = [p == t for p, t in zip(row["predictions"], dataset["test"]["label"][:], strict=True)]
    assert row["accuracy"] == sum(hits) / len(hits)
    assert (row["trainable_parameters"] > 0) == (name in (CLASSICAL, FROZEN))
    assert row["accuracy"] == 0.5 if name == MAJORITY else row["train_seconds"] > 0
    if name in (CLASSICAL, FROZEN):
        assert row["accuracy"] > 0.8  # four words, or one, tell the labels apart


def test_the_classical_model_reads_both_texts_of_a_pair():
    columns = {"text": ["same"] * 12, "text_pair": ["good film", "bad film"] * 6, "label": [1, 0] * 6}
    split = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=["bad", "good"]))
    output, _ = classify_with_tfidf(DatasetDict(train=split, test=split), seed=0)
    assert np.argmax(output.predictions, axis=-1).tolist() == columns["label"]


def test_frozen_features_are_those_of_the_texts_in_their_order(dataset, tokenizer, args, monkeypatch):
    """Where the features of the test are those of its labels, every answer is right."""
    known = [np.array([[label, 1 - label] for label in dataset[name]["label"]]) for name in ("train", "test")]
    monkeypatch.setattr(baselines, "mean_hidden_states", lambda *_: known.pop(0))
    row = run_baseline(FROZEN, dataset, tokenizer, args)
    assert (row["accuracy"], row["trainable_parameters"]) == (1, 3)


def test_a_model_that_is_no_language_model_is_not_prompted(args, tmp_path):
    assert plan_baselines(args) == [MAJORITY, CLASSICAL, FROZEN, PROMPTED]
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=300, **shape)).save_pretrained(tmp_path)
    assert plan_baselines(args.replace(model_name_or_path=str(tmp_path))) == [MAJORITY, CLASSICAL, FROZEN]


TEXTS = ["good", "what a lovely, warm and funny story", "bad", "the cast is a joy to watch from start to end" * 3]


@pytest.fixture
def language_model(args, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(args.model.model_name_or_path)
    prepare_model(model, tokenizer)
    return model


def test_an_answer_scores_the_sum_of_its_tokens_after_the_prompt(language_model, tokenizer):
    prompts, answers = tokenizer(TEXTS)["input_ids"], tokenizer([" good", " very bad story", " x", " bad"])["input_ids"]
    assert len(answers[1]) > 2
    pairs = list(zip(prompts, answers, strict=True))
    scores = score_answers(language_model, tokenizer, pairs, max_rows=3)
    for score, (prompt, answer) in zip(scores, pairs, strict=True):
        ids = torch.tensor([[*prompt, *answer][-64:]])  # the positions of the model
        with torch.no_grad():
            tokens = language_model(ids).logits[0].log_softmax(-1)
        expected = sum(tokens[place - 1, ids[0, place]] for place in range(ids.shape[1] - len(answer), ids.shape[1]))
        assert score == pytest.approx(float(expected), abs=1e-4)


def test_calibration_takes_away_what_the_names_get_without_content(tokenizer, args, monkeypatch):
    """Zhao et al. 2021: each probability is divided by its mean over inputs without content."""
    log = np.log(np.array([[0.7, 0.3], [0.8, 0.2], [0.9, 0.1], [0.7, 0.3], [0.9, 0.1]])) - 5  # of all other answers
    read = []

    def answer(model, tokenizer, pairs, max_rows):
        read.extend(tokenizer.decode([*prompt, *name]) for prompt, name in pairs)
        return log.ravel()

    monkeypatch.setattr(baselines, "score_answers", answer)
    rows = {"text": ["one", "two"], "label": [1, 0]}
    split = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=["no", "yes"]))
    output, weights = classify_with_prompts(DatasetDict(train=split, test=split), tokenizer, args)
    np.testing.assert_allclose(output.predictions, np.log([[0.7 / 0.8, 0.3 / 0.2], [0.9 / 0.8, 0.1 / 0.2]]) - np.log(3))
    assert (np.argmax(output.predictions, axis=1).tolist(), output.label_ids.tolist(), weights) == ([1, 0], [1, 0], 0)
    texts = [*CONTENT_FREE, "one", "two"]
    assert read == [f"{text}{baselines.QUESTION} {name}" for text in texts for name in ("no", "yes")]


def test_prompts_longer_than_the_model_keep_their_end(raw, tokenizer, args):
    dataset = prepare_splits(raw, args)
    long = DatasetDict({name: split.map(lambda row: {"text": row["text"] * 9}) for name, split in dataset.items()})
    tokenizer.model_max_length = 64  # all of the model's positions
    assert np.isfinite(classify_with_prompts(long, tokenizer, args)[0].predictions).all()
