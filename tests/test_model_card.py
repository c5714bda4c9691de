"""The model card, and that the folder stands alone: it is loaded where this package cannot be imported."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import EvalPrediction

import peft_helpers as helpers
from peft_helpers import save_run_config
from peft_helpers.adapters import replace_folder
from peft_helpers.model_card import save_model_card

TEXTS = ["a fine film", "bad", "what a sad, cold and tired story", ""]
TRUE = np.array([0, 1, 1, 0, 1])
UNTUNED = EvalPrediction(predictions=np.eye(2)[[0, 0, 0, 0, 1]], label_ids=TRUE)
TUNED = EvalPrediction(predictions=np.eye(2)[[0, 1, 1, 1, 1]], label_ids=TRUE)


@pytest.fixture
def save(peft_model, tmp_path):
    def save_and_read(args) -> ModelCard:
        save_model_card(peft_model, args, UNTUNED, TUNED, tmp_path)
        return ModelCard.load(tmp_path / "README.md")

    return save_and_read


def test_the_scores_are_in_the_text_and_in_the_metadata(save, args):
    card = save(args)
    assert "the same 5 test rows" in card.text
    assert "| accuracy | 0.600 | 0.800 |" in card.text
    assert "| F1 (macro) | 0.583 | 0.762 |" in card.text
    results = card.data.eval_results
    assert {(result.metric_type, result.metric_value) for result in results} == {("accuracy", 0.8), ("f1", 0.7619)}
    assert {(result.task_type, result.dataset_split) for result in results} == {("text-classification", "test")}


def test_the_method_the_labels_and_the_limits_are_in_the_text(save, args, peft_model):
    card = save(args.replace(max_length=17))
    trained, total = peft_model.get_nb_trainable_parameters()
    for part in (
        "`negative`, `positive`.",
        f"{trained:,} of {total:,}",
        "| PEFT type | LORA |",
        "| rank | 8 |",
        "transformer.h.0.attn.c_attn, transformer.h.0.attn.c_proj",
        "cut at 17 tokens",
        "Made with torch 2.",
    ):
        assert part in card.text  # fmt: skip


def test_ids_on_the_hub_are_in_the_metadata(save, args):
    card = save(args.replace(model_name_or_path="gpt2", dataset_name="stanfordnlp/sst2"))
    data = card.data.to_dict()
    assert data["base_model"] == "gpt2"
    assert data["datasets"] == "stanfordnlp/sst2"
    assert (data["library_name"], data["pipeline_tag"], data["tags"]) == ("peft", "text-classification", ["lora"])
    assert "# gpt2, fine-tuned on stanfordnlp/sst2\n" in card.text


@pytest.mark.parametrize("dataset_name", ["bbc-news", "./some/reviews.csv"])
def test_local_names_are_no_ids_and_show_no_path(save, args, tmp_path, dataset_name):
    card = save(args.replace(dataset_name=dataset_name))
    assert not {"base_model", "datasets"} & card.data.to_dict().keys()
    assert f"`{Path(args.model.model_name_or_path).name}`, a local folder" in card.text
    assert not re.search(r"/tmp|some/|" + re.escape(str(tmp_path)), str(card))
    assert ("non-commercial" in card.text) == (dataset_name == "bbc-news")


def test_the_embedded_model_is_named_by_its_place_in_the_project(save, args):
    card = save(args.replace(model_name_or_path=helpers.TINY_GPT2))
    assert "base_model = 'peft_helpers/tiny_gpt2'  # path of the base model's folder" in card.text
    card = save(args.replace(model_name_or_path="gpt2"))
    assert "base_model = 'gpt2'  # id of the base model on the Hub" in card.text


def test_scores_on_other_rows_are_not_compared(peft_model, args, tmp_path):
    other = EvalPrediction(predictions=TUNED.predictions, label_ids=1 - TRUE)
    with pytest.raises(ValueError, match="same rows in the same order"):
        save_model_card(peft_model, args, UNTUNED, other, tmp_path)
    assert not (tmp_path / "README.md").exists()


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
code = re.sub("(?m)^folder = '.*'  # path of this folder$", f"folder = {folder!r}", code)
Path("snippet.py").write_text(re.sub("(?m)^base_model = '.*'  # path .*$", f"base_model = {base!r}", code))
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


@pytest.fixture
def saved(peft_model, tokenizer, args) -> Path:
    with replace_folder(args.training.output_dir) as folder:
        peft_model.save_pretrained(folder)
        peft_model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_run_config(args, folder)
        save_model_card(peft_model, args, UNTUNED, TUNED, folder)
    return Path(args.training.output_dir)


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


def test_the_card_of_a_language_model_has_its_perplexities_and_code_that_runs(args, tokenizer, monkeypatch, capsys):
    args = args.replace(dataset_config_name="sports", dataset_name=helpers.BBC_NEWS)
    model = helpers.inject_lora(helpers.load_language_model(args, tokenizer), args)
    scores = [{"perplexity": value, "predicted_tokens": 4321} for value in (90.126, 80.004)]
    helpers.save_language_model(model, tokenizer, args, *scores)
    card = ModelCard.load(Path(args.training.output_dir, "README.md"))
    assert card.data.pipeline_tag == "text-generation"
    for part in ("`bbc-news` sports: BBC News, for research", "model | 90.13 |", "adapter | 80.00 |", "4,321 tokens"):
        assert part in card.text
    assert str(Path(args.training.output_dir).parent) not in card.text
    monkeypatch.chdir(Path(args.training.output_dir).parent)
    Path(Path(args.model.model_name_or_path).name).symlink_to(args.model.model_name_or_path)
    exec(card.text.split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.startswith("The match")
