import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from transformers.trainer_utils import PredictionOutput

from peft_helpers import Calibration
from peft_helpers.analysis.calibration import calibration_errors
from peft_helpers.analysis.report import (
    RARER_NAMES,
    compare,
    compare_per_class,
    describe_environment,
    describe_evaluation,
    describe_run,
    format_comparison,
    majority_class,
    report_per_class,
    save_results,
    score,
)
from peft_helpers.analysis.significance import accuracy_interval, compare_paired, f1_interval, mcnemar_p_value
from peft_helpers.metrics import compute_metrics
from peft_helpers.pipeline import RunResult


def output(predicted, true=(0, 0, 1, 1)) -> PredictionOutput:
    return PredictionOutput(np.eye(2)[list(predicted)], np.array(true), {})


def test_difference_is_tuned_minus_untuned():
    compared = compare(output([0, 0, 0, 0]), output([0, 0, 1, 0]))
    assert [compared[column]["accuracy"] for column in ("untuned", "tuned", "difference")] == [0.5, 0.75, 0.25]


@pytest.mark.reliability("bad input")
def test_other_examples_cannot_be_compared():
    with pytest.raises(ValueError, match="not the same examples in the same order"):
        compare(output([0, 0, 0, 0]), output([0, 0, 0, 0], true=(0, 1, 0, 1)))


def test_text_has_intervals_signs_thousands_costs_and_the_test():
    text = format_comparison(output([0, 0, 1, 1]), output([0, 0, 1, 0]), 66176, 0.268744)
    assert text.index[:4].tolist() == ["accuracy", "precision (macro)", "recall (macro)", "F1 (macro)"]
    # Wilson's interval of 4 of 4 is [4 / (4 + 1.96^2), 1].
    assert text.loc["accuracy"].tolist() == ["1.000 [0.510, 1.000]", "0.750 [0.301, 0.954]", "-0.250 [-0.750, +0.000]"]
    assert text.loc["recall (macro)"].tolist() == ["1.000", "0.750", "-0.250"]
    assert text.loc["F1 (macro)", "untuned"] == "1.000 [1.000, 1.000]"
    assert text.loc["trainable parameters"].tolist() == ["0", "66,176", "+66,176"]
    assert text.loc["adapter, MB", "tuned"] == "0.27"
    assert text.loc["McNemar's exact test", "difference"] == "p = 1.000"


def test_a_small_p_value_is_not_written_as_zero():
    many = (0,) * 40
    text = format_comparison(output([1] * 40, many), output([0] * 40, many), 1, 1)
    assert text.loc["McNemar's exact test", "difference"] == "p < 0.001"


def test_classes_are_compared_side_by_side():
    table = compare_per_class(output([0, 0, 0, 0]), output([0, 0, 1, 1]), ["no", "yes"])
    assert table.loc["yes", ("untuned", "recall")] == 0
    assert table.loc["yes", ("tuned", "recall")] == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_majority_class_predicts_the_most_frequent_training_label(streamed):
    features = Features({"label": ClassLabel(names=["no", "so-so", "yes"])})
    labels = {"train": [2, 0, 2], "validation": [1, 0, 1], "test": [0, 1, 0, 0]}  # in the test another one is
    dataset = DatasetDict({name: Dataset.from_dict({"label": of_split}, features) for name, of_split in labels.items()})
    if streamed:
        dataset["train"] = dataset["train"].to_iterable_dataset()
    majority = majority_class(dataset)
    assert majority.predictions.tolist() == [[0, 1, 0] if streamed else [0, 0, 1]] * 4
    assert majority.label_ids.tolist() == labels["test"]


def test_the_environment_is_described():
    assert {"python", "torch", "transformers", "peft", "device"} <= set(describe_environment().index)


# one run

TRUE = np.array([0, 1] * 10)
UNTUNED, TUNED = np.zeros(20, dtype=int), np.where(np.arange(20) < 18, TRUE, 1 - TRUE)
MAJORITY = output([1] * 20, TRUE)


@pytest.fixture
def result(args):
    Path(args.training.output_dir).mkdir()
    Path(args.training.output_dir, "adapter_model.safetensors").write_bytes(bytes(2_500_000))
    log = [{"epoch": 1.0, "loss": 0.5}, {"epoch": 1.0, "eval_loss": 0.4, "eval_accuracy": 0.9, "eval_f1": 0.9}]
    seconds = {"load": 1.5, "train": 2.5}
    return RunResult(args, ["no", "yes"], output(UNTUNED, TRUE), output(TUNED, TRUE), log, 30, 1000, seconds)


def test_scores_have_the_intervals_of_the_notebooks_table():
    scores = score(output(TUNED, TRUE))
    assert scores["accuracy"] == 0.9
    assert scores["accuracy_interval"] == list(accuracy_interval(TUNED, TRUE))
    assert scores["f1_interval"] == list(f1_interval(TUNED, TRUE))


def test_what_is_saved_compares_the_models_example_by_example(result):
    save_results(result, MAJORITY)
    folder = Path(result.args.training.output_dir)
    summary = json.loads((folder / "results.json").read_text())
    assert len(list(folder.glob("*.png"))) == 4
    errors = calibration_errors(result.tuned, 1.0)
    assert summary["calibration"]["before"] == summary["calibration"]["after"] == errors["before"]
    paired = compare_paired(UNTUNED, TUNED, TRUE)
    assert summary["metrics"]["untuned"]["accuracy"] == summary["majority_class_accuracy"] == 0.5
    difference = summary["metrics"]["difference"]
    assert difference["accuracy"] == pytest.approx(0.4)
    assert difference["f1_interval"] == paired["f1_interval"]
    assert difference["mcnemar_p_value"] == mcnemar_p_value(UNTUNED == TRUE, TUNED == TRUE)
    assert (summary["test_examples"], summary["adapter_megabytes"]) == (20, 2.5)
    assert summary["config"]["learning_rate"] == 8e-3


def test_scores_of_two_labels_are_those_of_the_rarer_one():
    margins, true = np.array([3.0, 2.0, -1.0, -2.0, -3.0, 1.0]), np.array([1, 1, 0, 0, 0, 0])
    logits = np.stack([np.zeros(6), margins], axis=1)
    found = score(PredictionOutput(logits, true, {}))
    assert (found["rarer_f1"], found["roc_auc"], found["rarer_ap"]) == (pytest.approx(0.8), 1, 1)
    swapped = score(PredictionOutput(logits[:, ::-1], 1 - true, {}))
    assert {name: swapped[name] for name in RARER_NAMES} == {name: found[name] for name in RARER_NAMES}
    assert not RARER_NAMES.keys() & score(PredictionOutput(logits, np.ones(6, dtype=int), {})).keys()
    assert not RARER_NAMES.keys() & score(PredictionOutput(np.eye(3), np.arange(3), {})).keys()


def test_a_threshold_of_the_folder_decides_in_the_results(result):
    folder = Path(result.args.training.output_dir)
    Calibration(1.5, 0.95, 1).save(folder)  # as sure as these logits make it, no example is the second label
    save_results(result, MAJORITY)
    summary = json.loads((folder / "results.json").read_text())
    assert summary["metrics"]["tuned"]["accuracy"] == 0.5
    assert (summary["calibration"]["threshold"], summary["calibration"]["label"]) == (0.95, 1)
    assert summary["calibration"]["after"] == calibration_errors(result.tuned, 1.5)["after"]
    assert re.search(r"^accuracy .*0\.500 \[.*0\.500 \[", describe_run(result), re.MULTILINE)


def test_the_description_tells_examples_share_and_time(result):
    text = describe_run(result)
    assert "20 test examples; 3.00% of the parameters trained; 4 seconds" in text
    assert "0.900 [" in text


def test_an_evaluation_is_a_line_a_metric():
    lines = describe_evaluation(output(TUNED, TRUE)).splitlines()
    assert lines[0] == "20 examples"
    names = ["accuracy", "precision (macro)", "recall (macro)", "F1 (macro)"]
    names += ["F1 (rarer label)", "ROC AUC", "average precision (rarer label)"]
    assert [line[:31].strip() for line in lines[1:]] == names
    low, high = accuracy_interval(TUNED, TRUE)
    assert lines[1].endswith(f"0.900 [{low:.3f}, {high:.3f}]")


def test_report_has_a_row_for_each_label_that_occurs_and_agrees_with_the_metrics():
    predictions = PredictionOutput(np.eye(3)[[0, 2, 1, 1]], np.array([0, 0, 0, 1]), {})
    report = report_per_class(predictions, ["cat", "dog", "eel"])
    assert list(report.index) == ["cat", "dog", "micro avg", "macro avg", "weighted avg"]
    assert report.loc["cat", "recall"] == pytest.approx(1 / 3)
    assert report["support"].tolist()[:2] == [3, 1]
    assert report.loc["macro avg", "f1-score"] == pytest.approx(compute_metrics(predictions)["f1"])
