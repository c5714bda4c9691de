"""The Trainer: the best checkpoint by validation macro-F1, and interruptions."""

import math
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict, IterableDataset
from filelock import FileLock, Timeout
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from peft_helpers.arguments import Arguments
from peft_helpers.batches import LengthTrainer, longest_first
from peft_helpers.checkpoints import find_checkpoint, make_checkpoint_folder, run_key
from peft_helpers.distributed import CHECKPOINTING, OneDeviceArguments, process_state, report_idle_gpus
from peft_helpers.metrics import compute_metrics_and_loss
from peft_helpers.modeling import compute_dtype
from peft_helpers.resources import check_space, explain_out_of_memory

EVALUATIONS = 10  # a run: enough points for a curve and for early stopping
PATIENCE = 8  # evaluations without a better validation macro-F1
CHECKPOINTS = 2  # kept: the best one and the last one


def evaluation_arguments(args: Arguments) -> dict:
    """Return the Trainer's arguments that evaluation and training share: batch size, seed and precision.

    The forward pass computes in `compute_dtype`.
    """
    dtype = compute_dtype()
    return {
        "seed": args.training.seed,
        "per_device_eval_batch_size": args.training.per_device_eval_batch_size,
        "use_cpu": not torch.accelerator.is_available(),  # else several processes would not know of each other
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": False,
        "report_to": "none",
    }


def training_arguments(args: Arguments, output_dir: str) -> TrainingArguments:
    """Return the Trainer's arguments for a run; loss, metrics and checkpoint come `EVALUATIONS` times in it.

    ``output_dir`` is for the checkpoints.
    """
    return OneDeviceArguments(
        **evaluation_arguments(args),
        output_dir=output_dir,
        num_train_epochs=args.training.num_train_epochs,
        max_steps=args.training.max_steps or -1,  # -1: as many as the epochs take
        learning_rate=args.training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.06,  # of all steps
        per_device_train_batch_size=args.training.per_device_train_batch_size,
        gradient_accumulation_steps=args.training.gradient_accumulation_steps,
        **{
            CHECKPOINTING: args.training.activation_checkpointing,
            f"{CHECKPOINTING}_kwargs": {"use_reentrant": False},  # the reentrant one can lose LoRA's gradients
        },
        ddp_find_unused_parameters=False,  # with several processes: every weight that is trained has a gradient
        # A stream is read by each process, which takes its share.
        accelerator_config={"dispatch_batches": False} if args.data.streaming else None,
        eval_strategy="steps",
        eval_steps=1 / EVALUATIONS,
        eval_delay=2,  # steps: the warm-up's first has a learning rate of 0, and would count as the untrained model
        save_steps=1 / EVALUATIONS,
        logging_steps=1 / EVALUATIONS,
        save_total_limit=CHECKPOINTS,
        load_best_model_at_end=True,
        metric_for_best_model="f1",
        restore_callback_states_from_checkpoint=True,  # early stopping goes on counting
    )


def make_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokenized: DatasetDict, args: Arguments
) -> LengthTrainer:
    """Return the Trainer that trains ``model`` on ``tokenized["train"]`` and judges it on ``tokenized["validation"]``.

    The test rows are not handed to it: nothing can be chosen on them. Checkpoints go to a folder of the run's own,
    which `guard_training` removes when training has ended.

    Raises:
        ValueError: there is one training step only, which changes nothing.
        OSError: there is too little space for the checkpoints or for the adapter; see `check_space`.
        PermissionError: the folder of the checkpoints is not this user's alone; see `make_checkpoint_folder`.
    """
    report_idle_gpus()
    check_steps(tokenized["train"], args)
    validation = tokenized["validation"]
    check_space(args, model, tokenizer, CHECKPOINTS + 1)  # the third is being written while two are kept
    key = run_key(training_arguments(args, output_dir="not part of the key"), model, tokenized)
    trainer = LengthTrainer(
        model=model,
        args=training_arguments(args, str(make_checkpoint_folder(args, key))),
        train_dataset=tokenized["train"],
        eval_dataset=validation.select(longest_first(validation)),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics_and_loss,
        callbacks=[EarlyStoppingCallback(PATIENCE)],
    )
    # GPT-2's loss is a mean over the batch, though its forward takes any keyword: without this, nobody divides it by
    # gradient_accumulation_steps (transformers issue 47688).
    trainer.model_accepts_loss_kwargs = False
    return trainer


def check_steps(train: Dataset | IterableDataset, args: Arguments) -> None:
    """Check that ``train`` makes more than the one step whose learning rate is still 0.

    Raises:
        ValueError: it does not; the message says what to change.
    """
    if args.training.max_steps is not None:
        if args.training.max_steps < 2:
            raise ValueError("max_steps is 1: one training step, in which the learning rate is still 0. Raise it.")
        return
    processes = process_state().num_processes
    rows_a_step = args.training.per_device_train_batch_size * args.training.gradient_accumulation_steps * processes
    if args.training.num_train_epochs * math.ceil(train.num_rows / rows_a_step) < 2:
        raise ValueError(
            f"{train.num_rows} rows, {rows_a_step} a step, for {args.training.num_train_epochs:g} epochs make one training "
            "step, in which the learning rate is still 0. Raise --num_train_epochs or lower "
            "--per_device_train_batch_size."
        )


@contextmanager
def guard_training(trainer: LengthTrainer) -> Iterator[str | None]:
    """Guard ``trainer.train(resume_from_checkpoint=...)`` with the checkpoint that this yields, None for a fresh start.

    A run that was killed or ended in an error goes on from its last checkpoint. Ctrl-C ends training after the step,
    with the best model so far. Running out of memory becomes a message with what to change. The checkpoints are
    removed when training has ended, and kept when it was interrupted.

    Of several processes, the first one looks after the checkpoints; Ctrl-C then ends them all at once, since those
    that stop would leave the others waiting.

    Raises:
        FileExistsError: another process is training the same run.
        MemoryError: memory ran out; see `explain_out_of_memory`.
    """
    folder = Path(trainer.args.output_dir)
    folder.mkdir(mode=0o700, exist_ok=True)  # it was removed if this trainer has trained before
    main = process_state().is_main_process
    with (
        _lock(folder) if main else nullcontext(),
        _report_error(folder) if main else nullcontext(),
        _stop_at_interrupt(trainer) as interrupt,
        explain_out_of_memory(trainer),
    ):
        checkpoint = find_checkpoint(folder) if main else None
        (checkpoint,) = broadcast_object_list([checkpoint])
        if checkpoint is not None and main:
            print(f"Resuming from step {_step(checkpoint)} of an interrupted run.")
        yield checkpoint
    interrupted = interrupt.requested and trainer.state.global_step < trainer.state.max_steps
    if interrupted:
        _report_interrupt(trainer)
    process_state().wait_for_everyone()
    if main and (not interrupted or get_last_checkpoint(folder) is None):
        shutil.rmtree(folder)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise FileExistsError(
            f"Another process is training the same run, with its checkpoints in {folder}. Wait for it, or name another "
            "--checkpoint_dir."
        ) from None


@contextmanager
def _report_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        checkpoint = find_checkpoint(folder)
        if checkpoint is not None:
            print(
                f"Training did not end well, but its first {_step(checkpoint)} steps are kept: run the notebook from "
                "the top, or the command, again with the same settings to go on from there."
            )
        raise


def _step(checkpoint: str) -> int:
    return int(checkpoint.rpartition("-")[2])


class StopAtInterrupt(TrainerCallback):
    """Ends training after the step in which Ctrl-C was pressed; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.requested = False
        self.steps = 0

    def request(self, *_) -> None:
        """Remember the interrupt: a handler for `signal.signal`."""
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Stop if that was asked for; judge the model first where no evaluation has done so yet."""
        self.steps += 1
        if self.requested and self.steps > 2:  # transformers' bar in a notebook fails if training ends with step 2
            control.should_training_stop = True
            if state.best_global_step is None:
                control.should_log = control.should_evaluate = True


@contextmanager
def _stop_at_interrupt(trainer: LengthTrainer) -> Iterator[StopAtInterrupt]:
    callback = StopAtInterrupt()
    trainer.add_callback(callback)
    # Python hands signals to the main thread only.
    handled = threading.current_thread() is threading.main_thread() and process_state().num_processes == 1
    previous = signal.signal(signal.SIGINT, callback.request) if handled else None
    try:
        yield callback
    finally:
        if handled:
            signal.signal(signal.SIGINT, previous)
        trainer.remove_callback(callback)


def _report_interrupt(trainer: LengthTrainer) -> None:
    state = trainer.state
    print(
        f"Training was interrupted after step {state.global_step} of {state.max_steps}. The model is that of step "
        f"{state.best_global_step}, the best so far (validation {trainer.args.metric_for_best_model} "
        f"{state.best_metric:.3f}): what follows goes on with it. To train to the end instead, run the notebook "
        "from the top, or the command, again."
    )
