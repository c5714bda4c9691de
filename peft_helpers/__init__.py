"""Helpers of ``LightweightFineTuning.ipynb``: one module a topic, every public name importable from here."""

from peft_helpers.adapter_checks import check_adapter
from peft_helpers.adapters import (
    adapter_size,
    check_output_dir,
    list_files,
    replace_folder,
    save_run_config,
    sort_target_modules,
)
from peft_helpers.bbc_news import load_bbc_news
from peft_helpers.checks import assert_same_logits, changed_parameters, fingerprint_parameters
from peft_helpers.comparison import compare, compare_per_class, format_comparison, majority_class
from peft_helpers.config import BBC_NEWS, PROFILES, TINY_GPT2, RunConfig, parse_run_config
from peft_helpers.data import count_classes, load_dataset_arguments, prepare_splits
from peft_helpers.documents import load_documents, tokenize_blocks
from peft_helpers.experiments import plan_comparison, run_method, run_methods
from peft_helpers.generation import encode_prompts, generate_texts
from peft_helpers.language_modelling import (
    compare_perplexity,
    first_words,
    inject_lora,
    language_model_arguments,
    load_language_model,
    load_saved_language_model,
    make_blocks,
    make_language_model_trainer,
    plan_language_modelling,
    run_language_model,
    save_language_model,
)
from peft_helpers.memory import PeakMemory
from peft_helpers.method_table import compare_methods_to, describe_methods, format_methods, summarize_methods
from peft_helpers.methods import METHODS, REFUSED, adapt_model, find_method
from peft_helpers.metrics import ClassificationMetrics, compute_metrics, report_per_class
from peft_helpers.mistakes import most_confident_errors
from peft_helpers.model_card import save_language_model_card, save_model_card
from peft_helpers.models import (
    check_model,
    classifier_arguments,
    compute_dtype,
    head_modules,
    load_base_model,
    quantization_arguments,
    quantization_config,
    saved_classifier_arguments,
    turn_off_dropout,
    uses_conv1d,
)
from peft_helpers.notebook import describe_environment, keep_output_clean
from peft_helpers.perplexity import assert_same_perplexity, compute_perplexity, evaluate_perplexity, token_losses
from peft_helpers.plots import (
    plot_before_after,
    plot_class_balance,
    plot_confusions,
    plot_methods,
    plot_perplexity,
    plot_token_lengths,
    plot_training,
)
from peft_helpers.prediction import classify_texts, predict
from peft_helpers.quantization import compare_sizes, quantization_problem
from peft_helpers.reference_points import CLASSICAL, MAJORITY, run_reference_points
from peft_helpers.resources import check_space, estimate_adapter, estimate_checkpoint, explain_out_of_memory
from peft_helpers.significance import accuracy_interval, compare_paired, f1_interval, mcnemar_p_value
from peft_helpers.submission import check_submission, package_submission
from peft_helpers.tokenization import encode_texts, set_padding, tokenize_dataset, tokenize_passages
from peft_helpers.training import evaluation_arguments, guard_training, make_trainer, training_arguments

__all__ = [
    "BBC_NEWS", "CLASSICAL", "MAJORITY", "METHODS", "PROFILES", "REFUSED", "TINY_GPT2", "ClassificationMetrics",
    "PeakMemory", "RunConfig", "accuracy_interval", "adapt_model", "adapter_size", "assert_same_logits",
    "assert_same_perplexity", "changed_parameters", "check_adapter", "check_model", "check_output_dir", "check_space",
    "check_submission", "classifier_arguments", "classify_texts", "compare", "compare_methods_to", "compare_paired",
    "compare_per_class", "compare_perplexity", "compare_sizes", "compute_dtype", "compute_metrics",
    "compute_perplexity", "count_classes", "describe_environment", "describe_methods", "encode_prompts",
    "encode_texts", "estimate_adapter", "estimate_checkpoint", "evaluate_perplexity", "evaluation_arguments",
    "explain_out_of_memory", "f1_interval", "find_method", "fingerprint_parameters", "first_words",
    "format_comparison", "format_methods", "generate_texts", "guard_training", "head_modules", "inject_lora",
    "keep_output_clean", "language_model_arguments", "list_files", "load_base_model", "load_bbc_news",
    "load_dataset_arguments", "load_documents", "load_language_model", "load_saved_language_model", "majority_class",
    "make_blocks", "make_language_model_trainer", "make_trainer", "mcnemar_p_value", "most_confident_errors",
    "package_submission", "parse_run_config", "plan_comparison", "plan_language_modelling", "plot_before_after",
    "plot_class_balance", "plot_confusions", "plot_methods", "plot_perplexity", "plot_token_lengths", "plot_training",
    "predict", "prepare_splits", "quantization_arguments", "quantization_config", "quantization_problem",
    "replace_folder", "report_per_class", "run_language_model", "run_method", "run_methods", "run_reference_points",
    "save_language_model", "save_language_model_card", "save_model_card", "save_run_config",
    "saved_classifier_arguments", "set_padding", "sort_target_modules", "summarize_methods", "token_losses",
    "tokenize_blocks", "tokenize_dataset", "tokenize_passages", "training_arguments", "turn_off_dropout",
    "uses_conv1d",
]  # fmt: skip
