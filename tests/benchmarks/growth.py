"""How time and memory grow with the number of rows and with their length, with this package's defaults: a figure.

    python -m tests.benchmarks.growth --output_file growth.png

Short rows, 1,000 to 64,000 of them, on the tiny GPT-2's shape; rows of 32 to 1,024 tokens on GPT-2's. Each point is a
process of its own; memory is the highest that was resident in it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from tests.benchmarks import speed

ROWS = [1_000, 4_000, 16_000, 64_000]
LENGTHS = [32, 64, 128, 256, 512, 1_024]


def measure(model: str, lengths: list[int], batch_size: int) -> dict:
    """Return the tokens a second of training, the seconds, and the peak memory in GB."""
    recipe = speed.PACKAGE | {"batch_size": batch_size, "target_modules": ["c_attn"]}
    options = argparse.Namespace(model=model, tokenizer=None, threads=None, without_bfloat16=False)
    with tempfile.TemporaryDirectory() as folder:
        speed.make_model(options, folder)
        run = speed.run_recipe(
            recipe, folder, {"train_lengths": lengths, "test_lengths": lengths[:batch_size]}, options
        )
    seconds = run["train_seconds"]
    point = {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "seconds": seconds,
        "tokens_per_second": sum(lengths) / seconds,
    }
    return point | {"peak_memory_gb": run["peak_memory"] / 1e9, "matrix_gflops": run["matrix_gflops"]}


def plot(rows: list[dict], lengths: list[dict], path: Path) -> None:
    """Save the figure: seconds and memory, against rows and against length."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axes, points, x, title, label in (
        (panels[0], rows, ROWS, "Tiny GPT-2, short rows, batch 32", "rows to train on"),
        (panels[1], lengths, LENGTHS, "GPT-2's shape, 32 rows, batch 4", "tokens a row"),
    ):
        memory = axes.twinx()
        seconds = [point["seconds"] for point in points]
        tokens = [point["tokens"] for point in points]
        slope = sum(seconds) / sum(tokens)
        axes.plot(x, [slope * count for count in tokens], color="grey", linestyle=":", label="in proportion to tokens")
        axes.plot(x, seconds, marker="o", color="tab:blue", label="seconds of training")
        memory.plot(x, [point["peak_memory_gb"] for point in points], marker="s", color="tab:orange")
        axes.set(xscale="log", yscale="log", title=title, xlabel=label)
        axes.set_xticks(x, [f"{value:,}" for value in x])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("seconds of training", color="tab:blue")
        axes.legend(loc="upper left", fontsize="small")
        memory.set_ylabel("peak memory, GB", color="tab:orange")
        memory.set_ylim(0, 1.5 * max(point["peak_memory_gb"] for point in points))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure every point, print it, and keep figure and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_file", type=Path, default=Path("growth.png"), help="the figure; JSON goes beside it")
    options = parser.parse_args()
    rows = [measure("tiny", speed.draw_lengths("short", count, 0), 32) for count in ROWS]
    lengths = [measure("gpt2", [length] * 32, 4) for length in LENGTHS]
    for point in rows + lengths:
        print(", ".join(f"{name} {value:.4g}" for name, value in point.items()))
    plot(rows, lengths, options.output_file)
    options.output_file.with_suffix(".json").write_text(json.dumps({"rows": rows, "lengths": lengths}, indent=1) + "\n")


if __name__ == "__main__":
    main()
