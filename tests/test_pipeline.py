import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import BAD, GOOD, LABELS, make_raw
from datasets import Dataset, DatasetDict
from peft import AutoPeftModelForSequenceClassification
from scipy.special import softmax
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, set_seed

from peft_helpers import (
    Arguments,
    assert_same_predictions,
    check_output_dir,
    classify_texts,
    load_adapter,
    make_arguments,
    pipeline,
    predict,
    prepare_splits,
    reload_arguments,
    run,
    tokenize_dataset,
)
from peft_helpers.metrics import rounding_bound
from peft_helpers.pipeline import RunResult, load_recipe


@pytest.fixture
def small(args) -> Arguments:
    return args.replace(num_train_epochs=1, max_train_samples=12)


@pytest.fixture
def dataset(raw, small) -> DatasetDict:
    return prepare_splits(raw, small)


@pytest.fixture(scope="module")
def finished(tiny_model_dir, tmp_path_factory) -> RunResult:
    """A run whose adapter the tests only read."""
    args = make_arguments(
        model_name_or_path=tiny_model_dir, dataset_name="generated", max_length=32, learning_rate=8e-3,
        num_train_epochs=1, per_device_train_batch_size=4, output_dir=str(tmp_path_factory.mktemp("run") / "adapter"),
    )  # fmt: skip
    return run(prepare_splits(make_raw(), args), args)


@pytest.fixture
def copied(finished, tmp_path) -> str:
    """A copy of its adapter, to be changed."""
    return shutil.copytree(finished.args.training.output_dir, tmp_path / "copied")


def test_a_run_is_that_of_its_saved_adapter(finished, raw):
    assert finished.label_names == LABELS
    assert 0 < finished.trainable_parameters < finished.parameters
    assert not np.array_equal(finished.untuned.predictions, finished.tuned.predictions)
    assert any("eval_f1" in entry for entry in finished.log_history)
    assert list(finished.seconds) == [
        "load", "evaluate untuned", "train", "evaluate tuned", "save", "reload and evaluate",
    ]  # fmt: skip
    model, tokenizer = load_adapter(finished.args.training.output_dir)
    assert tokenizer.model_max_length == 32
    test = tokenize_dataset(prepare_splits(raw, finished.args)["test"], tokenizer)
    again = predict(model, tokenizer, test, finished.args)
    assert assert_same_predictions(finished.tuned, again) == 0


def test_the_folder_holds_what_is_needed_and_no_checkpoints(finished):
    names = {path.name for path in Path(finished.args.training.output_dir).iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "config.json", "README.md", "run_config.json",
        "tokenizer.json", "tokenizer_config.json", "calibration.json",
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_in_4_bits_is_that_of_its_saved_adapter_on_every_processor(small, dataset, processor):
    result = run(dataset, small.replace(load_in_4bit=True))
    assert not np.array_equal(result.untuned.predictions, result.tuned.predictions)
    folder = small.training.output_dir
    by_hand = AutoPeftModelForSequenceClassification.from_pretrained(folder, **reload_arguments(folder))
    for model in (by_hand, load_adapter(folder)[0]):
        assert isinstance(model.base_model.model.transformer.h[0].attn.c_attn.base_layer, Linear4bit)


@pytest.mark.slow
def test_a_run_in_bfloat16_reloads_within_its_rounding(small, dataset, monkeypatch):
    """By the CPU's autocast, which stands in for a GPU's."""
    in_float32 = run(dataset, small).untuned
    monkeypatch.setattr("peft_helpers.distributed.cpu_has_bfloat16", lambda: True)
    in_bfloat16 = run(dataset, small.replace(bf16=None, fp16=None, overwrite_output_dir=True)).untuned
    difference = assert_same_predictions(in_float32, in_bfloat16, torch.bfloat16)
    assert difference > rounding_bound(torch.float32) * abs(in_float32.predictions).max()


def test_a_loaded_adapter_is_on_the_accelerator_if_there_is_one(copied, monkeypatch):
    assert load_adapter(copied)[0].device.type == "cpu"
    monkeypatch.setattr("peft_helpers.pipeline.process_state", lambda: SimpleNamespace(device=torch.device("meta")))
    assert load_adapter(copied)[0].device.type == "meta"


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_a_reload_that_differs_is_an_error(small, dataset, monkeypatch):
    load = pipeline.load_adapter

    def disturb(*arguments):
        model, tokenizer = load(*arguments)
        model.base_model.model.score.modules_to_save["default"].weight.data *= 1.01
        return model, tokenizer

    monkeypatch.setattr(pipeline, "load_adapter", disturb)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        run(dataset, small)


@pytest.mark.reliability("bad input")
def test_nothing_is_loaded_for_a_folder_that_may_not_be_replaced(small, dataset, monkeypatch):
    Path(small.training.output_dir).mkdir()
    Path(small.training.output_dir, "thesis.txt").write_text("mine")
    monkeypatch.setattr(pipeline, "load_model", lambda *_: pytest.fail("loaded the model"))
    with pytest.raises(FileExistsError, match="holds no adapter but"):
        run(dataset, small)


# The saved adapter


@pytest.mark.reliability("bad input")
def test_an_adapter_of_other_labels_is_refused(finished):
    with pytest.raises(ValueError, match=r"has the labels \['negative', 'positive'\], expected"):
        load_adapter(finished.args.training.output_dir, label_names=["bad", "good"])


def test_the_same_recipe_may_run_again_and_another_may_not(finished, tmp_path, monkeypatch):
    check_output_dir(finished.args.replace(max_eval_samples=None))
    with pytest.raises(FileExistsError, match="another run: lora_r 8"):
        check_output_dir(finished.args.replace(lora_r=2))


def test_the_recipe_is_read_again(finished):
    args = finished.args
    found = load_recipe(args.training.output_dir)
    assert (found.model, found.data, found.lora) == (args.model, args.data, args.lora)
    assert found.describe() == args.replace(per_device_eval_batch_size=128).describe()


@pytest.mark.reliability("bad input")
def test_a_folder_that_no_run_has_saved_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"options of a run in .*run_config\.json .*No such file.* Name a folder"):
        load_recipe(tmp_path)


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expecting property name"),
        ("[1]", "not a mapping"),
        ('{"rank": 8}', "not used.*rank"),
        ('{"lora_r": -1}', "lora_r is -1"),
        ('{"output_dir": "elsewhere"}', "multiple values"),
    ],
    ids=["no JSON", "no object", "unknown option", "value out of range", "another folder"],
)
def test_a_recipe_that_this_version_does_not_know_is_refused(content, reason, tmp_path):
    (tmp_path / "run_config.json").write_text(content)
    with pytest.raises(ValueError, match=f"Expected the options of a run in .*{reason}.* copy the whole folder again"):
        load_recipe(tmp_path)


# Chunks and pairs


def test_all_chunks_are_read_in_the_run_and_by_who_loads_its_adapter(small, raw):
    args = small.replace(max_length=8, average_chunks=True)
    dataset = prepare_splits(raw, args)
    result = run(dataset, args)
    assert result.tuned.metrics["test_examples"] == result.tuned.predictions.shape[0] == dataset["test"].num_rows
    assert load_recipe(args.training.output_dir).data.average_chunks
    model, tokenizer = load_adapter(args.training.output_dir)
    probabilities = classify_texts(model, tokenizer, dataset["test"]["text"][:])["P(positive)"]
    np.testing.assert_allclose(probabilities, np.exp(result.tuned.predictions)[:, 1], atol=1e-5)
    tokenizer.init_kwargs["average_chunks"] = False
    first = classify_texts(model, tokenizer, dataset["test"]["text"][:])["P(positive)"]
    longest = np.argmax([len(text) for text in dataset["test"]["text"]])
    assert abs(first - probabilities)[longest] > 1e-4


PAIRS = [(left, right, "same" if left == right else "other") for left in GOOD + BAD for right in GOOD[:2] + BAD[:2]]


@pytest.fixture
def pairs() -> DatasetDict:
    """The label tells whether the texts are the same, which neither of them does alone."""

    def split(mark: str) -> Dataset:
        return Dataset.from_list([{"a": left + mark, "b": right + mark, "label": name} for left, right, name in PAIRS])

    return DatasetDict(train=split(" one"), validation=split(" two"), test=split(" three"))


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_an_adapter_for_pairs_reads_both_texts_also_when_loaded_again(architecture, small, pairs, tmp_path, request):
    if architecture == "bert":
        small = small.replace(model_name_or_path=request.getfixturevalue("bert_dir"))
    args = small.replace(text_pair_column="b")
    dataset = prepare_splits(pairs, args)
    result = run(dataset, args)
    model, tokenizer = load_adapter(args.training.output_dir)
    texts = list(zip(dataset["test"]["text"], dataset["test"]["text_pair"], strict=True))

    def probabilities(texts: list[tuple[str, str]]) -> np.ndarray:
        return classify_texts(model, tokenizer, texts).filter(like="P(").to_numpy()

    expected = softmax(result.tuned.predictions, axis=-1)
    np.testing.assert_allclose(probabilities(texts), expected, atol=1e-5)
    for changed in ([(first, "bad") for first, _ in texts], [("bad", second) for _, second in texts]):
        assert np.abs(probabilities(changed) - expected).max() > 1e-3
    shown_in_card = model(**tokenizer(*texts[0], return_tensors="pt")).logits.softmax(-1)
    np.testing.assert_allclose(shown_in_card.detach().numpy()[0], expected[0], atol=1e-5)


@pytest.fixture
def bert_dir(tmp_path) -> str:
    """A BERT of two layers with a tokenizer of its own."""
    words = sorted(set(" ".join([*GOOD, *BAD, "one two three"]).replace(",", "").split()))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = BertTokenizerFast(vocab={word: number for number, word in enumerate(words)})
    set_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.5, **shape)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return str(tmp_path / "bert")
