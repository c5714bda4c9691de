"""The whole way to the Hub and back: trained and sent, then evaluated by its id."""

import json
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest
from conftest import BAD, GOOD, use_hub

from peft_helpers import create_repository, pipeline, plan_language_modeling, prepare_splits, run, upload_adapter
from peft_helpers.analysis.upload import HUB_FILES
from peft_helpers.app.command_line import main

PUSH = {"push_to_hub": True, "hub_model_id": "films", "hub_private_repo": True, "hub_token": "hf_reader"}


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    monkeypatch.setattr("peft_helpers.analysis.upload.get_token", lambda: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_run_is_sent_once_and_can_be_evaluated_by_its_id(hub_server, hub_root, args, raw, tmp_path, capsys):
    pytest.importorskip("cleanlab")
    args, created = args.replace(num_train_epochs=1, max_train_samples=12, **PUSH), []

    def create(handler):
        created.append(json.loads(handler.body))
        handler.answer()

    hub_server.faults["/api/repos/create"] = create
    folder = Path(args.training.output_dir)
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "mine.json").write_text("{}")  # is not sent
    run(prepare_splits(raw, args), args)
    upload_adapter(args)
    assert "The adapter is on the Hub: http://127.0.0.1" in capsys.readouterr().out
    assert all(row.get("private") or row.get("visibility") == "private" for row in created)
    assert len([line for line in hub_server.requests if "/commit/" in line]) == 1  # no checkpoints
    sent = hub_root / "models" / "reader" / "films"
    assert {path.relative_to(sent).as_posix() for path in sent.rglob("*")} == set(HUB_FILES)
    for path in sent.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
        assert b"hf_reader" not in path.read_bytes()

    rows = pd.DataFrame({"text": GOOD + BAD, "label": ["positive"] * len(GOOD) + ["negative"] * len(BAD)})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    (sent / "pytorch_model.bin").write_text("never fetched")
    outputs = []
    for adapter in (str(folder), "reader/films"):
        assert main(["evaluate", adapter, str(tmp_path / "rows.csv"), "--suspicious", "2"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()[-3:]) == 3
    assert "flagged" in outputs[0].splitlines()[-3]
    assert not list((tmp_path / "cache").rglob("pytorch_model.bin"))


def test_the_language_model_goes_to_a_repository_of_its_own(args):
    args = args.replace(block_size=16)
    assert plan_language_modeling(args.replace(**PUSH))[0].training.hub_model_id == "films_language_model"
    assert plan_language_modeling(args)[0].training.hub_model_id is None


def test_nothing_is_sent_without_being_asked(hub_server, args):
    assert create_repository(args.replace(hub_model_id="films", hub_token="hf_reader")) is None
    upload_adapter(args)
    assert hub_server.requests == []


@pytest.mark.reliability("bad input")
def test_without_a_token_nothing_is_loaded(args, raw, monkeypatch):
    monkeypatch.setattr(pipeline, "load_model", lambda *_: pytest.fail("loaded the model"))
    args = args.replace(**PUSH | {"hub_token": None})
    with pytest.raises(ValueError, match="push_to_hub needs a token that may write: `hf auth login`, HF_TOKEN, or"):
        run(prepare_splits(raw, args), args)


@pytest.mark.reliability("fault")
def test_a_hub_that_refuses_is_an_error_before_training(hub_server, args, monkeypatch):
    hub_server.faults["/api/repos/create"] = lambda handler: handler.refuse(403)
    with pytest.raises(ConnectionError, match=r"push_to_hub cannot write to 'films' on the Hub: .*403"):
        create_repository(args.replace(**PUSH))
    use_hub("http://127.0.0.1:1", monkeypatch)
    with pytest.raises(ConnectionError, match=r"push_to_hub cannot write to 'films' on the Hub: .*refused"):
        create_repository(args.replace(**PUSH))


@pytest.mark.reliability("bad input")
def test_an_id_that_the_hub_does_not_have_is_named(hub_server, capsys):
    assert main(["predict", "adapters/lora", "good"]) == 1
    error = capsys.readouterr().err
    assert "there is no folder 'adapters/lora', nor can it be downloaded from the Hub: " in error
    assert "404" in error
    assert main(["predict", "openai-community/gpt2", "good"]) == 1  # a model, but no adapter
    assert "Expected the options of a run in" in capsys.readouterr().err
