import numpy as np
import pandas as pd
import pytest

from peft_helpers.analysis.plots import MAJORITY
from peft_helpers.app.results import describe_compared_methods, save_methods

REFERENCES = np.array([0, 1] * 10)


def result(method: str, error: str | None = None) -> dict:
    return {
        "method": method, "seed": 42, "learning_rate": 1e-3, "parameters": 1000, "trainable_parameters": 30,
        "accuracy": 0.9, "f1": 0.9, "predictions": [0, 1] * 9 + [1, 0], "train_seconds": 2.0, "peak_memory_mb": 50.0,
        "adapter_mb": 0.5, "reload_verified": True, "error": error,
    }  # fmt: skip


def test_methods_are_saved_as_a_table_and_a_figure(tmp_path):
    save_methods([result("head-only"), result("lora-r8")], REFERENCES, tmp_path)
    assert pd.read_csv(tmp_path / "methods.csv")["method"].tolist() == ["head-only", "lora-r8"]
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_method_there_is_no_figure(tmp_path):
    save_methods([result(MAJORITY), result("head-only", "RuntimeError: no luck")], REFERENCES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["methods.csv"]


@pytest.mark.reliability("fault")
def test_a_method_that_failed_is_named_with_its_error(tmp_path):
    text = describe_compared_methods([result("head-only"), result("ia3", "RuntimeError: no luck")], REFERENCES, "here")
    assert "20 test examples" in text
    assert "ia3, seed 42, failed: RuntimeError: no luck" in text
    assert text.endswith("The table and the figure are in here: methods.csv, methods.png.")
