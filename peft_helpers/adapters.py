"""The folder that the adapter is saved in: what may be replaced, and how nothing is lost while it is."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd
from peft import PeftModel

from peft_helpers.arguments import LM_FIELDS, Arguments, find_model
from peft_helpers.distributed import main_process_first, process_state

RUN_FILE = "run_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What the command line adds to a saved adapter: of an earlier one, they would be out of date.
RESULTS_FILE, FIGURES = "results.json", ("before_after.png", "training.png", "confusions.png")
# What a save writes, by this version or an earlier one, with any tokenizer. Other files in the folder are the user's.
_SAVED_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, RUN_FILE, RESULTS_FILE, *FIGURES, "README.md", "config.json",
                "tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab.*",
                "merges.txt", "*.model")  # fmt: skip
# Where a run writes, what memory it takes and what else it compares, not what makes the adapter.
_NOT_COMPARED = {"output_dir", "overwrite_output_dir", "checkpoint_dir", "profile", "per_device_eval_batch_size",
                 "activation_checkpointing", "comparison_methods", "comparison_steps", "comparison_seeds",
                 "comparison_file", *LM_FIELDS}  # fmt: skip
_KEPT = {"profile", "per_device_eval_batch_size", "activation_checkpointing"}  # in the saved configuration all the same


def check_output_dir(args: Arguments) -> None:
    """Check, before anything is computed, that saving to ``args.training.output_dir`` can succeed and replaces no other run's.

    The adapter of the same configuration may be replaced: running the notebook again gives it again. A save that was
    killed half-way is brought to an end first.

    Raises:
        FileExistsError: the folder holds an adapter of another configuration, or files that are no adapter's.
        OSError: nothing can be written beside the folder, where the new adapter is prepared.
        ValueError: the folder is that of the base model, or holds the current folder.
    """
    folder = Path(args.training.output_dir).resolve()
    if folder == Path(args.model.model_name_or_path).resolve():
        raise ValueError(f"output_dir is {args.training.output_dir!r}, the base model's own folder; choose another.")
    with main_process_first():
        _check_place(folder)
        _finish_replacing(folder)
    if args.training.overwrite_output_dir or not folder.exists() or not any(folder.iterdir()):
        return
    what = _difference(folder, args)
    if what:
        raise FileExistsError(
            f"output_dir is {args.training.output_dir!r}, which {what}. Choose another --output_dir, or pass "
            "--overwrite_output_dir to replace it. Nothing was changed."
        )


def _check_place(folder: Path) -> None:
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


def _difference(folder: Path, args: Arguments) -> str:
    if not (folder / ADAPTER_CONFIG).is_file():
        return "exists and holds no adapter"
    try:
        saved = dict(json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # missing, or no JSON object
        return "holds an adapter of unknown origin"
    wanted = asdict(args)
    saved["model_name_or_path"] = find_model(str(saved.get("model_name_or_path")))
    names = [name for name in wanted if name not in _NOT_COMPARED and saved.get(name) != wanted[name]]
    return f"holds the adapter of another run: {', '.join(f'{n} {saved.get(n)!r}' for n in names)}" if names else ""


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Give a new folder to write in, and put it in the place of ``folder`` once all is written.

    Whatever ends the writing early, an error or a kill, leaves the earlier ``folder`` whole. The new one is prepared
    beside it, under a name that begins with a dot. The user's own files in ``folder``, those that no save writes, are
    carried over. A symbolic link stays: what it leads to is replaced.

    Of several processes, what the first one writes is kept. The others write into a temporary folder, so that all can
    run the same lines, and go on when ``folder`` is in its place.

    Raises:
        FileExistsError: ``folder`` is a file.
        OSError: nothing can be written beside ``folder``, or the disk is full; a note says that nothing was changed.
        ValueError: ``folder`` holds the current folder.
    """
    state = process_state()
    with _replace(folder) if state.is_main_process else tempfile.TemporaryDirectory() as new:
        yield Path(new)
    state.wait_for_everyone()


@contextmanager
def _replace(folder: str | Path) -> Iterator[Path]:
    folder = Path(folder).resolve()
    _check_place(folder)
    _finish_replacing(folder)
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
    _discard(old, folder)


def _siblings(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.saving"), folder.with_name(f".{folder.name}.replaced")


def _finish_replacing(folder: Path) -> None:
    """Bring to an end what a kill broke off in `replace_folder`, at whichever step it came."""
    new, old = _siblings(folder)
    if old.exists() and not folder.exists():
        # Killed between the two renames: what was being saved is whole by then.
        (new if new.exists() else old).rename(folder)
    if new.exists():
        shutil.rmtree(new)
    _discard(old, folder)


def _discard(old: Path, folder: Path) -> None:
    """Remove ``old``, whose place ``folder`` has taken, but for what is the user's own."""
    if not old.exists():
        return
    for path in old.iterdir():
        if not (folder / path.name).exists() and not any(fnmatch(path.name, name) for name in _SAVED_FILES):
            path.rename(folder / path.name)
    shutil.rmtree(old)


def sort_target_modules(peft_model: PeftModel) -> None:
    """Give the PEFT configuration lists in alphabetical order in place of sets.

    A set's order changes from process to process, and with it ``adapter_config.json``, though the adapter is the same.
    """
    for peft_config in peft_model.peft_config.values():
        for name, value in vars(peft_config).items():
            if isinstance(value, set):
                setattr(peft_config, name, sorted(value))


def save_run_config(args: Arguments, adapter_dir: str | Path) -> None:
    """Write the configuration beside the adapter, for `check_output_dir` and for whoever asks how it was made."""
    content = {name: value for name, value in asdict(args).items() if name not in _NOT_COMPARED - _KEPT}
    Path(adapter_dir, RUN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_run_config(adapter_dir: str | Path) -> Arguments:
    """Return the configuration that `save_run_config` wrote, with the defaults of what it leaves out.

    Raises:
        FileNotFoundError: the folder, or the file in it, is missing.
        ValueError: the file is no configuration that this version knows.
    """
    path = Path(adapter_dir, RUN_FILE)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the file {RUN_FILE} in the adapter's folder {str(adapter_dir)!r}, found none; name a folder "
            "that a run of this project has saved, or copy the whole folder again."
        )
    try:
        return Arguments(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:  # no JSON object, or other fields or values than ours
        raise ValueError(
            f"{path} is no configuration of a run ({error}); copy the folder again, or use the version that saved it."
        ) from error


def list_files(adapter_dir: str | Path) -> pd.DataFrame:
    """Return the files of ``adapter_dir`` with their sizes in MB (10^6 bytes)."""
    files = sorted(path for path in Path(adapter_dir).rglob("*") if path.is_file())
    sizes = [path.stat().st_size / 1e6 for path in files]
    return pd.DataFrame({"file": [path.relative_to(adapter_dir).as_posix() for path in files], "MB": sizes})


def adapter_size(adapter_dir: str | Path) -> float:
    """Return the size of the adapter's weights in MB (10^6 bytes)."""
    return Path(adapter_dir, ADAPTER_WEIGHTS).stat().st_size / 1e6
