"""Accuracy against seconds of training: this package's defaults and the usual recipe, on the same rows.

    python -m tests.benchmarks.quality --output_file quality.png --profile offline

The options after ``--output_file`` are those of the notebook (``LFT_ARGS``). Both models are judged on the test rows at
several points of their training, and nothing is chosen by that: no checkpoint is kept. Seconds count training only.
"""

import argparse
import json
import shlex
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
from datasets import DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import peft_helpers as helpers
from peft_helpers.modeling import load_model, uses_conv1d
from peft_helpers.training import LengthTrainer

USUAL_LEARNING_RATE = 2e-5


class Clock(TrainerCallback):
    """Collects the seconds of training so far and the accuracy, at each evaluation."""

    def __init__(self):
        self.seconds, self.curve = 0.0, []

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.seconds += time.perf_counter() - self.start

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        self.curve.append((self.seconds, metrics["eval_accuracy"]))


def train(
    trainer_class: type[Trainer], model, arguments: TrainingArguments, tokenized: DatasetDict, tokenizer, points: int
) -> list[tuple[float, float]]:
    """Return the curve of a training: seconds and accuracy on the test rows."""
    clock = Clock()
    arguments = replace(
        arguments,
        eval_strategy="steps",
        eval_steps=1 / points,
        eval_delay=0,
        save_strategy="no",
        load_best_model_at_end=False,
        logging_strategy="no",
    )
    trainer_class(
        model=model,
        args=arguments,
        train_dataset=tokenized["train"],
        eval_dataset=tokenized["test"].sort("length"),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=helpers.compute_metrics,
        callbacks=[clock],
    ).train()
    return clock.curve


def usual(args: helpers.Arguments, labels: list[str], tokenizer) -> tuple[object, TrainingArguments]:
    """Return the model and the arguments of the usual notebooks: PEFT's own target modules, 2e-5, random order."""
    set_seed(args.training.seed)
    model = AutoModelForSequenceClassification.from_pretrained(args.model.model_name_or_path, num_labels=len(labels))
    model.config.pad_token_id = tokenizer.pad_token_id
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.05, fan_in_fan_out=uses_conv1d(model))
    return get_peft_model(model, lora), TrainingArguments(
        tempfile.mkdtemp(),
        seed=args.training.seed,
        learning_rate=USUAL_LEARNING_RATE,
        num_train_epochs=args.training.num_train_epochs,
        per_device_train_batch_size=args.training.per_device_train_batch_size,
        per_device_eval_batch_size=args.training.per_device_eval_batch_size,
        report_to="none",
    )


def defaults(args: helpers.Arguments, labels: list[str], tokenizer) -> tuple[object, TrainingArguments]:
    """Return the model and the arguments of the notebook."""
    model = load_model(args, tokenizer, helpers.CLASSIFICATION, labels)
    peft_model = get_peft_model(model, LoraConfig(**helpers.lora_arguments(args.lora, model)))
    return peft_model, replace(args.training, output_dir=tempfile.mkdtemp())


def plot(curves: dict[str, list[tuple[float, float]]], title: str, path: Path) -> None:
    """Save the figure."""
    _, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker="o", markersize=3, label=name)
    axes.axhline(curves["usual recipe"][-1][1], color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="seconds of training", ylabel="accuracy on the test rows", title=title, ylim=(0, 1))
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    plt.savefig(path, dpi=120)


def main() -> None:
    """Train both ways; print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_file", type=Path, default=Path("quality.png"), help="the figure; JSON goes beside it")
    parser.add_argument("--points", type=int, default=20, help="evaluations on the way")
    options, rest = parser.parse_known_args()
    args = helpers.parse_arguments(shlex.join(rest))
    dataset = helpers.load_splits(args)
    labels = dataset["train"].features["label"].names
    tokenizer = AutoTokenizer.from_pretrained(args.model.model_name_or_path, model_max_length=args.data.max_length)
    curves = {}
    for name, make, trainer_class in (("usual recipe", usual, Trainer), ("this package", defaults, LengthTrainer)):
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right"
        model, arguments = make(args, labels, tokenizer)
        tokenized = helpers.tokenize_splits(dataset, tokenizer)
        curves[name] = train(trainer_class, model, arguments, tokenized, tokenizer, options.points)
        print(name, ", ".join(f"{seconds:.0f} s {accuracy:.3f}" for seconds, accuracy in curves[name]))
    total, target = curves["usual recipe"][-1]
    reached = next((seconds for seconds, accuracy in curves["this package"] if accuracy >= target), None)
    when = "does not reach that" if reached is None else f"reaches that after {reached:.0f} s"
    print(f"The usual recipe ends at {target:.3f} after {total:.0f} s; this package {when}.")
    content = {"environment": helpers.describe_environment().to_dict(), "curves": curves}
    options.output_file.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    plot(
        curves, f"{Path(args.model.model_name_or_path).name}, {Path(args.data.dataset_name).name}", options.output_file
    )


if __name__ == "__main__":
    main()
