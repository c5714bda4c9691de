"""What the Hub of the tests serves: a tiny GPT-2 and a few rows, in the folders, names and formats of the real ones."""

import json
from itertools import product
from pathlib import Path

import torch
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub import metadata_save
from pretrain_tiny_gpt2 import train_tokenizer
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

_NEGATIVE, _POSITIVE = ["dull", "sad", "cold", "tired", "bad"], ["fine", "lovely", "warm", "funny", "good"]
_NOUNS = ["film", "story", "cast", "plot", "scene", "score", "play", "show", "tale", "song", "joke", "end"]


def make_repositories(root: Path) -> None:
    """Write the repositories that the profiles and the section on language modelling take."""
    make_gpt2(root / "models" / "openai-community" / "gpt2")
    make_sst2(root / "datasets" / "stanfordnlp" / "sst2")
    make_imdb(root / "datasets" / "stanfordnlp" / "imdb")
    make_wikitext(root / "datasets" / "Salesforce" / "wikitext")


def make_gpt2(folder: Path) -> None:
    """Write a random GPT-2 with 1,024 positions and 28,000 parameters.

    As in the real file, the tensors' names lack the prefix `transformer.`, and the causal masks are stored among them.
    """
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer([text for text, _ in _sentences()], vocab_size=300)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end,
        architectures=["GPT2LMHeadModel"], task_specific_params={"text-generation": {"do_sample": True}},
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config.to_diff_dict() | {"model_type": "gpt2"}))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": end, "eos_token_id": end}))
    set_seed(0)
    tensors = GPT2LMHeadModel(config).transformer.state_dict()
    mask = torch.ones(config.n_positions, config.n_positions).tril()[None, None]
    tensors |= {f"h.{layer}.attn.bias": mask.clone() for layer in range(config.n_layer)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _sentences() -> list[tuple[str, int]]:
    """Return 120 short texts that all differ, labels in turn."""
    pairs = product(zip(_NEGATIVE, _POSITIVE, strict=True), _NOUNS)
    return [(f"a {word} {noun}", label) for words, noun in pairs for label, word in enumerate(words)]


def make_sst2(folder: Path) -> None:
    """Write SST-2's three splits; its test has no labels, which is written as -1."""
    features = Features(idx=Value("int32"), sentence=Value("string"), label=ClassLabel(names=["negative", "positive"]))
    rows = _sentences()
    splits = {"train": rows[:72], "validation": rows[72:96], "test": [(text, -1) for text, _ in rows[96:]]}
    tables = {
        name: {"idx": range(len(rows)), "sentence": [text for text, _ in rows], "label": [label for _, label in rows]}
        for name, rows in splits.items()
    }
    _write_dataset(folder, "default", "data", tables, features)


def make_imdb(folder: Path) -> None:
    """Write IMDB's splits, in which the negative texts come first; `unsupervised` has no labels."""
    features = Features(text=Value("string"), label=ClassLabel(names=["neg", "pos"]))
    rows = [(f"{text}. " * 40, label) for text, label in _sentences()]  # longer than SST-2's
    splits = {"train": rows[:60], "test": rows[60:100], "unsupervised": [(text, -1) for text, _ in rows[100:]]}
    tables = {}
    for name, split in splits.items():
        split = sorted(split, key=lambda row: row[1])
        tables[name] = {"text": [text for text, _ in split], "label": [label for _, label in split]}
    _write_dataset(folder, "plain_text", "plain_text", tables, features)


def make_wikitext(folder: Path) -> None:
    """Write one configuration of WikiText: a row a line, articles that begin with their title."""
    texts = [text for text, _ in _sentences()]
    tables = {}
    for name, numbers in {"test": range(6), "train": range(6, 48), "validation": range(48, 54)}.items():
        lines = []
        for number in numbers:
            body = " . ".join(texts[number:] + texts[:number])
            section = [" = = Reception = = \n", f" {body[:200]} \n"]
            lines += ["", f" = The {number} Stories = \n", "", f" {body} \n", *section]
        tables[name] = {"text": lines}
    _write_dataset(folder, "wikitext-2-raw-v1", "wikitext-2-raw-v1", tables, Features(text=Value("string")))


def _write_dataset(folder: Path, config: str, data: str, tables: dict[str, dict], features: Features) -> None:
    """Write a Parquet file for each split, and the README whose metadata tells of them."""
    (folder / data).mkdir(parents=True)
    splits = []
    for name, table in tables.items():
        path = folder / data / f"{name}-00000-of-00001.parquet"
        size = Dataset.from_dict({key: list(values) for key, values in table.items()}, features).to_parquet(path)
        splits.append({"name": name, "num_bytes": size, "num_examples": len(table[next(iter(table))])})
    files = [{"split": name, "path": f"{data}/{name}-*"} for name in tables]
    metadata_save(
        folder / "README.md",
        {
            "dataset_info": {"config_name": config, "features": features._to_yaml_list(), "splits": splits},
            "configs": [{"config_name": config, "data_files": files}],
        },
    )
