"""Helpers of ``LightweightFineTuning.ipynb``: the core, flat and in its order, and folders for everything else.

A module is imported when one of the names below is first used.
"""

import ast
import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapters import check_output_dir, describe_adapter
    from .analysis.calibration import Calibration, calibrate, classify_texts
    from .analysis.linear_probe import fit_head
    from .analysis.plots import (
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
    from .analysis.report import (
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
    from .analysis.sharing import check_adapter, create_repository, save_model_card, upload_adapter
    from .app.export import export_adapter
    from .app.notebook import check_requirements, keep_output_clean
    from .app.profiles import check_run, parse_arguments
    from .app.web_page import open_page
    from .arguments import BBC_NEWS, Arguments
    from .comparison.learning_curve import describe_lead, measure_learning_curve, summarize_learning_curve
    from .comparison.runner import compare_methods, plan_comparison
    from .comparison.search import check_search, search_hyperparameters, tabulate_trials
    from .comparison.tables import compare_methods_to, format_methods, summarize_methods
    from .data import prepare_splits
    from .distributed import quantization_problem
    from .interruptions import guard_training, replace_folder
    from .language_modeling.task import generate_examples, plan_language_modeling
    from .metrics import assert_same_predictions, changed_parameters, compute_metrics, fingerprint_parameters
    from .modeling import check_model, lora_arguments, model_arguments, prepare_model
    from .pipeline import load_adapter, load_recipe, reload_arguments, run
    from .sources.bbc_news import load_bbc_news
    from .sources.files import dataset_arguments, load_documents, load_labelled_examples, load_splits, load_texts
    from .submission.checklist import check_submission, package_submission
    from .tokenization import tokenize_dataset, tokenize_splits
    from .training import CLASSIFICATION, make_arguments, make_trainer, predict

# On some CPUs bitsandbytes tells of an optional kernel when it is first imported, which peft does: nothing is amiss.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# What an error says where an optional package is missing.
INSTALL = f"`python -m pip install -r {Path(__file__).with_name('optional_requirements.txt')}`"
_MODULES = {
    alias.name: f".{node.module}"
    for node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    if isinstance(node, ast.ImportFrom) and node.level
    for alias in node.names
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
