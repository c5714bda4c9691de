"""The Trainer: length-grouped batches, the best checkpoint by validation macro-F1, only the adapter kept."""

import shutil
import tempfile
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
PATIENCE = 8  # evaluations without a better validation macro-F1


def evaluation_arguments(config: RunConfig) -> dict:
    """Return the Trainer's arguments that evaluation and training share: batch size, seed and precision.

    On a GPU the forward pass runs in bfloat16, or in float16 where bfloat16 is emulated; on a CPU in float32.
    """
    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "seed": config.seed,
        "per_device_eval_batch_size": config.per_device_eval_batch_size,
        "bf16": bf16,
        "fp16": cuda and not bf16,
        "dataloader_pin_memory": cuda,
        "disable_tqdm": False,
        "report_to": "none",
    }


def training_arguments(config: RunConfig, output_dir: str) -> TrainingArguments:
    """Return the Trainer's arguments for a run; loss, metrics and checkpoint come `EVALUATIONS` times in it.

    ``output_dir`` is for the checkpoints.
    """
    return TrainingArguments(
        **evaluation_arguments(config),
        output_dir=output_dir,
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

    The test rows are not handed to it: nothing can be chosen on them. Checkpoints go to a new folder, which is removed
    when training ends: in ``config.checkpoint_dir``, by default the system's temporary one, as a workspace's space
    limit counts what lies beside the notebook.
    """
    if config.checkpoint_dir is not None:
        Path(config.checkpoint_dir).mkdir(parents=True, exist_ok=True)
    checkpoints = tempfile.mkdtemp(prefix="checkpoints-", dir=config.checkpoint_dir)
    return Trainer(
        model=model,
        args=training_arguments(config, checkpoints),
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(PATIENCE), DiscardCheckpoints()],
    )


class DiscardCheckpoints(TrainerCallback):
    """Removes the folder of checkpoints when training has ended: the best one is in memory by then."""

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Remove ``args.output_dir``."""
        shutil.rmtree(args.output_dir)
