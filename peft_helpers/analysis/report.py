"""What one run reached: tables of the untuned and the tuned model side by side, ``results.json`` and figures."""

import json
import platform
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, DatasetDict
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, classification_report, f1_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from transformers import EvalPrediction

from peft_helpers import INSTALL
from peft_helpers.analysis.calibration import AS_IT_IS, Calibration, calibration_errors, rarer_label
from peft_helpers.analysis.plots import plot_before_after, plot_confusions, plot_reliability, plot_training
from peft_helpers.analysis.sharing import adapter_size
from peft_helpers.analysis.significance import accuracy_interval, check_same_examples, compare_paired, f1_interval
from peft_helpers.columns import join_texts
from peft_helpers.distributed import process_state
from peft_helpers.interruptions import FIGURES, RESULTS_FILE
from peft_helpers.metrics import METRIC_NAMES, compute_metrics, predicted_labels
from peft_helpers.pipeline import RunResult

RARER_NAMES = {"rarer_f1": "F1 (rarer label)", "roc_auc": "ROC AUC", "rarer_ap": "average precision (rarer label)"}


def majority_class(dataset: DatasetDict) -> EvalPrediction:
    """Return the output, on the test examples, of always predicting the most frequent training label."""
    known = dataset["train"] if isinstance(dataset["train"], Dataset) else dataset["validation"]  # or a stream
    references, labels = np.asarray(dataset["test"]["label"][:]), dataset["test"].features["label"].num_classes
    most_frequent = np.bincount(known["label"][:]).argmax()
    return EvalPrediction(predictions=np.eye(labels)[[most_frequent] * len(references)], label_ids=references)


def score(output: EvalPrediction) -> dict[str, float | list[float]]:
    """Return `compute_metrics` of ``output``, and the 95 % intervals of accuracy and macro F1 as [low, high].

    Of two labels that both occur, also F1, ROC AUC and average precision with `rarer_label` as the positive one.
    """
    labels, references = predicted_labels(output), output.label_ids
    scores = compute_metrics(output)
    scores["accuracy_interval"] = list(accuracy_interval(labels, references))
    scores["f1_interval"] = list(f1_interval(labels, references))
    if output.predictions.shape[1] == 2 == len(np.unique(references)):
        rarer, margins = rarer_label(references), np.diff(output.predictions)[:, 0]
        ranked = references == rarer, margins if rarer else -margins
        of_rarer = f1_score(ranked[0], labels == rarer), roc_auc_score(*ranked), average_precision_score(*ranked)
        scores |= dict(zip(RARER_NAMES, map(float, of_rarer), strict=True))
    return scores


def compare(untuned: EvalPrediction, tuned: EvalPrediction) -> dict[str, dict]:
    """Return `score` of two outputs of `predict` on the same examples, and their ``difference``: `compare_paired`."""
    check_same_examples(untuned.label_ids, tuned.label_ids)
    before, after = score(untuned), score(tuned)
    difference = {metric: after[metric] - before[metric] for metric in METRIC_NAMES | RARER_NAMES if metric in after}
    difference |= compare_paired(predicted_labels(untuned), predicted_labels(tuned), tuned.label_ids)
    return {"untuned": before, "tuned": after, "difference": difference}


def format_comparison(
    untuned: EvalPrediction, tuned: EvalPrediction, trainable_parameters: int, megabytes: float
) -> pd.DataFrame:
    """Return `compare` as a table of text, with 95 % intervals in brackets, and the costs of the tuned model."""
    compared = compare(untuned, tuned)
    signs = {"untuned": "", "tuned": "", "difference": "+"}
    table = pd.DataFrame({name: _format_scores(compared[name], sign) for name, sign in signs.items()})
    table.loc["trainable parameters"] = ["0", f"{trainable_parameters:,}", f"+{trainable_parameters:,}"]
    table.loc["adapter, MB"] = ["0", f"{megabytes:.2f}", f"+{megabytes:.2f}"]
    table.loc["McNemar's exact test"] = ["", "", format_p_value(compared["difference"]["mcnemar_p_value"])]
    return table


def _format_scores(scores: dict, sign: str = "") -> dict[str, str]:
    titles = {name: title for name, title in (METRIC_NAMES | RARER_NAMES).items() if name in scores}
    return {title: format_score(scores[name], scores.get(f"{name}_interval"), sign) for name, title in titles.items()}


def format_score(value: float, interval: list[float] | None = None, sign: str = "") -> str:
    """Return a number as text with its interval in brackets; ``sign="+"`` also writes the sign of positive ones."""
    bounds = f" [{interval[0]:{sign}z.3f}, {interval[1]:{sign}z.3f}]" if interval else ""
    return f"{value:{sign}z.3f}{bounds}"


def format_p_value(p: float) -> str:
    """Return a p-value as text; one below 0.001 is not written as 0."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def report_per_class(output: EvalPrediction, label_names: list[str]) -> pd.DataFrame:
    """Return precision, recall, F1 and number of examples (``support``) of each label that occurs, and the averages."""
    labels = np.unique(output.label_ids)
    names = [label_names[label] for label in labels]
    report = classification_report(
        output.label_ids, predicted_labels(output), labels=labels, target_names=names, output_dict=True, zero_division=0
    )
    return pd.DataFrame({name: row for name, row in report.items() if isinstance(row, dict)}).T.astype({"support": int})


def compare_per_class(untuned: EvalPrediction, tuned: EvalPrediction, label_names: list[str]) -> pd.DataFrame:
    """Return `report_per_class` of both models, side by side."""
    reports = [report_per_class(output, label_names) for output in (untuned, tuned)]
    return pd.concat(reports, axis=1, keys=["untuned", "tuned"])


def most_confident_errors(
    output: EvalPrediction, test: Dataset, label_names: list[str], calibration: Calibration = AS_IT_IS, top: int = 5
) -> pd.DataFrame:
    """Return the wrong answers of ``output`` on ``test``, the most confident first; see also `check_same_examples`."""
    answers = calibration.decide(output.predictions).argmax(axis=-1)
    table = _show_examples(answers, output.label_ids, test, label_names).rename_axis("test example")
    probabilities = softmax(output.predictions / calibration.temperature, axis=-1)
    table["probability"] = probabilities[np.arange(len(answers)), answers]
    return table[table["true label"] != table["predicted"]].nlargest(top, "probability")


def _show_examples(answers: np.ndarray, labels: np.ndarray, dataset: Dataset, label_names: list[str]) -> pd.DataFrame:
    check_same_examples(labels, dataset["label"][:])
    names = np.array(label_names)
    texts = [text if len(text) <= 300 else text[:300] + "…" for text in join_texts(dataset[:])]
    return pd.DataFrame({"text": texts, "true label": names[labels], "predicted": names[answers]})


def suspicious_labels(
    dataset: Dataset, label_names: list[str], output: EvalPrediction | None = None, top: int = 20
) -> pd.DataFrame:
    """Return the examples whose label is the least probable, and whether cleanlab takes it for wrong (``flagged``).

    That is by confident learning (Northcutt et al. 2021, arXiv 1911.00068), from a model that has not been trained on
    the labels, since it would repeat wrong ones: ``output`` of `predict` on test examples. For training examples leave
    it out; then five models of TF-IDF and logistic regression each judge a fifth. A missing cleanlab is an ImportError.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise ImportError(f"Suspicious labels need cleanlab, not installed; install it with {INSTALL}.") from error
    output = output or _cross_validate(dataset)
    labels, probabilities = output.label_ids, softmax(output.predictions, axis=-1)
    table = _show_examples(predicted_labels(output), labels, dataset, label_names)
    table = table.rename(columns={"true label": "label"})
    table["P(label)"] = probabilities[np.arange(len(labels)), labels]
    table["flagged"] = find_label_issues(labels, probabilities, n_jobs=1)
    return table.nsmallest(top, "P(label)")


def _cross_validate(dataset: Dataset) -> EvalPrediction:
    labels, folds = np.array(dataset["label"][:]), StratifiedKFold(5, shuffle=True, random_state=0)
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    found = cross_val_predict(model, join_texts(dataset[:]), labels, method="predict_proba", cv=folds)
    logits = np.full((len(labels), labels.max() + 1), -np.inf)  # of labels that do not occur
    logits[:, np.unique(labels)] = np.log(found + 1e-9)
    return EvalPrediction(logits, labels)


def describe_evaluation(output: EvalPrediction) -> str:
    """Return a line for each metric of one model, with 95 % intervals."""
    return f"{len(output.label_ids):,} examples\n{pd.Series(_format_scores(score(output))).to_string()}"


def describe_environment() -> pd.Series:
    """Return the versions that the results depend on, and the device."""
    packages = ("torch", "transformers", "peft", "datasets", "evaluate", "accelerate", "scikit-learn", "bitsandbytes")
    device = process_state().device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    rows = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):
            rows[package] = version(package)
    return pd.Series(rows | {"device": f"{device.type} ({name})"}, name="version")


def save_results(result: RunResult, majority: EvalPrediction) -> None:
    """Write ``results.json`` and the figures into the adapter's folder; ``majority`` is that of `majority_class`."""
    folder = Path(result.args.training.output_dir)
    calibration = Calibration.load(folder)
    tuned = calibration.apply(result.tuned)
    summary = {
        "metrics": compare(result.untuned, tuned),
        "calibration": asdict(calibration) | calibration_errors(result.tuned, calibration.temperature),
        "majority_class_accuracy": compute_metrics(majority)["accuracy"],
        "test_examples": len(result.tuned.label_ids),
        "label_names": result.label_names,
        "trainable_parameters": result.trainable_parameters,
        "parameters": result.parameters,
        "adapter_megabytes": adapter_size(folder),
        "config": result.args.describe(),
        "environment": describe_environment().to_dict(),
        "seconds": result.seconds,
    }
    (folder / RESULTS_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    before_after, training, confusions, reliability = (folder / name for name in FIGURES)
    plot_before_after(result.untuned, tuned, majority).savefig(before_after, dpi=150)
    plot_training(result.log_history).savefig(training, dpi=150)
    plot_confusions(result.untuned, tuned, result.label_names).savefig(confusions, dpi=150)
    plot_reliability(result.tuned, calibration.temperature).savefig(reliability, dpi=150)


def describe_run(result: RunResult) -> str:
    """Return the table before and after, where everything is, and what can be done next."""
    folder = result.args.training.output_dir
    share, calibration = result.trainable_parameters / result.parameters, Calibration.load(folder)
    errors = calibration_errors(result.tuned, calibration.temperature)
    tuned = calibration.apply(result.tuned)
    table = format_comparison(result.untuned, tuned, result.trainable_parameters, adapter_size(folder))
    return (
        f"\n{len(result.tuned.label_ids):,} test examples; {share:.2%} of the parameters trained; "
        f"{sum(result.seconds.values()):.0f} seconds\n{table.to_string()}\n\n"
        f"Expected calibration error: {errors['before']:.3f}, with the temperature fitted on validation "
        f"{errors['after']:.3f}; by chance alone, {errors['by_chance']:.3f}.\n"
        f"The adapter, {RESULTS_FILE} and the figures are in {folder}. What next:\n"
        f'  python -m peft_helpers predict {folder} "a text" "another text"\n'
        f"  python -m peft_helpers evaluate {folder} other_examples.csv"
    )
