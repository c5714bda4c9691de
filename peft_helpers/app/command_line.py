"""The command line, ``python -m peft_helpers VERB``: what the notebook does, without a notebook.

A verb is a function here and a line of `VERBS`. It parses its words before it imports what takes seconds.
"""

import json
import os
import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO
from zipfile import ZipFile

PROGRAM = "python -m peft_helpers"
BATCH = 64  # texts that predict classifies at a time


def main(arguments: list[str] | None = None) -> int:
    """Run the verb that ``arguments``, by default those of the process, begin with; without a verb, `train`.

    Returns:
        The exit status: 0, or 1 where something failed, of which one line on stderr tells (with ``--traceback``, all).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    try:
        status = _run_verb(words)
        sys.stdout.flush()
        return status
    except SystemExit as end:  # by which argparse ends after --help
        return int(end.code or 0)
    except BrokenPipeError:  # whoever read the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the interpreter flushes to at its end
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if show_traceback:
            traceback.print_exc()
        else:
            print(f"error: {_describe_error(error)}", file=sys.stderr)
        return 1


def _run_verb(words: list[str]) -> int:
    if words[:1] in (["-h"], ["--help"]):
        print(_overview())
        return 0
    verb, words = (words[0], words[1:]) if words and not words[0].startswith("-") else ("train", words)
    if verb not in VERBS:
        raise ValueError(f"Unknown verb {verb!r}; the known ones are {', '.join(VERBS)}.")
    return VERBS[verb](words) or 0


def _describe_error(error: BaseException) -> str:
    """Return an error and its notes as one line; of an unexpected one, with its type."""
    expected = isinstance(error, (ValueError, OSError, ImportError, MemoryError)) and str(error)
    text = [str(error) if expected else f"{type(error).__name__} {error}", *getattr(error, "__notes__", [])]
    return " ".join(" ".join(text).split())


def _overview() -> str:
    verbs = "\n".join(f"  {name:<14} {function.__doc__.splitlines()[0]}" for name, function in VERBS.items())
    return (
        f"usage: {PROGRAM} [VERB] [OPTIONS]\n\nverbs (`VERB --help` shows the options of each):\n{verbs}\n\n"
        "With any verb, --traceback shows where an error arose.\n\n"
        f"Without a verb, {PROGRAM} is that with train:\n\n{_run_config_help('train')}"
    )


def _run_config_help(verb: str) -> str:
    from peft_helpers.arguments import ArgumentsParser

    notes = "The profile, the model and the data set change some of these defaults; an option that is given wins."
    parser = ArgumentsParser(prog=f"{PROGRAM} {verb}", description=VERBS[verb].__doc__, epilog=notes)
    return parser.format_help()


def _parse_arguments(verb: str, words: list[str], **defaults):
    """Return the configuration, or None where help was asked for and is shown; in all processes the first one's."""
    if {"-h", "--help"} & set(words):
        print(_run_config_help(verb))
        return None
    from peft_helpers.arguments import parse_arguments

    if "RANK" not in os.environ:  # no launcher: one process, and nothing to import yet
        return parse_arguments(words, **defaults)
    from accelerate.utils import broadcast_object_list

    from peft_helpers.distributed import start_processes

    start_processes()
    return broadcast_object_list([parse_arguments(words, **defaults)])[0]


class _Parser(ArgumentParser):
    """Raises where argparse would end the process."""

    def __init__(self, verb: str):
        super().__init__(prog=f"{PROGRAM} {verb}", description=VERBS[verb].__doc__, allow_abbrev=False)

    def error(self, message: str) -> None:
        raise ValueError(f"{message}. See {self.prog} --help.")


def _file(name: str) -> Path:
    if not Path(name).is_file():
        raise ArgumentTypeError(f"there is no file {name!r}; name one that exists")
    return Path(name)


def _folder(name: str) -> Path:
    if not Path(name).is_dir():
        raise ArgumentTypeError(f"there is no folder {name!r}; name the one that an adapter was saved in")
    return Path(name)


def train(words: list[str]) -> None:
    """Fine-tune, test before and after, and save adapter, results.json and figures to --output_dir."""
    args = _parse_arguments("train", words)
    if args is None:
        return
    from peft_helpers.app.results import describe_run, save_results
    from peft_helpers.distributed import start_processes
    from peft_helpers.app.notebook import keep_output_clean
    from peft_helpers.pipeline import run

    start_processes()
    keep_output_clean()
    result = run(args)
    if _is_main_process():
        save_results(result)
        print(describe_run(result))


def evaluate(words: list[str]) -> None:
    """Measure a saved adapter on the labelled rows of a file."""
    parser = _Parser("evaluate")
    parser.add_argument("adapter_dir", type=_folder, help="folder that a run has saved an adapter in")
    parser.add_argument("file", type=_file, help="csv, tsv, json, jsonl or parquet file with texts and labels")
    parser.add_argument("--text_column", help="column with the texts (default: the only candidate)")
    parser.add_argument("--label_column", help="column with the labels (default: the only candidate)")
    options = parser.parse_args(words)
    from peft_helpers.adapters import load_run_config
    from peft_helpers.app.results import describe_evaluation
    from peft_helpers.metrics import report_per_class
    from peft_helpers.app.notebook import keep_output_clean
    from peft_helpers.pipeline import load_adapter
    from peft_helpers.prediction import predict
    from peft_helpers.sources.input_files import load_labelled_rows
    from peft_helpers.tokenization import tokenize_dataset

    keep_output_clean()
    model, tokenizer = load_adapter(options.adapter_dir)
    label_names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    rows = load_labelled_rows(options.file, label_names, options.text_column, options.label_column)
    tokenized = tokenize_dataset(rows, tokenizer, tokenizer.model_max_length)
    output = predict(model, tokenizer, tokenized, load_run_config(options.adapter_dir))
    if _is_main_process():
        print(f"{describe_evaluation(output)}\n\n{report_per_class(output, label_names).round(3).to_string()}")


def predict(words: list[str]) -> None:
    """Classify texts, or those of a file, with a saved adapter: a JSON object a line."""
    parser = _Parser("predict")
    parser.add_argument("adapter_dir", type=_folder, help="folder that a run has saved an adapter in")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts to classify")
    parser.add_argument("--file", type=_file, help="a txt file with a text a line, or csv, tsv, json, jsonl, parquet")
    parser.add_argument("--text_column", help="column of the file with the texts (default: the only candidate)")
    parser.add_argument("--output_file", type=Path, help="new file to write to (default: standard output)")
    options = parser.parse_intermixed_args(words)
    if bool(options.texts) == bool(options.file):
        parser.error("expected either texts or --file")
    with _open_output(options.output_file) as output:
        from peft_helpers.app.notebook import keep_output_clean
        from peft_helpers.pipeline import load_adapter
        from peft_helpers.sources.input_files import load_texts

        keep_output_clean()
        texts = options.texts or load_texts(options.file, options.text_column)
        for row in _classify(*load_adapter(options.adapter_dir), texts):
            print(json.dumps(row, ensure_ascii=False), file=output)


@contextmanager
def _open_output(path: Path | None) -> Iterator[TextIO]:
    """Open a new file, or give the standard output; a file that nothing was written to is removed."""
    if path is None:
        yield sys.stdout
        return
    if path.exists():
        raise FileExistsError(f"--output_file is {str(path)!r}, which exists; name a new file.")
    try:
        with path.open("x", encoding="utf-8") as output:
            yield output
    finally:
        if path.is_file() and not path.stat().st_size:
            path.unlink()


def _classify(model, tokenizer, texts: list[str]) -> Iterator[dict]:
    from tqdm import tqdm

    from peft_helpers.prediction import classify_texts

    starts = range(0, len(texts), BATCH)
    for start in tqdm(starts, unit=f" x {BATCH} texts", disable=len(starts) == 1):
        for row in classify_texts(model, tokenizer, texts[start : start + BATCH]).to_dict("records"):
            text, label = row.pop("text"), row.pop("label")
            del row["probability"]  # that of the label, which stands among the others
            yield {"text": text, "label": label, "probabilities": {name[2:-1]: p for name, p in row.items()}}


def compare(words: list[str]) -> int | None:
    """Train several methods alike and compare them; methods.csv and methods.png go to --output_dir."""
    args = _parse_arguments("compare", words, output_dir="method_comparison", comparison_file=None)
    if args is None:
        return None
    if args.comparison.comparison_file is None:
        args = args.replace(comparison_file=str(Path(args.training.output_dir, "method_comparison.jsonl")))
    from peft_helpers.app.results import describe_compared_methods, save_methods
    from peft_helpers.app.notebook import keep_output_clean
    from peft_helpers.pipeline import compare_methods

    keep_output_clean()
    Path(args.training.output_dir).mkdir(parents=True, exist_ok=True)
    results, references = compare_methods(args)
    if _is_main_process():
        save_methods(results, references, args.training.output_dir)
        print(describe_compared_methods(results, references, args.training.output_dir))
    return int(any(row["error"] for row in results))


def check(words: list[str]) -> int:
    """Go through the reviewer's list; the exit status is 1 if something is surely missing."""
    options = _hand_in_parser("check").parse_args(words)
    from peft_helpers.submission.checklist import check_submission

    checklist = check_submission(options.notebook, options.adapter_dir)
    print(checklist)
    return int(any(row.refuses for row in checklist))


def package(words: list[str]) -> None:
    """Check notebook and adapter and pack them into a zip beside the notebook."""
    parser = _hand_in_parser("package")
    parser.add_argument("--zip_path", type=Path, help="zip to write (default: beside the notebook and by its name)")
    parser.add_argument("--allow_incomplete", action="store_true", help="write it even if something is missing")
    options = parser.parse_intermixed_args(words)
    from peft_helpers.submission.checklist import check_submission
    from peft_helpers.submission.package import package_submission

    path = package_submission(**vars(options))
    print(check_submission(options.notebook, options.adapter_dir))
    print(f"\n{path} has {', '.join(ZipFile(path).namelist())}")


def _hand_in_parser(verb: str) -> _Parser:
    parser = _Parser(verb)
    parser.add_argument("notebook", type=_file, nargs="?", default="LightweightFineTuning.ipynb")
    parser.add_argument("adapter_dir", nargs="?", default="lora_adapter")
    return parser


def serve(words: list[str]) -> None:
    """Open a web page to try a saved adapter, beside the untuned model, until Ctrl-C."""
    parser = _Parser("serve")
    parser.add_argument("adapter_dir", type=_folder, help="folder that a run has saved an adapter in")
    parser.add_argument("--server_name", default="127.0.0.1", help="address; the default is seen by this machine only")
    parser.add_argument("--server_port", type=int, help="port (default: the first free one from 7860 on)")
    parser.add_argument("--max_characters", type=int, default=5000, help="longer texts are refused (default: 5000)")
    options = parser.parse_args(words)
    from peft_helpers.app.web_page import serve

    serve(**vars(options))


def language_model(words: list[str]) -> None:
    """Fine-tune on texts without labels: perplexity and generated text before and after."""
    args = _parse_arguments("language-model", words)
    if args is None:
        return
    from peft_helpers.distributed import start_processes
    from peft_helpers.language_modeling.task import run_language_model
    from peft_helpers.app.notebook import keep_output_clean

    start_processes()
    keep_output_clean()
    result = run_language_model(args)
    if _is_main_process():
        path = Path(result["output_dir"], "results.json")
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"Adapter and {path.name} are in {path.parent}.")


def _is_main_process() -> bool:
    from peft_helpers.distributed import process_state

    return process_state().is_main_process


VERBS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "compare": compare,
    "check": check,
    "package": package,
    "serve": serve,
    "language-model": language_model,
}
