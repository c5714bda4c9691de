from contextlib import nullcontext
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, DistilBertConfig, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_utils import PredictionOutput

from peft_helpers import assert_same_predictions, compute_metrics, lora_arguments, make_trainer, predict
from peft_helpers.batches import (
    LengthSampler,
    LengthTrainer,
    StepTimer,
    average_chunks,
    balance_loss,
    batch_by_tokens,
    count_steps,
    format_seconds,
)
from peft_helpers.training import NO_EVALUATION

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
def test_token_batches_hold_what_is_allowed_and_keep_the_order(lengths, max_tokens, batches, monkeypatch):
    monkeypatch.setattr("peft_helpers.batches.EVALUATION_TOKENS", dict.fromkeys(("cpu", "cuda"), max_tokens))
    assert batch_by_tokens(lengths, 4) == batches


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


@pytest.mark.slow
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


def test_a_causal_model_needs_no_attention_mask(new_trainer):
    trainer, masks = new_trainer(), []
    batch = next(batch for batch in trainer.get_eval_dataloader() if not batch["attention_mask"].all())
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True
    )
    _, without = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
    with_mask = trainer.model(**batch)
    assert masks[0] is None
    assert masks[1] is not None
    assert torch.allclose(without["logits"], with_mask.logits, atol=1e-5)


def test_a_model_that_looks_both_ways_keeps_its_attention_mask(args, tokenizer):
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=8, n_layers=1, n_heads=2, hidden_dim=8)
    training = args.replace(**NO_EVALUATION).training
    trainer = LengthTrainer(AutoModelForSequenceClassification.from_config(config), training)
    assert not trainer.is_causal


@pytest.mark.slow
def test_in_bfloat16_on_a_cpu_short_batches_take_eager_attention_and_long_ones_the_fused_kernel(
    new_trainer, monkeypatch
):
    trainer, taken = new_trainer(bf16=True, num_train_epochs=1), set()
    attention = trainer.model.get_base_model().transformer.h[0].attn
    attention.register_forward_pre_hook(
        lambda module, inputs: taken.add((inputs[0].shape[1] <= 8, module.config._attn_implementation))
    )
    monkeypatch.setattr("peft_helpers.batches.EAGER_TOKENS", 8)
    trainer.train()
    assert taken == {(True, "eager"), (False, "sdpa")}


@pytest.mark.slow
def test_a_model_gets_its_own_attention_back_for_long_batches_of_the_next_trainer(new_trainer, args, monkeypatch):
    trainer = new_trainer(bf16=True, num_train_epochs=1)
    model = trainer.model
    predict(model, trainer.processing_class, trainer.eval_dataset, args.replace(bf16=True))
    assert model.config._attn_implementation == "eager"
    monkeypatch.setattr("peft_helpers.batches.EAGER_TOKENS", 0)
    predict(model, trainer.processing_class, trainer.eval_dataset, args.replace(bf16=True))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.parametrize(("use_dora", "kept"), [(False, torch.bfloat16), (True, torch.float32)])
def test_lora_gets_16_bits_as_they_are_and_dora_whose_norms_need_32_gets_these(
    use_dora, kept, model, tokenized, tokenizer, args, monkeypatch
):
    options = {"target_modules": r".*mlp\.c_proj", "use_dora": use_dora, "init_lora_weights": False}
    peft_model = get_peft_model(model, LoraConfig(**lora_arguments(args.lora, model) | options))
    args, types = args.replace(bf16=True, num_train_epochs=1), set()
    for name, layer in peft_model.named_modules():
        if name.endswith("lora_dropout.default"):  # behind an activation in 16 bits
            layer.register_forward_pre_hook(lambda layer, inputs: types.add(inputs[0].dtype))
    make_trainer(peft_model, tokenizer, tokenized, args).train()
    output = predict(peft_model, tokenizer, tokenized["test"], args)
    assert types == {kept}
    monkeypatch.setattr("peft_helpers.batches.disable_input_dtype_casting", lambda model, active: nullcontext())
    converted = predict(peft_model, tokenizer, tokenized["test"], args)
    assert types == {kept, torch.float32}
    assert_same_predictions(output, converted, torch.bfloat16)


def test_a_model_that_was_evaluated_in_32_bits_is_evaluated_in_16(peft_model, tokenized, tokenizer, args):
    outputs = [predict(peft_model, tokenizer, tokenized["test"], args.replace(bf16=bf16)) for bf16 in (False, True)]
    assert_same_predictions(*outputs, torch.bfloat16)
    assert not np.array_equal(*(output.predictions for output in outputs))


@pytest.mark.parametrize("is_available", [False, True])
def test_a_trainer_on_a_cpu_keeps_freed_memory(is_available, model, args, monkeypatch):
    training, keep = args.replace(**NO_EVALUATION).training, Mock()
    monkeypatch.setattr("peft_helpers.batches.keep_freed_memory", keep)
    training.use_cpu = not is_available
    LengthTrainer(model, training)
    assert keep.call_count == training.use_cpu


def test_layers_without_the_switch_are_left_as_they_are(model, args):
    config = LoraConfig(**lora_arguments(args.lora, model) | {"trainable_token_indices": [5]})
    trainer = LengthTrainer(get_peft_model(model, config), args.replace(bf16=True, **NO_EVALUATION).training)
    with trainer._keep_input_dtype():
        assert trainer.model.base_model.model.transformer.h[0].mlp.c_proj.cast_input_dtype_enabled


# Time


@pytest.mark.slow
def test_the_time_told_is_that_of_the_steps_and_evaluations(new_trainer, monkeypatch, capsys):
    monkeypatch.setattr(StepTimer, "seconds", lambda self: 3.0)
    new_trainer().train()
    # 10 evaluations of 8 examples are 20 batches of 4, and take as long as 8 steps
    assert "Training takes about 72 s here: 16 steps and 10 evaluations." in capsys.readouterr().out


def test_the_first_two_steps_do_not_count(monkeypatch):
    ticks = iter([0.0, 10.0, 20.0, 30.0, 40.0, 41.0, 50.0, 51.5])
    monkeypatch.setattr("peft_helpers.batches.time.perf_counter", lambda: next(ticks))
    timer = StepTimer()
    for _ in range(4):
        timer.on_step_begin(None, None, None)
        timer.on_step_end(None, None, None)
    assert timer.seconds() == 1.25


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (3600, "60 min")])
def test_durations_are_told_in_seconds_or_minutes(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("options", "steps"), [({}, 16), ({"max_steps": 5}, 5), ({"gradient_accumulation_steps": 3}, 6)]
)
def test_steps_are_counted_as_the_trainer_counts_them(new_trainer, options, steps):
    trainer = new_trainer(**options)
    trainer.train()
    assert count_steps(trainer.train_dataset, trainer.args) == trainer.state.max_steps == steps


def test_chunks_are_averaged_to_the_logarithms_of_mean_probabilities():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]])
    metrics = {"test_runtime": 2.0, "test_examples": 4}
    output = PredictionOutput(np.log(probabilities) + 5, np.array([1, 1, 1, 0]), metrics)
    dataset = Dataset.from_dict({"is_first": [True, False, False, True]})
    averaged = average_chunks(output, dataset, compute_metrics)
    np.testing.assert_allclose(np.exp(averaged.predictions), [[0.4, 0.6], [0.3, 0.7]])
    assert averaged.label_ids.tolist() == [1, 0]
    assert averaged.metrics.items() >= {"test_runtime": 2.0, "test_examples": 2, "test_accuracy": 0.5}.items()
    assert average_chunks(output, Dataset.from_dict({"length": [1] * 4}), compute_metrics) is output


# Class weights


def test_each_label_has_the_same_weight_as_a_whole():
    labels = torch.tensor([0] * 9 + [2])  # of four labels, two occur
    outputs = SequenceClassifierOutput(logits=torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))
    losses = torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="none")
    loss = balance_loss(labels.tolist(), 4)
    assert loss(outputs, labels) == pytest.approx(((losses[:9].mean() + losses[9]) / 2).item())
    half = SequenceClassifierOutput(logits=outputs.logits[5:])
    first = SequenceClassifierOutput(logits=outputs.logits[:5])
    parts = loss(first, labels[:5], torch.tensor(10)) + loss(half, labels[5:], torch.tensor(10))
    assert parts == pytest.approx(loss(outputs, labels).item())
