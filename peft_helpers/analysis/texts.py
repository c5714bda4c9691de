"""What a model makes of texts of your own."""

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peft_helpers.analysis.calibration import AS_IT_IS, Calibration
from peft_helpers.tokenization import Text, tokenize_batch
from peft_helpers.training import make_arguments, predict


def classify_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[Text], calibration: Calibration = AS_IT_IS
) -> pd.DataFrame:
    """Return a row for each text, or pair: the predicted label, its probability, and the probability of every label.

    A text is truncated or read in chunks as in `tokenize_dataset`; the tokenizer that is saved with the adapter knows.

    Raises:
        ValueError: see `encode_texts`.
    """
    dataset = Dataset.from_dict(tokenize_batch({"text": texts, "label": [0] * len(texts)}, tokenizer, chunks=False))
    logits = predict(model, tokenizer, dataset, make_arguments(bf16=False), disable_tqdm=True).predictions
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    best, probabilities = calibration.decide(logits).argmax(axis=1), softmax(logits / calibration.temperature, axis=1)
    columns = {"text": list(texts), "label": [names[label] for label in best]}
    columns |= {"probability": probabilities[np.arange(len(best)), best]}
    return pd.DataFrame(columns | {f"P({name})": column for name, column in zip(names, probabilities.T, strict=True)})


def count_tokens(texts: list[Text], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the number of tokens of each text as a whole."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
