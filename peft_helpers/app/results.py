"""What the comparison of methods leaves: a table and a figure in its folder, and a report to print."""

from pathlib import Path

import numpy as np
import pandas as pd

from peft_helpers.analysis.plots import CLASSICAL, MAJORITY, plot_methods, save_figure
from peft_helpers.comparison.tables import describe_methods, describe_result, format_methods, summarize_methods


def save_methods(results: list[dict], references: np.ndarray, folder: Path) -> str:
    """Write ``methods.csv`` and, if a method has a result, ``methods.png`` into ``folder``; return a report of both."""
    summary = summarize_methods(results, references)
    summary.to_csv(folder / "methods.csv", index_label="method")
    if set(summary.index) - {MAJORITY, CLASSICAL}:
        save_figure(plot_methods(summary, len(references)), folder / "methods.png")
    with pd.option_context("display.width", None):
        table = format_methods(summary).to_string()
    failures = [describe_result(row) for row in results if row["error"]]
    lines = [f"\n{len(references):,} test examples", table, describe_methods(results, references), *failures]
    return "\n".join([*lines, f"The table and the figure are in {folder}: methods.csv, methods.png."])
