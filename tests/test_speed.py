"""The fast path computes what the plain model computes: on the tiny GPT-2 and on the shape of the real one."""

import ctypes
import platform
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    set_seed,
)
from transformers.activations import NewGELUActivation

from peft_helpers import speed, speed_up, turn_off_dropout
from peft_helpers.distributed import CHECKPOINTING

PAD = 0
TINY = {"vocab_size": 60, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
SHAPES = {"tiny": TINY, "124M": {"vocab_size": 1000}}  # GPT2Config's own shape; the vocabulary has no part in this


def make(shape: dict, **options) -> PeftModel:
    """A classifier with a LoRA that is not zero; the seed makes each call's weights the same."""
    set_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(**shape, pad_token_id=PAD, num_labels=3, **options))
    turn_off_dropout(model)
    return get_peft_model(
        model,
        LoraConfig(
            task_type="SEQ_CLS",
            target_modules="all-linear",
            exclude_modules=["score"],
            fan_in_fan_out=True,
            init_lora_weights=False,
        ),
    )


def batch() -> dict:
    """Rows of unlike length, one that is full, one of padding only, and one with the padding token inside."""
    torch.manual_seed(1)
    input_ids = torch.randint(1, 60, (6, 9))
    lengths = torch.tensor([9, 1, 4, 7, 9, 5])
    attention_mask = (torch.arange(9) < lengths[:, None]).long()
    input_ids[attention_mask == 0] = PAD
    input_ids[1, 0] = PAD  # a text without tokens, see encode_texts
    input_ids[3, 2] = PAD
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": torch.tensor([0, 1, 2, 0, 1, 2])}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    """The same model twice: plain, and on the fast path."""
    plain, fast = make(SHAPES[request.param]), make(SHAPES[request.param])
    speed_up(fast)
    return plain, fast


@pytest.mark.parametrize("training", [False, True])
def test_logits_are_those_of_the_plain_model(pair, training):
    with torch.no_grad():
        plain, fast = (model.train(training)(**batch()).logits for model in pair)
    assert plain.std() > 1e-3
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_plain_model(pair):
    for model in pair:
        model.train().zero_grad()
        model(**batch()).loss.backward()
    plain, fast = ({name: p.grad for name, p in model.named_parameters() if p.requires_grad} for model in pair)
    assert plain.keys() == fast.keys()
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(fast[name], gradient, atol=1e-4, rtol=0)


def test_a_plain_model_loads_what_the_fast_one_has_saved(tmp_path):
    fast = make(TINY)
    speed_up(fast)
    fast.save_pretrained(tmp_path / "adapter")
    set_seed(0)
    base = GPT2ForSequenceClassification(GPT2Config(**TINY, pad_token_id=PAD, num_labels=3))
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert any(isinstance(module, NewGELUActivation) for module in plain.modules())
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch()).logits, fast.eval()(**batch()).logits, atol=1e-5, rtol=0)


def test_the_last_mlp_sees_one_token_of_each_row(pair):
    seen = {}
    for name, model in zip(("plain", "fast"), pair, strict=True):
        mlp = model.get_base_model().transformer.h[-1].mlp
        handle = mlp.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].shape[:2]}))
        model(**batch())
        handle.remove()
    assert seen == {"plain": (6, 9), "fast": (6, 1)}


def test_embeddings_in_place_of_ids_are_read_as_by_the_plain_model():
    plain, fast = make(TINY).eval(), make(TINY).eval()
    speed_up(fast)
    embeddings = torch.randn(1, 5, 16)
    expected, found = (model.get_base_model()(inputs_embeds=embeddings).logits for model in (plain, fast))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_activations_that_are_computed_again_are_the_same():
    plain, fast = make(TINY), make(TINY)
    speed_up(fast)
    getattr(fast, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    for model in (plain, fast):
        model.train()(**batch()).loss.backward()
    for (name, expected), (_, found) in zip(plain.named_parameters(), fast.named_parameters(), strict=True):
        if expected.requires_grad:
            torch.testing.assert_close(found.grad, expected.grad, atol=1e-4, rtol=0, msg=name)


def test_gradients_may_be_computed_in_another_thread():
    model = make(TINY)
    speed_up(model)
    getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    loss = model.train()(**batch()).loss
    with ThreadPoolExecutor(1) as pool:  # as autograd does on a GPU
        pool.submit(loss.backward).result()
    assert model.score.weight.grad.abs().sum() > 0


def test_speeding_up_twice_changes_nothing_more():
    model = make(TINY).eval()
    speed_up(model)
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    once = model(**batch()).logits
    speed_up(model)
    assert hooks == [len(module._forward_pre_hooks) for module in model.modules()]
    assert torch.equal(model(**batch()).logits, once)


def test_another_architecture_keeps_its_layers():
    set_seed(0)
    shape = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    model = AutoModelForSequenceClassification.from_config(shape).eval()
    before = model(**batch()).logits
    speed_up(model)
    assert torch.equal(model(**batch()).logits, before)


@pytest.mark.parametrize(("libc", "expected"), [("glibc", [(-3, 2**30), (-1, 2**31 - 1)]), ("", [])])
def test_only_glibcs_allocator_is_told_to_keep_memory(libc, expected, monkeypatch):
    calls = []
    library = type("Library", (), {"mallopt": staticmethod(lambda *arguments: calls.append(arguments))})
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    speed.reuse_freed_memory()
    assert calls == expected
