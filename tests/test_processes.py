"""A run in a process of its own: always the same, and the same when it was killed on the way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("short_run.py")
BUDGET = "--profile offline --max_train_rows 8 --max_eval_rows 20 --max_length 64 --num_train_epochs 3 \
--per_device_train_batch_size 8 --lora_dropout 0.05"
LAST_CHECKPOINT, KILLED_AT = 15, 17  # of 24 steps, in the last of three epochs; a checkpoint every third step


def start(folder: Path, hash_seed: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *arguments]
    options = f"{BUDGET} --output_dir {folder / 'adapter'} --checkpoint_dir {folder / 'checkpoints'}"
    # One thread: with several, two processes at a time would only wait for each other.
    settings = {"PYTHONPATH": ".", "PYTHONHASHSEED": hash_seed, "LFT_ARGS": options, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True)


def result(output: str) -> dict:
    found = json.loads(output.splitlines()[-1])
    for entry in found["log_history"]:  # what a clock measured, and a mean over the steps of this process only
        for name in [name for name in entry if name.endswith(("_runtime", "_per_second")) or name == "train_loss"]:
            del entry[name]
    return found


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs at a time: one that is let be and one that is killed; then another that is let be and the killed one."""
    whole, again, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "again", "killed"))
    first, second = start(whole, "1"), start(killed, "2", str(KILLED_AT))
    outputs = {whole: first.communicate(timeout=300)[0]}
    second.communicate(timeout=300)
    assert (first.returncode, second.returncode) == (0, -signal.SIGKILL)
    left = sorted(path.name for path in killed.glob("checkpoints/*/checkpoint-*"))
    assert f"checkpoint-{LAST_CHECKPOINT}" in left
    third, fourth = start(again, "3"), start(killed, "4")
    outputs |= {again: third.communicate(timeout=300)[0], killed: fourth.communicate(timeout=300)[0]}
    assert (third.returncode, fourth.returncode) == (0, 0)
    return outputs


def test_two_runs_in_fresh_processes_are_the_same_to_the_last_bit(runs):
    whole, again, _ = runs
    assert result(runs[whole]) == result(runs[again])
    assert adapter(whole) == adapter(again)


@pytest.mark.reliability("fault")
def test_a_killed_run_that_is_started_again_ends_as_if_nothing_had_happened(runs):
    whole, _, killed = runs
    assert f"Resuming from step {LAST_CHECKPOINT} of an interrupted run.\n" in runs[killed]
    assert "Resuming" not in runs[whole]
    assert result(runs[whole]) == result(runs[killed])
    assert adapter(whole) == adapter(killed)


def test_a_run_leaves_no_checkpoints(runs):
    for folder in runs:
        assert list((folder / "checkpoints").iterdir()) == []
