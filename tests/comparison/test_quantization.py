import subprocess
import sys

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForSequenceClassification

from peft_helpers.checks import assert_same_logits
from peft_helpers.comparison.quantization import compare_sizes
from peft_helpers.modeling import (
    check_model,
    classifier_arguments,
    empty_model,
    head_modules,
    keep_4bit_weights_unpacked,
    load_base_model,
    quantization_config,
    quantization_problem,
    saved_classifier_arguments,
)
from peft_helpers.prediction import predict
from peft_helpers.tokenization import set_padding

LABELS = ["negative", "positive"]


@pytest.fixture
def load(args, tokenizer, processor):
    return lambda: load_base_model(args.replace(load_in_4bit=True), LABELS, tokenizer)


def test_the_linear_layers_are_quantised_and_the_head_is_not(load, model):
    quantized = load()
    kinds = {name: type(module) for name, module in quantized.named_modules() if "attn.c_attn" in name}
    assert set(kinds.values()) == {Linear4bit}
    assert quantized.score.weight.dtype == torch.float32
    assert torch.equal(quantized.score.weight, model.score.weight)


def test_quantised_layers_are_smaller_by_what_their_bits_say(tmp_path):
    """8 times by the bits, less the scales of every 64 weights, themselves in 8 bits."""
    shape = AutoConfig.for_model("gpt2", n_embd=768, n_layer=1, n_head=12, vocab_size=64, n_positions=16)
    model = AutoModelForSequenceClassification.from_config(shape)
    model.save_pretrained(tmp_path)
    four_bits = quantization_config(str(tmp_path))
    quantized = AutoModelForSequenceClassification.from_pretrained(tmp_path, quantization_config=four_bits)
    sizes = compare_sizes(model, quantized)
    linear, whole = "weights of the linear layers", "whole model"
    assert sizes.loc[linear, "32 bits, MB"] == 12 * 768**2 * 4 / 1e6
    assert 7.6 < sizes.loc[linear, "times smaller"] < 8
    # What is not a linear layer's weight has the size that it had.
    rest = sizes.loc[whole] - sizes.loc[linear]
    assert rest["4 bits, MB"] == pytest.approx(rest["32 bits, MB"], abs=1e-6)


def test_lora_learns_on_the_quantised_base_and_reloads(load, tokenizer, tmp_path):
    model = prepare_model_for_kbit_training(load(), use_gradient_checkpointing=False)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", modules_to_save=head_modules(model))
    model = get_peft_model(model, lora)
    batch = tokenizer(["a fine film", "bad"], return_tensors="pt", padding=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**batch, labels=torch.tensor([1, 0])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    model.save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    reloaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, **saved_classifier_arguments(tmp_path))
    assert isinstance(reloaded.base_model.model.transformer.h[0].attn.c_attn.base_layer, Linear4bit)
    keep_4bit_weights_unpacked(reloaded)
    set_padding(tokenizer, reloaded)
    with torch.no_grad():
        logits = [each.eval()(**batch).logits.numpy() for each in (model, reloaded)]
    assert_same_logits(*logits, torch.float32)


def test_the_untrained_quantised_model_can_be_evaluated(load, tokenizer, tokenized, args, model):
    quantized = predict(load(), tokenizer, tokenized["test"], args).predictions
    full = predict(model, tokenizer, tokenized["test"], args).predictions
    assert 0 < abs(quantized - full).max() < 0.2 * abs(full).max()


def test_evaluating_and_saving_leave_the_quantised_model_as_it_is_and_it_can_be_trained(load, tokenizer):
    model = load().eval()
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
    """If this fails, bitsandbytes has changed, and `keep_4bit_weights_unpacked` may have had its day."""
    four_bits = quantization_config(args.model.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model.model_name_or_path, **classifier_arguments(LABELS), quantization_config=four_bits
    ).eval()
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
    reason = "bitsandbytes cannot quantise on this machine (RuntimeError: no kernel image)"
    assert quantization_problem() == reason
    with pytest.raises(ValueError, match=r"load_in_4bit is asked for, but bitsandbytes cannot .*Leave it out"):
        check_model(args.replace(load_in_4bit=True))


@pytest.mark.reliability("fault")
def test_where_it_cannot_be_imported_the_reason_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    assert quantization_problem().startswith("bitsandbytes cannot quantise on this machine (ModuleNotFoundError: ")


def test_its_note_on_an_optional_kernel_is_kept_off_the_output():
    code = "import peft_helpers, logging; logging.getLogger('bitsandbytes.backends.cpu.ops').warning('Failed to load')"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stderr == ""


def test_the_head_of_another_architecture_is_skipped_too():
    args = AutoConfig.for_model("distilbert", n_layers=1, dim=8, n_heads=2, hidden_dim=8, vocab_size=16)
    assert head_modules(empty_model(args)) == ["pre_classifier", "classifier"]
