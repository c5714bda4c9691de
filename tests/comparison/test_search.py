from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

import peft_helpers as helpers
from peft_helpers.analysis.linear_probe import fit_head
from peft_helpers.batches import LengthTrainer
from peft_helpers.comparison import runner, search
from peft_helpers.comparison.search import (
    check_search,
    search_hyperparameters,
    suggest,
    tabulate_trials,
)
from peft_helpers.data import prepare_splits
from peft_helpers.modeling import load_model
from peft_helpers.tokenization import tokenize_splits

optuna = pytest.importorskip("optuna")
LABELS = ["negative", "positive"]


@pytest.fixture
def small(args):
    return args.replace(search_trials=3, lora_dropout=0.0, num_train_epochs=1.0)


@pytest.fixture
def splits(raw, args):
    splits = prepare_splits(raw, args)
    del splits["test"]
    return splits


def without_time(table):
    return table.drop(columns="seconds")


def train_alone(args, options, splits, tokenizer, folder) -> LengthTrainer:
    """Train as the command `train` does, and return the Trainer."""
    args = args.replace(**options, output_dir=str(folder))
    model, tokenized = load_model(args, tokenizer, helpers.CLASSIFICATION, LABELS), tokenize_splits(splits, tokenizer)
    model = get_peft_model(model, LoraConfig(**helpers.lora_arguments(args.lora, model)))
    fit_head(model, tokenizer, tokenized["train"], args)
    trainer = helpers.make_trainer(model, tokenizer, tokenized, args)
    trainer.train()
    return trainer


@pytest.mark.slow
def test_every_trial_has_the_score_that_train_reaches_with_its_options(small, splits, tokenizer, tmp_path):
    study = search_hyperparameters(splits, small)
    table, best = tabulate_trials(study), study.best_params
    assert [path.name for path in Path(small.training.output_dir).iterdir()] == ["trials.jsonl"]
    assert not table["pruned"].any()  # too few to tell
    for number, row in enumerate(table.to_dict("records")):
        options = {name: row[name] for name in best}
        assert row["f1"] == train_alone(small, options, splits, tokenizer, tmp_path / str(number)).state.best_metric
    assert best == {name: table.to_dict("records")[table["f1"].argmax()][name] for name in best}
    assert table.loc[1, list(best)].to_dict() == {name: small.describe()[name] for name in best}


@pytest.mark.slow
def test_the_model_of_each_trial_is_set_up_for_bfloat16(small, splits):
    options = small.replace(bf16=True, max_steps=4, **search.NO_CHECKPOINTS)
    trainer = search._make_trainer(runner.prepare(splits, options), options)
    models = [trainer.model]
    for _ in range(2):
        trainer.train()
        models.append(trainer.model)
        assert trainer.model.config._attn_implementation == "eager"  # which suits the length
    types = [{name: parameter.dtype for name, parameter in model.named_parameters()} for model in models]
    assert torch.bfloat16 in types[0].values()
    assert types[0] == types[1] == types[2]
    assert len({id(model) for model in models}) == 3


class Interrupt(TrainerCallback):
    """Presses Ctrl-C in the middle of the second trial of a process."""

    def __init__(self):
        self.trials = 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.trials += 1

    def on_step_end(self, args, state, control, **kwargs):
        if self.trials == 2 and state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_an_interrupted_search_goes_on_and_ends_as_one_that_was_not(small, splits, tmp_path, monkeypatch, capsys):
    whole = tabulate_trials(search_hyperparameters(splits, small))
    assert whole["learning_rate"].is_unique
    args, make_trainer = small.replace(output_dir=str(tmp_path / "interrupted")), search._make_trainer

    def make_interrupted(*args):
        trainer = make_trainer(*args)
        trainer.add_callback(Interrupt())
        return trainer

    monkeypatch.setattr(search, "_make_trainer", make_interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search_hyperparameters(splits, args)
    monkeypatch.undo()
    capsys.readouterr()
    table = tabulate_trials(search_hyperparameters(splits, args))
    assert capsys.readouterr().out.count(" of 3, about ") == 1  # the two that had ended are not run again
    assert without_time(table).equals(without_time(whole))


@pytest.mark.slow
def test_trials_of_other_data_or_options_do_not_count(small, splits):
    one = small.replace(search_trials=1)
    first = tabulate_trials(search_hyperparameters(splits, one))
    splits["validation"] = splits["validation"].map(lambda row: {"label": 1 - row["label"]})
    other = tabulate_trials(search_hyperparameters(splits, one))
    assert first["f1"].tolist() != other["f1"].tolist()
    longer = tabulate_trials(search_hyperparameters(splits, one.replace(num_train_epochs=2.0)))
    assert longer["num_train_epochs"].tolist() == [2.0]


@pytest.mark.slow
def test_a_trial_that_falls_behind_is_pruned_whatever_its_batch_size(small, splits, monkeypatch):
    """Evaluations are compared at equal shares of the run: at equal steps, those of other batches never meet."""

    def choose(trial, args):
        rows, rate = (11, 8e-3) if trial.number < 5 else (1, 1e-9)  # evaluations at steps 2 to 12, and from 13 on
        trial.suggest_int("per_device_train_batch_size", rows, rows)
        trial.suggest_float("learning_rate", rate, rate)
        return trial.params

    monkeypatch.setattr(search, "suggest", choose)
    monkeypatch.setattr(optuna.Study, "enqueue_trial", lambda *_: None)
    study = search_hyperparameters(splits, small.replace(search_trials=6, num_train_epochs=4.0))
    table = tabulate_trials(study)
    assert table["pruned"].tolist() == [False] * 5 + [True]
    assert table["per_device_train_batch_size"].tolist() == [11] * 5 + [1]
    assert study.best_params["learning_rate"] == 8e-3


def test_options_lie_around_those_that_were_given(small):
    trial = optuna.create_study().ask()
    options = suggest(trial, small.replace(target_modules=".*c_proj"))
    choices = {name: getattr(trial.distributions[name], "choices", None) for name in options}
    assert choices["target_modules"] == (".*c_proj", "all-linear", r".*\.(c_attn)")
    assert choices["lora_r"] == (4, 8, 16)
    assert choices["per_device_train_batch_size"] == (2, 4, 8)
    assert 8e-4 <= options["learning_rate"] <= 8e-2
    assert "num_train_epochs" in options
    assert "num_train_epochs" not in suggest(optuna.create_study().ask(), small.replace(max_steps=4))


@pytest.mark.reliability("bad input")
def test_a_search_without_validation_examples_is_refused(small, splits):
    for other in ({"train": splits["train"]}, {**splits, "validation": splits["validation"].select([])}):
        with pytest.raises(ValueError, match="needs validation examples; there are none in the splits"):
            search_hyperparameters(DatasetDict(other), small)
    assert not Path(small.training.output_dir).exists()


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("changes", "processes"), [({"streaming": True, "max_steps": 4}, 1), ({}, 2)], ids=["stream", "processes"]
)
def test_a_search_of_a_stream_or_in_several_processes_is_refused(changes, processes, small, monkeypatch):
    monkeypatch.setattr(runner, "process_state", lambda: SimpleNamespace(num_processes=processes))
    with pytest.raises(ValueError, match="in one process; leave out --streaming and accelerate launch"):
        check_search(small.replace(**changes))


@pytest.mark.reliability("bad input")
def test_a_search_without_optuna_says_how_to_install_it(small, monkeypatch):
    monkeypatch.setattr(search, "optuna", None)
    with pytest.raises(ImportError, match=r"needs Optuna, .* `python -m pip install -r .*optional_requirements\.txt`"):
        check_search(small)


def test_a_search_is_judged_by_f1_with_a_threshold_too(small, splits, monkeypatch):
    made, make_trainer = [], search._make_trainer
    monkeypatch.setattr(search, "_make_trainer", lambda *args: made.append(make_trainer(*args)) or made[-1])
    search_hyperparameters(splits, small.replace(search_trials=1, tune_threshold=True))
    assert made[0].args.metric_for_best_model == "f1"
