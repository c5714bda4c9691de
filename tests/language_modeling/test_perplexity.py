import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, EvalPrediction

from peft_helpers.language_modeling.perplexity import (
    assert_same_perplexity,
    compute_perplexity,
    evaluate_perplexity,
    perplexity_arguments,
    token_losses,
)
from peft_helpers.sources.documents import tokenize_blocks
from peft_helpers.tokenization import set_padding


@pytest.fixture
def language_model(args, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(args.model.model_name_or_path)
    set_padding(tokenizer, model)
    return model


@pytest.fixture
def blocks(tokenizer):
    """Blocks of 8 tokens, and shorter ones of 5, 3 and 2 that share batches with them."""
    texts = Dataset.from_dict({"text": ["what a lovely, warm and funny story", "good"] * 5})
    rows = tokenize_blocks(texts, tokenizer, 8).to_list()
    for number, length in ((1, 5), (4, 3), (5, 2)):
        rows[number] = {name: cells if name == "length" else cells[:length] for name, cells in rows[number].items()}
    return Dataset.from_list(rows)


def by_hand(model, blocks) -> tuple[float, int]:
    """Sum minus the log of each next token's probability, row by row without padding, then divide and raise e to it."""
    total, count = 0.0, 0
    for ids in blocks["input_ids"][:]:
        with torch.no_grad():
            probabilities = model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)
        for place in range(len(ids) - 1):
            total -= math.log(probabilities[place, ids[place + 1]])
            count += 1
    return math.exp(total / count), count


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
def test_perplexity_is_that_by_hand_whatever_the_batches(batch_size, language_model, tokenizer, blocks, args):
    expected, count = by_hand(language_model.eval(), blocks)
    found = evaluate_perplexity(language_model, tokenizer, blocks, args.replace(per_device_eval_batch_size=batch_size))
    assert found["predicted_tokens"] == count
    assert found["perplexity"] == pytest.approx(expected, rel=1e-6)


def test_four_entries_and_known_probabilities():
    """Two rows: 1/2 and 1/8 at two tokens, 1/4 at the only one of the shorter row: (2 * 8 * 4) ** (1/3) = 4."""
    probabilities = torch.tensor([
        [[0.5, 0.25, 0.125, 0.125], [0.5, 0.25, 0.125, 0.125], [0.25] * 4],
        [[0.5, 0.25, 0.125, 0.125], [0.25] * 4, [0.25] * 4],
    ])  # fmt: skip
    labels = torch.tensor([[3, 0, 2], [3, 1, -100]])
    losses = token_losses(probabilities.log(), labels)
    assert losses.shape == (2, 2)
    assert losses[1, 1] == 0
    found = compute_perplexity(EvalPrediction(losses.numpy(), labels.numpy()))
    assert found == {"perplexity": pytest.approx(4.0, rel=1e-6), "predicted_tokens": 3}
    assert torch.equal(token_losses((probabilities.log(), "cache"), labels), losses)


def test_the_end_of_text_counts_though_it_is_the_padding_too(language_model, tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    eos = tokenizer.eos_token_id
    rows = [{"input_ids": [5, eos], "attention_mask": [1, 1], "labels": [5, eos]},
            {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [5, 6, 7]}]  # fmt: skip
    batch = perplexity_arguments(tokenizer)["data_collator"](rows)
    assert batch["labels"].tolist() == [[5, eos, -100], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.reliability("bad input")
def test_without_a_token_to_predict_there_is_no_perplexity():
    nothing = EvalPrediction(np.zeros((2, 1), np.float32), np.array([[4, -100], [7, -100]]))
    with pytest.raises(ValueError, match="no token to predict: expected at least one row of two tokens"):
        compute_perplexity(nothing)


def test_equal_is_within_the_rounding_of_what_computes():
    left = {"perplexity": 50.0, "predicted_tokens": 9}
    assert assert_same_perplexity(left, left | {"perplexity": 50.001}, torch.float32) == pytest.approx(0.001)
    assert assert_same_perplexity(left, left | {"perplexity": 50.4}, torch.bfloat16) > 0
    for other in ({"perplexity": 50.002}, {"perplexity": math.nan}, {"predicted_tokens": 8}):
        with pytest.raises(AssertionError):
            assert_same_perplexity(left, left | other, torch.float32)
