"""The Trainer: length-grouped batches, the best checkpoint by validation macro-F1, only the adapter kept."""

import shutil
from pathlib import Path

import torch
from datasets import DatasetDict
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from peft_helpers.config import RunConfig
from peft_helpers.metrics import compute_metrics

EVALUATIONS = 10  # a run: enough points for a curve and for early stopping
PATIENCE = 3  # evaluations without a better validation macro-F1


def evaluation_arguments(config: RunConfig) -> dict:
    """Return the Trainer's arguments that evaluation and training share: batch size, seed and precision.

    On a GPU the forward pass runs in bfloat16, or in float16 where bfloat16 is emulated; on a CPU in float32.
    """
    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "output_dir": str(config.checkpoint_folder),
        "seed": config.seed,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "bf16": bf16,
        "fp16": cuda and not bf16,
        "dataloader_pin_memory": cuda,
        "disable_tqdm": False,
        "report_to": "none",
    }


def training_arguments(config: RunConfig) -> TrainingArguments:
    """Return the Trainer's arguments for a run; loss, metrics and checkpoint come `EVALUATIONS` times in it."""
    return TrainingArguments(
        **evaluation_arguments(config),
        num_train_epochs=config.num_train_epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.06,  # of all steps
        per_device_train_batch_size=config.per_device_train_batch_size,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=1 / EVALUATIONS,
        save_steps=1 / EVALUATIONS,
        logging_steps=1 / EVALUATIONS,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="f1",
    )


def make_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokenized: DatasetDict, config: RunConfig
) -> Trainer:
    """Return the Trainer that trains ``model`` on ``tokenized["train"]`` and judges it on ``tokenized["validation"]``.

    The test rows are not handed to it: nothing can be chosen on them.
    """
    return Trainer(
        model=model,
        args=training_arguments(config),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(PATIENCE), DiscardCheckpoints()],
    )


class DiscardCheckpoints(TrainerCallback):
    """Removes earlier runs' checkpoints before training, since old ones count as new, and this run's after it."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Remove what an earlier run left, unless this one goes on from it."""
        if state.global_step == 0:
            _remove_checkpoints(args.output_dir)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Remove this run's checkpoints: the best one is in memory by now."""
        _remove_checkpoints(args.output_dir)


def _remove_checkpoints(folder: str) -> None:
    for checkpoint in Path(folder).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
