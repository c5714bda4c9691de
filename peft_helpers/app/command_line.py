"""The command line, ``python -m peft_helpers COMMAND``: a function for each command."""

import gc
import json
import os
import shlex
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from zipfile import ZipFile

import huggingface_hub
from tqdm import trange

import peft_helpers as helpers  # loads what is used: help and errors do not wait for the large libraries

PROGRAM = "python -m peft_helpers"
# These take every option of `Arguments`.
TRAINING_COMMANDS = ("train", "compare", "learning-curve", "search", "language-model")
CHUNK = 64  # texts that predict classifies before it writes their lines


def main(words: list[str] | None = None) -> int:
    """Run the command that ``words``, by default those of the process, begin with; without a command, `train`.

    The exit status is 1 after a failure, reported in one line on stderr; with ``--traceback`` the error is raised.
    """
    words = sys.argv[1:] if words is None else words
    try:
        return _run([word for word in words if word != "--traceback"])
    except (Exception, KeyboardInterrupt) as error:
        if "--traceback" in words:
            raise
        expected = isinstance(error, (ValueError, OSError, ImportError, MemoryError)) and str(error)
        text = [str(error) if expected else f"{type(error).__name__} {error}", *getattr(error, "__notes__", [])]
        print("error:", *" ".join(text).split(), file=sys.stderr)
        return 1
    finally:
        gc.unfreeze()  # what `predict` has frozen
        gc.enable()


def _run(words: list[str]) -> int:
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = ["train", *words]
    options, others = _make_parser().parse_known_args(words)
    if others and options.command not in TRAINING_COMMANDS:
        raise ValueError(f"unrecognized arguments: {' '.join(others)}. See {PROGRAM} {options.command} --help.")
    options.words = others  # for `parse_arguments`
    return options.run(options) or 0


class _Parser(ArgumentParser):
    """Raises where argparse would end the process."""

    def error(self, message: str) -> None:
        raise ValueError(f"{message}. See {self.prog} --help.")


def _make_parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM,
        description="Fine-tune a text classifier with LoRA, compare methods, and use what was trained.",
        epilog="COMMAND --help shows its options; without a command, it is train. --traceback: where an error arose.",
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND", required=True)
    for run in (
        train, compare, learning_curve, search, language_model, evaluate, predict, serve, export, check, package,
    ):  # fmt: skip
        name, text = run.__name__.replace("_", "-"), run.__doc__
        command = commands.add_parser(name, help=text, description=text, add_help=name not in TRAINING_COMMANDS)
        command.set_defaults(run=run)
    *_, evaluating, predicting, serving, exporting, checking, packing = commands.choices.values()
    for command in (evaluating, predicting, serving, exporting):
        command.add_argument("adapter_dir", type=_adapter, help="folder of a saved adapter, or its id on the Hub")
    evaluating.add_argument("file", type=_existing, help="csv, tsv, json, jsonl or parquet file with texts and labels")
    evaluating.add_argument("--label_column", help="column with the labels (default: the only candidate)")
    evaluating.add_argument("--suspicious", type=int, metavar="N", help="also show the N most suspicious labels")
    either = predicting.add_mutually_exclusive_group(required=True)
    either.add_argument("texts", nargs="*", default=[], metavar="TEXT", help="texts to classify")
    either.add_argument("--file", type=_existing, help="txt with a text a line, or csv, tsv, json, jsonl, parquet")
    for command in (evaluating, predicting):
        command.add_argument("--text_column", help="column with the texts (default: the only candidate)")
        command.add_argument("--text_pair_column", help="column with the second texts (default: as in training)")
    serving.add_argument("--server_name", default="127.0.0.1", help="address; the default is seen by this machine only")
    serving.add_argument("--server_port", type=int, help="port (default: the first free one from 7860 on)")
    exporting.add_argument("--export_dir", default="merged_model", help="new folder (default: merged_model)")
    exporting.add_argument("--onnx", action="store_true", help="also write model.onnx")
    for command in (checking, packing):
        command.add_argument("notebook", type=_existing, nargs="?", default="LightweightFineTuning.ipynb")
        command.add_argument("adapter_dir", nargs="?", default="lora_adapter")
    packing.add_argument("--zip_path", type=Path, help="zip to write (default: beside the notebook and by its name)")
    return parser


def _existing(name: str) -> Path:
    if not Path(name).exists():
        raise ArgumentTypeError(f"there is no file or folder {name!r}; name one that exists")
    return Path(name)


def _adapter(name: str) -> Path:
    if Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/")):
        return _existing(name)
    from peft_helpers.analysis.sharing import HUB_FILES

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # of the Hub, the connection or the name
        raise OSError(f"there is no folder {name!r}, nor can it be downloaded from the Hub: {error}") from error


def _parse_arguments(options: Namespace, **defaults) -> "helpers.Arguments":
    """Return a training command's arguments, in each process those of the first, or show the help and end."""
    from peft_helpers.app.profiles import choose_texts, describe_options, parse_arguments

    if {"-h", "--help", "--help_all"} & set(options.words):
        print(describe_options(f"{PROGRAM} {options.command}", options.run.__doc__, "--help_all" in options.words))
        raise SystemExit
    if "RANK" in os.environ:  # else an error need not wait for the large libraries
        helpers.keep_output_clean()
    args = parse_arguments(options.words, **defaults)
    helpers.keep_output_clean()
    args = choose_texts(args) if options.run is language_model else args
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([args])[0].replace()  # made anew, since each process has its own device


def train(options: Namespace) -> None:
    """Fine-tune, test before and after, and save adapter, results.json and figures to --output_dir."""
    args = _parse_arguments(options)
    dataset = helpers.load_splits(args)
    result = helpers.run(dataset, args)
    if args.training.should_save:
        helpers.save_results(result, helpers.majority_class(dataset))
        print(helpers.describe_run(result))
    helpers.upload_adapter(args)


def language_model(options: Namespace) -> None:
    """Fine-tune on texts without labels: perplexity and generated text before and after."""
    args, task = helpers.plan_language_modeling(_parse_arguments(options))
    from peft_helpers.language_modeling.task import describe_run

    documents = helpers.load_documents(args)
    result = helpers.run(documents, args, task)
    if args.training.should_save:
        examples = helpers.generate_examples(result, documents)
        print(f"{describe_run(result, examples)}\n\nThe adapter is in {args.training.output_dir}.")
    helpers.upload_adapter(args)


def compare(options: Namespace) -> int:
    """Train several methods alike and compare them; methods.csv and methods.png go to --output_dir."""
    args, folder = _parse_comparison(options, "method_comparison")
    helpers.plan_comparison(args)  # an unknown method need not wait for the data
    results, references = helpers.compare_methods(helpers.load_splits(args), args)
    summary = helpers.summarize_methods(results, references)
    summary.to_csv(folder / "methods.csv", index_label="method")
    helpers.plot_methods(summary, len(references)).savefig(folder / "methods.png", dpi=150)
    print(f"\n{len(references):,} test examples\n{helpers.format_methods(summary).to_string()}")
    print(f"The table and the figure are in {folder}: methods.csv, methods.png.")
    return int(any(row["error"] for row in results))


def learning_curve(options: Namespace) -> int:
    """Compare methods on few and many examples; learning_curve.csv and learning_curve.png go to --output_dir."""
    args, folder = _parse_comparison(options, "learning_curve")
    results, references = helpers.measure_learning_curve(helpers.load_splits(args), args)
    summary = helpers.summarize_learning_curve(results, references)
    summary.to_csv(folder / "learning_curve.csv")
    helpers.plot_learning_curve(summary, len(references)).savefig(folder / "learning_curve.png", dpi=150)
    table = summary["f1"].unstack("examples").round(3)
    print(f"\nF1 (macro) by training examples\n{table.to_string()}\n\n{helpers.describe_lead(results, references)}")
    print(f"The table and the figure are in {folder}: learning_curve.csv, learning_curve.png.")
    return int(any(row["error"] for row in results))


def _parse_comparison(options: Namespace, name: str) -> tuple["helpers.Arguments", Path]:
    """Return the arguments and the folder of results, by default called ``name``, in which they are also kept."""
    args = _parse_arguments(options, output_dir=name, comparison_file=None)
    folder = Path(args.training.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return args.replace(comparison_file=args.comparison.comparison_file or str(folder / f"{name}.jsonl")), folder


def search(options: Namespace) -> None:
    """Search hyperparameters on the validation examples with Optuna; search.csv and search.png go to --output_dir."""
    args = _parse_arguments(options, output_dir="hyperparameter_search")
    helpers.check_search(args)
    splits = helpers.load_splits(args)
    del splits["test"]  # nothing can be chosen on it
    study, folder = helpers.search_hyperparameters(splits, args), Path(args.training.output_dir)
    table = helpers.tabulate_trials(study)
    table.to_csv(folder / "search.csv")
    helpers.plot_search(table).savefig(folder / "search.png", dpi=150)
    print(f"\n{table.to_string()}\nThe table and the figure are in {folder}: search.csv, search.png.")
    best = study.best_params | {"output_dir": folder / "adapter"}
    words = [word for name, value in best.items() for word in (f"--{name}", str(value))]
    print(f"To train with the best: {shlex.join([*PROGRAM.split(), 'train', *options.words, *words])}")


def evaluate(options: Namespace) -> None:
    """Measure a saved adapter on the labeled examples of a file."""
    helpers.keep_output_clean()
    model, tokenizer = helpers.load_adapter(options.adapter_dir)
    label_names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    args = helpers.load_recipe(options.adapter_dir)
    columns = options.text_column, options.label_column, options.text_pair_column or args.data.text_pair_column
    dataset = helpers.load_labelled_examples(options.file, label_names, *columns)
    output = helpers.predict(model, tokenizer, helpers.tokenize_dataset(dataset, tokenizer), args)
    answers = helpers.Calibration.load(options.adapter_dir).apply(output)
    table = helpers.report_per_class(answers, label_names).round(3)
    print(f"{helpers.describe_evaluation(answers)}\n\n{table.to_string()}")
    if options.suspicious:
        print(f"\n{helpers.suspicious_labels(dataset, label_names, output, options.suspicious).to_string()}")


def predict(options: Namespace) -> None:
    """Classify texts, or those of a file, with a saved adapter: a JSON object a line."""
    gc.disable()  # collecting garbage while the large libraries are imported takes a second
    _skip_bitsandbytes(options.adapter_dir)
    helpers.keep_output_clean()
    pair_column = options.text_pair_column or helpers.load_recipe(options.adapter_dir).data.text_pair_column
    if pair_column and options.texts:
        raise ValueError("This adapter takes pairs of texts; give them as two columns of a --file.")
    texts = options.texts or helpers.load_texts(options.file, options.text_column, pair_column)
    model, tokenizer = helpers.load_adapter(options.adapter_dir)
    calibration = helpers.Calibration.load(options.adapter_dir)
    gc.freeze()
    gc.enable()
    for start in trange(0, len(texts), CHUNK, disable=len(texts) <= CHUNK):
        table = helpers.classify_texts(model, tokenizer, texts[start : start + CHUNK], calibration)
        for row in table.to_dict("records"):
            probabilities = {name: row[f"P({name})"] for name in model.config.id2label.values()}
            line = {"text": row["text"], "label": row["label"], "probabilities": probabilities}
            print(json.dumps(line, ensure_ascii=False))


def _skip_bitsandbytes(adapter_dir: Path) -> None:
    """Spare this process, which runs one command, a second: peft imports bitsandbytes, which only 4 bits need."""
    config = adapter_dir / "config.json"
    if config.is_file() and b"quantization_config" not in config.read_bytes():
        sys.modules.setdefault("bitsandbytes", None)  # by which Python says that there is none


def export(options: Namespace) -> None:
    """Merge a saved adapter into its base model: a transformers folder, with --onnx also an ONNX file."""
    helpers.keep_output_clean()
    helpers.export_adapter(options.adapter_dir, options.export_dir, options.onnx)
    print(f"The model in {options.export_dir} gives the adapter's logits.")


def check(options: Namespace) -> int:
    """Go through the reviewer's list; the exit status is 1 if something is surely missing."""
    checklist = helpers.check_submission(options.notebook, options.adapter_dir)
    print(checklist)
    return int(any(row.refuses for row in checklist))


def package(options: Namespace) -> None:
    """Check notebook and adapter and pack them into a zip beside the notebook."""
    path = helpers.package_submission(options.notebook, options.adapter_dir, options.zip_path)
    checklist = helpers.check_submission(options.notebook, options.adapter_dir)
    print(f"{checklist}\n\n{path} has {', '.join(ZipFile(path).namelist())}")


def serve(options: Namespace) -> None:
    """Open a web page to try a saved adapter, beside the untuned model, until Ctrl-C."""
    helpers.keep_output_clean()
    helpers.open_page(options.adapter_dir, options.server_name, options.server_port).block_thread()
