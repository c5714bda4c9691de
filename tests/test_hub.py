import time

import datasets
import huggingface_hub
import pytest

from peft_helpers import hub

NAMES = {"model_name_or_path": "gpt2", "dataset_name": "stanfordnlp/sst2"}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *names: None)
    return tmp_path


@pytest.mark.reliability("fault")
def test_without_network_nothing_is_available_and_the_reason_is_given():
    available, reason = hub.explain_availability(**NAMES)
    assert not available
    assert "the local Hugging Face cache lacks gpt2 and stanfordnlp/sst2" in reason
    assert "OfflineModeIsEnabled" in reason


@pytest.mark.reliability("fault")
def test_a_hub_that_never_answers_costs_only_the_timeout(monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: time.sleep(5))
    start = time.monotonic()
    available, reason = hub.explain_availability(**NAMES)
    assert not available
    assert "no answer within" in reason
    assert time.monotonic() - start < 2


def test_a_hub_that_serves_both_is_enough(monkeypatch):
    for name in ("model_info", "dataset_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda *args, **kwargs: None)
    assert hub.explain_availability(**NAMES) == (True, "the Hugging Face Hub serves gpt2 and stanfordnlp/sst2")


def test_the_cache_is_enough_only_with_model_and_data(monkeypatch, empty_cache):
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *names: "model.safetensors")
    assert not hub.explain_availability(**NAMES)[0]
    folder = empty_cache / "stanfordnlp___sst2" / "default"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    available, reason = hub.explain_availability(**NAMES)
    assert available
    assert reason == "the local Hugging Face cache holds gpt2 and stanfordnlp/sst2"


def test_only_what_is_named_is_asked_for(monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: None)
    assert hub.explain_availability(model_name_or_path="gpt2") == (True, "the Hugging Face Hub serves gpt2")
    assert not hub.explain_availability(dataset_name="stanfordnlp/sst2")[0]


def test_weights_without_a_tokenizer_are_not_enough(monkeypatch):
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda _, file: file if file == "model.safetensors" else None)
    assert not hub.explain_availability(model_name_or_path="gpt2")[0]
