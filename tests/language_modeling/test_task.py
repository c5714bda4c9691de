import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from datasets import Dataset, DatasetDict
from peft import PeftModel
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from peft_helpers.arguments import BBC_NEWS, TINY_GPT2, parse_arguments
from peft_helpers.language_modeling import task as module
from peft_helpers.language_modeling.perplexity import evaluate_perplexity
from peft_helpers.language_modeling.task import (
    first_words,
    inject_lora,
    load_language_model,
    load_saved_language_model,
    make_blocks,
    make_language_model_trainer,
    plan_language_modelling,
    run_language_model,
    save_language_model,
)
from peft_helpers.sources.documents import WIKITEXT

SCORES = tuple({"perplexity": value, "predicted_tokens": 4321} for value in (90.126, 80.004))


@pytest.fixture
def text_file(tmp_path) -> Path:
    """Forty paragraphs of one pattern, which a model of two layers learns in a few steps."""
    file = tmp_path / "story.txt"
    file.write_text("\n\n".join(f"{number} a sad story and a funny story and a sad story" for number in range(40)))
    return file


@pytest.fixture
def args(args, text_file):
    return replace(
        args, lm_dataset_name=str(text_file), block_size=16, lm_learning_rate=2e-2, lm_num_train_epochs=3,
        lm_max_eval_samples=12,
    )  # fmt: skip


@pytest.fixture
def language_model(args, tokenizer):
    """A language model whose LoRA is not zero."""
    model = inject_lora(load_language_model(args, tokenizer), args)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_the_whole_path_lowers_the_perplexity_and_reloads_the_same(args, capsys):
    result = run_language_model(args)
    perplexity = result["perplexity"]
    assert perplexity["tuned"] < 0.9 * perplexity["untuned"]
    assert perplexity["reloaded"] == pytest.approx(perplexity["tuned"], rel=1e-6)
    assert json.loads(json.dumps(result)) == result
    assert len(result["generated"]) == 3
    for row in result["generated"]:
        assert row["untuned"].startswith(row["prompt"])
        assert row["tuned"].startswith(row["prompt"])
        assert row["untuned"] != row["tuned"]
    folder = Path(result["output_dir"])
    assert folder == Path(f"{args.training.output_dir}_language_model")
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    assert not Path(args.training.output_dir).exists()
    assert not list(Path(args.checkpoint_dir).iterdir())
    printed = capsys.readouterr().out
    assert f"the same model, on {args.language_modeling.lm_dataset_name}, as asked for" in printed
    assert f"{perplexity['reloaded']:.2f}" in printed


def test_the_plan_takes_the_fields_of_language_modelling(args):
    planned = plan_language_modelling(args)
    assert (planned.data.max_length, planned.training.learning_rate, planned.training.num_train_epochs) == (16, 2e-2, 3)
    assert (planned.data.max_eval_samples, planned.training.per_device_eval_batch_size) == (12, 3)
    assert plan_language_modelling(args.replace(lm_max_eval_samples=None, max_eval_samples=7)).max_eval_samples == 7


def test_offline_it_is_the_tiny_gpt2_on_a_topic_of_bbc_news(tmp_path, capsys):
    planned = plan_language_modelling(parse_arguments(f"--profile offline --output_dir {tmp_path}/adapter"))
    assert (planned.model.model_name_or_path, planned.data.dataset_name) == (TINY_GPT2, BBC_NEWS)
    assert planned.data.dataset_config_name == "sports"
    assert f"{TINY_GPT2}, the same model, on bbc-news sports" in capsys.readouterr().out


@pytest.mark.parametrize(("available", "name"), [(True, WIKITEXT), (False, BBC_NEWS)])
def test_auto_takes_wikitext_where_it_can_be_had_and_says_why(available, name, args, monkeypatch, capsys):
    monkeypatch.setattr(module, "explain_availability", lambda dataset_name, **_: (available, f"of {dataset_name}"))
    monkeypatch.setattr(module, "load_documents", lambda args: None)
    planned = plan_language_modelling(args.replace(lm_dataset_name="auto"))
    assert planned.data.dataset_name == name
    assert planned.data.dataset_config_name == {WIKITEXT: "wikitext-2-raw-v1", BBC_NEWS: "sports"}[name]
    printed = capsys.readouterr().out
    assert f"on {name} {planned.data.dataset_config_name}, of {WIKITEXT}." in printed
    assert (f"Offline: {BBC_NEWS} in place of {WIKITEXT}." in printed) is not available


@pytest.mark.reliability("fault")
def test_a_hub_that_does_not_serve_wikitext_is_an_error(args, hub_server, monkeypatch):
    monkeypatch.setattr("peft_helpers.sources.hub.RETRIES", 0)
    hub_server.faults["wikitext"] = lambda handler: handler.refuse(503)
    with pytest.raises(ConnectionError, match=r"503 .* dataset Salesforce/wikitext\. .*`--lm_dataset_name bbc-news`"):
        plan_language_modelling(args.replace(lm_dataset_name="auto"))


def test_a_mirror_without_wikitext_gives_way_and_says_so(args, hub_server, monkeypatch, capsys):
    monkeypatch.setattr("peft_helpers.sources.hub.RETRIES", 0)
    hub_server.faults["wikitext"] = lambda handler: handler.refuse(404)
    assert plan_language_modelling(args.replace(lm_dataset_name="auto")).dataset_name == BBC_NEWS
    assert "on bbc-news sports, since this Hub has no Salesforce/wikitext." in capsys.readouterr().out


def test_a_model_that_is_no_language_model_gives_way(args, tmp_path, capsys):
    shape = BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertForMaskedLM(shape).save_pretrained(tmp_path / "bert")
    planned = plan_language_modelling(args.replace(model_name_or_path=str(tmp_path / "bert")))
    assert planned.model.model_name_or_path == TINY_GPT2
    assert "bert (BertForMaskedLM) is no language model" in capsys.readouterr().out


def test_only_lora_is_trained_and_injecting_it_changes_nothing(args, tokenizer):
    model = load_language_model(args, tokenizer)
    batch = tokenizer(["a fine film"], return_tensors="pt")
    before = model.eval()(**batch).logits
    model = inject_lora(model, args)
    assert torch.equal(model.eval()(**batch).logits, before)
    assert all("lora_" in name for name, value in model.named_parameters() if value.requires_grad)
    assert model.active_peft_config.fan_in_fan_out
    assert isinstance(model, PeftModel)


def test_no_more_blocks_than_the_limits_by_the_seed(args, tokenizer):
    rows = DatasetDict({name: Dataset.from_dict({"text": [f"text {n} of it" for n in range(30)]})
                        for name in ("train", "validation", "test")})  # fmt: skip
    limited = args.replace(max_length=4, max_train_samples=5, max_eval_samples=3)
    blocks = make_blocks(rows, tokenizer, limited)
    assert {name: split.num_rows for name, split in blocks.items()} == {"train": 5, "validation": 3, "test": 3}
    assert make_blocks(rows, tokenizer, limited)["train"][:] == blocks["train"][:]
    assert make_blocks(rows, tokenizer, replace(limited, seed=1))["train"][:] != blocks["train"][:]


def test_the_trainer_keeps_the_checkpoint_with_the_least_perplexity(args, tokenizer):
    planned = plan_language_modelling(args)
    blocks = make_blocks(module.load_documents(planned), tokenizer, planned)
    model = inject_lora(load_language_model(planned, tokenizer), planned)
    trainer = make_language_model_trainer(model, tokenizer, blocks, planned)
    with module.guard_training(trainer) as checkpoint:
        trainer.train(resume_from_checkpoint=checkpoint)
    history = [entry["eval_perplexity"] for entry in trainer.state.log_history if "eval_perplexity" in entry]
    assert len(history) >= 3
    assert trainer.state.best_metric == min(history)
    again = evaluate_perplexity(model, tokenizer, blocks["validation"], planned)["perplexity"]
    assert again == pytest.approx(min(history), rel=1e-6)


def test_what_is_saved_is_loaded_with_its_tokenizer(language_model, tokenizer, args):
    save_language_model(language_model, tokenizer, args, *SCORES)
    reloaded, its_tokenizer = load_saved_language_model(args)
    batch = its_tokenizer(["a fine film", "bad"], return_tensors="pt", padding=True)
    with torch.no_grad():
        assert torch.equal(reloaded.eval()(**batch).logits, language_model.eval()(**batch).logits)


def test_in_4_bits_the_linear_layers_are_quantised_and_the_output_layer_is_not(args, tokenizer, processor):
    args = args.replace(load_in_4bit=True)
    model = load_language_model(args, tokenizer)
    assert isinstance(model.transformer.h[0].attn.c_attn, Linear4bit)
    assert model.lm_head.weight.dtype == torch.float32
    texts = Dataset.from_dict({"text": ["a sad story"] * 9})
    blocks = make_blocks(DatasetDict(train=texts, validation=texts, test=texts), tokenizer, args)
    untuned = evaluate_perplexity(model, tokenizer, blocks["test"], args)
    model = inject_lora(model, args)
    assert evaluate_perplexity(model, tokenizer, blocks["test"], args) == untuned
    save_language_model(model, tokenizer, args, untuned, untuned)
    reloaded, _ = load_saved_language_model(args)
    assert isinstance(reloaded.base_model.model.transformer.h[0].attn.c_attn.base_layer, Linear4bit)
    assert evaluate_perplexity(reloaded, tokenizer, blocks["test"], args) == untuned


def test_prompts_are_the_first_words_of_the_documents():
    texts = Dataset.from_dict({"text": ["one two\nthree four five six seven eight nine", "short", "third", "fourth"]})
    assert first_words(texts) == ["one two three four five six seven eight", "short", "third"]


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": 65}, "max_length is 65, but .* has 64 positions"),
        ({"lm_dataset_name": "missing.txt"}, "lm_dataset_name is 'missing.txt': there is no such file"),
        ({"target_modules": ".*c_atn"}, r"target_modules is '\.\*c_atn', which matches no layer"),
    ],
)
def test_what_would_fail_later_is_found_by_the_plan(changes, message, args):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        plan_language_modelling(args.replace(**changes))


@pytest.mark.reliability("bad input")
def test_another_runs_adapter_is_not_replaced(language_model, tokenizer, args):
    save_language_model(language_model, tokenizer, plan_language_modelling(args), *SCORES)
    plan_language_modelling(args)
    with pytest.raises(FileExistsError, match=r"adapter_language_model'.*another run: learning_rate 0.02"):
        plan_language_modelling(args.replace(lm_learning_rate=1e-3))


@pytest.mark.reliability("bad input")
def test_a_single_step_is_refused(language_model, tokenizer, args):
    text = Dataset.from_dict({"text": ["a sad story"]})
    blocks = make_blocks(DatasetDict(train=text, validation=text, test=text), tokenizer, args)
    with pytest.raises(ValueError, match="make one training step, in which the learning rate is still 0"):
        make_language_model_trainer(language_model, tokenizer, blocks, args.replace(num_train_epochs=1))


@pytest.mark.reliability("bad input")
def test_a_classifiers_adapter_is_not_loaded_as_a_language_model(peft_model, tokenizer, args):
    for part in (peft_model, peft_model.config, tokenizer):
        part.save_pretrained(args.training.output_dir)
    with pytest.raises(ValueError, match="task_type 'SEQ_CLS', expected 'CAUSAL_LM': this is no language model"):
        load_saved_language_model(args)


@pytest.mark.reliability("fault")
def test_an_adapter_of_a_language_model_that_was_cut_off_is_refused(language_model, tokenizer, args):
    save_language_model(language_model, tokenizer, args, *SCORES)
    weights = Path(args.training.output_dir, "adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        load_saved_language_model(args)


def test_the_saved_tokenizer_is_the_models(language_model, tokenizer, args):
    save_language_model(language_model, tokenizer, args, *SCORES)
    saved = AutoTokenizer.from_pretrained(args.training.output_dir)
    assert saved("a sad story")["input_ids"] == tokenizer("a sad story")["input_ids"]


@pytest.mark.reliability("bad input")
def test_texts_are_not_streamed(args):
    with pytest.raises(ValueError, match="cut into blocks as a table; leave out --streaming"):
        plan_language_modelling(args.replace(streaming=True, max_steps=4))


def test_a_prompt_of_a_script_without_blanks_is_cut():
    assert first_words(Dataset.from_dict({"text": ["\u6587" * 5000, "one two"]})) == ["\u6587" * 100, "one two"]
