"""The Trainer: length-grouped batches, the best checkpoint by validation, interruptions, and predictions."""

import tempfile
from dataclasses import dataclass, replace

import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import PredictionOutput

from peft_helpers import INSTALL
from peft_helpers.adapters import save_recipe
from peft_helpers.arguments import OPTIONS, Arguments, TrainingOptions
from peft_helpers.batches import LengthTrainer, StepTimer, average_chunks, count_steps, find_first, longest_first
from peft_helpers.distributed import compute_dtype
from peft_helpers.interruptions import CHECKPOINTS_RUN_FILE, explain_out_of_memory
from peft_helpers.metrics import compute_metrics_and_loss
from peft_helpers.modeling import Task
from peft_helpers.tokenization import tokenize_splits

PATIENCE = 8  # evaluations without a better validation score; there are ten in a run
NO_EVALUATION = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "push_to_hub": False,
                 "logging_strategy": "no", "report_to": "none"}  # fmt: skip
CLASSIFICATION = Task(
    task_type="SEQ_CLS",
    auto_class=transformers.AutoModelForSequenceClassification,
    tokenize=tokenize_splits,
    make_data_collator=transformers.DataCollatorWithPadding,
    compute_metrics=compute_metrics_and_loss,
    metric_for_best_model="f1",
)


@dataclass
class TrainingArguments(TrainingOptions, transformers.TrainingArguments):
    """Transformers' arguments with this project's defaults: ten evaluations a run, the best checkpoint is kept."""

    warmup_steps: float = 0.06  # of all steps
    eval_strategy: str = "steps"
    eval_steps: float = 0.1
    eval_delay: float = 2  # steps: the warm-up's first has a learning rate of 0, and would count as the untrained model
    save_steps: float = 0.1
    logging_steps: float = 0.1
    save_total_limit: int = 2  # checkpoints: the best one and the last one
    load_best_model_at_end: bool = True
    restore_callback_states_from_checkpoint: bool = True  # early stopping goes on counting
    ddp_find_unused_parameters: bool = False  # with several processes: every weight that is trained has a gradient
    disable_tqdm: bool = False
    log_level_replica: str = "error"
    fp16: bool | None = None

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else processes do not know of each other
        if self.bf16 is None and self.fp16 is None:
            self.bf16, self.fp16 = (compute_dtype() == dtype for dtype in (torch.bfloat16, torch.float16))
        self.bf16, self.fp16 = bool(self.bf16), bool(self.fp16)
        self.dataloader_pin_memory = torch.cuda.is_available()
        transformers.TrainingArguments.__post_init__(self)
        for tracker in get_reporting_integration_callbacks(self.report_to):
            try:
                tracker()
            except RuntimeError as error:  # its package is missing
                raise ImportError(f"report_to is {self.report_to}: {error} For TensorBoard, {INSTALL}.") from error

    @property
    def dtype(self) -> torch.dtype:
        """The type that large products are computed in."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32

    @property
    def n_gpu(self) -> int:
        """The number of GPUs that this process uses: 1 or 0, since ``DataParallel`` would multiply the batch."""
        return min(super().n_gpu, 1)


ALL_OPTIONS = [TrainingArguments if group is TrainingOptions else group for group in OPTIONS]


def make_arguments(*, profile: str = "auto", **options) -> Arguments:
    """Return a run's arguments: defaults but for these options; one that is unknown or out of range is a ValueError."""
    return Arguments(*transformers.HfArgumentParser(ALL_OPTIONS).parse_dict(options), profile)


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokenized: DatasetDict,
    args: Arguments,
    task: Task = CLASSIFICATION,
) -> LengthTrainer:
    """Return the Trainer that trains ``model`` on ``tokenized["train"]`` and evaluates on ``tokenized["validation"]``.

    The test examples are not passed to it: nothing can be chosen on them. Checkpoints lie in ``output_dir`` while
    training lasts; see `guard_training`. A single training step, which changes nothing, is a ValueError.
    """
    train, validation, arguments = tokenized["train"], tokenized["validation"], args.training
    validation = validation.select(np.flatnonzero(find_first(validation)))  # all chunks, ten times, would take long
    if count_steps(train, arguments) < 2:
        raise ValueError(
            f"{train.num_rows} examples for {arguments.num_train_epochs:g} epochs make one training step, in which the "
            "learning rate is still 0. Raise --num_train_epochs or lower --per_device_train_batch_size."
        )
    save_recipe(args, arguments.output_dir, CHECKPOINTS_RUN_FILE)
    # Where a threshold is tuned, the macro F1 may be that of one label throughout.
    metric = "loss" if arguments.tune_threshold else task.metric_for_best_model
    options = {"metric_for_best_model": metric, "greater_is_better": None}  # transformers tells by its name
    if isinstance(train, IterableDataset):
        options["accelerator_config"] = {"dispatch_batches": False}  # each process reads it and takes its share
    callbacks = [StepTimer(validation.num_rows)]
    callbacks += [transformers.EarlyStoppingCallback(PATIENCE)] if arguments.eval_strategy != "no" else []
    arguments, validation = replace(arguments, **options), validation.select(longest_first(validation))
    return _new_trainer(
        model, tokenizer, arguments, task, train_dataset=train, eval_dataset=validation, callbacks=callbacks
    )


def _new_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: TrainingArguments, task: Task, **options
) -> LengthTrainer:
    options |= {"data_collator": task.make_data_collator(tokenizer), "compute_metrics": task.compute_metrics}
    return LengthTrainer(model, replace(arguments, push_to_hub=False), processing_class=tokenizer, **options)


def predict(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    args: Arguments,
    task: Task = CLASSIFICATION,
) -> PredictionOutput:
    """Return logits (``predictions``, shape (examples, labels)) and ``label_ids``, shape (examples,), in their order.

    Batches are length-grouped, which saves padding, the longest first, so that a MemoryError comes at once; then the
    order is restored and chunks averaged. ``metrics`` has those of ``task``, prefixed with ``test_``, and the time that
    it took. For a task without metrics, ``predictions`` is None and there are ``test_loss`` and ``test_perplexity``.
    """
    order, options = longest_first(dataset), {"prediction_loss_only": task.compute_metrics is None, **NO_EVALUATION}
    with tempfile.TemporaryDirectory() as folder:
        arguments = replace(args.training, output_dir=folder, **options)
        # Else the Trainer would refuse a 4-bit model without adapter, since it cannot be trained.
        # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer_utils.py
        model._hf_peft_config_loaded, before = True, getattr(model, "_hf_peft_config_loaded", False)
        try:
            trainer = _new_trainer(model, tokenizer, arguments, task)
        finally:
            model._hf_peft_config_loaded = before
        with explain_out_of_memory(trainer):
            output = trainer.predict(dataset.select(order))
    output.metrics["test_examples"] = len(order)
    if output.predictions is None:
        output.metrics["test_perplexity"] = float(np.exp(output.metrics["test_loss"]))
        return output
    back = np.argsort(order)
    output = PredictionOutput(output.predictions[back], output.label_ids[back], output.metrics)
    return average_chunks(output, dataset, task.compute_metrics)
