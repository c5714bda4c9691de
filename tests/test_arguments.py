import os
import runpy
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

from peft_helpers import arguments as config_module
from peft_helpers import parse_arguments
from peft_helpers.arguments import BBC_NEWS, TINY_GPT2, Arguments, find_model


def test_offline_profile_takes_the_packaged_model_and_data():
    args = parse_arguments("--profile offline")
    assert (args.profile, args.model.model_name_or_path, args.data.dataset_name) == ("offline", TINY_GPT2, BBC_NEWS)
    assert args.training.learning_rate > Arguments.learning_rate
    assert (Path(args.model.model_name_or_path) / "model.safetensors").is_file()


def test_what_is_named_wins_over_the_profile():
    args = parse_arguments("--profile offline --learning_rate 1e-4 --max-length=17 --overwrite_output_dir")
    assert (args.training.learning_rate, args.data.max_length, args.training.overwrite_output_dir) == (1e-4, 17, True)


def test_another_model_does_not_get_the_tiny_models_learning_rate():
    args = parse_arguments("--profile offline --model_name_or_path some/model")
    assert (args.model.model_name_or_path, args.data.dataset_name) == ("some/model", BBC_NEWS)
    assert args.training.learning_rate == Arguments.learning_rate


@pytest.fixture
def rows(tmp_path) -> str:
    (tmp_path / "rows.csv").touch()
    return str(tmp_path / "rows.csv")


def test_epochs_follow_the_data_not_only_the_model(rows):
    assert parse_arguments("--profile offline").num_train_epochs == 1.2
    assert parse_arguments(f"--profile offline --dataset_name {rows}").num_train_epochs == 4


def test_imdb_texts_are_cut_at_512_tokens():
    assert parse_arguments("--profile gpt2-imdb").max_length == 512


@pytest.mark.parametrize(("accelerator", "limited"), [(True, False), (False, True)])
def test_only_a_cpu_takes_a_subset_of_the_hub_data(monkeypatch, accelerator, limited):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    for profile in ("gpt2-sst2", "gpt2-imdb"):
        assert (parse_arguments(f"--profile {profile}").max_train_samples is not None) is limited


def test_environment_variable_is_read(monkeypatch):
    monkeypatch.setenv("LFT_ARGS", "--profile offline --seed 7")
    assert parse_arguments().seed == 7


@pytest.mark.reliability("bad input")
def test_an_error_in_the_environment_variable_names_it(monkeypatch):
    monkeypatch.setenv("LFT_ARGS", "--epochs 3")
    with pytest.raises(ValueError, match=r"^LFT_ARGS: unrecognized arguments: --epochs 3\. The known options are"):
        parse_arguments()


def test_words_are_taken_as_they_are(rows):
    args = parse_arguments(["--profile", "offline", "--dataset_name", rows, "--output_dir", "two words"])
    assert (args.data.dataset_name, args.training.output_dir) == (rows, "two words")


def test_defaults_give_way_to_what_is_named():
    defaults = {"output_dir": "here", "comparison_file": None, "learning_rate": 1.0}
    args = parse_arguments("--profile offline --output_dir there", **defaults)
    assert (args.training.output_dir, args.comparison.comparison_file, args.training.learning_rate) == (
        "there",
        None,
        1.0,
    )


def test_no_file_beside_the_program_adds_options(monkeypatch, tmp_path):
    (tmp_path / "program.args").write_text("--seed 7")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "program.py")])
    assert parse_arguments("--profile offline").seed == 42


def test_a_missing_file_is_told_before_the_hub_is_asked(monkeypatch):
    monkeypatch.setattr(config_module, "explain_availability", lambda **names: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match=r"dataset_name is 'missing\.csv': no data file there"):
        parse_arguments("--dataset_name missing.csv")


@pytest.mark.parametrize(("available", "profile"), [(True, "gpt2-sst2"), (False, "offline")])
def test_auto_takes_gpt2_where_it_can_be_had_and_says_why(monkeypatch, capsys, available, profile):
    monkeypatch.setattr(config_module, "explain_availability", lambda **names: (available, "for this reason"))
    assert parse_arguments("").profile == profile
    printed = capsys.readouterr().out
    assert printed.endswith(f"Profile {profile}: for this reason.\n")
    assert printed.startswith("Offline: ") is not available


def test_auto_tells_only_of_what_it_replaces(monkeypatch, capsys, rows):
    monkeypatch.setattr(config_module, "explain_availability", lambda **names: (False, "no network"))
    assert parse_arguments(f"--dataset_name {rows}").dataset_name == rows
    assert capsys.readouterr().out.startswith(f"Offline: {TINY_GPT2} in place of gpt2. ")


def test_auto_asks_only_for_what_is_not_named(monkeypatch, rows):
    asked = {}
    monkeypatch.setattr(config_module, "explain_availability", lambda **names: (asked.update(names), (True, "so"))[1])
    args = parse_arguments(f"--dataset_name {rows}")
    assert asked == {"model_name_or_path": "gpt2"}
    assert (args.model.model_name_or_path, args.data.dataset_name) == ("gpt2", rows)


def test_auto_asks_nobody_when_model_and_data_are_named(monkeypatch, capsys, rows):
    monkeypatch.setattr(config_module, "explain_availability", lambda **names: pytest.fail("asked the Hub"))
    args = parse_arguments(f"--model_name_or_path a --dataset_name {rows}")
    assert (args.profile, args.model.model_name_or_path, args.data.dataset_name) == ("auto", "a", rows)
    assert "nothing to choose" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--profile gpt3", "Unknown profile 'gpt3'; the known ones are auto, gpt2-sst2, gpt2-imdb, offline"),
        ("--profile offline --epochs 3", "unrecognized arguments: --epochs 3. The known options are --profile, "),
        ("--profile offline --max_train 3", "unrecognized arguments: --max_train 3"),
        ("--profile offline --help", "unrecognized arguments: --help. The known options are --profile, "),
        ("--profile offline --seed one", "argument --seed: invalid int value: 'one'"),
        ("--profile offline --seed -1", "seed is -1; it must be at least 0"),
        ("--profile offline --max_length 0", "max_length is 0; it must be greater than 0"),
        ("--profile offline --max_train_samples -5", "max_train_samples is -5"),
        ("--profile offline --gradient_accumulation_steps 0", "gradient_accumulation_steps is 0; it must be greater"),
        ("--profile offline --activation_checkpointing maybe", "Truthy value expected: got maybe"),
        ("--profile offline --load_in_4bit 8", "Truthy value expected: got 8"),
        ("--profile offline --num_train_epochs 0", "num_train_epochs is 0"),
        ("--profile offline --learning_rate nan", "learning_rate is nan"),
        ("--profile offline --lora_dropout 1", "lora_dropout is 1.0; it must be at least 0 and below 1"),
    ],
)
@pytest.mark.reliability("bad input")
def test_bad_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        parse_arguments(arguments)


def test_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Arguments().seed = 1


@pytest.mark.parametrize("place", ["{here}", "{root}/./peft_helpers/../peft_helpers/tiny_gpt2/", "{link}"])
def test_the_embedded_model_is_known_however_it_is_named(place, tmp_path):
    here = Path(TINY_GPT2).resolve()
    link = tmp_path / "a_link"
    link.symlink_to(here)
    name = place.format(here=here, root=here.parent.parent, link=link)
    args = parse_arguments(f"--profile offline --model_name_or_path {name}")
    assert args == parse_arguments("--profile offline")


@pytest.mark.parametrize(
    "name", ["peft_helpers/tiny_gpt2", "./peft_helpers/tiny_gpt2", "../gone/peft_helpers/tiny_gpt2"]
)
def test_the_embedded_model_is_found_from_another_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model(name) == TINY_GPT2
    other = tmp_path / "peft_helpers" / "tiny_gpt2"
    other.mkdir(parents=True)
    assert find_model(str(other)) == str(other)  # another model in a folder of the same name


def test_the_tiny_model_has_a_whole_path_where_no_relative_one_leads_to_it(monkeypatch):
    def other_drive(path):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", other_drive)
    tiny_gpt2 = runpy.run_path(config_module.__file__)["TINY_GPT2"]
    assert Path(tiny_gpt2).is_absolute()
    assert Path(tiny_gpt2, "config.json").is_file()
