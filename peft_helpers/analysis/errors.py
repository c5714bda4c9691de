"""Error analysis: which examples a model gets wrong, and how confident it is in each."""

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import softmax
from transformers import EvalPrediction

from peft_helpers.analysis.significance import check_same_examples
from peft_helpers.metrics import predicted_labels

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
    probabilities, names = softmax(output.predictions, axis=-1), np.array(label_names)
    table = pd.DataFrame({
        "text": [text if len(text) <= EXCERPT else text[:EXCERPT] + "…" for text in test["text"]],
        "true label": names[output.label_ids],
        "predicted": names[predicted_labels(output)],
        "probability": probabilities.max(axis=-1),
    }).rename_axis("test example")  # fmt: skip
    return table[table["true label"] != table["predicted"]].nlargest(top, "probability")
