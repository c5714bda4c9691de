import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import AutoModelForCausalLM

from peft_helpers.comparison import prompting
from peft_helpers.comparison.prompting import CONTENT_FREE, classify_with_prompts, score_answers
from peft_helpers.data import prepare_splits
from peft_helpers.modeling import prepare_model

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

    monkeypatch.setattr(prompting, "score_answers", answer)
    rows = {"text": ["one", "two"], "label": [1, 0]}
    split = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=["no", "yes"]))
    output, weights = classify_with_prompts(DatasetDict(train=split, test=split), tokenizer, args)
    np.testing.assert_allclose(output.predictions, np.log([[0.7 / 0.8, 0.3 / 0.2], [0.9 / 0.8, 0.1 / 0.2]]) - np.log(3))
    assert (np.argmax(output.predictions, axis=1).tolist(), output.label_ids.tolist(), weights) == ([1, 0], [1, 0], 0)
    texts = [*CONTENT_FREE, "one", "two"]
    assert read == [f"{text}{prompting.QUESTION} {name}" for text in texts for name in ("no", "yes")]


def test_prompts_longer_than_the_model_keep_their_end(raw, tokenizer, args):
    dataset = prepare_splits(raw, args)
    long = DatasetDict({name: split.map(lambda row: {"text": row["text"] * 9}) for name, split in dataset.items()})
    tokenizer.model_max_length = 64  # all of the model's positions
    assert np.isfinite(classify_with_prompts(long, tokenizer, args)[0].predictions).all()
