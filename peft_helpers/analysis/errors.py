"""What a model gets wrong, and how sure it is of it."""

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import softmax
from transformers import EvalPrediction

EXCERPT = 300  # characters


def most_confident_errors(output: EvalPrediction, test: Dataset, label_names: list[str], rows: int = 5) -> pd.DataFrame:
    """Return the wrong answers of which the model was surest, the surest first.

    Args:
        output: logits, shape (rows, labels), of `predict` on ``test``.
        test: the rows, with ``text`` and ``label``.
        label_names: the name of each label number.
        rows: how many to return at most.

    Raises:
        ValueError: ``output`` is not of the rows of ``test``.
    """
    if not np.array_equal(output.label_ids, test["label"][:]):
        raise ValueError("The output is not of these rows in this order; pass the rows that predict was called on.")
    probabilities = softmax(output.predictions, axis=-1)
    predicted = probabilities.argmax(axis=-1)
    wrong = np.flatnonzero(predicted != output.label_ids)
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:rows]
    texts = test.select(worst)["text"][:]
    return pd.DataFrame({
        "text": [text if len(text) <= EXCERPT else text[:EXCERPT] + "…" for text in texts],
        "true label": [label_names[number] for number in output.label_ids[worst]],
        "predicted": [label_names[number] for number in predicted[worst]],
        "probability": probabilities[worst, predicted[worst]],
    }, index=pd.Index(worst, name="test row"))  # fmt: skip
