import contextlib
import gc
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import BAD, GOOD

import peft_helpers as helpers
from peft_helpers.app import command_line
from peft_helpers.app.command_line import TRAINING_COMMANDS, main

NOTEBOOK = str(Path("LightweightFineTuning.ipynb").absolute())
LABELS = ["bad", "good", "unclear"]
BNB = "bitsandbytes"
COMMANDS = [*TRAINING_COMMANDS, "evaluate", "predict", "serve", "export", "check", "package"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("command_line")


@pytest.fixture(scope="module")
def reviews(folder) -> str:
    """A csv of three labels, of one column each with another name than the default."""
    kinds = {"good": GOOD, "bad": BAD, "unclear": ["a film", "a long story of two", "film", "the cast is in it"]}
    rows = [(text + mark, label) for mark in "abcdef" for label, texts in kinds.items() for text in texts]
    pd.DataFrame(rows, columns=["review", "opinion"]).to_csv(folder / "reviews.csv", index=False)
    return str(folder / "reviews.csv")


@pytest.fixture(scope="module")
def options(tiny_model_dir, reviews) -> list[str]:
    size = "--max_length 32 --learning_rate 0.01 --per_device_train_batch_size 8 --max_train_samples 24"
    return ["--model_name_or_path", tiny_model_dir, "--dataset_name", reviews, *size.split()]


@pytest.fixture(scope="module")
def trained(folder, options):
    """The adapter's folder and what `train` printed, run without naming the command in a folder of its own."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        (folder / "cwd").mkdir()
        patch.chdir(folder / "cwd")
        patch.setenv("LFT_ARGS", "--no_such_option")  # only the notebook reads it
        status = main([*options, "--output_dir", str(folder / "adapter")])
    assert status == 0
    return folder / "adapter", output.getvalue()


@pytest.fixture
def run(capsys):
    """Runs the command line and returns exit status, standard output and the lines of error."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            status = main([str(word) for word in words])
        except SystemExit as end:  # after --help
            status = end.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


# train


def test_train_leaves_results_and_figures_beside_the_adapter(trained):
    adapter, _ = trained
    results = json.loads((adapter / "results.json").read_text())
    tuned, untuned = results["metrics"]["tuned"], results["metrics"]["untuned"]
    for name in ("accuracy", "f1"):
        low, high = tuned[f"{name}_interval"]
        assert 0 <= low <= tuned[name] <= high <= 1
    gain = tuned["accuracy"] - untuned["accuracy"]
    assert results["metrics"]["difference"]["accuracy"] == pytest.approx(gain)
    assert results["label_names"] == LABELS
    assert results["config"]["per_device_train_batch_size"] == 8
    assert {"torch", "peft", "device"} <= results["environment"].keys()
    assert results["seconds"]["train"] > 0
    calibration, temperature = results["calibration"], helpers.Calibration.load(adapter).temperature
    assert calibration["temperature"] == temperature != 1
    assert calibration["before"] != calibration["after"]
    for name in ("before_after.png", "training.png", "confusions.png", "reliability.png"):
        assert (adapter / name).read_bytes().startswith(b"\x89PNG")


def test_train_ends_with_a_table_and_what_to_do_next(trained):
    adapter, output = trained
    tuned = json.loads((adapter / "results.json").read_text())["metrics"]["tuned"]
    assert re.search(rf"accuracy .*{tuned['accuracy']:.3f} \[", output)
    assert f"python -m peft_helpers predict {adapter} " in output
    assert f"python -m peft_helpers evaluate {adapter} " in output


def test_train_writes_only_into_the_folders_that_were_named(trained, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "cwd", "reviews.csv"]
    assert list((folder / "cwd").iterdir()) == []
    assert not list((folder / "adapter").glob("checkpoint-*"))


def test_another_process_than_the_first_writes_no_results(folder, trained, options, run, monkeypatch):
    results = trained[0] / "results.json"
    before = results.stat().st_mtime_ns
    monkeypatch.setattr("peft_helpers.training.TrainingArguments.should_save", False)
    monkeypatch.setattr("peft_helpers.pipeline.run", lambda dataset, args: None)
    status, output, _ = run("train", *options, "--output_dir", trained[0])
    assert status == 0
    assert "accuracy" not in output
    assert results.stat().st_mtime_ns == before


# evaluate and predict


def test_evaluate_scores_what_predict_answers(trained, reviews, run):
    adapter, _ = trained
    status, lines, _ = run("predict", adapter, "--file", reviews, "--text_column", "review")
    assert status == 0
    rows = [json.loads(line) for line in lines.splitlines()]
    expected = pd.read_csv(reviews)
    assert [row["text"] for row in rows] == expected["review"].tolist()
    accuracy = np.mean([row["label"] == label for row, label in zip(rows, expected["opinion"], strict=True)])
    status, output, _ = run("evaluate", adapter, reviews)
    assert status == 0
    assert output.startswith(f"{len(rows)} examples\n")
    assert re.search(rf"^accuracy +{accuracy:.3f} \[0\.\d+, [01]\.\d+\]$", output, re.MULTILINE)
    assert re.search(r"^unclear .* 24$", output, re.MULTILINE)


def test_predict_gives_each_text_a_label_and_probabilities(trained, run):
    status, output, _ = run("predict", trained[0], "a fine film", "ein schöner Film")
    rows = [json.loads(line) for line in output.splitlines()]
    assert status == 0
    assert [row["text"] for row in rows] == ["a fine film", "ein schöner Film"]
    for row in rows:
        assert list(row["probabilities"]) == LABELS
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)


@pytest.mark.parametrize(("config", "skipped"), [({}, True), ({"quantization_config": {}}, False), (None, False)])
def test_predict_imports_bitsandbytes_only_for_a_model_in_4_bits(tmp_path, monkeypatch, config, skipped):
    others = {name: module for name, module in sys.modules.items() if name != BNB}
    monkeypatch.setattr(sys, "modules", others)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    command_line._skip_bitsandbytes(tmp_path)
    assert (BNB in sys.modules) == skipped
    assert (find_spec(BNB) is None) == skipped  # what peft asks


@pytest.mark.parametrize("adapter", ["{trained}", "{empty}"])
def test_garbage_is_collected_again_after_predict(trained, run, tmp_path, adapter):
    status, _, _ = run("predict", adapter.format(trained=trained[0], empty=tmp_path), "a fine film")
    assert status == (adapter == "{empty}")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.slow
def test_predict_answers_the_same_without_bitsandbytes(trained, run):
    words = ["predict", str(trained[0]), "a fine film"]
    program = f"import sys; from peft_helpers.app.command_line import main; main({words}); print(sys.modules[{BNB!r}])"
    alone = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert alone.splitlines() == [*run(*words)[1].splitlines(), "None"]


def test_predict_answers_with_the_temperature_of_the_folder(trained, run, tmp_path):
    answers = []
    for temperature in (1.0, 2.0):
        folder = shutil.copytree(trained[0], tmp_path / str(temperature), ignore=lambda *_: ["calibration.json"])
        helpers.Calibration(temperature).save(folder)
        answers.append(json.loads(run("predict", folder, "a fine film")[1])["probabilities"])
    sharp, flat = (np.array(list(answer.values())) for answer in answers)
    np.testing.assert_allclose(flat, np.sqrt(sharp) / np.sqrt(sharp).sum(), rtol=1e-4)


def test_predict_reads_a_text_a_line(trained, run, tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "CHUNK", 2)
    (tmp_path / "texts.txt").write_text("good\n\nbad\n")
    status, output, _ = run("predict", trained[0], "--file", tmp_path / "texts.txt")
    assert status == 0
    assert [json.loads(line)["text"] for line in output.splitlines()] == ["good", "", "bad"]


def test_pairs_are_trained_on_evaluated_and_predicted(tiny_model_dir, run, tmp_path):
    texts = [f"{text} {number}" for number in range(6) for text in GOOD + BAD]
    rows = [(first, second, "same" if first == second else "other") for first in texts for second in (first, "a film")]
    pairs = pd.DataFrame(rows, columns=["left", "right", "label"])
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    words = ["--model_name_or_path", tiny_model_dir, "--dataset_name", tmp_path / "pairs.csv", "--max_length", 32]
    words += ["--max_steps", 4, "--output_dir", tmp_path / "adapter"]
    assert run(*words, "--text_column", "left", "--text_pair_column", "rigth")[2].startswith(
        "error: Name the text_pair_column: expected one column beside those of texts and labels, found ['rigth']; "
    )
    assert run(*words, "--text_pair_column", "right")[0] == 0
    status, lines, _ = run("predict", tmp_path / "adapter", "--file", tmp_path / "pairs.csv", "--text_column", "left")
    found = [json.loads(line) for line in lines.splitlines()]
    assert status == 0
    assert [tuple(row["text"]) for row in found] == [row[:2] for row in rows]
    accuracy = np.mean([row["label"] == label for row, (*_, label) in zip(found, rows, strict=True)])
    status, output, _ = run("evaluate", tmp_path / "adapter", tmp_path / "pairs.csv", "--text_column", "left")
    assert status == 0
    assert re.search(rf"^accuracy +{accuracy:.3f} ", output, re.MULTILINE)
    pairs.rename(columns={"right": "other"}).to_csv(tmp_path / "other.csv", index=False)
    words = ["predict", tmp_path / "adapter", "--file", tmp_path / "other.csv", "--text_column", "left"]
    assert "found ['right']" in run(*words)[2]
    assert run(*words, "--text_pair_column", "other")[1] == lines
    assert run("predict", tmp_path / "adapter", "good")[2] == (
        "error: This adapter takes pairs of texts; give them as two columns of a --file.\n"
    )


# language-model


@pytest.mark.slow
def test_language_model_leaves_an_adapter_with_its_perplexity(tiny_model_dir, run, tmp_path):
    text = "\n\n".join(f"{number} a sad story and a funny story and a sad story" for number in range(40))
    (tmp_path / "story.txt").write_text(text)
    words = "--block_size 16 --lm_learning_rate 0.02 --lm_num_train_epochs 3 --per_device_train_batch_size 4"
    words = [*words.split(), "--model_name_or_path", tiny_model_dir, "--dataset_name", "bbc-news"]
    words += ["--lm_dataset_name", tmp_path / "story.txt", "--output_dir", tmp_path / "adapter"]
    status, output, _ = run("language-model", *words)
    assert status == 0
    folder = tmp_path / "adapter_language_model"
    untuned, tuned = map(float, re.search(r"blocks: (.+) untuned, (.+) tuned", output).groups())
    assert tuned < untuned
    assert (folder / "adapter_model.safetensors").is_file()
    assert output.count("\nTuned: ") == 3
    assert f"The adapter is in {folder}." in output


# compare, check, package


@pytest.mark.slow
def test_compare_shows_the_methods_and_keeps_table_and_figure(options, run, tmp_path):
    words = ["compare", *options, "--comparison_methods", "head-only", "--comparison_steps", "2"]
    words += ["--output_dir", str(tmp_path / "methods")]
    status, output, _ = run(*words)
    assert status == 0
    assert "head-only" in output
    assert re.search(r"^\d+ test examples$", output, re.MULTILINE)
    assert output.endswith(f"The table and the figure are in {tmp_path / 'methods'}: methods.csv, methods.png.\n")
    names = sorted(path.name for path in (tmp_path / "methods").iterdir())
    assert names == ["method_comparison.jsonl", "methods.csv", "methods.png"]
    assert "head-only" in pd.read_csv(tmp_path / "methods" / "methods.csv")["method"].tolist()


@pytest.mark.slow
def test_train_uploads_when_everything_is_written(options, run, tmp_path, monkeypatch):
    seen, folder = [], tmp_path / "sent"
    monkeypatch.setattr(helpers, "upload_adapter", lambda args: seen.extend(folder.iterdir()), raising=False)
    assert run("train", *options, "--output_dir", folder)[0] == 0
    assert {"adapter_model.safetensors", "README.md", "results.json"} <= {path.name for path in seen}


@pytest.mark.slow
def test_search_leaves_table_and_figure_and_the_words_that_train_the_best(options, run, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    found, trained = [], []
    real = helpers.search_hyperparameters
    monkeypatch.setattr(helpers, "search_hyperparameters", lambda *of: found.append((of, real(*of))) or found[-1][1],
                        raising=False)  # fmt: skip
    folder = tmp_path / "a search"
    status, output, _ = run("search", *options, "--search_trials", "2", "--output_dir", folder)
    assert status == 0
    ((splits, _), study) = found[0]
    assert set(splits) == {"train", "validation"}  # nothing can be chosen on the test examples
    assert pd.read_csv(folder / "search.csv")["f1"].tolist() == [trial.value for trial in study.trials]
    assert sorted(path.name for path in folder.iterdir()) == ["search.csv", "search.png", "trials.jsonl"]
    _, command = output.splitlines()[-1].split(": ", 1)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "peft_helpers"]
    monkeypatch.setattr("peft_helpers.pipeline.run", lambda dataset, args: trained.append(args))
    monkeypatch.setattr("peft_helpers.training.TrainingArguments.should_save", False)
    assert run(*words[3:])[0] == 0
    assert study.best_params.items() <= trained[0].describe().items()
    assert trained[0].training.output_dir == str(folder / "adapter")


@pytest.mark.slow
def test_learning_curve_ends_with_a_sentence_and_keeps_table_and_figure(options, run, tmp_path):
    words = ["learning-curve", *options, "--train_sizes", "8", "16", "--comparison_seeds", "1"]
    words += ["--comparison_steps", "2", "--num_train_epochs", "1", "--output_dir", str(tmp_path / "curve")]
    status, output, _ = run(*words)
    assert status == 0
    assert output.startswith("Profile")
    assert "\n10 of 10 to run: about" in output
    assert re.search(r"^LoRA is ahead of TF-IDF \+ logistic regression .* macro F1 \[95 %\]\.$", output, re.MULTILINE)
    names = sorted(path.name for path in (tmp_path / "curve").iterdir())
    assert names == ["learning_curve.csv", "learning_curve.jsonl", "learning_curve.png"]
    table = pd.read_csv(tmp_path / "curve" / "learning_curve.csv")
    assert sorted(table["examples"]) == [8] * 5 + [16] * 5
    status, output, _ = run(*words)
    assert output.count("learning_curve.jsonl)") == 10


@pytest.mark.reliability("bad input")
def test_a_learning_curve_of_more_examples_than_there_are_is_refused(options, run, tmp_path):
    status, _, error = run("learning-curve", *options, "--train_sizes", "16", "48", "--output_dir", tmp_path)
    assert status == 1
    assert error.startswith("error: train_sizes is [16, 48]; expected from 2 to the 24 training examples that there")


@pytest.mark.slow
def test_a_method_that_fails_gives_an_exit_status_of_1(options, run, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such luck")

    monkeypatch.setattr("peft_helpers.comparison.runner.run_method", fail)
    words = ["compare", *options, "--comparison_methods", "head-only", "--output_dir", str(tmp_path)]
    status, output, error = run(*words)
    assert (status, error) == (1, "")
    assert "head-only, seed 42: failed, RuntimeError: no such luck" in output
    assert (tmp_path / "methods.png").is_file()  # of the baselines


def test_check_reports_what_is_missing_with_its_cells(trained, run, tmp_path):
    status, output, _ = run("check", NOTEBOOK, tmp_path)
    assert status == 1
    assert output.startswith(
        "missing            the folder has the adapter's configuration and its weights: call save_"
    )
    assert re.search(r"^found +a PEFT configuration is made, cell \d+, ", output, re.MULTILINE)
    status, output, _ = run("check", NOTEBOOK, trained[0])
    assert status == 0
    assert re.search(r"^found +the folder has the adapter's .*: copy .* beside the notebook$", output, re.M)


def test_package_writes_the_zip_that_was_named(trained, run, tmp_path):
    zip_path = tmp_path / "hand_in.zip"
    status, output, _ = run("package", NOTEBOOK, trained[0], "--zip_path", zip_path)
    assert status == 0
    assert "adapter/adapter_model.safetensors" in output
    assert zip_path.is_file()


# Help and errors


def test_help_lists_the_commands(run):
    status, output, _ = run("--help")
    assert status == 0
    assert not [command for command in COMMANDS if not re.search(rf"^    {command}\b", output, re.MULTILINE)]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, run):
    status, output, _ = run(command, "--help")
    assert status == 0
    assert output.startswith(f"usage: python -m peft_helpers {command} ")
    assert ("--lora_r" in output) == (command in TRAINING_COMMANDS)


def test_the_options_of_transformers_are_shown_on_demand(run):
    assert "--lr_scheduler_type" not in run("train", "--help")[1]
    assert "--lr_scheduler_type" in run("--help_all")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "argument COMMAND: invalid choice: 'trian' (choose from "),
        (
            ["--epochs", "3"],
            "Unknown option --epochs. Did you mean --num_train_epochs? See python -m peft_helpers train",
        ),
        (["train", "--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["--dataset_name", "missing.csv"], "dataset_name is 'missing.csv': there is no such file or folder."),
        (["compare", "--model_name_or_path", "./missing"], "model_name_or_path is './missing': there is no such file"),
        (["evaluate", "missing", "rows.csv"], "there is no file or folder 'missing'; name one"),
        (["predict", "./missing", "good"], "argument adapter_dir: there is no file or folder './missing'; name one"),
        (
            ["predict", "missing/adapter", "good"],
            "there is no folder 'missing/adapter', nor can it be downloaded from the Hub: ",
        ),
        (["--profile", "offline", "--report_to", "tensorbord"], "tensorbord is not supported, only "),
        (["export", "{adapter}", "--export_dir", "{adapter}"], "which exists and is not empty; choose another."),
        (["evaluate", "{adapter}", "missing.csv"], "there is no file or folder 'missing.csv'; name one that"),
        (["evaluate", "{adapter}"], "the following arguments are required: file. See python -m peft_helpers evaluate"),
        (["predict", "{adapter}"], "one of the arguments TEXT --file is required. See python -m peft_helpers predict"),
        (["predict", "{adapter}", "good", "--file", "{reviews}"], "argument --file: not allowed with argument TEXT"),
        (["predict", "{adapter}", "--file", "{reviews}", "good"], "unrecognized arguments: good. See"),
        (["check", NOTEBOOK, "--zip"], "unrecognized arguments: --zip. See python -m peft_helpers check --help."),
        (["predict", "{empty}", "good"], "Expected the options of a run in"),
        (["check", "missing.ipynb"], "there is no file or folder 'missing.ipynb'"),
        (["package", NOTEBOOK, "{empty}"], "No zip was written. Missing: the folder has the adapter's configuration"),
    ],
)
@pytest.mark.reliability("bad input")
def test_errors_are_one_line(words, message, trained, reviews, run, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LFT_ARGS", "--no_such_option")
    places = {"adapter": trained[0], "reviews": reviews, "empty": tmp_path / "empty"}
    status, output, error = run(*(word.format(**places) for word in words))
    assert (status, output) == (1, "")
    assert re.fullmatch(r"error: [^\n]+\n", error)
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_an_unexpected_error_is_reported_with_its_type_and_notes(run, monkeypatch):
    def fail(*_):
        error = KeyError("labels")
        error.add_note("The folder is\nas it was.")
        raise error

    monkeypatch.setattr("peft_helpers.submission.checklist.check_submission", fail)
    assert run("check", NOTEBOOK) == (1, "", "error: KeyError 'labels' The folder is as it was.\n")


def test_the_traceback_is_shown_when_asked_for(run):
    with pytest.raises(FileNotFoundError, match=r"dataset_name is 'missing\.csv'"):
        run("--dataset_name", "missing.csv", "--traceback")


@pytest.mark.reliability("fault")
def test_an_interrupt_is_one_line(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("peft_helpers.submission.checklist.check_submission", interrupt)
    status, _, error = run("check", NOTEBOOK)
    assert (status, error.strip()) == (1, "error: KeyboardInterrupt")


def test_a_launched_process_takes_the_arguments_of_the_first(run, monkeypatch, options):
    started, of_the_first, trained = [], helpers.make_arguments(seed=7), []
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("peft_helpers.app.notebook.keep_output_clean", lambda: started.append(True))
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda objects: [of_the_first])
    monkeypatch.setattr(helpers, "load_splits", trained.append, raising=False)
    monkeypatch.setattr("peft_helpers.pipeline.run", lambda dataset, args: trained.append(args))
    monkeypatch.setattr("peft_helpers.training.TrainingArguments.should_save", False)
    assert run(*options)[0] == 0
    assert started
    assert trained == [of_the_first, of_the_first]


def test_help_and_errors_do_not_wait_for_the_large_libraries(tmp_path):
    script = """
import sys
from peft_helpers.app.command_line import main
for words in (["--help"], ["train", "--help"]):
    try:
        main(words)
    except SystemExit as end:
        assert not end.code
statuses = [main(words) for words in (["--epochs", "3"], ["--seed", "one"], ["--dataset_name", "missing.csv"],
                                      ["predict", "missing", "text"])]
slow = {"torch", "datasets", "pandas", "peft"} & sys.modules.keys()
sys.exit(f"{statuses} {slow}")
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.stderr.splitlines()[-1] == "[1, 1, 1, 1] set()"


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "peft_helpers", "predict", "missing", "text"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.startswith("error: argument adapter_dir: there is no file or folder 'missing'")
