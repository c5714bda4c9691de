"""Peak memory of preparing and training on generated csv files of 10,000 and of 1,000,000 rows.

`python tests/benchmarks/data_size.py` prints a table of both ways: a stream that 50 steps are trained on, and a table
on disk (loaded, split and tokenized). Each measurement is a process of its own; `--cases` and `--rows` choose. Resident
memory counts the pages of the Arrow files that are mapped, which the system takes back when it needs them; anonymous
memory does not.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

WORDS = [f"{first}{second}{third}" for first in "bdfgklmnprst" for second in "aeiou" for third in "bdfgklmnprst"]
STEPS = 50


def write_csv(path: Path, rows: int) -> None:
    """Write texts of 4 to 24 words, of which no two are the same, in four classes."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for row in range(rows):
            words = draw.choices(WORDS, k=draw.randint(4, 24))
            file.write(f"{row} {' '.join(words)},topic {row % 4}\n")


def memory() -> dict[str, float]:
    """Return the resident and the anonymous memory of this process in MB (10^6 bytes)."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return {"resident": kilobytes["Rss"] * 1024 / 1e6, "anonymous": kilobytes["Anonymous"] * 1024 / 1e6}


@contextmanager
def peak_memory():
    """Give a dict that holds the highest of `memory` once the block has ended, looked at every 100 ms."""
    peak, ended = memory(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            peak.update({name: max(value, peak[name]) for name, value in memory().items()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def run_stream(args) -> None:
    """Train for `STEPS` steps on a stream, tokenizing as it goes."""
    import peft_helpers as helpers

    helpers.run(helpers.load_splits(args), args)


def run_table(args) -> None:
    """Load, split and tokenize a table on disk."""
    from transformers import AutoTokenizer

    import peft_helpers as helpers

    tokenizer = AutoTokenizer.from_pretrained(args.model.model_name_or_path, model_max_length=args.data.max_length)
    helpers.tokenize_splits(helpers.load_splits(args), tokenizer)


CASES = {"stream": run_stream, "table": run_table}


def measure(case: str, folder: Path) -> dict[str, float]:
    """Run one case on ``folder / "rows.csv"`` in this process; return its peaks (MB), those of imports, seconds."""
    import datasets

    import peft_helpers as helpers

    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    options = (
        f"--profile offline --dataset_name {folder / 'rows.csv'} --max_length 64 --output_dir {folder / 'adapter'}"
    )
    if case == "stream":
        options += f" --streaming true --max_steps {STEPS} --max_eval_samples 500"
    args = helpers.parse_arguments(options)
    start, started = memory(), time.perf_counter()
    with peak_memory() as peak:
        CASES[case](args)
    return peak | {"anonymous at start": start["anonymous"], "seconds": time.perf_counter() - started}


def main() -> None:
    """Measure each case at each number of rows; print a line of the table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.cases[0], Path(args.measure))))
        return
    print("| case | rows | peak resident, MB | peak anonymous, MB | anonymous at start, MB | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    for case in args.cases:
        for rows in args.rows:
            with tempfile.TemporaryDirectory() as folder:
                write_csv(Path(folder, "rows.csv"), rows)
                command = [sys.executable, __file__, "--cases", case, "--measure", folder]
                run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            figures = json.loads(run.stdout.splitlines()[-1])
            cells = [f"{figures[name]:,.0f}" for name in ("resident", "anonymous", "anonymous at start", "seconds")]
            print(f"| {case} | {rows:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
