"""Helpers of ``LightweightFineTuning.ipynb``: one module a topic, every public name importable from here."""

from peft_helpers.adapters import adapter_size, check_output_dir, list_files, save_run_config
from peft_helpers.bbc_news import load_bbc_news
from peft_helpers.checks import assert_same_logits, changed_parameters, fingerprint_parameters
from peft_helpers.comparison import compare, format_comparison, majority_class
from peft_helpers.config import BBC_NEWS, PROFILES, TINY_GPT2, RunConfig, parse_run_config
from peft_helpers.data import count_classes, load_dataset_arguments, prepare_splits
from peft_helpers.metrics import ClassificationMetrics, compute_metrics, report_per_class
from peft_helpers.models import (
    check_model,
    classifier_arguments,
    head_modules,
    load_base_model,
    saved_classifier_arguments,
    turn_off_dropout,
    uses_conv1d,
)
from peft_helpers.notebook import describe_environment, keep_output_clean
from peft_helpers.plots import (
    plot_before_after,
    plot_class_balance,
    plot_confusions,
    plot_token_lengths,
    plot_training,
)
from peft_helpers.prediction import classify_texts, predict
from peft_helpers.resources import check_space, estimate_adapter, estimate_checkpoint, explain_out_of_memory
from peft_helpers.tokenization import encode_texts, set_padding, tokenize_dataset, tokenize_passages
from peft_helpers.training import evaluation_arguments, guard_training, make_trainer, training_arguments

__all__ = [
    "BBC_NEWS", "PROFILES", "TINY_GPT2", "ClassificationMetrics", "RunConfig", "adapter_size",
    "assert_same_logits", "changed_parameters", "check_model", "check_output_dir", "check_space",
    "classifier_arguments", "classify_texts", "compare", "compute_metrics", "count_classes",
    "describe_environment", "encode_texts", "estimate_adapter", "estimate_checkpoint", "evaluation_arguments",
    "explain_out_of_memory", "fingerprint_parameters", "format_comparison", "guard_training", "head_modules",
    "keep_output_clean", "list_files", "load_base_model", "load_bbc_news", "load_dataset_arguments",
    "majority_class", "make_trainer", "parse_run_config", "plot_before_after", "plot_class_balance",
    "plot_confusions", "plot_token_lengths", "plot_training", "predict", "prepare_splits", "report_per_class",
    "save_run_config", "saved_classifier_arguments", "set_padding", "tokenize_dataset", "tokenize_passages",
    "training_arguments", "turn_off_dropout", "uses_conv1d",
]  # fmt: skip
