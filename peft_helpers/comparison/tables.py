"""The results of several methods: the file that keeps them, a table of them, and what they say."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from peft_helpers.analysis.report import format_p_value, format_score
from peft_helpers.analysis.significance import compare_paired, f1_interval


def read_results(results_file: str | Path) -> list[dict]:
    """Return what `write_results` has written, if anything; a ValueError refuses any other file or place."""
    path = Path(results_file)
    try:
        results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        are_results = all({"method", "error", "fingerprint"} <= row.keys() for row in results)
    except (ValueError, OSError, AttributeError):  # not JSON, not even text, a folder, or JSON of something else
        are_results = False
    if not are_results or not path.parent.is_dir():
        raise ValueError(
            f"comparison_file is {str(path)!r}; expected a file with a result of the comparison in each line, or a new "
            "one in a folder that exists. Name another --comparison_file."
        )
    return results


def write_results(results: list[dict], results_file: str | Path) -> None:
    """Write one result a line, in place of the file in one step: a kill leaves it as it was."""
    path = Path(results_file)
    new = path.with_name(f".{path.name}.saving")
    new.write_text("".join(json.dumps(row) + "\n" for row in results), encoding="utf-8")
    new.replace(path)


def summarize_methods(results: list[dict], references: np.ndarray) -> pd.DataFrame:
    """Return a row for each method of `compare_methods`, with means over its seeds.

    ``f1_low`` and ``f1_high`` are the 95 % interval of the mean F1 over the test examples, whose true labels are
    ``references``; ``f1_min`` and ``f1_max`` the worst and best seed. What does not apply is NaN.
    """
    runs = pd.DataFrame([row for row in results if row["error"] is None]).groupby("method", sort=False)
    costs = ["train_seconds", "peak_memory_mb", "adapter_mb"]
    summary = runs[["trainable_parameters", "parameters", "reload_verified"]].first()
    summary["share"] = summary["trainable_parameters"] / summary["parameters"]
    summary["seeds"] = runs.size()
    summary[["accuracy", "f1", *costs]] = runs[["accuracy", "f1", *costs]].mean()
    summary[["f1_min", "f1_max"]] = runs["f1"].agg(["min", "max"])
    summary[["f1_low", "f1_high"]] = [f1_interval(np.stack(each), references) for _, each in runs["predictions"]]
    return summary.rename_axis(None).sort_values("trainable_parameters")


def format_methods(summary: pd.DataFrame) -> pd.DataFrame:
    """Return the table of `summarize_methods` as text to read."""
    rows = list(summary.itertuples())
    table = pd.DataFrame({
        "trainable": summary["trainable_parameters"].map("{:,}".format),
        "share": summary["share"].map("{:.2%}".format),
        "accuracy": summary["accuracy"].map("{:.3f}".format),
        "F1 (macro) [95 %]": [format_score(row.f1, [row.f1_low, row.f1_high]) for row in rows],
        "F1, worst to best seed": [f"{row.f1_min:.3f} to {row.f1_max:.3f}, {row.seeds} seeds" if row.seeds > 1 else ""
                                   for row in rows],
        "training, s": summary["train_seconds"].map("{:.0f}".format),
        "peak memory, MB": summary["peak_memory_mb"].map("{:.0f}".format),
        "adapter, MB": summary["adapter_mb"].map("{:.2f}".format),
        "reload verified": summary["reload_verified"],
    })  # fmt: skip
    return table.replace(["nan", "nan%"], "")


def compare_methods_to(baseline: str, results: list[dict], references: np.ndarray) -> pd.DataFrame:
    """Return by how much each method's first seed beats ``baseline`` in macro F1, as text, the best method first."""
    first = {row["method"]: np.array(row["predictions"]) for row in reversed(results) if row["error"] is None}
    rows = {name: compare_paired(first[baseline], first[name], references) for name in first if name != baseline}
    rows = dict(sorted(rows.items(), key=lambda item: -item[1]["f1"]))
    difference = f"F1 (macro) beyond {baseline} [95 %]"
    return pd.DataFrame({
        difference: {name: format_score(row["f1"], row["f1_interval"], "+") for name, row in rows.items()},
        "McNemar's exact test": {name: format_p_value(row["mcnemar_p_value"]) for name, row in rows.items()},
    })  # fmt: skip
