"""Figures that stay readable in greyscale; each function returns the figure that it drew."""

import itertools
import logging

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
from transformers import EvalPrediction

from peft_helpers.analysis.report import METRIC_NAMES, predicted_labels
from peft_helpers.comparison.baselines import CLASSICAL, MAJORITY
from peft_helpers.metrics import compute_metrics

# On a new machine the first figure builds a font cache and says so on stderr.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

DARK, LIGHT, LINE = "#1f4e79", "#a8c6e0", "#b03a2e"


def plot_class_balance(counts: pd.DataFrame) -> Figure:
    """Draw the share of each label (row of ``counts``) in each split (column)."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    shares = 100 * counts / counts.sum()
    shares.columns = [f"{split} ({rows:,} rows)" for split, rows in counts.sum().items()]
    shares.plot.bar(ax=axes, color=[DARK, "#6f9fc8", LIGHT], edgecolor="black", linewidth=0.5, width=0.8,
                    rot=0 if len(counts) <= 8 else 60)  # fmt: skip
    axes.set(ylabel="share of the split, %", title="Class balance")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, fontsize="small")
    return figure


def plot_token_lengths(tokenized: Dataset, max_length: int) -> Figure:
    """Draw how long the texts are, in tokens, and what ``max_length`` cuts."""
    lengths = np.asarray(tokenized["text_length"][:])
    cut, lost = np.mean(lengths > max_length), np.maximum(lengths - max_length, 0).sum() / max(lengths.sum(), 1)
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    longest = np.quantile(lengths, 0.99)
    axes.hist(np.minimum(lengths, longest), bins=50, color=LIGHT, edgecolor="black", linewidth=0.5)
    axes.axvline(max_length, color=LINE, linestyle="--", label=f"max_length = {max_length}")
    axes.set(xlabel="tokens (the longest 1 % in the last bar)", ylabel=f"texts, of {len(lengths):,}")
    axes.set_title(f"max_length cuts {cut:.0%} of the texts and {lost:.0%} of all their tokens")
    axes.legend()
    return figure


def plot_training(log_history: list[dict]) -> Figure:
    """Draw the losses and the validation metrics of ``trainer.state.log_history`` over the epochs."""
    train = [(entry["epoch"], entry["loss"]) for entry in log_history if "loss" in entry]
    evaluated = pd.DataFrame([entry for entry in log_history if "eval_loss" in entry])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot(*zip(*train, strict=True), color=DARK, marker="o", label="training")
    left.plot(evaluated["epoch"], evaluated["eval_loss"], color=LINE, marker="s", linestyle="--", label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy, nats", title="Loss")
    left.legend()
    right.plot(evaluated["epoch"], evaluated["eval_accuracy"], color=LIGHT, marker="o", label="accuracy")
    right.plot(evaluated["epoch"], evaluated["eval_f1"], color=DARK, marker="s", label="F1 (macro)")
    best = evaluated.loc[evaluated["eval_f1"].idxmax()]
    right.plot(best["epoch"], best["eval_f1"], color=LINE, marker="*", markersize=16, linestyle="", label="kept")
    right.set(xlabel="epoch", ylabel="score on the validation rows", title="Validation")
    right.legend()
    return figure


def plot_confusions(untuned: EvalPrediction, tuned: EvalPrediction, label_names: list[str]) -> Figure:
    """Draw both confusion matrices, in shares of the true label, on one scale."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    for axis, output, title in zip(axes, (untuned, tuned), ("Untuned", "Fine-tuned with LoRA"), strict=True):
        matrix = confusion_matrix(
            output.label_ids, predicted_labels(output), labels=range(len(label_names)), normalize="true"
        )
        display = ConfusionMatrixDisplay(matrix, display_labels=label_names)
        display.plot(
            ax=axis,
            cmap="Blues",
            values_format=".2f",
            colorbar=False,
            include_values=len(label_names) <= 12,
            im_kw={"vmin": 0, "vmax": 1},
        )
        for text in np.ravel(display.text_) if display.text_ is not None else ():
            text.set_color("white" if float(text.get_text()) > 0.5 else "black")  # on the scale that both share
        axis.set(title=title, ylabel="true label" if axis is axes[0] else "", xlabel="predicted label")
        axis.set_xticks(axis.get_xticks(), label_names, rotation=30, ha="right", rotation_mode="anchor")
    figure.colorbar(display.im_, ax=axes, label="share of the true label's rows", shrink=0.8)
    figure.suptitle(f"Confusion on {len(tuned.label_ids):,} test rows")
    return figure


def plot_before_after(untuned: EvalPrediction, tuned: EvalPrediction, majority: EvalPrediction) -> Figure:
    """Draw each metric before and after fine-tuning, over it the level of ``majority``, from `majority_class`."""
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    places = np.arange(len(METRIC_NAMES))
    for output, shift, color, name in ((untuned, -0.2, LIGHT, "untuned"), (tuned, 0.2, DARK, "LoRA, reloaded")):
        scores = compute_metrics(output)
        bars = axes.bar(places + shift, [scores[metric] for metric in METRIC_NAMES], 0.4, color=color, label=name,
                        edgecolor="black", linewidth=0.5)  # fmt: skip
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axes.bar_label(bars, fmt="%.3f", fontsize="small", padding=3, bbox=white, zorder=3)
    scores = compute_metrics(majority)
    levels = [scores[metric] for metric in METRIC_NAMES]
    axes.hlines(levels, places - 0.45, places + 0.45, color=LINE, linestyle="--", label="majority class")
    axes.set_xticks(places, METRIC_NAMES.values())
    axes.set(ylim=(0, 1.12), ylabel="score", title=f"Before and after, on {len(tuned.label_ids):,} test rows")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, fontsize="small")
    return figure


def plot_methods(summary: pd.DataFrame, rows: int) -> Figure:
    """Draw the quality of each method of `summarize_methods` against its trainable parameters and its training time.

    The bars are the 95 % intervals over the ``rows`` test rows; the lines are the reference points. A reference point
    far below every method stands in the legend only, so that the methods can be told apart.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
    methods = summary.drop(index=[MAJORITY, CLASSICAL], errors="ignore")
    markers = dict(zip(methods.index, itertools.cycle("os^vD<p>PX*hd"), strict=False))
    shades = dict(zip(methods.index, itertools.cycle((DARK, LIGHT, "white")), strict=False))
    beside = 1.25 ** methods.groupby("trainable_parameters").cumcount()  # equal numbers stand side by side
    places = (methods["trainable_parameters"] * beside, methods["train_seconds"])
    for axis, place in zip(axes, places, strict=True):
        for name, row in methods.iterrows():
            errors = [[row["f1"] - row["f1_low"]], [row["f1_high"] - row["f1"]]]
            axis.errorbar(place[name], row["f1"], yerr=errors, fmt=markers[name], color=DARK, mfc=shades[name],
                          markersize=9, elinewidth=1, capsize=3, label=name)  # fmt: skip
        _draw_reference_points(axis, summary, (methods if len(methods) else summary)["f1_low"].min())
    axes[0].set(xscale="log", xlabel="trainable parameters", ylabel=f"F1 (macro) on {rows:,} test rows")
    axes[1].set(xlabel="training time, seconds", xlim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.suptitle("What each method reaches, and what it costs (bars: 95 % intervals)")
    return figure


def _draw_reference_points(axis: Axes, summary: pd.DataFrame, lowest: float) -> None:
    for name, style in ((CLASSICAL, "--"), (MAJORITY, ":"), ("full", "-.")):
        if name in summary.index:
            score = summary.loc[name, "f1"]
            is_far_below = score < lowest - 0.2
            line = axis.axhline(score, color=LINE, linestyle=style, linewidth=1)
            line.set_label(f"{name}: {score:.3f}{' (below)' if is_far_below else ''}")
    scores = summary["f1"][summary["f1"] > lowest - 0.2]
    axis.set_ylim(min(scores.min(), lowest) - 0.02, summary["f1_high"].max() + 0.01)


def plot_perplexity(log_history: list[dict], untuned: dict[str, float], tuned: dict[str, float]) -> Figure:
    """Draw the validation perplexity of ``trainer.state.log_history`` over the epochs, and that of the test blocks.

    ``untuned`` and ``tuned`` are the results of `evaluate_perplexity` on the test blocks before and after training.
    """
    evaluated = pd.DataFrame([entry for entry in log_history if "eval_perplexity" in entry])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", width_ratios=(2, 1))
    left.plot(evaluated["epoch"], evaluated["eval_perplexity"], color=DARK, marker="s")
    best = evaluated.loc[evaluated["eval_perplexity"].idxmin()]
    left.plot(best["epoch"], best["eval_perplexity"], color=LINE, marker="*", markersize=16, linestyle="", label="kept")
    left.set(xlabel="epoch", ylabel="perplexity", title="Validation blocks")
    left.legend()
    bars = right.bar(["untuned", "LoRA"], [untuned["perplexity"], tuned["perplexity"]], color=[LIGHT, DARK],
                     edgecolor="black", linewidth=0.5)  # fmt: skip
    right.bar_label(bars, fmt="%.1f", padding=2)
    right.margins(y=0.12)
    right.set(title=f"Test blocks ({tuned['predicted_tokens']:,} tokens)")
    return figure
