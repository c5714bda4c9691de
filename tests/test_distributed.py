"""A run in processes of its own: always the same, also when it was killed on the way or is shared by two of them."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
import transformers
from conftest import CPU_HAS_BFLOAT16
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import peft_helpers as helpers
from peft_helpers import distributed, interruptions
from peft_helpers.metrics import rounding_bound
from peft_helpers.modeling import load_model

SCRIPT = Path(__file__).with_name("short_run.py")
BUDGET = "--profile offline --max_train_samples 8 --max_eval_samples 20 --max_length 64 --num_train_epochs 3 \
--per_device_train_batch_size 8 --lora_dropout 0.05"
LAST_CHECKPOINT, KILLED_AT = 15, 17  # of 24 steps, in the last of three epochs; a checkpoint every third step


def start(
    folder: Path, hash_seed: str, *arguments: str, launcher: tuple[str, ...] = (), options: str = ""
) -> subprocess.Popen:
    command = [sys.executable, *launcher, str(SCRIPT), *arguments]
    options = f"{BUDGET} --output_dir {folder / 'adapter'} {options}"
    # One thread: with several, two processes at a time would only wait for each other.
    settings = {"PYTHONPATH": ".", "PYTHONHASHSEED": hash_seed, "LFT_ARGS": options, "OMP_NUM_THREADS": "1"}
    settings["HF_HOME"] = str(folder)  # where Accelerate would look for a configuration file of the user's
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
    """A run that is let be and, at the same time, one that is killed and then started again."""
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    first, second = start(whole, "1"), start(killed, "2", str(KILLED_AT))
    outputs = {whole: first.communicate(timeout=300)[0]}
    second.communicate(timeout=300)
    assert (first.returncode, second.returncode) == (0, -signal.SIGKILL)
    left = sorted(path.name for path in killed.glob("adapter/checkpoint-*"))
    assert f"checkpoint-{LAST_CHECKPOINT}" in left
    third = start(killed, "3")
    outputs |= {killed: third.communicate(timeout=300)[0]}
    assert third.returncode == 0
    return outputs


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_a_killed_run_that_is_started_again_in_a_fresh_process_ends_as_if_nothing_had_happened(runs):
    whole, killed = runs
    assert f"Resuming from checkpoint-{LAST_CHECKPOINT} of an interrupted run.\n" in runs[killed]
    assert "Resuming" not in runs[whole]
    assert result(runs[whole]) == result(runs[killed])
    assert adapter(whole) == adapter(killed)


@pytest.mark.slow
def test_a_run_leaves_no_checkpoints(runs):
    for folder in runs:
        assert not [path for pattern in ("adapter/checkpoint-*", ".adapter*") for path in folder.glob(pattern)]


# Several processes

LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
          "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0")  # fmt: skip
# Without dropout, whose masks would differ. 20 texts make more than 80 chunks, so that 10 steps of 8 end before an
# incomplete last batch, which Accelerate fills up for the second process. 20 test rows are no multiple of 2 * 3.
# In bfloat16 a sum over half of a batch is rounded more coarsely than the tolerances here.
SAME_BATCH = "--bf16 false --lora_dropout 0 --max_train_samples 20 --max_steps 10 --per_device_eval_batch_size 3"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The same run in two processes with half of the batch each and in one: folder and output of each."""
    folders = [tmp_path_factory.mktemp(name) for name in ("two", "one")]
    two = start(folders[0], "1", launcher=LAUNCH, options=f"{SAME_BATCH} --per_device_train_batch_size 4")
    one = start(folders[1], "2", options=SAME_BATCH)
    outputs = [process.communicate(timeout=300)[0] for process in (two, one)]
    assert (two.returncode, one.returncode) == (0, 0)
    return list(zip(folders, outputs, strict=True))


@pytest.mark.slow
def test_two_processes_with_half_of_the_batch_each_train_as_one(shared):
    two, one = (result(output) for _, output in shared)
    assert (two["processes"], one["processes"]) == (2, 1)
    assert two["metrics"] == one["metrics"]
    assert two["label_ids"] == one["label_ids"]  # each test row once, in the data set's order
    assert len(two["label_ids"]) == 20
    np.testing.assert_allclose(two["logits"], one["logits"], atol=1e-4)
    losses = [[entry["loss"] for entry in each["log_history"] if "loss" in entry] for each in (two, one)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert len(losses[0]) == 10  # one for each step


@pytest.mark.slow
def test_one_of_the_processes_prints_and_writes(shared):
    (two, output), (one, expected) = shared
    lines = [[line for line in text.splitlines() if not line.startswith("{")] for text in (output, expected)]
    assert [re.sub(r"about .* here", "", line) for line in lines[0]] == [
        re.sub(r"about .* here", "", line) for line in lines[1]
    ]
    assert lines[0][0] == "Profile offline: as asked for."
    assert len(lines[0]) == 5  # how many rows of train and of validation are left out, the fitted head, and the time
    assert output.count('"log_history"') == 1
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (two, one)]
    assert files[0] == files[1]
    assert "adapter/adapter_model.safetensors" in files[0]


@pytest.mark.slow
def test_the_adapter_of_two_processes_is_that_of_one(shared):
    (two, output), (one, _) = shared
    assert (two / "adapter/adapter_config.json").read_text() == (one / "adapter/adapter_config.json").read_text()
    mine, theirs = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (two, one))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    args = helpers.parse_arguments(f"{BUDGET} --per_device_eval_batch_size 3")
    dataset = helpers.prepare_splits(helpers.load_bbc_news(), args)
    tokenizer = AutoTokenizer.from_pretrained(args.model.model_name_or_path, model_max_length=args.data.max_length)
    label_names = dataset["train"].features["label"].names
    model = load_model(args, tokenizer, helpers.CLASSIFICATION, label_names)
    reloaded = PeftModel.from_pretrained(model, str(two / "adapter"))
    test = helpers.tokenize_dataset(dataset["test"], tokenizer)
    logits = helpers.predict(reloaded, tokenizer, test, args).predictions
    np.testing.assert_array_equal(logits, np.array(result(output)["logits"], dtype=np.float32))


@pytest.fixture
def second_of_two(monkeypatch):
    """Everything in this process as the second of two, which wait for nobody."""
    state = SimpleNamespace(is_main_process=False, num_processes=2, wait_for_everyone=lambda: None)
    for module in (distributed, interruptions):
        monkeypatch.setattr(module, "process_state", lambda: state)


def test_another_process_than_the_first_keeps_quiet(second_of_two, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with warnings.catch_warnings():
        helpers.keep_output_clean()
        print("second")
        warnings.warn("second", stacklevel=1)
    assert sys.stdout.name == os.devnull
    sys.stdout.close()
    assert not any(capfd.readouterr())
    assert datasets.utils.are_progress_bars_disabled()
    datasets.enable_progress_bars()
    transformers.logging.enable_progress_bar()


def test_what_another_process_than_the_first_saves_is_discarded(second_of_two, tmp_path):
    with helpers.replace_folder(tmp_path / "adapter") as folder:
        (folder / "weights").touch()
    assert list(tmp_path.iterdir()) == []
    assert not folder.exists()


@pytest.mark.slow
def test_one_of_several_gpus_is_used(new_trainer, args, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.nn.DataParallel, "__init__", lambda *_: pytest.fail("the model was wrapped"))
    assert TrainingArguments(output_dir="unused").n_gpu == 2  # what the Trainer would go by
    trainer = new_trainer(num_train_epochs=1, use_cpu=False)
    assert (trainer.args.n_gpu, trainer.args.train_batch_size) == (1, 4)
    with monkeypatch.context() as training:
        training.setattr(torch.accelerator, "is_available", lambda: False)  # the optimizer would look for its stream
        trainer.train()
    assert trainer.state.global_step == 32 / 4
    helpers.predict(trainer.model, trainer.processing_class, trainer.eval_dataset, args)


def test_a_cpu_has_bfloat16_if_it_names_it_and_is_faster_with_it(monkeypatch):
    seconds = {torch.bfloat16: 1, torch.float32: 2}
    named = {"avx2": True, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: named)
    monkeypatch.setattr(distributed, "_time_product", seconds.get)
    has_bfloat16 = CPU_HAS_BFLOAT16.__wrapped__
    assert has_bfloat16()
    seconds[torch.bfloat16] = 30  # emulated
    assert not has_bfloat16()
    seconds[torch.bfloat16], named["avx512_bf16"] = 1, False
    assert not has_bfloat16()


def test_frozen_linear_weights_are_held_in_bfloat16_and_what_is_trained_or_looked_up_is_not(peft_model):
    distributed.hold_in_bfloat16(peft_model)
    held = {name for name, parameter in peft_model.named_parameters() if parameter.dtype == torch.bfloat16}
    assert held == {name for name, _ in peft_model.named_parameters() if "base_layer" in name or "original" in name}


def test_holding_weights_in_bfloat16_changes_no_bit_under_autocast_and_works_without(peft_model, tokenized, tokenizer):
    batch = tokenizer.pad(tokenized["test"].select_columns(["input_ids", "attention_mask"])[:], return_tensors="pt")
    logits = []
    peft_model.eval()
    with torch.no_grad():
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                logits.append(peft_model(**batch).logits)
            distributed.hold_in_bfloat16(peft_model)
        without = peft_model(**batch).logits
    assert torch.equal(*logits)
    tolerance = rounding_bound(torch.bfloat16) * without.abs().max().item()
    torch.testing.assert_close(without.float(), logits[0].float(), rtol=0, atol=tolerance)


def test_an_output_layer_that_shares_the_embeddings_weights_keeps_32_bits(tiny_model_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir).requires_grad_(False)
    distributed.hold_in_bfloat16(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.dtype == torch.float32
    assert model.transformer.h[0].mlp.c_fc.weight.dtype == torch.bfloat16


def test_what_full_fine_tuning_trains_keeps_32_bits(model):
    distributed.hold_in_bfloat16(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


# The resident memory, in MB, before a tensor of 200 MB, with it, and after it.
MEASURE = """
import psutil, torch
from peft_helpers.distributed import keep_freed_memory

def show():
    print(psutil.Process().memory_info().rss // 10**6)

keep_freed_memory()
show()
tensor = torch.ones(50_000_000)
show()
del tensor
show()
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
def test_on_a_cpu_freed_memory_is_kept():
    run = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    before, during, after = map(int, run.stdout.split())
    assert during > before + 150
    assert after > during - 50


def test_another_c_library_does_without(monkeypatch):
    monkeypatch.setattr(distributed.ctypes, "CDLL", lambda name: object())
    distributed.call_glibc("malloc_trim", 0)
    monkeypatch.setattr(distributed.ctypes, "CDLL", Mock(side_effect=OSError))
    distributed.call_glibc("malloc_trim", 0)
