"""What the notebook asserts: which parameters moved, and that two models give the same logits."""

import hashlib

import numpy as np
import torch


def fingerprint_parameters(model: torch.nn.Module) -> dict[str, str]:
    """Return the SHA-256 of the bytes of each parameter by name: 32 bytes to remember in place of a copy."""
    return {
        name: hashlib.sha256(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy()).hexdigest()
        for name, parameter in model.named_parameters()
    }


def changed_parameters(before: dict[str, str], model: torch.nn.Module) -> set[str]:
    """Return the names of the parameters whose bytes differ from those in ``before``.

    Raises:
        ValueError: the model has other parameters than ``before``, for example since adapters were injected in between.
    """
    after = fingerprint_parameters(model)
    if other := before.keys() ^ after.keys():
        raise ValueError(
            f"{len(other)} parameters are not in both models, such as {min(other)}; compare like with like."
        )
    return {name for name, digest in after.items() if digest != before[name]}


def assert_same_logits(left: np.ndarray, right: np.ndarray, device: torch.device) -> float:
    """Return the largest difference of two arrays of logits, shape (rows, labels), after asserting that they agree.

    On a CPU they have to agree to the last bit. A GPU may choose other kernels from call to call: there, within 2^-6,
    absolute and relative, which is four roundings of bfloat16 (8 bits of precision). NaN agrees with nothing.

    Raises:
        AssertionError: they differ by more, or in shape; the message says by how much and in how many places.
    """
    tolerance = 0 if device.type == "cpu" else 2**-6
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance, equal_nan=False)
    return float(np.abs(left - right).max())
