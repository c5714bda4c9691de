"""What the comparison of methods leaves: a table and a figure in its folder, and a report to print."""

from pathlib import Path

import numpy as np
import pandas as pd

from peft_helpers.analysis.plots import CLASSICAL, MAJORITY, plot_methods, save_figure
from peft_helpers.comparison.tables import describe_methods, format_methods, summarize_methods


def save_methods(results: list[dict], references: np.ndarray, folder: str | Path) -> None:
    """Write the table of `summarize_methods` as ``methods.csv`` and the figure as ``methods.png`` into ``folder``.

    Without a method that has a result, there is no figure.
    """
    summary = summarize_methods(results, references)
    summary.to_csv(Path(folder, "methods.csv"), index_label="method")
    if set(summary.index) - {MAJORITY, CLASSICAL}:
        save_figure(plot_methods(summary, len(references)), Path(folder, "methods.png"))


def describe_compared_methods(results: list[dict], references: np.ndarray, folder: str | Path) -> str:
    """Return the table of methods, what it says, which ones failed, and where everything lies."""
    with pd.option_context("display.width", None):
        table = format_methods(summarize_methods(results, references)).to_string()
    failures = [f"{row['method']}, seed {row['seed']}, failed: {row['error']}" for row in results if row["error"]]
    lines = [f"\n{len(references):,} test examples", table, describe_methods(results, references), *failures]
    return "\n".join([*lines, f"The table and the figure are in {folder}: methods.csv, methods.png."])
