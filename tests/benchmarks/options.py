"""What options change on the test examples of the offline profile, with 95 % intervals over these examples.

    python -m tests.benchmarks.options --output_file tests/benchmarks/results/options.json

Rare labels: each topic of BBC News in turn against the others, kept in one article of twenty in every split, with
weights, a threshold, both and neither. Long texts: all chunks or the first one, with several seeds. Search: its winner
in ``results/search.json`` against the profile's own options, with several seeds.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from datasets import DatasetDict

import peft_helpers as helpers
from peft_helpers.analysis.significance import macro_f1
from peft_helpers.data import prepare_splits
from peft_helpers.metrics import predicted_labels

RARE = 0.05  # share of the rare label
SEEDS = (42, 43, 44)
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


def groups(experiment: str, raw: DatasetDict, args: helpers.Arguments) -> Iterator[tuple[str, DatasetDict, dict]]:
    """Yield what the runs of an experiment are repeated for: its name, the data, the options of all settings."""
    if experiment == "rare labels":
        for topic in raw["train"].features["label"].names:
            data = DatasetDict({name: keep_few(split, topic, args.training.seed) for name, split in raw.items()})
            yield topic, data, {"num_train_epochs": 0.6}
    else:
        for seed in SEEDS:
            yield f"seed {seed}", raw, {"seed": seed}


def keep_few(split, topic: str, seed: int):
    """Return the articles of other topics, labeled ``others``, and as many of ``topic`` as make `RARE` of the whole."""
    names = np.array(split.features["label"].names)[split["label"][:]]
    own, others = np.flatnonzero(names == topic), np.flatnonzero(names != topic)
    few = np.random.default_rng(seed).permutation(own)[: round(len(others) * RARE / (1 - RARE))]
    rows = np.sort(np.concatenate([few, others]))
    labels = np.where(names[rows] == topic, topic, "others").tolist()
    return split.select(rows).remove_columns("label").add_column("label", labels)


def predict_labels(raw: DatasetDict, args: helpers.Arguments) -> tuple[np.ndarray, np.ndarray]:
    """Train; return the labels that the reloaded adapter predicts for the test examples, and the true ones."""
    with tempfile.TemporaryDirectory() as folder:
        args = args.replace(output_dir=str(Path(folder, "adapter")), disable_tqdm=True)
        dataset = prepare_splits(raw, args)
        result = helpers.run(dataset, args)
        output = helpers.apply_threshold(result.tuned, helpers.Calibration.load(args.training.output_dir))
    return predicted_labels(output), output.label_ids


def rare_f1(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the F1 of the label that ``references`` have least often, shape (resamples,)."""
    rare = np.bincount(references[0]).argmin()
    hits = ((predictions == rare) & (references == rare)).sum(1)
    return 2 * hits / np.maximum((predictions == rare).sum(1) + (references == rare).sum(1), 1)


def accuracy(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the share of equal labels, shape (resamples,)."""
    return (predictions == references).mean(1)


METRICS = {"rare labels": rare_f1, "long texts": accuracy, "search": macro_f1}


def bootstrap(runs: list[tuple[np.ndarray, np.ndarray]], metric: Callable) -> np.ndarray:
    """Return the mean of ``metric`` over the groups, shape (settings, 1 + resamples); the first is not resampled.

    ``runs`` has for each group the predictions, shape (settings, examples), and the true labels. All settings, and
    groups of the same examples, are resampled alike.
    """
    means = []
    for predictions, references in runs:
        rng, count = np.random.default_rng(0), len(references)
        rows = np.concatenate([np.arange(count)[None], rng.integers(count, size=(RESAMPLES, count))])
        means.append([metric(labels[rows], references[rows]) for labels in predictions])
    return np.mean(means, axis=0)


def describe(values: np.ndarray, sign: str = "") -> str:
    """Return the first value and the 95 % interval of the others."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return f"{values[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def measure(experiment: str, args: helpers.Arguments) -> dict:
    """Run an experiment, print its table and return it with the scores of each group."""
    settings, metric, runs, scores = EXPERIMENTS[experiment], METRICS[experiment], [], {}
    for group, raw, options in groups(experiment, helpers.load_bbc_news(), args):
        found = [predict_labels(raw, args.replace(**options | changes)) for changes in settings.values()]
        runs.append((np.stack([labels for labels, _ in found]), found[0][1]))
        scores[group] = [round(metric(labels[None], references[None]).item(), 4) for labels, references in found]
        print(f"{experiment}, {group}: {dict(zip(settings, scores[group], strict=True))}", flush=True)
    means, first = bootstrap(runs, metric), next(iter(settings))
    rows = {
        name: {"score": describe(values), f"beyond {first}": "" if name == first else describe(values - means[0], "+")}
        for name, values in zip(settings, means, strict=True)
    }
    print(f"\n| {experiment} | {metric.__name__} [95 %] | beyond {first} [95 %] |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row.values())} |")
    return {"metric": metric.__name__, "table": rows, "groups": scores}


def main() -> None:
    """Parse the options, run the experiments and keep what they show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=[*EXPERIMENTS], default=[*EXPERIMENTS])
    parser.add_argument("--output_file", type=Path, help="JSON file for the results, beside those that it has")
    options = parser.parse_args()
    args = helpers.parse_arguments("--profile offline")
    helpers.keep_output_clean()
    for experiment in options.experiments:
        found = measure(experiment, args)
        if options.output_file:
            file = options.output_file
            content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            content |= {"environment": helpers.describe_environment().to_dict(), experiment: found}
            file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
