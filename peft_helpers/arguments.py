"""What one run does: a validated configuration, its named profiles and the ``LFT_ARGS`` environment variable."""

import os
import shlex
from argparse import HelpFormatter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from transformers import HfArgumentParser

from peft_helpers.hub import explain_availability
from peft_helpers.sources.local_files import check_model_folder, find_data_files

ENVIRONMENT_VARIABLE = "LFT_ARGS"
BBC_NEWS = "bbc-news"
_TINY_GPT2 = Path(__file__).parent / "tiny_gpt2"
try:
    # "./" keeps the name from being read as a Hub id, wherever the notebook runs.
    TINY_GPT2 = "./" + os.path.relpath(_TINY_GPT2).replace(os.sep, "/")
except ValueError:  # on another drive of Windows
    TINY_GPT2 = _TINY_GPT2.as_posix()

PROFILES = {
    "gpt2-sst2": {"model_name_or_path": "gpt2", "dataset_name": "stanfordnlp/sst2"},
    "gpt2-imdb": {"model_name_or_path": "gpt2", "dataset_name": "stanfordnlp/imdb"},
    "offline": {"model_name_or_path": TINY_GPT2, "dataset_name": BBC_NEWS, "lm_dataset_name": BBC_NEWS},
}

# A model of width 128 wants larger steps than one of width 768; chosen on BBC News' validation rows.
MODEL_SETTINGS = {
    TINY_GPT2: {
        "learning_rate": 2e-3,
        "num_train_epochs": 4,
        "lora_alpha": 32,
        "block_size": 64,
        "lm_learning_rate": 4e-3,
        "lm_num_train_epochs": 1.2,
    },
}
# An epoch of BBC News is several passages of each article.
DATASET_SETTINGS = {BBC_NEWS: {"max_length": 128, "num_train_epochs": 1.2}, "stanfordnlp/imdb": {"max_length": 512}}
# With these the notebook takes 13 minutes with GPT-2 (124M) and SST-2 on 2 CPU cores with AVX2; a GPU takes every row.
CPU_SETTINGS = {
    "stanfordnlp/sst2": {
        "max_train_rows": 2000,
        "num_train_epochs": 1,
        "comparison_methods": ["head-only", "lora-r8", "qlora"],
        "comparison_steps": 20,
        "comparison_seeds": 1,
        "lm_num_train_epochs": 0.1,
        "lm_max_eval_rows": 16,
    },
    "stanfordnlp/imdb": {
        "max_train_rows": 200,
        "max_eval_rows": 50,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "comparison_methods": ["head-only", "lora-r8"],
        "comparison_steps": 20,
        "comparison_seeds": 1,
        "lm_max_eval_rows": 16,
    },
}

COMPARISON_METHODS = ("head-only", "ln-tuning", "ia3", "lora-r8", "dora", "lora-all-linear", "qlora", "full")


def _option(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class RunConfig:
    """One run from the pre-trained model to the compared adapter; made by `parse_run_config`.

    Raises:
        ValueError: a value is out of its range; the message names the field, the value and the range.
    """

    profile: str = _option(
        "auto", "gpt2-sst2, gpt2-imdb, offline, or auto: gpt2-sst2, but offline on a machine without a network"
    )
    model_name_or_path: str = _option("gpt2", "model id on the Hub, or local folder")
    dataset_name: str = _option(
        "stanfordnlp/sst2",
        "dataset id on the Hub; local csv, tsv, json, jsonl or parquet file; folder with one such file a split; "
        "or bbc-news",
    )
    dataset_config_name: str | None = _option(None, "configuration of a dataset on the Hub that has several")
    text_column: str | None = _option(None, "column with the texts (default: the only candidate)")
    label_column: str | None = _option(None, "column with the labels (default: the only candidate)")
    max_length: int = _option(128, "tokens after which a text is cut")
    max_train_rows: int | None = _option(
        None, "stratified subset of the training rows (default: all; a few of SST-2 and IMDB on a CPU)"
    )
    max_eval_rows: int | None = _option(
        None, "subset of validation and of test rows (default: all; 2,000 with streaming)"
    )
    target_modules: str = _option(
        "all-linear", "layers that get LoRA: all-linear, or a regular expression of whole names: .*c_attn"
    )
    lora_r: int = _option(8, "rank of the LoRA matrices")
    lora_alpha: int = _option(16, "LoRA scaling: the update is multiplied by lora_alpha / lora_r")
    lora_dropout: float = _option(0.0, "dropout on the input of the LoRA matrices; takes time on a CPU")
    learning_rate: float = _option(5e-4, "peak learning rate of AdamW")
    num_train_epochs: float = _option(2.0, "passes over the training rows")
    max_steps: int | None = _option(None, "training steps, in place of num_train_epochs")
    streaming: bool = _option(
        False, "read the training rows as they are needed, for more data than the disk holds; takes max_steps"
    )
    per_device_train_batch_size: int = _option(16, "training rows a step and device")
    gradient_accumulation_steps: int = _option(
        1, "batches whose gradients are added up for one update: a quarter of the batch and four of these train alike"
    )
    activation_checkpointing: bool = _option(
        False, "save memory: compute activations again in the backward pass instead of keeping them"
    )
    load_in_4bit: bool = _option(False, "save memory: load the frozen model in 4 bits (QLoRA)")
    per_device_eval_batch_size: int = _option(128, "evaluation rows a step and device; fewer of long ones")
    comparison_methods: list[str] = field(
        default_factory=lambda: list(COMPARISON_METHODS),
        metadata={"help": "methods to compare, by name; all, or none"},
    )
    comparison_steps: int = _option(200, "optimizer steps that each compared method is trained for")
    comparison_file: str = _option(
        "method_comparison.jsonl", "file that results of the comparison are kept in: an interrupted one goes on from it"
    )
    comparison_seeds: int = _option(3, "seeds for each of LoRA, DoRA and IA3; the other methods take one")
    lm_dataset_name: str = _option(
        "auto",
        "texts of the language modelling part: dataset id on the Hub, local file (also .txt), bbc-news, or auto: "
        "WikiText-2, but bbc-news on a machine without a network",
    )
    lm_dataset_config_name: str | None = _option(
        None, "configuration of lm_dataset_name; of bbc-news the topic (default: sports)"
    )
    block_size: int = _option(128, "tokens of each of the blocks that these texts are cut into")
    lm_learning_rate: float = _option(5e-4, "learning_rate of the language modelling part")
    lm_num_train_epochs: float = _option(1.0, "num_train_epochs of the language modelling part")
    lm_max_eval_rows: int | None = _option(None, "max_eval_rows of the language modelling part (default: the same)")
    seed: int = _option(42, "seed of the head, of LoRA, of the order of the rows and of subsets")
    output_dir: str = _option("lora_adapter", "folder that the adapter is saved in")
    overwrite_output_dir: bool = _option(False, "replace an adapter of another run in output_dir")
    checkpoint_dir: str | None = _option(
        None, "folder for checkpoints while training lasts (default: the system's temporary one)"
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_name_or_path", find_model(self.model_name_or_path))
        if self.profile not in ("auto", *PROFILES):
            raise ValueError(f"Unknown profile {self.profile!r}; the known ones are auto, {', '.join(PROFILES)}.")
        for name in ("max_length", "max_train_rows", "max_eval_rows", "lora_r", "lora_alpha", "learning_rate",
                     "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
                     "gradient_accumulation_steps", "comparison_steps", "comparison_seeds", "block_size",
                     "lm_learning_rate", "lm_num_train_epochs", "lm_max_eval_rows"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0.")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}; it must be at least 0 and below 1.")
        if self.streaming and self.max_steps is None:
            raise ValueError("streaming needs --max_steps: the end of a stream is not known before it is reached.")
        if self.streaming and self.max_train_rows is not None:
            raise ValueError("streaming takes no --max_train_rows; --max_steps tells how many rows are trained on.")
        if self.streaming and self.dataset_name == BBC_NEWS:
            raise ValueError(f"{BBC_NEWS} cannot be streamed; name a file, a folder or a data set on the Hub.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below 2**32.")


def find_model(model_name_or_path: str) -> str:
    """Return the name that the model is loaded by from here: `TINY_GPT2` for the embedded one, else the name itself.

    An adapter names the embedded model by a path from the folder in which it was trained; from another folder, or on
    another machine, there is nothing at that path.
    """
    path = Path(model_name_or_path)
    is_gone = path.parts[-2:] == _TINY_GPT2.parts[-2:] and not path.exists()
    return TINY_GPT2 if is_gone or path.resolve() == _TINY_GPT2.resolve() else model_name_or_path


# What the language modelling part takes in place of the fields of the same name; nothing else goes by them.
LM_FIELDS = ("block_size", *(option.name for option in fields(RunConfig) if option.name.startswith("lm_")))


# The groups of options by the first field of each; the others follow it.
_GROUPS = {
    "profile": "model and data",
    "target_modules": "LoRA",
    "learning_rate": "training and evaluation",
    "comparison_methods": "methods that the verb compare compares",
    "seed": "seed and folders",
}


class RunConfigParser(HfArgumentParser):
    """Parses the fields of `RunConfig`, in groups; raises where argparse would end the process and hide the reason."""

    def __init__(self, **options):
        super().__init__(RunConfig, allow_abbrev=False, formatter_class=HelpFormatter, **options)

    def add_argument(self, *names: str, **options):
        """Add an option to its group: with its type, and with its default where the help does not tell it."""
        name = names[0].removeprefix("--")
        if name not in {option.name for option in fields(RunConfig)}:
            return super().add_argument(*names, **options)
        if name in _GROUPS:
            self.group = self.add_argument_group(_GROUPS[name])
        default = "" if options["default"] is None or "(default" in options["help"] else " (default: %(default)s)"
        kind = {int: "INT", float: "FLOAT", str: "TEXT"}.get(options["type"], "BOOL")
        return self.group.add_argument(*names, **options | {"help": options["help"] + default, "metavar": kind})

    def error(self, message: str) -> None:
        """Raise a ValueError that lists the known options."""
        options = ", ".join(f"--{option.name}" for option in fields(RunConfig))
        raise ValueError(f"{message}. The known options are {options}.")


def parse_run_config(arguments: str | list[str] | None = None, **defaults) -> RunConfig:
    """Return the configuration that ``arguments`` describe, and print the profile with the reason for it.

    What is not named comes from ``defaults``, from the profile, then from what suits its model and data set, then from
    `RunConfig`.

    Args:
        arguments: options as on a command line, ``--max_length 64 --seed 1``, or a list of its words; by default those
            in ``LFT_ARGS``.
        **defaults: values of fields that are not named in ``arguments``.

    Raises:
        FileNotFoundError: a local file or folder that is named does not exist, or does not hold what it should.
        ValueError: an option, profile or value is not known or out of range; the message lists the known ones.
        ConnectionError: the profile is ``auto``, and the Hub is there but does not serve; see `explain_availability`.
    """
    if arguments is None:
        try:
            return parse_run_config(os.environ.get(ENVIRONMENT_VARIABLE, ""), **defaults)
        except ValueError as error:
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: {error}") from error
    words = shlex.split(arguments) if isinstance(arguments, str) else arguments
    parser = RunConfigParser(add_help=False)
    named = {word.split("=")[0][2:].replace("-", "_") for word in words if word.startswith("--")}
    values = vars(parser.parse_args(words))
    values["model_name_or_path"] = find_model(values["model_name_or_path"])
    find_data_files(values["dataset_name"])
    check_model_folder(values["model_name_or_path"])
    profile, reason = _choose_profile(values["profile"], named)
    chosen = PROFILES.get(profile, {}) | {name: values[name] for name in _WHAT_RUNS if name in named}
    settings = _suitable_settings(**chosen) | defaults
    if values["streaming"]:
        settings.pop("max_train_rows", None)
    parser.set_defaults(**chosen | settings)
    (config,) = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    print(f"Profile {profile}: {reason}.")
    return replace(config, profile=profile)


_WHAT_RUNS = ("model_name_or_path", "dataset_name")


def _choose_profile(profile: str, named: set[str]) -> tuple[str, str]:
    if profile != "auto":
        return profile, "as asked for"
    if named.issuperset(_WHAT_RUNS):
        return "auto", "model and data set are both named, so there is nothing to choose"
    wanted = {name: value for name, value in PROFILES["gpt2-sst2"].items() if name not in named}
    available, reason = explain_availability(**wanted)
    if available:
        return "gpt2-sst2", reason
    from peft_helpers.notebook import warn_offline  # takes seconds

    warn_offline(wanted.values(), [PROFILES["offline"][name] for name in wanted])
    return "offline", reason


def _suitable_settings(model_name_or_path: str = "", dataset_name: str = "", **_) -> dict:
    settings = MODEL_SETTINGS.get(model_name_or_path, {}) | DATASET_SETTINGS.get(dataset_name, {})
    return settings | (CPU_SETTINGS[dataset_name] if dataset_name in CPU_SETTINGS and _only_a_cpu() else {})


def _only_a_cpu() -> bool:
    import torch  # takes seconds, and few configurations depend on it

    return not torch.accelerator.is_available()
