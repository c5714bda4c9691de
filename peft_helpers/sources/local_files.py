"""What is named as a local file or folder: found before anything is imported that takes seconds."""

import csv
import re
from pathlib import Path

# What pandas would read as a missing value ("NA", "null", "None") is a text or a label like any other, and the first
# column is no index where every line ends in a delimiter.
_CSV = {"path": "csv", "keep_default_na": False, "index_col": False}
# A tab-separated file has no quoting (IANA text/tab-separated-values; GLUE's files): a quote is a character.
_TSV = _CSV | {"sep": "\t", "quoting": csv.QUOTE_NONE}
BUILDERS = {".csv": _CSV, ".tsv": _TSV, ".json": {"path": "json"}, ".jsonl": {"path": "json"},
            ".parquet": {"path": "parquet"}}  # fmt: skip
SPLIT_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}


def extension(path: Path) -> str:
    """Return the extension of ``path``, that before ``.gz`` if it is gzipped."""
    return Path(path.name.removesuffix(".gz")).suffix


def find_data_files(dataset_name: str) -> dict[str, list[Path]] | None:
    """Return the files of each split, or None where ``dataset_name`` is no path but an id on the Hub.

    A file becomes the split ``train``; in a folder, each file is (a part of) the split that its name begins with.

    Raises:
        FileNotFoundError: the name looks like a path and there is no such file, or the folder holds no data file.
    """
    path = Path(dataset_name)
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if extension(file) in BUILDERS]
        splits = [_split_name(file) for file in files]
    elif path.is_file() and extension(path) in BUILDERS:
        files, splits = [path], ["train"]
    elif path.exists() or path.is_absolute() or extension(path) in BUILDERS or dataset_name.startswith("."):
        files, splits = [], []
    else:
        return None
    if not files:
        raise FileNotFoundError(
            f"dataset_name is {dataset_name!r}: no data file there. Expected a file or a folder of files that "
            f"end in {', '.join(BUILDERS)}{_what_is_there(path)}."
        )
    pairs = list(zip(files, splits, strict=True))
    return {split: [file for file, of in pairs if of == split] for split in splits}


def _split_name(path: Path) -> str:
    stem = re.match(r"[a-z]*", path.name.lower())[0]  # train-00000-of-00002.parquet is a part of train
    return SPLIT_NAMES.get(stem, stem)


def _what_is_there(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    names = sorted(entry.name for entry in folder.iterdir())[:10] if folder.is_dir() else []
    return f"; {folder} holds {', '.join(names) or 'nothing'}" if folder.is_dir() else f"; there is no folder {folder}"


def check_model_folder(model_name_or_path: str) -> None:
    """Check that the model's folder, if it is named by a path and no id on the Hub, holds one.

    Raises:
        FileNotFoundError: it lacks ``config.json`` or safetensors weights; the message lists what it holds.
    """
    folder = Path(model_name_or_path)
    if not (folder.is_dir() or folder.is_absolute() or model_name_or_path.startswith(".")):
        return
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if "config.json" not in found or not any(map(_is_model_weights, found)):
        raise FileNotFoundError(
            f"model_name_or_path is {model_name_or_path!r}: expected a folder with config.json and model*.safetensors "
            f"(pickled weights are not loaded), found {', '.join(found) or 'nothing'}."
        )


def _is_model_weights(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors")
