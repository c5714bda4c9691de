import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, DataCollatorWithPadding

from peft_helpers.comparison import runner
from peft_helpers.comparison.methods import METHODS, adapt_model
from peft_helpers.comparison.runner import REPEATED, plan_comparison, read_results, run_method, run_methods
from peft_helpers.modeling import load_base_model

LABELS = ["negative", "positive"]


@pytest.fixture
def short(args):
    return args.replace(comparison_steps=3)


@pytest.fixture
def run(short, tokenized, tokenizer, tmp_path):
    """`run_methods` with all but the runs given; the file of the results is its attribute."""

    def run(*runs, config=short):
        return run_methods(list(runs), args, tokenized, tokenizer, LABELS, run.file)

    run.file = tmp_path / "results.jsonl"
    return run


@pytest.fixture
def counted(monkeypatch):
    calls = []
    real = runner.run_method
    monkeypatch.setattr(runner, "run_method", lambda name, *rest: calls.append(name) or real(name, *rest))
    return calls


def test_qlora_runs_reloads_and_matches_on_every_processor(short, tokenized, tokenizer, processor):
    assert run_method("qlora", short, tokenized, tokenizer, LABELS)["reload_verified"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_reloads_and_matches(name, short, tokenized, tokenizer):
    result = run_method(name, short, tokenized, tokenizer, LABELS)
    assert result["reload_verified"] is (None if name == "full" else True)
    assert len(result["predictions"]) == tokenized["test"].num_rows
    hits = [p == t for p, t in zip(result["predictions"], tokenized["test"]["labels"], strict=True)]
    assert result["accuracy"] == sum(hits) / len(hits)
    assert 0 < result["trainable_parameters"] <= result["parameters"] or name == "vera"
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
        return run_method(name, replace(short, model_name_or_path=str(tmp_path)), tokenized, tokenizer, LABELS)

    return run


@pytest.mark.parametrize("kind", OTHER_MODELS)
@pytest.mark.parametrize("name", ["head-only", "ln-tuning", "lora-r8"])
def test_methods_run_on_other_architectures_and_save_their_whole_head(kind, name, run_other):
    assert run_other(kind, name)["reload_verified"]


@pytest.mark.reliability("fault")
def test_half_a_head_that_was_not_saved_is_an_error(run_other, monkeypatch):
    """Made with the same seed on the reload, it would be the same random half again."""
    monkeypatch.setattr(
        "peft_helpers.comparison.methods.head_modules", lambda model: ["classifier"]
    )  # as PEFT has it by itself
    with pytest.raises(AssertionError, match="Mismatched elements"):
        run_other("deberta-v2", "lora-r8")


def test_a_reload_that_differs_is_an_error(run, monkeypatch):
    real = runner.PeftModel.from_pretrained

    def forget_the_head(base, folder, **options):
        model = real(base, folder, **options)
        torch.nn.init.normal_(model.base_model.model.score.modules_to_save["default"].weight)
        return model

    monkeypatch.setattr(runner.PeftModel, "from_pretrained", forget_the_head)
    assert "Mismatched elements" in run(("lora-r8", 0))[0]["error"]


def test_adalora_moves_its_ranks(short, tokenized, tokenizer, monkeypatch):
    steps = []
    monkeypatch.setattr(
        "peft.tuners.adalora.model.AdaLoraModel.update_and_allocate", lambda self, step: steps.append(step)
    )
    run_method("adalora", short, tokenized, tokenizer, LABELS)
    assert steps == [1, 2, 3]


def test_the_same_run_gives_the_same_result(short, tokenized, tokenizer):
    first, again = (run_method("lora-r8", short, tokenized, tokenizer, LABELS) for _ in range(2))
    assert first["predictions"] == again["predictions"]
    assert first["f1"] == again["f1"]


@pytest.mark.reliability("fault")
def test_an_interrupted_comparison_goes_on_where_it_stopped(run, monkeypatch, capsys):
    real = runner.run_method

    def interrupt(name, *rest):
        if name == "ia3":
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(runner, "run_method", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(("head-only", 0), ("ia3", 0))
    monkeypatch.undo()
    assert [row["method"] for row in run(("head-only", 0), ("ia3", 0))] == ["head-only", "ia3"]
    assert capsys.readouterr().out.count(f"(from {run.file})") == 1


def test_other_settings_are_run_again(run, counted, short):
    run(("head-only", 0))
    run(("head-only", 0))
    run(("head-only", 1))
    run(("head-only", 0), config=replace(short, comparison_steps=2))
    assert counted == ["head-only"] * 3


@pytest.mark.reliability("fault")
def test_a_failing_method_is_recorded_and_the_rest_goes_on(run, monkeypatch, capsys):
    real = runner.run_method

    def fail(name, *rest):
        if name == "ia3":
            raise RuntimeError("not enough memory")
        return real(name, *rest)

    monkeypatch.setattr(runner, "run_method", fail)
    rows = run(("ia3", 0), ("head-only", 0))
    assert [row["error"] for row in rows] == ["RuntimeError: not enough memory", None]
    assert "ia3, seed 0: failed, RuntimeError: not enough memory" in capsys.readouterr().out
    monkeypatch.undo()
    assert run(("ia3", 0))[0]["error"] is None  # a failure is tried again


@pytest.mark.reliability("fault")
def test_a_line_cut_short_by_a_kill_is_left_out(run):
    run(("head-only", 0))
    with run.file.open("a") as lines:
        lines.write('{"method": "ia3", "se')
    assert [row["method"] for row in read_results(run.file)] == ["head-only"]
    run(("ia3", 0))
    assert [row["method"] for row in read_results(run.file)] == ["head-only", "ia3"]


def test_the_plan_has_several_seeds_for_some_methods(short):
    plan = plan_comparison(replace(short, comparison_methods=["full", "dora"], comparison_seeds=2, seed=5))
    assert plan == [("full", 5), ("dora", 5), ("dora", 6)]
    everything = plan_comparison(replace(short, comparison_methods=["all"], comparison_seeds=3))
    assert len(everything) == len(METHODS) + 2 * len(REPEATED)
    assert plan_comparison(replace(short, comparison_methods=["none"])) == []


@pytest.mark.reliability("bad input")
def test_a_plan_with_an_unknown_method_is_refused_before_anything_runs(short):
    with pytest.raises(ValueError, match="Unknown method 'lora'"):
        plan_comparison(replace(short, comparison_methods=["ia3", "lora"]))


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("names", [["all", "lora-typo"], ["none", "full"], []])
def test_all_and_none_stand_alone(short, names):
    with pytest.raises(ValueError, match="expected names of methods, or all or none alone"):
        plan_comparison(replace(short, comparison_methods=names))


def test_a_method_named_twice_is_run_once(short):
    assert plan_comparison(replace(short, comparison_methods=["full", "full"])) == [("full", short.seed)]


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("name", ["missing/results.jsonl", "."])
def test_results_that_could_not_be_written_are_refused_before_anything_runs(short, name, tmp_path):
    with pytest.raises(ValueError, match="expected a file, there already or not, in a folder that exists"):
        plan_comparison(replace(short, comparison_file=str(tmp_path / name)))


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("content", [b"my notes", b'{"id": 1}\n{"id": 2}', b"\xff\xfe\n", b"[]\n"])
def test_the_users_own_file_is_refused_and_left_as_it_is(short, content, tmp_path):
    file = tmp_path / "notes.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="expected a result of the comparison in each line, found"):
        plan_comparison(replace(short, comparison_file=str(file)))
    assert file.read_bytes() == content


def test_a_last_result_without_its_line_end_is_kept(run):
    run(("head-only", 0))
    run.file.write_text(run.file.read_text().rstrip("\n"))
    assert [row["method"] for row in read_results(run.file)] == ["head-only"]
    assert run.file.read_text().endswith("}\n")


def test_another_foundation_model_at_the_same_place_is_run_again(run, counted, short, tmp_path):
    moved = replace(short, model_name_or_path=str(tmp_path / "model"))
    shutil.copytree(short.model_name_or_path, moved.model_name_or_path)
    run(("head-only", 0), config=moved)
    run(("head-only", 0), config=replace(moved, seed=7))  # the seed is that of the run
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["wte.weight" if "wte.weight" in weights else "transformer.wte.weight"] += 1
    save_file(weights, file, metadata={"format": "pt"})
    run(("head-only", 0), config=moved)
    assert counted == ["head-only"] * 2


def test_another_learning_rate_of_a_method_is_run_again(run, counted, monkeypatch):
    run(("head-only", 0))
    monkeypatch.setitem(METHODS, "head-only", replace(METHODS["head-only"], learning_rate_factor=4))
    run(("head-only", 0))
    assert counted == ["head-only"] * 2


def test_every_method_trains_on_the_same_batches_beyond_the_first_epoch(short, tokenized, tokenizer, monkeypatch):
    """16 steps of 4 rows are two epochs; what the methods draw from the global generator has no say."""
    batches = []

    class Recorder(DataCollatorWithPadding):
        def __call__(self, features):
            batch = super().__call__(features)
            batches.append(batch["input_ids"].tolist())
            return batch

    monkeypatch.setattr(runner, "DataCollatorWithPadding", Recorder)
    orders = []
    for name in ("head-only", "lora-r8", "vera"):
        model = adapt_model(load_base_model(short, LABELS, tokenizer), METHODS[name], short)
        runner._train(model, tokenized["train"], tokenizer, METHODS[name], replace(short, comparison_steps=16))
        orders.append(batches[:])
        batches.clear()
    assert len(orders[0]) == 16
    assert orders[0][:8] != orders[0][8:]
    assert orders[0] == orders[1] == orders[2]
