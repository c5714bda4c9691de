"""From words to arguments: the command line's options, named profiles, and the ``LFT_ARGS`` environment variable."""

import difflib
import os
import re
import shlex
import tomllib
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from transformers import HfArgumentParser

from peft_helpers.arguments import (
    OPTIONS,
    TINY_GPT2,
    Arguments,
    DataArguments,
    ModelArguments,
    TrainingOptions,
    find_model,
)
from peft_helpers.sources.hub import explain_availability

ENVIRONMENT_VARIABLE = "LFT_ARGS"
SETTINGS = tomllib.loads(Path(__file__).with_name("profiles.toml").read_text(encoding="utf-8"))
# Options that had another name, and what to say now.
RENAMED = {
    "max_train_rows": "--max_train_samples",
    "max_eval_rows": "--max_eval_samples",
    "lm_max_eval_rows": "--lm_max_eval_samples",
    "checkpoint_dir": "--output_dir, which holds the checkpoints while training lasts",
}


class Parser(HfArgumentParser):
    """Parses groups of options; raises where argparse would end the process and hide the reason."""

    def __init__(self, *groups: type, **options):
        super().__init__(groups, allow_abbrev=False, **options)
        names = ", ".join(SETTINGS["profile"])
        help_text = f"{names}, or auto: gpt2-sst2, but offline on a machine without a network"
        self.add_argument("--profile", default="auto", help=help_text)

    def error(self, message: str) -> None:
        """Raise a ValueError in place of ending the process."""
        raise ValueError(message)


def parse_arguments(words: str | list[str] | None = None, **defaults) -> Arguments:
    """Return what ``words`` ask for, and print the profile with the reason for it.

    What is not named comes from ``defaults``, from the profile, then from what suits its model and dataset, then from
    the groups of `Arguments`.

    Args:
        words: options as on a command line, ``--max_length 64 --seed 1``, or a list of its words; by default those
            in ``LFT_ARGS``.
        **defaults: values of options that are not named in ``words``.

    Raises:
        ValueError: an option, profile or value is not known or out of range.
        ConnectionError: the profile is ``auto``, and the Hub is there but does not serve; see `explain_availability`.
    """
    if words is None:
        try:
            return parse_arguments(os.environ.get(ENVIRONMENT_VARIABLE, ""), **defaults)
        except ValueError as error:
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: {error}") from error
    words = shlex.split(words) if isinstance(words, str) else words
    named = check_options(words)
    first = Parser(ModelArguments, DataArguments, add_help=False).parse_known_args(words)[0]
    profile, reason = _choose_profile(first.profile, named)
    chosen = dict(SETTINGS["profile"].get(profile, {}))
    chosen |= {name: getattr(first, name) for name in _WHAT_RUNS if name in named}
    chosen["model_name_or_path"] = find_model(chosen["model_name_or_path"])
    from peft_helpers.training import TrainingArguments  # takes seconds

    groups = [TrainingArguments if group is TrainingOptions else group for group in OPTIONS]
    parser = Parser(*groups, add_help=False)
    parser.set_defaults(**chosen | _suitable_settings(**chosen, streaming=first.streaming) | defaults)
    *parsed, _ = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    print(f"Profile {profile}: {reason}.")
    return Arguments(*parsed, profile)


_WHAT_RUNS = ("model_name_or_path", "dataset_name")


def check_options(words: list[str]) -> set[str]:
    """Return the names of the options in ``words``, after checking that there are such options.

    Raises:
        ValueError: there is no such option; the message has the one that was probably meant.
    """
    # Read, since importing transformers' class takes seconds.
    source = Path(find_spec("transformers").origin).with_name("training_args.py").read_text(encoding="utf-8")
    known = {"profile", *(option.name for group in OPTIONS for option in fields(group))}
    known |= set(re.findall(r"^    (\w+): ", source, re.MULTILINE))
    named = {word.split("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")}
    for name in sorted(named - known - {f"no_{name}" for name in known}):
        nearest = RENAMED.get(name) or ", ".join(f"--{each}" for each in difflib.get_close_matches(name, known))
        hint = f"Did you mean {nearest}?" if nearest else "See `python -m peft_helpers --help` for the options."
        raise ValueError(f"Unknown option --{name}. {hint}")
    return named


def _choose_profile(profile: str, named: set[str]) -> tuple[str, str]:
    if profile not in ("auto", *SETTINGS["profile"]):
        raise ValueError(f"Unknown profile {profile!r}; the known ones are auto, {', '.join(SETTINGS['profile'])}.")
    if profile != "auto":
        return profile, "as asked for"
    if named.issuperset(_WHAT_RUNS):
        return "auto", "model and dataset are both named, so there is nothing to choose"
    wanted = {name: value for name, value in SETTINGS["profile"]["gpt2-sst2"].items() if name not in named}
    available, reason = explain_availability(**wanted)
    if available:
        return "gpt2-sst2", reason
    from peft_helpers.app.notebook import warn_offline  # takes seconds

    warn_offline(wanted.values(), [SETTINGS["profile"]["offline"][name] for name in wanted])
    return "offline", reason


def _suitable_settings(model_name_or_path: str, dataset_name: str, streaming: bool, **_) -> dict:
    model = "tiny_gpt2" if model_name_or_path == TINY_GPT2 else model_name_or_path
    settings = SETTINGS["model"].get(model, {}) | SETTINGS["dataset"].get(dataset_name, {})
    if dataset_name in SETTINGS["cpu"] and _only_a_cpu():
        settings |= SETTINGS["cpu"][dataset_name]
    return settings | ({"max_train_samples": None} if streaming else {})


def _only_a_cpu() -> bool:
    import torch  # takes seconds, and few runs depend on it

    return not torch.accelerator.is_available()
