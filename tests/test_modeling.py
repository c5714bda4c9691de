import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from conftest import LABELS
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    DebertaV2Config,
    DistilBertConfig,
    LlamaConfig,
    set_seed,
)
from transformers.activations import NewGELUActivation

from peft_helpers import (
    CLASSIFICATION,
    check_model,
    lora_arguments,
    model_arguments,
    predict,
    prepare_model,
    quantization_problem,
    reload_arguments,
)
from peft_helpers.arguments import ModelArguments
from peft_helpers.modeling import empty_model, head_modules, load_model


def test_loading_is_seeded_and_keeps_label_names(args, tokenizer):
    torch.manual_seed(99)
    first, second, other = (
        load_model(args.replace(seed=seed), tokenizer, CLASSIFICATION, ["no", "yes", "maybe"]) for seed in (42, 42, 7)
    )
    assert torch.equal(first.score.weight, second.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert first.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert first.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id


def test_the_notebooks_cells_make_the_same_model(args, tokenizer, model):
    set_seed(args.training.seed)
    name = args.model.model_name_or_path
    by_hand = AutoModelForSequenceClassification.from_pretrained(name, **model_arguments(args.model, LABELS))
    prepare_model(by_hand, tokenizer)
    assert by_hand.config.to_dict() == model.config.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(by_hand.parameters(), model.parameters(), strict=True))


def test_what_the_model_was_loaded_with_travels_with_the_adapters_folder(args, model, tmp_path):
    model.config.save_pretrained(tmp_path)
    found, expected = reload_arguments(tmp_path), model_arguments(args.model, LABELS)
    assert expected.pop("num_labels") == len(found["id2label"])
    assert expected.pop("dtype") == getattr(torch, found["dtype"])
    assert {name: found[name] for name in expected} == expected


def test_the_faster_activation_is_the_same_function_and_an_adapter_fits_both(args, model, tokenized):
    plain = AutoModelForSequenceClassification.from_pretrained(args.model.model_name_or_path, num_labels=2)
    plain.score.load_state_dict(model.score.state_dict())
    assert any(isinstance(module, NewGELUActivation) for module in plain.modules())
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    batch = {"input_ids": torch.tensor(tokenized["test"][:1]["input_ids"])}
    with torch.no_grad():
        found, expected = (each.eval()(**batch).logits for each in (model, plain))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", fan_in_fan_out=True)
    names = [set(get_peft_model(each, lora).state_dict()) for each in (model, plain)]
    assert names[0] == names[1]


def test_only_loras_dropout_is_left(model):
    lora = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True, lora_dropout=0.3))
    rates = {name: module.p for name, module in lora.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert set(rates.values()) == {0.0, 0.3}
    assert all(("lora_dropout" in name) == (rate == 0.3) for name, rate in rates.items())


@pytest.mark.reliability("bad input")
def test_a_folder_without_weights_lists_what_it_holds(args, tmp_path):
    shutil.copy(Path(args.model.model_name_or_path) / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json and model\*\.safetensors .*found config\.json"):
        check_model(args.replace(model_name_or_path=str(tmp_path)))


@pytest.mark.reliability("bad input")
def test_pickled_weights_are_not_loaded(args, tmp_path):
    shutil.copy(Path(args.model.model_name_or_path) / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match="pickled weights are not loaded"):
        check_model(args.replace(model_name_or_path=str(tmp_path)))


@pytest.mark.reliability("bad input")
def test_an_adapter_is_no_model(args, peft_model, tmp_path):
    peft_model.save_pretrained(tmp_path)
    peft_model.config.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"found .*adapter_model\.safetensors"):
        check_model(args.replace(model_name_or_path=str(tmp_path)))


@pytest.mark.parametrize("target_modules", ["all-linear", r".*c_attn", r"transformer\.h\.0\.mlp\.c_fc"])
def test_target_modules_that_match_pass(args, target_modules):
    check_model(args.replace(target_modules=target_modules))


@pytest.mark.reliability("bad input")
def test_target_modules_that_match_nothing_list_the_layers(args):
    with pytest.raises(ValueError, match=r"'c_attn', which matches no layer.*transformer\.h\.1\.attn\.c_attn"):
        check_model(args.replace(target_modules="c_attn"))


@pytest.mark.parametrize(
    ("shape", "head"),
    [
        (DistilBertConfig(vocab_size=9, dim=8, n_layers=1, n_heads=2, hidden_dim=8), ["pre_classifier", "classifier"]),
        (LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2),
         ["score"]),
        (DebertaV2Config(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2),
         ["pooler", "classifier"]),
        (BartConfig(vocab_size=9, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                    decoder_attention_heads=2), ["classification_head"]),
    ],
)  # fmt: skip
def test_every_layer_of_another_architecture_gets_lora_and_its_head_is_trained(shape, head):
    model = AutoModelForSequenceClassification.from_config(shape)
    assert head_modules(model) == head
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", modules_to_save=head_modules(model))
    trainable = [n for n, p in get_peft_model(model, lora).named_parameters() if p.requires_grad]
    assert {n.split(".")[2] for n in trainable if "lora_" not in n} == set(head)
    assert len([name for name in trainable if "lora_A" in name]) >= 6


@pytest.mark.reliability("bad input")
def test_a_missing_folder_is_named(args):
    with pytest.raises(FileNotFoundError, match=r"'\./no_such_model'.*found nothing"):
        check_model(args.replace(model_name_or_path="./no_such_model"))


@pytest.mark.reliability("bad input")
def test_max_length_beyond_the_positions_is_an_error(args):
    with pytest.raises(ValueError, match=r"max_length is 65, but .* has 64 positions"):
        check_model(args.replace(max_length=65))


@pytest.mark.parametrize(("name", "head"), [("gpt2", ["score"]), ("distilbert", ["pre_classifier", "classifier"])])
def test_lora_trains_the_whole_head_and_knows_gpt2s_transposed_weights(args, name, head):
    shape = {"distilbert": {"dim": 8, "n_heads": 2, "hidden_dim": 8}, "gpt2": {"n_embd": 8, "n_head": 2}}[name]
    model = empty_model(AutoConfig.for_model(name, n_layer=1, n_layers=1, vocab_size=16, **shape))
    arguments = lora_arguments(args.replace(lora_r=3, lora_alpha=5).lora, model)
    assert (arguments["r"], arguments["lora_alpha"], arguments["lora_dropout"]) == (3, 5, 0.05)
    assert arguments["modules_to_save"] == head
    assert arguments["fan_in_fan_out"] == (name == "gpt2")
    assert lora_arguments(args.lora, model, "CAUSAL_LM")["modules_to_save"] is None


# 4 bits


@pytest.fixture
def quantized(args, tokenizer, processor):
    return load_model(args.replace(load_in_4bit=True), tokenizer, CLASSIFICATION, LABELS)


def test_the_linear_layers_are_quantized_and_the_head_is_not(quantized, model):
    kinds = {type(module) for name, module in quantized.named_modules() if "attn.c_attn" in name}
    assert kinds == {Linear4bit}
    assert quantized.score.weight.dtype == torch.float32
    assert torch.equal(quantized.score.weight, model.score.weight)


def test_the_untrained_quantized_model_can_be_evaluated(quantized, tokenizer, tokenized, args, model):
    found = predict(quantized, tokenizer, tokenized["test"], args).predictions
    full = predict(model, tokenizer, tokenized["test"], args).predictions
    assert 0 < abs(found - full).max() < 0.2 * abs(full).max()


def test_evaluating_and_saving_leave_the_quantized_model_as_it_is_and_it_can_be_trained(quantized, tokenizer):
    model = quantized.eval()
    model.score.requires_grad_(True)
    batch = tokenizer(["a fine film", "bad"], return_tensors="pt", padding=True)
    with torch.no_grad():
        before = model(**batch).logits
        model.state_dict()
        assert torch.equal(model(**batch).logits, before)
    states = [module.weight.quant_state for module in model.modules() if isinstance(module, Linear4bit)]
    assert states
    assert not any(getattr(state, "packing_format_for_cpu", False) for state in states)
    model.train()(**batch, labels=torch.tensor([1, 0])).loss.backward()


def test_without_care_bitsandbytes_repacks_the_weights_where_the_processor_has_avx512_bf16(args, processor):
    """If this fails, bitsandbytes has changed, and a part of `prepare_model` may have had its day."""
    name, four_bits = args.model.model_name_or_path, replace(args.model, load_in_4bit=True)
    model = AutoModelForSequenceClassification.from_pretrained(name, **model_arguments(four_bits, LABELS)).eval()
    model.config.pad_token_id = 0
    inputs = {"input_ids": torch.ones(1, 3, dtype=torch.int64)}
    if not processor:
        assert model(**inputs).logits.shape == (1, 2)
        return
    with torch.no_grad(), pytest.raises(AssertionError, match="N must be divisible by block_n"):
        model(**inputs)


def test_bitsandbytes_works_here():
    assert quantization_problem() is None


@pytest.mark.reliability("fault")
def test_where_it_does_not_work_the_reason_is_told(monkeypatch, args):
    def broken(*arguments, **options):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr("bitsandbytes.nn.Linear4bit", broken)
    assert quantization_problem() == "bitsandbytes cannot quantize on this machine (RuntimeError: no kernel image)"
    with pytest.raises(ValueError, match=r"load_in_4bit is asked for, but bitsandbytes cannot .*Leave it out"):
        check_model(args.replace(load_in_4bit=True))


@pytest.mark.reliability("fault")
def test_where_it_cannot_be_imported_the_reason_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    assert quantization_problem().startswith("bitsandbytes cannot quantize on this machine (ModuleNotFoundError: ")


@pytest.mark.slow
def test_its_note_on_an_optional_kernel_is_kept_off_the_output():
    code = "import peft_helpers, logging; logging.getLogger('bitsandbytes.backends.cpu.ops').warning('Failed to load')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stderr == ""


def test_the_head_of_another_architecture_is_skipped_too(tmp_path):
    sizes = {"n_layers": 1, "dim": 8, "n_heads": 2, "hidden_dim": 8, "vocab_size": 16}
    AutoConfig.for_model("distilbert", **sizes).save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path), load_in_4bit=True)
    skipped = [model_arguments(args, names)["quantization_config"].llm_int8_skip_modules for names in (LABELS, None)]
    assert skipped == [["pre_classifier", "classifier"], None]
