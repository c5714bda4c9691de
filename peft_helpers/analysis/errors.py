"""Error analysis: which examples a model gets wrong, and how confident it is in each."""

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import softmax
from transformers import EvalPrediction

from peft_helpers.analysis.significance import check_same_examples

EXCERPT = 300  # characters


def most_confident_errors(output: EvalPrediction, test: Dataset, label_names: list[str], top: int = 5) -> pd.DataFrame:
    """Return the wrong predictions in descending order of confidence, with the text, cut to 300 characters.

    Args:
        output: logits, shape (examples, labels), of `predict` on ``test``.
        test: the examples, with ``text`` and ``label``.
        label_names: the name of each label number.
        top: how many to return at most.

    Raises:
        ValueError: ``output`` is not of the examples of ``test``.
    """
    check_same_examples(output.label_ids, test["label"][:])
    probabilities = softmax(output.predictions, axis=-1)
    predicted, confidence = probabilities.argmax(axis=-1), probabilities.max(axis=-1)
    wrong = np.flatnonzero(predicted != output.label_ids)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:top]
    texts = test.select(worst)["text"][:]
    return pd.DataFrame({
        "text": [text if len(text) <= EXCERPT else text[:EXCERPT] + "…" for text in texts],
        "true label": [label_names[number] for number in output.label_ids[worst]],
        "predicted": [label_names[number] for number in predicted[worst]],
        "probability": confidence[worst],
    }, index=pd.Index(worst, name="test example"))  # fmt: skip
