"""The folder that the adapter is saved in: what may be replaced, how nothing is lost while it is."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from peft import PeftModel

from peft_helpers.arguments import Arguments
from peft_helpers.distributed import process_state
from peft_helpers.interruptions import CHECKPOINTS_RUN_FILE, check_place, finish_replacing
from peft_helpers.tiny_gpt2 import find_model

RUN_FILE = "run_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def describe_recipe(args: Arguments) -> dict[str, object]:
    """Return the options that decide on the adapter: not where a run writes, nor what else it does."""
    names = ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "num_train_epochs",
             "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "adam_beta1",
             "adam_beta2", "weight_decay", "max_grad_norm", "label_smoothing_factor", "neftune_noise_alpha", "seed",
             "bf16", "fp16", "class_weights", "tune_threshold")  # fmt: skip
    training = {name: getattr(args.training, name) for name in names}
    return asdict(args.model) | asdict(args.data) | asdict(args.lora) | training


def save_recipe(args: Arguments, folder: str | Path, name: str = RUN_FILE) -> None:
    """Write `describe_recipe` to ``folder``: a later run is told from another one, and an adapter knows its model."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(folder, name).write_text(json.dumps(describe_recipe(args), indent=2) + "\n", encoding="utf-8")


def check_output_dir(args: Arguments) -> None:
    """Check, before anything is computed, that saving to ``output_dir`` can succeed and replaces no other run's.

    An adapter or checkpoints of the same recipe may be replaced: running it again gives the adapter again, or goes on.
    A save that was killed half-way is completed first. An adapter or checkpoints of another recipe, or other files,
    are a FileExistsError, the base model's folder is a ValueError; see also `check_place`.
    """
    folder = Path(args.training.output_dir).resolve()
    if folder == Path(args.model.model_name_or_path).resolve():
        raise ValueError(f"output_dir is {args.training.output_dir!r}, the base model's own folder; choose another.")
    with process_state().main_process_first():
        check_place(folder)
        finish_replacing(folder)
        difference = _find_difference(folder, args) if folder.exists() else ""
        if difference and not args.training.overwrite_output_dir:
            raise FileExistsError(
                f"output_dir is {args.training.output_dir!r}, which {difference}. Choose another --output_dir, or pass "
                "--overwrite_output_dir to replace it. Nothing was changed."
            )
        for checkpoint in folder.glob("checkpoint-*") if difference else ():
            shutil.rmtree(checkpoint)


def _find_difference(folder: Path, args: Arguments) -> str:
    """Return how what ``folder`` holds differs from what ``args`` would make, or nothing."""
    is_started = any(folder.glob("checkpoint-*")) or (folder / ADAPTER_CONFIG).is_file()
    if not is_started:
        others = [path.name for path in folder.iterdir() if path.name not in (CHECKPOINTS_RUN_FILE, "runs")]
        return f"holds no adapter but {', '.join(sorted(others)[:5])}" if others else ""
    file = folder / CHECKPOINTS_RUN_FILE
    try:
        saved = dict(json.loads((file if file.is_file() else folder / RUN_FILE).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # missing, or not a JSON object
        return "holds an adapter of unknown origin"
    saved["model_name_or_path"] = find_model(str(saved.get("model_name_or_path")))
    wanted = describe_recipe(args)
    changed = [f"{name} {saved.get(name)!r}" for name, value in wanted.items() if saved.get(name) != value]
    return f"holds the adapter or checkpoints of another run: {', '.join(changed)}" if changed else ""


def describe_adapter(peft_model: PeftModel, args: Arguments, folder: str | Path) -> None:
    """Complete what ``save_pretrained`` has written to ``folder``: label names, padding and recipe."""
    peft_model.config.save_pretrained(folder)
    save_recipe(args, folder)
    path = Path(folder, ADAPTER_CONFIG)
    config = json.loads(path.read_text(encoding="utf-8"))
    # Some lists were sets, whose order changes from process to process.
    config = {name: sorted(value) if isinstance(value, list) else value for name, value in config.items()}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
