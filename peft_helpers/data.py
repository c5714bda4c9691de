"""From a raw data set to train, validation and test splits with the columns ``text`` and ``label``."""

import re

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value

from peft_helpers.arguments import Arguments

SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}
_PROBED_ROWS = 100_000  # in which a label has to recur


def prepare_splits(raw: DatasetDict, args: Arguments) -> DatasetDict:
    """Return train, validation and test with the columns ``text`` (string) and ``label`` (``ClassLabel``).

    Rows without a text (None or blank) or label (None, NaN, blank or -1) are dropped, and a line says how many. A data
    set whose ``test`` has no labels is tested on its ``validation``; what is then missing is carved, stratified, out of
    ``train``: a fifth for the test; for the validation a tenth, but at most 1,000 rows, and where ``max_train_samples`` is
    set a tenth of that, at least 100. A text that occurs in the test is dropped from the other two, one that occurs in
    the validation from train. Within a split, texts that recur are kept, and a line says how many do so with another
    label.

    Raises:
        ValueError: a column cannot be told or found or is of no use, a split is empty, there is one label only, or a
            label to be tested on never occurs in train.
    """
    if isinstance(raw, IterableDatasetDict):
        raise ValueError("A streamed data set has no tables to split; take prepare_stream, or leave out --streaming.")
    check_train(raw)
    text_column, label_column = find_columns(raw["train"], args.data.text_column, args.data.label_column)
    labelled = encode_labels(raw, text_column, label_column)
    splits = _drop_straddling_texts(_carve_missing_splits(labelled, args))
    _report_contradictions(splits)
    limits = {
        "train": args.data.max_train_samples,
        "validation": args.data.max_eval_samples,
        "test": args.data.max_eval_samples,
    }
    dataset = DatasetDict({name: _take(splits[name], limits[name], args.training.seed) for name in limits})
    _check_labels(dataset)
    return dataset


def check_train(raw: DatasetDict | IterableDatasetDict) -> None:
    """Check that there is a split named ``train``.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if "train" not in raw:
        raise ValueError(f"The data set has the splits {list(raw)}; expected one named train.")


def find_columns(dataset: Dataset, text_column: str | None, label_column: str | None) -> tuple[str, str]:
    """Return the names of the text and the label column: those given, else the only candidates.

    A label column is a ``ClassLabel``, else named ``label``, else one in which values recur (in the first 100,000 rows,
    of which there are more rows than two for each value). A text column is named
    ``text``, else any other column of strings.

    Raises:
        ValueError: a named column does not exist or holds no texts, or there is not exactly one candidate; the message
            lists the columns.
    """
    if dataset.num_rows == 0:
        raise ValueError(f"The split train has no rows; its columns are {dataset.column_names}.")
    features = dataset.features
    label_column = _the_only("label_column", label_column, _label_candidates(dataset), features)
    texts = [name for name, feature in features.items() if is_string(feature) and name != label_column]
    text_column = _the_only("text_column", text_column, ["text"] if "text" in texts else texts, features)
    if not is_string(features[text_column]):
        raise ValueError(f"The text_column {text_column!r} is of type {features[text_column]}; expected strings.")
    return text_column, label_column


def is_string(feature: object) -> bool:
    """Tell whether a column's feature is one of Arrow's strings: pandas and polars write other ones than datasets."""
    return getattr(feature, "dtype", None) in ("string", "large_string", "string_view")


def _label_candidates(dataset: Dataset) -> list[str]:
    features = dataset.features
    named = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if named or "label" in features:
        return named or ["label"]
    plain = [name for name, feature in features.items() if isinstance(feature, Value)]
    probed = dataset.select(range(min(dataset.num_rows, _PROBED_ROWS)))
    return [name for name in plain if len(set(probed[name])) <= probed.num_rows // 2]


def _the_only(option: str, given: str | None, candidates: list[str], features: Features) -> str:
    if given is not None and given not in features:
        raise ValueError(f"{option} is {given!r}, which the data set lacks; its columns are {', '.join(features)}.")
    if given is None and len(candidates) != 1:
        columns = ", ".join(f"{name}: {getattr(feature, 'dtype', feature)}" for name, feature in features.items())
        raise ValueError(
            f"Name the {option}: {candidates or 'no column'} could be it; the columns are {columns}. Expected strings "
            "for the text, and for the label values that recur."
        )
    return given or candidates[0]


def encode_labels(raw: DatasetDict, text_column: str, label_column: str) -> DatasetDict:
    """Return ``raw`` as ``text`` and ``label``, without the rows and splits that lack one of them.

    Labels of any type become a ``ClassLabel``; the names of one that exists, and their order, are kept. Blanks around a
    label are no part of it.
    """
    raw = DatasetDict(rename_splits(raw))
    for name, split in raw.items():
        if missing := {text_column, label_column} - set(split.column_names):
            raise ValueError(f"The split {name} lacks {sorted(missing)}; its columns are {split.column_names}.")
    raw = raw.select_columns([text_column, label_column])
    _check_label_types(raw, label_column)
    names = _label_names(raw, label_column)
    label = ClassLabel(names=list(dict.fromkeys(names.values())))
    ids = {value: label.str2int(name) for value, name in names.items()}

    def encode(batch: dict[str, list]) -> dict[str, list]:
        rows = zip(batch[text_column], batch[label_column], strict=True)
        kept = [(text, ids[label]) for text, label in rows if text and text.strip() and label in ids]
        return {"text": [text for text, _ in kept], "label": [label for _, label in kept]}

    features = Features({"text": Value("string"), "label": label})
    encoded = raw.map(encode, batched=True, features=features, remove_columns=[text_column, label_column])
    for name in raw:
        if dropped := raw[name].num_rows - encoded[name].num_rows:
            print(f"{name}: {dropped:,} of {raw[name].num_rows:,} rows have no label or no text and are left out.")
    return DatasetDict({name: split for name, split in encoded.items() if split.num_rows})


def rename_splits(raw: DatasetDict | IterableDatasetDict) -> dict[str, Dataset | IterableDataset]:
    """Return the splits of ``raw``, with the name ``validation`` in place of ``valid``, ``val`` and ``dev``.

    Raises:
        ValueError: there are several of them.
    """
    renamed = {SPLIT_NAMES.get(name, name): split for name, split in raw.items()}
    if len(renamed) < len(raw):
        raise ValueError(f"Several of the splits {list(raw)} are validation splits; keep one of them.")
    return renamed


def _check_label_types(raw: DatasetDict, column: str) -> None:
    features = {name: split.features[column] for name, split in raw.items()}
    for feature in features.values():
        if not isinstance(feature, ClassLabel | Value):
            raise ValueError(
                f"The column {column!r} is of type {feature}; expected one label a row, of one type in all rows."
            )
    kinds = {
        name: feature.names if isinstance(feature, ClassLabel) else "strings" if is_string(feature) else "numbers"
        for name, feature in features.items()
        if feature.dtype != "null"
    }
    if any(kind != kinds.get("train", kind) for kind in kinds.values()):
        raise ValueError(f"The column {column!r} differs between the splits: {kinds}; cast it to one type.")


def _label_names(raw: DatasetDict, column: str) -> dict[object, str]:
    """Map each label value to its name, in the order of the class numbers."""
    feature = raw["train"].features[column]
    if isinstance(feature, ClassLabel):
        return dict(enumerate(feature.names))
    values = set().union(*(split.unique(column) for split in raw.values()))
    return name_labels(column, values, sum(split.num_rows for split in raw.values()))


def name_labels(column: str, values: set, rows: int) -> dict[object, str]:
    """Map each of the ``values`` in a label column to its name, in the order of the class numbers.

    What stands for "no label" is left out: None, NaN, blank, -1.

    Raises:
        ValueError: there are fractions among them, or more labels than half of the ``rows``.
    """
    stripped = {value: value.strip() if isinstance(value, str) else value for value in values}
    labels = {label for label in stripped.values() if label == label and label not in (None, "", -1)}  # NaN != NaN
    if "-1" in labels and all(re.fullmatch(r"-?\d+", label) for label in labels):
        labels.remove("-1")  # a csv with a blank label is read as strings
    _check_label_values(column, labels, rows)
    known = sorted((value for value in values if stripped[value] in labels), key=stripped.get)
    return {value: str(int(value)) if isinstance(value, float) else str(stripped[value]) for value in known}


def _check_label_values(column: str, labels: set, rows: int) -> None:
    fractions = [label for label in labels if isinstance(label, float) and not label.is_integer()]
    if fractions:
        raise ValueError(f"The column {column!r} holds fractions such as {fractions[0]}; expected classes.")
    if len(labels) > rows / 2:
        raise ValueError(
            f"The column {column!r} has {len(labels):,} labels in {rows:,} rows; expected classes that recur. Name "
            "another label_column."
        )


def _carve_missing_splits(labelled: DatasetDict, args: Arguments) -> dict[str, Dataset]:
    splits = dict(labelled)
    if "train" not in splits:
        raise ValueError("No row of the split train has both a text and a label.")
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    if "test" not in splits:
        splits["train"], splits["test"] = _carve(
            splits["train"], round(splits["train"].num_rows * 0.2), args.training.seed
        )
    if "validation" not in splits:
        most = 1000 if args.data.max_train_samples is None else min(1000, max(100, args.data.max_train_samples // 10))
        rows = min(most, round(splits["train"].num_rows * 0.1))
        splits["train"], splits["validation"] = _carve(splits["train"], rows, args.training.seed)
    return splits


def _carve(dataset: Dataset, rows: int, seed: int) -> tuple[Dataset, Dataset]:
    order = stratified_order(_labels(dataset), seed)
    return dataset.select(np.sort(order[rows:])), dataset.select(np.sort(order[:rows]))


def _drop_straddling_texts(splits: dict[str, Dataset]) -> dict[str, Dataset]:
    seen = np.array([], dtype=np.uint64)
    for name in ("test", "validation", "train"):
        hashes = hash_column(splits[name])
        kept = ~np.isin(hashes, seen)
        if dropped := len(kept) - kept.sum():
            print(f"{name}: {dropped:,} of {len(kept):,} rows have a text of another split and are left out.")
            splits[name] = splits[name].select(np.flatnonzero(kept))
        seen = np.concatenate([seen, hashes])
    return splits


def hash_texts(texts: list[str]) -> np.ndarray:
    """Return a number of 64 bits for each text, the same in every process: what is remembered in place of the texts.

    Among 1,000,000 texts, two that differ have the same number with a probability of 3e-8.
    """
    return pd.util.hash_array(np.asarray(texts, dtype=object), categorize=False)


def hash_column(dataset: Dataset) -> np.ndarray:
    """Return `hash_texts` of the column ``text``, read in parts."""
    parts = [hash_texts(batch["text"]) for batch in dataset.select_columns("text").iter(batch_size=1000)]
    return np.concatenate([np.array([], dtype=np.uint64), *parts])


def _labels(dataset: Dataset) -> np.ndarray:
    # In parts: datasets gathers selected rows by a list of Python's numbers.
    parts = dataset.select_columns("label").with_format("arrow").iter(batch_size=10_000)
    return np.concatenate([np.array([], dtype=np.int64), *(part["label"].to_numpy() for part in parts)])


def _report_contradictions(splits: dict[str, Dataset]) -> None:
    for name, rows in splits.items():
        hashes, labels = hash_column(rows), _labels(rows)
        order = np.lexsort((labels, hashes))
        hashes, labels = hashes[order], labels[order]
        several = np.unique(hashes[1:][(hashes[1:] == hashes[:-1]) & (labels[1:] != labels[:-1])]).size
        if several:
            print(f"{name}: {several:,} texts occur with different labels; all of these rows are kept.")


def _take(dataset: Dataset, max_rows: int | None, seed: int) -> Dataset:
    if max_rows is None or max_rows >= dataset.num_rows:
        return dataset
    return dataset.select(np.sort(stratified_order(_labels(dataset), seed)[:max_rows]))


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order of the rows, shape (rows,), of which every beginning has the classes' proportions.

    With two classes, each is within one row of its share; with C, within (1 + C * share) / 2 rows.

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
    known = set(np.unique(_labels(splits["train"])).tolist())
    if len(known) < 2:
        raise ValueError(
            f"The split train has one label only, {label.int2str(known.pop())!r}; expected at least two. "
            "Note that -1 means 'no label'."
        )
    for name in ("validation", "test"):
        if unknown := set(np.unique(_labels(splits[name])).tolist()) - known:
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
        {split: np.bincount(_labels(rows), minlength=len(names)) for split, rows in dataset.items()}, index=names
    )
