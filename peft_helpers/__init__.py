"""Helpers of ``LightweightFineTuning.ipynb``: one module a topic, every public name importable from here.

A module is imported when one of its names is first used: the command line answers at once where no library is needed.
"""

import logging
from importlib import import_module

# On some CPUs bitsandbytes tells of an optional kernel when it is first imported, which peft does: nothing is amiss.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_NAMES = {
    "adapter_checks": "check_adapter",
    "adapters": "adapter_size check_output_dir list_files replace_folder save_run_config sort_target_modules",
    "sources.bbc_news": "load_bbc_news",
    "checks": "assert_same_logits changed_parameters fingerprint_parameters",
    "analysis.report": "compare compare_per_class format_comparison majority_class",
    "arguments": "BBC_NEWS PROFILES Arguments TINY_GPT2 parse_arguments",
    "data": "count_classes load_dataset_arguments prepare_splits",
    "sources.documents": "load_documents tokenize_blocks",
    "comparison.runner": "plan_comparison run_method run_methods",
    "language_modeling.generation": "encode_prompts generate_texts",
    "language_modeling.task": (
        "compare_perplexity first_words inject_lora language_model_arguments load_language_model "
        "load_saved_language_model make_blocks make_language_model_trainer plan_language_modelling "
        "run_language_model save_language_model"
    ),
    "comparison.memory": "PeakMemory",
    "comparison.tables": "compare_methods_to describe_methods format_methods summarize_methods",
    "comparison.methods": "METHODS REFUSED adapt_model find_method",
    "metrics": "ClassificationMetrics compute_metrics report_per_class",
    "analysis.errors": "most_confident_errors",
    "model_card": "save_language_model_card save_model_card",
    "modeling": (
        "check_model classifier_arguments compute_dtype head_modules keep_4bit_weights_unpacked load_base_model "
        "quantization_arguments quantization_config quantization_problem saved_classifier_arguments turn_off_dropout "
        "uses_conv1d"
    ),
    "notebook": "describe_environment keep_output_clean",
    "language_modeling.perplexity": "assert_same_perplexity compute_perplexity evaluate_perplexity token_losses",
    "analysis.plots": (
        "plot_before_after plot_class_balance plot_confusions plot_methods plot_perplexity plot_token_lengths "
        "plot_training"
    ),
    "prediction": "classify_texts predict",
    "comparison.quantization": "compare_sizes",
    "pipeline": "run",
    "comparison.baselines": "CLASSICAL MAJORITY run_reference_points",
    "requirements": "check_requirements",
    "resources": "check_space estimate_adapter estimate_checkpoint explain_out_of_memory",
    "analysis.significance": "accuracy_interval compare_paired f1_interval mcnemar_p_value",
    "speed": "speed_up",
    "submission.checklist": "check_submission",
    "submission.package": "package_submission",
    "tokenization": "encode_texts set_padding tokenize_dataset tokenize_passages",
    "training": "evaluation_arguments guard_training make_trainer training_arguments",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
