"""What options change on the test examples, by default of the offline profile, with 95 % intervals over these examples.

    python -m tests.benchmarks.options --output_file tests/benchmarks/results/options.json

Rare labels: each label in turn against the others, kept in one example of twenty in every split, with weights, a
threshold, both and neither. Long texts: all chunks or the first one. Search: its winner in ``results/search.json``
against the profile's own options. All with several seeds; options of ``python -m peft_helpers train`` may follow, to
take other data or another model.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

import peft_helpers as helpers
from peft_helpers.data import prepare_splits
from peft_helpers.metrics import predicted_labels

RARE = 0.05  # share of the rare label
RESAMPLES = 2000
TRIALS = json.loads(Path(__file__).with_name("results").joinpath("search.json").read_text(encoding="utf-8"))["trials"]
WINNER = max((trial for trial in TRIALS if not trial["pruned"]), key=lambda trial: trial["f1"])
WINNER = {name: WINNER[name] for name in WINNER.keys() - {"trial", "f1", "pruned", "seconds"}}
WEIGHTS, THRESHOLD = {"class_weights": "balanced"}, {"tune_threshold": True}
# Options of each setting; the others are compared to the first one.
EXPERIMENTS = {
    "rare labels": {"neither": {}, "weights": WEIGHTS, "threshold": THRESHOLD, "both": WEIGHTS | THRESHOLD},
    "long texts": {"the first chunk": {}, "all chunks": {"average_chunks": True}},
    "search": {"the profile's options": {}, "the winner": WINNER},
}


def groups(experiment: str, raw: DatasetDict, seeds: list[int]) -> Iterator[tuple[str, int, DatasetDict, np.ndarray]]:
    """Yield what the runs of an experiment are repeated for: name, seed, data, numbers of their test examples."""
    for seed in seeds:
        if experiment == "rare labels":
            for label in raw["train"].features["label"].names:
                rows = {name: keep_few(split, label, seed) for name, split in raw.items()}
                data = {name: select_label(split, label, rows[name]) for name, split in raw.items()}
                yield f"{label}, seed {seed}", seed, DatasetDict(data), rows["test"]
        else:
            yield f"seed {seed}", seed, raw, np.arange(raw["test"].num_rows)


def keep_few(split: Dataset, label: str, seed: int) -> np.ndarray:
    """Return the numbers of the examples of other labels, and of as many of ``label`` as make `RARE` of the whole."""
    is_own = np.array(split["label"][:]) == split.features["label"].str2int(label)
    own, others = np.flatnonzero(is_own), np.flatnonzero(~is_own)
    few = np.random.default_rng(seed).permutation(own)[: round(len(others) * RARE / (1 - RARE))]
    return np.sort(np.concatenate([few, others]))


def select_label(split: Dataset, label: str, rows: np.ndarray) -> Dataset:
    """Return these examples; those of other labels are labeled ``others``."""
    names = np.array(split.features["label"].names)[split["label"][:]][rows]
    labels = np.where(names == label, label, "others").tolist()
    return split.select(rows).remove_columns("label").add_column("label", labels)


def predict_labels(raw: DatasetDict, args: helpers.Arguments) -> tuple[np.ndarray, np.ndarray]:
    """Train; return the labels that the reloaded adapter predicts for the test examples, and the true ones."""
    with tempfile.TemporaryDirectory() as folder:
        args = args.replace(output_dir=str(Path(folder, "adapter")), disable_tqdm=True)
        dataset = prepare_splits(raw, args)
        result = helpers.run(dataset, args)
        output = helpers.Calibration.load(args.training.output_dir).apply(result.tuned)
    return predicted_labels(output), output.label_ids


def f1(labels: np.ndarray, references: np.ndarray, weights: np.ndarray, label: int) -> np.ndarray:
    """Return the F1 of a label, shape (resamples,), where each example counts ``weights``, (resamples, examples)."""
    hits = weights @ ((labels == label) & (references == label))
    return 2 * hits / np.maximum(weights @ ((labels == label) + 1 * (references == label)), 1)


def rare_f1(labels: np.ndarray, references: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return `f1` of the label that ``references`` have least often."""
    return f1(labels, references, weights, np.bincount(references).argmin())


def macro_f1(labels: np.ndarray, references: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of `f1` over the labels."""
    return np.mean([f1(labels, references, weights, label) for label in np.unique(references)], axis=0)


def accuracy(labels: np.ndarray, references: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the share of equal labels, shape (resamples,)."""
    return weights @ (labels == references) / weights.sum(1)


METRICS = {"rare labels": rare_f1, "long texts": accuracy, "search": macro_f1}


def draw_weights(count: int) -> np.ndarray:
    """Return how often each test example is drawn, shape (1 + resamples, count): at first each of them once."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([np.ones((1, count), int), drawn])


def describe(values: np.ndarray, sign: str = "") -> str:
    """Return the first value and the 95 % interval of the others."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def measure(experiment: str, seeds: list[int], args: helpers.Arguments) -> dict:
    """Run an experiment, print its table and return it with the scores of each group."""
    settings, metric, scores = EXPERIMENTS[experiment], METRICS[experiment], {}
    raw = helpers.load_splits(args.replace(max_train_samples=None, max_eval_samples=None))
    pair = "text_pair" if "text_pair" in raw["train"].column_names else None
    # What runs read is `raw`, with its columns; the weights below are of all its test examples.
    args = args.replace(text_column=None, label_column=None, text_pair_column=pair, max_eval_samples=None)
    weights = draw_weights(raw["test"].num_rows)  # the same for all settings and groups
    for group, seed, data, rows in groups(experiment, raw, seeds):
        found = [predict_labels(data, args.replace(seed=seed, **changes)) for changes in settings.values()]
        scores[group] = [metric(labels, references, weights[:, rows]) for labels, references in found]
        print(f"{experiment}, {group}: {[round(float(of_setting[0]), 3) for of_setting in scores[group]]}", flush=True)
    means, first = np.mean([*scores.values()], axis=0), next(iter(settings))
    rows = {
        name: {"score": describe(values), f"beyond {first}": "" if name == first else describe(values - means[0], "+")}
        for name, values in zip(settings, means, strict=True)
    }
    print(f"\n| {experiment} | {metric.__name__} [95 %] | beyond {first} [95 %] |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row.values())} |")
    scores = {group: [round(float(of_setting[0]), 4) for of_setting in found] for group, found in scores.items()}
    return {"metric": metric.__name__, "table": rows, "groups": scores}


def main() -> None:
    """Parse the options, run the experiments and keep what they show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=[*EXPERIMENTS], default=[*EXPERIMENTS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[42, 43, 44])
    parser.add_argument("--output_file", type=Path, help="JSON file for the results, beside those that it has")
    options, words = parser.parse_known_args()
    args = helpers.parse_arguments(["--profile", "offline", *words])
    helpers.keep_output_clean()
    for experiment in options.experiments:
        found = measure(experiment, options.seeds, args)
        if options.output_file:
            file = options.output_file
            content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            content |= {"environment": helpers.describe_environment().to_dict(), experiment: found}
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
