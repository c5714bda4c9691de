from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import set_seed

from peft_helpers import (
    assert_same_logits,
    changed_parameters,
    evaluation_arguments,
    fingerprint_parameters,
    load_base_model,
    make_trainer,
    predict,
    prepare_splits,
    saved_classifier_arguments,
    set_padding,
    tokenize_dataset,
    training_arguments,
)


@pytest.fixture
def trainer(peft_model, tokenizer, tokenized, config):
    return make_trainer(peft_model, tokenizer, tokenized, config)


def test_training_lowers_the_loss_and_changes_only_what_is_trainable(trainer, peft_model):
    trainable = {name for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)
    assert any("score" in name for name in trainable)
    before, loss = fingerprint_parameters(peft_model), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < loss
    assert changed_parameters(before, peft_model) == trainable


def test_the_saved_adapter_reloads_to_the_same_logits(trainer, peft_model, tokenizer, tokenized, config):
    trainer.train()
    tuned = predict(peft_model, tokenizer, tokenized["test"], config)
    peft_model.save_pretrained(config.output_dir)
    peft_model.config.save_pretrained(config.output_dir)
    weights = load_file(Path(config.output_dir) / "adapter_model.safetensors")
    assert all("lora_" in name or "score" in name for name in weights)
    assert any("score" in name for name in weights)
    set_seed(123)  # another random head, which the adapter's must replace
    arguments = saved_classifier_arguments(config.output_dir)
    reloaded = AutoPeftModelForSequenceClassification.from_pretrained(config.output_dir, **arguments)
    set_padding(tokenizer, reloaded)
    assert reloaded.config.id2label == {0: "negative", 1: "positive"}
    outputs = predict(reloaded, tokenizer, tokenized["test"], config)
    assert assert_same_logits(tuned.predictions, outputs.predictions, reloaded.device) == 0


def test_two_runs_give_the_same_metrics(raw, config, tokenizer):
    def run() -> np.ndarray:
        data = prepare_splits(raw, config)
        model = load_base_model(config, data["train"].features["label"].names, tokenizer)
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True))
        tokenized = tokenize_dataset(data, tokenizer, config.max_length)
        make_trainer(model, tokenizer, tokenized, config).train()
        return predict(model, tokenizer, tokenized["test"], config).predictions

    assert_same_logits(run(), run(), torch.device("cpu"))


def test_the_best_checkpoint_is_kept_and_its_files_are_not(peft_model, tokenizer, tokenized, config):
    folder = Path(config.checkpoint_dir)
    other = folder / "checkpoint-999"
    other.mkdir(parents=True)
    trainer = make_trainer(peft_model, tokenizer, tokenized, config)
    assert Path(trainer.args.output_dir).parent == folder
    trainer.train()
    scores = [entry["eval_f1"] for entry in trainer.state.log_history if "eval_f1" in entry]
    assert trainer.evaluate()["eval_f1"] == pytest.approx(max(scores))
    assert list(folder.iterdir()) == [other]


def test_checkpoints_lie_outside_the_notebooks_folder(peft_model, tokenizer, tokenized, config):
    trainers = [make_trainer(peft_model, tokenizer, tokenized, replace(config, checkpoint_dir=None)) for _ in range(2)]
    folders = {Path(trainer.args.output_dir) for trainer in trainers}
    assert len(folders) == 2
    assert not any(folder.is_relative_to(Path.cwd()) for folder in folders)


def test_early_stopping_ends_a_run_that_no_longer_improves(peft_model, tokenizer, tokenized, config):
    trainer = make_trainer(peft_model, tokenizer, tokenized, replace(config, learning_rate=1e-12, num_train_epochs=20))
    trainer.train()
    assert trainer.state.global_step < trainer.state.max_steps


def test_the_trainer_never_sees_the_test_rows(peft_model, tokenizer, tokenized, config):
    trainer = make_trainer(peft_model, tokenizer, {n: tokenized[n] for n in ("train", "validation")}, config)
    assert trainer.eval_dataset is tokenized["validation"]


def test_batches_are_grouped_by_length(trainer, tokenized):
    trainer.train_dataset = concatenate_datasets([tokenized["train"]] * 8)
    lengths = [batch["attention_mask"].sum(-1) for batch in trainer.get_train_dataloader()]
    padding = sum(int((batch.max() - batch).sum()) for batch in lengths)
    assert padding < 0.1 * sum(int(batch.sum()) for batch in lengths)


@pytest.mark.parametrize(("native", "expected"), [(True, (True, False)), (False, (False, True))])
def test_mixed_precision_follows_the_gpu(config, monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    arguments = evaluation_arguments(config)
    assert (arguments["bf16"], arguments["fp16"]) == expected


def test_a_cpu_trains_in_full_precision(config):
    arguments = training_arguments(config, config.output_dir)
    assert not arguments.bf16
    assert not arguments.fp16
