"""What a fine-tuned model has to beat: the majority class, and a classical model that trains in seconds."""

import time

import numpy as np
from datasets import DatasetDict
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from transformers import EvalPrediction

from peft_helpers.analysis.plots import CLASSICAL, MAJORITY
from peft_helpers.analysis.report import majority_class
from peft_helpers.columns import join_texts
from peft_helpers.comparison.tables import describe_result
from peft_helpers.metrics import compute_metrics, predicted_labels


def run_baselines(dataset: DatasetDict, seed: int) -> list[dict]:
    """Return the results of the majority class and of `classify_with_tfidf`, in the form of `run_method`'s."""
    common = {"seed": seed, "error": None, "reload_verified": "", "trainable_parameters": 0, "train_seconds": 0.0}
    common |= dict.fromkeys(("parameters", "peak_memory_mb", "adapter_mb"), np.nan)
    majority = common | {"method": MAJORITY} | score_predictions(majority_class(dataset))
    classical, start = common | {"method": CLASSICAL}, time.perf_counter()
    try:
        output, weights = classify_with_tfidf(dataset, seed)
        costs = {"trainable_parameters": weights, "train_seconds": time.perf_counter() - start}
        classical |= costs | score_predictions(output)
    except ValueError as error:  # texts without a word, or one example per label
        classical["error"] = f"{type(error).__name__}: {error}"
        print(describe_result(classical))
    return [majority, classical]


def classify_with_tfidf(dataset: DatasetDict, seed: int) -> tuple[EvalPrediction, int]:
    """Return the output of TF-IDF and logistic regression on the test examples, and its number of weights.

    Cross-validation on the training examples chooses the strength of its regularization.
    """
    train, test, labels = dataset["train"], dataset["test"], np.asarray(dataset["train"]["label"][:])
    folds = int(np.clip(np.unique(labels, return_counts=True)[1].min(), 2, 5))
    search = GridSearchCV(
        make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [1, 10, 100]},
        scoring="f1_macro",
        cv=StratifiedKFold(folds, shuffle=True, random_state=seed),
    ).fit(join_texts(train[:]), labels)
    probabilities = np.zeros((test.num_rows, train.features["label"].num_classes))
    probabilities[:, search.classes_] = search.predict_proba(join_texts(test[:]))
    classifier, references = search.best_estimator_[-1], np.asarray(test["label"][:])
    return EvalPrediction(probabilities, references), classifier.coef_.size + classifier.intercept_.size


def score_predictions(output: EvalPrediction) -> dict[str, float | list[int]]:
    """Return what every result has: `compute_metrics`, and ``predictions``, label numbers, shape (examples,)."""
    return compute_metrics(output) | {"predictions": predicted_labels(output).tolist()}
