import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    DebertaV2Config,
    DistilBertConfig,
    LlamaConfig,
    set_seed,
)

from peft_helpers import (
    check_model,
    classifier_arguments,
    head_modules,
    load_base_model,
    saved_classifier_arguments,
    set_padding,
    speed_up,
    turn_off_dropout,
    uses_conv1d,
)


def test_loading_is_seeded_and_keeps_label_names(args, tokenizer):
    torch.manual_seed(99)
    first = load_base_model(args, ["no", "yes", "maybe"], tokenizer)
    second = load_base_model(args, ["no", "yes", "maybe"], tokenizer)
    other = load_base_model(args.replace(seed=7), ["no", "yes", "maybe"], tokenizer)
    assert torch.equal(first.score.weight, second.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert first.config.id2label == {0: "no", 1: "yes", 2: "maybe"}
    assert first.config.pad_token_id == tokenizer.pad_token_id == tokenizer.eos_token_id


def test_the_notebooks_cells_make_the_same_model(args, tokenizer, model):
    set_seed(args.training.seed)
    arguments = classifier_arguments(["negative", "positive"])
    by_hand = AutoModelForSequenceClassification.from_pretrained(args.model.model_name_or_path, **arguments)
    set_padding(tokenizer, by_hand)
    turn_off_dropout(by_hand)
    speed_up(by_hand)
    assert by_hand.config.to_dict() == model.config.to_dict()
    assert all(torch.equal(a, b) for a, b in zip(by_hand.parameters(), model.parameters(), strict=True))


def test_label_names_travel_with_the_folder(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    assert saved_classifier_arguments(tmp_path) == classifier_arguments(["negative", "positive"])


def test_only_loras_dropout_is_left(model):
    turn_off_dropout(model)
    lora = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True, lora_dropout=0.3))
    rates = {name: module.p for name, module in lora.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert set(rates.values()) == {0.0, 0.3}
    assert all(("lora_dropout" in name) == (rate == 0.3) for name, rate in rates.items())


def test_conv1d_is_told_from_linear(model):
    assert uses_conv1d(model)
    assert not uses_conv1d(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_a_good_model_passes(args):
    check_model(args)


@pytest.mark.reliability("bad input")
def test_a_folder_without_weights_lists_what_it_holds(args, tmp_path):
    shutil.copy(Path(args.model.model_name_or_path) / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json and model\*\.safetensors .*found args\.json"):
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
