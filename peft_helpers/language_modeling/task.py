"""Language modeling, on the path of the classifier: predict the next token; LoRA learns texts of one kind."""

from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import pandas as pd
import transformers
from datasets import Dataset, DatasetDict
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from peft_helpers.adapters import check_output_dir
from peft_helpers.arguments import Arguments
from peft_helpers.modeling import Task, check_model
from peft_helpers.pipeline import RunResult, load_adapter
from peft_helpers.tiny_gpt2 import TINY_GPT2


def make_blocks(
    documents: DatasetDict, tokenizer: transformers.PreTrainedTokenizerBase, args: Arguments | None = None
) -> DatasetDict:
    """Return the documents of each split, column ``text``, as blocks of ``tokenizer.model_max_length`` tokens.

    Documents are joined, each closed by the end-of-text token, and cut. What is left at the end of every 1,000
    documents is dropped, so that the mean loss of blocks is that of tokens. The columns are ``input_ids``; ``labels``,
    which are the same, since the model shifts them itself; and ``length``, in tokens. With ``args``, subsets are drawn
    as its options have it, of blocks in place of examples. A split that makes no block is a ValueError.
    """
    blocks = documents.map(cut_blocks, batched=True, fn_kwargs={"tokenizer": tokenizer}, remove_columns=["text"])
    for name, split in blocks.items():
        if split.num_rows == 0:
            raise ValueError(
                f"The documents of {name} make no block of {tokenizer.model_max_length} tokens. Choose a smaller "
                "--block_size, or use more or longer documents; in a text file a blank line separates them."
            )
        limit = args and (args.data.max_train_samples if name == "train" else args.data.max_eval_samples)
        if limit and limit < split.num_rows:
            blocks[name] = split.shuffle(seed=args.training.seed).select(range(limit))
    return blocks


def cut_blocks(batch: dict[str, list], tokenizer: transformers.PreTrainedTokenizerBase) -> dict[str, list]:
    """Return the columns of `make_blocks` for a batch of the column ``text``."""
    size = tokenizer.model_max_length
    # A document may be longer than the model's positions, of which the tokenizer would warn: the blocks are not.
    encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
    ids = list(chain.from_iterable([*document, tokenizer.eos_token_id] for document in encoded))
    blocks = [ids[start : start + size] for start in range(0, len(ids) - size + 1, size)]
    return {"input_ids": blocks, "labels": blocks, "length": [size] * len(blocks)}


LANGUAGE_MODELING = Task(
    task_type="CAUSAL_LM",
    auto_class=transformers.AutoModelForCausalLM,
    tokenize=make_blocks,
    # Blocks need no padding. The collator meant for language models would take out the labels of the pad token, which
    # in GPT-2 is the end of text: no end would ever be learned.
    make_data_collator=lambda tokenizer: transformers.default_data_collator,
    compute_metrics=None,
    metric_for_best_model="eval_loss",
)


def plan_language_modeling(args: Arguments) -> tuple[Arguments, Task]:
    """Return arguments and task of the language model, for `run`, from those of the whole run.

    The options that begin with ``lm_`` take the places of those without, ``block_size`` that of ``max_length``, and
    ``output_dir`` is a folder beside the classifier's. A model that is no language model, such as BERT, is replaced by
    the tiny GPT-2. Streaming and blocks of one token are ValueErrors; see also `check_model` and `check_output_dir`.
    """
    options = {name.removeprefix("lm_"): value for name, value in vars(args.language_modeling).items()}
    if args.data.streaming:
        raise ValueError("The texts of language modeling are cut into blocks as a table; leave out --streaming.")
    if options["block_size"] < 2:
        raise ValueError("block_size is 1; it must be at least 2: the first token of a block is not predicted.")
    name = args.model.model_name_or_path
    architectures = transformers.AutoConfig.from_pretrained(name).architectures or []
    if not set(architectures) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        print(f"Language modeling: {name} ({', '.join(architectures)}) is no language model; {TINY_GPT2} is used.")
        name = TINY_GPT2
    options |= {
        "model_name_or_path": name,
        "max_length": options["block_size"],
        "max_eval_samples": options["max_eval_samples"] or args.data.max_eval_samples,
        # Each token has a logit for every entry of the vocabulary: what fits in training fits in evaluation too.
        "per_device_eval_batch_size": args.training.per_device_train_batch_size,
        "class_weights": None,
        "tune_threshold": False,
        "output_dir": f"{Path(args.training.output_dir)}_language_model",
        "hub_model_id": args.training.hub_model_id and f"{args.training.hub_model_id}_language_model",
    }
    planned = args.replace(**options)
    check_model(planned)
    check_output_dir(planned)
    return planned, replace(LANGUAGE_MODELING, tokenize=partial(make_blocks, args=planned))


def generate_examples(result: RunResult, documents: DatasetDict) -> pd.DataFrame:
    """Return what the untuned and the saved, tuned model generate from the first words of three test documents."""
    seed, prompts = result.args.training.seed, first_words(documents["test"])
    model, tokenizer = load_adapter(result.args.training.output_dir, LANGUAGE_MODELING)
    with model.disable_adapter():
        untuned = generate_texts(model, tokenizer, prompts, seed)
    tuned = generate_texts(model, tokenizer, prompts, seed)
    return pd.DataFrame({"prompt": prompts, "untuned": untuned, "tuned": tuned})


def first_words(documents: Dataset) -> list[str]:
    """Return the first eight words (of scripts without spaces, 100 characters) of three documents, as prompts."""
    return [" ".join(text.split()[:8])[:100] for text in documents[:3]["text"]]


def generate_texts(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, prompts: list[str], seed: int
) -> list[str]:
    """Return each prompt with up to 40 tokens more, drawn from the model's most probable 90 % (top-p)."""
    # On the left, since new tokens follow the last one of a row.
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", verbose=False).to(model.device)
    transformers.set_seed(seed)
    # The cache is of what each layer has computed; `prepare_model` has turned it off for training.
    options = {"max_new_tokens": 40, "do_sample": True, "top_p": 0.9, "use_cache": True}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    output = model.eval().generate(input_ids=ids, attention_mask=mask, pad_token_id=tokenizer.pad_token_id, **options)
    return tokenizer.batch_decode(output, skip_special_tokens=True)


def describe_run(result: RunResult, examples: pd.DataFrame) -> str:
    """Return the perplexity before and after, then each prompt with what the two models generate from it."""
    untuned, tuned = (output.metrics["test_perplexity"] for output in (result.untuned, result.tuned))
    blocks = f"{result.tuned.metrics['test_examples']:,} test blocks"
    scores = f"Perplexity on {blocks}: {untuned:.2f} untuned, {tuned:.2f} tuned ({tuned / untuned - 1:+.1%})."
    texts = [f"Prompt: {row.prompt}\nUntuned: {row.untuned}\nTuned: {row.tuned}" for row in examples.itertuples()]
    return "\n\n".join([scores, *texts])
