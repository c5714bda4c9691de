"""Predictions in the data set's order, and for texts of one's own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import PeftModel
from scipy.special import softmax
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.trainer_utils import PredictionOutput

from peft_helpers.arguments import Arguments
from peft_helpers.batches import LengthTrainer, longest_first
from peft_helpers.distributed import OneDeviceArguments
from peft_helpers.metrics import compute_metrics
from peft_helpers.resources import explain_out_of_memory
from peft_helpers.tokenization import encode_texts
from peft_helpers.training import evaluation_arguments


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    args: Arguments,
    disable_tqdm: bool = False,
) -> PredictionOutput:
    """Return logits (``predictions``, shape (rows, labels)) and ``label_ids``, shape (rows,), in ``dataset``'s order.

    Rows of like length share a batch, which saves padding, the longest first, so that a batch too large for the memory
    fails at once; the order is then restored. ``metrics`` are those of `compute_metrics` and the
    time it took.
    """
    order = longest_first(dataset)
    arguments = evaluation_arguments(args) | {"disable_tqdm": disable_tqdm}
    with never_trained(model):
        trainer = LengthTrainer(
            model=model,
            args=OneDeviceArguments(**arguments, output_dir=tempfile.gettempdir()),
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=compute_metrics,
        )
    with explain_out_of_memory(trainer):
        output = trainer.predict(dataset.select(order))
    back = np.argsort(order)
    return PredictionOutput(output.predictions[back], output.label_ids[back], output.metrics)


@contextmanager
def never_trained(model: PreTrainedModel) -> Iterator[None]:
    """Have the Trainer take a 4-bit model without adapter, which it refuses since that could not be trained."""
    if not getattr(model, "is_quantized", False) or isinstance(model, PeftModel):
        yield
        return
    model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        model._hf_peft_config_loaded = False


def classify_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> pd.DataFrame:
    """Return a row for each text: the predicted label, its probability, and the probability of every label.

    A text is cut at ``tokenizer.model_max_length``, which travels with the adapter.

    Raises:
        ValueError: see `encode_texts`.
    """
    encoded = encode_texts(texts, tokenizer, tokenizer.model_max_length)
    batch = tokenizer.pad(encoded, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        probabilities = softmax(model.eval()(**batch).logits.float().cpu().numpy(), axis=-1)
    names = [model.config.id2label[number] for number in range(probabilities.shape[1])]
    best = probabilities.argmax(axis=-1)
    columns = {"text": texts, "label": [names[number] for number in best], "probability": probabilities.max(axis=-1)}
    return pd.DataFrame(columns | {f"P({name})": probabilities[:, number] for number, name in enumerate(names)})
