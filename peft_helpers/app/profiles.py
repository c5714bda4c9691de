"""From words to arguments: the command line's options, named profiles, and the ``LFT_ARGS`` environment variable."""

import os
import re
import shlex
import tomllib
from argparse import Action, ArgumentDefaultsHelpFormatter, MetavarTypeHelpFormatter
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

import transformers

import peft_helpers as helpers
from peft_helpers.app.notebook import warn_offline
from peft_helpers.arguments import BBC_NEWS, OPTIONS, WIKITEXT, Arguments
from peft_helpers.sources.hub import NotOnHubError, explain_availability
from peft_helpers.tiny_gpt2 import TINY_GPT2

SETTINGS = tomllib.loads(Path(__file__).with_name("profiles.toml").read_text("utf-8").replace("tiny_gpt2", TINY_GPT2))


class _HelpFormatter(ArgumentDefaultsHelpFormatter, MetavarTypeHelpFormatter):
    """Shows the type of an option's value, and its default if there is one."""

    def _get_help_string(self, action: Action) -> str:
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(transformers.HfArgumentParser):
    """Parses groups of options; raises where argparse would end the process and hide the reason."""

    def __init__(self, *groups: type, **options):
        super().__init__(groups, allow_abbrev=False, formatter_class=_HelpFormatter, **options)
        help_text = "auto: gpt2-sst2, but offline on a machine without a network"
        self.add_argument("--profile", type=str, choices=["auto", *SETTINGS["profile"]], default="auto", help=help_text)

    def error(self, message: str) -> None:
        raise ValueError(message)


def parse_arguments(words: str | list[str] | None = None, **defaults) -> Arguments:
    """Return what ``words`` ask for, and print the profile with the reason for it.

    ``words`` are options as on a command line, in a string or a list; by default those in ``LFT_ARGS``. What they do
    not name comes from ``defaults``, from the profile, then from what suits its model and dataset. An option or a value
    that is wrong is a ValueError, a path that leads nowhere a FileNotFoundError; `explain_availability` may raise, too.
    """
    if words is None:
        try:
            return parse_arguments(os.environ.get("LFT_ARGS", ""), **defaults)
        except ValueError as error:
            raise ValueError(f"LFT_ARGS: {error}") from error
    words = shlex.split(words) if isinstance(words, str) else words
    named = check_options(words)
    # This project's own options first: an error in them need not wait for transformers' class, which takes seconds.
    model, data, *_, other, _ = _Parser(*OPTIONS).parse_args_into_dataclasses(
        words, return_remaining_strings=True, look_for_args_file=False
    )
    names = {"model_name_or_path": model.model_name_or_path, "dataset_name": data.dataset_name}
    given = {option: _check_path(option, name) for option, name in names.items() if option in named}
    profile, reason = _choose_profile(other.profile, given)
    chosen = SETTINGS["profile"].get(profile, {}) | given
    from peft_helpers.training import ALL_OPTIONS

    parser = _Parser(*ALL_OPTIONS)
    parser.set_defaults(**chosen | _suitable_settings(**chosen, streaming=data.streaming) | defaults)
    *groups, _ = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    print(f"Profile {profile}: {reason}.")
    return Arguments(*groups, profile)


def describe_options(program: str, description: str, everything: bool = False) -> str:
    """Return the help of a command that takes all options: this project's own, or also those of transformers."""
    epilog = "The profile, the model and the dataset change some of these defaults; an option that is given wins."
    groups = OPTIONS
    if everything:
        from peft_helpers.training import ALL_OPTIONS

        groups = ALL_OPTIONS
    parser = _Parser(*groups, prog=program, description=description, usage="%(prog)s [OPTIONS]", epilog=epilog)
    parser.add_argument("--help_all", action="store_true", help="also show the options of transformers' Trainer")
    return parser.format_help().replace("string_to_bool", "bool")


def check_options(words: list[str]) -> set[str]:
    """Return the names of the options in ``words``; for one that is not known, raise a ValueError with the nearest."""
    # Read, since importing transformers' class takes seconds.
    source = Path(transformers.__file__).with_name("training_args.py").read_text(encoding="utf-8")
    own = {"profile", *(option.name for group in OPTIONS for option in fields(group))}
    known = own | set(re.findall(r"^    (\w+): ", source, re.MULTILINE))
    known |= {f"no_{name}" for name in re.findall(r"^    (\w+): bool\b", source, re.MULTILINE)}
    options = [word.partition("=")[0] for word in words if re.match(r"-+[A-Za-z]", word)]
    named = {option.removeprefix("--").replace("-", "_"): option for option in options}
    for name, option in named.items():
        if name not in known:
            nearest, *_ = get_close_matches(name, known, 1, cutoff=0.8) or get_close_matches(name, own, 1, cutoff=0)
            advice = f"Did you mean --{nearest}? See python -m peft_helpers train --help."
            raise ValueError(f"Unknown option {option}. {advice}")
    return set(named)


def _check_path(option: str, name: str) -> str:
    """Find a mistyped path before the Hub is asked for anything; what is at the path is checked when it is read."""
    path = Path(name)
    is_path = path.is_absolute() or name.startswith(".") or re.search(r"\.(csv|tsv|jsonl?|parquet)(\.gz)?$", name)
    if is_path and not path.exists():
        raise FileNotFoundError(f"{option} is {name!r}: there is no such file or folder. Check the path.")
    return name


def _choose_profile(profile: str, given: dict[str, str]) -> tuple[str, str]:
    if profile != "auto":
        return profile, "as asked for"
    wanted = {option: name for option, name in SETTINGS["profile"]["gpt2-sst2"].items() if option not in given}
    if not wanted:
        return "auto", "model and dataset are both named, so there is nothing to choose"
    available, reason = explain_availability(**wanted)
    if not available:
        warn_offline(wanted.values(), [SETTINGS["profile"]["offline"][option] for option in wanted])
    return "gpt2-sst2" if available else "offline", reason


def _suitable_settings(model_name_or_path: str, dataset_name: str, streaming: bool, **_) -> dict:
    import torch  # takes seconds

    device = "gpu" if torch.accelerator.is_available() else "cpu"
    settings = SETTINGS["model"].get(model_name_or_path, {}) | SETTINGS["dataset"].get(dataset_name, {})
    return settings | SETTINGS[device].get(dataset_name, {}) | ({"max_train_samples": None} if streaming else {})


def check_run(args: Arguments) -> Arguments:
    """Check what would make the notebook fail later: model, adapter's folder, upload, methods; `choose_texts`."""
    helpers.check_model(args)
    helpers.check_output_dir(args)
    helpers.create_repository(args)
    helpers.plan_comparison(args)
    return choose_texts(args)


def choose_texts(args: Arguments) -> Arguments:
    """Return ``args`` with a choice for ``auto`` texts: WikiText-2, or BBC News if offline or if the Hub lacks it."""
    name, reason = args.language_modeling.lm_dataset_name, "as asked for"
    if name == "auto":
        try:
            available, reason = explain_availability(dataset_name=WIKITEXT, instead=f"--lm_dataset_name {BBC_NEWS}")
            if not available:
                warn_offline([WIKITEXT], [BBC_NEWS])
        except NotOnHubError:  # a mirror that holds some repositories only
            available, reason = False, f"this Hub has no {WIKITEXT}"
        name = WIKITEXT if available else BBC_NEWS
    configuration = args.language_modeling.lm_dataset_config_name or SETTINGS["texts"].get(name)
    print(f"Language modeling on {' '.join(filter(None, (name, configuration)))}: {reason}.")
    return args.replace(lm_dataset_name=name, lm_dataset_config_name=configuration)
