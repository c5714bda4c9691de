"""Datasets from local files and from the Hub: arguments of ``load_dataset``, and errors that name the file."""

import csv
import glob
import gzip
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pandas as pd
from datasets import Dataset, DatasetDict, Features, IterableDatasetDict, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from peft_helpers.arguments import BBC_NEWS, Arguments, DataArguments
from peft_helpers.columns import find_text_column
from peft_helpers.data import SPLIT_NAMES, prepare_splits, read_rows
from peft_helpers.distributed import main_process_first
from peft_helpers.sources.bbc_news import load_bbc_news
from peft_helpers.sources.streaming import prepare_stream

# What pandas would read as a missing value ("NA", "null", "None") is a text or a label like any other, and the first
# column is no index where every line ends in a delimiter.
_CSV = {"path": "csv", "keep_default_na": False, "index_col": False}
# A tab-separated file has no quoting (IANA text/tab-separated-values; GLUE's files): a quote is a character.
_TSV = _CSV | {"sep": "\t", "quoting": csv.QUOTE_NONE}
_JSON = {"path": "json"}
BUILDERS = {".csv": _CSV, ".tsv": _TSV, ".json": _JSON, ".jsonl": _JSON, ".parquet": {"path": "parquet"}}
_EXPECTED = {
    "csv": "UTF-8, a header with a name of its own for each column, at least one row, and as many fields in each line, "
    "with commas (in a tsv: tabs) between them; in a csv, put quotes around a field with a comma, quote or line break",
    "json": 'UTF-8, at least one row, an object a line, {"text": "...", "label": "..."}, or one list of such objects',
    "parquet": "a whole parquet file with at least one row, not gzipped",
    "text": "a text file in UTF-8",
}


class UnreadableFileError(ValueError):
    """A file cannot be read; the message has its name, the reason and what was expected."""


def load_splits(args: Arguments) -> DatasetDict | dict[str, Dataset]:
    """Return train, validation and test of ``args.data.dataset_name``, loaded by the first process before the others.

    Raises:
        FileNotFoundError, ValueError: see `load_raw`, `prepare_splits` and `prepare_stream`.
    """
    with main_process_first():
        raw = load_bbc_news() if args.data.dataset_name == BBC_NEWS else load_raw(args.data)
        return prepare_stream(raw, args) if args.data.streaming else prepare_splits(raw, args)


def load_raw(data: DataArguments) -> DatasetDict | IterableDatasetDict:
    """Return ``load_dataset(**dataset_arguments(data))``; an error that a file causes names it and says what to do.

    Raises:
        FileNotFoundError, ValueError: see `dataset_arguments`; or a file cannot be read.
    """
    arguments = dataset_arguments(data)
    with _explain_errors(_list_files(find_data_files(data.dataset_name))):
        return load_dataset(**arguments)


def dataset_arguments(data: DataArguments) -> dict:
    """Return the arguments with which ``datasets.load_dataset`` loads ``data.dataset_name``.

    The columns of csv and tsv are strings: a label 01 stays one.

    Raises:
        FileNotFoundError: the name looks like a path and there is no such file, or the folder has no data file.
        ValueError: the files are of several kinds, have different columns, or one has no rows or no header.
    """
    arguments = {"streaming": True} if data.streaming else {}
    splits = find_data_files(data.dataset_name)
    if splits is None:
        return arguments | {"path": data.dataset_name, "name": data.dataset_config_name}
    files = _list_files(splits)
    if len({extension(file) for file in files}) > 1:
        raise ValueError(f"The files {[file.name for file in files]} are of several kinds; keep one of them.")
    builder = BUILDERS[extension(files[0])]
    for file in files:
        with _explain_errors([file]):
            if builder is _JSON:
                _check_json(file)
            elif builder["path"] == "csv":
                names = _read_header(file, builder)
                features = arguments.setdefault("features", Features({name: Value("string") for name in names}))
                if set(names) != set(features):
                    raise ValueError(f"its columns are {names}, but those of {files[0].name} {list(features)}")
    if builder is _JSON and not data.streaming:
        _check_encoding(files)  # the loader would take what is not UTF-8
    # The loader would take a bracket in a name for a pattern.
    arguments["data_files"] = {name: [glob.escape(str(file)) for file in part] for name, part in splits.items()}
    return builder | arguments


def find_data_files(dataset_name: str) -> dict[str, list[Path]] | None:
    """Return the files of each split, or None where ``dataset_name`` is no path but an id on the Hub.

    A file becomes the split ``train``; in a folder, each file is (a part of) the split that its name begins with.

    Raises:
        FileNotFoundError: the name looks like a path and there is no such file, or the folder has no data file.
    """
    path = Path(dataset_name)
    if not (path.exists() or path.is_absolute() or dataset_name.startswith(".") or extension(path) in BUILDERS):
        return None
    there = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in there if file.is_file() and extension(file) in BUILDERS]
    if not files:
        folder = path if path.is_dir() else path.parent
        found = sorted(entry.name for entry in folder.iterdir())[:10] if folder.is_dir() else []
        raise FileNotFoundError(
            f"dataset_name is {dataset_name!r}: no data file there. Expected a file or a folder of files that end in "
            f"{', '.join(BUILDERS)}; {folder} has {', '.join(found) or 'nothing'}."
        )
    splits = {}
    for file in files:  # train-00000-of-00002.parquet is a part of train
        name = re.match(r"[a-z]*", file.name.lower())[0] if path.is_dir() else "train"
        splits.setdefault(SPLIT_NAMES.get(name, name), []).append(file)
    return splits


def extension(path: Path) -> str:
    """Return the extension of ``path``, that before ``.gz`` if it is gzipped."""
    return Path(path.name.removesuffix(".gz")).suffix


def _list_files(splits: dict[str, list[Path]] | None) -> list[Path]:
    return [file for files in (splits or {}).values() for file in files]


@contextmanager
def _explain_errors(files: list[Path]) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, UnreadableFileError):
        raise
    except Exception as error:  # pandas, pyarrow, gzip and datasets have each their own
        if not files:
            raise  # of a dataset on the Hub
        reason = error.__cause__ if type(error) is DatasetGenerationError else error
        if isinstance(reason, UnicodeDecodeError):
            _check_encoding(files)
        names, kind = ", ".join(map(str, files)), BUILDERS.get(extension(files[0]), {"path": "text"})["path"]
        reason = str(reason).strip().removesuffix(".") or "it has no rows"
        raise UnreadableFileError(f"{names} cannot be read: {reason}. Expected {_EXPECTED[kind]}.") from error


def _read_header(file: Path, builder: dict) -> list[str]:
    options = {name: value for name, value in builder.items() if name != "path"}
    next(read_lines(file), None)  # pandas would end a field at a zero byte, which UTF-16 has
    rows = pd.read_csv(file, header=None, nrows=2, dtype=str, **options)
    names = rows.iloc[0].tolist()
    is_one_field = len(names) == 1 and re.search(r"[;\t|,]", names[0])
    if is_one_field or len(set(names)) < len(names) or any(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names):
        raise ValueError(f"its header is {names}")
    if len(rows) < 2:
        raise ValueError("no row follows the header")
    return [name or f"Unnamed: {number}" for number, name in enumerate(names)]  # as pandas names them


def _open(file: Path) -> BinaryIO:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def _check_json(file: Path) -> None:
    with _open(file) as lines:
        if re.match(rb"(\xef\xbb\xbf)?\s*\[?\s*null\b", lines.read(1000)):
            raise ValueError("it begins with null")  # pyarrow 26 would end the process (segmentation fault)


def _check_encoding(files: list[Path]) -> None:
    for file in files:
        deque(read_lines(file), maxlen=0)


def read_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a text file, gzipped or not.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8; the message has the line.
    """
    with _explain_errors([file]), _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and b"\0" in line[:4]:
                raise ValueError("it has zero bytes, as UTF-16 has; convert it with `iconv -f UTF-16 -t UTF-8`")
            try:
                text = line.decode("utf-8-sig").rstrip("\r\n")
            except UnicodeDecodeError as error:
                found = f"line {number} has the byte 0x{line[error.start]:02x}, which is not UTF-8"
                raise ValueError(f"{found}; convert it, for example with `iconv -f WINDOWS-1252 -t UTF-8`") from error
            yield text


def load_labelled_examples(
    file: str | Path, label_names: list[str], text_column: str | None = None, label_column: str | None = None
) -> Dataset:
    """Return the rows of a csv, tsv, json, jsonl or parquet file with the columns ``text`` and ``label``.

    Labels are found by name among ``label_names``, and numbered by their place there. Rows without text or label are
    left out, and a line says how many. The columns are found as in `find_columns`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, a column cannot be found, a label is not among ``label_names``, or no row
            is left.
    """
    raw = _load_file(file)
    dataset, rows = read_rows({str(file): raw}, text_column, label_column, label_names)
    if rows.empty:
        raise ValueError(f"No row of {file} has both a text and a label; expected at least one.")
    return dataset.select(rows.index)


def load_texts(file: str | Path, text_column: str | None = None) -> list[str]:
    """Return the texts of a file in its order: each line of a txt file, else the column of a csv, tsv, json or parquet.

    A missing text is an empty one, so that the rows keep their places.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or has no texts, or the column cannot be found.
    """
    if extension(Path(file)) == ".txt":
        texts = list(read_lines(Path(file)))
    else:
        raw = _load_file(file)
        texts = [text or "" for text in raw[find_text_column(raw, text_column)]]
    if not texts:
        raise ValueError(f"{file} is empty; expected at least one text.")
    return texts


def _load_file(file: str | Path) -> Dataset:
    return load_raw(DataArguments(dataset_name=str(Path(file).absolute())))["train"]
