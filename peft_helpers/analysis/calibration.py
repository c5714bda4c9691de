"""How sure the tuned model may be, and what it makes of texts: fitted on validation, kept with the adapter."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logit, softmax
from sklearn.metrics import precision_recall_curve
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import PredictionOutput

from peft_helpers.interruptions import CALIBRATION_FILE
from peft_helpers.metrics import compute_metrics, predicted_labels
from peft_helpers.tokenization import Text, tokenize_batch
from peft_helpers.training import make_arguments, predict

# Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599.
BINS = 15  # of confidence, of equal width
LOWEST, HIGHEST = 0.25, 10.0  # temperatures; where every validation prediction is right, the best one would be 0


@dataclass(frozen=True)
class Calibration:
    """Probabilities are softmax(logits / temperature); of two labels it is ``label`` from the ``threshold`` on."""

    temperature: float = 1.0
    threshold: float = 0.5
    label: int = 1

    def __post_init__(self) -> None:
        if not (LOWEST <= self.temperature <= HIGHEST and 0 < self.threshold < 1 and self.label in (0, 1)):
            raise ValueError(f"{self}; expected a temperature from {LOWEST} to {HIGHEST}, a threshold within 0 and 1")

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Return logits of which the largest is that of the label decided for, shape (examples, labels)."""
        return logits - self.temperature * logit(self.threshold) * np.eye(logits.shape[-1])[self.label]

    def apply(self, output: PredictionOutput) -> PredictionOutput:
        """Return ``output`` of `predict` with the logits of `decide`, and their metrics."""
        if self.threshold == 0.5:
            return output
        decided = output._replace(predictions=self.decide(output.predictions))
        scores = {f"test_{name}": score for name, score in compute_metrics(decided).items()}
        return decided._replace(metrics=output.metrics | scores)

    def save(self, folder: str | Path) -> None:
        """Write it into the adapter's folder, unless it is `AS_IT_IS`."""
        if self != AS_IT_IS:
            Path(folder, CALIBRATION_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, adapter_dir: str | Path) -> "Calibration":
        """Return that of a saved adapter, or `AS_IT_IS`; a file that cannot be used is a ValueError."""
        path = Path(adapter_dir, CALIBRATION_FILE)
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else AS_IT_IS
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be used ({error}); copy the folder or save the adapter again.") from error


AS_IT_IS = Calibration()


def calibrate(output: EvalPrediction | None, tune_threshold: bool = False) -> Calibration:
    """Return what suits ``output`` of `predict` on the validation examples; a language model, None, has nothing."""
    if output is None:
        return AS_IT_IS
    temperature = fit_temperature(output)
    return Calibration(temperature, *(choose_threshold(output, temperature) if tune_threshold else ()))


def fit_temperature(output: EvalPrediction) -> float:
    """Return the temperature, from `LOWEST` to `HIGHEST`, of the least cross-entropy (Guo et al. 2017)."""

    def cross_entropy(temperature: float) -> float:
        logs = log_softmax(output.predictions / temperature, axis=-1)
        return -np.take_along_axis(logs, output.label_ids[:, None], axis=-1).mean(dtype=float)

    return float(minimize_scalar(cross_entropy, bounds=(LOWEST, HIGHEST), method="bounded").x)


def rarer_label(label_ids: np.ndarray) -> int:
    """Return which of two labels, 0 or 1, occurs less often; 1 where they are even."""
    return int(np.mean(label_ids) <= 0.5)


def choose_threshold(output: EvalPrediction, temperature: float = 1.0) -> tuple[float, int]:
    """Return the threshold of the best F1 of `rarer_label`, and that label; 0.5 where it does not occur."""
    label = rarer_label(output.label_ids)
    probabilities = softmax(output.predictions.astype(float) / temperature, axis=-1)[:, label]
    if not (is_rarer := output.label_ids == label).any():
        return 0.5, label
    precision, recall, thresholds = precision_recall_curve(is_rarer, probabilities)
    best = np.argmax(precision * recall / np.maximum(precision + recall, 1e-12))
    halfway = (thresholds[best] + (thresholds[best - 1] if best else 0)) / 2
    return float(np.clip(halfway, 1e-6, 1 - 1e-6)), label


def calibration_errors(output: EvalPrediction, temperature: float) -> dict[str, float]:
    """Return by how much accuracy and confidence differ over `BINS` intervals of confidence, 0 to 1 (Guo et al. 2017).

    That is ``before`` and ``after`` dividing by the temperature, and ``by_chance`` if the probabilities are right: the
    right answers of an interval are then close to normal, and their mean absolute deviation is sqrt(2 / pi) sigma.
    """
    right, errors = predicted_labels(output) == output.label_ids, {}
    for name, value in {"before": 1.0, "after": temperature}.items():
        confidence = softmax(output.predictions / value, axis=-1).max(axis=-1)
        intervals = np.ceil(BINS * confidence).astype(int)
        errors[name] = float(np.abs(np.bincount(intervals, right - confidence)).sum() / len(right))
    variances = np.bincount(intervals, confidence * (1 - confidence))  # of the last ones, with the temperature
    return errors | {"by_chance": float(np.sqrt(2 / np.pi * variances).sum() / len(right))}


def classify_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[Text], calibration: Calibration = AS_IT_IS
) -> pd.DataFrame:
    """Return a row for each text, or pair: the predicted label, its probability, and the probability of every label.

    A text is truncated or read in chunks as in `tokenize_dataset`; the tokenizer that is saved with the adapter knows.
    What cannot be read is a ValueError of `encode_texts`.
    """
    dataset = Dataset.from_dict(tokenize_batch({"text": texts, "label": [0] * len(texts)}, tokenizer, chunks=False))
    logits = predict(model, tokenizer, dataset, make_arguments(bf16=False, disable_tqdm=True)).predictions
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    best, probabilities = calibration.decide(logits).argmax(axis=1), softmax(logits / calibration.temperature, axis=1)
    columns = {"text": list(texts), "label": [names[label] for label in best]}
    columns |= {"probability": probabilities[np.arange(len(best)), best]}
    return pd.DataFrame(columns | {f"P({name})": column for name, column in zip(names, probabilities.T, strict=True)})
