import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers import GPT2Config, GPT2ForSequenceClassification
from transformers.trainer_utils import PredictionOutput

from peft_helpers import adapter_size, adapters, check_output_dir, describe_adapter, interruptions, make_arguments
from peft_helpers import replace_folder
from peft_helpers.adapters import save_recipe


def test_a_save_leaves_the_results_of_an_earlier_one_behind_but_not_the_users_files(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("results.json", "before_after.png", "notes.txt"):
        (folder / name).touch()
    with replace_folder(folder) as new:
        (new / "adapter_config.json").touch()
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "notes.txt"]


@pytest.fixture
def saved(peft_model, args):
    peft_model.save_pretrained(args.training.output_dir)
    save_recipe(args, args.training.output_dir)
    return Path(args.training.output_dir)


def test_a_new_or_empty_folder_is_fine(args):
    check_output_dir(args)
    Path(args.training.output_dir).mkdir()
    check_output_dir(args)


def test_the_same_recipe_may_save_again(saved, args):
    check_output_dir(args)
    check_output_dir(args.replace(comparison_steps=9))
    check_output_dir(
        args.replace(per_device_eval_batch_size=1, activation_checkpointing=True)
    )  # after too little memory


@pytest.mark.reliability("bad input")
def test_another_runs_adapter_is_not_replaced_unless_asked(saved, args):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    other = args.replace(lora_r=4)
    with pytest.raises(
        FileExistsError, match=r"another run: lora_r 8. Choose another --output_dir, or pass --overwrite"
    ):
        check_output_dir(other)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    check_output_dir(other.replace(overwrite_output_dir=True))
    assert {path: path.read_bytes() for path in saved.iterdir()} == before  # it is replaced once another is there


@pytest.fixture
def started(args) -> Path:
    """What a run that was killed leaves."""
    save_recipe(args, args.training.output_dir)
    folder = Path(args.training.output_dir, "checkpoint-5")
    folder.mkdir()
    return folder


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 2e-2}, {"max_length": 8}, {"max_train_samples": 16}, {"seed": 1}, {"num_train_epochs": 3}],
    ids=str,
)
def test_the_checkpoints_of_another_recipe_are_taken_by_none_and_removed_when_asked(started, args, changes):
    with pytest.raises(FileExistsError, match="holds the adapter or checkpoints of another run"):
        check_output_dir(args.replace(**changes))
    check_output_dir(args)
    assert started.exists()
    check_output_dir(args.replace(**changes, overwrite_output_dir=True))
    assert not started.exists()


@pytest.mark.reliability("bad input")
def test_an_adapter_of_unknown_origin_is_not_replaced(saved, args):
    (saved / "run_config.json").unlink()
    with pytest.raises(FileExistsError, match="adapter of unknown origin"):
        check_output_dir(args)


@pytest.mark.reliability("bad input")
def test_a_folder_of_other_files_is_not_written_into(args):
    Path(args.training.output_dir).mkdir()
    (Path(args.training.output_dir) / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds no adapter but thesis\.tex"):
        check_output_dir(args)


@pytest.mark.reliability("bad input")
def test_a_file_in_the_way_is_named(args):
    Path(args.training.output_dir).touch()
    with pytest.raises(FileExistsError, match="which is a file; choose a folder"):
        check_output_dir(args)


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("content", ["{", "[1]", "null"])
def test_a_run_file_that_cannot_be_read_makes_the_origin_unknown(saved, args, content):
    (saved / "run_config.json").write_text(content)
    with pytest.raises(FileExistsError, match="adapter of unknown origin"):
        check_output_dir(args)


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("output_dir", [".", "..", "/"])
def test_the_current_folder_is_no_place_for_an_adapter(args, output_dir):
    with pytest.raises(ValueError, match="holds the current folder; choose one inside it"):
        check_output_dir(args.replace(output_dir=output_dir, overwrite_output_dir=True))


@pytest.mark.reliability("bad input")
def test_the_base_models_folder_is_no_place_for_an_adapter(args):
    with pytest.raises(ValueError, match="the base model's own folder"):
        check_output_dir(args.replace(output_dir=args.model.model_name_or_path, overwrite_output_dir=True))


@pytest.fixture
def read_only_folder():
    """A folder in which not even root, as whom containers run tests, can write while the test lasts."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield Path(folder)
        os.seteuid(user)
        Path(folder).chmod(0o755)


@pytest.mark.reliability("fault")
def test_a_read_only_folder_is_seen_before_training(args, read_only_folder):
    with pytest.raises(PermissionError) as caught:
        check_output_dir(args.replace(output_dir=str(read_only_folder / "new" / "adapter")))
    assert f"make {read_only_folder} writable, or choose another" in caught.value.__notes__[0]


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
                    patch.setattr(adapters.shutil, "rmtree", die)
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


def save_small_adapter(folder: str) -> None:
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=9, n_embd=8, n_layer=3, n_head=2))
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", exclude_modules=["score"], fan_in_fan_out=True)
    torch.manual_seed(0)
    peft_model = get_peft_model(model, lora)
    torch.nn.init.ones_(peft_model.base_model.model.score.modules_to_save["default"].weight)
    peft_model.save_pretrained(folder)
    output = PredictionOutput(None, None, {"test_examples": 1})
    describe_adapter(peft_model, make_arguments(), folder)


@pytest.mark.slow
def test_another_process_saves_the_same_bytes(tmp_path):
    save_small_adapter(str(tmp_path / "here"))
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # a set's order depends on it
    command = f"from test_adapters import save_small_adapter; save_small_adapter({str(tmp_path / 'there')!r})"
    environment = os.environ | {"PYTHONHASHSEED": other, "PYTHONPATH": os.pathsep.join(["tests", "."])}
    subprocess.run([sys.executable, "-c", command], env=environment, check=True)
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()


def test_files_are_listed_with_their_sizes(saved):
    files = list_files(saved).set_index("file")["MB"]
    weights = saved / "adapter_model.safetensors"
    assert files[weights.name] == adapter_size(saved) == weights.stat().st_size / 1e6
    assert set(files.index) == {path.name for path in saved.iterdir()}


def test_no_path_of_this_machine_is_saved(saved, args):
    assert str(saved.parent) not in (saved / "run_config.json").read_text()
