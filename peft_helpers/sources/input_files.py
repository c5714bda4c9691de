"""Files of one's own for a saved adapter: rows with labels to evaluate it on, texts to classify."""

from contextlib import suppress
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value, load_dataset

from peft_helpers.data import find_columns, is_string
from peft_helpers.sources.data_files import check_encoding, data_files_arguments, open_binary
from peft_helpers.sources.local_files import extension, find_data_files


def load_labelled_rows(
    file: str | Path, label_names: list[str], text_column: str | None = None, label_column: str | None = None
) -> Dataset:
    """Return the rows of a csv, tsv, json, jsonl or parquet file with the columns ``text`` and ``label``.

    Labels are found by name among ``label_names``, and numbered by their place there. Rows without text or label are
    left out, and a line says how many. The columns are found as in `find_columns`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be parsed, a column cannot be told, a label is not among ``label_names``, or no row
            is left.
    """
    raw = _load(file)
    text_column, label_column = find_columns(raw, text_column, label_column)
    found = {value: _label_name(value, raw.features[label_column]) for value in raw.unique(label_column)}
    _check_known(file, {name for name in found.values() if name is not None}, label_names)
    numbers = {value: label_names.index(name) for value, name in found.items() if name is not None}

    def encode(batch: dict[str, list]) -> dict[str, list]:
        rows = zip(batch[text_column], batch[label_column], strict=True)
        kept = [(text, numbers[label]) for text, label in rows if text and text.strip() and label in numbers]
        return {"text": [text for text, _ in kept], "label": [label for _, label in kept]}

    features = Features({"text": Value("string"), "label": ClassLabel(names=label_names)})
    rows = raw.map(encode, batched=True, features=features, remove_columns=raw.column_names)
    if dropped := raw.num_rows - rows.num_rows:
        print(f"{file}: {dropped:,} of {raw.num_rows:,} rows have no label or no text and are left out.")
    if not rows.num_rows:
        raise ValueError(f"No row of {file} has both a text and a label; expected at least one.")
    return rows


def _load(file: str | Path) -> Dataset:
    data_files = find_data_files(str(Path(file).absolute()))
    return load_dataset(**data_files_arguments(data_files), split=next(iter(data_files)))


def _label_name(value: object, feature: ClassLabel | Value) -> str | None:
    """Return the name of a label value as `prepare_splits` gives it, None where there is none."""
    if isinstance(feature, ClassLabel):
        return None if value in (None, -1) else feature.int2str(value)
    if value is None or value != value or value == -1 or not str(value).strip():  # NaN != NaN
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _check_known(file: str | Path, found: set[str], label_names: list[str]) -> None:
    if unknown := sorted(found - set(label_names)):
        raise ValueError(
            f"{file} has the labels {unknown[:5]}, which the adapter does not know; it knows {label_names}. Correct "
            "those rows, or name another --label_column."
        )


def load_texts(file: str | Path, text_column: str | None = None) -> list[str]:
    """Return the texts of a file in its order: each line of a txt file, else the column of a csv, tsv, json or parquet.

    A missing text is an empty one, so that the rows keep their places.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be parsed or has no texts, or the column cannot be told.
    """
    file = Path(file)
    if extension(file) == ".txt":
        check_encoding(file)
        with open_binary(file) as lines:
            texts = [line.decode("utf-8-sig").rstrip("\r\n") for line in lines]
    else:
        raw = _load(file)
        texts = [text or "" for text in raw[_text_column(raw, text_column)]]
    if not texts:
        raise ValueError(f"{file} is empty; expected at least one text.")
    return texts


def _text_column(raw: Dataset, text_column: str | None) -> str:
    strings = [name for name, feature in raw.features.items() if is_string(feature)]
    if text_column is None and len(strings) > 1:
        with suppress(ValueError):  # a file like those that are trained on: the labels are strings too
            text_column = find_columns(raw, None, None)[0]
    candidates = [text_column] if text_column else ["text"] if "text" in strings else strings
    if len(candidates) != 1 or candidates[0] not in strings:
        raise ValueError(f"Name the column with the texts by --text_column; those with strings are {strings}.")
    return candidates[0]
