"""Several methods trained and tested alike; each result is kept as soon as it is there."""

import ctypes
import gc
import hashlib
import json
import platform
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel, PeftType
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from peft_helpers.adapters import adapter_size, describe_recipe
from peft_helpers.analysis.report import describe_environment
from peft_helpers.arguments import Arguments
from peft_helpers.comparison.baselines import run_baselines, score_predictions
from peft_helpers.comparison.methods import AllocateRanks, adapt_model, find_method, learning_rate, plan_comparison
from peft_helpers.comparison.tables import describe_result, read_results, write_results
from peft_helpers.distributed import process_state
from peft_helpers.metrics import assert_same_predictions
from peft_helpers.modeling import check_model, empty_model, load_model
from peft_helpers.tokenization import set_padding, tokenize_splits
from peft_helpers.training import CLASSIFICATION, NO_EVALUATION, LengthTrainer, predict

RELOAD_EXAMPLES = 64  # on which the reloaded adapter is compared with the one in memory
INTERVAL = 0.01  # seconds between two looks at the memory: a training step takes longer


def compare_methods(dataset: DatasetDict, args: Arguments) -> tuple[list[dict], np.ndarray]:
    """Run the baselines and ``comparison_methods``; return their results and the true labels of the test examples.

    Raises:
        ValueError: ``args`` has streaming, or there are several processes; see also `plan_comparison` and `check_model`.
    """
    if args.data.streaming:
        raise ValueError("Methods are compared on the same examples in memory; leave out --streaming.")
    if process_state().num_processes > 1:
        raise ValueError("Methods are compared in one process, for their times; leave out accelerate launch.")
    runs = plan_comparison(args)
    check_model(args)
    name = args.model.model_name_or_path
    tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=args.data.max_length)
    set_padding(tokenizer, empty_model(AutoConfig.from_pretrained(name)))
    tokenized, label_names = tokenize_splits(dataset, tokenizer), dataset["test"].features["label"].names
    results = run_baselines(dataset, args.training.seed)
    results += run_methods(runs, args, tokenized, tokenizer, label_names, args.comparison.comparison_file)
    return results, np.array(dataset["test"]["label"][:])


def run_methods(
    runs: list[tuple[str, int]],
    args: Arguments,
    tokenized: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    label_names: list[str],
    results_file: str | Path,
) -> list[dict]:
    """Run each method of ``runs`` with its seed by `run_method`, and return the results.

    They are kept in ``results_file``: what is there for the same options, versions, device, labels and lengths of the
    examples is not run again. A method that fails has an ``error``, and the others go on.
    """
    environment = describe_environment().to_dict()
    examples = [tokenized[split][column][:] for split in ("train", "test") for column in ("labels", "length")]
    results = []
    for number, (name, seed) in enumerate(runs, 1):
        recipe = describe_recipe(args) | {"seed": seed, "learning_rate": learning_rate(name, args)}
        settings = [name, recipe, args.comparison.comparison_steps, label_names, environment, examples]
        fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        kept = read_results(results_file)
        row = next((row for row in kept if row["fingerprint"] == fingerprint and row["error"] is None), None)
        source = f" (from {results_file})" if row else ""
        if row is None:
            row = {"method": name, "seed": seed, "error": None, "fingerprint": fingerprint, "environment": environment}
            try:
                row |= run_method(name, args.replace(seed=seed), tokenized, tokenizer, label_names)
            except Exception as error:  # the next methods go on
                row["error"] = f"{type(error).__name__}: {error}"
            write_results([*kept, row], results_file)
        print(f"{number} of {len(runs)}: {describe_result(row)}{source}")
        results.append(row)
    return results


def run_method(
    name: str, args: Arguments, tokenized: DatasetDict, tokenizer: PreTrainedTokenizerBase, label_names: list[str]
) -> dict:
    """Train one method from the pre-trained model and the head of ``args.training.seed``; return scores and costs.

    Every method takes ``comparison_steps`` steps on the same examples in the same order, and is tested as it ends. The
    adapter is saved, loaded onto a fresh base model and compared with the one in memory; then it is removed.
    """
    method = find_method(name)
    args = args.replace(load_in_4bit=method.quantized, learning_rate=learning_rate(name, args))
    with PeakMemory() as memory:
        model = adapt_model(load_model(args, tokenizer, CLASSIFICATION, label_names), method, args)
        seconds = _train(model, tokenized["train"], tokenizer, args)
    output = predict(model, tokenizer, tokenized["test"], args, disable_tqdm=True)
    megabytes, verified = sum(parameter.nbytes for parameter in model.parameters()) / 1e6, "not kept"
    if isinstance(model, PeftModel):
        # With another seed, what was not saved of the head comes back as other random numbers, and shows.
        base = load_model(args.replace(seed=args.training.seed ^ 1), tokenizer, CLASSIFICATION, label_names)
        megabytes, verified = _check_reload(model, base, tokenized["test"], tokenizer, args), "yes"
    return {
        "learning_rate": args.training.learning_rate,
        "parameters": model.num_parameters(),
        "trainable_parameters": model.num_parameters(only_trainable=True),
        "train_seconds": seconds,
        "peak_memory_mb": memory.megabytes,
        "adapter_mb": megabytes,
        "reload_verified": verified,
    } | score_predictions(output)


def _train(model: PreTrainedModel, train: Dataset, tokenizer: PreTrainedTokenizerBase, args: Arguments) -> float:
    """Train ``model`` for ``comparison_steps`` steps, without evaluation or checkpoint, and return the seconds."""
    steps, data_collator = args.comparison.comparison_steps, CLASSIFICATION.make_data_collator(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        arguments = replace(args.training, output_dir=folder, max_steps=steps, disable_tqdm=True, **NO_EVALUATION)
        trainer = LengthTrainer(model, arguments, data_collator, train, callbacks=[AllocateRanks()])
        trainer.remove_callback(PrinterCallback)
        return trainer.train().metrics["train_runtime"]


def _check_reload(
    model: PeftModel, base: PreTrainedModel, test: Dataset, tokenizer: PreTrainedTokenizerBase, args: Arguments
) -> float:
    """Assert that what is saved of ``model`` predicts the same on ``base``, and return its MB (10^6 bytes)."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        # AdaLoRA computes a loss only where it can be trained (peft 0.21).
        reloaded = PeftModel.from_pretrained(base, folder, is_trainable=model.peft_type == PeftType.ADALORA)
        megabytes = adapter_size(folder)
    some = test.select(range(min(RELOAD_EXAMPLES, test.num_rows)))
    assert_same_predictions(*(predict(each, tokenizer, some, args, disable_tqdm=True) for each in (model, reloaded)))
    return megabytes


class PeakMemory:
    """A context whose ``megabytes`` (10^6 bytes) is the most memory in use at a time beyond that in use before.

    On CUDA it is what PyTorch's allocator held, elsewhere the resident memory, looked at a hundred times a second.
    """

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if platform.libc_ver()[0] == "glibc":  # what earlier work has freed is resident still, and would be used again
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._start = self._peak = _peak_so_far()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._done.set()
        self._thread.join()
        self.megabytes = (self._peak - self._start) / 1e6

    def _watch(self) -> None:
        is_done = False
        while not is_done:  # one more look when it is done: on CUDA it tells the peak
            is_done = self._done.wait(INTERVAL)
            self._peak = max(self._peak, _peak_so_far())


def _peak_so_far() -> int:
    # torch.accelerator has this for every accelerator but Apple's, where it fails (PyTorch issue 167447).
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
