import json
from pathlib import Path

import numpy as np
import pytest
from transformers.trainer_utils import PredictionOutput

from peft_helpers.analysis.significance import accuracy_interval, compare_paired, f1_interval, mcnemar_p_value
from peft_helpers.app.results import describe_evaluation, describe_run, save_results, score, summarize_run
from peft_helpers.pipeline import RunResult

TRUE = np.array([0, 1] * 10)
UNTUNED, TUNED = np.zeros(20, dtype=int), np.where(np.arange(20) < 18, TRUE, 1 - TRUE)


def output(labels: np.ndarray) -> PredictionOutput:
    return PredictionOutput(np.eye(2)[labels], TRUE, {})


@pytest.fixture
def result(args):
    Path(args.training.output_dir).mkdir()
    Path(args.training.output_dir, "adapter_model.safetensors").write_bytes(bytes(2_500_000))
    log = [{"epoch": 1.0, "loss": 0.5}, {"epoch": 1.0, "eval_loss": 0.4, "eval_accuracy": 0.9, "eval_f1": 0.9}]
    return RunResult(
        args,
        ["no", "yes"],
        output(UNTUNED),
        output(UNTUNED),
        output(TUNED),
        log,
        30,
        1000,
        {"load": 1.5, "train": 2.5},
    )


def test_scores_have_the_intervals_of_the_notebooks_table():
    scores = score(output(TUNED))
    assert scores["accuracy"] == 0.9
    assert scores["accuracy_interval"] == list(accuracy_interval(TUNED, TRUE))
    assert scores["f1_interval"] == list(f1_interval(TUNED, TRUE))


def test_the_summary_compares_the_models_row_by_row(result):
    summary = summarize_run(result)
    paired = compare_paired(UNTUNED, TUNED, TRUE)
    assert summary["metrics"]["untuned"]["accuracy"] == summary["majority_class_accuracy"] == 0.5
    assert summary["difference"]["accuracy"]["value"] == pytest.approx(0.4)
    assert summary["difference"]["f1"]["interval"] == [paired["F1 (macro), low"], paired["F1 (macro), high"]]
    assert summary["mcnemar_p_value"] == mcnemar_p_value(UNTUNED == TRUE, TUNED == TRUE)
    assert (summary["test_rows"], summary["adapter_megabytes"]) == (20, 2.5)


def test_what_is_saved_is_json_and_pictures(result):
    save_results(result)
    folder = Path(result.args.training.output_dir)
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(summarize_run(result)))
    assert len(list(folder.glob("*.png"))) == 3


def test_the_description_tells_rows_share_and_time(result):
    text = describe_run(result)
    assert "20 test rows; 3.00% of the parameters trained; 4 seconds" in text
    assert "0.900 [" in text


def test_an_evaluation_is_a_line_a_metric():
    lines = describe_evaluation(output(TUNED)).splitlines()
    assert lines[0] == "20 rows"
    assert [line[:18].strip() for line in lines[1:]] == [
        "accuracy",
        "precision (macro)",
        "recall (macro)",
        "F1 (macro)",
    ]
    low, high = accuracy_interval(TUNED, TRUE)
    assert lines[1].endswith(f"0.900 [{low:.3f}, {high:.3f}]")
