from dataclasses import replace
from pathlib import Path

import pytest

from peft_helpers import adapter_size, check_output_dir, list_files, save_run_config


@pytest.fixture
def saved(peft_model, config):
    peft_model.save_pretrained(config.output_dir)
    save_run_config(config, config.output_dir)
    return Path(config.output_dir)


def test_a_new_or_empty_folder_is_fine(config):
    check_output_dir(config)
    Path(config.output_dir).mkdir()
    check_output_dir(config)


def test_the_same_run_may_save_again(saved, config):
    check_output_dir(config)
    check_output_dir(replace(config, checkpoint_dir="elsewhere"))


@pytest.mark.reliability("bad input")
def test_another_runs_adapter_is_not_replaced_unless_asked(saved, config):
    before = {path: path.read_bytes() for path in saved.iterdir()}
    other = replace(config, lora_r=4)
    with pytest.raises(
        FileExistsError, match=r"another run: lora_r 8. Choose another --output_dir, or pass --overwrite"
    ):
        check_output_dir(other)
    assert {path: path.read_bytes() for path in saved.iterdir()} == before
    check_output_dir(replace(other, overwrite_output_dir=True))


@pytest.mark.reliability("bad input")
def test_an_adapter_of_unknown_origin_is_not_replaced(saved, config):
    (saved / "run_config.json").unlink()
    with pytest.raises(FileExistsError, match="adapter of unknown origin"):
        check_output_dir(config)


@pytest.mark.reliability("bad input")
def test_a_folder_of_other_files_is_not_written_into(config):
    Path(config.output_dir).mkdir()
    (Path(config.output_dir) / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="exists and holds no adapter"):
        check_output_dir(config)


@pytest.mark.reliability("bad input")
def test_a_file_in_the_way_is_named(config):
    Path(config.output_dir).touch()
    with pytest.raises(FileExistsError, match="exists and holds no adapter"):
        check_output_dir(config)


def test_files_are_listed_with_their_sizes(saved):
    files = list_files(saved).set_index("file")["MB"]
    weights = saved / "adapter_model.safetensors"
    assert files[weights.name] == adapter_size(saved) == weights.stat().st_size / 1e6
    assert set(files.index) == {path.name for path in saved.iterdir()}


def test_no_path_of_this_machine_is_saved(saved, config):
    assert str(saved.parent) not in (saved / "run_config.json").read_text()
