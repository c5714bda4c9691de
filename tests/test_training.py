from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import CHECKPOINTING
from transformers import TrainerCallback, set_seed

from peft_helpers import (
    changed_parameters,
    compute_metrics,
    distributed,
    fingerprint_parameters,
    guard_training,
    make_arguments,
    make_trainer,
    predict,
    replace_folder,
)
from peft_helpers.distributed import compute_dtype
from peft_helpers.training import CLASSIFICATION

# Arguments


def test_every_option_has_its_place_whatever_its_group():
    args = make_arguments(lora_r=2, max_length=9, learning_rate=1e-3, weight_decay=0.5, profile="offline")
    assert (args.lora.lora_r, args.data.max_length, args.profile) == (2, 9, "offline")
    assert (args.training.learning_rate, args.training.weight_decay) == (1e-3, 0.5)
    assert args.training.num_train_epochs == 2.0


@pytest.mark.reliability("bad input")
def test_an_option_that_is_not_known_is_named():
    with pytest.raises(ValueError, match=r"not used.*rank"):
        make_arguments(rank=8)


def test_the_arguments_are_transformers_own_with_other_defaults(args):
    assert isinstance(args.training, transformers.TrainingArguments)
    again = args.replace(learning_rate=1e-3).training
    assert (again.learning_rate, again.eval_strategy, again.save_strategy) == (1e-3, "steps", "steps")
    assert args.replace(eval_strategy="epoch", save_strategy="epoch", report_to="none").training.eval_steps is not None


@pytest.mark.parametrize("place", [None, "elsewhere"])
def test_tensorboard_gets_what_the_trainer_logs_if_it_is_asked_for(place, new_trainer, args, monkeypatch, tmp_path):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert args.training.report_to == []
    folder = Path(args.training.output_dir)
    if place:
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / place))
    new_trainer(report_to=["tensorboard"], max_steps=4).train()
    with replace_folder(folder) as new:  # the log outlasts the saving of the adapter
        (new / "adapter_config.json").touch()
    (file,) = tmp_path.glob(f"{place}/events.*" if place else "adapter/runs/*/events.*")
    events = loader.EventAccumulator(str(file.parent)).Reload()
    assert {"train/loss", "eval/f1"} <= set(events.Tags()["scalars"])
    assert (folder / "runs").exists() == (place is None)


@pytest.mark.reliability("bad input")
def test_a_tracker_that_is_unknown_or_not_installed_is_named(args, monkeypatch):
    with pytest.raises(ValueError, match=r"tensorbord is not supported, only .*tensorboard"):
        args.replace(report_to=["tensorbord"])
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(ImportError, match=r"report_to is .*requires tensorboard .*pip install -r .*optional_require"):
        args.replace(report_to=["tensorboard"])


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_mixed_precision_follows_the_gpu(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: native)
    assert compute_dtype() == dtype


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_a_cpu_trains_in_bfloat16_where_it_has_it_unless_told_otherwise(args, monkeypatch, has_bfloat16):
    monkeypatch.setattr(distributed, "cpu_has_bfloat16", lambda: has_bfloat16)
    training = args.replace(bf16=None, fp16=None).training
    assert (training.bf16, training.fp16, training.use_cpu) == (has_bfloat16, False, True)
    assert not args.replace(bf16=False).training.bf16


# Training


@pytest.mark.slow
def test_training_lowers_the_loss_and_changes_only_what_is_trainable(new_trainer):
    trainer = new_trainer()
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)
    assert any("score" in name for name in trainable)
    before, loss = fingerprint_parameters(trainer.model), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < loss
    assert changed_parameters(before, trainer.model) == trainable


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("class_weights", [None, "balanced"])
def test_the_validation_loss_weighs_each_example_alike(new_trainer, raw, class_weights):
    raw["train"] = raw["train"].select(range(5, 29))
    trainer = new_trainer(class_weights=class_weights)
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
    message = r"32 examples for 1 epochs make one training step.*num_train_epochs"
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
    trainer.train()
    return gradients.first


@pytest.mark.slow
def test_activation_checkpointing_gives_the_same_model_and_loses_no_gradient(new_trainer):
    usual, saving = new_trainer(), new_trainer(**CHECKPOINTING)
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


@pytest.mark.slow
@pytest.mark.parametrize("class_weights", [None, "balanced"])  # of the labels here, which are even, they are 1
def test_accumulated_gradients_are_those_of_the_larger_batch(new_trainer, class_weights):
    settings = {"lora_dropout": 0.0, "num_train_epochs": 1}
    whole, parts = (
        new_trainer(per_device_train_batch_size=8, **settings),
        new_trainer(
            per_device_train_batch_size=2, gradient_accumulation_steps=4, class_weights=class_weights, **settings
        ),
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


def test_with_a_threshold_the_loss_chooses_the_checkpoint(new_trainer):
    assert new_trainer().args.metric_for_best_model == "f1"
    chosen = new_trainer(tune_threshold=True).args
    assert (chosen.metric_for_best_model, chosen.greater_is_better) == ("loss", False)
