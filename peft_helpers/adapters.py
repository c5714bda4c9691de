"""The folder that the adapter is saved in: what may be replaced, how nothing is lost while it is."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from peft import PeftModel
from transformers.trainer_utils import PredictionOutput

from peft_helpers.arguments import Arguments, find_model
from peft_helpers.distributed import main_process_first, process_state
from peft_helpers.model_card import make_card

RUN_FILE = "run_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What the command line adds to an adapter. With a new adapter they would be out of date.
RESULTS_FILE, FIGURES = "results.json", ("before_after.png", "training.png", "confusions.png")


def describe_recipe(args: Arguments) -> dict[str, object]:
    """Return the options that decide on the adapter: not where a run writes, nor what else it does."""
    names = ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
             "gradient_accumulation_steps", "seed")  # fmt: skip
    training = {name: getattr(args.training, name) for name in names}
    return asdict(args.model) | asdict(args.data) | asdict(args.lora) | training


def save_recipe(args: Arguments, folder: str | Path) -> None:
    """Write `describe_recipe` to ``folder``: a later run is told from another one, and an adapter knows its model."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, RUN_FILE).write_text(json.dumps(describe_recipe(args), indent=2) + "\n", encoding="utf-8")


def check_output_dir(args: Arguments) -> None:
    """Check, before anything is computed, that saving to ``output_dir`` can succeed and replaces no other run's.

    An adapter or checkpoints of the same recipe may be replaced: running it again gives the adapter again, or goes on.
    A save that was killed half-way is completed first.

    Raises:
        FileExistsError: the folder holds an adapter or checkpoints of another recipe, or other files.
        OSError: nothing can be written beside the folder, where the new adapter is prepared.
        ValueError: the folder is that of the base model, or holds the current folder.
    """
    folder = Path(args.training.output_dir).resolve()
    if folder == Path(args.model.model_name_or_path).resolve():
        raise ValueError(f"output_dir is {args.training.output_dir!r}, the base model's own folder; choose another.")
    with main_process_first():
        _check_place(folder)
        _finish_replacing(folder)
        difference = _find_difference(folder, args) if folder.exists() else ""
        if difference and not args.training.overwrite_output_dir:
            raise FileExistsError(
                f"output_dir is {args.training.output_dir!r}, which {difference}. Choose another --output_dir, or pass "
                "--overwrite_output_dir to replace it. Nothing was changed."
            )
        for checkpoint in folder.glob("checkpoint-*") if difference else ():
            shutil.rmtree(checkpoint)


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


def _find_difference(folder: Path, args: Arguments) -> str:
    """Return how what ``folder`` holds differs from what ``args`` would make, or nothing."""
    is_started = any(folder.glob("checkpoint-*")) or (folder / ADAPTER_CONFIG).is_file()
    if not is_started:
        others = [path.name for path in folder.iterdir() if path.name != RUN_FILE]
        return f"holds no adapter but {', '.join(sorted(others)[:5])}" if others else ""
    try:
        saved = dict(json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # missing, or not a JSON object
        return "holds an adapter of unknown origin"
    saved["model_name_or_path"] = find_model(str(saved.get("model_name_or_path")))
    wanted = describe_recipe(args)
    changed = [f"{name} {saved.get(name)!r}" for name, value in wanted.items() if saved.get(name) != value]
    return f"holds the adapter or checkpoints of another run: {', '.join(changed)}" if changed else ""


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Give a new folder to write in, and put it in the place of ``folder`` once everything is written.

    Whatever ends the writing early, an error or a kill, leaves the earlier ``folder`` complete. The new one is prepared
    beside it, under a name that begins with a dot. Files in ``folder`` that the new one lacks are carried over. A
    symbolic link stays: what it leads to is replaced. Of several processes, what the first one writes is kept.

    Raises:
        FileExistsError: ``folder`` is a file.
        OSError: nothing can be written beside ``folder``, or the disk is full; a note says that nothing was changed.
        ValueError: ``folder`` holds the current folder.
    """
    state = process_state()
    with _replace(Path(folder).resolve()) if state.is_main_process else tempfile.TemporaryDirectory() as new:
        yield Path(new)
    state.wait_for_everyone()


@contextmanager
def _replace(folder: Path) -> Iterator[Path]:
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
    _carry_over(old, folder)


def _siblings(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.saving"), folder.with_name(f".{folder.name}.replaced")


def _finish_replacing(folder: Path) -> None:
    """Complete what a kill interrupted: between the two renames, before them, or while carrying over."""
    new, old = _siblings(folder)
    if old.exists() and not folder.exists():
        (new if new.exists() else old).rename(folder)  # what was being saved is complete by then
    shutil.rmtree(new, ignore_errors=True)
    _carry_over(old, folder)


def _carry_over(old: Path, folder: Path) -> None:
    for path in old.iterdir() if old.exists() else ():
        if not (folder / path.name).exists() and path.name not in (RESULTS_FILE, *FIGURES):
            path.rename(folder / path.name)
    shutil.rmtree(old, ignore_errors=True)


def describe_adapter(
    peft_model: PeftModel, args: Arguments, untuned: PredictionOutput, tuned: PredictionOutput, folder: str | Path
) -> None:
    """Complete what ``save_pretrained`` has written to ``folder``: label names, recipe and model card.

    Args:
        peft_model: the trained model.
        args: the run that made it.
        untuned: output of `predict` before fine-tuning.
        tuned: output of `predict` after it, on the same examples.
        folder: folder of the adapter.
    """
    peft_model.config.save_pretrained(folder)
    save_recipe(args, folder)
    path = Path(folder, ADAPTER_CONFIG)
    config = json.loads(path.read_text(encoding="utf-8"))
    # Some lists were sets, whose order changes from process to process, though the adapter is the same.
    config = {name: sorted(value) if isinstance(value, list) else value for name, value in config.items()}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    make_card(peft_model, args, untuned.metrics, tuned.metrics, config).save(Path(folder, "README.md"))


def adapter_size(adapter_dir: str | Path) -> float:
    """Return the size of the adapter's weights in MB (10^6 bytes)."""
    return Path(adapter_dir, ADAPTER_WEIGHTS).stat().st_size / 1e6
