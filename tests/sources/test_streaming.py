import gzip
import json
from itertools import islice

import numpy as np
import pytest
from conftest import LABELS, python_peak
from datasets import ClassLabel, Dataset, IterableDataset, IterableDatasetDict
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from peft_helpers import (
    CLASSIFICATION,
    changed_parameters,
    fingerprint_parameters,
    guard_training,
    load_splits,
    make_arguments,
    make_trainer,
    predict,
    prepare_splits,
    tokenize_splits,
)
from peft_helpers.modeling import load_model
from peft_helpers.sources import streaming
from peft_helpers.sources.streaming import EVAL_SAMPLES, group_by_length, prepare_stream

STREAMING = {"streaming": True, "max_steps": 12, "max_eval_samples": 8}


def stream(**splits: dict[str, list]) -> IterableDatasetDict:
    return IterableDatasetDict({
        name: Dataset.from_dict(columns).to_iterable_dataset(num_shards=2) for name, columns in splits.items()
    })  # fmt: skip


def rows(number: int, mark: str = "", labels=("bad", "good")) -> dict[str, list]:
    texts = [f"text {row}{mark} {'long ' * (row % 7)}" for row in range(number)]
    return {"text": texts, "label": [labels[row % len(labels)] for row in range(number)]}


@pytest.fixture
def streamed(args):
    return args.replace(**STREAMING)


def test_missing_splits_are_carved_out_of_the_first_examples_and_kept_out_of_train(streamed, monkeypatch):
    monkeypatch.setattr(streaming, "CHECKED_EXAMPLES", 200)
    dataset = prepare_stream(stream(train=rows(400)), streamed.replace(max_eval_samples=30))
    assert isinstance(dataset["train"], IterableDataset)
    assert {name: dataset[name].num_rows for name in ("test", "validation")} == {"test": 30, "validation": 16}
    held_out = {*dataset["test"]["text"], *dataset["validation"]["text"]}
    assert len(held_out) == 46
    seen = list(islice(dataset["train"], 800))  # twice: examples are length-grouped beyond the end of the stream
    assert {row["text"] for row in seen} == set(rows(400)["text"]) - held_out
    for row in [*seen, *dataset["test"], *dataset["validation"]]:
        assert LABELS_OF[dataset["train"].features["label"].int2str(row["label"])] == int(row["text"].split()[1]) % 2


LABELS_OF = {"bad": 0, "good": 1}


def test_the_stream_has_no_end_and_a_seeded_order(streamed):
    texts = [
        [row["text"] for row in islice(prepare_stream(stream(train=rows(50)), each)["train"], 100)]
        for each in (streamed, streamed, streamed.replace(seed=1))
    ]
    assert len(texts[0]) == 100
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][:36] != sorted(texts[0][:36])


def test_given_splits_are_sampled_and_an_unlabelled_test_is_replaced(streamed):
    raw = stream(train=rows(40), dev=rows(30, "v"), test=rows(20, "t", labels=[""]))
    dataset = prepare_stream(raw, streamed)
    assert all("v" in text for text in dataset["test"]["text"])
    assert dataset["test"].num_rows == 8
    assert dataset["validation"].num_rows == 4  # a tenth of train


def test_by_default_some_rows_are_kept_in_memory(streamed):
    raw = stream(train=rows(60), validation=rows(EVAL_SAMPLES + 500, "v"), test=rows(20, "t"))
    dataset = prepare_stream(raw, streamed.replace(max_eval_samples=None))
    assert (dataset["validation"].num_rows, dataset["test"].num_rows) == (EVAL_SAMPLES, 20)


@pytest.mark.parametrize("given", [True, False])
def test_no_stream_is_read_to_its_end(streamed, monkeypatch, given):
    for name, size in (("CHECKED_EXAMPLES", 100), ("SHUFFLE_BUFFER", 50)):
        monkeypatch.setattr(streaming, name, size)
    raw = {"train": rows(9_000), **({"validation": rows(9_000, "v"), "test": rows(9_000, "t")} if given else {})}
    read, raw = [], stream(**raw)
    raw = IterableDatasetDict({
        name: split.map(lambda row: read.append(row) or row, features=split.features) for name, split in raw.items()
    })  # fmt: skip
    next(iter(prepare_stream(raw, streamed)["train"]))
    assert len(read) < 7_000  # a batch of 1,000 of each, and what shuffling and length grouping hold


def test_class_labels_keep_their_order_and_later_examples_with_other_labels_are_left_out(streamed, monkeypatch):
    monkeypatch.setattr(streaming, "CHECKED_EXAMPLES", 100)
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 10)
    raw = rows(400)
    raw["label"][300:] = ["late"] * 100
    dataset = prepare_stream(stream(train=raw), streamed)
    assert dataset["train"].features["label"].names == ["bad", "good"]
    assert len({row["text"] for row in islice(dataset["train"], 400)} & set(raw["text"][300:])) == 0
    label = ClassLabel(names=["zebra", "ant"])
    numbered = stream(train=rows(40, labels=[1, 0]))["train"].cast_column("label", label)
    assert prepare_stream(IterableDatasetDict(train=numbered), streamed)["train"].features["label"] == label


def test_examples_without_text_or_label_and_texts_of_other_splits_are_left_out(streamed):
    train = rows(40)
    train["text"][:3], train["label"][3] = [None, " ", "shared"], None
    test = rows(9, "t")
    test["text"][0] = "shared"
    dataset = prepare_stream(stream(train=train, validation=rows(9, "v"), test=test), streamed)
    # 8 of 9 test rows are drawn: with the seed of the fixture, the shared one is among them.
    assert "shared" in dataset["test"]["text"]
    assert {row["text"] for row in islice(dataset["train"], 200)} == set(train["text"][4:])


@pytest.mark.parametrize(
    ("splits", "changes", "message"),
    [
        ({"test": rows(40)}, {}, r"has the splits \['test'\]; expected train"),
        ({"train": rows(40), "val": rows(9), "dev": rows(9)}, {}, "at most one for validation"),
        ({"train": rows(40)}, {"label_column": "stars"}, "label_column: .* found .'stars'"),
        ({"train": rows(40, labels=["good"])}, {}, r"one label only, \{'good'\}"),
        ({"train": rows(4)}, {}, "no rows .*'validation': 0, 'test': 1.; the dataset is too small"),
        ({"train": rows(3000, labels=[str(n) for n in range(2000)])}, {}, "There are 2,000 labels in 3,000 rows"),
        ({"train": rows(40), "test": rows(9, "t", ["good", "mixed"])}, {}, r"has the labels \['mixed'\]"),
        ({"train": rows(4), "validation": rows(8, "v"), "test": rows(8)}, {}, "no rows .*'train': 0"),
    ],
)
@pytest.mark.reliability("bad input")
def test_a_stream_that_cannot_be_trained_on_is_refused(streamed, splits, changes, message):
    with pytest.raises(ValueError, match=message):
        prepare_stream(stream(**splits), streamed.replace(**changes))


@pytest.mark.reliability("bad input")
def test_prepare_splits_refuses_a_stream(streamed):
    with pytest.raises(ValueError, match="use prepare_stream, or leave out --streaming"):
        prepare_splits(stream(train=rows(40)), streamed)


def test_a_file_is_streamed_as_it_would_be_loaded(tmp_path, streamed):
    raw = rows(40)
    lines = [json.dumps({"review": t, "label": label}) for t, label in zip(raw["text"], raw["label"], strict=True)]
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    Dataset.from_dict(raw).rename_column("text", "review").to_pandas().to_csv(tmp_path / "train.csv", index=False)
    found = []
    for name in ("train.jsonl.gz", "train.csv"):
        args = streamed.replace(dataset_name=str(tmp_path / name))
        dataset = load_splits(args)
        found.append([dataset["test"][:], list(islice(dataset["train"], 50))])
    assert found[0] == found[1]
    assert len(found[0][1]) == 50


def test_examples_are_length_grouped_and_none_is_lost():
    lengths = np.random.default_rng(0).integers(1, 100, 400).tolist()
    grouped = group_by_length({"text": ["x" * n for n in lengths], "row": list(range(400))}, batch_size=8)
    assert sorted(grouped["row"]) == list(range(400))
    found = [len(text) for text in grouped["text"]]
    assert [lengths[row] for row in grouped["row"]] == found
    groups = np.array(found).reshape(-1, 8)
    assert np.ptp(groups, axis=1).max() < 15
    assert not (np.diff(groups.max(axis=1)) > 0).all()  # short and long ones in turn


@pytest.mark.slow
def test_what_is_held_does_not_grow_with_the_stream(streamed, monkeypatch):
    monkeypatch.setattr(streaming, "CHECKED_EXAMPLES", 100)
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 100)

    def peak(number: int) -> int:
        texts = [f"{row} {'long ' * 200}" for row in range(number)]
        raw = stream(train={"text": texts, "label": [0, 1] * (number // 2)})
        return python_peak(lambda: list(islice(prepare_stream(raw, streamed)["train"], 10)))

    peak(100)  # what is imported at the first call
    assert peak(6_000) < 1.2 * peak(2_000)


class Stop(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == 8:
            raise RuntimeError("stopped")


@pytest.fixture
def new_streaming_trainer(streamed, tokenizer):
    def make(**changes):
        args = streamed.replace(**changes)
        raw = stream(train=rows(45), validation=rows(9, "v"), test=rows(9, "t"))
        tokenized = tokenize_splits(prepare_stream(raw, args), tokenizer)
        model = load_model(args, tokenizer, CLASSIFICATION, LABELS)
        lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", lora_dropout=0.1, fan_in_fan_out=True)
        return make_trainer(get_peft_model(model, lora), tokenizer, tokenized, args), tokenized

    return make


@pytest.mark.slow
def test_a_stream_is_trained_on_for_max_steps_also_beyond_its_end(new_streaming_trainer, streamed, tokenizer):
    trainer, tokenized = new_streaming_trainer(max_steps=16)  # 64 rows, of 45 in the stream
    before = fingerprint_parameters(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 16
    assert changed_parameters(before, trainer.model)
    assert predict(trainer.model, tokenizer, tokenized["test"], streamed).predictions.shape == (8, 2)


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_a_streamed_run_that_failed_goes_on_and_ends_as_if_nothing_had_happened(new_streaming_trainer, tmp_path):
    whole, _ = new_streaming_trainer(output_dir=str(tmp_path / "whole"))
    whole.train()
    broken, _ = new_streaming_trainer()
    broken.add_callback(Stop())
    with pytest.raises(RuntimeError, match="stopped"), guard_training(broken) as checkpoint:
        broken.train(resume_from_checkpoint=checkpoint)
    again, _ = new_streaming_trainer()
    with guard_training(again) as checkpoint:
        assert checkpoint is not None
        again.train(resume_from_checkpoint=checkpoint)
    assert fingerprint_parameters(again.model) == fingerprint_parameters(whole.model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"streaming": True}, "streaming needs --max_steps"),
        ({**STREAMING, "max_train_samples": 5}, "streaming takes no --max_train_samples"),
        ({**STREAMING, "dataset_name": "bbc-news"}, "bbc-news cannot be streamed"),
        ({"streaming": True, "max_steps": 0}, "streaming needs --max_steps"),
    ],
)
@pytest.mark.reliability("bad input")
def test_combinations_that_cannot_be_streamed_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_arguments(**changes)


def test_pairs_are_streamed_without_those_of_validation_and_test(streamed):
    columns = rows(80)
    columns |= {"answer": [f"answer {number}" for number in range(80)], "question": ["same"] * 80}
    del columns["text"]
    args = streamed.replace(text_column="question", text_pair_column="answer")
    dataset = prepare_stream(stream(train=columns), args)
    held_out = {*dataset["test"]["text_pair"], *dataset["validation"]["text_pair"]}
    seen = list(islice(dataset["train"], 400))
    assert {row["text_pair"] for row in seen} == set(columns["answer"]) - held_out
    assert {row["text"] for row in seen} == {"same"}
