import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import CHECKPOINTING
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2ForSequenceClassification

from peft_helpers import check_output_dir, describe_adapter, guard_training, make_arguments
from peft_helpers.adapters import save_recipe


def test_a_new_or_empty_folder_is_fine(args):
    check_output_dir(args)
    Path(args.training.output_dir).mkdir()
    check_output_dir(args)


def test_the_same_recipe_may_save_again(saved, args):
    check_output_dir(args)
    check_output_dir(args.replace(comparison_steps=9))
    check_output_dir(args.replace(per_device_eval_batch_size=1, **CHECKPOINTING))  # after too little memory


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
    [
        {"learning_rate": 2e-2},
        {"max_length": 8},
        {"max_train_samples": 16},
        {"seed": 1},
        {"num_train_epochs": 3},
        {"class_weights": "balanced"},
        {"lr_scheduler_type": "cosine"},
        {"weight_decay": 0.1},
    ],
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
    (Path(args.training.output_dir) / "runs").mkdir(parents=True)  # TensorBoard's, of a run that was killed early
    check_output_dir(args)
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


def save_small_adapter(folder: str) -> None:
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=9, n_embd=8, n_layer=3, n_head=2))
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", exclude_modules=["score"], fan_in_fan_out=True)
    torch.manual_seed(0)
    peft_model = get_peft_model(model, lora)
    torch.nn.init.ones_(peft_model.base_model.model.score.modules_to_save["default"].weight)
    peft_model.save_pretrained(folder)
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


def test_no_path_of_this_machine_is_saved(saved, args):
    assert str(saved.parent) not in (saved / "run_config.json").read_text()


@pytest.mark.slow
def test_an_adapter_keeps_its_recipe_until_the_run_that_replaces_it_has_ended(saved, new_trainer, args):
    before, other = (saved / "run_config.json").read_bytes(), args.replace(lora_r=4)
    trainer = new_trainer(lora_r=4, overwrite_output_dir=True)
    assert (saved / "run_config.json").read_bytes() == before
    check_output_dir(other)  # what was begun goes on
    with guard_training(trainer):
        trainer.train()
    assert not (saved / "run_config_of_checkpoints.json").exists()
