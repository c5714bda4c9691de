"""A broken or foreign adapter is refused with the reason, and nothing in it is run or unpickled."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import LABELS
from peft import AutoPeftModelForSequenceClassification, IA3Config, LoraConfig, get_peft_model
from transformers import AutoConfig, AutoTokenizer, BertConfig, GPT2Config, GPT2LMHeadModel

from peft_helpers import check_adapter, reload_arguments

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter(peft_model, tokenizer, args) -> Path:
    peft_model.save_pretrained(args.training.output_dir)
    peft_model.config.save_pretrained(args.training.output_dir)
    tokenizer.save_pretrained(args.training.output_dir)
    return Path(args.training.output_dir)


@pytest.fixture
def check(args):
    return lambda labels=LABELS: check_adapter(args.training.output_dir, args.model.model_name_or_path, labels)


def change(path: Path, **entries) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def load(folder: Path):
    """The notebook's cell "Loading the saved adapter"."""
    AutoTokenizer.from_pretrained(folder)
    return AutoPeftModelForSequenceClassification.from_pretrained(folder, **reload_arguments(folder))


def test_an_adapter_just_saved_passes(adapter, check):
    check()


@pytest.mark.parametrize(
    "peft_config",
    [
        LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True, use_dora=True),
        LoraConfig(task_type="SEQ_CLS", fan_in_fan_out=True, init_lora_weights="pissa", target_modules=["c_proj"]),
        IA3Config(task_type="SEQ_CLS", fan_in_fan_out=True),
    ],
    ids=["dora", "pissa", "ia3"],
)
def test_adapters_of_other_methods_pass(model, tokenizer, args, check, peft_config):
    for part in (get_peft_model(model, peft_config), model.config, tokenizer):
        part.save_pretrained(args.training.output_dir)
    check()


@pytest.mark.reliability("bad input")
def test_a_missing_folder(check, args):
    with pytest.raises(FileNotFoundError, match=rf"{args.training.output_dir} lacks .*; found nothing"):
        check()


@pytest.mark.reliability("bad input")
def test_a_file_in_place_of_the_folder(check, args):
    Path(args.training.output_dir).touch()
    with pytest.raises(FileNotFoundError, match="found nothing"):
        check()


@pytest.mark.reliability("fault")
@pytest.mark.parametrize(
    "name", ["adapter_config.json", WEIGHTS, "config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_a_missing_file(adapter, check, name):
    (adapter / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks {re.escape(name)}; found .*Copy the whole folder again"):
        check()


@pytest.mark.reliability("fault")
@pytest.mark.parametrize("name", ["adapter_config.json", "config.json", "tokenizer_config.json"])
def test_half_a_json_file(adapter, check, name):
    (adapter / name).write_bytes((adapter / name).read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is no JSON object \(.*line \d+.*; copy the folder"):
        check()


@pytest.mark.reliability("bad input")
def test_json_that_is_no_object(adapter, check):
    (adapter / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json is no JSON object"):
        check()


@pytest.mark.reliability("fault")
def test_half_a_tokenizer(adapter, check):
    (adapter / "tokenizer.json").write_bytes((adapter / "tokenizer.json").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"the tokenizer in .* cannot be read .*copy the folder again"):
        check()


@pytest.mark.reliability("fault")
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: whole[:100], id="broken off in the header"),
        pytest.param(lambda whole: whole[:-1], id="one byte short"),
        pytest.param(lambda whole: whole + b"\0", id="one byte long"),
        pytest.param(lambda whole: bytes(len(whole)), id="zeros"),
        pytest.param(lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", id="LFS pointer"),
    ],
)
def test_weights_that_are_not_whole(adapter, check, broken):
    (adapter / WEIGHTS).write_bytes(broken((adapter / WEIGHTS).read_bytes()))
    with pytest.raises(ValueError, match=r"is no complete safetensors file \(.*; copy the"):
        check()


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("found", ["gpt2", "../../evil", "/srv/evil", "", None])
def test_another_base_model(adapter, check, args, found):
    change(adapter / "adapter_config.json", base_model_name_or_path=found)
    expected = f"names the base model {str(found)!r}, expected {args.model.model_name_or_path!r}: it was trained for"
    with pytest.raises(ValueError, match=re.escape(expected)):
        check()


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("labels", [["negative", "neutral", "positive"], ["positive", "negative"], ["bad", "good"]])
def test_other_labels(adapter, check, labels):
    expected = f"has the labels {LABELS}, expected {labels}: it was trained for another model, task or dataset"
    with pytest.raises(ValueError, match=re.escape(expected)):
        check(labels)


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("id2label", [["negative", "positive"], {"zero": "negative"}])
def test_label_names_that_are_not_numbered(adapter, check, id2label):
    change(adapter / "config.json", id2label=id2label)
    with pytest.raises(ValueError, match="cannot be read"):
        check(None)


def test_without_a_data_set_the_folders_own_labels_do(adapter, check):
    change(adapter / "config.json", id2label={"0": "bad", "1": "good"})
    check(None)


@pytest.mark.reliability("fault")
def test_without_a_data_set_the_weights_have_to_fit_the_folders_labels(adapter, check):
    change(adapter / "config.json", id2label={"0": "bad", "1": "fair", "2": "good"})
    with pytest.raises(ValueError, match=r"score.* of shape \[2, 16\], expected \[3, 16\]"):
        check(None)


@pytest.mark.reliability("bad input")
def test_label_names_that_were_never_set(adapter, check):
    config = json.loads((adapter / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (adapter / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has the labels \['LABEL_0', 'LABEL_1'\]"):
        check()


@pytest.mark.reliability("bad input")
def test_another_architecture(adapter, check):
    BertConfig(id2label=dict(enumerate(LABELS))).save_pretrained(adapter)
    with pytest.raises(ValueError, match=r"has bert.* of shape \[\d+\], expected 'missing'"):
        check()


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("peft_type", ["LORA2030", None, ["LORA"]])
def test_a_peft_type_that_is_not_known(adapter, check, peft_type):
    change(adapter / "adapter_config.json", peft_type=peft_type)
    with pytest.raises(ValueError, match=r"cannot be put on the base model"):
        check()


@pytest.mark.reliability("bad input")
def test_an_adapter_that_is_no_classifier(adapter, check):
    change(adapter / "adapter_config.json", task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="task_type 'CAUSAL_LM', expected 'SEQ_CLS'"):
        check()


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("size", "difference"),
    [
        ({"n_embd": 8}, "of shape [2, 16], expected [2, 8]"),
        ({"n_layer": 1}, "of shape [8, 16], expected 'missing'"),
        ({"n_layer": 3}, "of shape 'missing', expected [48]"),
    ],
    ids=["width", "fewer layers", "more layers"],
)
def test_a_base_model_of_another_shape(adapter, args, size, difference):
    shape = GPT2Config.from_pretrained(args.model.model_name_or_path)
    shape.update(size)
    base = adapter.parent / "other_base"
    GPT2LMHeadModel(shape).save_pretrained(base)
    change(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    with pytest.raises(ValueError, match=re.escape(difference)):
        check_adapter(adapter, str(base), LABELS)


@pytest.mark.reliability("bad input")
def test_weights_of_another_number_of_labels(adapter, check):
    labels = [f"label {number}" for number in range(12)]
    numbered = {str(number): name for number, name in enumerate(labels)}
    change(adapter / "config.json", id2label=dict(sorted(numbered.items())))  # as text, 10 comes before 2
    with pytest.raises(ValueError, match=r"score\.weight of shape \[2, 16\], expected \[12, 16\]"):
        check(labels)


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("entry", [{"r": 4}, {"use_dora": True}])
def test_weights_that_are_not_those_of_the_config(adapter, check, entry):
    change(adapter / "adapter_config.json", **entry)
    with pytest.raises(ValueError, match=r"lora_.* of shape .*, expected \["):
        check()


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("entry", [{"target_modules": ["q_proj"]}, {"r": "eight"}, {"r": -1}])
def test_an_adapter_that_cannot_be_put_on_the_base(adapter, check, entry):
    change(adapter / "adapter_config.json", **entry)
    with pytest.raises(ValueError, match=r"cannot be put on the base model \("):
        check()


@pytest.mark.reliability("bad input")
def test_a_tokenizer_larger_than_the_base(adapter, tokenizer, check):
    tokenizer.add_tokens([f"new{number}" for number in range(300)])
    tokenizer.save_pretrained(adapter)
    with pytest.raises(ValueError, match=r"tokenizer .* has \d+ entries, but the base model \d+ embeddings"):
        check()


# What follows is about adapters that someone made to do harm.


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """A file that the planted code would make; modules are also looked for beside the adapter, as in a notebook."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "marker"


class Touch:
    """Pickles to a call that makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def pickled(adapter, marker) -> list[str]:
    names = ["adapter_model.bin", "pytorch_model.bin", "model.bin", "training_args.bin", "optimizer.pt"]
    for name in names:
        torch.save(Touch(marker), adapter / name)
    return names


def test_the_planted_pickle_works_where_pickles_are_opened(adapter, pickled, marker):
    torch.load(adapter / pickled[0], weights_only=False)  # else the tests below could not fail
    assert marker.exists()


@pytest.mark.reliability("bad input")
def test_pickled_weights_are_refused_by_name(adapter, check, pickled, marker, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: marker.touch())
    (adapter / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.bin.*Pickled weights can run any code .*not loaded"):
        check()
    assert not marker.exists()


def test_pickles_beside_the_weights_are_not_opened(adapter, check, pickled, marker, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: marker.touch())
    check()
    load(adapter)
    assert not marker.exists()


def plant_module(folder: Path, marker: Path) -> None:
    (folder / "planted.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nPlanted = None\n")


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("name", "auto_map"),
    [
        ("config.json", {"AutoConfig": "planted.Planted", "AutoModelForSequenceClassification": "planted.Planted"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}),
    ],
)
def test_code_of_its_own_is_not_run(adapter, check, marker, name, auto_map):
    plant_module(adapter, marker)
    change(adapter / name, auto_map=auto_map)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} has auto_map .*planted.*, by which loading could"):
        check()
    for kind in (AutoConfig, AutoTokenizer):  # transformers, too, takes its own classes unless it is told otherwise
        kind.from_pretrained(adapter)
    assert not marker.exists()


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("field", "entries"),
    [
        ("auto_mapping", {"auto_mapping": {"base_model_class": "Planted", "parent_library": "adapter.planted"}}),
        ("megatron_config", {"megatron_config": {"a": 1}, "megatron_core": "adapter.planted"}),
        ("revision", {"revision": "refs/pr/1"}),
        ("adapters", {"peft_type": "XLORA", "adapters": {"0": "../../evil"}}),
        ("shadow_model", {"peft_type": "SHADOW", "shadow_model": "../../evil"}),
        ("tokenizer_name_or_path", {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "../../evil"}),
        ("prompt_tuning_init_state_dict_path",
         {"peft_type": "MULTITASK_PROMPT_TUNING", "prompt_tuning_init_state_dict_path": "../../evil.bin"}),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere(adapter, check, marker, field, entries):
    plant_module(adapter, marker)
    change(adapter / "adapter_config.json", **entries)
    with pytest.raises(ValueError, match=rf"{field} .*, by which loading could read or run what lies elsewhere"):
        check()
    assert not marker.exists()


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_of_others_are_not_fetched(adapter, check, name):
    change(adapter / "config.json", **{name: "evil/kernel"})
    with pytest.raises(ValueError, match=rf"config\.json has {name} 'evil/kernel', by which"):
        check()


def test_options_of_loading_are_not_taken_from_the_folder(adapter):
    change(adapter / "config.json", trust_remote_code=True, use_safetensors=False, device_map="auto", subfolder="..")
    arguments = reload_arguments(adapter)
    assert arguments["use_safetensors"]
    assert not {"trust_remote_code", "device_map", "subfolder"} & arguments.keys()
    assert arguments["id2label"] == dict(enumerate(LABELS))


@pytest.mark.reliability("bad input")
def test_a_tokenizer_file_elsewhere(adapter, check):
    shutil.copy(adapter / "tokenizer.json", adapter.parent / "tokenizer.4.0.json")
    change(adapter / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.json"])
    with pytest.raises(ValueError, match=r"has fast_tokenizer_files .*, by which"):
        check()


def test_a_vocabulary_elsewhere_is_not_read(adapter, check):
    change(adapter / "tokenizer_config.json", vocab_file="/no/such/vocab.json", merges_file="/no/such/merges.txt")
    check()
    AutoTokenizer.from_pretrained(adapter)


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize("what", [WEIGHTS, "notes.txt", "sub"])
def test_links_that_lead_outside(adapter, check, tmp_path, what):
    outside = tmp_path / "outside"
    if (adapter / what).exists():
        (adapter / what).rename(outside)
    elif what == "sub":
        outside.mkdir()
    (adapter / what).symlink_to(outside)
    with pytest.raises(ValueError, match=rf"{re.escape(what)} links to outside the folder; replace the link by a copy"):
        check()


def test_links_within_the_folder_pass(adapter, check):
    (adapter / WEIGHTS).rename(adapter / "weights")
    (adapter / WEIGHTS).symlink_to("weights")
    check()
