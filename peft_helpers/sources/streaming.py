"""Examples that are read as they are needed, for a dataset that is too large to be stored or prepared as a whole."""

from collections.abc import Callable
from functools import partial

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from peft_helpers.arguments import Arguments
from peft_helpers.batches import LengthSampler
from peft_helpers.columns import find_columns, join_texts, name_labels
from peft_helpers.data import hash_texts, prepare_splits, rename_splits

EVAL_SAMPLES = 2_000  # of validation and of test, unless max_eval_samples says otherwise
CHECKED_EXAMPLES = 5_000  # of train: by these, columns and labels are found, and missing splits carved
SHUFFLE_BUFFER = 10_000  # examples
GROUPED_BATCHES = 50  # batches within which examples are length-grouped


def prepare_stream(raw: IterableDatasetDict, args: Arguments) -> dict[str, Dataset | IterableDataset]:
    """Return train as an endless stream, validation and test as tables, with the columns of `prepare_splits`.

    Nothing is read to its end: validation and test are the first ``max_eval_samples`` examples (by default
    `EVAL_SAMPLES`) of their splits, shuffled within `SHUFFLE_BUFFER` examples; what is missing is carved, as in
    `prepare_splits`, out of as many of train as are checked. Without a ``ClassLabel``, the labels are those of these
    examples. Later ones with other labels or without text or label, and texts of validation and test, are left out.
    When the stream ends, it starts again in the same order.
    """
    seed, rows = args.training.seed, args.data.max_eval_samples or EVAL_SAMPLES
    splits = {name: split.shuffle(seed, buffer_size=SHUFFLE_BUFFER) for name, split in rename_splits(raw).items()}
    first = {}
    for name, split in splits.items():
        examples = list(split.take(CHECKED_EXAMPLES if name == "train" else rows))
        first[name] = Dataset.from_list(examples, features=split.features)
    print(f"Of the stream, the first {first['train'].num_rows:,} training examples are checked.")
    tables = prepare_splits(DatasetDict(first), args.replace(max_eval_samples=rows))
    encode = _make_encoder(first["train"], tables, args)
    columns, features = first["train"].column_names, tables["train"].features
    train = splits["train"].map(encode, batched=True, remove_columns=columns, features=features).repeat(None)
    batch_size = args.training.per_device_train_batch_size * args.training.gradient_accumulation_steps
    group = partial(group_by_length, batch_size=batch_size)
    grouped = train.map(group, batched=True, batch_size=GROUPED_BATCHES * batch_size, features=features)
    return {**tables, "train": grouped}


def _make_encoder(raw: Dataset, tables: DatasetDict, args: Arguments) -> Callable[[dict[str, list]], dict[str, list]]:
    """Return what makes a batch of ``raw``'s columns one of `prepare_splits`'s, without what is left out."""
    columns, label_column = find_columns(raw, args.data)
    label = tables["train"].features["label"]
    left_out = hash_texts(["", *join_texts(tables["validation"][:]), *join_texts(tables["test"][:])])

    def encode(batch: dict[str, list]) -> dict[str, list]:
        names = name_labels(batch[label_column], raw.features[label_column])
        texts = {name: batch[column] for column, name in columns.items()}
        kept = np.flatnonzero(names.isin(label.names) & ~np.isin(hash_texts(join_texts(texts)), left_out))
        texts = {name: [values[row] for row in kept] for name, values in texts.items()}
        return texts | {"label": label.str2int(names[kept].tolist())}

    return encode


def group_by_length(batch: dict[str, list], batch_size: int) -> dict[str, list]:
    """Return ``batch`` in groups of ``batch_size`` texts of similar length, the groups in random order."""
    # Of one seed and epoch, so that a run that goes on from a checkpoint meets the same groups.
    order = list(LengthSampler([len(text) for text in join_texts(batch)], batch_size, seed=0, epoch=lambda: 0))
    return {name: [values[number] for number in order] for name, values in batch.items()}
