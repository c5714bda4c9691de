import numpy as np
import pytest
import torch

from peft_helpers import classify_texts, predict


def test_rows_come_back_in_the_data_sets_order(peft_model, tokenizer, tokenized, args):
    test = tokenized["test"]
    output = predict(peft_model, tokenizer, test, args)
    assert output.label_ids.tolist() == test["labels"][:]
    peft_model.eval()
    for row, logits in zip(test, output.predictions, strict=True):
        with torch.inference_mode():
            alone = peft_model(input_ids=torch.tensor([row["input_ids"]])).logits[0].numpy()
        np.testing.assert_allclose(alone, logits, atol=1e-5)


def test_metrics_come_with_the_predictions(peft_model, tokenizer, tokenized, args):
    output = predict(peft_model, tokenizer, tokenized["test"], args)
    accuracy = np.mean(output.predictions.argmax(-1) == tokenized["test"]["labels"][:])
    assert output.metrics["test_accuracy"] == pytest.approx(accuracy)


def test_texts_get_a_label_and_probabilities_that_sum_to_one(peft_model, tokenizer):
    table = classify_texts(peft_model, tokenizer, ["good", "", "the cast is a joy to watch " * 40])
    probabilities = table[["P(negative)", "P(positive)"]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert table["label"].tolist() == [("negative", "positive")[best] for best in probabilities.argmax(axis=1)]
    np.testing.assert_array_equal(table["probability"], probabilities.max(axis=1))


def test_a_text_gets_the_same_probability_alone_and_among_others(peft_model, tokenizer):
    texts = ["good", "", "the cast is a joy to watch"]
    together = classify_texts(peft_model, tokenizer, texts)["probability"]
    alone = [classify_texts(peft_model, tokenizer, [text])["probability"][0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=1e-6)
