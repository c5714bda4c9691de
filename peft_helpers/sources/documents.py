"""Texts for language modelling: whole documents in three splits, then blocks of a fixed number of tokens."""

import gzip
import re
from itertools import chain
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from transformers import PreTrainedTokenizerBase

from peft_helpers.arguments import BBC_NEWS, Arguments
from peft_helpers.data import is_string, load_dataset_arguments
from peft_helpers.sources.bbc_news import load_bbc_topic
from peft_helpers.sources.data_files import extension

WIKITEXT = "Salesforce/wikitext"
DEFAULT_CONFIGURATIONS = {WIKITEXT: "wikitext-2-raw-v1", BBC_NEWS: "sports"}
_WIKITEXT_TITLE = re.compile(r" = [^=].* = \n?")  # those of sections have more equals signs


def load_documents(args: Arguments) -> DatasetDict:
    """Return train, validation and test of ``args.data.dataset_name``, one column ``text``, a row a document.

    Documents are the articles of WikiText and of BBC News (of the topic ``args.data.dataset_config_name``), what stands
    between blank lines in a ``.txt`` file, and else the rows. Blank ones are left out. What the data set has no split
    for is drawn from ``train``, by document and seeded: a fifth for the test, then a tenth for the validation. A
    document that occurs twice is kept once, in the test rather than elsewhere; a line says how many are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file cannot be read, no column holds the texts, or there are too few documents to split.
    """
    if args.data.dataset_name == BBC_NEWS:
        return load_bbc_topic(args.data.dataset_config_name)
    if extension(Path(args.data.dataset_name)) == ".txt":
        raw = DatasetDict(train=Dataset.from_dict({"text": read_paragraphs(Path(args.data.dataset_name))}))
    else:
        raw = load_dataset(**load_dataset_arguments(args))
    texts = {name: _texts(split, args) for name, split in raw.items()}
    return _keep_once(_carve_missing_splits(texts, args.training.seed))


def read_paragraphs(file: Path) -> list[str]:
    """Return what stands between blank lines in a text file, UTF-8, also gzipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, or not gzipped as its name says.
    """
    if not file.is_file():
        raise FileNotFoundError(f"lm_dataset_name is {str(file)!r}: there is no such file. Name a text file.")
    try:
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}. Expected "
            "UTF-8; convert it, with `iconv -f WINDOWS-1252 -t UTF-8` if it comes from Western Windows."
        ) from error
    except (EOFError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}. Expected a whole gzipped file; copy it again.") from error
    return re.split(r"\n\s*\n", "\n".join(text.splitlines()))


def _texts(split: Dataset, args: Arguments) -> list[str]:
    """Return the documents of a split in its order, without blank ones."""
    strings = [name for name, feature in split.features.items() if is_string(feature)]
    named = [name for name in (args.data.text_column, "text") if name in strings]
    candidates = named[:1] or strings
    if len(candidates) != 1:
        raise ValueError(
            f"{args.data.dataset_name} has the columns {', '.join(split.column_names)}, of which {candidates or 'none'} "
            "could be the texts. Expected one column of strings, or one named text; rename it, or name the text_column."
        )
    rows = split[candidates[0]][:]
    documents = join_articles(rows) if args.data.dataset_name == WIKITEXT else rows
    return [text.strip() for text in documents if text and text.strip()]


def join_articles(lines: list[str]) -> list[str]:
    """Join the rows of WikiText, which are lines, to articles; each begins with its title, `` = Title = ``."""
    articles = [[]]
    for line in lines:
        if _WIKITEXT_TITLE.fullmatch(line):
            articles.append([])
        articles[-1].append(line)
    return ["".join(article) for article in articles]


def _carve_missing_splits(texts: dict[str, list[str]], seed: int) -> DatasetDict:
    splits = {name: Dataset.from_dict({"text": list(dict.fromkeys(rows))}) for name, rows in texts.items() if rows}
    if "train" not in splits:
        raise ValueError(f"The splits with texts are {list(splits) or 'none'}; expected one named train.")
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    missing = {name: share for name, share in (("test", 0.2), ("validation", 0.1)) if name not in splits}
    if missing and (rows := splits["train"].num_rows) < 10:
        raise ValueError(
            f"{rows} documents are too few to set some aside for {' and '.join(missing)}: expected at least 10. In a "
            "text file a blank line separates documents."
        )
    for name, share in missing.items():
        splits["train"], splits[name] = splits["train"].train_test_split(share, seed=seed).values()
    return DatasetDict({name: splits[name] for name in ("train", "validation", "test")})


def _keep_once(documents: DatasetDict) -> DatasetDict:
    seen = set(documents["test"]["text"][:])
    for name in ("validation", "train"):
        texts = documents[name]["text"][:]
        kept = [number for number, text in enumerate(texts) if text not in seen]
        if dropped := len(texts) - len(kept):
            print(f"{name}: {dropped:,} of {len(texts):,} documents stand in another split too and are left out.")
            documents[name] = documents[name].select(kept)
        seen.update(texts)
    return documents


def tokenize_blocks(
    documents: Dataset | DatasetDict, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> Dataset | DatasetDict:
    """Return blocks of ``block_size`` tokens, columns ``input_ids``, ``attention_mask``, ``labels`` and ``length``.

    Documents are joined, each closed by the end-of-text token, and cut. What is left at the end of every 1,000
    documents is a shorter block, to be padded in its batch; only a last token alone is dropped, since a block's first
    token is not predicted. ``labels`` are the ``input_ids``: the model shifts them itself.

    Raises:
        ValueError: a split makes no block, since it has no tokens.
    """
    blocks = documents.map(
        cut_blocks, batched=True, fn_kwargs={"tokenizer": tokenizer, "block_size": block_size},
        remove_columns=["text"],
    )  # fmt: skip
    for name, rows in blocks.items() if isinstance(blocks, DatasetDict) else [("the data set", blocks)]:
        if rows.num_rows == 0:
            raise ValueError(f"The documents of {name} make no block of two tokens or more; expected longer texts.")
    return blocks


def cut_blocks(batch: dict[str, list], tokenizer: PreTrainedTokenizerBase, block_size: int) -> dict[str, list]:
    """Return the columns of `tokenize_blocks` for a batch of the column ``text``."""
    # A document may be longer than the model's positions: the blocks are not.
    encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
    ids = list(chain.from_iterable([*document, tokenizer.eos_token_id] for document in encoded))
    blocks = [ids[start : start + block_size] for start in range(0, len(ids) - 1, block_size)]
    length = [len(block) for block in blocks]
    return {"input_ids": blocks, "attention_mask": [[1] * rows for rows in length], "labels": blocks, "length": length}
