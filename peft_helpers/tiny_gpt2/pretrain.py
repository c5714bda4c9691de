"""Pre-train the tiny GPT-2 that this package ships, from the tokenizer up.

    python -m peft_helpers.tiny_gpt2.pretrain --text_folder FOLDER

FOLDER holds ``*.txt.gz`` files, their documents separated by a line ``<|endoftext|>``. The BBC News *training*
articles are added to them; validation and test articles are never read, except for the loss on the validation
articles that is printed at the end. Needs neither GPU nor network; about 95 minutes on one core.
"""

import gzip
import json
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from peft_helpers.sources.bbc_news import load_bbc_news

END_OF_TEXT = "<|endoftext|>"


@dataclass
class PretrainConfig:
    """What one pre-training run does."""

    text_folder: str = field(metadata={"help": "folder with *.txt.gz files to learn from beside BBC News"})
    output_dir: str = field(default="tiny_gpt2", metadata={"help": "folder for model and tokenizer"})
    checkpoint_dir: str = field(default="tiny_gpt2_checkpoints", metadata={"help": "folder for checkpoints"})
    max_steps: int = field(default=7000, metadata={"help": "optimizer steps of 4 blocks of 512 tokens"})
    learning_rate: float = field(default=3e-3, metadata={"help": "peak of the cosine schedule"})
    bbc_repeats: int = field(default=2, metadata={"help": "how often the BBC training articles occur in one epoch"})
    seed: int = field(default=42, metadata={"help": "seed of weights and order"})


def read_documents(folder: str) -> list[str]:
    """Return the documents of every ``*.txt.gz`` in ``folder``, in the files' order."""
    paths = sorted(Path(folder).glob("*.txt.gz"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no *.txt.gz file; name a folder with texts as --text_folder.")
    texts = (gzip.decompress(path.read_bytes()).decode("utf-8") for path in paths)
    return [document.strip() for text in texts for document in text.split(END_OF_TEXT) if document.strip()]


def train_tokenizer(documents: list[str], vocab_size: int = 8192) -> GPT2Tokenizer:
    """Return a byte-level BPE tokenizer, as GPT-2's, with ``vocab_size`` entries learnt from ``documents``."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(documents, vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False)
    state = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    return GPT2Tokenizer(vocab=state["vocab"], merges=merges, model_max_length=512)


def make_blocks(documents: list[str], tokenizer: GPT2Tokenizer, block_size: int = 512) -> Dataset:
    """Join the tokenized documents, each closed by ``<|endoftext|>``, and cut them into blocks of ``block_size``."""
    encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
    ids = list(chain.from_iterable([*document, tokenizer.eos_token_id] for document in encoded))
    blocks = [ids[i : i + block_size] for i in range(0, len(ids) - block_size + 1, block_size)]
    return Dataset.from_dict({"input_ids": blocks, "labels": blocks}).with_format("torch")


def main() -> None:
    """Train tokenizer and model as the command line says, and save both."""
    (config,) = HfArgumentParser(PretrainConfig).parse_args_into_dataclasses()
    bbc = load_bbc_news()
    documents = read_documents(config.text_folder) + list(bbc["train"]["text"]) * config.bbc_repeats
    documents = list(Dataset.from_dict({"text": documents}).shuffle(seed=config.seed)["text"])
    tokenizer = train_tokenizer(documents)
    train = make_blocks(documents, tokenizer)
    print(f"{len(documents)} documents, {len(train)} blocks of 512 tokens", flush=True)

    set_seed(config.seed)
    # gelu_pytorch_tanh is gelu_new as one fused operation; dropout stays off, as the model is too small to overfit.
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_positions=512, n_embd=128, n_layer=4, n_head=4,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(shape)
    arguments = TrainingArguments(
        output_dir=config.checkpoint_dir, max_steps=config.max_steps, seed=config.seed,
        per_device_train_batch_size=4, per_device_eval_batch_size=8,
        learning_rate=config.learning_rate, lr_scheduler_type="cosine", warmup_steps=300,
        adam_beta2=0.95, weight_decay=0.1, max_grad_norm=1.0,
        logging_steps=50, save_steps=1000, save_total_limit=1, report_to="none",
    )  # fmt: skip
    validation = make_blocks(list(bbc["validation"]["text"]), tokenizer)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=train, eval_dataset=validation, data_collator=default_data_collator
    )
    trainer.train()
    print(trainer.evaluate(), flush=True)
    model.config.activation_function = "gelu_new"
    model.save_pretrained(config.output_dir)
    tokenizer.save_pretrained(config.output_dir)


if __name__ == "__main__":
    main()
