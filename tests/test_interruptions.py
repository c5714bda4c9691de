"""What is kept when a run is killed, interrupted or runs out of disk or memory; test_distributed.py kills processes."""

import errno
import os
import resource
import shutil
import signal
import threading
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from safetensors import SafetensorError
from transformers import ProgressCallback, TrainerCallback
from transformers.utils.notebook import NotebookProgressCallback

from peft_helpers import (
    check_output_dir,
    fingerprint_parameters,
    guard_training,
    interruptions,
    plot_training,
    predict,
    replace_folder,
)
from peft_helpers.interruptions import find_checkpoint


class Fail(TrainerCallback):
    """An error as the step begins, which leaves what a kill leaves: the checkpoints."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise ZeroDivisionError


class PressCtrlC(TrainerCallback):
    def __init__(self, *steps: int):
        self.steps = steps

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        for _ in range(self.steps.count(state.global_step)):
            signal.raise_signal(signal.SIGINT)


def train(trainer, *callbacks: TrainerCallback) -> str | None:
    """Train as the notebook does; return the checkpoint that training went on from."""
    for callback in callbacks:
        trainer.add_callback(callback)
    with guard_training(trainer) as checkpoint:
        trainer.train(resume_from_checkpoint=checkpoint)
    return checkpoint and Path(checkpoint).name


def interrupt(trainer, step: int) -> Path:
    with pytest.raises(ZeroDivisionError):
        train(trainer, Fail(step))
    return Path(trainer.args.output_dir)


def checkpoints(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("checkpoint-*"))


# Resuming: 16 steps, an evaluation and a checkpoint every second one


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_a_run_that_failed_goes_on_from_its_last_whole_checkpoint_and_ends_the_same(new_trainer, capsys):
    whole = new_trainer()
    assert train(whole) is None
    assert checkpoints(whole.args.output_dir) == []
    folder = interrupt(new_trainer(), step=13)
    last, earlier = checkpoints(folder)
    assert last == "checkpoint-12"
    assert f"Training failed, but {folder / 'checkpoint-12'} is kept: run the same" in capsys.readouterr().out
    (folder / "checkpoint-12" / "trainer_state.json").unlink()  # as after a kill while it was being written
    resumed = new_trainer()
    assert train(resumed) == earlier
    assert f"Resuming from {earlier} of an interrupted run.\n" in capsys.readouterr().out
    assert fingerprint_parameters(resumed.model) == fingerprint_parameters(whole.model)
    assert checkpoints(folder) == []


@pytest.fixture
def interrupted(new_trainer) -> Path:
    """A folder with checkpoint 12 and an earlier one."""
    return interrupt(new_trainer(), step=13)


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_a_half_written_checkpoint_is_removed_and_the_one_before_taken(interrupted, tmp_path):
    last, earlier = checkpoints(interrupted)
    for number, left in enumerate((b"", b'{"epoch": 1.5', b"{}")):
        folder = shutil.copytree(interrupted, tmp_path / str(number))
        assert find_checkpoint(folder) == str(folder / last)
        (folder / last / "trainer_state.json").write_bytes(left)
        assert find_checkpoint(folder) == str(folder / earlier)
        assert checkpoints(folder) == [earlier]


@pytest.mark.reliability("fault")
def test_without_a_whole_checkpoint_a_run_starts_afresh(new_trainer):
    folder = interrupt(new_trainer(), step=3)
    (folder / "checkpoint-2" / "trainer_state.json").unlink()
    assert find_checkpoint(folder) is None
    assert checkpoints(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ended", "number"), [({"max_steps": 13}, 13), ({"learning_rate": 1e-12, "num_train_epochs": 5}, 36)]
)
@pytest.mark.reliability("fault")
def test_a_run_killed_after_its_last_step_takes_no_further_one(new_trainer, ended, number):
    whole, resumed = new_trainer(**ended), new_trainer(**ended)
    whole.train()  # nothing removes the checkpoints
    assert f"checkpoint-{number}" in checkpoints(whole.args.output_dir)
    train(resumed)
    assert resumed.state.global_step == number
    assert fingerprint_parameters(resumed.model) == fingerprint_parameters(whole.model)


@pytest.mark.slow
def test_early_stopping_goes_on_counting_in_a_resumed_run(new_trainer):
    idle = {"learning_rate": 1e-12, "num_train_epochs": 5}  # 40 steps, 4 between two evaluations
    interrupt(new_trainer(**idle), step=10)
    resumed = new_trainer(**idle)
    assert train(resumed) == "checkpoint-8"
    assert resumed.state.global_step == 36  # eight evaluations after the first, without a better one
    assert [entry["step"] for entry in resumed.state.log_history if "eval_f1" in entry] == list(range(4, 37, 4))


class MakeFolder:
    """Pickles to a call that makes a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
@pytest.mark.reliability("bad input")
def test_a_pickle_in_a_checkpoint_is_not_run(new_trainer, interrupted, tmp_path):
    folder, planted = interrupted / "checkpoint-12", MakeFolder(tmp_path / "marker")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        content = (folder / name).read_bytes()
        torch.save(planted, folder / name)
        with pytest.raises(UnpicklingError, match="Weights only load failed"):
            train(new_trainer())
        (folder / name).write_bytes(content)
    torch.save(planted, folder / "training_args.bin")
    train(new_trainer())  # which never reads it
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_a_disk_that_becomes_full_while_a_checkpoint_is_written_costs_no_earlier_one(new_trainer, monkeypatch, capsys):
    save = torch.save

    def save_until_full(content, path) -> None:
        if "checkpoint-12" in str(path) and "optimizer" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        save(content, path)

    monkeypatch.setattr(torch, "save", save_until_full)
    trainer = new_trainer()
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        train(trainer)
    assert find_checkpoint(Path(trainer.args.output_dir)).endswith("checkpoint-10")
    assert "checkpoint-10 is kept" in capsys.readouterr().out


# Ctrl-C


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_ctrl_c_keeps_the_best_model_and_the_checkpoints_and_says_so(new_trainer, capsys):
    trainer, handler = new_trainer(), signal.getsignal(signal.SIGINT)
    train(trainer, PressCtrlC(12))
    assert trainer.state.best_global_step < 13  # the model of the last step is not the one that is kept
    assert "Training was interrupted after step 13 of 16. The model is the best so far" in capsys.readouterr().out
    assert trainer.evaluate()["eval_f1"] == trainer.state.best_metric
    assert trainer.state.log_history[-2]["train_runtime"] > 0
    assert signal.getsignal(signal.SIGINT) is handler
    plot_training(trainer.state.log_history)
    assert train(new_trainer()) == "checkpoint-12"


@pytest.mark.reliability("fault")
def test_ctrl_c_before_the_first_evaluation_judges_the_model_as_it_is(new_trainer, capsys):
    trainer = new_trainer(num_train_epochs=10)  # the first evaluation would be after step 8
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(NotebookProgressCallback)  # which has no time for a step yet, after the first two
    train(trainer, PressCtrlC(1))
    assert "Training was interrupted after step 3 of 80." in capsys.readouterr().out
    assert [entry["step"] for entry in trainer.state.log_history if "eval_f1" in entry] == [3]
    assert trainer.evaluate()["eval_f1"] == trainer.state.best_metric
    plot_training(trainer.state.log_history)
    assert find_checkpoint(Path(trainer.args.output_dir)) is None


@pytest.mark.reliability("fault")
def test_ctrl_c_right_after_a_resumed_start_ends_two_steps_later(new_trainer, capsys):
    interrupt(new_trainer(), step=9)
    trainer = new_trainer()
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(NotebookProgressCallback)  # it counts the steps of this process
    assert train(trainer, PressCtrlC(8)) == "checkpoint-8"
    assert "Training was interrupted after step 11 of 16." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_a_second_ctrl_c_interrupts_at_once_and_keeps_the_checkpoints(new_trainer, capsys):
    trainer, handler = new_trainer(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(trainer, PressCtrlC(4, 4))
    assert trainer.state.global_step == 4
    assert "checkpoint-4 is kept: run the same again" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    assert train(new_trainer()) == "checkpoint-4"


@pytest.mark.slow
def test_training_in_another_thread_is_left_without_ctrl_c(new_trainer):
    trainer = new_trainer(num_train_epochs=1)
    thread = threading.Thread(target=train, args=[trainer])
    thread.start()
    thread.join()
    assert trainer.state.global_step == 8


@pytest.mark.slow
def test_a_trainer_may_train_twice(new_trainer):
    trainer = new_trainer(num_train_epochs=1)
    assert [train(trainer), train(trainer)] == [None, None]
    assert trainer.state.global_step == 8


# Memory

CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.77 GiB.\nSee documentation"
WINDOWS = (
    "[enforce fail at alloc_cpu.cpp:1] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."
)
SETTINGS = (
    r"a smaller --per_device_train_batch_size with more --gradient_accumulation_steps, .*--activation_checkpointing"
)


class RunOut(TrainerCallback):
    def __init__(self, error):
        self.error = error

    def on_optimizer_step(self, args, state, control, **kwargs) -> None:
        if isinstance(self.error, Exception):
            raise self.error
        torch.empty(self.error)


@pytest.mark.slow
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
    with pytest.raises(MemoryError, match=SETTINGS) as caught:
        train(trainer, RunOut(error))
    length = max(trainer.train_dataset["length"])  # the longest rows come first
    assert str(caught.value).startswith(f"Out of memory in training, on 4 examples of {length} tokens: ")
    assert reason in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.reliability("fault")
def test_out_of_memory_in_evaluation_names_the_evaluation_batch(peft_model, tokenizer, tokenized, args, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(peft_model.base_model, "forward", fail)
    message = r"in evaluation, on 8 examples of \d+ tokens: CUDA .* a smaller --per_device_eval_batch_size"
    with pytest.raises(MemoryError, match=message):
        predict(peft_model, tokenizer, tokenized["test"], args.replace(per_device_eval_batch_size=8))
    assert not peft_model._forward_pre_hooks


def test_other_errors_stay_as_they_are(new_trainer):
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(new_trainer(), RunOut(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


# Saving


def test_a_save_leaves_the_results_of_an_earlier_one_behind_but_not_the_users_files(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("results.json", "before_after.png", "notes.txt"):
        (folder / name).touch()
    with replace_folder(folder) as new:
        (new / "adapter_config.json").touch()
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "notes.txt"]


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def earlier(tmp_path) -> Path:
    folder = tmp_path / "parent" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("earlier")
    (folder / "README.md").write_text("earlier")
    return folder


EARLIER = {"adapter_config.json": "earlier", "README.md": "earlier"}
NEW = {"adapter_config.json": "new", "README.md": "new"}


def write_new(folder: Path) -> None:
    for name, text in NEW.items():
        (folder / name).write_text(text)


def test_a_folder_is_replaced_as_a_whole(earlier):
    with replace_folder(earlier) as folder:
        write_new(folder)
        assert content(earlier) == EARLIER
    assert content(earlier) == NEW
    assert list(earlier.parent.iterdir()) == [earlier]


def test_a_first_save_makes_the_folder_and_its_parents(tmp_path):
    with replace_folder(tmp_path / "a" / "b") as folder:
        write_new(folder)
    assert content(tmp_path / "a" / "b") == NEW


def test_the_users_own_files_are_carried_over(earlier):
    (earlier / "notes.txt").write_text("mine")
    (earlier / "calibration.json").write_text("of the earlier adapter")
    (earlier / ".git").mkdir()
    with replace_folder(earlier) as folder:
        write_new(folder)
    assert (earlier / ".git").is_dir()
    (earlier / ".git").rmdir()
    assert content(earlier) == NEW | {"notes.txt": "mine"}


def test_a_link_stays_and_nothing_outside_is_touched(earlier, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.tex").write_text("mine")
    (earlier / "README.md").unlink()
    (earlier / "README.md").symlink_to(outside)  # it goes with the earlier folder
    link = tmp_path / "link"
    link.symlink_to(earlier)
    with replace_folder(link) as folder:
        write_new(folder)
    assert link.is_symlink()
    assert content(link) == content(earlier) == NEW
    assert content(outside) == {"thesis.tex": "mine"}


def write_half(folder: Path, error: BaseException) -> None:
    (folder / "adapter_config.json").write_text("half")
    raise error


@pytest.mark.reliability("fault")
@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=repr
)
def test_an_error_while_writing_leaves_the_earlier_folder_whole(earlier, error):
    with pytest.raises(type(error)) as caught, replace_folder(earlier) as folder:
        write_half(folder, error)
    assert caught.value.__notes__ == [f"{earlier} is as it was before."]
    assert content(earlier) == EARLIER
    assert list(earlier.parent.iterdir()) == [earlier]


@pytest.mark.reliability("fault")
def test_weights_that_do_not_fit_on_the_disk_leave_the_earlier_adapter_whole(saved, peft_model):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))  # bytes a file: the system refuses to write more
    try:
        with pytest.raises((OSError, SafetensorError)) as caught, replace_folder(saved) as folder:
            peft_model.save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{saved} is as it was before." in caught.value.__notes__
    assert {path: path.read_bytes() for path in saved.iterdir()} == before


def fail_in_second_rename(monkeypatch, fail) -> None:
    rename, calls = Path.rename, []

    def failing(path, target):
        calls.append(path)
        if len(calls) == 2:
            fail()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)


@pytest.mark.reliability("fault")
def test_an_error_between_the_two_renames_puts_the_earlier_folder_back(earlier, monkeypatch):
    def fail():
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    fail_in_second_rename(monkeypatch, fail)
    with pytest.raises(OSError, match="Input/output error"), replace_folder(earlier) as folder:
        write_new(folder)
    assert content(earlier) == EARLIER
    assert list(earlier.parent.iterdir()) == [earlier]


def save_in_a_process_that_is_killed(folder: Path, at: str) -> None:
    """SIGKILL a real process while it is writing, between the renames, or while it removes the earlier folder."""

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            with pytest.MonkeyPatch.context() as patch, replace_folder(folder) as new:
                (new / "adapter_config.json").write_text("new")
                if at == "writing":
                    die()
                write_new(new)
                if at == "renaming":
                    fail_in_second_rename(patch, die)
                if at == "removing":
                    patch.setattr(interruptions.shutil, "rmtree", die)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL


@pytest.mark.reliability("fault")
@pytest.mark.parametrize(
    ("at", "there", "expected"),
    [
        ("writing", {"adapter", ".adapter.saving"}, EARLIER),
        ("renaming", {".adapter.saving", ".adapter.replaced"}, NEW),
        ("removing", {"adapter", ".adapter.replaced"}, NEW),
    ],
)
def test_a_killed_save_leaves_one_whole_adapter_and_is_cleared_up(earlier, args, at, there, expected):
    (earlier / "notes.txt").write_text("mine")
    save_in_a_process_that_is_killed(earlier, at)
    assert {path.name for path in earlier.parent.iterdir()} == there
    check_output_dir(args.replace(output_dir=str(earlier), overwrite_output_dir=True))
    assert list(earlier.parent.iterdir()) == [earlier]
    assert content(earlier) == expected | {"notes.txt": "mine"}


@pytest.mark.reliability("fault")
def test_what_only_its_other_name_is_left_of_is_put_back(earlier):
    earlier.rename(earlier.with_name(".adapter.replaced"))
    with pytest.raises(RuntimeError), replace_folder(earlier):
        raise RuntimeError
    assert content(earlier) == EARLIER


@pytest.mark.reliability("fault")
def test_a_first_save_that_was_killed_leaves_no_half_adapter(tmp_path):
    save_in_a_process_that_is_killed(tmp_path / "adapter", "writing")
    assert not (tmp_path / "adapter").exists()
    with replace_folder(tmp_path / "adapter") as folder:
        assert not list(folder.iterdir())
    assert list(tmp_path.iterdir()) == [tmp_path / "adapter"]
