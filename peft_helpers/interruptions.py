"""What can end a run early: a kill, Ctrl-C, a full disk, too little memory. Nothing already computed is lost."""

import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from accelerate.utils.memory import should_reduce_batch_size
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from peft_helpers.distributed import process_state

# Of the command line: with a new adapter they would be out of date, and so would the calibration.
RESULTS_FILE, FIGURES = "results.json", ("before_after.png", "training.png", "confusions.png", "reliability.png")
CALIBRATION_FILE = "calibration.json"
# The recipe of the checkpoints: an adapter that is still in the folder may be of another one, and keeps its own.
CHECKPOINTS_RUN_FILE = "run_config_of_checkpoints.json"
_LESS_MEMORY = (
    "Take less, run again: a smaller --per_device_train_batch_size with more --gradient_accumulation_steps, a smaller "
    "--per_device_eval_batch_size, --activation_checkpointing, --load_in_4bit (QLoRA), or a smaller --max_length."
)


@contextmanager
def guard_training(trainer: Trainer) -> Iterator[str | None]:
    """Guard ``trainer.train(resume_from_checkpoint=...)`` with the checkpoint that this yields, None for a fresh start.

    A run that was killed or ended in an error goes on from its last checkpoint in ``output_dir``. Ctrl-C ends training
    after the step, with the best model so far. Running out of memory becomes a message with what to change. The
    checkpoints are removed when training has ended, and kept when it was interrupted.
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
        if interrupt.previous is not None:
            signal.signal(signal.SIGINT, interrupt.previous)
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
        Path(folder, CHECKPOINTS_RUN_FILE).unlink(missing_ok=True)


def find_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint in ``folder`` that training can go on from, or None.

    Those after it are removed: half-written, or with no step left, where the Trainer would take one more.
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

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Stop if that was asked for; evaluate the model first where that has not happened yet."""
        self.steps += 1  # of this process: a resumed run has more
        if self.requested and self.steps > 2:  # transformers' bar in a notebook fails if training ends with step 2
            control.should_training_stop = True
            if state.best_global_step is None:
                control.should_log = control.should_evaluate = True


@contextmanager
def explain_out_of_memory(trainer: Trainer) -> Iterator[None]:
    """Turn running out of memory, on a GPU or CPU, into a MemoryError with the batch at fault and what to change."""
    batch = {"where": "training"}

    def remember(module: torch.nn.Module, _, inputs: dict) -> None:
        rows, tokens = inputs["input_ids"].shape
        batch["where"] = f"{'training' if module.training else 'evaluation'}, on {rows} examples of {tokens} tokens"

    hook = trainer.model.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # The CPU allocator's words for it differ between systems, and accelerate knows those of Linux only.
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
        if not known and not should_reduce_batch_size(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise MemoryError(f"Out of memory in {batch['where']}: {reason} {_LESS_MEMORY}") from None
    finally:
        hook.remove()


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Give a new folder to write in, and put it in the place of ``folder`` once everything is written.

    Whatever ends the writing early, an error or a kill, leaves the earlier ``folder`` complete; a note on the error
    says so. The new one is prepared beside it, under a name that begins with a dot; see `check_place`. Files in
    ``folder`` that the new one lacks are carried over. A symbolic link stays: what it leads to is replaced. Of several
    processes, what the first one writes is kept.
    """
    state = process_state()
    with _replace(Path(folder).resolve()) if state.is_main_process else tempfile.TemporaryDirectory() as new:
        yield Path(new)
    state.wait_for_everyone()


@contextmanager
def _replace(folder: Path) -> Iterator[Path]:
    check_place(folder)
    finish_replacing(folder)
    new, old = _siblings(folder)
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException as error:
        if new.exists():  # else it is in its place, and the interrupt came right after
            if old.exists():
                old.rename(folder)
            shutil.rmtree(new, ignore_errors=True)
            error.add_note(f"{folder} is as it was before.")
        raise
    finish_replacing(folder)


def _siblings(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.saving"), folder.with_name(f".{folder.name}.replaced")


def finish_replacing(folder: Path) -> None:
    """Carry over the user's own files; first complete what a kill interrupted, between the two renames or before."""
    new, old = _siblings(folder)
    if old.exists() and not folder.exists():
        (new if new.exists() else old).rename(folder)  # what was being saved is complete by then
    shutil.rmtree(new, ignore_errors=True)
    for path in old.iterdir() if old.exists() else ():
        if not (folder / path.name).exists() and path.name not in (RESULTS_FILE, CALIBRATION_FILE, *FIGURES):
            path.rename(folder / path.name)
    shutil.rmtree(old, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Raise an OSError if ``folder`` is a file or nothing can be written beside it, a ValueError if we are in it."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"output_dir is {str(folder)!r}, which is a file; choose a folder.")
    if Path.cwd().is_relative_to(folder):
        raise ValueError(f"output_dir is {str(folder)!r}, which holds the current folder; choose one inside it.")
    place = next(parent for parent in folder.parents if parent.exists())
    try:
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=place).cleanup()
    except OSError as error:
        error.add_note(f"An adapter for {folder} is prepared beside it: make {place} writable, or choose another.")
        raise
