"""What a run needs of disk and memory: enough space before it starts, and what to change when memory runs out."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from peft_helpers.arguments import Arguments
from peft_helpers.checkpoints import checkpoint_parent
from peft_helpers.distributed import CHECKPOINTING

WORKSPACE_LIMIT = 10**9  # bytes beside the notebook, of the Udacity workspace
# Bytes measured with transformers 5.23 and peft 0.21, rounded up: cards and configurations, the state of the run and
# of its random numbers; and for each tensor its name and place in the file.
_ADAPTER_BYTES, _ADAPTER_BYTES_PER_TENSOR = 20_000, 200
_CHECKPOINT_BYTES, _CHECKPOINT_BYTES_PER_TENSOR = 40_000, 1_200


def estimate_adapter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the bytes of the saved adapter: the weights that are trained, the tokenizer and some small files."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    vocabulary = len(tokenizer.backend_tokenizer.to_str(pretty=True).encode())
    return sum(map(_bytes, trainable)) + vocabulary + _ADAPTER_BYTES + _ADAPTER_BYTES_PER_TENSOR * len(trainable)


def estimate_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the bytes of a checkpoint: the adapter, the two moments of AdamW for each of its weights, small files."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moments = 2 * sum(map(_bytes, trainable))
    small = _CHECKPOINT_BYTES + _CHECKPOINT_BYTES_PER_TENSOR * len(trainable)
    return estimate_adapter(model, tokenizer) + moments + small


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def check_space(args: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, checkpoints: int) -> None:
    """Check that the disks have room for ``checkpoints`` at a time and for the adapter.

    Raises:
        OSError: a disk has too little, or the run would write more than `WORKSPACE_LIMIT` beside the notebook; the
            message names the bytes needed and free, the folder and the setting to change.
    """
    needed = {
        "checkpoint_dir": (checkpoint_parent(args).resolve(), checkpoints * estimate_checkpoint(model, tokenizer)),
        "output_dir": (Path(args.training.output_dir).resolve(), estimate_adapter(model, tokenizer)),
    }
    for setting, (folder, size) in needed.items():
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free
        if size > free:
            raise OSError(
                f"{setting} is {str(folder)!r}: {_megabytes(size)} are needed there and {_megabytes(free)} are free. "
                f"Free some space, or name a folder on another disk with --{setting}. Nothing was trained."
            )
    inside = sum(size for folder, size in needed.values() if folder.is_relative_to(Path.cwd()))
    if inside > WORKSPACE_LIMIT:
        raise OSError(
            f"The run would write {_megabytes(inside)} beside the notebook; a workspace has room for "
            f"{_megabytes(WORKSPACE_LIMIT)}. Name a --checkpoint_dir elsewhere, or train fewer parameters (--lora_r, "
            "--target_modules). Nothing was trained."
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


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
        f"{'training' if training else 'evaluation'}, on {shape[0]} rows of {shape[1]} tokens" if shape else "training"
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
            f"(as many rows for each update as before: {size * steps})"
        )
    if training and not getattr(args, CHECKPOINTING):
        yield "--activation_checkpointing (computes activations twice instead of keeping them)"
    if not getattr(trainer.model, "is_loaded_in_4bit", False):
        yield "--load_in_4bit (QLoRA: the frozen weights in 4 bits)"
    yield "--max_length with fewer tokens (--block_size in language modelling)"


def smaller_batch(per_device_train_batch_size: int, gradient_accumulation_steps: int) -> tuple[int, int]:
    """Return a batch of at most a quarter, and the accumulation steps with which an update has as many rows."""
    quarter = max(1, per_device_train_batch_size // 4)
    size = next(size for size in range(quarter, 0, -1) if per_device_train_batch_size % size == 0)
    return size, gradient_accumulation_steps * per_device_train_batch_size // size
