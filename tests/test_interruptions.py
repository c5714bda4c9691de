from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from peft_helpers import (
    check_space,
    estimate_adapter,
    estimate_checkpoint,
    guard_training,
    make_trainer,
    predict,
    save_run_config,
)
from peft_helpers import resources as resources_module
from peft_helpers.arguments import TINY_GPT2
from peft_helpers.resources import smaller_batch


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


class Measure(TrainerCallback):
    """The largest checkpoint: they grow with the history of the run."""

    bytes = 0

    def on_save(self, args, state, control, **kwargs) -> None:
        self.bytes = max(self.bytes, size(Path(args.output_dir) / f"checkpoint-{state.global_step}"))


@pytest.mark.parametrize("model_name_or_path", ["", TINY_GPT2], ids=["two layers", "tiny GPT-2"])
def test_the_estimates_are_no_less_than_the_files_and_not_twice_as_much(new_trainer, args, model_name_or_path):
    args = args.replace(model_name_or_path=model_name_or_path or args.model.model_name_or_path)
    trainer = new_trainer(model_name_or_path=args.model.model_name_or_path)
    tokenizer, measure = trainer.processing_class, Measure()
    trainer.add_callback(measure)
    trainer.train()
    assert measure.bytes <= estimate_checkpoint(trainer.model, tokenizer) <= 2 * measure.bytes
    trainer.model.save_pretrained(args.training.output_dir)
    trainer.model.config.save_pretrained(args.training.output_dir)
    tokenizer.save_pretrained(args.training.output_dir)
    save_run_config(args, args.training.output_dir)
    saved = size(Path(args.training.output_dir))
    assert saved <= estimate_adapter(trainer.model, tokenizer) <= 2 * saved


@pytest.mark.parametrize("setting", ["checkpoint_dir", "output_dir"])
@pytest.mark.reliability("fault")
def test_a_full_disk_is_an_error_before_the_first_step(peft_model, tokenizer, tokenized, args, monkeypatch, setting):
    folder = Path(getattr(args, setting)) / "made" / "later"
    folder.parent.mkdir(parents=True)
    args = args.replace(**{setting: str(folder)})

    def disk_usage(path: Path) -> SimpleNamespace:
        assert path.exists()
        return SimpleNamespace(free=20_000 if path == folder.parent else 10**12)

    monkeypatch.setattr(resources_module.shutil, "disk_usage", disk_usage)
    message = rf"{setting} is '.*/made/later': [\d,.]+ MB are needed there and 0\.0 MB are free\. .*--{setting}"
    with pytest.raises(OSError, match=message):
        make_trainer(peft_model, tokenizer, tokenized, args)
    assert not folder.exists()


@pytest.mark.reliability("fault")
def test_more_than_a_workspace_holds_is_an_error(peft_model, tokenizer, args, monkeypatch, tmp_path):
    needed = 3 * estimate_checkpoint(peft_model, tokenizer) + estimate_adapter(peft_model, tokenizer)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resources_module, "WORKSPACE_LIMIT", needed)
    check_space(args, peft_model, tokenizer, 3)
    monkeypatch.setattr(resources_module, "WORKSPACE_LIMIT", needed - 1)
    with pytest.raises(
        OSError, match=r"would write .* MB beside the notebook; a workspace has room for .* MB\. Name a"
    ):
        check_space(args, peft_model, tokenizer, 3)
    monkeypatch.chdir(Path(__file__).parent)  # the folders lie elsewhere
    check_space(args, peft_model, tokenizer, 3)


CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.77 GiB.\nSee documentation"
WINDOWS = (
    "[enforce fail at alloc_cpu.cpp:1] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."
)
SETTINGS = (
    r"Set one or more of these and run again: --per_device_train_batch_size 1 --gradient_accumulation_steps 4 "
    r"\(as many rows for each update as before: 4\); --activation_checkpointing \(.*\); --load_in_4bit \(QLoRA: .*\); "
    r"--max_length with fewer tokens \(--block_size in language modelling\)\."
)


class RunOut(TrainerCallback):
    def __init__(self, error):
        self.error = error

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        if isinstance(self.error, Exception):
            raise self.error
        torch.empty(self.error)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError(CUDA), "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"),
        (RuntimeError(WINDOWS), "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        (MemoryError(), "MemoryError"),
        (2**60, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4611686018427387904 bytes"),
    ],
    ids=["CUDA", "Windows", "Python", "Linux"],
)
@pytest.mark.reliability("fault")
def test_out_of_memory_names_the_batch_and_what_to_change(new_trainer, error, reason):
    trainer = new_trainer()
    trainer.add_callback(RunOut(error))
    with pytest.raises(MemoryError, match=SETTINGS) as caught, guard_training(trainer):
        trainer.train()
    length = max(trainer.train_dataset["length"])  # the longest rows come first
    assert str(caught.value).startswith(f"Out of memory in training, on 4 rows of {length} tokens: ")
    assert reason in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.reliability("fault")
def test_out_of_memory_in_evaluation_names_the_evaluation_batch(peft_model, tokenizer, tokenized, args, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(peft_model.base_model, "forward", fail)
    message = r"in evaluation, on 8 rows of \d+ tokens: CUDA .*again: --per_device_eval_batch_size 2; --load_in_4bit"
    with pytest.raises(MemoryError, match=message):
        predict(peft_model, tokenizer, tokenized["test"], args.replace(per_device_eval_batch_size=8))
    assert not peft_model._forward_pre_hooks


def test_other_errors_stay_as_they_are(new_trainer):
    trainer = new_trainer()
    trainer.add_callback(RunOut(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="mat1 and mat2"), guard_training(trainer):
        trainer.train()


@pytest.mark.parametrize(
    ("before", "after"), [((16, 1), (4, 4)), ((16, 2), (4, 8)), ((6, 1), (1, 6)), ((10, 1), (2, 5)), ((2, 1), (1, 2))]
)
def test_a_smaller_batch_keeps_the_rows_of_an_update(before, after):
    assert smaller_batch(*before) == after
