"""What a model makes of texts of your own."""

import pandas as pd
from datasets import Dataset
from scipy.special import softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peft_helpers.tokenization import Text, tokenize_batch
from peft_helpers.training import make_arguments, predict


def classify_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[Text]) -> pd.DataFrame:
    """Return a row for each text, or pair: the predicted label, its probability, and the probability of every label.

    A text is truncated or read in chunks as in `tokenize_dataset`; the tokenizer that is saved with the adapter knows.

    Raises:
        ValueError: see `check_texts`.
    """
    dataset = Dataset.from_dict(tokenize_batch({"text": texts, "label": [0] * len(texts)}, tokenizer, chunks=False))
    output = predict(model, tokenizer, dataset, make_arguments(bf16=False), disable_tqdm=True)
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    probabilities = pd.DataFrame(softmax(output.predictions, axis=-1), columns=names)
    columns = {"text": list(texts), "label": probabilities.idxmax(axis=1), "probability": probabilities.max(axis=1)}
    return pd.DataFrame(columns).join(probabilities.add_prefix("P(").add_suffix(")"))


def count_tokens(texts: list[Text], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the number of tokens of each text as a whole."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
