import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import EvalPrediction

from peft_helpers import ClassificationMetrics, compute_metrics, report_per_class
from peft_helpers.metrics import compute_metrics_and_loss


def output(predicted: list[int], true: list[int], labels: int = 3) -> EvalPrediction:
    return EvalPrediction(predictions=np.eye(labels)[predicted], label_ids=np.array(true))


def test_metrics_by_hand():
    # label 0: 2 of 2 predictions right, 2 of 3 rows found; label 1: 1 of 2 and 1 of 1; label 2 never predicted.
    metrics = compute_metrics(output([0, 0, 1, 1, 0][:4], [0, 0, 0, 1]))
    assert metrics["accuracy"] == 3 / 4
    assert metrics["precision"] == pytest.approx((1 + 1 / 2) / 2)
    assert metrics["recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_metrics_equal_scikit_learns():
    rng = np.random.default_rng(0)
    predicted, true = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    assert compute_metrics(output(predicted, true, 4))["f1"] == pytest.approx(
        f1_score(true, predicted, average="macro")
    )


def test_a_label_never_predicted_has_precision_zero():
    assert compute_metrics(output([0, 0], [0, 1]))["precision"] == 0.25


def test_the_metric_is_an_evaluate_metric_without_files():
    metric = ClassificationMetrics(keep_in_memory=True)
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    assert metric.compute() == {"accuracy": 1.0, "precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_the_average_is_over_the_same_labels_for_every_model():
    true = [0, 0, 1, 1]
    assert compute_metrics(output([0, 0, 1, 2], true))["recall"] == (1 + 1 / 2) / 2
    assert compute_metrics(output([0, 0, 1, 0], true))["recall"] == (1 + 1 / 2) / 2


def test_report_has_a_row_for_each_label_that_occurs_and_agrees_with_the_metrics():
    predictions = output([0, 2, 1, 1], [0, 0, 0, 1])
    report = report_per_class(predictions, ["cat", "dog", "eel"])
    assert list(report.index) == ["cat", "dog", "micro avg", "macro avg", "weighted avg"]
    assert report.loc["cat", "recall"] == pytest.approx(1 / 3)
    assert report["support"].tolist()[:2] == [3, 1]
    assert report.loc["macro avg", "f1-score"] == pytest.approx(compute_metrics(predictions)["f1"])


def test_the_loss_is_the_mean_over_rows():
    logits, labels = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [1.0, 1.0, 0.0]]), np.array([0, 1, 1])
    found = compute_metrics_and_loss(EvalPrediction(logits, labels))
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert found.pop("loss") == pytest.approx(expected)
    assert found == compute_metrics(EvalPrediction(logits, labels))
