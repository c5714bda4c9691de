"""A search for hyperparameters with Optuna, judged on the validation examples; it goes on where it was interrupted."""

import tempfile
from pathlib import Path

import pandas as pd
from datasets import DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import AutoConfig, EarlyStoppingCallback, PrinterCallback

from peft_helpers import INSTALL
from peft_helpers.analysis.linear_probe import fit_head
from peft_helpers.arguments import Arguments
from peft_helpers.batches import LengthTrainer, format_seconds
from peft_helpers.comparison.runner import Prepared, check_comparison, fingerprint, prepare
from peft_helpers.interruptions import explain_out_of_memory
from peft_helpers.modeling import load_model, lora_arguments
from peft_helpers.training import CLASSIFICATION, make_trainer

try:
    import optuna
except ImportError:  # it is optional
    optuna = None

NO_CHECKPOINTS = {"save_strategy": "no", "load_best_model_at_end": False, "push_to_hub": False, "disable_tqdm": True}


def check_search(args: Arguments) -> None:
    """Raise an ImportError without Optuna; see also `check_comparison`."""
    if optuna is None:
        raise ImportError(f"A search needs Optuna, which is not installed; install it with {INSTALL}.")
    check_comparison(args)


def search_hyperparameters(dataset: DatasetDict, args: Arguments) -> "optuna.Study":
    """Run trials up to ``search_trials``, each kept in ``output_dir``; return the study, for `tabulate_trials`.

    The first trial has the options of ``args``, the others are around these. The value of a trial is the best macro F1
    on ``dataset["validation"]`` in its course, for which `make_trainer` would keep the checkpoint; one that falls below
    the median is pruned. Earlier trials count if options, data, versions and device are the same. `run` draws other
    LoRA weights with the same seed. Without validation examples there is a ValueError; see also `check_search`.
    """
    check_search(args)
    if not dataset.get("validation"):
        raise ValueError(f"A search needs validation examples; there are none in the splits {list(dataset)}.")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data, total = prepare(dataset, args), args.comparison.search_trials
    output_dir = Path(args.training.output_dir).resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    file = optuna.storages.journal.JournalFileBackend(str(output_dir / "trials.jsonl"))
    storage = optuna.storages.JournalStorage(file)
    name = fingerprint(f"search with Optuna {optuna.__version__}", args, data)
    options = {"storage": storage, "study_name": name, "load_if_exists": True, "direction": "maximize"}
    study = optuna.create_study(**options)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _make_trainer(data, args.replace(output_dir=folder, tune_threshold=False, **NO_CHECKPOINTS))
        with explain_out_of_memory(trainer):
            for number in range(len(tabulate_trials(study)), total):
                if number == 0:
                    study.enqueue_trial(args.describe())
                _run_trial(trainer, options, args.training.seed + number)
                table = tabulate_trials(study)
                left = format_seconds(table["seconds"].mean() * (total - len(table)))
                last = table.iloc[-1].to_json(double_precision=5)
                print(f"{len(table)} of {total}, about {left} to go: {last}", flush=True)
    return study


def tabulate_trials(study: "optuna.Study") -> pd.DataFrame:
    """Return for each trial its ``f1``, whether it was ``pruned``, its ``seconds`` and its options."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)  # not what was interrupted
    rows = [
        {"f1": trial.value, "pruned": trial.state == states[1], "seconds": round(trial.duration.total_seconds(), 1)}
        | trial.params
        for trial in study.get_trials(states=states)
    ]
    return pd.DataFrame(rows, index=pd.RangeIndex(1, 1 + len(rows), name="trial"))


def _make_trainer(data: Prepared, args: Arguments) -> LengthTrainer:
    def make_model(trial: "optuna.Trial | None" = None) -> PeftModel:
        options = args.replace(**suggest(trial, args)) if trial else args
        model = load_model(options, data.tokenizer, CLASSIFICATION, data.label_names)
        model = get_peft_model(model, LoraConfig(**lora_arguments(options.lora, model)))
        fit_head(model, data.tokenizer, data.tokenized["train"], options)
        return model

    trainer = make_trainer(make_model(), data.tokenizer, data.tokenized, args)
    trainer.model_init = make_model
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(EarlyStoppingCallback)  # trials are pruned
    return trainer


def suggest(trial: "optuna.Trial", args: Arguments) -> dict[str, object]:
    """Return the options of a trial: those of ``args``, or around them."""
    # lora_alpha stays, as with Hu et al. (2021), section 4.1: the update is scaled by lora_alpha / lora_r.
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


def _run_trial(trainer: LengthTrainer, options: dict[str, object], seed: int) -> None:
    trainer.hyperparameter_search(
        hp_space=lambda trial: {name: value for name, value in trial.params.items() if hasattr(trainer.args, name)},
        compute_objective=lambda metrics: max(metrics["eval_f1"], trainer.state.best_metric or 0),
        n_trials=1,
        backend="optuna",
        # Each trial has its own: a sampler that goes on from an interruption would draw what it has drawn before.
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=3),
        **options,
    )
