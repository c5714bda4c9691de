"""Rows of like length share a batch, in training and in evaluation: padding is computed on for nothing."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

JITTER = 0.05  # of a length: enough that long rows too, which seldom share a length, have new neighbours each epoch
# Tokens of a batch in evaluation, padding included: where the rate of a CPU, or of a GPU, has stopped to rise.
EVALUATION_TOKENS = {"cpu": 2_048, "cuda": 32_768}


def longest_first(dataset: Dataset) -> np.ndarray:
    """Return the numbers of the rows by falling ``length``: a batch too large for the memory fails at once."""
    return np.argsort(dataset["length"][:], kind="stable")[::-1]


class LengthSampler(Sampler[int]):
    """Yields the rows' numbers so that each ``batch_size`` of them in turn are of like length, in random order.

    The Trainer's own sampler sorts within a fraction of the rows only, which leaves much padding where rows are few.
    The first batch is the longest one: if it does not fit into memory, that shows at once. The order is drawn from
    ``seed`` and what ``epoch()`` returns alone: a resumed run has that of the run it resumes.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch()])
        noise = generator.uniform(-JITTER, JITTER, len(self.lengths))
        # Lengths are whole numbers: below 1 / JITTER the noise decides among equals only.
        order = np.argsort(self.lengths * (1 + noise))[::-1]
        whole = len(order) // self.batch_size * self.batch_size
        batches = order[:whole].reshape(-1, self.batch_size)
        batches[1:] = generator.permutation(batches[1:])
        yield from np.concatenate([batches.ravel(), order[whole:]]).tolist()


class TokenBatchSampler(Sampler[list[int]]):
    """Yields batches of rows that follow each other: at most ``max_rows``, and ``max_tokens`` once they are padded.

    A row that alone has more tokens makes a batch of its own.
    """

    def __init__(self, lengths: list[int], max_tokens: int, max_rows: int):
        self.batches, longest = [[]], 0
        for row, length in enumerate(lengths):
            longest = max(longest, length)
            count = len(self.batches[-1]) + 1
            if count > 1 and (count > max_rows or count * longest > max_tokens):
                self.batches.append([])
                longest = length
            self.batches[-1].append(row)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


class LengthTrainer(Trainer):
    """A Trainer for data sets with a column ``length``: batches of like length, in evaluation of like size in tokens.

    For evaluation the rows are taken in their order: sort them by length first.
    """

    def train(self, *args, **kwargs) -> TrainOutput:
        """Train as `Trainer.train` does, on the gradients of all processes, even a model that was evaluated before."""
        # Accelerate marks a model that it has prepared for evaluation. The mark shows through the PeftModel around it,
        # and the model would not be prepared for training: each process would follow its own gradients, unnoticed.
        for module in self.model.modules():
            vars(module).pop("_is_accelerate_prepared", None)
        return super().train(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        # Of the data set as it was handed over: the one in train_dataset has lost the columns the model does not know.
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size  # of an update
        # Not by set_epoch: in a resumed run of several processes Accelerate's loaders hide the sampler.
        return LengthSampler(
            self.train_dataset["length"][:], rows, self.args.seed, lambda: math.floor(self.state.epoch or 0)
        )

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """Return the batches of ``eval_dataset``, by default of the data set that the Trainer was made with."""
        return self.get_test_dataloader(self.eval_dataset if eval_dataset is None else eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Return the batches of ``test_dataset``: one process takes tokens into account, several a number of rows."""
        if self.args.world_size > 1:  # they share out batches of one size
            return super().get_test_dataloader(test_dataset)
        tokens = EVALUATION_TOKENS["cuda" if torch.cuda.is_available() else "cpu"]
        loader = DataLoader(
            self._remove_unused_columns(test_dataset, "test"),
            batch_sampler=TokenBatchSampler(test_dataset["length"][:], tokens, self.args.eval_batch_size),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(loader)
