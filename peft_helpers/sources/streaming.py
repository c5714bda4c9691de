"""Rows that are read as they are needed, for a data set that is too large to be stored or prepared as a whole."""

import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
from datasets import ClassLabel, Dataset, Features, IterableDataset, IterableDatasetDict, Value
from transformers import PreTrainedTokenizerBase

from peft_helpers.arguments import Arguments
from peft_helpers.data import check_train, find_columns, hash_texts, name_labels, rename_splits
from peft_helpers.distributed import process_state
from peft_helpers.tokenization import tokenize_dataset, tokenize_passages

EVAL_ROWS = 2_000  # of validation and of test, unless `Arguments.max_eval_samples` says otherwise
SHUFFLE_BUFFER = 10_000  # rows
MAX_LABELS = 1_000  # more than that are no classes, and would fill the memory
_NO_LABEL = ("", -1, "-1")
_HEAD_ROWS = 1_000  # by which columns are told
_GROUPED_BATCHES = 50  # as the Trainer's sampler takes at a time


def prepare_stream(raw: IterableDatasetDict, args: Arguments) -> dict[str, Dataset | IterableDataset]:
    """Return train as an endless stream, validation and test as tables, with the columns ``text`` and ``label``.

    Validation and test are random samples of `Arguments.max_eval_samples` rows, by default `EVAL_ROWS`. The split that is
    missing is drawn from train: at most a fifth for the test, a tenth for the validation. What is learnt from the rows
    (missing splits, the labels where no ``ClassLabel`` lists them) takes one pass over them before training. Rows
    without text or label and texts of the test or the validation are left out of train as they come by. The stream
    is shuffled within `SHUFFLE_BUFFER` rows, and starts again, in the same order, when it ends.

    Raises:
        ValueError: a column cannot be told or found, there is one label only or more than `MAX_LABELS`, a label to be
            tested on never occurs in train, or no row is left to train on.
    """
    check_train(raw)
    splits = rename_splits(raw)
    head = Dataset.from_list(list(splits["train"].take(_HEAD_ROWS)), features=splits["train"].features)
    columns = find_columns(head, args.data.text_column, args.data.label_column)
    samples, counts = _draw_samples(splits, columns, head.features[columns[1]], args)
    names = _name_labels(columns[1], head.features[columns[1]], counts)
    label = ClassLabel(names=list(dict.fromkeys(names.values())))
    ids = {value: label.str2int(name) for value, name in names.items()}
    features = Features({"text": Value("string"), "label": label})

    tables, seen = {}, set()
    for name in ("test", "validation"):
        texts, labels = _keep(*zip(*samples[name], strict=True), ids, seen) if samples[name] else ([], [])
        tables[name] = Dataset.from_dict({"text": texts, "label": labels}, features=features)
        seen |= set(hash_texts(texts).tolist())
    _check_tables(tables, label, ids, counts.get("train"))

    def encode(batch: dict[str, list]) -> dict[str, list]:
        texts, labels = _keep(*(batch[column] for column in columns), ids, seen)
        return {"text": texts, "label": labels}

    train = splits["train"].map(encode, batched=True, remove_columns=head.column_names, features=features)
    if next(iter(train), None) is None:
        raise ValueError("No row is left to train on: all lack a text or a label, or stand in validation or test.")
    sizes = ", ".join(f"{table.num_rows:,} for the {name}" for name, table in tables.items())
    print(f"The training rows are streamed; rows kept in memory: {sizes}.")
    return {"train": train.shuffle(args.training.seed, buffer_size=SHUFFLE_BUFFER).repeat(None), **tables}


def _draw_samples(
    splits: dict[str, IterableDataset], columns: tuple[str, str], feature: object, args: Arguments
) -> tuple[dict[str, list], dict[str, Counter]]:
    """Return rows for test and validation, and how often each label occurs in the splits that were read for it."""
    rows, samples, counts = args.data.max_eval_samples or EVAL_ROWS, {}, {}
    for name in ("test", "validation"):
        if name in splits:
            sample, found = _survey(name, splits[name], columns, rows, args.training.seed)
            if any(label not in _NO_LABEL for label in found):  # SST-2's test has none
                samples[name], counts[name] = sample, found
    if "test" not in samples and "validation" in samples:
        samples["test"], counts["test"] = samples.pop("validation"), counts.pop("validation")
    missing = [name for name in ("test", "validation") if name not in samples]
    if missing or not isinstance(feature, ClassLabel):
        drawn, counts["train"] = _survey("train", splits["train"], columns, 2 * rows, args.training.seed)
        for name, share in (("test", 0.2), ("validation", 0.1)):
            if name in missing:
                size = min(rows, round(share * counts["train"].total()))
                samples[name], drawn = drawn[:size], drawn[size:]
    return samples, counts


def _survey(
    name: str, stream: IterableDataset, columns: tuple[str, str], rows: int, seed: int
) -> tuple[list[tuple[str, object]], Counter]:
    """Return a random sample of the rows of a split, in random order, and how often each label occurs.

    Each row has the same chance, though their number is known only at the end (Vitter 1985, algorithm R).
    """
    generator, sample, counts = random.Random(seed), [], Counter()
    for number, (text, label) in enumerate(_labelled(stream, columns)):
        counts[label] += 1
        if len(counts) > MAX_LABELS:
            raise ValueError(
                f"The column {columns[1]!r} of the split {name} has more than {MAX_LABELS:,} labels in its first "
                f"{number + 1:,} rows; expected classes that recur. Name another label_column."
            )
        if number < rows:
            sample.append((text, label))
        elif (place := generator.randrange(number + 1)) < rows:
            sample[place] = text, label
    generator.shuffle(sample)
    return sample, counts


def _labelled(stream: IterableDataset, columns: tuple[str, str]) -> Iterator[tuple[str, object]]:
    for batch in stream.select_columns(list(columns)).iter(batch_size=1000):
        for text, label in zip(*(batch[column] for column in columns), strict=True):
            if text and text.strip() and label is not None and label == label:  # NaN != NaN
                yield text, label


def _name_labels(column: str, feature: object, counts: dict[str, Counter]) -> dict[object, str]:
    if isinstance(feature, ClassLabel):
        return dict(enumerate(feature.names))
    values = set().union(*counts.values())
    return name_labels(column, values, sum(found.total() for found in counts.values()))


def _keep(texts: list[str], labels: list, ids: dict[object, int], seen: set[int]) -> tuple[list[str], list[int]]:
    rows = [(t, ids[label]) for t, label in zip(texts, labels, strict=True) if t and t.strip() and label in ids]
    hashes = hash_texts([text for text, _ in rows])
    kept = [row for row, number in zip(rows, hashes.tolist(), strict=True) if number not in seen]
    return [text for text, _ in kept], [label for _, label in kept]


def _check_tables(tables: dict[str, Dataset], label: ClassLabel, ids: dict, train: Counter | None) -> None:
    if empty := [name for name, table in tables.items() if table.num_rows == 0]:
        raise ValueError(f"No rows are left for {' and '.join(empty)}; the data set is too small.")
    if label.num_classes < 2:
        raise ValueError(
            f"There is one label only, {label.names}; expected at least two. Note that -1 means 'no label'."
        )
    known = {ids[value] for value in train if value in ids} if train is not None else set(range(label.num_classes))
    for name, table in tables.items():
        if unknown := set(table["label"]) - known:
            names = [label.int2str(number) for number in sorted(unknown)]
            raise ValueError(f"The split {name} has the labels {names}, which train lacks; correct those rows.")


def tokenize_stream(
    dataset: dict[str, Dataset | IterableDataset], tokenizer: PreTrainedTokenizerBase, args: Arguments
) -> dict[str, Dataset | IterableDataset]:
    """Return the splits of `prepare_stream` tokenized for `make_trainer`; train as it is read, in passages.

    Of every 50 batches of the stream, rows of like length share a batch.
    """
    rows = (
        args.training.per_device_train_batch_size
        * args.training.gradient_accumulation_steps
        * process_state().num_processes
    )
    train = tokenize_passages(dataset["train"], tokenizer, args.data.max_length)
    grouped = train.map(group_by_length, batched=True, batch_size=_GROUPED_BATCHES * rows, fn_kwargs={"rows": rows})
    tables = {name: tokenize_dataset(dataset[name], tokenizer, args.data.max_length) for name in ("validation", "test")}
    return {"train": grouped, **tables}


def group_by_length(batch: dict[str, list], rows: int) -> dict[str, list]:
    """Return ``batch`` with every ``rows`` rows of like ``length`` beside each other, these groups in mixed order."""
    order = np.argsort(batch["length"], kind="stable")
    groups = [order[start : start + rows] for start in range(0, len(order), rows)]
    # The same order for each batch, so that a run that goes on from a checkpoint meets the same groups.
    mixed = np.concatenate([groups[number] for number in np.random.default_rng(0).permutation(len(groups))])
    return {name: [values[number] for number in mixed] for name, values in batch.items()}
