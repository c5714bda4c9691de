"""What a model makes of texts of your own."""

import numpy as np
import pandas as pd
from scipy.special import softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase, pipeline

from peft_helpers.analysis.calibration import AS_IT_IS, Calibration
from peft_helpers.tokenization import check_texts


def classify_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], calibration: Calibration = AS_IT_IS
) -> pd.DataFrame:
    """Return a row for each text: the predicted label, its probability, and the probability of every label.

    A text is truncated at ``tokenizer.model_max_length`` tokens, which is saved with the adapter, like `Calibration`.

    Raises:
        ValueError: see `check_texts`.
    """
    texts = check_texts(texts)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, batch_size=32)
    # An empty text has no token to pool; everywhere here it stands as one pad token.
    scores = classify([text or tokenizer.pad_token for text in texts], truncation=True, function_to_apply="none")
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    logits = pd.DataFrame([{row["label"]: row["score"] for row in rows} for rows in scores], columns=names).to_numpy()
    best, probabilities = calibration.decide(logits).argmax(axis=1), softmax(logits / calibration.temperature, axis=1)
    columns = {"text": texts, "label": np.array(names)[best], "probability": probabilities[np.arange(len(best)), best]}
    return pd.DataFrame(columns | {f"P({name})": column for name, column in zip(names, probabilities.T, strict=True)})


def count_tokens(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the number of tokens of each text as a whole."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
