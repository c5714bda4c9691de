"""The path of the notebook's cells as functions, each step timed: what the command line runs."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import DatasetDict, load_dataset
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_utils import PredictionOutput

from peft_helpers.adapter_checks import check_adapter
from peft_helpers.adapters import (
    check_output_dir,
    load_run_config,
    replace_folder,
    save_run_config,
    sort_target_modules,
)
from peft_helpers.analysis.report import majority_class
from peft_helpers.arguments import BBC_NEWS, Arguments
from peft_helpers.checks import assert_same_logits
from peft_helpers.comparison.baselines import run_reference_points
from peft_helpers.comparison.runner import plan_comparison, run_methods
from peft_helpers.data import load_dataset_arguments, prepare_splits
from peft_helpers.distributed import main_process_first, process_state
from peft_helpers.model_card import save_model_card
from peft_helpers.modeling import (
    check_model,
    compute_dtype,
    empty_model,
    head_modules,
    keep_4bit_weights_unpacked,
    load_base_model,
    move_to_device,
    saved_classifier_arguments,
    uses_conv1d,
)
from peft_helpers.prediction import predict
from peft_helpers.sources.bbc_news import load_bbc_news
from peft_helpers.sources.streaming import prepare_stream, tokenize_stream
from peft_helpers.speed import speed_up
from peft_helpers.tokenization import set_padding, tokenize_dataset, tokenize_passages
from peft_helpers.training import guard_training, make_trainer


@dataclass(frozen=True)
class RunResult:
    """What `run` has found: outputs of `predict` on the same test rows before and after, and what it took.

    ``majority`` always answers with the most frequent label; ``tuned`` is the output of the adapter as it was loaded
    again; ``log_history`` the Trainer's; ``seconds`` those of each stage.
    """

    args: Arguments
    label_names: list[str]
    majority: EvalPrediction
    untuned: PredictionOutput
    tuned: PredictionOutput
    log_history: list[dict]
    trainable_parameters: int
    parameters: int
    seconds: dict[str, float]


def run(args: Arguments, callbacks: Sequence[TrainerCallback] = ()) -> RunResult:
    """Do what the notebook does up to its comparison before and after: the same metrics and the same adapter.

    The adapter is saved to ``args.training.output_dir``. ``callbacks`` are added to the Trainer's.

    Raises:
        AssertionError: the reloaded adapter gives other logits than the model in memory.
        FileExistsError, FileNotFoundError, ValueError, OSError, MemoryError: see `check_model`, `check_output_dir`,
            `load_dataset_arguments`, `prepare_splits`, `make_trainer` and `guard_training`.
    """
    check_model(args)
    check_output_dir(args)
    seconds = {}
    with _timed(seconds, "load"):
        dataset = load_splits(args)
        label_names = dataset["test"].features["label"].names
        tokenizer = AutoTokenizer.from_pretrained(args.model.model_name_or_path)
        model = load_classifier(args, label_names, tokenizer)
        tokenized = tokenize_splits(dataset, tokenizer, args)
    with _timed(seconds, "evaluate untuned"):
        untuned = predict(model, tokenizer, tokenized["test"], args)
    with _timed(seconds, "train"):
        peft_model = inject_lora(model, args)
        log_history = train(peft_model, tokenizer, tokenized, args, callbacks)
    with _timed(seconds, "evaluate tuned"):
        tuned = predict(peft_model, tokenizer, tokenized["test"], args)
    with _timed(seconds, "save"):
        save_adapter(peft_model, tokenizer, args, untuned, tuned)
    with _timed(seconds, "reload and evaluate"):
        reloaded_model, reloaded_tokenizer = load_adapter(args.training.output_dir, label_names)
        test = tokenize_dataset(dataset["test"], reloaded_tokenizer, reloaded_tokenizer.model_max_length)
        reloaded = predict(reloaded_model, reloaded_tokenizer, test, args)
        assert_same_logits(tuned.predictions, reloaded.predictions, compute_dtype())
    trainable, total = peft_model.get_nb_trainable_parameters()
    # Nobody has counted the labels of a stream: those of the validation stand for them.
    counted = {"train": dataset["validation" if args.data.streaming else "train"], "test": dataset["test"]}
    majority = majority_class(counted)
    return RunResult(args, label_names, majority, untuned, reloaded, log_history, trainable, total, seconds)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def load_splits(args: Arguments) -> DatasetDict:
    """Return the three splits of ``args.data.dataset_name``: see `prepare_splits`, and `prepare_stream` for a stream."""
    with main_process_first():
        raw = load_bbc_news() if args.data.dataset_name == BBC_NEWS else load_dataset(**load_dataset_arguments(args))
        return prepare_stream(raw, args) if args.data.streaming else prepare_splits(raw, args)


def tokenize_splits(dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: Arguments) -> DatasetDict:
    """Return the beginning of each text of validation and test, and every passage of each text to train on."""
    if args.data.streaming:
        return tokenize_stream(dataset, tokenizer, args)
    tokenized = tokenize_dataset(dataset, tokenizer, args.data.max_length)
    tokenized["train"] = tokenize_passages(dataset["train"], tokenizer, args.data.max_length)
    return tokenized


def load_classifier(args: Arguments, label_names: list[str], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return `load_base_model`, made ready for training if it is one in 4 bits."""
    model = load_base_model(args, label_names, tokenizer)
    if args.model.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # the Trainer's affair
    return model


def inject_lora(model: PreTrainedModel, args: Arguments) -> PeftModel:
    """Return the classifier with LoRA, and its head to be trained in full."""
    lora_config = LoraConfig(
        task_type="SEQ_CLS",
        r=args.lora.lora_r,
        lora_alpha=args.lora.lora_alpha,
        lora_dropout=args.lora.lora_dropout,
        target_modules=args.lora.target_modules,
        modules_to_save=head_modules(model),
        fan_in_fan_out=uses_conv1d(model),
    )
    return get_peft_model(model, lora_config)


def train(
    peft_model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    tokenized: DatasetDict,
    args: Arguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> list[dict]:
    """Train ``peft_model``, from the last checkpoint if this run was interrupted, and return the Trainer's log."""
    trainer = make_trainer(peft_model, tokenizer, tokenized, args)
    for callback in callbacks:
        trainer.add_callback(callback)
    with guard_training(trainer) as checkpoint:
        trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.state.log_history


def save_adapter(
    peft_model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    args: Arguments,
    untuned: PredictionOutput,
    tuned: PredictionOutput,
) -> None:
    """Save to ``args.training.output_dir`` all that is needed to load the adapter, and its model card."""
    tokenizer.model_max_length = args.data.max_length
    sort_target_modules(peft_model)
    with replace_folder(args.training.output_dir) as folder:
        peft_model.save_pretrained(folder)
        peft_model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_run_config(args, folder)
        save_model_card(peft_model, args, untuned, tuned, folder)


def load_adapter(
    adapter_dir: str | Path, label_names: list[str] | None = None
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Check the adapter that a run has saved, then load it onto its base model, and its tokenizer.

    The model is on the accelerator if there is one. The embedded base model is found from any folder. ``label_names``
    are those that the adapter has to know, in their order; None: any.

    Raises:
        FileNotFoundError, ValueError: see `load_run_config`, `check_model` and `check_adapter`.
    """
    args = load_run_config(adapter_dir)
    check_model(args)
    check_adapter(adapter_dir, args.model.model_name_or_path, label_names)
    tokenizer = AutoTokenizer.from_pretrained(adapter_dir)
    # Not AutoPeftModel...: it would look for the base model at the path that it had when the adapter was trained.
    base_model = AutoModelForSequenceClassification.from_pretrained(
        args.model.model_name_or_path, **saved_classifier_arguments(adapter_dir)
    )
    model = PeftModel.from_pretrained(base_model, adapter_dir)
    move_to_device(model)
    keep_4bit_weights_unpacked(model)
    set_padding(tokenizer, model)
    speed_up(model)
    return model, tokenizer


def compare_methods(args: Arguments) -> tuple[list[dict], np.ndarray]:
    """Run the reference points and ``args.comparison.comparison_methods``.

    Returns:
        The results of `run_reference_points` and `run_methods`, and the true labels of the test rows, shape (rows,).

    Raises:
        ValueError: a method is not known, or refused, or this is one of several processes; see also `check_model` and
            `prepare_splits`.
    """
    if args.data.streaming:
        raise ValueError("Methods are compared on the same rows in tables; leave out --streaming.")
    if process_state().num_processes > 1:
        raise ValueError("Methods are compared in one process, for their times; leave out accelerate launch.")
    runs = plan_comparison(args)
    check_model(args)
    dataset = load_splits(args)
    tokenizer = AutoTokenizer.from_pretrained(args.model.model_name_or_path)
    label_names = dataset["train"].features["label"].names
    set_padding(tokenizer, empty_model(AutoConfig.from_pretrained(args.model.model_name_or_path)))
    tokenized = tokenize_splits(dataset, tokenizer, args)
    results = run_reference_points(dataset, args.training.seed)
    results += run_methods(runs, args, tokenized, tokenizer, label_names, args.comparison.comparison_file)
    return results, np.array(tokenized["test"]["labels"][:])
