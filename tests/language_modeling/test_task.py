import json
import math
from itertools import chain
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from datasets import Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForMaskedLM

from peft_helpers.adapters import save_recipe
from peft_helpers.interruptions import guard_training
from peft_helpers.language_modeling.task import (
    LANGUAGE_MODELING,
    describe_run,
    first_words,
    generate_examples,
    generate_texts,
    make_blocks,
    plan_language_modeling,
)
from peft_helpers.metrics import assert_same_predictions
from peft_helpers.modeling import load_model, lora_arguments
from peft_helpers.pipeline import load_adapter, run
from peft_helpers.tiny_gpt2 import TINY_GPT2
from peft_helpers.training import make_trainer, predict


@pytest.fixture
def documents() -> DatasetDict:
    """Texts of one pattern, which a model of two layers learns in a few steps."""
    texts = [f"{number} a sad story and a funny story and a sad story" for number in range(40)]
    splits = {"train": texts[:28], "validation": texts[28:32], "test": texts[32:]}
    return DatasetDict({name: Dataset.from_dict({"text": rows}) for name, rows in splits.items()})


@pytest.fixture
def args(args):
    return args.replace(
        lm_dataset_name="texts", block_size=16, lm_learning_rate=2e-2, lm_num_train_epochs=3, lm_max_eval_samples=6
    )


@pytest.fixture
def planned(args):
    """The arguments of the language model; its task comes with them."""
    return plan_language_modeling(args)


@pytest.fixture
def tokenized(documents, tokenizer, planned):
    tokenizer.model_max_length = 16
    return planned[1].tokenize(documents, tokenizer)


def add_lora(model, args):
    return get_peft_model(model, LoraConfig(**lora_arguments(args.lora, model, "CAUSAL_LM")))


def by_hand(model, blocks) -> float:
    """Sum minus the log of each next token's probability, block by block, then divide and raise e to it."""
    losses = []
    for ids in blocks["input_ids"][:]:
        with torch.no_grad():
            probabilities = model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1)
        losses += [-math.log(probabilities[place, ids[place + 1]]) for place in range(len(ids) - 1)]
    return math.exp(sum(losses) / len(losses))


@pytest.mark.slow
@pytest.mark.parametrize("load_in_4bit", [False, True])
def test_the_whole_path_lowers_the_perplexity_and_reloads_the_same(load_in_4bit, args, documents):
    planned, task = plan_language_modeling(args.replace(load_in_4bit=load_in_4bit))
    result = run(documents, planned, task)
    examples = generate_examples(result, documents)
    untuned, tuned = (output.metrics["test_perplexity"] for output in (result.untuned, result.tuned))
    assert tuned < 0.9 * untuned
    assert len(examples) == 3
    for row in examples.itertuples():
        assert row.untuned.startswith(row.prompt)
        assert row.tuned.startswith(row.prompt)
        assert row.untuned != row.tuned
    printed = describe_run(result, examples)
    assert printed.startswith(f"Perplexity on 6 test blocks: {untuned:.2f} untuned, {tuned:.2f} tuned (-")
    assert examples["tuned"][2] in printed
    folder = Path(f"{args.training.output_dir}_language_model")
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] is None
    assert f"{tuned:.3f}" in (folder / "README.md").read_text()
    assert not Path(args.training.output_dir).exists()
    assert not list(folder.glob("checkpoint-*"))


def test_the_adapter_has_no_embedding_though_it_is_tied_to_the_output_layer(planned, tokenizer):
    model = add_lora(load_model(planned[0], tokenizer, LANGUAGE_MODELING), planned[0])
    assert model.base_model.model.lm_head.weight is model.base_model.model.transformer.wte.weight
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name and "lm_head" not in name for name in trained)
    assert model.active_peft_config.fan_in_fan_out


def test_the_plan_takes_the_options_of_language_modeling(args):
    changes = {"lm_dataset_config_name": "sports", "lm_max_eval_samples": None, "max_eval_samples": 7}
    planned, _ = plan_language_modeling(args.replace(**changes, output_dir=f"{args.training.output_dir}/"))
    assert (planned.data.dataset_name, planned.data.dataset_config_name) == ("texts", "sports")
    assert (planned.data.max_length, planned.data.max_eval_samples) == (16, 7)
    assert (planned.training.learning_rate, planned.training.num_train_epochs) == (2e-2, 3)
    assert planned.training.per_device_eval_batch_size == 4
    assert planned.training.output_dir == f"{args.training.output_dir}_language_model"


def test_a_model_that_is_no_language_model_is_replaced_by_the_tiny_gpt2(args, tmp_path, capsys):
    shape = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForMaskedLM(shape).save_pretrained(tmp_path / "bert")
    planned, _ = plan_language_modeling(args.replace(model_name_or_path=str(tmp_path / "bert")))
    assert planned.model.model_name_or_path == TINY_GPT2
    assert f"bert (BertForMaskedLM) is no language model; {TINY_GPT2} is used" in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_perplexity_is_that_by_hand_whatever_the_batches(batch_size, planned, tokenizer, tokenized):
    args = planned[0].replace(per_device_eval_batch_size=batch_size)
    model = load_model(args, tokenizer, LANGUAGE_MODELING)
    output = predict(model, tokenizer, tokenized["test"], args, LANGUAGE_MODELING)
    assert output.metrics["test_perplexity"] == pytest.approx(by_hand(model, tokenized["test"]), rel=1e-6)
    assert output.metrics["test_examples"] == tokenized["test"].num_rows == 6
    assert output.predictions is None  # a logit for every entry of the vocabulary would fill the memory


def test_the_end_of_text_is_predicted_though_it_is_the_padding_too(planned, tokenizer, tokenized):
    load_model(planned[0], tokenizer, LANGUAGE_MODELING)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batch = LANGUAGE_MODELING.make_data_collator(tokenizer)(tokenized["test"].remove_columns("length").to_list())
    assert (batch["labels"] == tokenizer.eos_token_id).any()
    assert torch.equal(batch["labels"], batch["input_ids"])


@pytest.mark.slow
def test_the_trainer_keeps_the_checkpoint_with_the_lowest_loss(planned, tokenizer, tokenized):
    args, task = planned
    model = add_lora(load_model(args, tokenizer, task), args)
    trainer = make_trainer(model, tokenizer, tokenized, args, task)
    with guard_training(trainer) as checkpoint:
        trainer.train(resume_from_checkpoint=checkpoint)
    history = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(history) >= 3
    assert trainer.state.best_metric == min(history)
    again = predict(model, tokenizer, tokenized["validation"], args, task)
    assert again.metrics["test_loss"] == pytest.approx(min(history), rel=1e-6)


def test_in_4_bits_the_output_layer_is_not_quantized_and_nothing_is_lost(planned, tokenizer, tokenized, processor):
    args = planned[0].replace(load_in_4bit=True)
    model = load_model(args, tokenizer, LANGUAGE_MODELING)
    assert isinstance(model.transformer.h[0].attn.c_attn, Linear4bit)
    assert model.lm_head.weight.dtype == torch.float32
    untuned = predict(model, tokenizer, tokenized["test"], args, LANGUAGE_MODELING)
    with_lora = predict(add_lora(model, args), tokenizer, tokenized["test"], args, LANGUAGE_MODELING)
    assert assert_same_predictions(untuned, with_lora) == 0


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 65}, "max_length is 65, but .* has 64 positions"),
        ({"block_size": 1}, "block_size is 1; it must be at least 2"),
        ({"target_modules": ".*c_atn"}, r"target_modules is '\.\*c_atn', which matches no layer"),
        ({"streaming": True, "max_steps": 4}, "cut into blocks as a table; leave out --streaming"),
    ],
)
def test_what_would_fail_later_is_found_by_the_plan(changes, message, args):
    with pytest.raises(ValueError, match=message):
        plan_language_modeling(args.replace(**changes))


@pytest.mark.reliability("bad input")
def test_another_runs_adapter_is_not_replaced(peft_model, planned, args):
    folder = Path(planned[0].training.output_dir)
    peft_model.save_pretrained(folder)
    with pytest.raises(FileExistsError, match="adapter_language_model', which holds an adapter of unknown origin"):
        plan_language_modeling(args)


@pytest.mark.reliability("bad input")
def test_a_classifiers_adapter_is_not_loaded_as_a_language_model(peft_model, tokenizer, args):
    for part in (peft_model, peft_model.config, tokenizer):
        part.save_pretrained(args.training.output_dir)
    save_recipe(args, args.training.output_dir)
    with pytest.raises(ValueError, match="task_type 'SEQ_CLS', expected 'CAUSAL_LM': it was trained for another"):
        load_adapter(args.training.output_dir, LANGUAGE_MODELING)


# Generated text

PROMPTS = ["a fine", "what a sad, cold and tired"]


@pytest.fixture
def language_model(args, tokenizer):
    return load_model(args, tokenizer, LANGUAGE_MODELING)


def test_each_text_goes_on_from_its_prompt_by_the_seed(language_model, tokenizer, recwarn, caplog):
    texts = generate_texts(language_model, tokenizer, PROMPTS, seed=1)
    assert all(text.startswith(prompt) and text != prompt for text, prompt in zip(texts, PROMPTS, strict=True))
    assert generate_texts(language_model, tokenizer, PROMPTS, seed=1) == texts
    assert generate_texts(language_model, tokenizer, PROMPTS, seed=2) != texts
    assert tokenizer.padding_side == "right"
    assert not [record for record in caplog.records if "pad" in record.getMessage() or "mask" in record.getMessage()]
    assert not recwarn


def test_prompts_are_padded_on_the_left_and_the_model_is_told(language_model, tokenizer, monkeypatch):
    given = {}
    monkeypatch.setattr(language_model, "generate", lambda **names: (given.update(names), names["input_ids"])[1])
    assert generate_texts(language_model, tokenizer, PROMPTS, seed=1) == PROMPTS
    mask = given["attention_mask"]
    assert mask[0].tolist() == sorted(mask[0].tolist())
    assert mask[:, -1].all()
    assert not mask.all()
    assert given["pad_token_id"] == tokenizer.pad_token_id


def test_prompts_are_the_first_words_of_the_documents():
    texts = Dataset.from_dict({"text": ["one two\nthree four five six seven eight nine", "short", "third", "fourth"]})
    assert first_words(texts) == ["one two three four five six seven eight", "short", "third"]


def test_a_prompt_of_a_script_without_spaces_is_cut():
    assert first_words(Dataset.from_dict({"text": ["\u6587" * 5000, "one two"]})) == ["\u6587" * 100, "one two"]


# Blocks


def to_splits(**texts: list[str]) -> DatasetDict:
    return DatasetDict({name: Dataset.from_dict({"text": rows}) for name, rows in texts.items()})


@pytest.mark.parametrize("block_size", [2, 7, 32])
def test_blocks_hold_the_tokens_of_the_documents_in_order_but_the_remainder(block_size, tokenizer):
    texts = ["a fine film", "bad", "what a sad, cold and tired story " * 30]
    expected = list(chain.from_iterable([*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts))
    tokenizer.model_max_length = block_size
    blocks = make_blocks(to_splits(test=texts), tokenizer)["test"]
    rows = blocks["input_ids"][:]
    kept = list(chain.from_iterable(rows))
    assert kept == expected[: len(kept)]
    assert 0 <= len(expected) - len(kept) < block_size
    assert {len(row) for row in rows} == {block_size}
    assert blocks["labels"][:] == rows
    assert blocks["length"][:] == [block_size] * len(rows)


def test_a_document_may_be_longer_than_the_positions(tokenizer, caplog):
    blocks = make_blocks(to_splits(test=["what a sad story " * 100]), tokenizer)["test"]
    assert blocks.num_rows * 32 > 64
    assert "longer than the specified maximum" not in caplog.text


def test_there_are_no_more_blocks_than_the_limits_drawn_by_the_seed(args, tokenizer):
    texts = [f"text {number} of it" for number in range(30)]
    documents = to_splits(train=texts, validation=texts, test=texts)
    limited = args.replace(max_train_samples=5, max_eval_samples=3)
    tokenizer.model_max_length = 4
    blocks = make_blocks(documents, tokenizer, limited)
    assert {name: split.num_rows for name, split in blocks.items()} == {"train": 5, "validation": 3, "test": 3}
    assert make_blocks(documents, tokenizer, limited)["train"][:] == blocks["train"][:]
    assert make_blocks(documents, tokenizer, limited.replace(seed=1))["train"][:] != blocks["train"][:]
    alone = make_blocks(DatasetDict(test=documents["test"]), tokenizer, limited)["test"]
    assert alone[:] == blocks["test"][:]
    assert make_blocks(documents, tokenizer, args)["train"].num_rows > 5


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("texts", [["a story"], []])
def test_documents_shorter_than_a_block_are_an_error_that_says_what_to_do(texts, tokenizer):
    documents = to_splits(train=["what a sad story " * 10], test=texts)
    with pytest.raises(ValueError, match=r"of test make no block of 32 tokens.*smaller --block_size"):
        make_blocks(documents, tokenizer)
