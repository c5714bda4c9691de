import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BAD, GOOD, LABELS
from datasets import Dataset, DatasetDict
from scipy.special import softmax
from sklearn.metrics import f1_score
from transformers.trainer_utils import PredictionOutput

from peft_helpers import Calibration, calibrate, classify_texts, compute_metrics, predict, run
from peft_helpers.analysis.calibration import (
    AS_IT_IS,
    HIGHEST,
    LOWEST,
    calibration_errors,
    choose_threshold,
    fit_temperature,
)
from peft_helpers.analysis.report import score
from peft_helpers.data import prepare_splits
from peft_helpers.metrics import predicted_labels


def draw(examples: int, temperature: float, labels: int = 3, bias: float = 0.0, seed: int = 0) -> PredictionOutput:
    """Logits that are ``temperature`` times as large as they may be, float32, and labels; ``bias`` makes 1 rarer."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((examples, labels)) - bias * np.eye(labels)[1]
    uniform = rng.random((examples, 1))
    drawn = (uniform > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1).clip(0, labels - 1)
    return PredictionOutput((temperature * logits).astype(np.float32), drawn, {"test_f1": -1.0, "test_loss": 0.5})


# Temperature


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_the_temperature_that_the_logits_were_made_with_is_found(temperature):
    assert fit_temperature(draw(5000, temperature)) == pytest.approx(temperature, rel=0.05)


def test_probabilities_of_other_examples_become_right():
    temperature = calibrate(draw(2000, 3.0)).temperature
    errors = calibration_errors(draw(20_000, 3.0, seed=1), temperature)
    assert errors["before"] > 0.15
    assert errors["after"] < 0.02


@pytest.mark.parametrize(
    ("logits", "labels", "bound"),
    [([[3, 0], [0, 3]], [0, 1], LOWEST), ([[3, 0]], [0], LOWEST), ([[3, 0], [0, 3]], [1, 0], HIGHEST)],
    ids=["all right", "one example", "all wrong"],
)
def test_a_temperature_without_an_optimum_stays_within_its_bounds(logits, labels, bound):
    found = calibrate(PredictionOutput(np.array(logits, np.float32), np.array(labels), {}), tune_threshold=True)
    assert found.temperature == pytest.approx(bound, rel=1e-3)
    assert LOWEST <= found.temperature <= HIGHEST
    assert 0 < found.threshold < 1


# Calibration error


def test_the_error_is_the_difference_of_confidence_and_accuracy_in_each_interval():
    # Two examples at 0.9 of which one is right, and two at 0.6, both right: (|0.5 - 0.9| + |1 - 0.6|) / 2.
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    output = PredictionOutput(logits, np.array([0, 1, 1, 1]), {})
    assert calibration_errors(output, 1.0)["before"] == pytest.approx(0.4)


def test_the_error_by_chance_is_that_of_right_probabilities():
    errors = pd.DataFrame([calibration_errors(draw(400, 1.0, seed=seed), 1.0) for seed in range(300)])
    assert errors["by_chance"].mean() == pytest.approx(errors["before"].mean(), rel=0.05)


# Threshold


@pytest.mark.parametrize(("bias", "rarer"), [(3.0, 1), (-3.0, 0)])
def test_the_threshold_has_the_best_f1_of_the_rarer_label(bias, rarer):
    output = draw(600, 2.0, labels=2, bias=bias)
    threshold, label = choose_threshold(output, temperature=2.0)
    probabilities, truth = softmax(output.predictions / 2.0, axis=1)[:, rarer], output.label_ids == rarer
    best = max(f1_score(truth, probabilities >= value) for value in np.unique(probabilities))
    assert label == rarer
    assert f1_score(truth, probabilities > threshold) == pytest.approx(best)
    assert best > f1_score(truth, probabilities > 0.5)


def test_what_is_decided_is_what_lies_above_the_threshold():
    output, calibration = draw(600, 2.0, labels=2, bias=2.0), Calibration(2.0, 0.2, 1)
    decided = calibration.apply(output)
    expected = softmax(output.predictions / 2.0, axis=1)[:, 1] > 0.2
    assert predicted_labels(decided).tolist() == expected.astype(int).tolist()
    assert decided.metrics["test_f1"] == compute_metrics(decided)["f1"]
    assert decided.metrics["test_loss"] == 0.5  # of the probabilities, which stay
    ranking = {"roc_auc", "rarer_ap"}
    assert {n: score(decided)[n] for n in ranking} == pytest.approx({n: score(output)[n] for n in ranking})


def test_without_a_threshold_nothing_changes():
    output = draw(10, 2.0)
    assert Calibration(2.0).apply(output) is output
    np.testing.assert_array_equal(Calibration(2.0).decide(output.predictions), output.predictions)


def test_extreme_logits_leave_the_threshold_between_0_and_1():
    output = PredictionOutput(np.array([[-500, 500], [500, -500], [-400, 400]], np.float32), np.array([1, 0, 0]), {})
    assert 0 < calibrate(output, tune_threshold=True).threshold < 1


# The file beside the adapter


def test_it_is_read_as_it_was_saved(tmp_path):
    assert Calibration.load(tmp_path) == AS_IT_IS
    AS_IT_IS.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    calibration = Calibration(1.7, 0.05, 0)
    calibration.save(tmp_path)
    assert Calibration.load(tmp_path) == calibration


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    "content",
    ["{", "[1]", "null", '{"temperature": 0}', '{"temperature": NaN}', '{"temperature": "1"}', '{"threshold": 1}',
     '{"label": 2}', '{"bias": 1}'],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_named(content, tmp_path):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ValueError, match=r"calibration\.json cannot be used .* save the adapter again"):
        Calibration.load(tmp_path)


# One label in twenty


@pytest.fixture
def imbalanced() -> DatasetDict:
    """One text in twenty is rare, and three have its words: as likely as not to be rare is none of them."""
    rng = np.random.default_rng(0)

    def split(name: str, rows: int) -> Dataset:
        texts = [f"{rng.choice(GOOD if row % 20 < 3 else BAD)} {name} {row}" for row in range(rows)]
        return Dataset.from_dict({"text": texts, "label": [["rare", "usual"][row % 20 > 0] for row in range(rows)]})

    return DatasetDict(train=split("a", 320), validation=split("b", 160), test=split("c", 160))


@pytest.mark.slow
def test_weights_and_a_threshold_find_more_of_the_rare_label(imbalanced, args):
    dataset = prepare_splits(imbalanced, args.replace(tune_threshold=True))
    options = {"per_device_train_batch_size": 16, "per_device_eval_batch_size": 160, "overwrite_output_dir": True}
    found = {}
    for name, changes in {
        "neither": {}, "weights": {"class_weights": "balanced"}, "threshold": {"tune_threshold": True},
    }.items():  # fmt: skip
        result = run(dataset, args.replace(**options, **changes))
        calibration = Calibration.load(args.training.output_dir)
        assert (calibration.threshold != 0.5) == (name == "threshold")
        found[name] = score(calibration.apply(result.tuned))["rarer_f1"]
    assert found["weights"] > found["neither"]
    assert found["threshold"] > found["neither"]


@pytest.mark.reliability("bad input")
def test_a_threshold_for_more_than_two_labels_is_refused_before_training(args):
    texts = [f"text {number}" for number in range(60)]
    raw = DatasetDict(train=Dataset.from_dict({"text": texts, "label": ["a", "b", "c"] * 20}))
    with pytest.raises(ValueError, match=r"tune_threshold takes two labels; found 3, \['a', 'b', 'c'\]. Leave it out"):
        prepare_splits(raw, args.replace(tune_threshold=True))


def test_the_file_can_be_read_by_others(tmp_path):
    Calibration(1.5, 0.25, 1).save(tmp_path)
    saved = json.loads((tmp_path / "calibration.json").read_text())
    assert saved == {"temperature": 1.5, "threshold": 0.25, "label": 1}


# Texts


def test_texts_get_a_label_and_probabilities_that_sum_to_one(peft_model, tokenizer):
    table = classify_texts(peft_model, tokenizer, ["good", "", "the cast is a joy to watch " * 40])
    probabilities = table[["P(negative)", "P(positive)"]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert table["label"].tolist() == [LABELS[best] for best in probabilities.argmax(axis=1)]
    np.testing.assert_array_equal(table["probability"], probabilities.max(axis=1))


def test_texts_get_the_probabilities_of_predict_alone_and_among_others(peft_model, tokenizer, tokenized, raw, args):
    logits = predict(peft_model, tokenizer, tokenized["test"], args).predictions
    expected = torch.tensor(logits).softmax(-1)[:, 1]
    texts = raw["test"]["text"][:]
    together = classify_texts(peft_model, tokenizer, texts)["P(positive)"]
    alone = [classify_texts(peft_model, tokenizer, [text])["P(positive)"][0] for text in texts[:3]]
    np.testing.assert_allclose(together, expected, atol=1e-5)
    np.testing.assert_allclose(alone, expected[:3], atol=1e-5)


def test_a_calibration_changes_probabilities_and_its_threshold_labels(peft_model, tokenizer, tokenized, raw, args):
    logits = torch.tensor(predict(peft_model, tokenizer, tokenized["test"], args).predictions)
    expected = (logits / 3).softmax(-1)[:, 1].numpy()
    ordered = np.sort(expected)
    widest = np.diff(ordered).argmax()
    threshold = float(ordered[[widest, widest + 1]].mean())
    table = classify_texts(peft_model, tokenizer, raw["test"]["text"][:], Calibration(3.0, threshold, 1))
    np.testing.assert_allclose(table["P(positive)"], expected, atol=1e-5)
    assert table["label"].tolist() == [LABELS[int(above)] for above in expected > threshold]
    assert table["probability"].tolist() == [row[f"P({row['label']})"] for row in table.to_dict("records")]


@pytest.mark.reliability("bad input")
def test_what_is_no_list_of_texts_cannot_be_classified(peft_model, tokenizer):
    with pytest.raises(ValueError, match="Expected a list of texts, found 'good'"):
        classify_texts(peft_model, tokenizer, "good")
