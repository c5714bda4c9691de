"""A GPT-2 of a few thousand parameters, a data set of a few rows, and no network."""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers share the processor
elif not any("tests/gpu" in word for word in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what the rest of the suite asserts of figures holds on a CPU
os.environ["MPLBACKEND"] = "agg"

import logging
import tracemalloc
from collections import Counter
from dataclasses import fields
from pathlib import Path

import bitsandbytes
import huggingface_hub
import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from hub_repositories import make_repositories
from hub_server import serve
from hypothesis import settings
from peft import LoraConfig, get_peft_model
from pretrain_tiny_gpt2 import train_tokenizer
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed

import peft_helpers as helpers
from peft_helpers import distributed
from peft_helpers.adapters import save_recipe
from peft_helpers.modeling import load_model

SLOW_FIXTURES = {"executed", "runs", "shared", "browser", "trained", "finished"}
# What is asserted to the last bit is asserted of float32; tests of bfloat16 turn it on, on any processor.
CPU_HAS_BFLOAT16, distributed.cpu_has_bfloat16 = distributed.cpu_has_bfloat16, lambda: False

GOOD = ["a fine film", "what a lovely, warm and funny story", "good", "the cast is a joy to watch from start to end"]
BAD = ["a dull film", "what a sad, cold and tired story", "bad", "the cast is a pain to watch from start to end"]
LABELS = ["negative", "positive"]
# The option has an older name in transformers 5.17.
IS_NEW = "activation_checkpointing" in {option.name for option in fields(transformers.TrainingArguments)}
CHECKPOINTING = {"activation_checkpointing" if IS_NEW else "gradient_checkpointing": True}

# `--hypothesis-profile=thorough` draws 50,000 examples for each property of test_properties.py.
for profile, examples in (("suite", 300), ("thorough", 50_000)):
    settings.register_profile(profile, max_examples=examples, derandomize=True, database=None, deadline=None)
settings.load_profile("suite")


def pytest_configure(config):
    coverage = config.pluginmanager.getplugin("_cov")
    if (config.option.markexpr or os.environ.get("CUDA_VISIBLE_DEVICES") != "") and coverage:
        coverage.options.no_cov = True  # a part of the tests cannot reach what the whole suite has to


@pytest.hookimpl(tryfirst=True)  # before they are chosen by their marks
def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
        for marker in item.iter_markers("reliability"):
            item.user_properties.append(("reliability", marker.args[0]))


def pytest_terminal_summary(terminalreporter, config):
    if config.option.markexpr != "reliability":
        return
    tried, expected = Counter(), Counter()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            case = dict(report.user_properties)["reliability"], Path(report.fspath).stem[5:].replace("_", " ")
            tried[case] += 1
            expected[case] += outcome == "passed"
    terminalreporter.section("reliability")
    terminalreporter.write_line("| kind of case | area | tried | with the expected outcome |\n|---|---|---|---|")
    for kind, area in sorted(tried):
        terminalreporter.write_line(f"| {kind} | {area} | {tried[kind, area]} | {expected[kind, area]} |")
    for kind in sorted({kind for kind, _ in tried}):
        totals = [sum(count for case, count in counter.items() if case[0] == kind) for counter in (tried, expected)]
        terminalreporter.write_line(f"| {kind} | all | {totals[0]} | {totals[1]} |")


@pytest.fixture(autouse=True)
def no_deprecations(caplog):
    """Transformers announces most of its deprecations in its log rather than as warnings."""
    logger, verbosity = logging.getLogger("transformers"), transformers.logging.get_verbosity()
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)
    transformers.logging.set_verbosity(verbosity)
    assert not [record.getMessage() for record in caplog.records if "deprecated" in record.getMessage().lower()]


def python_peak(function) -> int:
    """Return the most bytes that Python and numpy held during a call; Arrow's own memory does not count."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> str:
    """A folder with a random GPT-2 language model of two layers and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = train_tokenizer((GOOD + BAD) * 4, vocab_size=300)
    tokenizer.model_max_length = 64
    set_seed(0)
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def hub_root(tmp_path_factory) -> Path:
    """The folder that the Hub of the tests serves."""
    root = tmp_path_factory.mktemp("hub")
    make_repositories(root)
    return root


@pytest.fixture
def hub_server(hub_root, monkeypatch):
    """A Hub on loopback that this process takes for the real one."""
    with serve(hub_root) as server:
        use_hub(server.endpoint, monkeypatch)
        yield server
    huggingface_hub.close_session()


def use_hub(endpoint: str, monkeypatch) -> None:
    """Have this process ask ``endpoint``; it was started with another one and with HF_HUB_OFFLINE."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    files = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    huggingface_hub.close_session()  # the next one reads the proxies anew


@pytest.fixture
def args(tiny_model_dir, tmp_path) -> helpers.Arguments:
    return helpers.make_arguments(
        model_name_or_path=tiny_model_dir, dataset_name="generated", max_length=32, learning_rate=8e-3,
        lora_dropout=0.05, per_device_train_batch_size=4, per_device_eval_batch_size=3,
        output_dir=str(tmp_path / "adapter"),
    )  # fmt: skip


@pytest.fixture(params=[False, True], ids=["without AVX512-BF16", "with AVX512-BF16"])
def processor(request, monkeypatch):
    """What bitsandbytes believes that the processor has: where it is AVX512-BF16, it would repack 4-bit weights."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: request.param)
    return request.param


def make_raw() -> DatasetDict:
    """Train, validation and test with texts that differ, also in length, and labels as strings."""
    rows = [(text, "positive") for text in GOOD] + [(text, "negative") for text in BAD]

    def split(marks: str) -> Dataset:
        chosen = [(text + mark, label) for mark in marks for text, label in rows]
        return Dataset.from_dict({"text": [text for text, _ in chosen], "label": [label for _, label in chosen]})

    return DatasetDict(train=split("abcd"), validation=split("e"), test=split("fg"))


@pytest.fixture
def raw() -> DatasetDict:
    return make_raw()


@pytest.fixture
def tokenizer(args):
    return AutoTokenizer.from_pretrained(args.model.model_name_or_path, model_max_length=args.data.max_length)


@pytest.fixture
def model(args, tokenizer):
    return load_model(args, tokenizer, helpers.CLASSIFICATION, LABELS)


def tokenize(dataset: DatasetDict, tokenizer) -> DatasetDict:
    """Return all splits truncated, train too."""
    return DatasetDict({name: helpers.tokenize_dataset(split, tokenizer) for name, split in dataset.items()})


@pytest.fixture
def tokenized(raw, args, tokenizer, model):
    return tokenize(helpers.prepare_splits(raw, args), tokenizer)


@pytest.fixture
def peft_model(model):
    """A LoRA whose B is not zero: a zero adapter would pass any test of saving and loading."""
    torch.manual_seed(0)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", fan_in_fan_out=True, init_lora_weights=False)
    return get_peft_model(model, lora)


@pytest.fixture
def saved(peft_model, args):
    peft_model.save_pretrained(args.training.output_dir)
    save_recipe(args, args.training.output_dir)
    return Path(args.training.output_dir)


@pytest.fixture
def new_trainer(args, raw):
    """Makes the trainer of a run anew, from the pre-trained model on, as a notebook does that is run again."""

    def make(**changes):
        changed = args.replace(**changes)
        tokenizer = AutoTokenizer.from_pretrained(changed.model.model_name_or_path, model_max_length=32)
        model = load_model(changed, tokenizer, helpers.CLASSIFICATION, LABELS)
        peft_model = get_peft_model(model, LoraConfig(**helpers.lora_arguments(changed.lora, model)))
        tokenized = tokenize(helpers.prepare_splits(raw, changed), tokenizer)
        return helpers.make_trainer(peft_model, tokenizer, tokenized, changed)

    return make
