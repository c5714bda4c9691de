"""Batches of similar length, since padding is computed for nothing; and how long they take."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from scipy.special import log_softmax
from sklearn.utils.class_weight import compute_class_weight
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput
from transformers.utils import ModelOutput

from peft_helpers.distributed import hold_in_bfloat16, keep_freed_memory

EVALUATION_SHARE = 0.4  # of the time that it takes to train on an example, with LoRA on GPT-2
JITTER = 0.05  # of a length: enough that long examples too, which seldom share a length, have new neighbors each epoch
# Tokens of a batch in evaluation, padding included: more brought a CPU little. That of a GPU is not measured.
EVALUATION_TOKENS = {"cpu": 2_048, "cuda": 32_768}
# Tokens up to which eager attention is used in bfloat16 on a CPU. There, the backward pass of the fused kernel takes 12
# times as long as eager attention for 11 tokens, 4 times for 128, 1.3 times for 448 (PyTorch 2.13).
EAGER_TOKENS = 256


class LengthSampler(Sampler[int]):
    """Yields numbers of examples so that each ``batch_size`` of them in turn are of similar length, in random order.

    The Trainer's own ``group_by_length`` leaves more padding: of 512 examples of SST-2 in batches of 16 it makes 80 %
    real tokens, this 93 %. The longest batch comes first, so that too little memory shows at once. The order
    depends on ``seed`` and ``epoch()`` alone, also in a resumed run.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch: Callable[[], int]):
        self.lengths, self.batch_size, self.seed, self.epoch = np.asarray(lengths), batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch()])
        noise = generator.uniform(-JITTER, JITTER, len(self.lengths))  # below 1 / (2 JITTER) tokens it only breaks ties
        order = np.argsort(self.lengths * (1 + noise))[::-1]
        whole = len(order) // self.batch_size * self.batch_size
        batches = order[:whole].reshape(-1, self.batch_size)
        batches[1:] = generator.permutation(batches[1:])
        yield from np.concatenate([batches.ravel(), order[whole:]]).tolist()


def batch_by_tokens(lengths: list[int], max_rows: int) -> list[list[int]]:
    """Return batches of consecutive examples, of at most `EVALUATION_TOKENS` once padded; one alone may have more."""
    batches, longest = [[]], 0
    max_tokens = EVALUATION_TOKENS["cuda" if torch.cuda.is_available() else "cpu"]
    for number, length in enumerate(lengths):
        longest, count = max(longest, length), len(batches[-1]) + 1
        if count > 1 and (count > max_rows or count * longest > max_tokens):
            batches.append([])
            longest = length
        batches[-1].append(number)
    return batches


def examples_per_update(args: TrainingArguments) -> int:
    """Return the number of examples of an update: those of all processes and of accumulated batches."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def count_steps(train: Dataset | IterableDataset, args: TrainingArguments) -> int:
    """Return the number of updates in a whole run."""
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * math.ceil(train.num_rows / examples_per_update(args)))


def balance_loss(labels: list[int], number: int, smoothing: float = 0.0) -> Callable[..., torch.Tensor]:
    """Return a ``compute_loss_func``: cross-entropy in which each of ``number`` labels weighs the same as a whole."""
    # Of k labels that occur, one that n_c of n examples have weighs n / (k n_c).
    present, weights = np.unique(labels), np.ones(number, dtype=np.float32)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    weighted = torch.nn.CrossEntropyLoss(torch.tensor(weights), reduction="sum", label_smoothing=smoothing)

    def compute_loss(outputs: ModelOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None):
        loss = weighted.to(labels.device)(outputs.logits.float(), labels)
        # The Trainer leaves it to this loss to divide by the examples of a whole update, accumulated batches and all.
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return compute_loss


class LengthTrainer(Trainer):
    """A Trainer for datasets with a column ``length``: batches of similar length, in evaluation of similar tokens."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._set_up(self.model)
        # GPT-2's classifier ignores num_items_in_batch, and nobody would divide its loss by gradient_accumulation_steps
        # (transformers issue 47688). Its language model divides by it, but the Trainer counts the first token of each
        # row, which is not predicted (transformers pull request 46204 leaves out GPT2LMHeadModel).
        self.model_accepts_loss_kwargs = False
        if self.train_dataset is not None and getattr(self.args, "class_weights", None):
            labels, number = self.train_dataset["labels"][:], self.model.config.num_labels
            self.compute_loss_func = balance_loss(labels, number, self.args.label_smoothing_factor)

    def _set_up(self, model: PreTrainedModel) -> PreTrainedModel:
        # It has no other name: https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/configuration_utils.py
        self.asked_attention = model.config._attn_implementation  # maybe what another Trainer has asked for
        model.own_attention = self.attention = getattr(model, "own_attention", self.asked_attention)
        if self.args.bf16:
            hold_in_bfloat16(model)
        if self.args.use_cpu:
            keep_freed_memory()
        self.is_causal = {layer.is_causal for layer in model.modules() if hasattr(layer, "is_causal")} == {True}
        return model

    def call_model_init(self, trial=None) -> PreTrainedModel:
        """Return the new model of a trial of `hyperparameter_search`, set up as the first one was."""
        return self._set_up(super().call_model_init(trial))

    def _report_to_hp_search(self, trial, step: int, metrics: dict[str, float]) -> None:
        # In tenths of the run: Optuna compares trials at equal steps, and batch size and epochs change how many it has.
        # https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/trainer.py, _report_to_hp_search
        super()._report_to_hp_search(trial, 10 * step // self.state.max_steps, metrics)

    def train(self, *args, **kwargs) -> TrainOutput:
        """Train as `Trainer.train` does, on the gradients of all processes, even a model that was evaluated before."""
        # Accelerate marks a model that it has prepared for evaluation and does not prepare it for training then: each
        # process would follow its own gradients, unnoticed.
        # https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/accelerator.py, prepare_model
        for module in self.model.modules() if self.model is not None else ():  # a trial leaves none behind
            vars(module).pop("_is_accelerate_prepared", None)
        return super().train(*args, **kwargs)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        """Return the loss of a step, as `Trainer.training_step` does; see `_keep_input_dtype`."""
        with self._keep_input_dtype():
            return super().training_step(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        """Evaluate as `Trainer.evaluation_loop` does, in the type of this Trainer; see `_keep_input_dtype`."""
        # A model that another Trainer has evaluated is not prepared for autocast again; see `train`.
        with self._keep_input_dtype(), self.accelerator.autocast():
            return super().evaluation_loop(*args, **kwargs)

    def _keep_input_dtype(self) -> AbstractContextManager:
        # PEFT converts what a LoRA layer gets in 16 bits to 32 bits, which autocast undoes. DoRA's norms need the 32
        # bits, and some of PEFT's other layers, those of trainable tokens among them, lack the switch.
        needs_casting = any(
            not isinstance(config, LoraConfig) or config.use_dora or config.trainable_token_indices
            for config in getattr(self.model, "peft_config", {}).values()
        )
        is_active = (self.args.bf16 or self.args.fp16) and not needs_casting
        return disable_input_dtype_casting(self.model, active=is_active)

    def compute_loss(self, model: PreTrainedModel, inputs: dict, *args, **kwargs) -> torch.Tensor:
        """Return the loss, in training and evaluation; in bfloat16 on a CPU by the attention that suits the length."""
        if self.is_causal:  # padding is on the right, where no token looks: without a mask, SDPA takes a flash kernel
            inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
        if self.args.bf16 and self.args.use_cpu:
            attention = "eager" if inputs["input_ids"].shape[1] <= EAGER_TOKENS else self.attention
            if attention != self.asked_attention:  # some models keep another
                self.asked_attention = attention
                self.model.set_attn_implementation(attention)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        # Of the dataset as it was passed in: the one here has lost the columns that the model does not know.
        rows, lengths = examples_per_update(self.args), self.train_dataset["length"][:]
        return LengthSampler(lengths, rows, self.args.seed, lambda: math.floor(self.state.epoch or 0))

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """Return the batches of ``eval_dataset``, by default of the dataset that the Trainer was made with."""
        return self.get_test_dataloader(self.eval_dataset if eval_dataset is None else eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Return the batches of ``test_dataset`` in its order: by tokens, or by rows where processes share them."""
        # By rows also where the loss is the metric: the Trainer takes all batches but the last to be of one size.
        if self.args.world_size > 1 or self.compute_metrics is None:
            return super().get_test_dataloader(test_dataset)
        batches = batch_by_tokens(test_dataset["length"][:], self.args.eval_batch_size)
        dataset = self._remove_unused_columns(test_dataset, "test")
        return self.accelerator.prepare(DataLoader(dataset, batch_sampler=batches, collate_fn=self.data_collator))


class StepTimer(TrainerCallback):
    """Times the steps of a run; the first two, which warm up and have the longest batch, do not count.

    With ``eval_rows``, the examples of an evaluation, it prints early how long the run takes here with all evaluations.
    """

    def __init__(self, eval_rows: int | None = None):
        self.steps, self.eval_rows = [], eval_rows

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Note the time, and print the whole run's after a twentieth of the steps, at most twenty."""
        self.steps.append(time.perf_counter() - self.start)
        is_told = self.eval_rows is not None and state.is_world_process_zero
        if not is_told or len(self.steps) != max(4, min(20, state.max_steps // 20)):
            return
        by_steps = 1 / args.eval_steps if args.eval_steps < 1 else state.max_steps / args.eval_steps
        evaluations = round({"steps": by_steps, "epoch": args.num_train_epochs, "no": 0}[args.eval_strategy.value])
        in_steps = EVALUATION_SHARE * evaluations * self.eval_rows / examples_per_update(args)
        duration = format_seconds((state.max_steps + in_steps) * self.seconds())
        tqdm.write(f"Training takes about {duration} here: {state.max_steps:,} steps and {evaluations} evaluations.")

    def seconds(self) -> float:
        """Return the mean time of a step."""
        return float(np.mean(self.steps[2:]))


def format_seconds(seconds: float) -> str:
    """Return a duration as text: in minutes if it has two or more."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def find_first(dataset: Dataset) -> np.ndarray:
    """Tell which examples are the first chunk of a text: all, unless ``is_first`` says otherwise."""
    return np.array(dataset["is_first"] if "is_first" in dataset.column_names else [True] * dataset.num_rows)


def average_chunks(output: PredictionOutput, dataset: Dataset, compute_metrics: Callable) -> PredictionOutput:
    """Return ``output``, of the chunks of ``dataset``, for its texts: logits are logarithms of mean probabilities."""
    is_first = find_first(dataset)
    if is_first.all():
        return output
    texts, logits = np.cumsum(is_first) - 1, np.full_like(output.predictions[is_first], -np.inf)
    np.logaddexp.at(logits, texts, log_softmax(output.predictions, axis=-1))
    logits -= np.log(np.bincount(texts))[:, None]
    averaged = EvalPrediction(logits, output.label_ids[is_first])
    scores = compute_metrics(averaged) | {"examples": len(logits)}
    return PredictionOutput(*averaged, output.metrics | {f"test_{name}": score for name, score in scores.items()})


def longest_first(dataset: Dataset) -> np.ndarray:
    """Return the numbers of the examples in descending order of ``length``."""
    return np.argsort(dataset["length"][:], kind="stable")[::-1]
