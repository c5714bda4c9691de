"""From a raw data set to train, validation and test splits with the columns ``text`` and ``label``."""

import gzip
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from peft_helpers.config import RunConfig

# What pandas would read as a missing value ("NA", "null", "None") is a text or a label like any other.
_CSV = {"path": "csv", "keep_default_na": False}
# A tab-separated file has no quoting (IANA text/tab-separated-values; GLUE's files): a quote is a character.
_TSV = _CSV | {"sep": "\t", "quoting": 3}
_BUILDERS = {".csv": _CSV, ".tsv": _TSV, ".json": {"path": "json"}, ".jsonl": {"path": "json"},
             ".parquet": {"path": "parquet"}}  # fmt: skip
_SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}


def load_dataset_arguments(config: RunConfig) -> dict:
    """Return the arguments with which ``datasets.load_dataset`` loads ``config.dataset_name``.

    A file becomes the split ``train``; in a folder, each file is (a part of) the split that its name begins with.

    Raises:
        FileNotFoundError: the name looks like a path and there is no such file, or the folder holds no data file.
        ValueError: a file is empty, or the files of a folder are not of one kind.
    """
    path = Path(config.dataset_name)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if _extension(file) in _BUILDERS]
        splits = [_split_name(file) for file in files]
    elif path.is_file() and _extension(path) in _BUILDERS:
        files, splits = [path], ["train"]
    elif path.exists() or path.is_absolute() or _extension(path) in _BUILDERS or config.dataset_name.startswith("."):
        files, splits = [], []
    else:
        return {"path": config.dataset_name, "name": config.dataset_config_name}
    if not files:
        raise FileNotFoundError(
            f"dataset_name is {config.dataset_name!r}: no data file there. Expected a file or a folder of files that "
            f"end in {', '.join(_BUILDERS)}{_what_is_there(path)}."
        )
    return _local_files_arguments(files, splits)


def _local_files_arguments(files: list[Path], splits: list[str]) -> dict:
    extensions = {_extension(file) for file in files}
    if len(extensions) > 1:
        raise ValueError(f"The files {[file.name for file in files]} are of several kinds; keep one of them.")
    empty = [str(file) for file in files if not _has_rows(file)]
    if empty:
        raise ValueError(
            f"{', '.join(empty)} is empty: expected at least one row, and a header before it in csv or tsv."
        )
    data_files = {split: [str(f) for f, s in zip(files, splits, strict=True) if s == split] for split in splits}
    return _BUILDERS[extensions.pop()] | {"data_files": data_files}


def _has_rows(file: Path) -> bool:
    if _extension(file) == ".parquet":
        return file.stat().st_size > 0
    with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
        beginning = [line for line in islice(lines, 2) if line.strip() not in (b"", b"[]")]
    return len(beginning) == 2 or (len(beginning) == 1 and _extension(file) not in (".csv", ".tsv"))


def _extension(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix


def _split_name(path: Path) -> str:
    stem = re.match(r"[a-z]*", path.name.lower())[0]  # train-00000-of-00002.parquet is a part of train
    return _SPLIT_NAMES.get(stem, stem)


def _what_is_there(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    names = sorted(entry.name for entry in folder.iterdir())[:10] if folder.is_dir() else []
    return f"; {folder} holds {', '.join(names) or 'nothing'}" if folder.is_dir() else f"; there is no folder {folder}"


def prepare_splits(raw: DatasetDict, config: RunConfig) -> DatasetDict:
    """Return train, validation and test with the columns ``text`` (string) and ``label`` (``ClassLabel``).

    Rows without a text (None) or label (None, NaN, empty or -1) are dropped, and a line says how many. A data set whose
    ``test`` has no labels is tested on its ``validation``; what is then missing is carved, stratified, out of
    ``train``: a fifth for the test, a tenth but at most 1,000 rows for the validation. A text that occurs in the test
    is dropped from the other two, one that occurs in the validation from train.

    Raises:
        ValueError: a column cannot be told or found, a split is empty, there is one label only, or a label to be tested
            on never occurs in train.
    """
    if "train" not in raw:
        raise ValueError(f"The data set has the splits {list(raw)}; expected one named train.")
    text_column, label_column = find_columns(raw["train"], config.text_column, config.label_column)
    labelled = encode_labels(raw, text_column, label_column)
    splits = _drop_straddling_texts(_carve_missing_splits(labelled, config.seed))
    limits = {"train": config.max_train_rows, "validation": config.max_eval_rows, "test": config.max_eval_rows}
    dataset = DatasetDict({name: _take(splits[name], limits[name], config.seed) for name in limits})
    _check_labels(dataset)
    return dataset


def find_columns(dataset: Dataset, text_column: str | None, label_column: str | None) -> tuple[str, str]:
    """Return the names of the text and the label column: those given, else the only candidates.

    A label column is a ``ClassLabel``, else named ``label``, else one in which values recur. A text column is named
    ``text``, else any other column of strings.

    Raises:
        ValueError: a named column does not exist, or there is not exactly one candidate; the message lists the columns.
    """
    if dataset.num_rows == 0:
        raise ValueError(f"The split train has no rows; its columns are {dataset.column_names}.")
    features = dataset.features
    label_column = _the_only("label_column", label_column, _label_candidates(dataset), features)
    strings = [name for name, feature in features.items() if getattr(feature, "dtype", None) in _STRINGS]
    texts = [name for name in strings if name != label_column]
    return _the_only("text_column", text_column, ["text"] if "text" in texts else texts, features), label_column


_STRINGS = ("string", "large_string", "string_view")


def _label_candidates(dataset: Dataset) -> list[str]:
    features = dataset.features
    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if named or "label" in features:
        return named or ["label"]
    plain = [name for name, feature in features.items() if isinstance(feature, Value)]
    return [name for name in plain if len(dataset.unique(name)) <= dataset.num_rows // 2]


def _the_only(option: str, given: str | None, candidates: list[str], features: Features) -> str:
    columns = ", ".join(features)
    if given is not None and given not in features:
        raise ValueError(f"{option} is {given!r}, which the data set lacks; its columns are {columns}.")
    if given is None and len(candidates) != 1:
        raise ValueError(f"Name the {option}: {candidates or 'no column'} could be it; the columns are {columns}.")
    return given or candidates[0]


def encode_labels(raw: DatasetDict, text_column: str, label_column: str) -> DatasetDict:
    """Return ``raw`` as ``text`` and ``label``, without the rows and splits that lack one of them.

    Labels of any type become a ``ClassLabel``; the names of one that exists, and their order, are kept.
    """
    renamed = {_SPLIT_NAMES.get(name, name): split for name, split in raw.items()}
    if len(renamed) < len(raw):
        raise ValueError(f"Several of the splits {list(raw)} are validation splits; keep one of them.")
    raw = DatasetDict(renamed)
    for name, split in raw.items():
        if missing := {text_column, label_column} - set(split.column_names):
            raise ValueError(f"The split {name} lacks {sorted(missing)}; its columns are {split.column_names}.")
    raw = raw.select_columns([text_column, label_column])
    names = _label_names(raw, label_column)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names.values()))})
    ids = {value: number for number, value in enumerate(names)}

    def encode(batch: dict[str, list]) -> dict[str, list]:
        rows = zip(batch[text_column], batch[label_column], strict=True)
        kept = [(text, ids[label]) for text, label in rows if text is not None and label in ids]
        return {"text": [text for text, _ in kept], "label": [label for _, label in kept]}

    encoded = raw.map(encode, batched=True, features=features, remove_columns=[text_column, label_column])
    for name in raw:
        if dropped := raw[name].num_rows - encoded[name].num_rows:
            print(f"{name}: {dropped:,} of {raw[name].num_rows:,} rows have no label or no text and are left out.")
    return DatasetDict({name: split for name, split in encoded.items() if split.num_rows})


def _label_names(raw: DatasetDict, column: str) -> dict[object, str]:
    """Map each label value to its name, in the order of the class numbers."""
    feature = raw["train"].features[column]
    if isinstance(feature, ClassLabel):
        return dict(enumerate(feature.names))
    if not isinstance(feature, Value):
        raise ValueError(f"The column {column!r} is of type {feature}; expected one label a row.")
    values = set().union(*(split.unique(column) for split in raw.values()))
    values = {value for value in values if value == value and value not in (None, "", -1)}  # NaN is not equal to itself
    if "-1" in values and all(re.fullmatch(r"-?\d+", value) for value in values):
        values.remove("-1")  # a csv with a blank label is read as strings
    fractions = [value for value in values if isinstance(value, float) and not value.is_integer()]
    if fractions:
        raise ValueError(f"The column {column!r} holds fractions such as {fractions[0]}; expected classes.")
    return {value: str(int(value) if isinstance(value, float) else value) for value in sorted(values)}


def _carve_missing_splits(labelled: DatasetDict, seed: int) -> dict[str, Dataset]:
    splits = dict(labelled)
    if "train" not in splits:
        raise ValueError("No row of the split train has both a text and a label.")
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    for name, share, at_most in (("test", 0.2, None), ("validation", 0.1, 1000)):
        if name not in splits:
            rows = splits["train"].num_rows * share
            splits["train"], splits[name] = _carve(splits["train"], round(min(rows, at_most or rows)), seed)
    return splits


def _carve(dataset: Dataset, rows: int, seed: int) -> tuple[Dataset, Dataset]:
    order = stratified_order(dataset["label"][:], seed)
    return dataset.select(np.sort(order[rows:])), dataset.select(np.sort(order[:rows]))


def _drop_straddling_texts(splits: dict[str, Dataset]) -> dict[str, Dataset]:
    seen: set[str] = set()
    for name in ("test", "validation", "train"):
        texts = splits[name]["text"][:]
        kept = [number for number, text in enumerate(texts) if text not in seen]
        if dropped := len(texts) - len(kept):
            print(f"{name}: {dropped:,} of {len(texts):,} rows have a text of another split and are left out.")
            splits[name] = splits[name].select(kept)
        seen.update(texts)
    return splits


def _take(dataset: Dataset, max_rows: int | None, seed: int) -> Dataset:
    if max_rows is None or max_rows >= dataset.num_rows:
        return dataset
    return dataset.select(np.sort(stratified_order(dataset["label"][:], seed)[:max_rows]))


def stratified_order(labels: list[int], seed: int) -> np.ndarray:
    """Return a random order of the rows, shape (rows,), of which every beginning has the classes' proportions.

    Unlike a stratified ``train_test_split``, it takes classes of one row and any number of rows, and a smaller subset
    lies within a larger one.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    frame = pd.DataFrame({"label": np.asarray(labels)[order]})
    groups = frame.groupby("label")["label"]
    quantile = (groups.cumcount() + 0.5) / groups.transform("size")
    return order[np.argsort(quantile.to_numpy(), kind="stable")]


def _check_labels(splits: DatasetDict) -> None:
    if empty := [name for name, rows in splits.items() if rows.num_rows == 0]:
        counts = {name: rows.num_rows for name, rows in splits.items()}
        raise ValueError(f"No rows are left for {' and '.join(empty)}: {counts}; the data set is too small.")
    label = splits["train"].features["label"]
    known = set(splits["train"].unique("label"))
    if len(known) < 2:
        raise ValueError(
            f"The split train has one label only, {label.int2str(known.pop())!r}; expected at least two. "
            "Note that -1 means 'no label'."
        )
    for name in ("validation", "test"):
        if unknown := set(splits[name].unique("label")) - known:
            raise ValueError(
                f"The split {name} has the labels {_names(label, unknown)}, which train lacks (its "
                f"{splits['train'].num_rows:,} rows have {_names(label, known)}); correct those rows, or take more of "
                "train."
            )


def _names(label: ClassLabel, numbers: set[int]) -> list[str]:
    return [label.int2str(number) for number in sorted(numbers)]


def count_classes(dataset: DatasetDict) -> pd.DataFrame:
    """Return the number of rows of each label (rows of the table) in each split (columns)."""
    names = dataset["train"].features["label"].names
    return pd.DataFrame(
        {split: np.bincount(rows["label"][:], minlength=len(names)) for split, rows in dataset.items()}, index=names
    )
