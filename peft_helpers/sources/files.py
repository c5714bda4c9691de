"""Labelled examples, texts and documents from local files and the Hub; errors name the file."""

import csv
import glob
import gzip
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict, Features, IterableDatasetDict, Value, load_dataset

from peft_helpers.arguments import BBC_NEWS, WIKITEXT, Arguments, DataArguments
from peft_helpers.columns import find_text_columns
from peft_helpers.data import carve_missing_splits, keep_rows, prepare_splits, read_rows, rename_splits
from peft_helpers.distributed import process_state
from peft_helpers.sources.bbc_news import load_bbc_news, load_bbc_topic
from peft_helpers.sources.streaming import prepare_stream
from peft_helpers.tokenization import Text

# "NA" and "null" are texts or labels like any other, and no column is an index where every line ends in a delimiter.
_CSV = {"keep_default_na": False, "index_col": False}
# A tab-separated file has no quoting (IANA text/tab-separated-values; GLUE's files): a quote is a character.
_TSV = _CSV | {"sep": "\t", "quoting": csv.QUOTE_NONE}
_JSON = {"encoding": "utf-8-sig"}  # with its default, the loader takes what is not UTF-8
_OPTIONS = {".csv": _CSV, ".tsv": _TSV, ".json": _JSON, ".jsonl": _JSON, ".parquet": {}}
_BUILDERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_UTF8 = "UTF-8 (`iconv -f WINDOWS-1252 -t UTF-8` converts)"
_EXPECTED = {
    "csv": f"{_UTF8}, a header with a name of its own for each column, at least one row, as many fields in each line, "
    "commas (in a tsv: tabs) between them, and (in a csv) quotes around a field with a comma, quote or line break",
    "json": f"{_UTF8}, at least one row, an object a line, "
    '{"text": "...", "label": "..."}, or one list of such objects',
    "parquet": "a whole parquet file with at least one row, not gzipped",
    "text": f"a text file in {_UTF8}",
}


def load_splits(args: Arguments) -> DatasetDict | dict[str, Dataset]:
    """Return train, validation and test of ``args.data.dataset_name``; the first process loads before the others."""
    with process_state().main_process_first():  # the others find its files in the cache
        raw = load_bbc_news() if args.data.dataset_name == BBC_NEWS else load_raw(args.data)
        return prepare_stream(raw, args) if args.data.streaming else prepare_splits(raw, args)


def load_raw(data: DataArguments) -> DatasetDict | IterableDatasetDict:
    """Return ``load_dataset(**dataset_arguments(data))``; an error that a file causes names it and says what to do."""
    arguments = dataset_arguments(data)
    with _explain_errors(*_find_files(data.dataset_name)):
        return load_dataset(**arguments)


def dataset_arguments(data: DataArguments) -> dict:
    """Return the arguments with which ``datasets.load_dataset`` loads ``data.dataset_name``.

    A file becomes the split ``train``; in a folder, each file is (a part of) the split that its name begins with. The
    columns of csv and tsv are strings: a label 01 stays one. A path where no data file is found is a FileNotFoundError;
    a file that cannot be read, or files of several kinds, are a ValueError.
    """
    files = _find_files(data.dataset_name)
    if not files:
        return {"path": data.dataset_name, "name": data.dataset_config_name, "streaming": data.streaming}
    kind, *others = {_extension(file) for file in files}
    if others:
        raise ValueError(f"The files {[file.name for file in files]} are of several kinds; keep one of them.")
    splits = {}
    for file in files:  # train-00000-of-00002.parquet is a part of train
        name = re.match(r"[a-z]*", file.name.lower())[0] if Path(data.dataset_name).is_dir() else "train"
        # The loader would take a bracket in a name for a pattern.
        splits.setdefault(name, []).append(glob.escape(str(file)))
    features = [_check_beginning(file) for file in files]
    arguments = {"path": _BUILDERS[kind], "data_files": splits, "features": features[0], "streaming": data.streaming}
    return arguments | _OPTIONS[kind]


def _find_files(dataset_name: str) -> list[Path]:
    """Return the file, or those in the folder, of that name; none where it is no path but an id on the Hub."""
    path = Path(dataset_name)
    if not (path.exists() or path.is_absolute() or dataset_name.startswith(".") or _extension(path) in _BUILDERS):
        return []
    there = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in there if file.is_file() and _extension(file) in _BUILDERS]
    if not files:
        expected = f"Expected a file or a folder of files that end in {', '.join(_BUILDERS)}"
        raise FileNotFoundError(f"dataset_name is {dataset_name!r}: no data file there. {expected}.")
    return files


def _extension(path: Path) -> str:
    """Return the extension of ``path``, that before ``.gz`` if it is gzipped."""
    return Path(path.name.removesuffix(".gz")).suffix


@contextmanager
def _explain_errors(*files: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # pandas, pyarrow, gzip and datasets have each their own
        if not files:
            raise  # of a dataset on the Hub
        reason = str(error.__cause__ or error).strip().removesuffix(".") or "it has no rows"
        expected = _EXPECTED[_BUILDERS.get(_extension(files[0]), "text")]
        raise ValueError(f"{', '.join(map(str, files))} cannot be read: {reason}. Expected {expected}.") from error


def _check_beginning(file: Path) -> Features | None:
    """Refuse what the loader would misread or crash on; return the columns of a csv or tsv, which are strings."""
    kind = _BUILDERS[_extension(file)]
    beginning = _read_text(file, 100) if kind == "json" else ""
    with _explain_errors(file):
        if re.match(r"\s*\[?\s*null\b", beginning):
            raise ValueError("it begins with null")  # pyarrow 26 would end the process (segmentation fault)
        if kind != "csv":
            return None
        rows = pd.read_csv(file, header=None, nrows=2, dtype=str, **_OPTIONS[_extension(file)])
        names = rows.iloc[0].tolist()
        is_one_field = len(names) == 1 and re.search(r"[;\t|,]", names[0])
        has_number = any(re.fullmatch(r"-?\d+(\.\d+)?", name) for name in names)
        if len(rows) < 2 or is_one_field or has_number or len(set(names)) < len(names):
            raise ValueError(f"its header is {names}{', without rows' if len(rows) < 2 else ''}")
    return Features({name or f"Unnamed: {number}": Value("string") for number, name in enumerate(names)})  # as pandas


def _read_text(file: Path, characters: int = -1) -> str:
    """Return the text of a file, gzipped or not, or the first ``characters`` of it."""
    open_file = gzip.open if file.suffix == ".gz" else open
    with _explain_errors(file), open_file(file, "rt", encoding="utf-8-sig", newline="\n") as text:
        return re.sub(r"\r+\n", "\n", text.read(characters))  # a carriage return alone ends no line


def load_labelled_examples(
    file: str | Path, label_names: list[str], text_column: str | None = None, label_column: str | None = None,
    pair_column: str | None = None,
) -> Dataset:  # fmt: skip
    """Return the rows of a csv, tsv, json, jsonl or parquet file with the columns of `prepare_splits`.

    Labels are found by name among ``label_names``, and numbered by their place there. Rows without text or label are
    left out, and a line says how many. The columns are found as in `find_columns`.
    """
    data = DataArguments(text_column=text_column, label_column=label_column, text_pair_column=pair_column)
    dataset, rows = read_rows({str(file): _load_file(file)}, data, label_names)
    if rows.empty:
        raise ValueError(f"No row of {file} has both a text and a label; expected at least one.")
    return dataset.select(rows.index)


def load_texts(file: str | Path, text_column: str | None = None, pair_column: str | None = None) -> list[Text]:
    """Return the texts of a file in its order: each line of a txt file, else the column of a csv, tsv, json or parquet.

    With ``pair_column`` they are pairs. A missing text is an empty one, so that the rows keep their places.
    """
    if _extension(Path(file)) != ".txt" or pair_column:
        rows, data = _load_file(file), DataArguments(text_column=text_column, text_pair_column=pair_column)
        columns = [[text or "" for text in rows[name]] for name in find_text_columns(rows, data)]
        return list(zip(*columns, strict=True)) if pair_column else columns[0]
    if not (text := _read_text(Path(file))):
        raise ValueError(f"{file} is empty; expected at least one text.")
    return text.removesuffix("\n").split("\n")


def _load_file(file: str | Path) -> Dataset:
    return load_raw(DataArguments(dataset_name=str(Path(file).absolute())))["train"]


def load_documents(args: Arguments) -> DatasetDict:
    """Return train, validation and test of ``args.data.dataset_name``, one column ``text``, a row a document.

    Documents are the articles of WikiText and of BBC News (of the topic ``args.data.dataset_config_name``), what stands
    between blank lines in a ``.txt`` file, and else the rows. Blank ones are left out; missing splits are carved, as in
    `prepare_splits`, of all of train. A document that occurs twice is kept once, in the test rather than elsewhere. A
    file that cannot be read, or that has no column of texts, is a ValueError.
    """
    if args.data.dataset_name == BBC_NEWS:
        return load_bbc_topic(args.data.dataset_config_name)
    splits = _read_documents(args.data)
    texts = [(name, text.strip()) for name in ("test", "validation", "train") for text in splits.get(name, [])]
    rows = pd.DataFrame(texts, columns=["split", "text"]).assign(label=0)
    rows = rows[rows["text"] != ""]
    rows = keep_rows(rows, ~rows.duplicated("text"), "stand in another split, or twice in this one,")
    rows = carve_missing_splits(rows, None, args.training.seed)
    documents = {name: rows["text"][rows["split"] == name].tolist() for name in ("train", "validation", "test")}
    return DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in documents.items()})


def _read_documents(data: DataArguments) -> dict[str, list[str]]:
    file = Path(data.dataset_name)
    if _extension(file) == ".txt":
        return {"train": re.split(r"\n\s*\n", _read_text(file))}
    raw = rename_splits(load_raw(data))
    # The column that is named may be one of the labelled examples.
    text_column = data.text_column if data.text_column in raw["train"].column_names else None
    [column] = find_text_columns(raw["train"], DataArguments(text_column=text_column))
    join = join_articles if data.dataset_name == WIKITEXT else list
    return {name: join(text or "" for text in rows[column]) for name, rows in raw.items()}


def join_articles(lines: Iterable[str]) -> list[str]:
    """Join the rows of WikiText, which are lines, to articles; each begins with its title, `` = Title = ``."""
    # The titles of sections have more equals signs.
    return re.split(r"^(?= = [^=].* = $)", "".join(lines), flags=re.MULTILINE)
