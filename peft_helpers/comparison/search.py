"""A search for hyperparameters with Optuna, judged on the validation examples; it goes on where it was interrupted."""

import hashlib
import json
import tempfile
from pathlib import Path

import pandas as pd
from datasets import DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import AutoConfig, AutoTokenizer, EarlyStoppingCallback, PrinterCallback

from peft_helpers.adapters import describe_recipe
from peft_helpers.analysis.report import describe_environment
from peft_helpers.arguments import Arguments
from peft_helpers.batches import LengthTrainer, format_seconds
from peft_helpers.distributed import process_state
from peft_helpers.interruptions import explain_out_of_memory
from peft_helpers.modeling import check_model, load_model, lora_arguments
from peft_helpers.training import CLASSIFICATION, make_trainer

try:
    import optuna
except ImportError:  # it is optional
    optuna = None

NO_CHECKPOINTS = {"save_strategy": "no", "load_best_model_at_end": False, "push_to_hub": False, "disable_tqdm": True}


def check_search(args: Arguments) -> None:
    """Raise an ImportError without Optuna, a ValueError for streaming or several processes; see also `check_model`."""
    if optuna is None:
        command = f"python -m pip install -r {Path(__file__).parents[1] / 'optional_requirements.txt'}"
        raise ImportError(f"A search needs Optuna, which is not installed; install it with `{command}`.")
    if args.data.streaming or process_state().num_processes > 1:
        raise ValueError("A search runs in memory, in one process; leave out --streaming and accelerate launch.")
    check_model(args)


def search_hyperparameters(dataset: DatasetDict, args: Arguments) -> tuple[pd.DataFrame, dict[str, object]]:
    """Run ``search_trials`` trials, each kept in ``output_dir``; return a row for each, and the options of the best.

    ``dataset`` has train and validation. The first trial has the options of ``args``, the others are around these. Its
    ``f1`` is the best macro F1 on validation in its course, for which `make_trainer` would keep the checkpoint; a trial
    that falls below the median is ``pruned``. Earlier trials count if options, data, versions and device are the same.
    `run` has evaluated the untuned model before it draws LoRA's weights: with the same seed, these are other ones.

    Raises:
        ValueError: there are no validation examples; see also `check_search`.
    """
    check_search(args)
    if not dataset.get("validation"):
        raise ValueError(f"A search needs validation examples; there are none in the splits {list(dataset)}.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    total = args.comparison.search_trials
    with tempfile.TemporaryDirectory() as folder:
        trainer = _make_trainer(dataset, args.replace(output_dir=folder, tune_threshold=False, **NO_CHECKPOINTS))
        place = _find_place(trainer, args)
        study = optuna.create_study(**place)
        table = _tabulate(study)
        with explain_out_of_memory(trainer):
            while len(table) < total:
                if table.empty:
                    study.enqueue_trial(args.describe())
                _run_trial(trainer, place, args.training.seed + len(table))
                table = _tabulate(study)
                left = format_seconds(table["seconds"].mean() * (total - len(table)))
                last = table.iloc[-1].to_json(double_precision=5)
                print(f"{len(table)} of {total}, about {left} to go: {last}", flush=True)
    return table, study.best_params


def _tabulate(study: "optuna.Study") -> pd.DataFrame:
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)  # not what was interrupted
    rows = [
        {"f1": trial.value, "pruned": trial.state == states[1], "seconds": round(trial.duration.total_seconds(), 1)}
        | trial.params
        for trial in study.get_trials(states=states)
    ]
    return pd.DataFrame(rows, index=pd.RangeIndex(1, 1 + len(rows), name="trial"))


def _make_trainer(dataset: DatasetDict, args: Arguments) -> LengthTrainer:
    name, label_names = args.model.model_name_or_path, dataset["train"].features["label"].names
    tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=args.data.max_length)

    def make_model(trial: "optuna.Trial | None" = None) -> PeftModel:
        options = args.replace(**suggest(trial, args)) if trial else args
        model = load_model(options, tokenizer, CLASSIFICATION, label_names)
        return get_peft_model(model, LoraConfig(**lora_arguments(options.lora, model)))

    model = make_model()  # sets up padding
    trainer = make_trainer(model, tokenizer, CLASSIFICATION.tokenize(dataset, tokenizer), args)
    trainer.model_init = make_model
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(EarlyStoppingCallback)  # trials are pruned
    return trainer


def suggest(trial: "optuna.Trial", args: Arguments) -> dict[str, object]:
    """Return the options of a trial: those of ``args``, or around them.

    ``lora_alpha`` stays, as with Hu et al. (2021), section 4.1: the update is scaled by lora_alpha / lora_r.
    """
    given, model_type = args.describe(), AutoConfig.from_pretrained(args.model.model_name_or_path).model_type
    usual = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type, "all-linear")  # PEFT's, in GPT-2 c_attn
    usual = usual if isinstance(usual, str) else rf".*\.({'|'.join(usual)})"
    trial.suggest_categorical("target_modules", list(dict.fromkeys([given["target_modules"], "all-linear", usual])))
    for name in ("lora_r", "per_device_train_batch_size"):
        trial.suggest_categorical(name, sorted({max(1, given[name] // 2), given[name], given[name] * 2}))
    ranges = {"learning_rate": 10} | ({"num_train_epochs": 2} if args.training.max_steps < 1 else {})
    for name, factor in ranges.items():
        trial.suggest_float(name, given[name] / factor, given[name] * factor, log=True)
    return trial.params


def _find_place(trainer: LengthTrainer, args: Arguments) -> dict[str, object]:
    """Return the file that Optuna keeps trials in, and the name of those that depend on the same."""
    settings = [describe_recipe(args), describe_environment().to_dict(), optuna.__version__]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for split in (trainer.train_dataset, trainer.eval_dataset):
        for batch in split.select_columns(["labels", "input_ids"]).iter(batch_size=1000):
            digest.update(json.dumps(batch).encode())
    folder = Path(args.training.output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    file = optuna.storages.journal.JournalFileBackend(str(folder / "trials.jsonl"))
    storage = optuna.storages.JournalStorage(file)
    return {"storage": storage, "study_name": digest.hexdigest(), "load_if_exists": True, "direction": "maximize"}


def _run_trial(trainer: LengthTrainer, place: dict[str, object], seed: int) -> None:
    trainer.hyperparameter_search(
        hp_space=lambda trial: {name: value for name, value in trial.params.items() if hasattr(trainer.args, name)},
        compute_objective=lambda metrics: max(metrics["eval_f1"], trainer.state.best_metric or 0),
        n_trials=1,
        backend="optuna",
        # Each trial has its own: a sampler that goes on from an interruption would draw what it has drawn before.
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=3),
        **place,
    )
