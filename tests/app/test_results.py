import numpy as np
import pandas as pd
import pytest

from peft_helpers.analysis.plots import MAJORITY
from peft_helpers.app.results import save_methods

REFERENCES = np.array([0, 1] * 10)


def result(method: str, error: str | None = None) -> dict:
    return {
        "method": method, "seed": 42, "learning_rate": 1e-3, "parameters": 1000, "trainable_parameters": 30,
        "accuracy": 0.9, "f1": 0.9, "predictions": [0, 1] * 9 + [1, 0], "train_seconds": 2.0, "peak_memory_mb": 50.0,
        "adapter_mb": 0.5, "reload_verified": "yes", "error": error,
    }  # fmt: skip


def test_methods_are_saved_as_a_table_and_a_figure(tmp_path):
    report = save_methods([result("head-only"), result("lora-r8")], REFERENCES, tmp_path)
    assert "20 test examples" in report
    assert report.endswith(f"The table and the figure are in {tmp_path}: methods.csv, methods.png.")
    assert pd.read_csv(tmp_path / "methods.csv")["method"].tolist() == ["head-only", "lora-r8"]
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.reliability("fault")
def test_without_a_method_there_is_no_figure_and_the_error_is_reported(tmp_path):
    report = save_methods([result(MAJORITY), result("head-only", "RuntimeError: no luck")], REFERENCES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["methods.csv"]
    assert "head-only, seed 42: failed, RuntimeError: no luck" in report
