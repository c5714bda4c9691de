import numpy as np
import pytest
import torch

from peft_helpers import assert_same_logits, changed_parameters, fingerprint_parameters

CPU = torch.device("cpu")


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
    assert assert_same_logits(np.ones((2, 3)), np.ones((2, 3)), CPU) == 0


def test_a_cpu_allows_no_difference_and_a_gpu_a_small_one():
    left, right = np.ones((2, 3)), np.ones((2, 3)) + 1e-3
    with pytest.raises(AssertionError, match=r"0\.001"):
        assert_same_logits(left, right, CPU)
    assert assert_same_logits(left, right, torch.device("cuda")) == pytest.approx(1e-3)
    assert assert_same_logits(8 * left, 8 * left + 2**-5, torch.device("cuda")) == 2**-5  # one rounding of bfloat16
    with pytest.raises(AssertionError):
        assert_same_logits(left, right + 1, torch.device("cuda"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nan_agrees_with_nothing(device):
    diverged = np.full((2, 3), np.nan)
    with pytest.raises(AssertionError):
        assert_same_logits(diverged, diverged, torch.device(device))
