"""Which columns have the texts, or pairs of them, and the labels, and what the labels are called."""

import pandas as pd
from datasets import ClassLabel, Dataset, Value

from peft_helpers.arguments import DataArguments


def find_columns(dataset: Dataset, data: DataArguments) -> tuple[dict[str, str], str]:
    """Return `find_text_columns` and the label column: given, a ``ClassLabel``, ``label``, or of values that recur."""
    plain = {name: feature for name, feature in dataset.features.items() if isinstance(feature, ClassLabel | Value)}
    classes = [name for name, feature in plain.items() if isinstance(feature, ClassLabel)]
    candidates = [data.label_column] if data.label_column else classes or [name for name in plain if name == "label"]
    candidates = candidates or [name for name in plain if _recurs(_probe(dataset, name))]
    label_column = _check_choice("label_column", "with one label a row", candidates, [*plain], dataset)
    return find_text_columns(dataset, data, label_column), label_column


def find_text_columns(dataset: Dataset, data: DataArguments, label_column: str | None = None) -> dict[str, str]:
    """Return what the columns of texts are called from now on: ``text`` and, of second texts, ``text_pair``.

    The column of texts is the one given, else ``text``, else the only one of strings. Where there are several, those
    whose values recur or are numbers, which a csv has as strings, do not count.
    """
    pair = data.text_pair_column
    if pair:
        others = [name for name in dataset.features if name not in (data.text_column, label_column)]
        _check_choice("text_pair_column", "beside those of texts and labels", [pair], others, dataset)
    kinds = ("string", "large_string", "string_view")  # pandas and polars write the other two
    strings = [name for name, feature in dataset.features.items() if getattr(feature, "dtype", None) in kinds]
    strings = [name for name in strings if name not in (label_column, pair)]
    candidates = ["text"] if "text" in strings else strings
    if data.text_column:
        candidates = [data.text_column]
    elif len(candidates) > 1:
        probes = {name: _probe(dataset, name) for name in candidates}
        numeric = {name for name, values in probes.items() if pd.to_numeric(values, errors="coerce").notna().all()}
        candidates = [name for name, values in probes.items() if name not in numeric and not _recurs(values)]
    column = _check_choice("text_column", "of strings", candidates, strings, dataset)
    return {column: "text", pair: "text_pair"} if pair else {column: "text"}


def join_texts(batch: dict[str, list[str | None]]) -> list[str]:
    """Return the texts of a batch; of pairs both, one below the other, but nothing if one is missing or blank."""
    rows = zip(*(batch[name] for name in ("text", "text_pair") if name in batch), strict=True)
    return ["\n".join(texts) if all(text and text.strip() for text in texts) else "" for texts in rows]


def _probe(dataset: Dataset, column: str) -> pd.Series:
    return pd.Series(dataset.select_columns(column)[:10_000][column], dtype=object)


def _recurs(values: pd.Series) -> bool:
    return values.nunique() <= len(values) // 2


def _check_choice(option: str, kind: str, found: list[str], suitable: list[str], dataset: Dataset) -> str:
    if len(found) != 1 or found[0] not in suitable:
        columns = ", ".join(f"{name}: {getattr(f, 'dtype', f)}" for name, f in dataset.features.items())
        raise ValueError(
            f"Name the {option}: expected one column {kind}, found {found or 'none'}; the columns are {columns}."
        )
    return found[0]


def name_labels(labels: list, feature: ClassLabel | Value) -> pd.Series:
    """Return the labels' names, without blanks around them; None where there is none (None, NaN, blank)."""
    values = pd.Series(labels, dtype=object)
    if isinstance(feature, ClassLabel):
        return values.map(dict(enumerate(feature.names)))
    names = values.dropna().map(str).str.strip().str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)
    return names[names != ""].reindex(values.index)


def order_names(labels: pd.Series, feature: ClassLabel | Value) -> list[str]:
    """Return the names of the labels in the order of their numbers: as the data have it, else sorted."""
    names = sorted(set(labels.dropna()))
    if isinstance(feature, ClassLabel):
        return list(dict.fromkeys([*feature.names, *names]))
    numbers = pd.to_numeric(pd.Series(names, index=names, dtype=object), errors="coerce")
    if (numbers % 1 > 0).any() or len(names) > len(labels) / 2:
        raise ValueError(
            f"There are {len(names):,} labels in {len(labels):,} rows, such as {max(names, key=len)}; expected classes "
            "that recur, and no fractions. Name another label_column."
        )
    if numbers.notna().all():
        names = [name for name in numbers.sort_values(kind="stable").index if name != "-1"]
    return names
