"""Several methods trained and tested alike, in the time that is given; each result is kept as soon as it is there."""

import gc
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from datasets import DatasetDict
from datasets.fingerprint import Hasher
from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from peft_helpers.adapters import describe_recipe
from peft_helpers.analysis.linear_probe import SHORT_RUN, STRENGTH, count_in_steps, fit_head
from peft_helpers.analysis.report import describe_environment
from peft_helpers.analysis.sharing import adapter_size
from peft_helpers.arguments import Arguments
from peft_helpers.batches import EVALUATION_SHARE, LengthTrainer, StepTimer, examples_per_update, format_seconds
from peft_helpers.comparison.baselines import BASELINES, plan_baselines, run_baseline, score_predictions
from peft_helpers.comparison.methods import METHODS, adapt_model, learning_rate, plan_comparison
from peft_helpers.comparison.tables import read_results, write_results
from peft_helpers.distributed import call_glibc, keep_freed_memory, process_state
from peft_helpers.metrics import assert_same_predictions
from peft_helpers.modeling import check_model, load_model
from peft_helpers.tokenization import tokenize_splits
from peft_helpers.training import CLASSIFICATION, NO_EVALUATION, predict

RELOADED = 64  # test examples that a reloaded adapter has to predict alike
FEWEST_STEPS = 20  # of those that a comparison may be shortened to
Runs = list[tuple[str, int]]  # methods with their seeds


@dataclass(frozen=True)
class Prepared:
    """What all runs share: the splits as tokens, the tokenizer, the names of the labels."""

    tokenized: DatasetDict
    tokenizer: PreTrainedTokenizerBase
    label_names: list[str]
    dataset: DatasetDict | None = None  # as texts, for the baselines
    digest: str = ""  # of texts and labels


def check_comparison(args: Arguments) -> None:
    """Raise a ValueError if ``args`` has streaming, or this is one of several processes; see also `check_model`."""
    if args.data.streaming or process_state().num_processes > 1:
        raise ValueError("Runs are compared in memory, in one process; leave out --streaming and accelerate launch.")
    check_model(args)


def prepare(dataset: DatasetDict, args: Arguments) -> Prepared:
    """Return what runs on ``dataset`` share."""
    name, length, chunks = args.model.model_name_or_path, args.data.max_length, args.data.average_chunks
    tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=length, average_chunks=chunks)
    label_names = dataset["train"].features["label"].names
    load_model(args, tokenizer, CLASSIFICATION, label_names)  # sets up padding; what it downloads is not timed later
    digest = Hasher.hash([split[:] for split in dataset.values()])
    return Prepared(tokenize_splits(dataset, tokenizer), tokenizer, label_names, dataset, digest)


def compare_methods(dataset: DatasetDict, args: Arguments) -> tuple[list[dict], np.ndarray]:
    """Run the baselines and ``comparison_methods``; return their results and the true labels of the test examples.

    A result in ``comparison_file`` of the same options, versions, device and examples is not run again. A method that
    fails has an ``error``, and the others go on. What does not fit into ``comparison_minutes`` is left out.
    """
    check_comparison(args)
    runs, baselines = plan_comparison(args), [(name, args.training.seed) for name in plan_baselines(args)]
    data = prepare(dataset, args)
    if not all(find_result(name, args.replace(seed=seed), data) for name, seed in runs):
        runs, args = fit_to_budget(runs, args, {name: time_method(name, args, data) for name in dict(runs)})
    results = find_or_run([(name, args.replace(seed=seed), data) for name, seed in [*baselines, *runs]])
    return results, np.array(dataset["test"]["label"][:])


def fit_to_budget(runs: Runs, args: Arguments, seconds: dict[str, tuple[float, float]]) -> tuple[Runs, Arguments]:
    """Return the runs, and the arguments with the steps, that fit into ``comparison_minutes``; print what they take.

    ``seconds`` has `time_method` of each method. What is left out is printed; the quickest method always stays.
    """
    budget, asked = 60 * args.comparison.comparison_minutes, args.comparison.comparison_steps
    fitting, left_out, steps = list(runs), [], asked

    def total(steps: int) -> float:
        return sum(seconds[name][0] + count_in_steps(steps) * seconds[name][1] for name, _ in fitting)

    for seed in sorted({seed for _, seed in runs}, reverse=True)[:-1]:
        if total(steps) > budget:
            fitting = [run for run in fitting if run[1] != seed]
            left_out.append(f"seed {seed}")
    while total(steps) > budget and steps > FEWEST_STEPS:  # by halves: the next time it should be as many again
        steps = max(FEWEST_STEPS, steps // 2)
    if steps < asked:
        left_out.append(f"{asked - steps} of {asked} steps")
    for run in sorted(fitting, key=lambda run: -(seconds[run[0]][1] or np.inf))[:-1]:  # first what failed
        if total(steps) > budget:
            fitting.remove(run)
            left_out.append(run[0])
    print(f"{len(fitting)} to run, {steps} steps each: about {format_seconds(total(steps))} here.")
    if left_out:
        print(f"To fit into --comparison_minutes {budget / 60:g}, these are left out: {', '.join(left_out)}.")
    return fitting, args.replace(comparison_steps=steps)


def find_or_run(runs: list[tuple[str, Arguments, Prepared]]) -> list[dict]:
    """Return the result of each run, from ``comparison_file`` if it is there, and print it as soon as it is."""
    results = []
    for number, (name, args, data) in enumerate(runs, 1):
        found = find_result(name, args, data)
        row = found or _run_and_keep(name, args, data)
        outcome = f"failed, {row['error']}"
        if row["error"] is None:
            outcome = f"accuracy {row['accuracy']:.3f}, macro F1 {row['f1']:.3f}, {row['train_seconds']:.0f} s"
        source = f" (from {args.comparison.comparison_file})" if found else ""
        progress = f"{number} of {len(runs)}, {row['examples']:,} training examples"
        print(f"{progress}: {name}, seed {row['seed']}: {outcome}{source}", flush=True)
        results.append(row)
    return results


def fingerprint(name: str, args: Arguments, data: Prepared) -> str:
    """Return a hash of what the result of a run depends on: its name, recipe, versions, device and examples."""
    settings = [name, describe_recipe(args), describe_environment().to_dict(), data.label_names, data.digest]
    if name in METHODS:
        settings += [args.comparison.comparison_steps, learning_rate(name, args)]
    return Hasher.hash([*settings, STRENGTH, SHORT_RUN])


def find_result(name: str, args: Arguments, data: Prepared) -> dict | None:
    """Return what ``comparison_file`` has for the same run, if it did not fail."""
    wanted, kept = fingerprint(name, args, data), read_results(args.comparison.comparison_file)
    return next((row for row in kept if row["fingerprint"] == wanted and row["error"] is None), None)


def _run_and_keep(name: str, args: Arguments, data: Prepared) -> dict:
    row = {"method": name, "seed": args.training.seed, "error": None, "fingerprint": fingerprint(name, args, data)}
    row |= {"examples": data.dataset["train"].num_rows, "environment": describe_environment().to_dict()}
    try:
        if name in BASELINES:
            row |= run_baseline(name, data.dataset, data.tokenizer, args)
        else:
            row |= run_method(name, args, data)
    except Exception as error:  # the next methods go on
        row["error"] = f"{type(error).__name__}: {error}"
    write_results([*read_results(args.comparison.comparison_file), row], args.comparison.comparison_file)
    return row


def time_method(name: str, args: Arguments, data: Prepared) -> tuple[float, float]:
    """Return the seconds that a run of the method takes without its steps, and those of a step (six are tried)."""
    start = time.perf_counter()
    with suppress(Exception), tempfile.TemporaryDirectory() as folder:  # what fails here fails again in its run
        model, args = _adapt(name, args.replace(comparison_steps=6), data)
        load = time.perf_counter() - start
        trainer, timer = _make_trainer(model, args, data, folder), StepTimer()
        trainer.add_callback(timer)
        trainer.train()
        batches = (data.tokenized["test"].num_rows + 2 * RELOADED) / examples_per_update(args.training)
        return 2 * load + EVALUATION_SHARE * batches * timer.seconds(), timer.seconds()
    return 0.0, 0.0


def run_method(name: str, args: Arguments, data: Prepared) -> dict:
    """Train a method for ``comparison_steps`` steps, test it as it ends, check its reload; return scores and costs."""
    before = free_memory()
    with tempfile.TemporaryDirectory() as folder:
        model, args = _adapt(name, args, data)
        start = time.perf_counter()
        fit_head(model, data.tokenizer, data.tokenized["train"], args)
        _make_trainer(model, args, data, folder).train()
        seconds, memory = time.perf_counter() - start, peak_memory() - before
    output = predict(model, data.tokenizer, data.tokenized["test"], args)
    megabytes, verified = model.get_memory_footprint(return_buffers=False) / 1e6, "not kept"
    if isinstance(model, PeftModel):
        megabytes, verified = _check_reload(model, args, data), "yes"
    return {
        "learning_rate": args.training.learning_rate,
        "parameters": model.num_parameters(),
        "trainable_parameters": sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad),
        "train_seconds": seconds,
        "peak_memory_mb": memory / 1e6,
        "adapter_mb": megabytes,
        "reload_verified": verified,
    } | score_predictions(output)


def _adapt(name: str, args: Arguments, data: Prepared) -> tuple[PreTrainedModel, Arguments]:
    """Return a fresh model with what the method trains, and the arguments that suit the method."""
    method, options = METHODS[name], {"max_steps": args.comparison.comparison_steps, "disable_tqdm": True}
    args = args.replace(load_in_4bit=method.quantized, learning_rate=learning_rate(name, args), **options)
    return adapt_model(load_model(args, data.tokenizer, CLASSIFICATION, data.label_names), method, args), args


def _make_trainer(model: PreTrainedModel, args: Arguments, data: Prepared, folder: str) -> LengthTrainer:
    """Return a Trainer that neither evaluates nor keeps checkpoints."""
    training = args.replace(output_dir=folder, **NO_EVALUATION).training
    trainer = LengthTrainer(model, training, CLASSIFICATION.make_data_collator(data.tokenizer), data.tokenized["train"])
    trainer.remove_callback(PrinterCallback)
    return trainer


def _check_reload(model: PeftModel, args: Arguments, data: Prepared) -> float:
    """Assert that what is saved of ``model`` predicts the same on a fresh base, and return its MB (10^6 bytes)."""
    test = data.tokenized["test"]
    some = test.select(range(min(RELOADED, test.num_rows)))
    # With another seed, what was not saved of the head comes back as other random numbers, and shows.
    base = load_model(args.replace(seed=args.training.seed ^ 1), data.tokenizer, CLASSIFICATION, data.label_names)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        reloaded = PeftModel.from_pretrained(base, folder)
        outputs = [predict(each, data.tokenizer, some, args) for each in (model, reloaded)]
        assert_same_predictions(*outputs, args.training.dtype)
        return adapter_size(folder)


def free_memory() -> int:
    """Give back what earlier work has freed, and return the bytes in use; see `peak_memory`."""
    gc.collect()
    call_glibc("malloc_trim", 0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        keep_freed_memory()
    return peak_memory()


def peak_memory() -> int:
    """Return the most bytes that were in use since `free_memory`: on CUDA by its own count, elsewhere resident ones.

    What has been freed is resident still (`keep_freed_memory`), but for mapped files, and without glibc.
    """
    # torch.accelerator has this for every accelerator but Apple's, where it fails (PyTorch issue 167447).
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
