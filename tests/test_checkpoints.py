import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from transformers import TrainerCallback

from peft_helpers import fingerprint_parameters, guard_training
from peft_helpers.checkpoints import find_checkpoint, make_checkpoint_folder, run_key


class Fail(TrainerCallback):
    """An error as the step begins, which leaves what a kill leaves: the checkpoints."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise ZeroDivisionError


def interrupt(trainer, step: int = 13) -> Path:
    """16 steps, a checkpoint every second one."""
    trainer.add_callback(Fail(step))
    with pytest.raises(ZeroDivisionError), guard_training(trainer) as checkpoint:
        trainer.train(resume_from_checkpoint=checkpoint)
    return Path(trainer.args.output_dir)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])


@pytest.mark.reliability("fault")
def test_a_run_that_failed_goes_on_from_its_last_checkpoint_and_ends_the_same(new_trainer, capsys):
    whole = new_trainer()
    with guard_training(whole):
        whole.train()
    folder = interrupt(new_trainer())
    truncate(folder / "checkpoint-12" / "optimizer.pt")
    resumed = new_trainer()
    with guard_training(resumed) as checkpoint:
        assert Path(checkpoint) == folder / "checkpoint-6"  # the best one, and so it was not removed on the way
        resumed.train(resume_from_checkpoint=checkpoint)
    assert "Resuming from step 6 of an interrupted run.\n" in capsys.readouterr().out
    assert fingerprint_parameters(resumed.model) == fingerprint_parameters(whole.model)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        pytest.param(lambda last: None, "checkpoint-12", id="none"),
        pytest.param(lambda last: (last / "trainer_state.json").unlink(), "checkpoint-6", id="killed while writing"),
        pytest.param(lambda last: truncate(last / "trainer_state.json"), "checkpoint-6", id="state cut off"),
        pytest.param(lambda last: truncate(last / "adapter_model.safetensors"), "checkpoint-6", id="weights cut off"),
        pytest.param(lambda last: (last / "adapter_model.safetensors").unlink(), "checkpoint-6", id="no weights"),
        pytest.param(lambda last: truncate(last / "optimizer.pt"), "checkpoint-6", id="optimizer cut off"),
        pytest.param(lambda last: (last / "rng_state.pth").write_bytes(b""), "checkpoint-6", id="random state empty"),
    ],
)
@pytest.mark.reliability("fault")
def test_a_damaged_checkpoint_is_removed_and_the_one_before_taken(new_trainer, damage, found):
    folder = interrupt(new_trainer())
    damage(folder / "checkpoint-12")
    assert Path(find_checkpoint(folder)) == folder / found
    assert (folder / "checkpoint-12").exists() == (found == "checkpoint-12")


@pytest.mark.reliability("fault")
def test_without_a_whole_checkpoint_a_run_starts_afresh(new_trainer):
    folder = interrupt(new_trainer(), step=3)
    (folder / "checkpoint-2" / "adapter_model.safetensors").unlink()
    assert find_checkpoint(folder) is None


@pytest.mark.reliability("fault")
def test_a_checkpoint_whose_best_one_is_lost_is_not_taken(new_trainer):
    folder = interrupt(new_trainer(learning_rate=1e-12), step=7)  # the first one stays the best
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-6"]
    shutil.rmtree(folder / "checkpoint-2")
    assert find_checkpoint(folder) is None


@pytest.mark.parametrize(
    ("ended", "number"), [({"learning_rate": 1e-2}, 16), ({"learning_rate": 1e-12, "num_train_epochs": 20}, 144)]
)
@pytest.mark.reliability("fault")
def test_a_run_killed_after_its_last_step_takes_no_further_one(new_trainer, ended, number):
    trainer = new_trainer(**ended)
    trainer.train()  # nothing removes the checkpoints
    folder = Path(trainer.args.output_dir)
    assert (folder / f"checkpoint-{number}" / "trainer_state.json").exists()
    found = find_checkpoint(folder)
    assert found is None or int(found.rpartition("-")[2]) < number
    assert not (folder / f"checkpoint-{number}").exists()


@pytest.mark.reliability("fault")
@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 2e-2}, {"max_length": 8}, {"max_train_samples": 16}, {"seed": 1}, {"num_train_epochs": 3}],
)
def test_the_checkpoint_of_another_configuration_is_not_taken(new_trainer, changes):
    interrupt(new_trainer(), step=3)
    with guard_training(new_trainer(**changes)) as checkpoint:
        assert checkpoint is None


def test_where_a_run_writes_the_adapter_does_not_make_it_another(new_trainer):
    folder = interrupt(new_trainer(), step=3)
    with guard_training(new_trainer(output_dir="elsewhere")) as checkpoint:
        assert Path(checkpoint) == folder / "checkpoint-2"


@pytest.mark.reliability("fault")
def test_two_processes_do_not_train_the_same_run_at_a_time(new_trainer):
    with (
        guard_training(new_trainer()),
        pytest.raises(FileExistsError, match="Another process is training the same run, with its checkpoints in /"),
        guard_training(new_trainer()),
    ):
        pytest.fail("trained")


def test_the_folder_is_private_and_outside_the_notebooks(args, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = make_checkpoint_folder(args.replace(checkpoint_dir=None), "test-key")
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700


def expose(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")
@pytest.mark.parametrize(
    ("prepare", "found"),
    [
        (expose, "drwxrwxrwx of user"),
        (lambda folder: folder.symlink_to(tempfile.gettempdir()), "lrwxrwxrwx of user"),
        (lambda folder: folder.mkdir(mode=0o700), "drwx------ of user"),
    ],
    ids=["open to all", "link", "another user's"],
)
@pytest.mark.reliability("fault")
def test_a_folder_that_others_could_have_written_to_is_refused(args, monkeypatch, prepare, found):
    parent = Path(args.checkpoint_dir)
    parent.mkdir()
    prepare(parent / "checkpoints-key")
    if found.startswith("drwx------"):
        me = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(PermissionError, match=f"only this user can enter .* found {found}"):
        make_checkpoint_folder(args, "key")


@pytest.mark.reliability("bad input")
def test_a_checkpoint_dir_that_is_a_file_is_named(args):
    Path(args.checkpoint_dir).write_text("not a folder")
    with pytest.raises(ValueError, match=r"No folder for checkpoints can be made: .*Name another --checkpoint_dir"):
        make_checkpoint_folder(args, "key")


def test_the_rows_and_the_frozen_weights_make_the_key(new_trainer, tokenized):
    trainer = new_trainer()

    def key() -> str:
        rows = DatasetDict(train=trainer.train_dataset, validation=tokenized["validation"])
        return run_key(trainer.args, trainer.model, rows)

    first = key()
    assert trainer.args.output_dir.endswith(first)
    with torch.no_grad():
        next(value for name, value in trainer.model.named_parameters() if "lora_A" in name).add_(1)
    assert key() == first  # what is trained changes
    with torch.no_grad():
        next(value for name, value in trainer.model.named_parameters() if "wte" in name).add_(1)
    assert key() != first
    second = key()
    trainer.train_dataset = trainer.train_dataset.select(range(31, -1, -1))
    assert key() != second


def test_what_saves_memory_leaves_a_run_the_same(new_trainer):
    """Advised after running out of memory: the checkpoints are to be found again."""
    folder = new_trainer().args.output_dir
    assert new_trainer(per_device_eval_batch_size=1, activation_checkpointing=True).args.output_dir == folder
    assert new_trainer(learning_rate=1e-3).args.output_dir != folder
