import numpy as np
import pytest
import torch
from conftest import LABELS
from tokenizers.processors import TemplateProcessing

from peft_helpers import Calibration, classify_texts, predict
from peft_helpers.analysis.texts import count_tokens


def test_texts_get_a_label_and_probabilities_that_sum_to_one(peft_model, tokenizer):
    table = classify_texts(peft_model, tokenizer, ["good", "", "the cast is a joy to watch " * 40])
    probabilities = table[["P(negative)", "P(positive)"]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert table["label"].tolist() == [LABELS[best] for best in probabilities.argmax(axis=1)]
    np.testing.assert_array_equal(table["probability"], probabilities.max(axis=1))


def test_texts_get_the_probabilities_of_predict_alone_and_among_others(peft_model, tokenizer, tokenized, raw, args):
    logits = predict(peft_model, tokenizer, tokenized["test"], args).predictions
    expected = torch.tensor(logits).softmax(-1)[:, 1]
    texts = raw["test"]["text"][:]
    together = classify_texts(peft_model, tokenizer, texts)["P(positive)"]
    alone = [classify_texts(peft_model, tokenizer, [text])["P(positive)"][0] for text in texts[:3]]
    np.testing.assert_allclose(together, expected, atol=1e-5)
    np.testing.assert_allclose(alone, expected[:3], atol=1e-5)


def test_a_calibration_changes_probabilities_and_its_threshold_labels(peft_model, tokenizer, tokenized, raw, args):
    logits = torch.tensor(predict(peft_model, tokenizer, tokenized["test"], args).predictions)
    expected = (logits / 3).softmax(-1)[:, 1].numpy()
    ordered = np.sort(expected)
    widest = np.diff(ordered).argmax()
    threshold = float(ordered[[widest, widest + 1]].mean())
    table = classify_texts(peft_model, tokenizer, raw["test"]["text"][:], Calibration(3.0, threshold, 1))
    np.testing.assert_allclose(table["P(positive)"], expected, atol=1e-5)
    assert table["label"].tolist() == [LABELS[int(above)] for above in expected > threshold]
    assert table["probability"].tolist() == [row[f"P({row['label']})"] for row in table.to_dict("records")]


@pytest.mark.reliability("bad input")
def test_what_is_no_list_of_texts_cannot_be_classified(peft_model, tokenizer):
    with pytest.raises(ValueError, match="Expected a list of texts, found 'good'"):
        classify_texts(peft_model, tokenizer, "good")


def test_tokens_are_counted_before_truncation_with_special_tokens(tokenizer):
    eos = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    tokenizer.model_max_length = 4
    texts = ["", "good", "good " * 50]
    assert count_tokens(texts, tokenizer) == [len(tokenizer.tokenize(text)) + 1 for text in texts]
