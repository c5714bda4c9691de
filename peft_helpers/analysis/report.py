"""What one run reached: tables of the untuned and the tuned model side by side, ``results.json`` and figures."""

import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from sklearn.dummy import DummyClassifier
from transformers import EvalPrediction

from peft_helpers.adapters import FIGURES, RESULTS_FILE, adapter_size
from peft_helpers.analysis.plots import plot_before_after, plot_confusions, plot_training, save_figure
from peft_helpers.analysis.significance import accuracy_interval, check_same_examples, compare_paired, f1_interval
from peft_helpers.distributed import best_device
from peft_helpers.metrics import METRIC_NAMES, compute_metrics, predicted_labels, report_per_class

if TYPE_CHECKING:  # `pipeline` may import this module
    from peft_helpers.pipeline import RunResult


def majority_class(dataset: DatasetDict) -> EvalPrediction:
    """Return the output, on the test examples, of always predicting the most frequent training label.

    Where train is streamed, it is the most frequent label of the validation examples.
    """
    known = dataset["train"] if isinstance(dataset["train"], Dataset) else dataset["validation"]
    references = np.asarray(dataset["test"]["label"][:])
    classifier = DummyClassifier(strategy="most_frequent").fit(np.zeros(known.num_rows), known["label"][:])
    predicted = classifier.predict(np.zeros(len(references)))
    one_hot = np.eye(dataset["test"].features["label"].num_classes)[predicted]
    return EvalPrediction(predictions=one_hot, label_ids=references)


def score(output: EvalPrediction) -> dict[str, float | list[float]]:
    """Return `compute_metrics` of ``output``, and the 95 % intervals of accuracy and macro F1 as [low, high]."""
    labels = predicted_labels(output)
    return compute_metrics(output) | {
        "accuracy_interval": list(accuracy_interval(labels, output.label_ids)),
        "f1_interval": list(f1_interval(labels, output.label_ids)),
    }


def compare(untuned: EvalPrediction, tuned: EvalPrediction) -> dict[str, dict]:
    """Return `score` of two outputs of `predict`, and their ``difference``: paired, with McNemar's p-value.

    Raises:
        ValueError: the outputs are not of the same examples in the same order.
    """
    check_same_examples(untuned.label_ids, tuned.label_ids)
    paired = compare_paired(predicted_labels(untuned), predicted_labels(tuned), tuned.label_ids)
    before, after = score(untuned), score(tuned)
    difference = {metric: after[metric] - before[metric] for metric in METRIC_NAMES}
    for metric in ("accuracy", "f1"):
        difference[f"{metric}_interval"] = [paired[f"{METRIC_NAMES[metric]}, {bound}"] for bound in ("low", "high")]
    return {"untuned": before, "tuned": after, "difference": difference | {"mcnemar_p_value": paired["p"]}}


def format_comparison(
    untuned: EvalPrediction, tuned: EvalPrediction, trainable_parameters: int, megabytes: float
) -> pd.DataFrame:
    """Return `compare` as a table of text, with 95 % intervals in brackets, and what the tuned model costs.

    The costs are trainable parameters and MB (10^6 bytes) of adapter. The last row is the p-value of McNemar's test.
    """
    compared = compare(untuned, tuned)
    table = pd.DataFrame({"untuned": _format_scores(compared["untuned"]), "tuned": _format_scores(compared["tuned"]),
                          "difference": _format_scores(compared["difference"], sign="+")})  # fmt: skip
    table.loc["trainable parameters"] = ["0", f"{trainable_parameters:,}", f"+{trainable_parameters:,}"]
    table.loc["adapter, MB"] = ["0", f"{megabytes:.2f}", f"+{megabytes:.2f}"]
    table.loc["McNemar's exact test"] = ["", "", format_p_value(compared["difference"]["mcnemar_p_value"])]
    return table


def _format_scores(scores: dict, sign: str = "") -> dict[str, str]:
    text = {name: f"{scores[metric]:{sign}z.3f}" for metric, name in METRIC_NAMES.items()}
    for metric in ("accuracy", "f1"):
        text[METRIC_NAMES[metric]] += format_interval(*scores[f"{metric}_interval"], sign)
    return text


def format_interval(low: float, high: float, sign: str = "") -> str:
    """Return an interval as text that follows its number; ``sign="+"`` writes the sign of positive bounds too."""
    return f" [{low:{sign}z.3f}, {high:{sign}z.3f}]"


def format_p_value(p: float) -> str:
    """Return a p-value as text; one below 0.001 is not written as 0."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def compare_per_class(untuned: EvalPrediction, tuned: EvalPrediction, label_names: list[str]) -> pd.DataFrame:
    """Return `report_per_class` of both models, side by side."""
    reports = {"untuned": report_per_class(untuned, label_names), "tuned": report_per_class(tuned, label_names)}
    return pd.concat(reports, axis=1)


def describe_evaluation(output: EvalPrediction) -> str:
    """Return a line for each metric of one model, with 95 % intervals."""
    lines = [f"{name:<18} {text}" for name, text in _format_scores(score(output)).items()]
    return "\n".join([f"{len(output.label_ids):,} examples", *lines])


def describe_environment() -> pd.Series:
    """Return the versions that the results depend on, and the device."""
    packages = ("torch", "transformers", "peft", "datasets", "evaluate", "accelerate", "scikit-learn", "bitsandbytes")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    rows = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):
            rows[package] = version(package)
    return pd.Series(rows | {"device": f"{best_device()} ({name})"}, name="version")


def summarize_run(result: "RunResult", majority: EvalPrediction) -> dict:
    """Return what `save_results` writes to ``results.json``: `compare`, costs, options, versions and seconds."""
    return {
        "metrics": compare(result.untuned, result.tuned),
        "majority_class_accuracy": compute_metrics(majority)["accuracy"],
        "test_examples": len(result.tuned.label_ids),
        "label_names": result.label_names,
        "trainable_parameters": result.trainable_parameters,
        "parameters": result.parameters,
        "adapter_megabytes": adapter_size(result.args.training.output_dir),
        "config": result.args.describe(),
        "environment": describe_environment().to_dict(),
        "seconds": result.seconds,
    }


def save_results(result: "RunResult", majority: EvalPrediction) -> None:
    """Write ``results.json`` and the figures into the adapter's folder, ``output_dir``.

    ``majority`` is the output of `majority_class` on the test examples.
    """
    folder = Path(result.args.training.output_dir)
    summary = json.dumps(summarize_run(result, majority), indent=2)
    (folder / RESULTS_FILE).write_text(summary + "\n", encoding="utf-8")
    figures = (
        plot_before_after(result.untuned, result.tuned, majority),
        plot_training(result.log_history),
        plot_confusions(result.untuned, result.tuned, result.label_names),
    )
    for name, figure in zip(FIGURES, figures, strict=True):
        save_figure(figure, folder / name)


def describe_run(result: "RunResult") -> str:
    """Return the table before and after, where everything is, and what can be done next."""
    folder = result.args.training.output_dir
    share = result.trainable_parameters / result.parameters
    table = format_comparison(result.untuned, result.tuned, result.trainable_parameters, adapter_size(folder))
    return (
        f"\n{len(result.tuned.label_ids):,} test examples; {share:.2%} of the parameters trained; "
        f"{sum(result.seconds.values()):.0f} seconds\n{table.to_string()}\n\n"
        f"The adapter, {RESULTS_FILE} and the figures are in {folder}. What next:\n"
        f'  python -m peft_helpers predict {folder} "a text" "another text"\n'
        f"  python -m peft_helpers evaluate {folder} other_examples.csv"
    )
