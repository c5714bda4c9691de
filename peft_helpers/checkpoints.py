"""The checkpoints of a run: a private folder that the same run finds again, and the one to go on from."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset, DatasetDict, IterableDataset
from safetensors import SafetensorError, safe_open
from transformers import TrainerState, TrainingArguments
from transformers.trainer_callback import EarlyStoppingCallback
from transformers.trainer_utils import get_last_checkpoint

from peft_helpers.arguments import Arguments
from peft_helpers.checks import fingerprint_parameters

_STREAMED_ROWS = 1000  # by which one stream is told from another
# Arguments of the Trainer that decide on place, memory or output: a run may go on with others.
_NOT_DECISIVE = {"output_dir", "per_device_eval_batch_size", "activation_checkpointing",
                 "activation_checkpointing_kwargs", "gradient_checkpointing", "gradient_checkpointing_kwargs",
                 "dataloader_pin_memory", "disable_tqdm"}  # fmt: skip


def run_key(args: TrainingArguments, model: torch.nn.Module, tokenized: DatasetDict) -> str:
    """Return 16 hexadecimal digits, a digest of what determines a run.

    That is: the Trainer's arguments that decide on the result, the tokenized rows, the model's layers, frozen weights
    and adapters, and the versions of the libraries. The values of what is trained are left out: they change.
    """
    trainable = {name: list(value.shape) for name, value in model.named_parameters() if value.requires_grad}
    digests = fingerprint_parameters(model)
    parts = {
        "arguments": {name: value for name, value in args.to_dict().items() if name not in _NOT_DECISIVE},
        "processes": args.world_size,
        "layers": str(model),
        "adapters": {name: adapter.to_dict() for name, adapter in getattr(model, "peft_config", {}).items()},
        "trainable": trainable,
        "frozen": {name: digest for name, digest in digests.items() if name not in trainable},
        "rows": {split: digest_rows(tokenized[split]) for split in ("train", "validation")},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    # A set has another order in each process.
    text = json.dumps(
        parts, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else str(value)
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_rows(dataset: Dataset | IterableDataset) -> str:
    """Return a digest of the tokens and labels of a tokenized data set, in its order; of a stream, its beginning."""
    dataset = dataset if isinstance(dataset, Dataset) else dataset.take(_STREAMED_ROWS)
    digest = hashlib.sha256()
    for batch in dataset.select_columns(["input_ids", "labels"]).with_format(None).iter(batch_size=1000):
        digest.update(json.dumps(batch, sort_keys=True).encode())
    return digest.hexdigest()


def checkpoint_parent(args: Arguments) -> Path:
    """Return the folder that a run's folder of checkpoints is made in.

    By default the system's temporary one, since a workspace's space limit counts what lies beside the notebook.
    """
    return Path(args.training.output_dir)


def make_checkpoint_folder(args: Arguments, key: str) -> Path:
    """Return the folder of the run with that `run_key`; make it, readable by this user only, if it is not there yet.

    Raises:
        PermissionError: it belongs to another user or can be written by others, who could have put anything into it.
        ValueError: no folder can be made there.
    """
    folder = checkpoint_parent(args) / f"checkpoints-{key}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"No folder for checkpoints can be made: {error}. Name another --checkpoint_dir.") from error
    found = folder.lstat()
    if os.name == "posix" and (
        not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077
    ):
        raise PermissionError(
            f"{folder} should be a folder that only this user can enter (user {os.getuid()}, mode 700); found "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}. Name another --checkpoint_dir."
        )
    return folder


def find_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint in ``folder`` that training can go on from, or None.

    Those after it are removed: half-written when the run was killed, without the best checkpoint that they refer to,
    or with no step left to train.
    """
    while (checkpoint := get_last_checkpoint(folder)) is not None:
        if _can_go_on(Path(checkpoint)):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _can_go_on(checkpoint: Path) -> bool:
    try:
        state = TrainerState.load_from_json(checkpoint / "trainer_state.json")  # the last file to be written
        best = Path(state.best_model_checkpoint or "")
        return not _has_ended(state) and _is_whole(checkpoint) and _is_whole(best)
    except (OSError, ValueError, TypeError, LookupError, SafetensorError):
        return False


def _has_ended(state: TrainerState) -> bool:
    saved = state.stateful_callbacks[EarlyStoppingCallback.__name__]
    waited = saved["attributes"]["early_stopping_patience_counter"]
    return state.global_step >= state.max_steps or waited >= saved["args"]["early_stopping_patience"]


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether no file was cut off; what torch writes is a zip archive, whose directory stands at its end."""
    weights = list(checkpoint.glob("*.safetensors"))
    for path in weights:
        with safe_open(path, framework="pt"):  # compares the file's size with its header
            pass
    return bool(weights) and all(zipfile.is_zipfile(path) for path in checkpoint.glob("*.pt*"))
