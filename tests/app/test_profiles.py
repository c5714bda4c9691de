import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKPOINTING

from peft_helpers.app import profiles
from peft_helpers.app.profiles import WIKITEXT, choose_texts, describe_options, parse_arguments
from peft_helpers.arguments import BBC_NEWS, TrainingOptions
from peft_helpers.tiny_gpt2 import TINY_GPT2


@pytest.fixture
def reviews(tmp_path) -> str:
    (tmp_path / "reviews.csv").touch()
    return str(tmp_path / "reviews.csv")


def answer(monkeypatch, available: bool, reason: str = "for this reason") -> dict:
    """Have the Hub answer so; return what it is asked for."""
    asked = {}
    monkeypatch.setattr(profiles, "explain_availability", lambda **names: (asked.update(names), (available, reason))[1])
    return asked


def do_not_ask(monkeypatch) -> None:
    monkeypatch.setattr(profiles, "explain_availability", lambda **_: pytest.fail("asked the Hub"))


# Profiles


def test_offline_profile_takes_the_packaged_model_and_data():
    args = parse_arguments("--profile offline")
    assert (args.profile, args.model.model_name_or_path, args.data.dataset_name) == ("offline", TINY_GPT2, BBC_NEWS)
    assert args.training.learning_rate > TrainingOptions.learning_rate
    assert (Path(args.model.model_name_or_path) / "model.safetensors").is_file()


def test_what_is_named_wins_over_the_profile():
    args = parse_arguments("--profile offline --learning_rate 1e-4 --max-length=17 --overwrite_output_dir")
    assert (args.training.learning_rate, args.data.max_length, args.training.overwrite_output_dir) == (1e-4, 17, True)


def test_another_model_does_not_get_the_tiny_models_learning_rate():
    args = parse_arguments("--profile offline --model_name_or_path some/model")
    assert (args.model.model_name_or_path, args.data.dataset_name) == ("some/model", BBC_NEWS)
    assert args.training.learning_rate == TrainingOptions.learning_rate


def test_epochs_follow_the_data_not_only_the_model(reviews):
    assert parse_arguments("--profile offline").training.num_train_epochs == 1.2
    assert parse_arguments(f"--profile offline --dataset_name {reviews}").training.num_train_epochs == 4


def test_imdb_texts_are_truncated_at_512_tokens():
    assert parse_arguments("--profile gpt2-imdb").data.max_length == 512


@pytest.mark.parametrize(("accelerator", "limited"), [(True, False), (False, True)])
def test_only_a_cpu_takes_a_subset_of_the_hub_data(monkeypatch, accelerator, limited):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: accelerator)
    for profile in ("gpt2-sst2", "gpt2-imdb"):
        assert (parse_arguments(f"--profile {profile}").data.max_train_samples is not None) is limited


def test_a_gpu_takes_larger_batches_of_short_phrases_at_the_published_rate(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    on_cpu = parse_arguments("--profile gpt2-sst2").training
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    on_gpu = parse_arguments("--profile gpt2-sst2 --use_cpu true").training
    factor = on_gpu.per_device_train_batch_size / on_cpu.per_device_train_batch_size
    assert factor > 1
    assert on_gpu.learning_rate == pytest.approx(5e-4 * factor**0.5)  # Hu et al. 2021, Malladi et al. 2022


def test_a_stream_takes_no_subset_of_the_profile(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    args = parse_arguments("--profile gpt2-sst2 --streaming --max_steps 4")
    assert args.data.max_train_samples is None


@pytest.mark.parametrize(("available", "profile"), [(True, "gpt2-sst2"), (False, "offline")])
def test_auto_takes_gpt2_where_it_is_available_and_says_why(monkeypatch, capsys, available, profile):
    answer(monkeypatch, available)
    assert parse_arguments("").profile == profile
    printed = capsys.readouterr().out
    assert printed.endswith(f"Profile {profile}: for this reason.\n")
    assert printed.startswith("Offline: ") is not available


def test_auto_names_only_what_it_replaces(monkeypatch, capsys, reviews):
    answer(monkeypatch, False)
    assert parse_arguments(f"--dataset_name {reviews}").data.dataset_name == reviews
    assert capsys.readouterr().out.startswith(f"Offline: {TINY_GPT2} in place of gpt2. ")


def test_auto_asks_only_for_what_is_not_named(monkeypatch, reviews):
    asked = answer(monkeypatch, True)
    args = parse_arguments(f"--dataset_name {reviews}")
    assert asked == {"model_name_or_path": "gpt2"}
    assert (args.model.model_name_or_path, args.data.dataset_name) == ("gpt2", reviews)


def test_auto_asks_nobody_when_model_and_data_are_named(monkeypatch, capsys, reviews):
    do_not_ask(monkeypatch)
    args = parse_arguments(f"--model_name_or_path a --dataset_name {reviews}")
    assert (args.profile, args.model.model_name_or_path, args.data.dataset_name) == ("auto", "a", reviews)
    assert "nothing to choose" in capsys.readouterr().out


# Words


def test_environment_variable_is_read(monkeypatch):
    monkeypatch.setenv("LFT_ARGS", "--profile offline --seed 7")
    assert parse_arguments().training.seed == 7


@pytest.mark.reliability("bad input")
def test_an_error_in_the_environment_variable_names_it(monkeypatch):
    monkeypatch.setenv("LFT_ARGS", "--epochs 3")
    with pytest.raises(ValueError, match=r"^LFT_ARGS: Unknown option --epochs\. Did you mean --num_train_epochs\?"):
        parse_arguments()


def test_words_are_taken_as_they_are(reviews):
    args = parse_arguments(["--profile", "offline", "--dataset_name", reviews, "--output_dir", "two words"])
    assert (args.data.dataset_name, args.training.output_dir) == (reviews, "two words")


def test_defaults_give_way_to_what_is_named():
    defaults = {"output_dir": "here", "comparison_file": None, "learning_rate": 1.0}
    args = parse_arguments("--profile offline --output_dir there", **defaults)
    assert (args.training.output_dir, args.training.learning_rate) == ("there", 1.0)
    assert args.comparison.comparison_file is None


def test_options_of_transformers_are_known():
    words = (
        "--profile offline --lr_scheduler_type cosine --report_to none --no_load_best_model_at_end --weight_decay .1"
    )
    training = parse_arguments(words).training
    assert (training.lr_scheduler_type, training.load_best_model_at_end, training.weight_decay) == (
        "cosine",
        False,
        0.1,
    )


def test_no_file_beside_the_program_adds_options(monkeypatch, tmp_path):
    (tmp_path / "program.args").write_text("--seed 7")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "program.py")])
    assert parse_arguments("--profile offline").training.seed == 42


@pytest.mark.reliability("bad input")
def test_a_missing_file_is_reported_before_the_hub_is_asked(monkeypatch):
    do_not_ask(monkeypatch)
    for words, name in (("--dataset_name a.csv", "a.csv"), ("--model_name_or_path ./gone", "./gone")):
        with pytest.raises(FileNotFoundError, match=f"{words[2:14]}.* is '{name}': there is no such file or folder"):
            parse_arguments(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--profile gpt3", "argument --profile: invalid choice: 'gpt3' (choose from "),
        ("--epochs 3", "Unknown option --epochs. Did you mean --num_train_epochs?"),
        ("--lerning-rate=3", "Unknown option --lerning-rate. Did you mean --learning_rate?"),
        ("--max_train 3", "Unknown option --max_train. Did you mean --max_train_samples?"),
        ("--lr_scheduler cosine", "Unknown option --lr_scheduler. Did you mean --lr_scheduler_type?"),
        ("-lr 1e-3", "Unknown option -lr."),
        ("--no_seed", "Unknown option --no_seed. Did you mean --seed?"),
        ("--no_streaming", "Unknown option --no_streaming. Did you mean --streaming?"),
        ("--help", "Unknown option --help. "),
        ("--seed one", "argument --seed: invalid int value: 'one'"),
        ("--max_length 0", "max_length is 0; it must be greater than 0"),
        ("--max_train_samples -5", "max_train_samples is -5"),
        ("--gradient_accumulation_steps 0", "gradient_accumulation_steps is 0; it must be greater"),
        (f"--{next(iter(CHECKPOINTING))} maybe", "Truthy value expected: got maybe"),
        ("--load_in_4bit 8", "Truthy value expected: got 8"),
        ("--num_train_epochs 0", "num_train_epochs is 0"),
        ("--learning_rate nan", "learning_rate is nan"),
        ("--lora_dropout 1", "lora_dropout is 1.0; it must be at least 0 and below 1"),
        ("three epochs", "arguments are not used by the HfArgumentParser: ['three', 'epochs']"),
    ],
)
@pytest.mark.reliability("bad input")
def test_bad_options_are_named(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_arguments(words if "--profile" in words else f"{words} --profile offline")


@pytest.mark.parametrize("place", ["{here}", "{root}/./peft_helpers/../peft_helpers/tiny_gpt2/", "{link}"])
def test_the_embedded_model_is_known_however_it_is_named(place, tmp_path):
    here = Path(TINY_GPT2).resolve()
    link = tmp_path / "a_link"
    link.symlink_to(here)
    name = place.format(here=here, root=here.parent.parent, link=link)
    args = parse_arguments(f"--profile offline --model_name_or_path {name}")
    assert args == parse_arguments("--profile offline")


def test_arguments_can_be_sent_to_another_process():
    args = parse_arguments("--profile offline --seed 3")
    assert pickle.loads(pickle.dumps(args)).replace() == args  # noqa: S301 (our own bytes)


# Help


def test_help_shows_this_projects_options_by_group_and_transformers_ones_on_demand():
    text = describe_options("program", "Do this.")
    order = ["Do this.", "model:", "--model_name_or_path", "data:", "LoRA:", "--lora_r", "training and"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert "--lr_scheduler_type" not in text
    assert "(default: None)" not in text
    assert "--lr_scheduler_type" in describe_options("program", "Do this.", everything=True)


def test_neither_help_nor_a_wrong_value_waits_for_the_large_libraries():
    code = """
import sys
from peft_helpers.app.profiles import describe_options, parse_arguments
describe_options("program", "Do this.")
try:
    parse_arguments("--lora_dropout 2")
except ValueError:
    sys.exit(str({"torch", "datasets", "pandas", "peft"} & sys.modules.keys()))
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stderr.splitlines()[-1] == "set()"


# Texts for language modeling


@pytest.mark.parametrize(
    ("available", "name", "topic"), [(True, WIKITEXT, "wikitext-2-raw-v1"), (False, BBC_NEWS, "sports")]
)
def test_auto_takes_wikitext_where_it_is_available_and_says_why(available, name, topic, args, monkeypatch, capsys):
    asked = answer(monkeypatch, available)
    texts = choose_texts(args).language_modeling
    assert (texts.lm_dataset_name, texts.lm_dataset_config_name) == (name, topic)
    assert asked["dataset_name"] == WIKITEXT
    printed = capsys.readouterr().out
    assert printed.endswith(f"Language modeling on {name} {topic}: for this reason.\n")
    assert (f"Offline: {BBC_NEWS} in place of {WIKITEXT}." in printed) is not available


def test_texts_that_are_named_are_taken_without_asking(args, monkeypatch, capsys):
    do_not_ask(monkeypatch)
    texts = choose_texts(args.replace(lm_dataset_name="story.txt")).language_modeling
    assert (texts.lm_dataset_name, texts.lm_dataset_config_name) == ("story.txt", None)
    assert "on story.txt: as asked for." in capsys.readouterr().out
    topic = choose_texts(args.replace(lm_dataset_name=BBC_NEWS, lm_dataset_config_name="tech")).language_modeling
    assert topic.lm_dataset_config_name == "tech"


@pytest.mark.reliability("fault")
def test_a_hub_that_does_not_serve_wikitext_is_an_error(args, hub_server):
    hub_server.faults["wikitext"] = lambda handler: handler.refuse(503)
    with pytest.raises(ConnectionError, match=r"503 .* dataset Salesforce/wikitext\. .*`--lm_dataset_name bbc-news`"):
        choose_texts(args)


def test_a_mirror_without_wikitext_gives_way_and_says_so(args, hub_server, capsys):
    hub_server.faults["wikitext"] = lambda handler: handler.refuse(404)
    assert choose_texts(args).language_modeling.lm_dataset_name == BBC_NEWS
    assert "on bbc-news sports: this Hub has no Salesforce/wikitext." in capsys.readouterr().out
