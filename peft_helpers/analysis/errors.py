"""Error analysis: which examples a model gets wrong, and how confident it is in each."""

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import softmax
from transformers import EvalPrediction

from peft_helpers.analysis.significance import check_same_examples
from peft_helpers.metrics import predicted_labels


def most_confident_errors(output: EvalPrediction, test: Dataset, label_names: list[str], top: int = 5) -> pd.DataFrame:
    """Return the wrong predictions of `predict` on ``test``, the most confident first, with the text cut short.

    Raises:
        ValueError: ``output`` is not of the examples of ``test``.
    """
    check_same_examples(output.label_ids, test["label"][:])
    probabilities, names = softmax(output.predictions, axis=-1), np.array(label_names)
    table = pd.DataFrame({
        "text": [text if len(text) <= 300 else text[:300] + "…" for text in test["text"]],
        "true label": names[output.label_ids],
        "predicted": names[predicted_labels(output)],
        "probability": probabilities.max(axis=-1),
    }).rename_axis("test example")  # fmt: skip
    return table[table["true label"] != table["predicted"]].nlargest(top, "probability")
