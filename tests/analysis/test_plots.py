import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import EvalPrediction

from peft_helpers import (
    plot_before_after,
    plot_class_balance,
    plot_confusions,
    plot_learning_curve,
    plot_methods,
    plot_reliability,
    plot_search,
    plot_token_lengths,
    plot_training,
    prepare_splits,
)
from peft_helpers.analysis.plots import FROZEN, PROMPTED


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def outputs():
    true = np.array([0, 0, 0, 1])
    return [EvalPrediction(predictions=np.eye(2)[p], label_ids=true) for p in ([0, 1, 1, 0], [0, 0, 0, 1])]


def bar_heights(axes) -> list[float]:
    return [round(patch.get_height(), 3) for patch in axes.patches]


def test_class_balance_shows_shares(raw, args):
    axes = plot_class_balance(prepare_splits(raw, args)).axes[0]
    assert bar_heights(axes) == [50.0] * 6
    assert axes.get_ylabel() == "share of the split, %"


def test_token_lengths_tell_how_much_is_beyond_max_length(tokenizer):
    eos = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    tokenizer.model_max_length = 3
    texts = ["", "good", "good bad", "good bad good bad"]
    axes = plot_token_lengths(texts, tokenizer).axes[0]
    lengths = [len(tokenizer.tokenize(text)) + 1 for text in texts]  # special tokens, too
    beyond = sum(max(length - 3, 0) for length in lengths) / sum(lengths)
    longer = sum(length > 3 for length in lengths) / 4
    assert axes.get_title() == f"{longer:.0%} of texts are longer than max_length; {beyond:.0%} of tokens lie beyond it"
    assert 0 < beyond < 1
    assert sum(bar_heights(axes)) == 4


def test_reliability_shows_accuracy_and_shares_before_and_after():
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    before, after = plot_reliability(EvalPrediction(logits, np.array([0, 1, 1, 0])), 100.0).axes
    accuracy = next(line for line in before.lines if line.get_label() == "accuracy")
    np.testing.assert_allclose(np.transpose(accuracy.get_data()), [[0.6, 0.5], [0.9, 0.5]])
    assert sorted(height for height in bar_heights(before) if height) == [0.5, 0.5]
    assert [height for height in bar_heights(after) if height] == [1.0]
    assert (before.get_title(), after.get_title()) == ("Before: error 0.250", "With the temperature: error 0.003")


def test_training_marks_the_checkpoint_that_is_kept():
    history = [{"epoch": e, "loss": 1 / e} for e in (1, 2, 3)]
    history += [
        {"epoch": e, "eval_loss": 1, "eval_accuracy": f1, "eval_f1": f1} for e, f1 in ((1, 0.5), (2, 0.9), (3, 0.7))
    ]
    right = plot_training(history).axes[1]
    kept = next(line for line in right.lines if line.get_label() == "kept")
    assert (list(kept.get_xdata()), list(kept.get_ydata())) == ([2], [0.9])


def test_confusions_share_one_scale_and_normalise_by_the_true_label(outputs):
    figure = plot_confusions(*outputs, ["no", "yes"])
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_clim() for image in images[:2]] == [(0, 1), (0, 1)]
    np.testing.assert_allclose(images[0].get_array(), [[1 / 3, 2 / 3], [1, 0]])
    np.testing.assert_allclose(images[1].get_array(), np.eye(2))


def test_before_after_shows_the_level_of_the_majority_class(outputs):
    always_no = EvalPrediction(predictions=np.eye(2)[[0] * 4], label_ids=outputs[0].label_ids)
    axes = plot_before_after(*outputs, always_no).axes[0]
    assert bar_heights(axes)[4:] == [1.0] * 4
    assert bar_heights(axes)[0] == 0.25
    levels = [segment[0][1] for segment in axes.collections[0].get_segments()]
    np.testing.assert_allclose(levels, [3 / 4, 3 / 8, 1 / 2, 3 / 7])
    assert "4 test examples" in axes.get_title()


@pytest.fixture
def summary():
    rows = {
        "majority class": {"trainable_parameters": 0, "train_seconds": 0, "f1": 0.08, "f1_low": 0.07, "f1_high": 0.09},
        "ia3": {"trainable_parameters": 20, "train_seconds": 5, "f1": 0.9, "f1_low": 0.8, "f1_high": 0.95},
        "lora-r8": {"trainable_parameters": 80, "train_seconds": 6, "f1": 0.92, "f1_low": 0.82, "f1_high": 0.96},
        "qlora": {"trainable_parameters": 80, "train_seconds": 8, "f1": 0.91, "f1_low": 0.81, "f1_high": 0.97},
        "TF-IDF + logistic regression": {"trainable_parameters": 900, "train_seconds": 1, "f1": 0.95, "f1_low": 0.9,
                                         "f1_high": 0.98},
    }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def test_methods_stand_at_their_costs_with_the_baselines_as_lines(summary):
    left, right = plot_methods(summary, 426).axes
    points = {bars.get_label(): bars.lines[0].get_xydata()[0].tolist() for bars in right.containers}
    assert points == {"ia3": [5, 0.9], "lora-r8": [6, 0.92], "qlora": [8, 0.91]}
    assert left.get_xscale() == "log"
    assert "426 test examples" in left.get_ylabel()
    places = [bars.lines[0].get_xdata()[0] for bars in left.containers]
    assert len(set(places)) == 3  # equal numbers of parameters do not hide each other
    lines = {line.get_label(): line.get_ydata()[0] for line in right.lines if ":" in str(line.get_label())}
    assert lines == {"majority class: 0.080": 0.08, "TF-IDF + logistic regression: 0.950": 0.95}
    assert right.get_ylim()[0] > 0.7  # so that the methods can be told apart


def test_the_baselines_are_drawn_without_a_method():
    alone = pd.DataFrame({"f1": [0.9], "f1_low": [0.8], "f1_high": [1.0], "train_seconds": [1.0],
                          "trainable_parameters": [5]}, index=["TF-IDF + logistic regression"])  # fmt: skip
    assert [text.get_text() for text in plot_methods(alone, 4).legends[0].texts] == [
        "TF-IDF + logistic regression: 0.900"
    ]


def test_search_shows_each_option_and_the_best_trial_that_was_not_pruned():
    table = pd.DataFrame({
        "f1": [0.8, 0.95, 0.7, 0.9], "pruned": [False, True, False, False], "seconds": 1.0,
        "target_modules": ["all-linear", ".*c_attn"] * 2, "learning_rate": [1e-4, 1e-3, 1e-2, 1e-3],
    }, index=pd.RangeIndex(1, 5, name="trial"))  # fmt: skip
    trials, modules, rates, *_ = plot_search(table).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in trials.lines}
    assert lines["complete"] == [[1, 0.8], [3, 0.7], [4, 0.9]]
    assert lines["pruned"] == [[2, 0.95]]
    assert lines["best so far"] == [[1, 0.8], [2, 0.8], [3, 0.8], [4, 0.9]]
    assert [label.get_text() for label in modules.get_xticklabels()] == ["all-linear", ".*c_attn"]
    assert [list(line.get_xdata()) for line in modules.lines] == [["all-linear"] * 2 + [".*c_attn"], [".*c_attn"]]
    assert rates.get_xscale() == "log"


def test_the_baselines_of_the_untrained_model_are_lines_too(summary):
    more = summary.rename(index={"ia3": FROZEN, "qlora": PROMPTED})
    right = plot_methods(more, 426).axes[1]
    assert [bars.get_label() for bars in right.containers] == ["lora-r8"]
    lines = {line.get_label() for line in right.lines}
    assert {f"{FROZEN}: 0.900", f"{PROMPTED}: 0.910"} <= lines


def test_a_learning_curve_has_its_sizes_and_intervals():
    rows = {(16, "full"): [0.4, 0.3, 0.5], (16, "ia3"): [0.5, 0.4, 0.6], (64, "ia3"): [0.7, 0.65, 0.8]}
    summary = pd.DataFrame.from_dict(rows, orient="index", columns=["f1", "f1_low", "f1_high"])
    summary.index = pd.MultiIndex.from_tuples(summary.index, names=["examples", "method"])
    axes = plot_learning_curve(summary, 872).axes[0]
    full, ia3 = axes.containers
    assert (full.get_label(), ia3.get_label()) == ("full", "ia3")
    assert full.lines[0].get_marker() != ia3.lines[0].get_marker()
    assert list(ia3.lines[0].get_ydata()) == [0.5, 0.7]
    assert [height for _, height in ia3.lines[2][0].get_segments()[1]] == pytest.approx([0.65, 0.8])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "64"]
    assert axes.get_xscale() == "log"
    assert "872 test examples" in axes.get_ylabel()
