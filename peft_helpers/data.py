"""Any dataset to train, validation and test splits with the columns ``text``, for pairs ``text_pair``, ``label``."""

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value, concatenate_datasets

from peft_helpers.arguments import Arguments, DataArguments
from peft_helpers.columns import find_columns, join_texts, name_labels, order_names


def prepare_splits(raw: DatasetDict, args: Arguments) -> DatasetDict:
    """Return train, validation and test with ``text``, of pairs ``text_pair`` (strings), ``label`` (``ClassLabel``).

    Rows without a text (None or blank) or label (None, NaN, blank or -1) are dropped. If ``test`` has no labels,
    ``validation`` takes its place. Missing splits are carved, stratified, out of ``train``: a fifth for the test; for
    the validation a tenth, but at most 1,000 rows, and with ``max_train_samples`` a tenth of that, at least 100. A text
    or pair in several splits is kept in the test, else in the validation. What is dropped is printed. An unusable
    column, an empty split, one label only, or a label to be tested on that train lacks is a ValueError.
    """
    if isinstance(next(iter(raw.values()), None), IterableDataset):
        raise ValueError("A streamed dataset has no tables to split; use prepare_stream, or leave out --streaming.")
    dataset, rows = read_rows(rename_splits(raw), args.data)
    label_names = dataset.features["label"].names
    if args.training.tune_threshold and len(label_names) != 2:
        raise ValueError(f"tune_threshold takes two labels; found {len(label_names)}, {label_names[:5]}. Leave it out.")
    seed = args.training.seed
    rows = carve_missing_splits(rows, args.data.max_train_samples, seed)
    rank = rows["split"].map({"test": 0, "validation": 1, "train": 2})
    rows = keep_rows(rows, rank == rank.groupby(rows["text"]).transform("min"), "have a text of another split")
    limits = {"train": args.data.max_train_samples} | dict.fromkeys(("validation", "test"), args.data.max_eval_samples)
    splits = {name: take_stratified(rows[rows["split"] == name], limit, seed) for name, limit in limits.items()}
    _check_labels({name: split["label"] for name, split in splits.items()}, label_names)
    return DatasetDict({name: dataset.select(split.index) for name, split in splits.items()})


def read_rows(
    splits: dict[str, Dataset], data: DataArguments, label_names: list[str] | None = None
) -> tuple[Dataset, pd.DataFrame]:
    """Return all splits as one dataset, and the rows of it that have a text and a label.

    The table has each row's split (``split``), a hash of its text (``text``) and the number of its label (``label``),
    which are those of ``label_names``, or as the data have them. The texts stay on disk.
    """
    names, label_column = find_columns(next(iter(splits.values())), data)
    splits = {name: split.select_columns([*names, label_column]) for name, split in splits.items()}
    texts = [split.select_columns([*names]).rename_columns(names) for split in splits.values()]
    strings = Features(dict.fromkeys(names.values(), Value("string")))
    texts = concatenate_datasets([split.cast(strings) for split in texts])
    labels = [name_labels(split[label_column][:], split.features[label_column]) for split in splits.values()]
    hashes = [hash_texts(join_texts(batch)) for batch in texts.iter(batch_size=1000)]
    rows = pd.DataFrame({"text": np.concatenate(hashes), "label": pd.concat(labels, ignore_index=True)})
    rows["split"] = np.repeat(list(splits), [split.num_rows for split in splits.values()])
    label_names = label_names or order_names(rows["label"], next(iter(splits.values())).features[label_column])
    if unknown := sorted(set(rows["label"].dropna()) - {*label_names, "-1"}):
        raise ValueError(
            f"The labels {unknown[:5]} are not among {label_names}; correct those rows, or name another label_column."
        )
    rows["label"] = pd.Index(label_names).get_indexer(rows["label"])
    dataset = texts.add_column("label", rows["label"].to_numpy(), feature=ClassLabel(names=label_names))
    has_both = (rows["label"] >= 0) & (rows["text"] != hash_texts([""])[0])
    return dataset, keep_rows(rows, has_both, "have no label or no text")


def rename_splits(raw: DatasetDict) -> dict[str, Dataset | IterableDataset]:
    """Return train, validation (also named ``valid``, ``val`` or ``dev``) and test, as far as ``raw`` has them."""
    renamed = {"validation" if name in ("valid", "val", "dev") else name: split for name, split in raw.items()}
    if "train" not in renamed or len(renamed) < len(raw):
        raise ValueError(f"The dataset has the splits {list(raw)}; expected train, and at most one for validation.")
    return {name: split for name, split in renamed.items() if name in ("train", "validation", "test")}


def hash_texts(texts: list[str]) -> np.ndarray:
    """Return 64 bits for each text without the blanks around it; two of 1,000,000 share them with p = 3e-8."""
    return pd.util.hash_array(np.array([text.strip() for text in texts], dtype=object), categorize=False)


def keep_rows(rows: pd.DataFrame, kept: pd.Series, why_others_go: str) -> pd.DataFrame:
    """Return the rows that are ``kept``, and print for each ``split`` how many are not."""
    for name, of_split in kept.groupby(rows["split"]):
        if dropped := (~of_split).sum():
            print(f"{name}: {dropped:,} of {len(of_split):,} rows {why_others_go} and are left out.")
    return rows[kept]


def carve_missing_splits(rows: pd.DataFrame, max_train_samples: int | None, seed: int) -> pd.DataFrame:
    """Return the rows with another ``split`` for those that a missing test or validation takes from train."""
    if "test" not in set(rows["split"]):
        rows = rows.replace({"split": {"validation": "test"}})
    most = 1000 if max_train_samples is None else min(1000, max(100, max_train_samples // 10))
    for name, share, limit in (("test", 0.2, len(rows)), ("validation", 0.1, most)):
        if name not in set(rows["split"]):
            train = rows[rows["split"] == "train"]
            carved = take_stratified(train, min(limit, round(len(train) * share)), seed)
            rows = rows.assign(split=rows["split"].mask(rows.index.isin(carved.index), name))
    return rows


def take_stratified(rows: pd.DataFrame, limit: int | None, seed: int) -> pd.DataFrame:
    """Return a random sample of the rows, in their order, in which each ``label`` has its share; None: all of them.

    Unlike in a stratified ``train_test_split``, a class may have one row, and a smaller sample lies within a larger.
    """
    shuffled = rows.iloc[np.random.default_rng(seed).permutation(len(rows))]
    groups = shuffled.groupby("label")["label"]
    quantile = (groups.cumcount() + 0.5) / groups.transform("size")
    return rows.loc[quantile.sort_values(kind="stable").index[:limit]].sort_index()


def _check_labels(splits: dict[str, pd.Series], label_names: list[str]) -> None:
    counts = {name: len(labels) for name, labels in splits.items()}
    if 0 in counts.values():
        raise ValueError(f"A split has no rows with text and label left: {counts}; the dataset is too small.")
    names = {name: {label_names[number] for number in labels} for name, labels in splits.items()}
    if len(names["train"]) < 2:
        raise ValueError(f"The split train has one label only, {names['train']}; expected two. -1 means 'no label'.")
    if unknown := (names["validation"] | names["test"]) - names["train"]:
        raise ValueError(
            f"Validation or test has the labels {sorted(unknown)}, which train lacks (its {counts['train']:,} rows "
            f"have {sorted(names['train'])}); correct those rows, or take more of train."
        )
