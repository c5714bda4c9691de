"""What a fine-tuned model has to beat: the majority class, a classical model, and the same model without training."""

import time

import numpy as np
import torch
import transformers
from datasets import DatasetDict
from scipy.special import log_softmax, logsumexp
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from peft_helpers.analysis.linear_probe import mean_hidden_states
from peft_helpers.analysis.plots import CLASSICAL, FROZEN, MAJORITY, PROMPTED
from peft_helpers.analysis.report import majority_class
from peft_helpers.arguments import Arguments
from peft_helpers.batches import batch_by_tokens
from peft_helpers.columns import join_texts
from peft_helpers.metrics import compute_metrics, predicted_labels
from peft_helpers.modeling import load_model, model_arguments, prepare_model
from peft_helpers.tokenization import tokenize_dataset
from peft_helpers.training import CLASSIFICATION

CONTENT_FREE = ("N/A", "", "[MASK]")  # as Zhao et al. 2021 take them
QUESTION = "\n\nThe text above is about"  # the best of 5 on BBC News' validation examples, second on SST-2
Answer = tuple[EvalPrediction, int]  # the output on the test examples, and the number of weights that were learned


def plan_baselines(args: Arguments) -> list[str]:
    """Return the names of all baselines, that of prompting only if the model is a language model."""
    architectures = transformers.AutoConfig.from_pretrained(args.model.model_name_or_path).architectures or []
    is_language_model = not set(architectures).isdisjoint(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return [name for name in BASELINES if name != PROMPTED or is_language_model]


def run_baseline(name: str, dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: Arguments) -> dict:
    """Return what a baseline reaches on the test examples, in the form of `run_method`'s results."""
    start = time.perf_counter()
    output, weights = BASELINES[name](dataset, tokenizer, args.replace(load_in_4bit=False))
    row = {"trainable_parameters": weights, "train_seconds": time.perf_counter() - start, "reload_verified": ""}
    return row | dict.fromkeys(("parameters", "peak_memory_mb", "adapter_mb"), np.nan) | score_predictions(output)


def classify_with_tfidf(dataset: DatasetDict, seed: int) -> Answer:
    """Return what TF-IDF and logistic regression answer."""
    texts, vectorizer = [join_texts(dataset[name][:]) for name in ("train", "test")], TfidfVectorizer(sublinear_tf=True)
    return _classify(dataset, vectorizer.fit_transform(texts[0]), vectorizer.transform(texts[1]), [1, 10, 100], seed)


def classify_with_features(dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: Arguments) -> Answer:
    """Return what logistic regression on `mean_hidden_states` answers."""
    model = load_model(args, tokenizer, CLASSIFICATION, dataset["test"].features["label"].names)
    splits = [tokenize_dataset(dataset[name], tokenizer) for name in ("train", "test")]
    train, test = (mean_hidden_states(model, tokenizer, split, args) for split in splits)
    scaler = StandardScaler().fit(train)  # a few of GPT-2's hidden units are hundreds of times larger than the others
    strengths = [0.001, 0.01, 0.1, 1]
    return _classify(dataset, scaler.transform(train), scaler.transform(test), strengths, args.training.seed)


def _classify(dataset: DatasetDict, train: np.ndarray, test: np.ndarray, strengths: list[float], seed: int) -> Answer:
    """Return what logistic regression on the features of train answers, its C chosen from ``strengths`` on train."""
    label, labels = dataset["train"].features["label"], np.asarray(dataset["train"]["label"][:])
    folds = int(np.clip(np.unique(labels, return_counts=True)[1].min(), 2, 5))
    folds = StratifiedKFold(folds, shuffle=True, random_state=seed)
    model = LogisticRegression(solver="newton-cg", max_iter=1000)  # on TF-IDF several times as fast as the default
    search = GridSearchCV(model, {"C": strengths}, cv=folds, scoring="f1_macro", error_score=0)  # a fold of one label
    classifier = search.fit(train, labels).best_estimator_
    probabilities = np.zeros((dataset["test"].num_rows, label.num_classes))
    probabilities[:, classifier.classes_] = classifier.predict_proba(test)
    output = EvalPrediction(probabilities, np.asarray(dataset["test"]["label"][:]))
    return output, classifier.coef_.size + classifier.intercept_.size


def classify_with_prompts(dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: Arguments) -> Answer:
    """Return how likely the language model finds the name of each label after each test text and `QUESTION`.

    The scores are log-probabilities in nats, minus those that inputs without content get on average: contextual
    calibration (Zhao et al. 2021, arXiv 2102.09690). Names such as 0 and LABEL_1 mean nothing to it: it can only guess.
    """
    names, test = dataset["test"].features["label"].names, dataset["test"]
    arguments = model_arguments(args.model) | {"dtype": args.training.dtype}
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model.model_name_or_path, **arguments)
    prepare_model(model.to(args.training.device), tokenizer)
    words = [QUESTION, *(f" {name}" for name in names)]
    question, *answers = tokenizer(words, add_special_tokens=False)["input_ids"]
    texts = tokenizer([*CONTENT_FREE, *join_texts(test[:])], truncation=True)["input_ids"]
    pairs = [([*text, *question], answer) for text in texts for answer in answers]
    scores = score_answers(model, tokenizer, pairs, args.training.eval_batch_size).reshape(len(texts), -1)
    free, scores = np.split(log_softmax(scores, axis=-1), [len(CONTENT_FREE)])
    return EvalPrediction(scores - logsumexp(free, axis=0), np.asarray(test["label"][:])), 0


@torch.inference_mode()
def score_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[list[int], list[int]]], max_rows: int
) -> np.ndarray:
    """Return the log-probability, in nats, of each answer after its prompt, both as token ids, shape (pairs,)."""
    last = getattr(model.config, "max_position_embeddings", None) or 0  # of a prompt too long for the model, the end
    rows = [
        {"input_ids": [*prompt, *answer][-last:], "labels": [*[-100] * len(prompt), *answer][-last:]}
        for prompt, answer in pairs
    ]
    lengths, scores = np.array([len(row["labels"]) for row in rows]), []
    order, collate = np.argsort(-lengths), transformers.DataCollatorForSeq2Seq(tokenizer)
    for batch in batch_by_tokens(lengths[order].tolist(), max_rows):
        inputs = collate([rows[number] for number in order[batch]]).to(model.device)
        labels = inputs.pop("labels")
        kept = labels.shape[1] - (labels >= 0).int().argmax(1).min() + 1  # from the end of the shortest prompt on
        logits = model(**inputs, logits_to_keep=int(kept)).logits[:, :-1].float().transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(logits, labels[:, 1 - kept :], reduction="none")
        scores.append(-losses.sum(1).cpu())
    return torch.cat(scores).numpy()[np.argsort(order)]


def score_predictions(output: EvalPrediction) -> dict[str, float | list[int]]:
    """Return what every result has: `compute_metrics`, and ``predictions``, label numbers, shape (examples,)."""
    return compute_metrics(output) | {"predictions": predicted_labels(output).tolist()}


BASELINES = {
    MAJORITY: lambda dataset, tokenizer, args: (majority_class(dataset), 0),
    CLASSICAL: lambda dataset, tokenizer, args: classify_with_tfidf(dataset, args.training.seed),
    FROZEN: classify_with_features,
    PROMPTED: classify_with_prompts,
}
