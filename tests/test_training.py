from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from transformers import TrainerCallback, set_seed

from peft_helpers import (
    changed_parameters,
    compute_metrics,
    fingerprint_parameters,
    guard_training,
    make_arguments,
    make_trainer,
    predict,
)
from peft_helpers.training import CLASSIFICATION, LengthSampler, TrainingArguments, batch_by_tokens

# Arguments


def test_every_option_has_its_place_whatever_its_group():
    args = make_arguments(lora_r=2, max_length=9, learning_rate=1e-3, weight_decay=0.5, profile="offline")
    assert (args.lora.lora_r, args.data.max_length, args.profile) == (2, 9, "offline")
    assert (args.training.learning_rate, args.training.weight_decay) == (1e-3, 0.5)
    assert args.training.num_train_epochs == 2.0


@pytest.mark.reliability("bad input")
def test_an_option_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="there is no option rank"):
        make_arguments(rank=8)


def test_the_arguments_are_transformers_own_with_other_defaults(args):
    assert isinstance(args.training, transformers.TrainingArguments)
    again = args.replace(learning_rate=1e-3).training
    assert (again.learning_rate, again.eval_strategy, again.save_strategy) == (1e-3, "steps", "steps")
    assert args.replace(eval_strategy="epoch", save_strategy="epoch", report_to="none").training.eval_steps is not None


@pytest.mark.parametrize(("native", "expected"), [(True, (True, False)), (False, (False, True))])
def test_mixed_precision_follows_the_gpu(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    arguments = TrainingArguments()
    assert (arguments.bf16, arguments.fp16) == expected


def test_a_cpu_trains_in_full_precision(args):
    assert (args.training.bf16, args.training.fp16, args.training.use_cpu) == (False, False, True)


# Batches

LENGTHS = np.random.default_rng(0).lognormal(2.2, 0.8, 1001).clip(1, 60).astype(int).tolist()


def first_epoch() -> int:
    return 0


def count_padded(batches: list[list[int]]) -> int:
    return sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)


def batches_of(sampler: LengthSampler) -> list[list[int]]:
    order = list(sampler)
    return [order[start : start + 16] for start in range(0, len(order), 16)]


def test_every_row_is_trained_on_once():
    assert (
        sorted(LengthSampler(LENGTHS, 16, seed=0, epoch=first_epoch)) == list(range(len(LENGTHS))) == list(range(1001))
    )


@pytest.mark.parametrize("rows", [1, 15, 16, 17])
def test_there_may_be_few_rows(rows):
    sampler = LengthSampler(LENGTHS[:rows], 16, seed=0, epoch=first_epoch)
    assert len(sampler) == rows
    assert sorted(sampler) == list(range(rows))


def test_little_padding_is_left():
    whole = sum(LENGTHS)
    random = np.random.default_rng(0).permutation(1001).tolist()
    assert count_padded([random[start : start + 16] for start in range(0, 1001, 16)]) > 2 * whole
    assert count_padded(batches_of(LengthSampler(LENGTHS, 16, seed=0, epoch=first_epoch))) < 1.1 * whole


def test_the_longest_batch_comes_first_and_the_others_in_random_order():
    batches = batches_of(LengthSampler(LENGTHS, 16, seed=0, epoch=first_epoch))
    longest = [max(LENGTHS[row] for row in batch) for batch in batches]
    assert longest[0] == max(LENGTHS)
    correlation = np.corrcoef(longest[1:], range(len(longest) - 1))[0, 1]
    assert abs(correlation) < 0.3


def test_an_epoch_has_batches_of_its_own_that_follow_from_the_seed():
    epochs = {"sampler": 0, "again": 0}
    sampler = LengthSampler(LENGTHS, 16, seed=0, epoch=lambda: epochs["sampler"])
    again = LengthSampler(LENGTHS, 16, seed=0, epoch=lambda: epochs["again"])
    first = batches_of(sampler)
    epochs["sampler"] = 1
    torch.manual_seed(5)  # the global generator has no say
    assert batches_of(again) == first
    epochs["again"] = 1
    assert batches_of(again) == batches_of(sampler)
    kept = {frozenset(batch) for batch in first} & {frozenset(batch) for batch in batches_of(sampler)}
    assert len(kept) < 5
    assert batches_of(LengthSampler(LENGTHS, 16, seed=1, epoch=first_epoch)) != first


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "batches"),
    [
        ([9, 9, 8, 4, 4, 4, 4, 1, 1, 1, 1, 1], 18, [[0, 1], [2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]),
        ([30, 30, 5], 18, [[0], [1], [2]]),  # a row of too many tokens is a batch of its own
        ([1, 1, 9, 1], 10, [[0, 1], [2], [3]]),  # rows need not be sorted
    ],
)
def test_token_batches_hold_what_is_allowed_and_keep_the_order(lengths, max_tokens, batches):
    assert batch_by_tokens(lengths, max_tokens, max_rows=4) == batches


def test_the_trainer_takes_both_and_the_models_columns_only(model, tokenizer, args):
    rows = [[5] * length for length in sorted(LENGTHS[:40], reverse=True)]
    dataset = Dataset.from_dict({
        "input_ids": rows, "attention_mask": [[1] * len(ids) for ids in rows], "labels": [0] * 40,
        "length": [len(ids) for ids in rows],
    })  # fmt: skip
    args = args.replace(per_device_eval_batch_size=7, gradient_accumulation_steps=2)
    trainer = make_trainer(model, tokenizer, {"train": dataset, "validation": dataset}, args)
    sampler = trainer.get_train_dataloader().batch_sampler.sampler
    assert isinstance(sampler, LengthSampler)
    assert sampler.batch_size == 4 * 2
    for loader in (trainer.get_eval_dataloader(), trainer.get_test_dataloader(dataset)):
        batches = list(loader)
        assert all(set(batch) == {"input_ids", "attention_mask", "labels"} for batch in batches)
        assert [len(batch["labels"]) for batch in batches] == [7] * 5 + [5]
        assert [ids for batch in batches for ids in batch["attention_mask"].sum(1).tolist()] == dataset["length"][:]


def test_the_trainers_order_is_that_of_the_epoch_it_has_reached(new_trainer):
    trainer = new_trainer()
    sampler = trainer._get_train_sampler()
    first = list(sampler)
    trainer.state.epoch = 0.5  # a run that goes on in its first epoch
    assert list(sampler) == first
    trainer.state.epoch = 1.5
    second = list(sampler)
    assert second != first
    trainer.state.epoch = 1.0
    assert list(sampler) == second


class RememberOrder(TrainerCallback):
    def __init__(self):
        self.orders = []

    def on_step_begin(self, args, state, control, train_dataloader, **kwargs) -> None:
        if state.global_step % 8 == 0:
            self.orders.append(list(train_dataloader.batch_sampler.sampler))


def test_each_epoch_has_an_order_of_its_own_that_follows_from_the_seed(new_trainer):
    orders = []
    for _ in range(2):
        trainer, remember = new_trainer(), RememberOrder()
        trainer.add_callback(remember)
        torch.rand(len(orders))  # the global generator has no say
        trainer.train()
        orders.append(remember.orders)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]
    assert sorted(orders[0][0]) == list(range(32))


# Training


def test_training_lowers_the_loss_and_changes_only_what_is_trainable(new_trainer):
    trainer = new_trainer()
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)
    assert any("score" in name for name in trainable)
    before, loss = fingerprint_parameters(trainer.model), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < loss
    assert changed_parameters(before, trainer.model) == trainable


def test_two_runs_give_the_same_model_and_the_best_one_is_kept(new_trainer):
    models = []
    for _ in range(2):
        trainer = new_trainer()
        trainer.train()
        models.append(fingerprint_parameters(trainer.model))
        scores = [entry["eval_f1"] for entry in trainer.state.log_history if "eval_f1" in entry]
        assert len(scores) == 8  # after every second of 16 steps
        assert trainer.evaluate()["eval_f1"] == pytest.approx(max(scores))
    assert models[0] == models[1]


def test_early_stopping_ends_a_run_that_no_longer_improves(new_trainer):
    trainer = new_trainer(learning_rate=1e-12, num_train_epochs=5)
    trainer.train()
    assert trainer.state.global_step == 36 < trainer.state.max_steps == 40


def test_training_may_go_without_evaluation(new_trainer):
    trainer = new_trainer(eval_strategy="no", save_strategy="no", load_best_model_at_end=False, num_train_epochs=1)
    with guard_training(trainer):
        trainer.train()
    assert trainer.state.global_step == 8


def test_the_trainer_never_sees_the_test_examples(peft_model, tokenizer, tokenized, args):
    trainer = make_trainer(peft_model, tokenizer, {n: tokenized[n] for n in ("train", "validation")}, args)
    assert sorted(trainer.eval_dataset["input_ids"][:]) == sorted(tokenized["validation"]["input_ids"][:])


def test_the_validation_loss_weighs_each_example_alike(new_trainer):
    trainer = new_trainer()
    assert trainer.eval_dataset.num_rows % trainer.args.per_device_eval_batch_size  # the last batch has fewer
    output = trainer.predict(trainer.eval_dataset)
    losses = torch.nn.functional.cross_entropy(torch.tensor(output.predictions), torch.tensor(output.label_ids))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses.item(), abs=1e-6)


def test_a_run_of_few_steps_keeps_no_untrained_model(new_trainer):
    trainer = new_trainer(per_device_train_batch_size=16, num_train_epochs=1)
    before = fingerprint_parameters(trainer.model)
    trainer.train()
    assert trainer.state.max_steps == trainer.state.best_global_step == 2
    assert changed_parameters(before, trainer.model)


@pytest.mark.reliability("bad input")
def test_a_single_step_is_refused(new_trainer):
    message = r"32 examples, 32 a step, for 1 epochs make one training step.*num_train_epochs"
    with pytest.raises(ValueError, match=message):
        new_trainer(per_device_train_batch_size=32, num_train_epochs=1)


class Gradients(TrainerCallback):
    """Those of the first update."""

    def __init__(self):
        self.first = {}

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs) -> None:
        if not self.first:
            self.first = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def train_and_keep_gradients(trainer) -> dict[str, torch.Tensor]:
    gradients = Gradients()
    trainer.add_callback(gradients)
    with guard_training(trainer):
        trainer.train()
    return gradients.first


def test_activation_checkpointing_gives_the_same_model_and_loses_no_gradient(new_trainer):
    usual, saving = new_trainer(), new_trainer(activation_checkpointing=True)
    before = fingerprint_parameters(saving.model)
    passes = []
    mlp = saving.model.get_base_model().transformer.h[0].mlp
    mlp.register_forward_pre_hook(lambda module, _: passes.append(module.training))
    set_seed(0)
    expected = train_and_keep_gradients(usual)
    set_seed(0)
    gradients = train_and_keep_gradients(saving)
    assert sum(passes) == 2 * saving.state.global_step  # computed a second time in the backward pass
    trained = {name for name in before if "lora_" in name or "score.modules_to_save" in name}
    assert changed_parameters(before, saving.model) == trained
    for name in trained:
        torch.testing.assert_close(gradients[name], expected[name], rtol=0, atol=0)
    assert fingerprint_parameters(saving.model) == fingerprint_parameters(usual.model)


def test_accumulated_gradients_are_those_of_the_larger_batch(new_trainer):
    settings = {"lora_dropout": 0.0, "num_train_epochs": 1}
    whole, parts = (
        new_trainer(per_device_train_batch_size=8, **settings),
        new_trainer(per_device_train_batch_size=2, gradient_accumulation_steps=4, **settings),
    )
    expected, gradients = train_and_keep_gradients(whole), train_and_keep_gradients(parts)
    assert parts.state.global_step == whole.state.global_step == 4
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())


# Prediction


def test_examples_come_back_in_the_datasets_order_with_their_metrics(peft_model, tokenizer, tokenized, args):
    test = tokenized["test"]
    output = predict(peft_model, tokenizer, test, args)
    assert output.label_ids.tolist() == test["labels"][:]
    assert output.metrics["test_examples"] == test.num_rows
    expected = compute_metrics(output)
    assert {name: output.metrics[f"test_{name}"] for name in expected} == expected
    peft_model.eval()
    for row, logits in zip(test, output.predictions, strict=True):
        with torch.inference_mode():
            alone = peft_model(input_ids=torch.tensor([row["input_ids"]])).logits[0].numpy()
        np.testing.assert_allclose(alone, logits, atol=1e-5)


def test_predicting_keeps_no_folder_behind(peft_model, tokenizer, tokenized, args, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    predict(peft_model, tokenizer, tokenized["test"], args)
    assert not list(tmp_path.iterdir())
    assert not Path(args.training.output_dir).exists()


def test_a_task_without_metrics_has_the_loss_only(peft_model, tokenizer, tokenized, args):
    whole = predict(peft_model, tokenizer, tokenized["test"], args)
    args = args.replace(per_device_eval_batch_size=5)  # of 16: the last batch has fewer
    output = predict(peft_model, tokenizer, tokenized["test"], args, replace(CLASSIFICATION, compute_metrics=None))
    assert output.predictions is None
    assert output.metrics["test_loss"] == pytest.approx(whole.metrics["test_loss"], abs=1e-6)
    assert output.metrics["test_perplexity"] == pytest.approx(np.exp(output.metrics["test_loss"]))
    assert "test_f1" not in output.metrics
