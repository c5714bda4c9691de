"""Several methods trained and tested alike; each result is kept as soon as it is there."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from datasets import Dataset, DatasetDict
from peft import PeftModel, PeftType
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)

from peft_helpers.analysis.report import predicted_labels
from peft_helpers.arguments import LM_FIELDS, Arguments
from peft_helpers.batches import LengthTrainer
from peft_helpers.checkpoints import digest_rows
from peft_helpers.checks import assert_same_logits, fingerprint_parameters
from peft_helpers.comparison.memory import PeakMemory
from peft_helpers.comparison.methods import METHODS, Method, adapt_model, find_method, learning_rate
from peft_helpers.modeling import compute_dtype, empty_model, load_base_model
from peft_helpers.app.notebook import describe_environment
from peft_helpers.prediction import predict
from peft_helpers.training import training_arguments

# Where a run writes, and what the comparison sets itself.
_NOT_DECISIVE = {"profile", "output_dir", "overwrite_output_dir", "checkpoint_dir", "seed", "comparison_methods",
                 "comparison_seeds", "comparison_file", *LM_FIELDS}  # fmt: skip
REPEATED = ("lora-r8", "dora", "ia3")  # methods that run with `Arguments.comparison_seeds` seeds
RELOAD_ROWS = 64  # on which the reloaded adapter is compared with the one in memory


def plan_comparison(args: Arguments) -> list[tuple[str, int]]:
    """Return the runs of ``args.comparison.comparison_methods``: each method with its seed, those of `REPEATED` with several.

    Raises:
        ValueError: a method is not known, or refused, and the message says why, and what to take instead; or
            ``args.comparison.comparison_file`` is no file of results, or in a folder that does not exist.
    """
    names = list(dict.fromkeys(args.comparison.comparison_methods))
    if not names or (len(names) > 1 and {"all", "none"}.intersection(names)):
        raise ValueError(f"comparison_methods is {names}; expected names of methods, or all or none alone.")
    methods = {"all": list(METHODS), "none": []}.get(names[0], names)
    for name in methods:
        find_method(name)
    if methods:
        _check_results_file(Path(args.comparison.comparison_file))
    seeds = range(args.training.seed, args.training.seed + args.comparison.comparison_seeds)
    return [(name, seed) for name in methods for seed in (seeds if name in REPEATED else [args.training.seed])]


def _check_results_file(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(
            f"comparison_file is {str(path)!r}; expected a file, there already or not, in a folder that exists. Make "
            "the folder, or name another --comparison_file."
        )
    read_results(path)


def run_method(
    name: str, args: Arguments, tokenized: DatasetDict, tokenizer: PreTrainedTokenizerBase, label_names: list[str]
) -> dict:
    """Train one method from the pre-trained model and the head of ``args.training.seed``, and test it as it ends.

    Every method takes ``args.comparison.comparison_steps`` steps on the same rows in the same order. No checkpoint is chosen.
    The adapter is saved, loaded onto a fresh base and compared with the one in memory; then it is removed.

    Returns:
        What `run_methods` keeps: the settings, ``accuracy`` and ``f1`` (macro) on the test rows, ``predictions`` (label
        numbers, shape (rows,)), ``train_seconds``, ``peak_memory_mb`` (of the foundation model, the adapter and their
        training), ``adapter_mb`` and ``reload_verified``.

    Raises:
        ValueError: there is no such method, or it is refused; the message says why, and what to take instead.
    """
    method = find_method(name)
    base_args = args.replace(load_in_4bit=method.quantized)
    load = partial(load_base_model, label_names=label_names, tokenizer=tokenizer)
    with PeakMemory() as memory:  # the foundation model counts, quantised or not
        model = adapt_model(load(base_args), method, args)
        seconds = _train(model, tokenized["train"], tokenizer, method, args)
    output = predict(model, tokenizer, tokenized["test"], args, disable_tqdm=True)
    # With another seed, what was not saved of the head comes back as other random numbers, and shows.
    reload = partial(load, base_args.replace(seed=args.training.seed ^ 1))
    verified, megabytes = _save_and_reload(model, reload, method, tokenized["test"], tokenizer, args)
    return {
        "method": name,
        "seed": args.training.seed,
        "learning_rate": learning_rate(method, args),
        "parameters": empty_model(
            AutoConfig.from_pretrained(args.model.model_name_or_path, num_labels=len(label_names))
        ).num_parameters(),
        "trainable_parameters": sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad),
        "accuracy": output.metrics["test_accuracy"],
        "f1": output.metrics["test_f1"],
        "predictions": predicted_labels(output).tolist(),
        "train_seconds": seconds,
        "peak_memory_mb": memory.megabytes,
        "adapter_mb": megabytes,
        "reload_verified": verified,
    }


def run_methods(
    runs: list[tuple[str, int]],
    args: Arguments,
    tokenized: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    label_names: list[str],
    results_file: str | Path,
) -> list[dict]:
    """Run each method of ``runs`` with its seed by `run_method`, and return the result of each.

    Results are appended to ``results_file`` as JSON lines: what stands there for the same settings, weights of the
    foundation model, rows, versions and device is not run again. A method that fails gives a result with its ``error``,
    and the others go on.
    """
    fingerprint = _fingerprint(args, tokenized, tokenizer, label_names)
    known = {(row["method"], row["seed"], row["learning_rate"]): row for row in read_results(results_file)
             if row["fingerprint"] == fingerprint and row["error"] is None}  # fmt: skip
    rows = []
    for number, (name, seed) in enumerate(runs, 1):
        row = known.get((name, seed, learning_rate(find_method(name), args)))
        if row is None:
            row = _try_method(name, args.replace(seed=seed), tokenized, tokenizer, label_names)
            row |= {"fingerprint": fingerprint, "environment": describe_environment().to_dict()}
            with Path(results_file).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
            print(f"{number} of {len(runs)}: {_describe(row)}")
        else:
            print(f"{number} of {len(runs)}: {_describe(row)} (from {results_file})")
        rows.append(row)
    return rows


def read_results(results_file: str | Path) -> list[dict]:
    """Return what `run_methods` has written; a last line that an interruption cut short is left out.

    Raises:
        ValueError: a line is no result; the file, which may be the user's own, is left as it is.
    """
    path = Path(results_file)
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    if _is_cut_short(lines[-1]):
        lines.pop()
    rows = [_read_result(line, path) for line in lines]
    if not text.endswith("\n"):  # else the next result would be glued to the last line
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def _is_cut_short(line: str) -> bool:
    """Tell whether ``line``, which may be empty, is the beginning of a result."""
    try:
        json.loads(line)
    except ValueError:
        start = '{"method": '
        return line.startswith(start) or start.startswith(line)
    return False


def _read_result(line: str, path: Path) -> dict:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not {"method", "seed", "error", "fingerprint"} <= row.keys():
        raise ValueError(
            f"comparison_file is {str(path)!r}; expected a result of the comparison in each line, found {line[:80]!r}. "
            "Name another --comparison_file. Nothing was changed."
        )
    return row


def _try_method(name: str, args: Arguments, *arguments) -> dict:
    try:
        return run_method(name, args, *arguments) | {"error": None}
    except Exception as error:  # the next methods go on
        return {"method": name, "seed": args.training.seed, "error": f"{type(error).__name__}: {error}"}


def _describe(row: dict) -> str:
    if row["error"] is not None:
        return f"{row['method']}, seed {row['seed']}: failed, {row['error']}"
    scores = f"accuracy {row['accuracy']:.3f}, macro F1 {row['f1']:.3f}"
    return f"{row['method']}, seed {row['seed']}: {scores}, {row['train_seconds']:.0f} s"


def _fingerprint(
    args: Arguments, tokenized: DatasetDict, tokenizer: PreTrainedTokenizerBase, label_names: list[str]
) -> str:
    """Return a hash of all that decides on every result: settings, foundation model, rows, versions and device."""
    settings = {name: value for name, value in asdict(args).items() if name not in _NOT_DECISIVE}
    model = load_base_model(args.replace(load_in_4bit=False), label_names, tokenizer)
    weights = fingerprint_parameters(model.base_model)  # the head is each seed's own
    rows = [digest_rows(tokenized[split]) for split in ("train", "test")]
    content = json.dumps([settings, weights, describe_environment().to_dict(), rows])
    return hashlib.sha256(content.encode()).hexdigest()


def _train(model, train: Dataset, tokenizer: PreTrainedTokenizerBase, method: Method, args: Arguments) -> float:
    """Train ``model`` and return the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = LengthTrainer(
            model=model,
            args=comparison_arguments(args, learning_rate(method, args), folder),
            train_dataset=train,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[AllocateRanks()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.model_accepts_loss_kwargs = False  # as in `make_trainer`
        return trainer.train().metrics["train_runtime"]


def comparison_arguments(args: Arguments, learning_rate: float, output_dir: str) -> TrainingArguments:
    """Return the Trainer's arguments for `Arguments.comparison_steps` steps, without evaluation or checkpoint."""
    return replace(
        training_arguments(args, output_dir),
        learning_rate=learning_rate,
        max_steps=args.comparison.comparison_steps,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
    )


class AllocateRanks(TrainerCallback):
    """Has AdaLoRA move its ranks to where they matter after each step, which the Trainer does not do by itself."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        """Call AdaLoRA's ``update_and_allocate`` while the step's gradients are still there."""
        if hasattr(model, "peft_type") and model.peft_type == PeftType.ADALORA:
            model.base_model.update_and_allocate(state.global_step + 1)


def _save_and_reload(
    model,
    load: Callable[[], PreTrainedModel],
    method: Method,
    test: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    args: Arguments,
) -> tuple[bool | None, float]:
    """Return whether what was saved gives the same logits on a fresh base (None: not kept), and its MB."""
    if method.name == "full":
        return None, sum(parameter.nbytes for parameter in model.parameters()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "adapter_model.safetensors")
        if isinstance(model, PeftModel):
            model.save_pretrained(folder)
            # AdaLoRA computes a loss only where it can be trained (peft 0.21).
            reloaded = PeftModel.from_pretrained(load(), folder, is_trainable=method.name == "adalora")
        else:
            save_file({name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}, file)
            reloaded = load()
            reloaded.load_state_dict(load_file(file), strict=False)
        megabytes = file.stat().st_size / 1e6
    rows = test.select(range(min(RELOAD_ROWS, test.num_rows)))
    logits = [predict(each, tokenizer, rows, args, disable_tqdm=True).predictions for each in (model, reloaded)]
    assert_same_logits(*logits, compute_dtype())
    return True, megabytes
