"""Data files on disk: each is read through once, so that an error names the file before ``datasets`` loads it."""

import codecs
import glob
import gzip
import re
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value, load_dataset
from pandas.errors import EmptyDataError, ParserError, ParserWarning

from peft_helpers.sources.local_files import BUILDERS, extension

_FIELDS = (
    "as many fields in each line as in the header; in csv, put quotes around a field that holds a comma, a quote or a "
    "line break, and double the quotes within it"
)
_JSON = 'an object in each line, {"text": "...", "label": "..."}, or one list of such objects'

_NULL_FIRST = re.compile(rb"(\xef\xbb\xbf)?\s*\[?\s*null\b")
_PAIR_OR_OTHER_ESCAPE = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\[^u]")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]..")


def data_files_arguments(data_files: dict[str, list[Path]]) -> dict:
    """Return the arguments with which ``datasets.load_dataset`` loads the files of each split.

    For csv and tsv they hold the ``features``: what is a number in every row, of every file, else a string. Left to
    itself, the loader goes by the first 10,000 rows and fails where a later one differs.

    Raises:
        ValueError: the files are not of one kind, or one has no rows, is not UTF-8 or cannot be parsed; the message
            names the file and, where it can be told, the line.
    """
    files = [file for part in data_files.values() for file in part]
    kinds = {extension(file) for file in files}
    if len(kinds) > 1:
        raise ValueError(f"The files {[file.name for file in files]} are of several kinds; keep one of them.")
    builder = BUILDERS[kinds.pop()]
    features = {}
    if builder["path"] == "csv":
        features["features"] = _common_features({file: _read_csv_types(file, builder) for file in files})
    else:
        check = _check_json if builder["path"] == "json" else _check_parquet
        for file in files:
            check(file)
    # The loader would take a bracket in a name for a pattern.
    escaped = {split: [glob.escape(str(file)) for file in part] for split, part in data_files.items()}
    return builder | {"data_files": escaped} | features


def _error(file: Path, problem: str, expected: str) -> ValueError:
    return ValueError(f"{file} {problem.strip().removesuffix('.')}. Expected {expected}.")


def _no_rows(file: Path) -> ValueError:
    return ValueError(f"{file} is empty: expected at least one row, and a header before it in csv or tsv.")


def open_binary(file: Path) -> BinaryIO:
    """Return a file to read bytes from, unpacked if its name ends in ``.gz``."""
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")


def check_encoding(file: Path) -> None:
    """Check that a text file, gzipped or not, is UTF-8, and that no JSON escape in it is half of a surrogate pair.

    Raises:
        ValueError: it is not; the message names the file and the line.
    """
    escaped = extension(file) in (".json", ".jsonl")
    try:
        with open_binary(file) as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1 and (b"\0" in line or line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))):
                    raise _error(file, "seems to be UTF-16", "UTF-8; convert it with `iconv -f UTF-16 -t UTF-8`")
                line.decode()
                if escaped and (half := _SURROGATE.search(_PAIR_OR_OTHER_ESCAPE.sub(b"", line))):
                    problem = f"has half of a surrogate pair, {half[0].decode()}, in line {number}"
                    raise _error(file, problem, r"whole characters; write \ufffd in its place")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: line {number} has the byte 0x{error.object[error.start]:02x}"
        expected = "UTF-8; convert it, with `iconv -f WINDOWS-1252 -t UTF-8` if it comes from Western Windows or Excel"
        raise _error(file, problem, expected) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _error(file, f"cannot be unpacked: {error}", "a whole gzip file; without .gz, one not packed") from error


def _read_csv_types(file: Path, builder: dict) -> list[pd.Series]:
    """Return the types of the columns in each 10,000 rows, as pandas tells them: the parser that the loader uses."""
    check_encoding(file)
    options = {name: value for name, value in builder.items() if name != "path"}
    try:
        _check_header(file, pd.read_csv(file, header=None, nrows=1, dtype=str, **options).iloc[0].tolist())
        with (
            warnings.catch_warnings(action="error", category=ParserWarning),  # it would drop what is too much
            pd.read_csv(file, chunksize=10_000, **options) as chunks,
        ):
            types = [chunk.dtypes for chunk in chunks if len(chunk)]
        codes = _columns_of_codes(file, options, types)
    except EmptyDataError:
        types, codes = [], set()
    except ParserWarning as error:
        raise _error(file, "has more fields in a line than in the header", _FIELDS) from error
    except ParserError as error:
        problem = str(error).removeprefix("Error tokenizing data. C error: ")
        raise _error(file, f"cannot be parsed: {problem}", _FIELDS) from error
    if not types:
        raise _no_rows(file)
    return [part.mask(part.index.isin(codes), "string") for part in types]


def _columns_of_codes(file: Path, options: dict, types: list[pd.Series]) -> set[str]:
    """Return the columns of numbers in which one begins with 0: codes such as 01, which as a number would be 1."""
    names = types[0].index if types else []
    numeric = [name for name in names if all(str(part[name]) in ("int64", "float64") for part in types)]
    if not numeric:
        return set()
    with pd.read_csv(file, usecols=numeric, dtype=str, chunksize=10_000, **options) as chunks:
        return {name for chunk in chunks for name in numeric if chunk[name].str.match(r"\s*[+-]?0\d").any()}


def _check_header(file: Path, names: list[str]) -> None:
    found = f"has the header {', '.join(map(repr, names))}"
    if len(names) == 1 and (delimiter := re.search(r"[;\t|,]", names[0])):
        kind = "tabs" if extension(file) == ".tsv" else "commas"
        raise _error(file, found, f"fields with {kind}, not {delimiter[0]!r}, between them")
    if repeated := {name for name in names if names.count(name) > 1}:
        raise _error(file, f"{found}, with {', '.join(map(repr, sorted(repeated)))} repeated", "a name for each column")
    if any(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names):
        raise _error(file, found, "names of columns, not numbers, in the first line; add that line")


def _common_features(types: dict[Path, list[pd.Series]]) -> Features:
    columns = {file: list(parts[0].index) for file, parts in types.items()}
    first, *others = columns
    for file in others:
        if set(columns[file]) != set(columns[first]):
            raise ValueError(
                f"{file} has the columns {columns[file]}, but {first} has {columns[first]}; expected the same in every "
                "file. Rename them, or move one of the files away."
            )
    parts = [part for parts in types.values() for part in parts]
    return Features({name: Value(_common_type({str(part[name]) for part in parts})) for name in columns[first]})


def _common_type(types: set[str]) -> str:
    if types <= {"int64", "float64"}:
        return min(types)  # float64, unless all are int64
    return "bool" if types == {"bool"} else "string"


def _check_json(file: Path) -> None:
    check_encoding(file)
    with open_binary(file) as lines:
        if _NULL_FIRST.match(lines.read(1000)):  # pyarrow 26 would end the process (segmentation fault)
            raise _error(file, "has null for its first row", _JSON)
    try:
        rows = load_dataset("json", data_files=[glob.escape(str(file))], split="train", streaming=True)
        count = sum(batch.num_rows for batch in rows.with_format("arrow").iter(10_000))
    except (ValueError, TypeError, LookupError, AttributeError, pa.ArrowException) as error:
        raise _error(file, f"cannot be parsed: {error}", _JSON) from error
    if not count:
        raise _no_rows(file)


def _check_parquet(file: Path) -> None:
    if file.stat().st_size == 0:
        raise _no_rows(file)
    try:
        rows = pq.read_metadata(file).num_rows
    except pa.ArrowException as error:
        raise _error(file, f"cannot be read: {error}", "a whole parquet file, not gzipped") from error
    if not rows:
        raise _no_rows(file)
