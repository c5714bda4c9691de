from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from peft_helpers import pipeline, training
from peft_helpers.checks import assert_same_logits, rounding_bound
from peft_helpers.pipeline import compare_methods, load_adapter, run
from peft_helpers.prediction import predict
from peft_helpers.tokenization import tokenize_dataset


@pytest.fixture
def small(args, raw, monkeypatch):
    """A configuration whose data set is that of the fixture `raw`."""
    monkeypatch.setattr(pipeline, "load_dataset_arguments", lambda args: {})
    monkeypatch.setattr(pipeline, "load_dataset", lambda: raw)
    return args.replace(num_train_epochs=1, max_train_samples=12)


def test_a_run_is_that_of_its_saved_adapter(small):
    result = run(small)
    assert result.label_names == ["negative", "positive"]
    assert 0 < result.trainable_parameters < result.parameters
    assert not np.array_equal(result.untuned.predictions, result.tuned.predictions)
    assert any("eval_f1" in entry for entry in result.log_history)
    assert list(result.seconds) == [
        "load", "evaluate untuned", "train", "evaluate tuned", "save", "reload and evaluate",
    ]  # fmt: skip
    model, tokenizer = load_adapter(small.output_dir)
    test = tokenize_dataset(pipeline.load_splits(small)["test"], tokenizer, tokenizer.model_max_length)
    again = predict(model, tokenizer, test, small)
    assert_same_logits(result.tuned.predictions, again.predictions, torch.float32)


def test_a_run_in_4_bits_is_that_of_its_saved_adapter_on_every_processor(small, processor):
    result = run(replace(small, load_in_4bit=True))
    assert not np.array_equal(result.untuned.predictions, result.tuned.predictions)


def test_a_run_in_bfloat16_reloads_within_its_rounding(small, monkeypatch):
    """By the CPU's autocast, which stands in for a GPU's."""
    in_float32 = run(small).untuned.predictions
    for module in (training, pipeline):
        monkeypatch.setattr(module, "compute_dtype", lambda: torch.bfloat16)
    in_bfloat16 = run(small).untuned.predictions
    difference = assert_same_logits(in_float32, in_bfloat16, torch.bfloat16)
    assert difference > rounding_bound(torch.float32) * abs(in_float32).max()


def test_a_loaded_adapter_is_on_the_accelerator_if_there_is_one(small, monkeypatch):
    run(small)
    assert load_adapter(small.output_dir)[0].device.type == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert load_adapter(small.output_dir)[0].device.type == "meta"


def test_callbacks_are_called(small):
    steps = []

    class Count(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs) -> None:
            steps.append(state.global_step)

    run(small, callbacks=[Count()])
    assert steps == [0, 1, 2]


@pytest.mark.reliability("fault")
def test_a_reload_that_differs_is_an_error(small, monkeypatch):
    load = pipeline.load_adapter

    def disturb(*arguments):
        model, tokenizer = load(*arguments)
        model.base_model.model.score.modules_to_save["default"].weight.data *= 1.01
        return model, tokenizer

    monkeypatch.setattr(pipeline, "load_adapter", disturb)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        run(small)


@pytest.mark.reliability("bad input")
def test_an_adapter_of_other_labels_is_refused(small):
    run(small)
    with pytest.raises(ValueError, match="labels of other names"):
        load_adapter(small.output_dir, ["bad", "good"])


@pytest.mark.reliability("bad input")
def test_nothing_is_loaded_for_a_folder_that_may_not_be_replaced(small, monkeypatch):
    Path(small.output_dir).mkdir()
    Path(small.output_dir, "thesis.txt").write_text("mine")
    monkeypatch.setattr(pipeline, "load_splits", lambda args: pytest.fail("loaded the data"))
    with pytest.raises(FileExistsError, match="exists and holds no adapter"):
        run(small)


def test_methods_are_compared_beside_the_reference_points(small, tmp_path):
    file = str(tmp_path / "results.jsonl")
    args = replace(small, comparison_methods=["head-only"], comparison_steps=2, comparison_file=file)
    results, references = compare_methods(args)
    assert results[-1]["method"] == "head-only"
    assert len(results) == 3
    assert all(len(row["predictions"]) == len(references) == 16 for row in results)


@pytest.mark.reliability("bad input")
def test_methods_are_not_compared_in_several_processes(small, monkeypatch):
    monkeypatch.setattr("peft_helpers.pipeline.process_state", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="compared in one process, for their times; leave out accelerate launch"):
        compare_methods(small)
