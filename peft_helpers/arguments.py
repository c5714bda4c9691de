"""What one run does: its options, in groups; `profiles.parse_arguments` makes them."""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Literal

from peft_helpers.tiny_gpt2 import find_model

if TYPE_CHECKING:
    from peft_helpers.training import TrainingArguments

BBC_NEWS, WIKITEXT = "bbc-news", "Salesforce/wikitext"

_NOT_ALWAYS_POSITIVE = ("lora_dropout", "seed", "max_steps")
COMPARISON_METHODS = ["head-only", "ln-tuning", "ia3", "lora-r8", "dora", "lora-all-linear", "qlora", "full"]


def _option(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ModelArguments:
    """The pre-trained model."""

    _argument_group_name = "model"

    model_name_or_path: str = _option("gpt2", "model id on the Hub, or local folder")
    load_in_4bit: bool = _option(False, "save memory: load the frozen model in 4 bits (QLoRA)")

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_name_or_path", find_model(self.model_name_or_path))


@dataclass(frozen=True)
class DataArguments:
    """The labelled examples."""

    _argument_group_name = "data"

    dataset_name: str = _option(
        "stanfordnlp/sst2", "id on the Hub; csv, tsv, json, jsonl or parquet file; folder of one per split; or bbc-news"
    )
    dataset_config_name: str | None = _option(None, "configuration of a dataset on the Hub that has several")
    text_column: str | None = _option(None, "column with the texts (default: the only candidate)")
    text_pair_column: str | None = _option(None, "column with second texts, for a task on pairs (default: no pairs)")
    label_column: str | None = _option(None, "column with the labels (default: the only candidate)")
    max_length: int = _option(128, "tokens after which a text is truncated")
    average_chunks: bool = _option(False, "test and predict on all chunks of a long text; validation reads the first")
    max_train_samples: int | None = _option(None, "stratified subset of the training examples (default: all)")
    max_eval_samples: int | None = _option(None, "subset of validation and of test (default: all; 2,000 of a stream)")
    streaming: bool = _option(False, "read training examples as they are needed; takes max_steps")

    def __post_init__(self) -> None:
        if self.streaming and self.max_train_samples is not None:
            raise ValueError("streaming takes no --max_train_samples; --max_steps says how much is trained on.")
        if self.streaming and self.dataset_name == BBC_NEWS:
            raise ValueError(f"{BBC_NEWS} cannot be streamed; name a file, a folder or a dataset on the Hub.")
        if self.average_chunks and self.text_pair_column:
            raise ValueError("Pairs of texts are truncated and have no chunks; leave out --average_chunks.")


@dataclass(frozen=True)
class LoraArguments:
    """LoRA."""

    _argument_group_name = "LoRA"

    target_modules: str = _option("all-linear", "all-linear, or a regular expression of whole layer names: .*c_attn")
    lora_r: int = _option(8, "rank of the LoRA matrices")
    lora_alpha: int = _option(16, "LoRA scaling: the update is multiplied by lora_alpha / lora_r")
    lora_dropout: float = _option(0.0, "dropout on the input of the LoRA matrices; takes time on a CPU")

    def __post_init__(self) -> None:
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout is {self.lora_dropout}; it must be at least 0 and below 1.")


@dataclass
class TrainingOptions:
    """Training and evaluation: what differs from transformers' `TrainingArguments`, of which every option works."""

    _argument_group_name = "training and evaluation"

    learning_rate: float = _option(5e-4, "peak learning rate of AdamW")
    num_train_epochs: float = _option(2.0, "passes over the training examples")
    max_steps: int = _option(-1, "training steps, in place of num_train_epochs")
    per_device_train_batch_size: int = _option(16, "training examples per step and device")
    per_device_eval_batch_size: int = _option(128, "evaluation examples per step and device; fewer of long ones")
    gradient_accumulation_steps: int = _option(1, "batches whose gradients are added up for one update")
    class_weights: Literal["balanced"] | None = _option(None, "balanced: rare labels weigh more in the loss")
    tune_threshold: bool = _option(False, "decide between two labels by the best F1 of the rarer one on validation")
    bf16: bool | None = _option(None, "compute in bfloat16 (default: where the GPU or the CPU has it)")
    seed: int = _option(42, "seed of the head, of LoRA, of the order of examples and of subsets")
    output_dir: str = _option("lora_adapter", "folder of the adapter, and of checkpoints while training lasts")
    overwrite_output_dir: bool = _option(False, "replace the adapter of another run in output_dir")


@dataclass(frozen=True)
class ComparisonArguments:
    """The methods that are compared."""

    _argument_group_name = "comparison of methods"

    comparison_methods: list[str] = field(
        default_factory=COMPARISON_METHODS.copy, metadata={"help": "methods to compare, by name; all, or none"}
    )
    comparison_steps: int = _option(200, "optimizer steps of each method; in learning-curve at least")
    comparison_seeds: int = _option(3, "seeds for each of LoRA and DoRA; the other methods take one")
    comparison_minutes: float = _option(5.0, "time for all of them: seeds, then steps, then methods are left out")
    search_trials: int = _option(20, "trials of a hyperparameter search, those of earlier runs of it included")
    train_sizes: list[int] | None = field(
        default=None, metadata={"help": "training examples in learning-curve (default: 16, 32, ... and all)"}
    )
    comparison_file: str = _option("method_comparison.jsonl", "keeps the results: a comparison goes on from it")


@dataclass(frozen=True)
class LanguageModelingArguments:
    """Texts and training of the language model."""

    _argument_group_name = "language modeling"

    lm_dataset_name: str = _option(
        "auto", "id on the Hub, local file (also .txt), bbc-news, or auto: WikiText-2, but bbc-news without a network"
    )
    lm_dataset_config_name: str | None = _option(None, "configuration; of bbc-news the topic (default: sports)")
    block_size: int = _option(128, "tokens of each of the blocks that the texts are cut into")
    lm_learning_rate: float = _option(5e-4, "peak learning rate")
    lm_num_train_epochs: float = _option(1.0, "passes over the training blocks")
    lm_max_eval_samples: int | None = _option(None, "subset of validation and of test (default: max_eval_samples)")


@dataclass(frozen=True)
class Arguments:
    """Everything that one run does, in groups; made by `parse_arguments`."""

    model: ModelArguments
    data: DataArguments
    lora: LoraArguments
    training: "TrainingArguments"
    comparison: ComparisonArguments
    language_modeling: LanguageModelingArguments
    profile: str = "auto"

    def __post_init__(self) -> None:
        for name, value in self.describe().items():
            if name not in _NOT_ALWAYS_POSITIVE and type(value) in (int, float) and not value > 0:
                raise ValueError(f"{name} is {value}; it must be greater than 0.")
        if 1 in (self.training.max_steps, self.comparison.comparison_steps):
            raise ValueError("Two steps are the least (max_steps, comparison_steps): the first has a rate of 0.")
        if self.data.streaming and self.training.max_steps < 1:
            raise ValueError("streaming needs --max_steps: the end of a stream is not known before it is reached.")
        if self.data.streaming and self.training.class_weights:
            raise ValueError("class_weights needs the labels of all training examples; leave it out, or --streaming.")

    def replace(self, **changes) -> "Arguments":
        """Return a copy in which options, whatever their group, have other values."""
        groups = {}
        for name, group in vars(self).items():
            if is_dataclass(group):
                of_group = {option.name for option in fields(group)} & changes.keys()
                groups[name] = replace(group, **{option: changes.pop(option) for option in of_group})
        return replace(self, **groups, **changes)

    def describe(self) -> dict[str, object]:
        """Return the value of each option in the groups above; of transformers' options those in `TrainingOptions`."""
        groups = (self.model, self.data, self.lora, self.training, self.comparison, self.language_modeling)
        own = {option.name for group in OPTIONS for option in fields(group)}
        return {o.name: getattr(group, o.name) for group in groups for o in fields(group) if o.name in own}


OPTIONS = (
    ModelArguments, DataArguments, LoraArguments, TrainingOptions, ComparisonArguments, LanguageModelingArguments
)  # fmt: skip
