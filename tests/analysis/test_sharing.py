"""The model card, that the folder stands alone where this package cannot be imported, and the way to the Hub."""

import json
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BAD, GOOD, use_hub
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.trainer_utils import PredictionOutput

import peft_helpers as helpers
from peft_helpers import create_repository, pipeline, plan_language_modeling, prepare_splits, run, upload_adapter
from peft_helpers.analysis.sharing import HUB_FILES
from peft_helpers.app.command_line import main

TEXTS = ["a fine film", "bad", "what a sad, cold and tired story", ""]
UNTUNED = {"test_accuracy": 0.6, "test_f1": 0.58333, "test_loss": 0.7, "test_examples": 1234}
TUNED = {"test_accuracy": 0.8, "test_f1": 0.76190, "test_loss": 0.3, "test_examples": 1234}


@pytest.fixture
def make(peft_model, tmp_path):
    def make(args) -> ModelCard:
        peft_model.save_pretrained(tmp_path)
        helpers.describe_adapter(peft_model, args, tmp_path)
        helpers.save_model_card(peft_model, args, output(UNTUNED), output(TUNED), tmp_path)
        return ModelCard.load(tmp_path / "README.md")

    return make


def test_the_scores_are_in_the_text_and_in_the_metadata(make, args):
    card = make(args)
    assert "the same 1,234 test examples" in card.text
    assert "| accuracy | 0.600 | 0.800 |\n| F1 (macro) | 0.583 | 0.762 |\n" in card.text
    results = card.data.eval_results
    assert {(result.metric_type, result.metric_value) for result in results} == {("accuracy", 0.8), ("f1", 0.7619)}
    assert {(result.task_type, result.dataset_split) for result in results} == {("text-classification", "test")}


def test_the_method_the_labels_and_the_limits_are_in_the_text(make, args, peft_model):
    card = make(args.replace(max_length=17))
    trained, total = peft_model.get_nb_trainable_parameters()
    for part in (
        "in the order of their numbers: `negative`, `positive`.",
        f"| {trained:,} of {total:,} |",
        "| PEFT type | LORA |\n| rank | 8 |\n",
        "transformer.h.0.attn.c_attn, transformer.h.0.attn.c_proj",
        "It knows 2 labels",
        "truncated at 17 tokens",
        "Made with torch 2.",
    ):
        assert part in card.text  # fmt: skip


def test_what_is_read_of_a_text_is_told_and_pairs_are_shown(make, args):
    text = make(args.replace(max_length=17, average_chunks=True)).text
    assert "* The test averages the probabilities of a text's chunks of 17 tokens.\n" in text
    assert "the second text" not in text
    shown = 'print(model(**tokenizer("the first text", "the second text", return_tensors="pt")).logits.softmax(-1))\n'
    assert shown in make(args.replace(text_pair_column="answer")).text


def test_ids_on_the_hub_are_in_the_metadata(make, args):
    card = make(args.replace(model_name_or_path="gpt2", dataset_name="stanfordnlp/sst2"))
    data = card.data.to_dict()
    assert data["base_model"] == "gpt2"
    assert data["datasets"] == "stanfordnlp/sst2"
    assert (data["library_name"], data["pipeline_tag"], data["tags"]) == ("peft", "text-classification", ["lora"])
    assert "# gpt2, fine-tuned on stanfordnlp/sst2\n" in card.text


@pytest.mark.parametrize("dataset_name", ["bbc-news", "./some/reviews.csv"])
def test_local_names_are_no_ids_and_show_no_path(make, args, tmp_path, dataset_name):
    card = make(args.replace(dataset_name=dataset_name))
    assert not {"base_model", "datasets"} & card.data.to_dict().keys()
    assert f"`{Path(args.model.model_name_or_path).name}`, a local folder" in card.text
    assert not re.search(r"/tmp|some/|" + re.escape(str(tmp_path)), str(card))
    assert ("non-commercial" in card.text) == (dataset_name == "bbc-news")


def test_the_embedded_model_is_named_by_its_place_in_the_project(make, args):
    card = make(args.replace(model_name_or_path=helpers.tiny_gpt2.TINY_GPT2))
    assert 'base_model = "peft_helpers/tiny_gpt2"  # path of the base model\'s folder' in card.text
    card = make(args.replace(model_name_or_path="gpt2"))
    assert 'base_model = "gpt2"  # id of the base model on the Hub' in card.text


# Run by an isolated interpreter on the folder, the base model and the texts; prints what each way of loading gives.
LOAD = """
import json, re, runpy, sys
from pathlib import Path
try:
    import peft_helpers
except ImportError:
    pass
else:
    sys.exit("peft_helpers can be imported: the test would show nothing")
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, pipeline

folder, base, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
code = Path(folder, "README.md").read_text().split("```python")[1].split("```")[0]
code = re.sub("(?m)^folder = .*  # path of this folder$", f"folder = {folder!r}", code)
Path("snippet.py").write_text(re.sub("(?m)^base_model = .*  # path .*$", f"base_model = {base!r}", code))
card = runpy.run_path("snippet.py")
tokenizer, args = card["tokenizer"], card["config"]
fresh = AutoModelForSequenceClassification.from_pretrained(base, num_labels=args.num_labels)

def logits(model):
    with torch.inference_mode():
        rows = [model.eval()(**tokenizer(text or tokenizer.eos_token, return_tensors="pt")).logits[0] for text in texts]
    return torch.stack(rows).tolist()

result = {"card": logits(card["model"]), "labels": card["model"].config.id2label}
result["PeftModel"] = logits(PeftModel.from_pretrained(fresh, folder))
padded = tokenizer(texts[:3], padding=True, return_tensors="pt")
with torch.inference_mode():
    result["batch"] = card["model"](**padded).logits.tolist()
merged = card["model"].merge_and_unload()
result["merged"] = logits(merged)
classify = pipeline("text-classification", model=merged, tokenizer=tokenizer, top_k=None, function_to_apply="none")
result["pipeline"] = classify(texts[:3])
print(json.dumps(result))
"""


def output(metrics: dict) -> PredictionOutput:
    return PredictionOutput(None, None, metrics)


@pytest.fixture
def saved(peft_model, tokenizer, args) -> Path:
    with helpers.replace_folder(args.training.output_dir) as folder:
        peft_model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        helpers.describe_adapter(peft_model, args, folder)
        helpers.save_model_card(peft_model, args, output(UNTUNED), output(TUNED), folder)
    return Path(args.training.output_dir)


@pytest.mark.slow
def test_the_folder_stands_alone_and_is_loaded_from_anywhere(saved, peft_model, tokenizer, args, tmp_path_factory):
    command = [sys.executable, "-I", "-c", LOAD, saved, args.model.model_name_or_path, json.dumps(TEXTS)]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    process = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    with torch.inference_mode():
        here = [
            peft_model.eval()(**tokenizer(text or tokenizer.eos_token, return_tensors="pt")).logits[0].tolist()
            for text in TEXTS
        ]
    assert result["labels"] == {"0": "negative", "1": "positive"}
    assert result["card"] == result["PeftModel"]  # to the last bit
    # On the fast path, merged, and in a padded batch the same sums are taken in another order.
    np.testing.assert_allclose(result["PeftModel"], here, atol=1e-6)
    np.testing.assert_allclose(result["merged"], here, atol=1e-5)
    np.testing.assert_allclose(result["batch"], here[:3], atol=1e-5)
    piped = [{entry["label"]: entry["score"] for entry in row} for row in result["pipeline"]]
    np.testing.assert_allclose([[row["negative"], row["positive"]] for row in piped], here[:3], atol=1e-5)
    assert len({tuple(row) for row in here}) == len(TEXTS)


def test_the_card_of_a_language_model_has_its_scores_and_code_that_runs(args, tokenizer, monkeypatch, capsys):
    tokenizer.pad_token = tokenizer.eos_token
    args = args.replace(dataset_name=helpers.BBC_NEWS)
    name, folder = args.model.model_name_or_path, Path(args.training.output_dir)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(name), LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    scores = [output({"test_perplexity": value, "test_examples": 43}) for value in (90.1263, 80.0041)]
    helpers.describe_adapter(model, args, folder)
    helpers.save_model_card(model, args, *scores, folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "text-generation"
    for part in ("`bbc-news`: BBC News, for research", "| perplexity | 90.126 | 80.004 |", "the same 43 test examples"):
        assert part in card.text
    assert "labels" not in card.text
    assert str(folder.parent) not in card.text
    monkeypatch.chdir(folder.parent)
    Path(Path(name).name).symlink_to(name)
    exec(card.text.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.startswith("The match")


# The whole way to the Hub and back: trained and sent, then evaluated by its id.

PUSH = {"push_to_hub": True, "hub_model_id": "films", "hub_private_repo": True, "hub_token": "hf_reader"}


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    monkeypatch.setattr("peft_helpers.analysis.sharing.get_token", lambda: None)
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
