"""Perplexity: the exponential of the mean loss of a token, over all tokens of all batches alike."""

import tempfile

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from peft_helpers.arguments import Arguments
from peft_helpers.checks import rounding_bound
from peft_helpers.distributed import OneDeviceArguments
from peft_helpers.prediction import never_trained
from peft_helpers.resources import explain_out_of_memory
from peft_helpers.training import evaluation_arguments

NOT_PREDICTED = -100  # the label that PyTorch's cross-entropy and transformers leave out


def token_losses(logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of each predicted token in nats, shape (rows, tokens - 1), 0 where nothing is predicted.

    For the Trainer's ``preprocess_logits_for_metrics``: it keeps one number a token in place of one for every entry of
    the vocabulary. ``logits`` has the shape (rows, tokens, vocabulary), or is a tuple that begins with them; those at
    a token predict the next one, so ``labels``, shape (rows, tokens), are moved by one.
    """
    logits = logits[0] if isinstance(logits, tuple) else logits
    predicted = logits[:, :-1].float().transpose(1, 2)
    return cross_entropy(predicted, labels[:, 1:], ignore_index=NOT_PREDICTED, reduction="none")


def compute_perplexity(output: EvalPrediction) -> dict[str, float]:
    """Return ``perplexity`` and ``predicted_tokens`` from `token_losses` and labels: every token weighs the same.

    The mean of the batches' losses, which the Trainer reports as ``eval_loss``, would weigh the tokens of a batch with
    much padding more.

    Raises:
        ValueError: no token is predicted.
    """
    is_predicted = output.label_ids[:, 1:] != NOT_PREDICTED
    if not is_predicted.any():
        raise ValueError("There is no token to predict: expected at least one row of two tokens or more.")
    # In double precision, so that the sum over many tokens does not depend on their order.
    losses = output.predictions[is_predicted].astype(np.float64)
    return {"perplexity": float(np.exp(losses.mean())), "predicted_tokens": int(is_predicted.sum())}


def perplexity_arguments(tokenizer: PreTrainedTokenizerBase) -> dict:
    """Return the Trainer's arguments that training and evaluation share: how rows are padded, and the metric.

    The collator meant for language models takes each pad token's label out; where the pad token is the end-of-text
    token, no end would ever be learnt or counted. This one pads the labels that the blocks have.
    """
    return {
        "data_collator": DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=NOT_PREDICTED),
        "compute_metrics": compute_perplexity,
        "preprocess_logits_for_metrics": token_losses,
    }


def evaluate_perplexity(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, blocks: Dataset, args: Arguments
) -> dict[str, float]:
    """Return `compute_perplexity` of the model on the blocks of `tokenize_blocks`.

    Raises:
        MemoryError: memory ran out; see `explain_out_of_memory`.
        ValueError: no token is predicted.
    """
    with never_trained(model):
        trainer = Trainer(
            model=model,
            args=OneDeviceArguments(**evaluation_arguments(args), output_dir=tempfile.gettempdir()),
            **perplexity_arguments(tokenizer),
        )
    with explain_out_of_memory(trainer):
        metrics = trainer.predict(blocks, metric_key_prefix="").metrics
    return {name: metrics[f"_{name}"] for name in ("perplexity", "predicted_tokens")}


def assert_same_perplexity(left: dict[str, float], right: dict[str, float], dtype: torch.dtype) -> float:
    """Return the difference of two results of `evaluate_perplexity` after asserting that they agree.

    They have to agree within `rounding_bound` of the ``dtype`` that they were computed in, relative.

    Raises:
        AssertionError: they differ by more, or are of different numbers of tokens.
    """
    assert left["predicted_tokens"] == right["predicted_tokens"], (left, right)
    np.testing.assert_allclose(left["perplexity"], right["perplexity"], rtol=rounding_bound(dtype), equal_nan=False)
    return abs(left["perplexity"] - right["perplexity"])
