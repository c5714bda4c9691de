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


def rounding_bound(dtype: torch.dtype) -> float:
    """Return how far two computations of the same logits in ``dtype`` may lie apart, relative to the largest logit.

    Other kernels, batches and processors add up the same products in another order. The bound is 2^-15 for float32,
    2^-8 for float16 and 2^-5 for bfloat16.
    """
    # A product of GPT-2 adds up to 3,072 terms, and its classifier multiplies 48 times in a row (4 in each of 12
    # layers). Rounding errors are independent of each other: n of them add up to about sqrt(n), sqrt(48) < 8 and
    # sqrt(3072) < 64. The sums themselves are kept in float32 where the factors are in 16 bits.
    roundings = 8 * 64 if dtype == torch.float32 else 8
    return roundings * torch.finfo(dtype).eps / 2  # the error of one rounding is half of eps


def assert_same_logits(left: np.ndarray, right: np.ndarray, dtype: torch.dtype) -> float:
    """Return the largest difference of two arrays of logits, shape (rows, labels), after asserting that they agree.

    They have to agree within `rounding_bound`, times the largest logit, of the ``dtype`` that they were computed in.
    The same path on the same machine usually gives the same bits, which the returned 0.0 tells. NaN agrees with
    nothing.

    Raises:
        AssertionError: they differ by more, or in shape; the message says by how much and in how many places.
    """
    tolerance = rounding_bound(dtype) * np.nanmax(np.abs(left), initial=0)
    np.testing.assert_allclose(left, right, rtol=0, atol=tolerance, equal_nan=False)
    return float(np.abs(left - right).max())
