"""Helpers of ``LightweightFineTuning.ipynb``: the core, flat and in its order, and folders for everything else.

A module is imported when one of the names below is first used.
"""

import ast
import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft_helpers.adapters import check_output_dir, describe_adapter
    from peft_helpers.analysis.adapter_checks import check_adapter
    from peft_helpers.analysis.calibration import Calibration, calibrate, expected_calibration_error
    from peft_helpers.analysis.linear_probe import fit_head
    from peft_helpers.analysis.model_card import save_model_card
    from peft_helpers.analysis.plots import (
        plot_before_after,
        plot_class_balance,
        plot_confusions,
        plot_learning_curve,
        plot_methods,
        plot_reliability,
        plot_search,
        plot_token_lengths,
        plot_training,
    )
    from peft_helpers.analysis.report import (
        compare_per_class,
        describe_environment,
        describe_evaluation,
        describe_run,
        format_comparison,
        majority_class,
        most_confident_errors,
        report_per_class,
        save_results,
        suspicious_labels,
    )
    from peft_helpers.analysis.texts import classify_texts
    from peft_helpers.analysis.upload import create_repository, upload_adapter
    from peft_helpers.app.export import export_adapter
    from peft_helpers.app.notebook import check_requirements, keep_output_clean
    from peft_helpers.app.profiles import check_run, parse_arguments
    from peft_helpers.arguments import BBC_NEWS, Arguments
    from peft_helpers.comparison.learning_curve import describe_lead, measure_learning_curve, summarize_learning_curve
    from peft_helpers.comparison.runner import compare_methods, plan_comparison
    from peft_helpers.comparison.search import check_search, search_hyperparameters, tabulate_trials
    from peft_helpers.comparison.tables import compare_methods_to, format_methods, summarize_methods
    from peft_helpers.data import prepare_splits
    from peft_helpers.distributed import quantization_problem
    from peft_helpers.interruptions import guard_training, replace_folder
    from peft_helpers.language_modeling.task import generate_examples, plan_language_modeling
    from peft_helpers.metrics import (
        assert_same_predictions,
        changed_parameters,
        compute_metrics,
        fingerprint_parameters,
    )
    from peft_helpers.modeling import check_model, lora_arguments, model_arguments, prepare_model
    from peft_helpers.pipeline import load_adapter, load_recipe, reload_arguments, run
    from peft_helpers.sources.bbc_news import load_bbc_news
    from peft_helpers.sources.files import (
        dataset_arguments,
        load_documents,
        load_labelled_examples,
        load_splits,
        load_texts,
    )
    from peft_helpers.submission.checklist import check_submission, package_submission
    from peft_helpers.tokenization import tokenize_dataset, tokenize_splits
    from peft_helpers.training import CLASSIFICATION, make_arguments, make_trainer, predict

# On some CPUs bitsandbytes tells of an optional kernel when it is first imported, which peft does: nothing is amiss.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# What an error says where an optional package is missing.
INSTALL = f"`python -m pip install -r {Path(__file__).with_name('optional_requirements.txt')}`"
_MODULES = {
    alias.name: node.module
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and node.module.startswith("peft_helpers.")
    for alias in node.names
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
