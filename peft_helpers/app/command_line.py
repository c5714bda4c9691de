"""The command line, ``python -m peft_helpers COMMAND``: what the notebook does, without a notebook.

A command is a function here. `peft_helpers` imports a module when one of its names is used: help and errors are quick.
"""

import json
import os
import sys
import traceback
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from zipfile import ZipFile

import peft_helpers as helpers

PROGRAM = "python -m peft_helpers"
TRAINING_COMMANDS = ("train", "compare", "language-model")  # take every option of `Arguments`
CHUNK = 64  # texts that predict classifies before it writes their lines


def main(words: list[str] | None = None) -> int:
    """Run the command that ``words``, by default those of the process, begin with; without a command, `train`.

    Returns:
        The exit status: 0, or 1 after a failure, reported in one line on stderr (with ``--traceback``, in full).
    """
    words = list(sys.argv[1:] if words is None else words)
    show_traceback = "--traceback" in words
    try:
        status = _run([word for word in words if word != "--traceback"])
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


def _describe_error(error: BaseException) -> str:
    """Return an error and its notes as one line; of an unexpected one, with its type."""
    expected = isinstance(error, (ValueError, OSError, ImportError, MemoryError)) and str(error)
    text = [str(error) if expected else f"{type(error).__name__} {error}", *getattr(error, "__notes__", [])]
    return " ".join(" ".join(text).split())


def _run(words: list[str]) -> int:
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = ["train", *words]
    options, others = _make_parser().parse_known_args(words)
    if options.command in TRAINING_COMMANDS:
        options.words = others
    elif others:
        raise ValueError(f"unrecognized arguments: {' '.join(others)}. See {PROGRAM} {options.command} --help.")
    return options.run(options) or 0


class _Parser(ArgumentParser):
    """Raises where argparse would end the process."""

    def error(self, message: str) -> None:
        raise ValueError(f"{message}. See {self.prog} --help.")


def _make_parser() -> _Parser:
    """Return the parser of all commands; the words of `TRAINING_COMMANDS` are left to `parse_arguments`."""
    parser = _Parser(
        prog=PROGRAM,
        description="Fine-tune a text classifier with LoRA, compare methods, and use what was trained.",
        epilog="COMMAND --help shows the options of each; without a command, it is train. With any command, "
        "--traceback shows where an error arose.",
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[Namespace], int | None]) -> ArgumentParser:
        add_help = name not in TRAINING_COMMANDS
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__, add_help=add_help)
        command.set_defaults(run=run)
        return command

    for name, run in zip(TRAINING_COMMANDS, (train, compare, language_model), strict=True):
        add(name, run)
    _add_adapter_commands(add)
    _add_submission_commands(add)
    return parser


def _add_adapter_commands(add: Callable) -> None:
    evaluating, predicting, serving = (add(run.__name__, run) for run in (evaluate, predict, serve))
    for command in (evaluating, predicting, serving):
        command.add_argument("adapter_dir", type=_folder, help="folder that a run has saved an adapter in")
    evaluating.add_argument("file", type=_file, help="csv, tsv, json, jsonl or parquet file with texts and labels")
    evaluating.add_argument("--label_column", help="column with the labels (default: the only candidate)")
    predicting.add_argument("texts", nargs="*", metavar="TEXT", help="texts to classify")
    predicting.add_argument("--file", type=_file, help="txt file with a text a line, or csv, tsv, json, jsonl, parquet")
    predicting.add_argument("--output_file", type=_new_file, help="file to write to (default: standard output)")
    for command in (evaluating, predicting):
        command.add_argument("--text_column", help="column with the texts (default: the only candidate)")
    serving.add_argument("--server_name", default="127.0.0.1", help="address; the default is seen by this machine only")
    serving.add_argument("--server_port", type=int, help="port (default: the first free one from 7860 on)")
    serving.add_argument("--max_characters", type=int, default=5000, help="longer texts are refused (default: 5000)")


def _add_submission_commands(add: Callable) -> None:
    checking, packing = add("check", check), add("package", package)
    for command in (checking, packing):
        command.add_argument("notebook", type=_file, nargs="?", default="LightweightFineTuning.ipynb")
        command.add_argument("adapter_dir", nargs="?", default="lora_adapter")
    packing.add_argument("--zip_path", type=Path, help="zip to write (default: beside the notebook and by its name)")
    packing.add_argument("--allow_incomplete", action="store_true", help="write it even if something is missing")


def _file(name: str) -> Path:
    if not Path(name).is_file():
        raise ArgumentTypeError(f"there is no file {name!r}; name one that exists")
    return Path(name)


def _new_file(name: str) -> Path:
    if Path(name).exists():
        raise ArgumentTypeError(f"there is {name!r} already; name a new file")
    return Path(name)


def _folder(name: str) -> Path:
    if not Path(name).is_dir():
        raise ArgumentTypeError(f"there is no folder {name!r}; name the one that an adapter was saved in")
    return Path(name)


def _parse_arguments(options: Namespace, **defaults) -> "helpers.Arguments":
    """Return the arguments of a training command, in several processes the first one's, or show the help and end."""
    from peft_helpers.app.profiles import describe_options, parse_arguments

    if {"-h", "--help", "--help_all"} & set(options.words):
        program = f"{PROGRAM} {options.command}"
        print(describe_options(program, options.run.__doc__, everything="--help_all" in options.words))
        raise SystemExit
    if "RANK" in os.environ:  # else an error need not wait for the large libraries
        _start()
    args = parse_arguments(options.words, **defaults)
    _start()
    return _share(args)


def _start() -> None:
    """Silence the libraries; of several processes, only the first one prints from here on."""
    from peft_helpers.distributed import start_processes

    start_processes()
    helpers.keep_output_clean()


def _share(args: "helpers.Arguments") -> "helpers.Arguments":
    """Return the first process's arguments in every process: whether the Hub answers may differ between them."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([args])[0].replace()  # made anew, since each process has its own device


def _is_main_process() -> bool:
    from peft_helpers.distributed import process_state

    return process_state().is_main_process


def train(options: Namespace) -> None:
    """Fine-tune, test before and after, and save adapter, results.json and figures to --output_dir."""
    args = _parse_arguments(options)
    dataset = helpers.load_splits(args)
    result = helpers.run(dataset, args)
    if _is_main_process():
        helpers.save_results(result, helpers.majority_class(dataset))
        print(helpers.describe_run(result))


def language_model(options: Namespace) -> None:
    """Fine-tune on texts without labels: perplexity and generated text before and after."""
    args = _share(helpers.choose_texts(_parse_arguments(options)))
    from peft_helpers.language_modeling.task import describe_run, summarize_run

    args, task = helpers.plan_language_modeling(args)
    documents = helpers.load_documents(args)
    result = helpers.run(documents, args, task)
    if _is_main_process():
        examples = helpers.generate_examples(result, documents)
        path = Path(args.training.output_dir, "results.json")
        summary = json.dumps(summarize_run(result, examples), indent=2, ensure_ascii=False)
        path.write_text(summary + "\n", encoding="utf-8")
        print(f"{describe_run(result, examples)}\n\nThe adapter and {path.name} are in {path.parent}.")


def compare(options: Namespace) -> int:
    """Train several methods alike and compare them; methods.csv and methods.png go to --output_dir."""
    args = _parse_arguments(options, output_dir="method_comparison", comparison_file=None)
    from peft_helpers.app.results import describe_compared_methods, save_methods

    folder = Path(args.training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if args.comparison.comparison_file is None:
        args = args.replace(comparison_file=str(folder / "method_comparison.jsonl"))
    results, references = helpers.compare_methods(helpers.load_splits(args), args)
    save_methods(results, references, folder)
    print(describe_compared_methods(results, references, folder))
    return int(any(row["error"] for row in results))


def evaluate(options: Namespace) -> None:
    """Measure a saved adapter on the labeled examples of a file."""
    _start()
    model, tokenizer = helpers.load_adapter(options.adapter_dir)
    label_names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    dataset = helpers.load_labelled_examples(options.file, label_names, options.text_column, options.label_column)
    tokenized = helpers.tokenize_dataset(dataset, tokenizer)
    output = helpers.predict(model, tokenizer, tokenized, helpers.load_recipe(options.adapter_dir))
    table = helpers.report_per_class(output, label_names).round(3)
    print(f"{helpers.describe_evaluation(output)}\n\n{table.to_string()}")


def predict(options: Namespace) -> None:
    """Classify texts, or those of a file, with a saved adapter: a JSON object a line."""
    if bool(options.texts) == bool(options.file):
        raise ValueError(f"expected either texts or --file. See {PROGRAM} predict --help.")
    _start()
    model, tokenizer = helpers.load_adapter(options.adapter_dir)
    texts = options.texts or helpers.load_texts(options.file, options.text_column)
    path = options.output_file
    with path.open("x", encoding="utf-8") if path else nullcontext(sys.stdout) as output:
        for row in _classify(model, tokenizer, texts):
            print(json.dumps(row, ensure_ascii=False), file=output)


def _classify(model, tokenizer, texts: list[str]) -> Iterator[dict]:
    from tqdm import tqdm

    with tqdm(total=len(texts), unit=" texts", disable=len(texts) <= CHUNK) as progress:
        for start in range(0, len(texts), CHUNK):
            rows = helpers.classify_texts(model, tokenizer, texts[start : start + CHUNK]).to_dict("records")
            for row in rows:
                probabilities = {name: row[f"P({name})"] for name in model.config.id2label.values()}
                yield {"text": row["text"], "label": row["label"], "probabilities": probabilities}
            progress.update(len(rows))


def check(options: Namespace) -> int:
    """Go through the reviewer's list; the exit status is 1 if something is surely missing."""
    checklist = helpers.check_submission(options.notebook, options.adapter_dir)
    print(checklist)
    return int(any(row.refuses for row in checklist))


def package(options: Namespace) -> None:
    """Check notebook and adapter and pack them into a zip beside the notebook."""
    path = helpers.package_submission(options.notebook, options.adapter_dir, options.zip_path, options.allow_incomplete)
    print(helpers.check_submission(options.notebook, options.adapter_dir))
    print(f"\n{path} has {', '.join(ZipFile(path).namelist())}")


def serve(options: Namespace) -> None:
    """Open a web page to try a saved adapter, beside the untuned model, until Ctrl-C."""
    from peft_helpers.app.web_page import open_page

    helpers.keep_output_clean()
    page = open_page(options.adapter_dir, options.server_name, options.server_port, options.max_characters)
    page.block_thread()
