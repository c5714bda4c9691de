"""Figures that stay readable in greyscale; each function returns the figure that it drew."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from datasets import DatasetDict
from matplotlib.figure import Figure
from scipy.special import softmax
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay
from transformers import EvalPrediction, PreTrainedTokenizerBase

from peft_helpers.analysis.calibration import BINS, calibration_errors
from peft_helpers.metrics import METRIC_NAMES, compute_metrics, predicted_labels

# The baselines; the last two are the same model without training.
MAJORITY, CLASSICAL = "majority class", "TF-IDF + logistic regression"
FROZEN, PROMPTED = "frozen features + logistic regression", "zero-shot prompt, calibrated"
LINES = {CLASSICAL: "--", MAJORITY: ":", "full": "-.", FROZEN: (0, (8, 3)), PROMPTED: (0, (1, 4))}
MARKERS = "os^vD<p>PX*hd"
DARK, MEDIUM, LIGHT, LINE = "#1f4e79", "#6f9fc8", "#a8c6e0", "#b03a2e"
EDGE = {"edgecolor": "black", "linewidth": 0.5}
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1), "ncols": 3, "fontsize": "small"}


def plot_class_balance(dataset: DatasetDict) -> Figure:
    """Draw the share of each label in each split."""
    names = dataset["train"].features["label"].names
    shares = pd.DataFrame({
        f"{name} ({split.num_rows:,} examples)": np.bincount(split["label"][:], minlength=len(names)) / split.num_rows
        for name, split in dataset.items()
    }, index=names)  # fmt: skip
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    (100 * shares).plot.bar(ax=axes, color=[DARK, MEDIUM, LIGHT], width=0.8, rot=0 if len(names) <= 8 else 60, **EDGE)
    axes.set(ylabel="share of the split, %", title="Class balance")
    axes.legend(**BELOW)
    return figure


def plot_token_lengths(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Figure:
    """Draw how long the texts are, and how much lies beyond the ``model_max_length`` tokens of the tokenizer."""
    lengths = np.array(tokenizer(list(texts), truncation=False, return_length=True, verbose=False)["length"])
    max_length = tokenizer.model_max_length
    longer, beyond = np.mean(lengths > max_length), np.maximum(lengths - max_length, 0).sum() / max(lengths.sum(), 1)
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.hist(np.minimum(lengths, np.quantile(lengths, 0.99)), bins=50, color=LIGHT, **EDGE)
    axes.axvline(max_length, color=LINE, linestyle="--", label=f"max_length = {max_length}")
    axes.set(xlabel="tokens (the longest 1 % in the last bar)", ylabel=f"texts, of {len(lengths):,}")
    axes.set_title(f"{longer:.0%} of texts are longer than max_length; {beyond:.0%} of tokens lie beyond it")
    axes.legend()
    return figure


def plot_training(log_history: list[dict]) -> Figure:
    """Draw the losses and the validation metrics of ``trainer.state.log_history`` over the epochs."""
    train = pd.DataFrame([entry for entry in log_history if "loss" in entry], columns=["epoch", "loss"])
    evaluated = pd.DataFrame([entry for entry in log_history if "eval_loss" in entry])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot("epoch", "loss", data=train, color=DARK, marker="o", label="training")
    left.plot("epoch", "eval_loss", data=evaluated, color=LINE, marker="s", linestyle="--", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy, nats", title="Loss")
    left.legend()
    right.plot("epoch", "eval_accuracy", data=evaluated, color=LIGHT, marker="o", label="accuracy")
    right.plot("epoch", "eval_f1", data=evaluated, color=DARK, marker="s", label="F1 (macro)")
    right.plot("epoch", "eval_f1", "*", data=evaluated.nlargest(1, "eval_f1"), color=LINE, markersize=16, label="kept")
    right.set(xlabel="epoch", ylabel="score on the validation examples", title="Validation")
    right.legend()
    return figure


def plot_confusions(untuned: EvalPrediction, tuned: EvalPrediction, label_names: list[str]) -> Figure:
    """Draw both confusion matrices, in shares of the true label, on one scale."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    labels = range(len(label_names))
    for axis, output, title in zip(axes, (untuned, tuned), ("Untuned", "Fine-tuned with LoRA"), strict=True):
        display = ConfusionMatrixDisplay.from_predictions(
            output.label_ids, predicted_labels(output), labels=labels, display_labels=label_names, normalize="true",
            ax=axis, cmap="Blues", values_format=".2f", colorbar=False, include_values=len(labels) <= 12,
            im_kw={"vmin": 0, "vmax": 1},
        )  # fmt: skip
        for text in np.ravel(display.text_) if display.text_ is not None else ():
            text.set_color("white" if float(text.get_text()) > 0.6 else "black")  # on the scale that both share
        axis.set(title=title, ylabel="true label" if axis is axes[0] else "", xlabel="predicted label")
        axis.set_xticks(labels, label_names, rotation=30, ha="right", rotation_mode="anchor")
    figure.colorbar(display.im_, ax=axes, label="share of the true label's examples", shrink=0.8)
    figure.suptitle(f"Confusion on {len(tuned.label_ids):,} test examples")
    return figure


def plot_before_after(untuned: EvalPrediction, tuned: EvalPrediction, majority: EvalPrediction) -> Figure:
    """Draw each metric before and after fine-tuning, and as a line that of ``majority``, from `majority_class`."""
    outputs = {"untuned": untuned, "LoRA, reloaded": tuned, MAJORITY: majority}
    scores = pd.DataFrame({name: compute_metrics(output) for name, output in outputs.items()}).rename(METRIC_NAMES)
    levels = scores.pop(MAJORITY)
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    scores.plot.bar(ax=axes, color=[LIGHT, DARK], width=0.8, rot=0, **EDGE)
    places = np.arange(len(levels))
    axes.hlines(levels, places - 0.45, places + 0.45, color=LINE, linestyle="--", label=MAJORITY)
    for bars in axes.containers:
        axes.bar_label(bars, fmt="%.3f", fontsize="small", padding=3, zorder=3,
                       bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})  # fmt: skip
    axes.set(ylim=(0, 1.12), ylabel="score", title=f"Before and after, on {len(tuned.label_ids):,} test examples")
    axes.legend(**BELOW)
    return figure


def plot_reliability(output: EvalPrediction, temperature: float) -> Figure:
    """Draw how often ``output`` of `predict` is right against how sure it is, without and with the temperature."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    right, errors = predicted_labels(output) == output.label_ids, calibration_errors(output, temperature)
    titles = f"Before: error {errors['before']:.3f}", f"With the temperature: error {errors['after']:.3f}"
    for axis, value, title in zip(axes, (1.0, temperature), titles, strict=True):
        confidence = softmax(output.predictions / value, axis=-1).max(axis=-1)
        shares = {"weights": np.full(len(right), 1 / len(right)), "label": "share of the examples"}
        axis.hist(confidence, np.linspace(0, 1, BINS + 1), color=LIGHT, **shares, **EDGE)
        CalibrationDisplay.from_predictions(right, confidence, n_bins=BINS, ax=axis, name="accuracy", color=DARK)
        axis.set(title=title, xlabel="confidence", ylabel="")
        axis.legend()  # where it hides least
    return figure


def plot_methods(summary: pd.DataFrame, examples: int) -> Figure:
    """Draw the quality of each method of `summarize_methods` against its trainable parameters and its training time."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
    methods = summary.drop(index=[MAJORITY, CLASSICAL, FROZEN, PROMPTED], errors="ignore")
    beside = 1.25 ** methods.groupby("trainable_parameters").cumcount()  # equal numbers stand side by side
    for axis, places in zip(axes, (methods["trainable_parameters"] * beside, methods["train_seconds"]), strict=True):
        for number, (name, row) in enumerate(methods.iterrows()):
            errors = [[row["f1"] - row["f1_low"]], [row["f1_high"] - row["f1"]]]
            axis.errorbar(places[name], row["f1"], yerr=errors, fmt=MARKERS[number % len(MARKERS)], color=DARK,
                          mfc=(DARK, LIGHT, "white")[number % 3], markersize=9, capsize=3, label=name)  # fmt: skip
        for name, score in summary["f1"].filter([*LINES]).items():
            axis.axhline(score, color=LINE, linestyle=LINES[name], linewidth=1, label=f"{name}: {score:.3f}")
    # A baseline far below every method stands in the legend only, so that the methods can be told apart.
    lowest, highest = (methods if len(methods) else summary)["f1_low"].min(), summary["f1_high"].max()
    axes[0].set(xscale="log", xlabel="trainable parameters", ylabel=f"F1 (macro) on {examples:,} test examples")
    axes[1].set(xlabel="training time, seconds", xlim=(0, None), ylim=(lowest - 0.05, highest + 0.01))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.suptitle("What each method reaches, and what it costs (bars: 95 % intervals)")
    return figure


def plot_search(table: pd.DataFrame) -> Figure:
    """Draw the score of each trial of `tabulate_trials` in turn, and against each of its options."""
    table, figure = table.reset_index(), plt.figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharey=True).ravel()
    for axis, name in zip(axes, table.columns.drop(["f1", "pruned", "seconds"]), strict=False):
        for pruned, label in ((False, "complete"), (True, "pruned")):
            rows = table[table["pruned"] == pruned]
            axis.plot(name, "f1", "o", data=rows, color=DARK, mfc="white" if pruned else DARK, label=label)
        axis.set(xlabel=name, **{"xscale": "log"} if name == "learning_rate" else {})
    best = table["f1"].mask(table["pruned"]).cummax().ffill()
    axes[0].step(table["trial"], best, where="post", color=LINE, label="best so far")
    axes[0].locator_params(axis="x", integer=True)
    axes[0].legend()
    figure.supylabel("F1 (macro) on the validation examples")
    return figure


def plot_learning_curve(summary: pd.DataFrame, examples: int) -> Figure:
    """Draw the quality of each method of `summarize_learning_curve` against the number of training examples."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (name, rows) in enumerate(summary.groupby("method", sort=False)):
        places = rows.index.get_level_values("examples") * 1.04**number  # bars stand side by side
        errors = [rows["f1"] - rows["f1_low"], rows["f1_high"] - rows["f1"]]
        style = {"linestyle": ("-", "--", "-.", ":")[number % 4], "color": (DARK, MEDIUM, LINE)[number % 3]}
        axes.errorbar(places, rows["f1"], yerr=errors, marker=MARKERS[number], capsize=3, label=name, **style)
    sizes = summary.index.unique("examples")
    axes.set(xscale="log", xlabel="training examples", ylabel=f"F1 (macro) on {examples:,} test examples")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_title("What each method makes of how many examples (bars: 95 % intervals)")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure
