"""Pre-train the tiny GPT-2 that the package ships, from the tokenizer up.

    python -m tests.pretrain_tiny_gpt2 --text_folder FOLDER

FOLDER has only ``*.txt.gz`` files, their documents separated by a line ``<|endoftext|>``. The BBC News *training*
articles are added to them, twice; validation and test articles are never read, except for the loss on the validation
articles that is printed at the end. Needs neither GPU nor network; about 95 minutes on one core.
"""

import gzip
from pathlib import Path

import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, HfArgumentParser, Trainer, TrainingArguments

from peft_helpers.language_modeling.task import cut_blocks
from peft_helpers.sources.bbc_news import load_bbc_news

# 4 blocks of 512 tokens a step. Any of these, and of the Trainer's other options, can be given on the command line.
RECIPE = {
    "output_dir": "tiny_gpt2", "save_strategy": "no", "logging_steps": 50,
    "max_steps": 7000, "warmup_steps": 300, "per_device_train_batch_size": 4,
    "learning_rate": 3e-3, "lr_scheduler_type": "cosine", "adam_beta2": 0.95, "weight_decay": 0.1,
}  # fmt: skip


def read_documents(folder: str) -> list[str]:
    """Return the documents of all files in ``folder``, in the files' order."""
    texts = [gzip.decompress(path.read_bytes()).decode("utf-8") for path in sorted(Path(folder).iterdir())]
    return [document.strip() for text in texts for document in text.split("<|endoftext|>") if document.strip()]


def train_tokenizer(documents: list[str], vocab_size: int = 8192) -> GPT2Tokenizer:
    """Return a byte-level BPE tokenizer, as GPT-2's, with ``vocab_size`` entries learnt from ``documents``."""
    empty = GPT2Tokenizer(model_max_length=512)
    return empty.train_new_from_iterator(documents, vocab_size, min_frequency=2, show_progress=False)


def make_model(tokenizer: GPT2Tokenizer) -> GPT2LMHeadModel:
    """Return the untrained model; dropout is off, as it is too small to overfit."""
    end = tokenizer.eos_token_id
    sizes = {"vocab_size": len(tokenizer), "n_positions": 512, "n_embd": 128, "n_layer": 4, "n_head": 4}
    # gelu_pytorch_tanh is gelu_new as one fused operation.
    options = {"activation_function": "gelu_pytorch_tanh", "bos_token_id": end, "eos_token_id": end}
    return GPT2LMHeadModel(GPT2Config(**sizes, **options, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def main() -> None:
    """Train tokenizer and model as the command line says, and save both."""
    parser = HfArgumentParser(TrainingArguments)
    parser.add_argument("--text_folder", required=True, help="folder with *.txt.gz files to learn from beside BBC News")
    parser.set_defaults(**RECIPE)
    arguments, other = parser.parse_args_into_dataclasses()
    bbc = load_bbc_news()
    documents = read_documents(other.text_folder) + bbc["train"]["text"][:] * 2
    documents = Dataset.from_dict({"text": documents}).shuffle(seed=arguments.seed)["text"][:]
    tokenizer = train_tokenizer(documents)
    # Not `make_blocks`, which drops what is left at the end of every 1,000 documents.
    train = Dataset.from_dict(cut_blocks({"text": documents}, tokenizer))
    validation = Dataset.from_dict(cut_blocks(bbc["validation"][:], tokenizer))
    print(f"{len(documents)} documents, {len(train)} blocks of 512 tokens", flush=True)
    torch.manual_seed(arguments.seed)
    model = make_model(tokenizer)
    trainer = Trainer(model, arguments, train_dataset=train, eval_dataset=validation)
    trainer.train()
    print(trainer.evaluate(), flush=True)
    model.config.activation_function = "gelu_new"
    model.save_pretrained(arguments.output_dir)
    tokenizer.save_pretrained(arguments.output_dir)


if __name__ == "__main__":
    main()
