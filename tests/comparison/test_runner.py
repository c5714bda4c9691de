import json
import platform
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from transformers import AutoConfig, AutoModel, DataCollatorWithPadding

from peft_helpers.analysis.plots import CLASSICAL, FROZEN, MAJORITY, PROMPTED
from peft_helpers.comparison import runner
from peft_helpers.comparison.methods import METHODS, adapt_model
from peft_helpers.comparison.runner import (
    Prepared,
    compare_methods,
    fit_to_budget,
    free_memory,
    peak_memory,
    run_method,
    time_method,
)
from peft_helpers.data import prepare_splits
from peft_helpers.modeling import load_model
from peft_helpers.training import CLASSIFICATION

LABELS = ["negative", "positive"]


@pytest.fixture
def short(args):
    return args.replace(comparison_steps=3)


@pytest.fixture
def dataset(raw, args):
    return prepare_splits(raw, args)


@pytest.fixture
def run(short, dataset, tmp_path, monkeypatch):
    """`compare_methods` with the runs given and no baselines; the file of the results is its attribute."""

    def run(*runs, config=short):
        monkeypatch.setattr(runner, "plan_comparison", lambda args: runs)
        return compare_methods(dataset, config.replace(comparison_file=str(run.file)))[0]

    monkeypatch.setattr(runner, "plan_baselines", lambda args: [])
    run.file = tmp_path / "results.jsonl"
    return run


@pytest.fixture
def calls(monkeypatch):
    """The names of the methods that are run, without running them; one that is in ``calls.failing`` fails."""

    class Calls(list):
        def run(self, name, *rest):
            if name in self.failing:
                raise self.failing[name]
            self.append(name)
            return {"accuracy": 0.5, "f1": 0.5, "train_seconds": 1.0}

    calls = Calls()
    calls.failing = {}
    monkeypatch.setattr(runner, "run_method", calls.run)
    return calls


@pytest.mark.slow
def test_qlora_runs_reloads_and_matches_on_every_processor(short, tokenized, tokenizer, processor):
    assert run_method("qlora", short, Prepared(tokenized, tokenizer, LABELS))["reload_verified"] == "yes"


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_reloads_and_matches(name, short, tokenized, tokenizer):
    result = run_method(name, short, Prepared(tokenized, tokenizer, LABELS))
    assert result["reload_verified"] == ("not kept" if name == "full" else "yes")
    assert len(result["predictions"]) == tokenized["test"].num_rows
    hits = [p == t for p, t in zip(result["predictions"], tokenized["test"]["labels"], strict=True)]
    assert result["accuracy"] == sum(hits) / len(hits)
    assert 0 < result["trainable_parameters"] <= result["parameters"]
    assert result["train_seconds"] > 0
    json.dumps(result)


OTHER_MODELS = {
    "deberta-v2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
}


@pytest.fixture
def run_other(short, tokenized, tokenizer, tmp_path):
    """`run_method` on a random model of another architecture."""

    def run(kind, name):
        shape = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **OTHER_MODELS[kind])
        AutoModel.from_config(shape).save_pretrained(tmp_path)
        return run_method(name, short.replace(model_name_or_path=str(tmp_path)), Prepared(tokenized, tokenizer, LABELS))

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHER_MODELS)
@pytest.mark.parametrize("name", ["head-only", "ln-tuning", "lora-r8"])
def test_methods_run_on_other_architectures_and_save_their_whole_head(kind, name, run_other):
    assert run_other(kind, name)["reload_verified"] == "yes"


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_half_a_head_that_was_not_saved_is_an_error(run_other, monkeypatch):
    """Made with the same seed on the reload, it would be the same random half again."""
    monkeypatch.setattr("peft_helpers.modeling.head_modules", lambda model: ["classifier"])  # PEFT's own choice
    with pytest.raises(AssertionError, match="Mismatched elements"):
        run_other("deberta-v2", "lora-r8")


@pytest.mark.slow
def test_a_reload_that_differs_is_an_error(run, monkeypatch):
    real = runner.PeftModel.from_pretrained

    def forget_the_head(base, folder, **options):
        model = real(base, folder, **options)
        torch.nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)
        return model

    monkeypatch.setattr(runner.PeftModel, "from_pretrained", forget_the_head)
    assert "Mismatched elements" in run(("lora-r8", 0))[0]["error"]


def test_the_head_of_a_short_run_is_fitted_once_for_its_steps_and_not_to_time_a_method(
    short, tokenized, tokenizer, monkeypatch
):
    steps, data = [], Prepared(tokenized, tokenizer, LABELS)
    monkeypatch.setattr(runner, "fit_head", lambda model, tokenizer, train, args: steps.append(args.training.max_steps))
    assert time_method("head-only", short, data)[1] > 0
    assert steps == []
    run_method("head-only", short, data)
    assert steps == [3]


@pytest.mark.slow
def test_the_same_run_gives_the_same_result(short, tokenized, tokenizer):
    first, again = (run_method("lora-r8", short, Prepared(tokenized, tokenizer, LABELS)) for _ in range(2))
    assert first["predictions"] == again["predictions"]
    assert first["f1"] == again["f1"]


@pytest.mark.reliability("fault")
@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_where_it_stopped(run, calls, capsys):
    calls.failing = {"ia3": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(("head-only", 0), ("ia3", 0))
    calls.failing = {}
    assert [row["method"] for row in run(("head-only", 0), ("ia3", 0))] == ["head-only", "ia3"]
    assert calls == ["head-only", "ia3"]
    assert capsys.readouterr().out.count(f"(from {run.file})") == 1


@pytest.mark.slow
def test_other_settings_are_run_again(run, calls, short):
    run(("head-only", 0))
    run(("head-only", 0))
    run(("head-only", 1))
    run(("head-only", 0), config=short.replace(comparison_steps=2))
    run(("head-only", 0), config=short.replace(max_length=16))
    assert calls == ["head-only"] * 4


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_a_failing_method_is_recorded_and_the_rest_goes_on(run, calls, capsys):
    calls.failing = {"ia3": RuntimeError("not enough memory")}
    rows = run(("ia3", 0), ("head-only", 0))
    assert [row["error"] for row in rows] == ["RuntimeError: not enough memory", None]
    assert "ia3, seed 0: failed, RuntimeError: not enough memory" in capsys.readouterr().out
    calls.failing = {}
    assert run(("ia3", 0))[0]["error"] is None  # a failure is tried again


@pytest.mark.slow
def test_other_labels_are_run_again(run, calls, dataset):
    run(("head-only", 0))
    dataset["train"] = dataset["train"].map(lambda row: {"label": 1 - row["label"]})
    run(("head-only", 0))
    assert calls == ["head-only"] * 2


@pytest.mark.slow
def test_other_texts_with_the_same_labels_and_lengths_are_run_again(run, calls, dataset):
    run(("head-only", 0))
    dataset["test"] = dataset["test"].map(lambda row: {"text": row["text"].swapcase()})
    run(("head-only", 0))
    assert calls == ["head-only"] * 2


@pytest.mark.slow
def test_another_learning_rate_of_a_method_is_run_again(run, calls, monkeypatch):
    run(("head-only", 0))
    monkeypatch.setitem(METHODS, "head-only", replace(METHODS["head-only"], learning_rate_factor=4))
    run(("head-only", 0))
    assert calls == ["head-only"] * 2


@pytest.mark.slow
def test_every_method_trains_on_the_same_batches_beyond_the_first_epoch(
    short, tokenized, tokenizer, monkeypatch, tmp_path
):
    """16 steps of 4 rows are two epochs; what the methods draw from the global generator has no say."""
    batches = []

    class Recorder(DataCollatorWithPadding):
        def __call__(self, features):
            batch = super().__call__(features)
            batches.append(batch["input_ids"].tolist())
            return batch

    monkeypatch.setattr(runner, "CLASSIFICATION", replace(CLASSIFICATION, make_data_collator=Recorder))
    long = short.replace(max_steps=16)
    orders = []
    for name in ("head-only", "lora-r8", "vera"):
        model = adapt_model(load_model(short, tokenizer, CLASSIFICATION, LABELS), METHODS[name], long)
        runner._make_trainer(model, long, Prepared(tokenized, tokenizer, LABELS), str(tmp_path)).train()
        orders.append(batches[:])
        batches.clear()
    assert len(orders[0]) == 16
    assert orders[0][:8] != orders[0][8:]
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.slow
def test_methods_are_compared_beside_the_baselines(short, dataset, tmp_path):
    file = str(tmp_path / "results.jsonl")
    args = short.replace(comparison_methods=["head-only"], comparison_file=file)
    results, references = compare_methods(dataset, args)
    assert [row["method"] for row in results] == [MAJORITY, CLASSICAL, FROZEN, PROMPTED, "head-only"]
    assert all(len(row["predictions"]) == len(references) == 16 for row in results)


@pytest.mark.slow
def test_a_baseline_is_kept_however_long_the_methods_are_trained(short, dataset, tmp_path, capsys):
    args = short.replace(comparison_methods=["none"], comparison_file=str(tmp_path / "results.jsonl"))
    compare_methods(dataset, args)
    assert f"(from {args.comparison.comparison_file})" not in capsys.readouterr().out
    compare_methods(dataset, args.replace(comparison_steps=2))
    assert capsys.readouterr().out.count(f"(from {args.comparison.comparison_file})") == 4


@pytest.mark.reliability("bad input")
def test_texts_without_a_word_leave_the_other_baselines(short, dataset, tmp_path, capsys):
    letters = DatasetDict({name: split.map(lambda row: {"text": "a b"}) for name, split in dataset.items()})
    args = short.replace(comparison_methods=["none"], comparison_file=str(tmp_path / "results.jsonl"))
    results, _ = compare_methods(letters, args)
    errors = {row["method"]: row["error"] for row in results if row["error"]}
    assert "empty vocabulary" in errors.pop(CLASSICAL)
    assert not errors
    assert f"{CLASSICAL}, seed 42: failed, ValueError" in capsys.readouterr().out


@pytest.mark.reliability("bad input")
def test_methods_are_not_compared_in_several_processes(short, raw, monkeypatch):
    monkeypatch.setattr(runner, "process_state", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match=r"in one process; leave out .*accelerate launch"):
        compare_methods(raw, short)


@pytest.mark.reliability("bad input")
def test_methods_are_not_compared_on_a_stream(short, raw):
    with pytest.raises(ValueError, match="leave out --streaming"):
        compare_methods(raw, short.replace(streaming=True, max_steps=4))


RUNS = [("head-only", 1), ("lora-r8", 1), ("lora-r8", 2), ("lora-r8", 3), ("full", 1)]
SECONDS = {"head-only": (1.0, 0.1), "lora-r8": (1.0, 0.2), "full": (1.0, 0.4)}  # 115 s with 100 steps


@pytest.mark.parametrize(
    ("minutes", "kept", "steps", "told"),
    [
        (2, RUNS, 100, ["5 to run, 100 steps each: about 115 s here."]),
        # A seed takes 21 s.
        (1.6, [run for run in RUNS if run[1] < 3], 100, ["4 to run, 100 steps each: about 94 s here.", "seed 3."]),
        # The first seeds take 3 s and 0.7 s a step; a head for fewer than 100 takes as long as 0.4 of each.
        (1.05, [run for run in RUNS if run[1] == 1], 50, ["about 52 s", "seed 3, seed 2, 50 of 100 steps."]),
        # 20 steps and their head take 3.8 s with the head alone, 6.6 s with LoRA and 12.2 s with all of it.
        (0.18, [("head-only", 1), ("lora-r8", 1)], 20, ["about 10 s", "80 of 100 steps, full."]),
        (0.01, [("head-only", 1)], 20, ["1 to run, 20 steps each", "80 of 100 steps, full, lora-r8."]),
    ],
)
def test_seeds_then_steps_then_the_slowest_methods_are_left_out_and_told(args, capsys, minutes, kept, steps, told):
    args = args.replace(comparison_minutes=minutes, comparison_steps=100)
    fitting, changed = fit_to_budget(RUNS, args, SECONDS)
    assert (fitting, changed.comparison.comparison_steps) == (kept, steps)
    output = capsys.readouterr().out
    assert all(words in output for words in told), output
    assert ("left out" in output) == (len(told) > 1)


def test_what_could_not_be_timed_is_left_out_first(args):
    args = args.replace(comparison_minutes=0.01, comparison_steps=3)
    fitting, _ = fit_to_budget([("qlora", 1), ("lora-r8", 1)], args, SECONDS | {"qlora": (0.0, 0.0)})
    assert fitting == [("lora-r8", 1)]


def test_few_steps_stay_as_they_are(args):
    assert (
        fit_to_budget(RUNS, args.replace(comparison_minutes=0.01, comparison_steps=3), SECONDS)[
            1
        ].comparison.comparison_steps
        == 3
    )


only_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back")


def hold(megabytes: int) -> None:
    """Take memory and give it back."""
    np.ones(megabytes * 10**6 // 8)


@only_glibc
def test_the_peak_is_seen_though_it_is_given_back_in_between():
    before = free_memory()
    hold(50)
    assert 45e6 < peak_memory() - before < 80e6


@only_glibc
def test_an_earlier_peak_does_not_count():
    hold(160)
    before = free_memory()
    hold(20)
    assert 10e6 < peak_memory() - before < 45e6
