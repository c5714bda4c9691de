"""What a run of the command line leaves and shows: results.json and figures beside the adapter, and a table."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from transformers import EvalPrediction

from peft_helpers.adapters import FIGURES, RESULTS_FILE, adapter_size
from peft_helpers.analysis.plots import plot_before_after, plot_confusions, plot_methods, plot_training
from peft_helpers.analysis.report import (
    METRIC_NAMES,
    format_comparison,
    format_interval,
    predicted_labels,
)
from peft_helpers.analysis.significance import accuracy_interval, compare_paired, f1_interval
from peft_helpers.comparison.baselines import CLASSICAL, MAJORITY
from peft_helpers.comparison.tables import describe_methods, format_methods, summarize_methods
from peft_helpers.metrics import compute_metrics
from peft_helpers.app.notebook import describe_environment
from peft_helpers.pipeline import RunResult


def score(output: EvalPrediction) -> dict[str, float | list[float]]:
    """Return `compute_metrics` of ``output``, and the 95 % intervals of accuracy and macro F1 as [low, high]."""
    labels = predicted_labels(output)
    return compute_metrics(output) | {
        "accuracy_interval": list(accuracy_interval(labels, output.label_ids)),
        "f1_interval": list(f1_interval(labels, output.label_ids)),
    }


def summarize_run(result: RunResult) -> dict:
    """Return what stands in ``results.json``: metrics with intervals, costs, configuration, versions and seconds.

    The difference is paired, both models on the same test rows, with McNemar's exact test; see `compare_paired`.
    """
    paired = compare_paired(*map(predicted_labels, (result.untuned, result.tuned)), result.tuned.label_ids)
    return {
        "metrics": {"untuned": score(result.untuned), "tuned": score(result.tuned)},
        "difference": {
            name: {"value": paired[key], "interval": [paired[f"{key}, low"], paired[f"{key}, high"]]}
            for name, key in (("accuracy", "accuracy"), ("f1", "F1 (macro)"))
        },
        "mcnemar_p_value": paired["p"],
        "majority_class_accuracy": compute_metrics(result.majority)["accuracy"],
        "test_rows": len(result.tuned.label_ids),
        "label_names": result.label_names,
        "trainable_parameters": result.trainable_parameters,
        "parameters": result.parameters,
        "adapter_megabytes": adapter_size(result.args.training.output_dir),
        "config": asdict(result.config),
        "environment": describe_environment().to_dict(),
        "seconds": result.seconds,
    }


def save_results(result: RunResult) -> None:
    """Write ``results.json`` and the figures into the adapter's folder, ``output_dir``."""
    folder = Path(result.args.training.output_dir)
    (folder / RESULTS_FILE).write_text(json.dumps(summarize_run(result), indent=2) + "\n", encoding="utf-8")
    figures = (
        plot_before_after(result.untuned, result.tuned, result.majority),
        plot_training(result.log_history),
        plot_confusions(result.untuned, result.tuned, result.label_names),
    )
    for name, figure in zip(FIGURES, figures, strict=True):
        _save_figure(figure, folder / name)


def _save_figure(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)


def describe_run(result: RunResult) -> str:
    """Return the table before and after, where everything lies, and what can be done next."""
    folder = result.args.training.output_dir
    share = result.trainable_parameters / result.parameters
    table = format_comparison(result.untuned, result.tuned, result.trainable_parameters, adapter_size(folder))
    return (
        f"\n{len(result.tuned.label_ids):,} test rows; {share:.2%} of the parameters trained; "
        f"{sum(result.seconds.values()):.0f} seconds\n{table.to_string()}\n\n"
        f"The adapter, {RESULTS_FILE} and the figures are in {folder}. What next:\n"
        f'  python -m peft_helpers predict {folder} "a text" "another text"\n'
        f"  python -m peft_helpers evaluate {folder} other_rows.csv"
    )


def describe_evaluation(output: EvalPrediction) -> str:
    """Return a line for each metric of one model, with 95 % intervals."""
    scores = score(output)
    rows = [f"{len(output.label_ids):,} rows"]
    for metric, name in METRIC_NAMES.items():
        interval = scores.get(f"{metric}_interval")
        rows.append(f"{name:<18} {scores[metric]:.3f}{format_interval(*interval) if interval else ''}")
    return "\n".join(rows)


def save_methods(results: list[dict], references: np.ndarray, folder: str | Path) -> None:
    """Write the table of `summarize_methods` as ``methods.csv`` and the figure as ``methods.png`` into ``folder``.

    Without a method that has a result, there is no figure.
    """
    summary = summarize_methods(results, references)
    summary.to_csv(Path(folder, "methods.csv"), index_label="method")
    if set(summary.index) - {MAJORITY, CLASSICAL}:
        _save_figure(plot_methods(summary, len(references)), Path(folder, "methods.png"))


def describe_compared_methods(results: list[dict], references: np.ndarray, folder: str | Path) -> str:
    """Return the table of methods, what it says, which ones failed, and where everything lies."""
    with pd.option_context("display.width", None):
        table = format_methods(summarize_methods(results, references)).to_string()
    lines = [f"\n{len(references):,} test rows", table, describe_methods(results, references), *_failures(results)]
    return "\n".join([*lines, f"The table and the figure are in {folder}: methods.csv, methods.png."])


def _failures(results: list[dict]) -> Iterable[str]:
    return (f"{row['method']}, seed {row['seed']}, failed: {row['error']}" for row in results if row["error"])
