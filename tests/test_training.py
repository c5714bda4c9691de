import errno
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import ProgressCallback, TrainerCallback, set_seed
from transformers.utils.notebook import NotebookProgressCallback

from peft_helpers import (
    assert_same_logits,
    changed_parameters,
    evaluation_arguments,
    fingerprint_parameters,
    guard_training,
    load_base_model,
    make_trainer,
    plot_training,
    predict,
    prepare_splits,
    saved_classifier_arguments,
    set_padding,
    speed_up,
    tokenize_dataset,
    training_arguments,
)


@pytest.fixture
def trainer(peft_model, tokenizer, tokenized, args):
    return make_trainer(peft_model, tokenizer, tokenized, args)


def test_training_lowers_the_loss_and_changes_only_what_is_trainable(trainer, peft_model):
    trainable = {name for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)
    assert any("score" in name for name in trainable)
    before, loss = fingerprint_parameters(peft_model), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < loss
    assert changed_parameters(before, peft_model) == trainable


def test_the_saved_adapter_reloads_to_the_same_logits(trainer, peft_model, tokenizer, tokenized, args):
    trainer.train()
    tuned = predict(peft_model, tokenizer, tokenized["test"], args)
    peft_model.save_pretrained(args.training.output_dir)
    peft_model.config.save_pretrained(args.training.output_dir)
    weights = load_file(Path(args.training.output_dir) / "adapter_model.safetensors")
    assert all("lora_" in name or "score" in name for name in weights)
    assert any("score" in name for name in weights)
    set_seed(123)  # another random head, which the adapter's must replace
    arguments = saved_classifier_arguments(args.training.output_dir)
    reloaded = AutoPeftModelForSequenceClassification.from_pretrained(args.training.output_dir, **arguments)
    set_padding(tokenizer, reloaded)
    speed_up(reloaded)
    assert reloaded.config.id2label == {0: "negative", 1: "positive"}
    outputs = predict(reloaded, tokenizer, tokenized["test"], args)
    assert assert_same_logits(tuned.predictions, outputs.predictions, torch.float32) == 0


def test_two_runs_give_the_same_metrics(raw, args, tokenizer):
    def run() -> np.ndarray:
        data = prepare_splits(raw, args)
        model = load_base_model(args, data["train"].features["label"].names, tokenizer)
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True))
        tokenized = tokenize_dataset(data, tokenizer, args.data.max_length)
        make_trainer(model, tokenizer, tokenized, args).train()
        return predict(model, tokenizer, tokenized["test"], args).predictions

    assert np.array_equal(run(), run())


def test_the_best_checkpoint_is_kept_and_its_files_are_not(peft_model, tokenizer, tokenized, args):
    folder = Path(args.checkpoint_dir)
    other = folder / "checkpoint-999"
    other.mkdir(parents=True)
    trainer = make_trainer(peft_model, tokenizer, tokenized, args)
    assert Path(trainer.args.output_dir).parent == folder
    with guard_training(trainer) as checkpoint:
        assert checkpoint is None
        trainer.train(resume_from_checkpoint=checkpoint)
    scores = [entry["eval_f1"] for entry in trainer.state.log_history if "eval_f1" in entry]
    assert trainer.evaluate()["eval_f1"] == pytest.approx(max(scores))
    assert list(folder.iterdir()) == [other]


def test_early_stopping_ends_a_run_that_no_longer_improves(peft_model, tokenizer, tokenized, args):
    trainer = make_trainer(peft_model, tokenizer, tokenized, args.replace(learning_rate=1e-12, num_train_epochs=20))
    trainer.train()
    assert trainer.state.global_step < trainer.state.max_steps


def test_the_trainer_never_sees_the_test_rows(peft_model, tokenizer, tokenized, args):
    trainer = make_trainer(peft_model, tokenizer, {n: tokenized[n] for n in ("train", "validation")}, args)
    assert sorted(trainer.eval_dataset["input_ids"][:]) == sorted(tokenized["validation"]["input_ids"][:])


def test_batches_are_grouped_by_length(trainer, tokenized):
    trainer.train_dataset = concatenate_datasets([tokenized["train"]] * 8)
    lengths = [batch["attention_mask"].sum(-1) for batch in trainer.get_train_dataloader()]
    padding = sum(int((batch.max() - batch).sum()) for batch in lengths)
    assert padding < 0.1 * sum(int(batch.sum()) for batch in lengths)


@pytest.mark.parametrize(("native", "expected"), [(True, (True, False)), (False, (False, True))])
def test_mixed_precision_follows_the_gpu(args, monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    arguments = evaluation_arguments(args)
    assert (arguments["bf16"], arguments["fp16"]) == expected


def test_a_cpu_trains_in_full_precision(args):
    arguments = training_arguments(args, args.training.output_dir)
    assert not arguments.bf16
    assert not arguments.fp16


class PressCtrlC(TrainerCallback):
    def __init__(self, *steps: int):
        self.steps = steps

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        for _ in range(self.steps.count(state.global_step)):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.reliability("fault")
def test_the_validation_loss_weighs_each_row_alike(new_trainer):
    trainer = new_trainer()
    trainer.args.per_device_eval_batch_size = 3  # the last batch has fewer rows
    assert trainer.eval_dataset.num_rows % 3
    output = trainer.predict(trainer.eval_dataset)
    losses = torch.nn.functional.cross_entropy(torch.tensor(output.predictions), torch.tensor(output.label_ids))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses.item(), abs=1e-6)


def test_ctrl_c_keeps_the_best_model_and_says_so(new_trainer, capsys):
    """16 steps, an evaluation and a checkpoint every second one."""
    trainer, handler = new_trainer(), signal.getsignal(signal.SIGINT)
    trainer.add_callback(PressCtrlC(12))
    with guard_training(trainer) as checkpoint:
        training = trainer.train(resume_from_checkpoint=checkpoint)
    best = trainer.state.best_global_step
    assert best < 12  # the model of the last step is not the one that is kept
    assert (
        f"Training was interrupted after step 13 of 16. The model is that of step {best}, the best so far (validation "
        f"f1 {trainer.state.best_metric:.3f}): what follows goes on with it." in capsys.readouterr().out
    )
    assert trainer.evaluate()["eval_f1"] == trainer.state.best_metric
    assert training.metrics["train_runtime"] > 0
    assert signal.getsignal(signal.SIGINT) is handler
    plot_training(trainer.state.log_history)
    with guard_training(new_trainer()) as checkpoint:
        assert checkpoint.endswith("checkpoint-12")


@pytest.mark.reliability("fault")
def test_ctrl_c_before_the_first_evaluation_judges_the_model_as_it_is(new_trainer, capsys):
    trainer = new_trainer(num_train_epochs=10)  # the first evaluation would be after step 8
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(NotebookProgressCallback)  # which has no time for a step yet, after the first two
    trainer.add_callback(PressCtrlC(1))
    with guard_training(trainer):
        trainer.train()
    assert "after step 3 of 80. The model is that of step 3, the best so far" in capsys.readouterr().out
    assert [entry["step"] for entry in trainer.state.log_history if "eval_f1" in entry] == [3]
    assert trainer.evaluate()["eval_f1"] == trainer.state.best_metric
    plot_training(trainer.state.log_history)
    assert not Path(trainer.args.output_dir).exists()


@pytest.mark.reliability("fault")
def test_a_second_ctrl_c_interrupts_at_once_and_keeps_the_checkpoints(new_trainer, capsys):
    trainer, handler = new_trainer(), signal.getsignal(signal.SIGINT)
    trainer.add_callback(PressCtrlC(4, 4))
    with pytest.raises(KeyboardInterrupt), guard_training(trainer):
        trainer.train()
    assert trainer.state.global_step == 4
    assert "Training did not end well, but its first 4 steps are kept: run the notebook from" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    with guard_training(new_trainer()) as checkpoint:
        assert checkpoint.endswith("checkpoint-4")


@pytest.mark.reliability("fault")
def test_a_disk_that_becomes_full_while_a_checkpoint_is_written_costs_no_earlier_one(new_trainer, monkeypatch, capsys):
    save = torch.save

    def save_until_full(content, path) -> None:
        if "checkpoint-12" in str(path) and "optimizer" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        save(content, path)

    monkeypatch.setattr(torch, "save", save_until_full)
    trainer = new_trainer()
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), guard_training(trainer):
        trainer.train()
    assert "its first 10 steps are kept" in capsys.readouterr().out
    with guard_training(new_trainer()) as checkpoint:
        assert checkpoint.endswith("checkpoint-10")


def test_training_in_another_thread_is_left_without_ctrl_c(new_trainer):
    trainer, finished = new_trainer(num_train_epochs=1), []

    def train() -> None:
        with guard_training(trainer):
            finished.append(trainer.train())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert finished[0].global_step == 8


def test_early_stopping_goes_on_counting_in_a_resumed_run(new_trainer):
    idle = {"learning_rate": 1e-12, "num_train_epochs": 20}  # 160 steps, 16 between two evaluations
    first = new_trainer(**idle)
    first.add_callback(PressCtrlC(40, 40))
    with pytest.raises(KeyboardInterrupt), guard_training(first):
        first.train()
    resumed = new_trainer(**idle)
    with guard_training(resumed) as checkpoint:
        assert checkpoint.endswith("checkpoint-32")
        resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.state.global_step == 144  # eight evaluations after the first, without a better one
    steps = [entry["step"] for entry in resumed.state.log_history if "eval_f1" in entry]
    assert steps == list(range(16, 145, 16))


def test_a_trainer_may_train_twice(new_trainer):
    trainer = new_trainer(num_train_epochs=1)
    for _ in range(2):
        with guard_training(trainer) as checkpoint:
            assert checkpoint is None
            assert Path(trainer.args.output_dir).stat().st_mode & 0o777 == 0o700
            trainer.train()


def test_each_epoch_has_an_order_of_its_own_that_follows_from_the_seed(new_trainer):
    class Remember(TrainerCallback):
        def __init__(self):
            self.orders = []

        def on_step_begin(self, args, state, control, train_dataloader, **kwargs) -> None:
            if state.global_step % 8 == 0:
                self.orders.append(list(train_dataloader.batch_sampler.sampler))

    orders = []
    for _ in range(2):
        trainer, remember = new_trainer(), Remember()
        trainer.add_callback(remember)
        torch.rand(len(orders))  # the global generator has no say
        trainer.train()
        orders.append(remember.orders)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]
    assert sorted(orders[0][0]) == list(range(32))


def test_a_run_of_few_steps_keeps_no_untrained_model(new_trainer):
    trainer = new_trainer(per_device_train_batch_size=16, num_train_epochs=1)
    before = fingerprint_parameters(trainer.model)
    trainer.train()
    assert trainer.state.max_steps == trainer.state.best_global_step == 2
    assert changed_parameters(before, trainer.model)


@pytest.mark.reliability("bad input")
def test_a_single_step_is_refused(new_trainer):
    with pytest.raises(ValueError, match=r"32 rows, 32 a step, for 1 epochs make one training step.*num_train_epochs"):
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
