import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification, RobertaConfig

import peft_helpers as helpers
from peft_helpers.analysis import linear_probe
from peft_helpers.analysis.linear_probe import SHORT_RUN, STRENGTH, count_in_steps, fit_head, mean_hidden_states
from peft_helpers.tokenization import tokenize_dataset

TEXTS = ["good", "what a lovely, warm and funny story", "bad", "the cast is a joy to watch from start to end" * 3]


def test_hidden_states_are_means_over_the_tokens_of_each_text_without_padding(model, tokenizer, args):
    dataset = Dataset.from_dict({"text": ["", *TEXTS], "label": [0] * 5})
    tokenized = tokenize_dataset(dataset, tokenizer)
    found = mean_hidden_states(model, tokenizer, tokenized, args)
    assert found.shape == (5, model.config.hidden_size)
    for row, ids in zip(found, tokenized["input_ids"], strict=True):
        with torch.no_grad():
            alone = model.base_model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, alone, atol=1e-5)
    assert not model.base_model._forward_hooks


def test_hidden_states_of_a_text_in_chunks_are_their_mean(model, tokenizer, args):
    tokenizer.model_max_length = 4
    tokenized = tokenize_dataset(Dataset.from_dict({"text": TEXTS, "label": [0] * 4}), tokenizer, chunks=True)
    alone = tokenized.map(lambda row: {"is_first": True})
    chunks = mean_hidden_states(model, tokenizer, alone, args)
    found = mean_hidden_states(model, tokenizer, tokenized, args)
    texts = np.cumsum(tokenized["is_first"]) - 1
    assert np.bincount(texts).max() > 2
    for number, row in enumerate(found):
        np.testing.assert_allclose(row, chunks[texts == number].mean(axis=0), atol=1e-6)


def pooled_states(model, dataset):
    """Return the state of the last token of each example, by itself."""
    with torch.no_grad():
        states = [model.base_model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in dataset["input_ids"]]
    return torch.stack(states).numpy()


@pytest.mark.parametrize("weights", [None, "balanced"])
def test_the_fitted_head_gives_the_probabilities_of_logistic_regression(weights, model, tokenizer, tokenized, args):
    train = tokenized["train"].select(np.flatnonzero(np.arange(tokenized["train"].num_rows) % 3 != 1))
    fit_head(model, tokenizer, train, args.replace(class_weights=weights))
    states, labels = pooled_states(model, train), np.array(train["labels"][:])
    states /= states.std(axis=0)
    expected = LogisticRegression(C=STRENGTH, fit_intercept=False, class_weight=weights, max_iter=1000)
    expected = expected.fit(states, labels).decision_function(states)
    logits = helpers.predict(model, tokenizer, train, args).predictions
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], expected, atol=2e-3)
    np.testing.assert_allclose(logits.sum(axis=1), 0, atol=1e-4)


def make_splits(labels, tokenizer):
    words = ["good", "bad", "cast"]
    rows = {"text": [words[label] + " film" * (number % 3) for number, label in enumerate(labels)], "label": labels}
    return tokenize_dataset(Dataset.from_dict(rows), tokenizer)


def make_roberta(tokenizer, labels):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=len(tokenizer), num_labels=labels, **shape)
    model = AutoModelForSequenceClassification.from_config(config)
    helpers.prepare_model(model, tokenizer)
    return model


def test_a_head_of_several_layers_and_labels_gets_its_last_layer_with_the_bias(tokenizer, args):
    train, model = make_splits([0, 1, 2, 1] * 10, tokenizer), make_roberta(tokenizer, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_head(model, tokenizer, train, args)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    logits = torch.tensor(helpers.predict(model, tokenizer, train, args).predictions)
    shares = logits.softmax(-1).mean(dim=0).tolist()
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=1e-3)  # an intercept that is not penalized has them exact


def test_a_head_with_a_label_that_no_example_has_stays_random(tokenizer, args):
    model = make_roberta(tokenizer, 3)
    before = model.classifier.out_proj.weight.clone()
    fit_head(model, tokenizer, make_splits([0, 1] * 5, tokenizer), args)
    assert torch.equal(model.classifier.out_proj.weight, before)


def test_as_many_examples_count_as_the_run_takes(model, tokenizer, tokenized, args, monkeypatch):
    read, train, states = [], tokenized["train"], linear_probe._read_states

    def remember(*arguments):
        read.append(arguments[3].num_rows)
        return states(*arguments)

    monkeypatch.setattr(linear_probe, "_read_states", remember)
    short = args.replace(max_steps=3, per_device_train_batch_size=2)
    fit_head(model, tokenizer, train, short)
    fit_head(model, tokenizer, train.to_iterable_dataset(), short)
    fit_head(model, tokenizer, train, args.replace(max_steps=SHORT_RUN - 1))
    assert read == [6, 6, train.num_rows]


def test_before_a_long_run_the_head_stays_random(model, tokenizer, tokenized, args, capsys):
    before = model.score.weight.clone()
    fit_head(model, tokenizer, tokenized["train"], args.replace(max_steps=SHORT_RUN))
    assert torch.equal(model.score.weight, before)
    assert capsys.readouterr().out == ""
    fit_head(model, tokenizer, tokenized["train"], args.replace(max_steps=SHORT_RUN - 1))
    assert not torch.equal(model.score.weight, before)
    assert capsys.readouterr().out.startswith(f"{SHORT_RUN - 1} steps are few for a random head")


def test_the_time_of_a_short_run_includes_that_of_its_head():
    assert count_in_steps(50) == 70
    assert count_in_steps(SHORT_RUN) == SHORT_RUN


def test_training_starts_from_the_fitted_head(raw, args):
    """With a rate at which nothing moves, the tuned model is the linear probe."""
    dataset = helpers.prepare_splits(raw, args)
    result = helpers.run(dataset, args.replace(learning_rate=1e-12))
    _, tokenizer = helpers.load_adapter(args.training.output_dir)
    plain = AutoModelForSequenceClassification.from_pretrained(args.model.model_name_or_path, num_labels=2)
    helpers.prepare_model(plain, tokenizer)
    tokenized = helpers.tokenize_splits(dataset, tokenizer)
    fit_head(plain, tokenizer, tokenized["train"], args)
    found = helpers.predict(plain, tokenizer, tokenized["test"], args)
    helpers.assert_same_predictions(result.tuned, found)
    assert not np.allclose(result.untuned.predictions, found.predictions, atol=1e-2)


def test_the_model_gets_the_token_types_of_pairs_as_in_training(tokenizer, args, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "token_type_ids", "attention_mask"])
    train, model, seen = make_splits([0, 1] * 5, tokenizer), make_roberta(tokenizer, 2), set()
    train = train.add_column("text", ["the texts may lie beside the tokens"] * train.num_rows)
    model.register_forward_pre_hook(lambda module, _, inputs: seen.update(inputs), with_kwargs=True)
    fit_head(model, tokenizer, train, args)
    assert seen == {"input_ids", "attention_mask", "token_type_ids"}


def test_the_head_is_fitted_on_the_device_of_the_training(model, tokenizer, tokenized, args, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # but for --use_cpu, which args have
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    fit_head(model, tokenizer, tokenized["train"], args)
    assert model.device.type == "cpu"


def test_a_search_may_try_a_single_step(model, tokenizer, tokenized, args):
    before = model.score.weight.clone()
    fit_head(model, tokenizer, tokenized["train"], args.replace(per_device_train_batch_size=1000, num_train_epochs=1.0))
    assert not torch.equal(model.score.weight, before)
