import json

import numpy as np
import pytest

from peft_helpers.analysis.plots import CLASSICAL, MAJORITY
from peft_helpers.comparison.tables import (
    compare_methods_to,
    format_methods,
    read_results,
    summarize_methods,
    write_results,
)


@pytest.fixture
def results():
    run = {"parameters": 1000, "error": None, "train_seconds": 2.0, "peak_memory_mb": 10.0, "adapter_mb": 0.5}
    right, half = [0, 0, 1, 1], [0, 0, 0, 0]
    return [
        run | {"method": "full", "trainable_parameters": 1000, "accuracy": 1.0, "f1": 1.0, "predictions": right,
               "reload_verified": "not kept"},
        run | {"method": "ia3", "trainable_parameters": 20, "accuracy": 1.0, "f1": 1.0, "predictions": right,
               "reload_verified": "yes"},
        run | {"method": "ia3", "trainable_parameters": 20, "accuracy": 0.5, "f1": 1 / 3, "predictions": half,
               "reload_verified": "yes"},
        {"method": "dora", "error": "RuntimeError: no memory"},
    ]  # fmt: skip


def test_methods_are_summarized_over_seeds(results):
    summary = summarize_methods(results, np.array([0, 0, 1, 1]))
    assert summary.index.tolist() == ["ia3", "full"]
    ia3 = summary.loc["ia3"]
    assert (ia3["seeds"], ia3["accuracy"], ia3["share"]) == (2, 0.75, 0.02)
    assert (ia3["f1"], ia3["f1_min"], ia3["f1_max"]) == pytest.approx((2 / 3, 1 / 3, 1))
    assert ia3["f1_low"] < ia3["f1"] < ia3["f1_high"]


def test_methods_are_compared_to_one_of_them(results):
    table = compare_methods_to("full", [*results, results[0] | {"method": "bad", "predictions": [1, 1, 1, 0]}],
                               np.array([0, 0, 1, 1]))  # fmt: skip
    assert table.index.tolist() == ["ia3", "bad"]  # the best first
    assert table.iloc[0].tolist() == ["+0.000 [+0.000, +0.000]", "p = 1.000"]
    assert table.iloc[1, 0].startswith("-0.8")


def test_methods_are_readable(results):
    text = format_methods(summarize_methods(results, np.array([0, 0, 1, 1])))
    assert text.loc["ia3", "F1, worst to best seed"] == "0.333 to 1.000, 2 seeds"
    assert text.loc["full", "F1, worst to best seed"] == ""
    assert text["reload verified"].tolist() == ["yes", "not kept"]
    assert text["share"].tolist() == ["2.00%", "100.00%"]


def test_a_table_is_made_where_no_method_succeeded():
    references = np.array([0, 0, 1, 1])
    baselines = [
        {"method": name, "seed": 0, "trainable_parameters": 0, "accuracy": 0.5, "f1": 1 / 3, "predictions": [0] * 4,
         "train_seconds": 0.0, "reload_verified": "", "error": None, "parameters": np.nan, "peak_memory_mb": np.nan,
         "adapter_mb": np.nan} for name in (MAJORITY, CLASSICAL)
    ]  # fmt: skip
    results = [*baselines, {"method": "ia3", "seed": 0, "error": "RuntimeError: no memory"}]
    text = format_methods(summarize_methods(results, references))
    assert text.loc[CLASSICAL].tolist() == ["0", "", "0.500", text.iloc[1, 3], "", "0", "", "", ""]
    assert compare_methods_to(CLASSICAL, results, references).index.tolist() == [MAJORITY]
    assert compare_methods_to(MAJORITY, results[:1], references).empty


def test_full_fine_tuning_alone_is_not_kept(results):
    assert format_methods(summarize_methods(results[:1], np.array([0, 0, 1, 1])))["reload verified"].tolist() == [
        "not kept"
    ]


def test_a_kill_while_results_are_written_leaves_the_earlier_ones(tmp_path, monkeypatch):
    file, row = tmp_path / "results.jsonl", {"method": "ia3", "seed": 0, "error": None, "fingerprint": "a"}
    write_results([row], file)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_results([row, row], file)
    assert read_results(file) == [row]


def test_a_last_result_without_its_line_end_is_read(tmp_path):
    file, row = tmp_path / "results.jsonl", {"method": "ia3", "seed": 0, "error": None, "fingerprint": "a"}
    file.write_text(json.dumps(row))
    assert read_results(file) == [row]


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("content", [b"my notes", b'{"id": 1}\n{"id": 2}', b"\xff\xfe\n", b"[]\n"])
def test_the_users_own_file_is_refused_and_left_as_it_is(content, tmp_path):
    file = tmp_path / "notes.jsonl"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="expected a file with a result of the comparison in each line"):
        read_results(file)
    assert file.read_bytes() == content


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("name", ["missing/results.jsonl", "."])
def test_results_that_could_not_be_written_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="in a folder that exists"):
        read_results(tmp_path / name)
