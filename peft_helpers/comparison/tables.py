"""The results of several methods: the file that keeps them, a table of them, and what they say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_helpers.analysis.plots import CLASSICAL
from peft_helpers.analysis.report import format_interval, format_p_value
from peft_helpers.analysis.significance import compare_paired, f1_interval
from peft_helpers.modeling import head_modules

# Of `run_methods`; `run_baselines` gives a part of it.
_COLUMNS = ("method", "parameters", "trainable_parameters", "accuracy", "f1", "predictions", "train_seconds",
            "peak_memory_mb", "adapter_mb", "reload_verified")  # fmt: skip


def read_results(results_file: str | Path) -> list[dict]:
    """Return what `write_results` has written, an empty list if there is no such file yet.

    Raises:
        ValueError: it is a folder or in none, or holds something else, which is left as it is.
    """
    path = Path(results_file)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            f"comparison_file is {str(path)!r}; expected a file, there already or not, in a folder that exists. Make "
            "the folder, or name another --comparison_file."
        )
    try:
        results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    except ValueError:  # not JSON, or not even text
        results = [None]
    if not all(isinstance(row, dict) and {"method", "error", "fingerprint"} <= row.keys() for row in results):
        raise ValueError(
            f"comparison_file is {str(path)!r}; expected a result of the comparison in each line, found something "
            "else. Name another --comparison_file. Nothing was changed."
        )
    return results


def write_results(results: list[dict], results_file: str | Path) -> None:
    """Write one result a line, in place of the file in one step: a kill leaves it as it was."""
    path = Path(results_file)
    new = path.with_name(f".{path.name}.saving")
    new.write_text("".join(json.dumps(row) + "\n" for row in results), encoding="utf-8")
    new.replace(path)


def summarize_methods(results: list[dict], references: np.ndarray) -> pd.DataFrame:
    """Return a row for each method of `run_methods` and `run_baselines`, from its runs with several seeds.

    Scores, seconds and MB are means over the seeds; ``f1_low`` and ``f1_high`` the 95 % interval of the mean F1 over
    the test examples; ``f1_min`` and ``f1_max`` the worst and best seed; ``share`` that of the trainable parameters.
    What does not apply is NaN.

    Args:
        results: what they return, one after the other.
        references: true labels of the test examples, shape (examples,).
    """
    runs = _successful(results).groupby("method", sort=False)
    costs = ["train_seconds", "peak_memory_mb", "adapter_mb"]
    summary = runs[["trainable_parameters", "parameters", "reload_verified"]].first()
    summary["share"] = summary["trainable_parameters"] / summary["parameters"]
    summary["seeds"] = runs.size()
    summary[["accuracy", "f1", *costs]] = runs[["accuracy", "f1", *costs]].mean()
    summary[["f1_min", "f1_max"]] = runs["f1"].agg(["min", "max"])
    intervals = [f1_interval(np.stack(predictions), references) for _, predictions in runs["predictions"]]
    summary[["f1_low", "f1_high"]] = intervals
    return summary.rename_axis(None).sort_values("trainable_parameters")


def _successful(results: list[dict]) -> pd.DataFrame:
    return pd.DataFrame([row for row in results if row["error"] is None], columns=_COLUMNS)


def format_methods(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the table of `summarize_methods` as text to read."""
    return pd.DataFrame({
        "trainable": summary["trainable_parameters"].map("{:,}".format),
        "share": summary["share"].map("{:.2%}".format).replace("nan%", ""),
        "accuracy": summary["accuracy"].map("{:.3f}".format),
        "F1 (macro) [95 %]": [
            f"{row.f1:.3f}{format_interval(row.f1_low, row.f1_high)}" for row in summary.itertuples()
        ],
        "F1, worst to best seed": [
            f"{row.f1_min:.3f} to {row.f1_max:.3f}, {row.seeds} seeds" if row.seeds > 1 else ""
            for row in summary.itertuples()
        ],
        "training, s": summary["train_seconds"].map("{:.0f}".format),
        "peak memory, MB": summary["peak_memory_mb"].map("{:.0f}".format).replace("nan", ""),
        "adapter, MB": summary["adapter_mb"].map("{:.2f}".format).replace("nan", ""),
        "reload verified": summary["reload_verified"],
    })  # fmt: skip


def compare_methods_to(baseline: str, results: list[dict], references: np.ndarray) -> pd.DataFrame:
    """Return by how much each method beats ``baseline`` in macro F1, as text, best first, from each one's first seed.

    The p-values are of one comparison each, not corrected for their number.
    """
    first = _successful(results).drop_duplicates("method").set_index("method")["predictions"].map(np.array)
    rows = {name: compare_paired(first[baseline], first[name], references) for name in first.index.drop(baseline)}
    columns = ["F1 (macro)", "F1 (macro), low", "F1 (macro), high", "p"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).sort_values("F1 (macro)", ascending=False)
    differences = [
        f"{difference:+z.3f}{format_interval(low, high, sign='+')}"
        for difference, low, high in table[columns[:3]].itertuples(index=False)
    ]
    p_values = table["p"].map(format_p_value)
    return pd.DataFrame({f"F1 (macro) beyond {baseline} [95 %]": differences, "McNemar's exact test": p_values})


def describe_result(row: dict) -> str:
    """Return one result of `run_methods` as a line of text."""
    if row["error"] is not None:
        return f"{row['method']}, seed {row['seed']}: failed, {row['error']}"
    scores = f"accuracy {row['accuracy']:.3f}, macro F1 {row['f1']:.3f}"
    return f"{row['method']}, seed {row['seed']}: {scores}, {row['train_seconds']:.0f} s"


def describe_methods(results: list[dict], references: np.ndarray) -> str:
    """Return what the comparison says: the best PEFT method beside full fine-tuning and the classical model.

    The best is best on the test examples, and so a little too good; how far the others are behind tells by how much.
    """
    summary = summarize_methods(results, references)
    # Only what is an adapter is reloaded; the head alone is one for PEFT, but counts as a baseline.
    f1, of_peft = summary["f1"], (summary["reload_verified"] == "yes") & (summary.index != "head-only")
    if not of_peft.any():
        return "No PEFT method was compared."
    best = f1[of_peft].idxmax()
    lines = [f"The best PEFT method here is {best}: macro F1 {f1[best]:.3f}."]
    for other, name in (("full", "Full fine-tuning"), (CLASSICAL, CLASSICAL)):
        if other in f1.index:
            lines.append(f"{name} reaches {f1[other]:.3f}: {best} differs by {f1[best] - f1[other]:+z.3f}.")
    return "\n".join(lines)


def compare_sizes(full: PreTrainedModel, quantized: PreTrainedModel) -> pd.DataFrame:
    """Return the sizes in MB (10^6 bytes) of a model and of the same with 4-bit layers, and how many times smaller."""
    columns = {name: _sizes(model) for name, model in (("32 bits, MB", full), ("4 bits, MB", quantized))}
    table = pd.DataFrame(columns, index=["weights of the linear layers", "whole model"])
    return table.assign(**{"times smaller": table["32 bits, MB"] / table["4 bits, MB"]})


def _sizes(model: PreTrainedModel) -> list[float]:
    """Return the MB of the weights of all linear layers but the head, and of the whole model."""
    sizes = pd.Series({name: tensor.nbytes / 1e6 for name, tensor in model.state_dict().items()})
    linear = [name for name, layer in model.named_modules() if isinstance(layer, (torch.nn.Linear, Conv1D))]
    weights = tuple(f"{name}.weight" for name in linear if name not in head_modules(model))  # scales: name.weight.*
    return [sizes[sizes.index.str.startswith(weights)].sum(), sizes.sum()]
