"""Texts for language modeling: whole documents in three splits."""

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict

from peft_helpers.arguments import BBC_NEWS, WIKITEXT, Arguments, DataArguments
from peft_helpers.columns import find_text_columns
from peft_helpers.data import carve_missing_splits, keep_rows, rename_splits
from peft_helpers.sources.bbc_news import load_bbc_topic
from peft_helpers.sources.files import extension, load_raw, read_text


def load_documents(args: Arguments) -> DatasetDict:
    """Return train, validation and test of ``args.data.dataset_name``, one column ``text``, a row a document.

    Documents are the articles of WikiText and of BBC News (of the topic ``args.data.dataset_config_name``), what stands
    between blank lines in a ``.txt`` file, and else the rows. Blank ones are left out. Missing splits are carved out of
    train by document: a fifth for the test, then a tenth for the validation. A document that occurs twice is kept once,
    in the test rather than elsewhere; a line says how many are left out. A file that cannot be read, or
    that has no column of texts, is a ValueError.
    """
    if args.data.dataset_name == BBC_NEWS:
        return load_bbc_topic(args.data.dataset_config_name)
    splits = _read_splits(args.data)
    texts = [(name, text.strip()) for name in ("test", "validation", "train") for text in splits.get(name, [])]
    rows = pd.DataFrame(texts, columns=["split", "text"]).assign(label=0)
    rows = rows[rows["text"] != ""]
    rows = keep_rows(rows, ~rows.duplicated("text"), "stand in another split, or twice in this one,")
    rows = carve_missing_splits(rows, None, args.training.seed)
    documents = DatasetDict()
    for name in ("train", "validation", "test"):
        documents[name] = Dataset.from_dict({"text": rows["text"][rows["split"] == name].tolist()})
    return documents


def _read_splits(data: DataArguments) -> dict[str, list[str]]:
    file = Path(data.dataset_name)
    if extension(file) == ".txt":
        return {"train": re.split(r"\n\s*\n", read_text(file))}
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
