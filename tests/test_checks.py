import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from peft_helpers import assert_same_logits, changed_parameters, fingerprint_parameters
from peft_helpers.arguments import TINY_GPT2, Arguments
from peft_helpers.checks import rounding_bound
from peft_helpers.modeling import load_base_model


def test_a_change_of_one_bit_is_seen():
    model = torch.nn.Linear(3, 2)
    before = fingerprint_parameters(model)
    assert changed_parameters(before, model) == set()
    with torch.no_grad():
        model.bias[1] = torch.nextafter(model.bias[1], torch.tensor(9.0))
    assert changed_parameters(before, model) == {"bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_and_shape_has_a_fingerprint(dtype):
    model = torch.nn.ParameterDict({"scalar": torch.tensor(1.0), "matrix": torch.ones(2, 3).T}).to(dtype)
    assert len(set(fingerprint_parameters(model).values())) == 2


@pytest.mark.reliability("bad input")
def test_other_parameters_cannot_be_compared():
    before = fingerprint_parameters(torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match="1 parameters are not in both models, such as bias"):
        changed_parameters(before, torch.nn.Linear(3, 2, bias=False))


def test_equal_logits_differ_by_nothing():
    assert assert_same_logits(np.ones((2, 3)), np.ones((2, 3)), torch.float32) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_may_differ_by_the_rounding_of_what_computes_relative_to_the_largest(dtype):
    left, bound = np.array([[0.0, -8.0]]), rounding_bound(dtype)
    assert assert_same_logits(left, left + 7.9 * bound, dtype) == pytest.approx(7.9 * bound)
    with pytest.raises(AssertionError, match="Mismatched elements: 2 / 2"):
        assert_same_logits(left, left + 8.1 * bound, dtype)


def test_the_bound_holds_for_sums_in_another_order_and_not_for_a_thousandth():
    """A chain of products as in GPT-2, in whole and in two parts; a thousandth off is more than rounding."""
    torch.manual_seed(0)
    weights = [torch.randn(3072, 3072) / 3072**0.5 for _ in range(4)] * 12
    rows = parts = torch.randn(4, 3072)
    for weight in weights:
        rows, parts = rows @ weight, parts[:, :1000] @ weight[:1000] + parts[:, 1000:] @ weight[1000:]
    assert assert_same_logits(rows.numpy(), parts.numpy(), torch.float32) > 0
    with pytest.raises(AssertionError):
        assert_same_logits(rows.numpy(), (rows * 1.001).numpy(), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_bound_holds_between_a_row_alone_and_in_a_batch(dtype):
    """Of the embedded model, under the CPU's autocast in 16 bits, and is not met by another head's logits."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_GPT2)
    model = load_base_model(Arguments(model_name_or_path=TINY_GPT2), ["a", "b", "c"], tokenizer).eval()
    texts = ["Shares rose.", "The striker limped off and his side threw away a two-goal lead.", "A warm film " * 20]

    def logits(texts: list[str]) -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.float().numpy()

    alone, together = np.concatenate([logits([text]) for text in texts]), logits(texts)
    assert assert_same_logits(alone, together, dtype) > 0
    with pytest.raises(AssertionError):
        assert_same_logits(alone, logits(texts[::-1]), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_agrees_with_nothing(dtype):
    diverged = np.full((2, 3), np.nan)
    with pytest.raises(AssertionError):
        assert_same_logits(diverged, diverged, dtype)
