import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoTokenizer, EvalPrediction
from transformers.trainer_utils import PredictionOutput

from peft_helpers import (
    CLASSIFICATION,
    assert_same_predictions,
    changed_parameters,
    compute_metrics,
    fingerprint_parameters,
    make_arguments,
)
from peft_helpers.metrics import ClassificationMetrics, compute_metrics_and_loss, rounding_bound
from peft_helpers.modeling import load_model
from peft_helpers.tiny_gpt2 import TINY_GPT2


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


def test_the_loss_is_the_mean_over_rows():
    logits, labels = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [1.0, 1.0, 0.0]]), np.array([0, 1, 1])
    found = compute_metrics_and_loss(EvalPrediction(logits, labels))
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert found.pop("loss") == pytest.approx(expected)
    assert found == compute_metrics(EvalPrediction(logits, labels))


# Parameters that changed


def test_a_change_of_one_bit_is_seen():
    model = torch.nn.Linear(3, 2)
    before = fingerprint_parameters(model)
    assert changed_parameters(before, model) == set()
    with torch.no_grad():
        model.bias[1] = torch.nextafter(model.bias[1], torch.tensor(9.0))
    assert changed_parameters(before, model) == {"bias"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_precision_and_shape_has_a_fingerprint(dtype):
    model = torch.nn.ParameterDict({"scalar": torch.tensor(1.0), "matrix": torch.ones(2, 3).T}).to(dtype)
    assert len(set(fingerprint_parameters(model).values())) == 2


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("bias", [False, True])
def test_other_parameters_cannot_be_compared(bias):
    before = fingerprint_parameters(torch.nn.Linear(3, 2, bias=bias))
    with pytest.raises(KeyError, match="bias"):
        changed_parameters(before, torch.nn.Linear(3, 2, bias=not bias))


# Equal predictions


def compare(left: np.ndarray, right: np.ndarray, dtype: torch.dtype = torch.float32) -> float:
    return assert_same_predictions(*(PredictionOutput(logits, None, {}) for logits in (left, right)), dtype)


def test_equal_logits_differ_by_nothing():
    assert compare(np.ones((2, 3)), np.ones((2, 3))) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logits_may_differ_by_the_rounding_of_what_computes_relative_to_the_largest(dtype):
    left, bound = np.array([[0.0, -8.0]]), rounding_bound(dtype)
    assert compare(left, left + 7.9 * bound, dtype) == pytest.approx(7.9 * bound)
    with pytest.raises(AssertionError, match="Mismatched elements: 2 / 2"):
        compare(left, left + 8.1 * bound, dtype)


def test_where_no_logits_were_kept_the_losses_have_to_agree():
    left, right, other = (PredictionOutput(None, None, {"test_loss": loss}) for loss in (3.0, 3.00001, 3.001))
    assert assert_same_predictions(left, right) == pytest.approx(1e-5)
    with pytest.raises(AssertionError, match="Mismatched elements: 1 / 1"):
        assert_same_predictions(left, other)


def test_the_bound_holds_for_sums_in_another_order_and_not_for_a_thousandth():
    """A chain of products as in GPT-2, in whole and in two parts; a thousandth off is more than rounding."""
    torch.manual_seed(0)
    weights = [torch.randn(3072, 3072) / 3072**0.5] * 48
    rows = parts = torch.randn(4, 3072)
    for weight in weights:
        rows, parts = rows @ weight, parts[:, :1000] @ weight[:1000] + parts[:, 1000:] @ weight[1000:]
    assert compare(rows.numpy(), parts.numpy()) > 0
    with pytest.raises(AssertionError):
        compare(rows.numpy(), (rows * 1.001).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_bound_holds_between_a_row_alone_and_in_a_batch(dtype):
    """Of the embedded model, under the CPU's autocast in 16 bits, and is not met by another example's logits."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_GPT2)
    args = make_arguments(model_name_or_path=TINY_GPT2)
    model = load_model(args, tokenizer, CLASSIFICATION, ["a", "b", "c"]).eval()
    texts = ["Shares rose.", "The striker limped off and his side threw away a two-goal lead.", "A warm film " * 20]

    def logits(texts: list[str]) -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.float().numpy()

    alone, together = np.concatenate([logits([text]) for text in texts]), logits(texts)
    assert compare(alone, together, dtype) > 0
    with pytest.raises(AssertionError):
        compare(alone, logits(texts[::-1]), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_agrees_with_nothing(dtype):
    diverged = np.full((2, 3), np.nan)
    with pytest.raises(AssertionError):
        compare(diverged, diverged, dtype)


@pytest.mark.reliability("bad input")
def test_outputs_of_other_shapes_do_not_agree():
    with pytest.raises(AssertionError, match="shapes"):
        compare(np.ones((2, 3)), np.ones((2, 1)))
