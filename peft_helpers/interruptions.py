"""What can end a run early: a kill, Ctrl-C, a full disk, too little memory. Nothing already computed is lost."""

import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from peft_helpers.distributed import process_state

# The argument's name in transformers 5.23, and in the older ones that GPU images have.
CHECKPOINTING = (
    "activation_checkpointing" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient_checkpointing"
)


@contextmanager
def guard_training(trainer: Trainer) -> Iterator[str | None]:
    """Guard ``trainer.train(resume_from_checkpoint=...)`` with the checkpoint that this yields, None for a fresh start.

    A run that was killed or ended in an error goes on from its last checkpoint in ``output_dir``. Ctrl-C ends training
    after the step, with the best model so far. Running out of memory becomes a message with what to change. The
    checkpoints are removed when training has ended, and kept when it was interrupted.

    Raises:
        MemoryError: memory ran out; see `explain_out_of_memory`.
    """
    folder, main = Path(trainer.args.output_dir), process_state().is_main_process
    interrupt = StopAtInterrupt()
    trainer.add_callback(interrupt)
    (checkpoint,) = broadcast_object_list([find_checkpoint(folder) if main else None])
    if checkpoint is not None:
        print(f"Resuming from {Path(checkpoint).name} of an interrupted run.")
    try:
        with explain_out_of_memory(trainer):
            yield checkpoint
    except BaseException:
        if main and (last := find_checkpoint(folder)):
            print(f"Training failed, but {last} is kept: run the same again to go on from there.")
        raise
    finally:
        interrupt.restore()
        trainer.remove_callback(interrupt)
    state = trainer.state
    process_state().wait_for_everyone()
    if interrupt.requested and state.global_step < state.max_steps:
        print(
            f"Training was interrupted after step {state.global_step} of {state.max_steps}. The model is the best so "
            "far, and what follows goes on with it. To train to the end instead, run the same again."
        )
    elif main:
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path)


def find_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint in ``folder`` that training can go on from, or None.

    Those after it are removed: half-written when the run was killed, or with no step left, where the Trainer would take
    one more.
    """
    while (checkpoint := get_last_checkpoint(folder) if folder.is_dir() else None) is not None:
        try:
            state = TrainerState.load_from_json(Path(checkpoint, "trainer_state.json"))  # the last file to be written
            if not state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
                return checkpoint
        except (OSError, ValueError, TypeError, KeyError):
            pass
        shutil.rmtree(checkpoint)
    return None


class StopAtInterrupt(TrainerCallback):
    """Ends training after the step in which Ctrl-C was pressed; a second Ctrl-C interrupts at once."""

    def __init__(self):
        self.requested, self.steps, self.previous = False, 0, None
        # Python hands signals to the main thread only; of several processes, one that stops would leave others waiting.
        if threading.current_thread() is threading.main_thread() and process_state().num_processes == 1:
            self.previous = signal.signal(signal.SIGINT, self.request)

    def request(self, *_) -> None:
        """Remember the interrupt: a handler for `signal.signal`."""
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def restore(self) -> None:
        """Handle Ctrl-C as before."""
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Stop if that was asked for; evaluate the model first where that has not happened yet."""
        self.steps += 1
        if self.requested and self.steps > 2:  # transformers' bar in a notebook fails if training ends with step 2
            control.should_training_stop = True
            if state.best_global_step is None:
                control.should_log = control.should_evaluate = True


def check_space(output_dir: str, model: PreTrainedModel, checkpoints: int) -> None:
    """Check that the disk has room for ``checkpoints`` at a time and for the adapter.

    Raises:
        OSError: it has not; the message names the bytes needed and free, the folder and the setting to change.
    """
    trained = sum(tensor.nbytes for tensor in model.parameters() if tensor.requires_grad)
    # A checkpoint has the weights and AdamW's two moments of each. A tokenizer and small files take a few MB.
    needed = (1 + 3 * checkpoints) * trained + 5_000_000 * (1 + checkpoints)
    folder = Path(output_dir).resolve()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if needed > free:
        raise OSError(
            f"output_dir is {str(folder)!r}: {needed / 1e6:,.1f} MB are needed there and {free / 1e6:,.1f} MB are "
            "free. Free some space, or name a folder on another disk with --output_dir. Nothing was trained."
        )


@contextmanager
def explain_out_of_memory(trainer: Trainer) -> Iterator[None]:
    """Turn running out of memory, on a GPU or CPU, into one message with the batch at fault and what to change.

    Raises:
        MemoryError: in place of the library's own error, whose first line the message quotes.
    """
    batch = {}

    def remember(module: torch.nn.Module, _, inputs: dict) -> None:
        batch.update(training=module.training, shape=tuple(inputs["input_ids"].shape))

    hook = trainer.model.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise MemoryError(_describe(error, trainer, **batch)) from None
    finally:
        hook.remove()


def _is_out_of_memory(error: Exception) -> bool:
    # The CPU allocator's words for it differ between systems, and accelerate knows those of Linux only.
    named = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
    return named or should_reduce_batch_size(error)


def _describe(error: Exception, trainer: Trainer, training: bool = True, shape: tuple = ()) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0][:300]
    where = (
        f"{'training' if training else 'evaluation'}, on {shape[0]} examples of {shape[1]} tokens"
        if shape
        else "training"
    )
    settings = "; ".join(_memory_settings(trainer, training))
    return f"Out of memory in {where}: {reason} Set one or more of these and run again: {settings}."


def _memory_settings(trainer: Trainer, training: bool) -> Iterator[str]:
    args = trainer.args
    if not training:
        yield f"--per_device_eval_batch_size {max(1, args.per_device_eval_batch_size // 4)}"
    elif args.per_device_train_batch_size > 1:
        size, steps = smaller_batch(args.per_device_train_batch_size, args.gradient_accumulation_steps)
        yield (
            f"--per_device_train_batch_size {size} --gradient_accumulation_steps {steps} "
            f"(as many examples for each update as before: {size * steps})"
        )
    if training and not getattr(args, CHECKPOINTING):
        yield "--activation_checkpointing (computes activations twice instead of keeping them)"
    if not getattr(trainer.model, "is_loaded_in_4bit", False):
        yield "--load_in_4bit (QLoRA: the frozen weights in 4 bits)"
    yield "--max_length with fewer tokens (--block_size in language modeling)"


def smaller_batch(per_device_train_batch_size: int, gradient_accumulation_steps: int) -> tuple[int, int]:
    """Return a batch of at most a quarter, and the accumulation steps with which an update has as many rows."""
    quarter = max(1, per_device_train_batch_size // 4)
    size = next(size for size in range(quarter, 0, -1) if per_device_train_batch_size % size == 0)
    return size, gradient_accumulation_steps * per_device_train_batch_size // size
