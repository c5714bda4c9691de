import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model

from peft_helpers.comparison.methods import (
    METHODS,
    REFUSED,
    REPEATED,
    adapt_model,
    learning_rate,
    plan_comparison,
)
from peft_helpers.metrics import changed_parameters, fingerprint_parameters
from peft_helpers.tiny_gpt2 import TINY_GPT2

OF_PEFT = [name for name, method in METHODS.items() if method.make_config is not None and not method.quantized]
CLASSIFIER = {"task_type": "SEQ_CLS"}


@pytest.fixture
def batch(tokenizer, model):
    return tokenizer(["a lovely, warm and funny story from start to end", "bad"], return_tensors="pt", padding=True)


def logits(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


def head_is_trained(model) -> bool:
    return any("score" in name and parameter.requires_grad for name, parameter in model.named_parameters())


@pytest.mark.parametrize("name", OF_PEFT)
def test_injecting_a_method_changes_no_prediction_and_trains_the_head(name, args, model, batch):
    before = logits(model, batch)
    adapted = adapt_model(model, METHODS[name], args)
    assert head_is_trained(adapted)
    # PiSSA splits each weight in two, which rounds; a prefix is random, and moves what it is put before.
    tolerance = {"pissa": 1e-5, "prefix-tuning": 1}.get(name, 0)
    torch.testing.assert_close(logits(adapted, batch), before, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", OF_PEFT)
def test_an_example_is_classified_alike_alone_and_in_a_padded_batch(name, args, model, batch, tokenizer):
    adapted = adapt_model(model, METHODS[name], args)
    alone = logits(adapted, tokenizer(["bad"], return_tensors="pt"))
    torch.testing.assert_close(logits(adapted, batch)[1:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", OF_PEFT)
def test_each_method_learns_only_what_it_says(name, args, model, batch):
    adapted = adapt_model(model, METHODS[name], args)
    before = fingerprint_parameters(adapted)
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    # With B = 0, or zeros on AdaLoRA's diagonal, A has no gradient before the second step.
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for _ in range(3):
        adapted.train()(**batch, labels=torch.tensor([1, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert changed_parameters(before, adapted) == trainable


def test_every_rank_scales_its_update_alike(args, model):
    ranks = [METHODS[name].make_config(args, model) for name in ("lora-r4", "lora-r8", "lora-r16")]
    assert [each.r for each in ranks] == [4, 8, 16]
    assert {each.lora_alpha / each.r for each in ranks} == {args.lora.lora_alpha / args.lora.lora_r}


def test_head_only_trains_the_head(args, model):
    adapted = adapt_model(model, METHODS["head-only"], args)
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trainable == ["base_model.model.score.modules_to_save.default.weight"]


def test_full_trains_everything(args, model):
    assert all(parameter.requires_grad for parameter in adapt_model(model, METHODS["full"], args).parameters())


def test_the_tiny_model_has_a_learning_rate_of_its_own_for_full_fine_tuning(args):
    assert learning_rate("full", args.replace(learning_rate=1.0)) == 0.1
    assert learning_rate("full", args.replace(learning_rate=1.0, model_name_or_path=TINY_GPT2)) == 0.5
    assert learning_rate("ia3", args.replace(learning_rate=1.0, model_name_or_path=TINY_GPT2)) == 10


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("name", [name for names in REFUSED for name in names])
def test_what_is_wrong_or_cannot_run_is_refused_with_what_to_use_instead(args, name):
    with pytest.raises(ValueError, match=f"{name} is refused: .+; use .+ instead") as caught:
        plan_comparison(args.replace(comparison_methods=[name]))
    assert str(caught.value).rpartition("; use ")[2].removesuffix(" instead.") in METHODS


@pytest.mark.reliability("bad input")
def test_an_unknown_method_is_answered_with_the_known_ones(args):
    with pytest.raises(ValueError, match="Unknown method 'lora-r32'; the known ones are head-only, ln-tuning"):
        plan_comparison(args.replace(comparison_methods=["lora-r32"]))


PROMPTS = {
    "prompt-tuning": peft.PromptTuningConfig(**CLASSIFIER, num_virtual_tokens=4),
    "p-tuning": peft.PromptEncoderConfig(**CLASSIFIER, num_virtual_tokens=4, encoder_hidden_size=8),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_the_refused_prompts_are_wrong(name, model, batch, tokenizer):
    """When this fails, peft or transformers is fixed, and the refusal can be lifted."""
    prompted = get_peft_model(model, PROMPTS[name])
    alone = logits(prompted, tokenizer(["bad"], return_tensors="pt"))
    assert (logits(prompted, batch)[1:] - alone).abs().max() > 1e-3


def test_refused_osf_trains_the_head_only(model):
    trained = get_peft_model(model, peft.OSFConfig(**CLASSIFIER))
    names = [name for name, parameter in trained.named_parameters() if parameter.requires_grad]
    assert all("score" in name for name in names), names


UNTRAINED_HEAD = {
    "adaption-prompt": peft.AdaptionPromptConfig(**CLASSIFIER, adapter_layers=1, adapter_len=2),
    "trainable-tokens": peft.TrainableTokensConfig(**CLASSIFIER, token_indices=[1], target_modules=["wte"]),
}


@pytest.mark.parametrize("name", UNTRAINED_HEAD)
def test_the_refused_methods_leave_the_head_untrained(name, model):
    assert not head_is_trained(get_peft_model(model, UNTRAINED_HEAD[name]))


CANNOT_RUN = {
    "olora": LoraConfig(**CLASSIFIER, init_lora_weights="olora", fan_in_fan_out=True),
    "kasa": LoraConfig(**CLASSIFIER, kasa_config=peft.KasaConfig(), fan_in_fan_out=True),
    "boft": peft.BOFTConfig(**CLASSIFIER, boft_block_size=4, target_modules=["c_attn"]),
    "oft": peft.OFTConfig(**CLASSIFIER, target_modules=["c_attn"]),
    "hra": peft.HRAConfig(**CLASSIFIER, target_modules=["c_attn"]),
    "loha": peft.LoHaConfig(**CLASSIFIER, target_modules=["c_attn"]),
    "lokr": peft.LoKrConfig(**CLASSIFIER, target_modules=["c_attn"]),
    "miss": peft.MissConfig(**CLASSIFIER, target_modules=["c_attn"]),
}


@pytest.mark.parametrize("name", CANNOT_RUN)
def test_the_refused_methods_cannot_run(name, model, batch):
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"(?i)conv1d|Linear|mat1 and mat2"):
        get_peft_model(model, CANNOT_RUN[name])(**batch)


def test_every_refusal_is_shown():
    assert set().union(*REFUSED) == {*PROMPTS, *UNTRAINED_HEAD, *CANNOT_RUN, "osf", "adalora"}


def test_the_plan_has_several_seeds_for_some_methods(args):
    plan = plan_comparison(args.replace(comparison_methods=["full", "dora"], comparison_seeds=2, seed=5))
    assert plan == [("full", 5), ("dora", 5), ("dora", 6)]
    everything = plan_comparison(args.replace(comparison_methods=["all"], comparison_seeds=3))
    assert len(everything) == len(METHODS) + 2 * len(REPEATED)
    assert plan_comparison(args.replace(comparison_methods=["none"])) == []


@pytest.mark.reliability("bad input")
def test_a_plan_with_an_unknown_method_is_refused_before_anything_runs(args):
    with pytest.raises(ValueError, match="Unknown method 'lora'"):
        plan_comparison(args.replace(comparison_methods=["ia3", "lora"]))


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("names", [["all", "ia3"], ["none", "full"]])
def test_all_and_none_stand_alone(args, names):
    with pytest.raises(ValueError, match=r"Unknown method '(all|none)'; .* or all or none alone"):
        plan_comparison(args.replace(comparison_methods=names))


def test_a_method_named_twice_is_run_once(args):
    assert plan_comparison(args.replace(comparison_methods=["full", "full"])) == [("full", args.training.seed)]


@pytest.mark.reliability("bad input")
def test_a_results_file_that_is_something_else_is_refused_before_anything_runs(args, tmp_path):
    (tmp_path / "notes.jsonl").write_text("my notes")
    with pytest.raises(ValueError, match="expected a file with a result of the comparison in each line"):
        plan_comparison(args.replace(comparison_file=str(tmp_path / "notes.jsonl")))
