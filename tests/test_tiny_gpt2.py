"""The tiny GPT-2 that ships, and the script that made it."""

import gzip
import os
import runpy
import sys
from pathlib import Path

import pretrain_tiny_gpt2 as pretrain
import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from peft_helpers import tiny_gpt2
from peft_helpers.sources import bbc_news
from peft_helpers.tiny_gpt2 import TINY_GPT2, find_model


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_GPT2)


def test_it_is_a_small_gpt2_in_safetensors():
    folder = Path(TINY_GPT2)
    args = AutoConfig.from_pretrained(folder)
    assert (args.model_type, args.activation_function) == ("gpt2", "gelu_new")
    assert (folder / "model.safetensors").stat().st_size < 10_000_000
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    assert (folder / "README.md").is_file()


@pytest.mark.parametrize("text", ["Shares rose £5m.", "naïve 漢字 🙂\n\ttabs", "  spaces  ", "\0"])
def test_its_tokenizer_loses_nothing(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_it_has_learnt_english(tokenizer):
    model = AutoModelForCausalLM.from_pretrained(TINY_GPT2).eval()

    def loss(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        return model(input_ids=ids, labels=ids).loss.item()

    sentence = "The company said that profits rose in the first half of the year."
    assert loss(sentence) < 6 < loss(" ".join(reversed(sentence.split())))


@pytest.mark.slow
def test_the_script_makes_a_model_and_reads_no_test_article(tmp_path, monkeypatch, capsys):
    texts = tmp_path / "texts"
    texts.mkdir()
    with gzip.open(texts / "a.txt.gz", "wt") as file:
        file.write("A first document. " * 500 + "\n<|endoftext|>\n" + "A second one, about tea. " * 500)
    splits = bbc_news.load_bbc_news()
    small = {name: rows.select(range(20)) for name, rows in splits.items() if name != "test"}
    monkeypatch.setattr(pretrain, "load_bbc_news", lambda: small)
    out = tmp_path / "model"
    words = ["--text_folder", texts, "--output_dir", out, "--max_steps", 1]
    monkeypatch.setattr(sys, "argv", ["pretrain", *map(str, words)])
    pretrain.main()
    assert AutoConfig.from_pretrained(out).activation_function == "gelu_new"
    assert "42 documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["peft_helpers/tiny_gpt2", "./peft_helpers/tiny_gpt2", "../gone/peft_helpers/tiny_gpt2"]
)
def test_the_embedded_model_is_found_from_another_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model(name) == TINY_GPT2
    other = tmp_path / "peft_helpers" / "tiny_gpt2"
    other.mkdir(parents=True)
    assert find_model(str(other)) == str(other)  # another model in a folder of the same name


def test_the_tiny_model_has_a_whole_path_where_no_relative_one_leads_to_it(monkeypatch):
    def other_drive(path):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", other_drive)
    found = runpy.run_path(tiny_gpt2.__file__)["TINY_GPT2"]
    assert Path(found).is_absolute()
    assert Path(found, "config.json").is_file()
