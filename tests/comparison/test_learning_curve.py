import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from peft_helpers.analysis.plots import CLASSICAL
from peft_helpers.comparison import learning_curve, runner
from peft_helpers.comparison.learning_curve import (
    COMPARED,
    LORA,
    choose_sizes,
    describe_lead,
    measure_learning_curve,
    summarize_learning_curve,
)
from peft_helpers.data import prepare_splits


@pytest.fixture
def dataset(raw, args):
    return prepare_splits(raw, args)


@pytest.fixture
def short(args, tmp_path):
    sizes = {"train_sizes": [4, 24], "comparison_seeds": 2, "comparison_steps": 3, "num_train_epochs": 1.5}
    return args.replace(**sizes, comparison_file=str(tmp_path / "results.jsonl"))


@pytest.fixture
def calls(monkeypatch):
    """What is run, without running it: (method, seed, steps, texts)."""
    calls = []

    def run(name, args, data):
        calls.append((name, args.training.seed, args.comparison.comparison_steps, data.dataset["train"]["text"][:]))
        return {"accuracy": 0.5, "f1": 0.5, "train_seconds": 1.0, "predictions": data.tokenized["test"]["labels"][:]}

    monkeypatch.setattr(runner, "run_method", run)
    monkeypatch.setattr(
        runner, "run_baseline", lambda name, dataset, _, args: run(name, args, runner.prepare(dataset, args))
    )
    monkeypatch.setattr(learning_curve, "time_method", lambda *_: (10.0, 1.0))
    return calls


def test_every_method_sees_the_same_nested_samples_for_as_many_passes(short, dataset, calls, capsys):
    rows, references = measure_learning_curve(dataset, short)
    assert references.tolist() == dataset["test"]["label"][:]
    assert [row["examples"] for row in rows] == [4] * 5 + [24] * 5 + [4] * 5 + [24] * 5
    assert [call[0] for call in calls] == [*COMPARED] * 4
    assert [call[2] for call in calls[:6]] == [3] * 5 + [9]  # of 4 rows: 2 steps are too few, 1.5 x 6 are not
    first, larger, other = (set(calls[place][3]) for place in (0, 5, 10))
    assert all(set(call[3]) == first for call in calls[:5])
    assert first < larger
    assert other != first
    assert [call[1] for call in calls[::5]] == [42, 42, 43, 43]
    output = capsys.readouterr().out
    assert output.startswith("20 of 20 to run: about 4 min for the 12 that train the model.\n")  # 12 x 10 + 1.4 x 72 s
    assert "6 of 20, 24 training examples: lora-all-linear, seed 42: accuracy 0.500" in output


def test_it_goes_on_where_it_stopped(short, dataset, calls, capsys):
    measure_learning_curve(dataset, short.replace(train_sizes=[4]))
    measure_learning_curve(dataset, short)
    assert len(calls) == 20
    assert "\n10 of 20 to run" in capsys.readouterr().out


@pytest.mark.slow
def test_few_examples_of_many_labels_leave_the_methods_that_can_learn_from_them(short):
    names = [f"label {number}" for number in range(12)]
    rows = {"text": [f"{name} {mark}" for mark in "abcd" for name in names], "label": [*range(12)] * 4}
    split = Dataset.from_dict(rows).cast_column("label", ClassLabel(names=names))
    dataset = DatasetDict(train=split, test=split)
    rows, references = measure_learning_curve(dataset, short.replace(train_sizes=[4], comparison_seeds=1))
    failed = [row["method"] for row in rows if row["error"]]
    assert failed == [*COMPARED[3:]]  # no label has two examples to choose a regularization on
    assert summarize_learning_curve(rows, references).index.tolist() == [(4, "head-only"), (4, LORA), (4, "full")]
    assert describe_lead(rows, references).endswith("with 0 training examples: unknown macro F1 [95 %].")


@pytest.mark.parametrize(
    ("examples", "sizes", "chosen"),
    [(100, None, [16, 32, 64, 100]), (64, None, [16, 32, 64]), (9, None, [9]), (99, [64, 16, 64], [16, 64])],
)
def test_sizes_are_powers_of_two_or_those_asked_for(args, examples, sizes, chosen):
    assert choose_sizes(examples, args.replace(train_sizes=sizes)) == chosen


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("sizes", [[16, 33], [1, 16], [-4]])
def test_more_examples_than_there_are_are_refused_before_anything_runs(short, dataset, calls, sizes):
    with pytest.raises(ValueError, match=r"train_sizes is \[.*\]; expected from 2 to the 32 training examples"):
        measure_learning_curve(dataset, short.replace(train_sizes=sizes))
    assert calls == []


@pytest.mark.reliability("bad input")
def test_a_stream_has_no_curve(short, raw):
    with pytest.raises(ValueError, match="leave out --streaming"):
        measure_learning_curve(raw, short.replace(streaming=True, max_steps=4))


TRUE = np.arange(200) % 2


def results(wrong: dict[str, list[list[int]]]) -> list[dict]:
    """Rows of a curve on 4, 8, 16 examples; ``wrong`` has the number of errors for each seed and size of a method."""
    rows = []
    for method, seeds in wrong.items():
        for errors in seeds:
            for size, count in zip((4, 8, 16), errors, strict=True):
                predictions = np.where(np.arange(200) < count, 1 - TRUE, TRUE)
                row = {"method": method, "examples": size, "error": None, "f1": 1 - count / 200, "accuracy": 0.5}
                costs = dict.fromkeys(("parameters", "train_seconds", "peak_memory_mb", "adapter_mb"), 1.0)
                row |= costs | {"trainable_parameters": 5, "reload_verified": "yes"}
                rows.append(row | {"predictions": predictions.tolist()})
    return rows


def test_lora_is_ahead_from_where_it_stays_ahead():
    """With 4 examples it leads as well, but not with 8."""
    rows = results({LORA: [[20, 60, 20], [30, 60, 10]], CLASSICAL: [[90, 60, 60], [90, 60, 60]]})
    assert describe_lead(rows, TRUE).startswith(
        f"LoRA is ahead of {CLASSICAL} from 16 training examples on: +0.225 [+0.1"
    )
    rows = results({LORA: [[20, 20, 20]], CLASSICAL: [[90, 60, 60]]})
    assert "from 4 training examples on: +0.350 [+0.2" in describe_lead(rows, TRUE)


def test_lora_that_is_never_surely_ahead_is_reported_so():
    """One seed is far ahead, the other far behind: on average there is a lead of one example."""
    rows = results({LORA: [[90, 50, 10], [90, 50, 108]], CLASSICAL: [[60, 60, 60], [60, 60, 60]]})
    sentence = describe_lead(rows, TRUE)
    assert "at no size for good; with 16 training examples: +0.005 [-0.0" in sentence


def test_a_failed_run_is_left_out_of_summary_and_sentence():
    rows = results({LORA: [[90, 50, 10]], CLASSICAL: [[60, 60, 60]]})
    failed = [row | {"error": "RuntimeError: no memory"} if row["examples"] == 16 else row for row in rows]
    summary = summarize_learning_curve(failed, TRUE)
    assert summary.index.tolist() == [(4, LORA), (4, CLASSICAL), (8, LORA), (8, CLASSICAL)]
    assert summary.loc[(8, LORA), "f1"] == 0.75
    assert "from 8 training examples on: +0.05" in describe_lead(failed, TRUE)
