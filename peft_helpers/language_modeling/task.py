"""Language modeling, on the path of the classifier: predict the next token; LoRA learns texts of one kind."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from datasets import DatasetDict
from transformers import AutoConfig, AutoModelForCausalLM, default_data_collator
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from peft_helpers.adapters import check_output_dir
from peft_helpers.arguments import Arguments
from peft_helpers.language_modeling.blocks import make_blocks
from peft_helpers.language_modeling.generation import first_words, generate_texts
from peft_helpers.modeling import Task, check_model
from peft_helpers.pipeline import RunResult, load_adapter
from peft_helpers.tiny_gpt2 import TINY_GPT2

LANGUAGE_MODELING = Task(
    task_type="CAUSAL_LM",
    auto_class=AutoModelForCausalLM,
    tokenize=make_blocks,
    # Blocks need no padding. The collator meant for language models would take out the labels of the pad token, which
    # in GPT-2 is the end of text: no end would ever be learned.
    make_data_collator=lambda tokenizer: default_data_collator,
    compute_metrics=None,
    metric_for_best_model="eval_loss",
    greater_is_better=False,
)


def plan_language_modeling(args: Arguments) -> tuple[Arguments, Task]:
    """Return arguments and task of the language model, for `run`, from those of the whole run.

    The options that begin with ``lm_`` take the places of those without, ``block_size`` that of ``max_length``, and
    ``output_dir`` is a folder beside the classifier's. The task is `LANGUAGE_MODELING` with no more blocks than the
    options allow. A model that is no language model, such as BERT, is replaced by the tiny GPT-2; a line says so.

    Raises:
        ValueError: the texts are to be streamed, or a block has one token, which leaves none to predict.
        FileExistsError, FileNotFoundError, ValueError: see `check_model` and `check_output_dir`.
    """
    options = {name.removeprefix("lm_"): value for name, value in vars(args.language_modeling).items()}
    if args.data.streaming:
        raise ValueError("The texts of language modeling are cut into blocks as a table; leave out --streaming.")
    if options["block_size"] < 2:
        raise ValueError("block_size is 1; it must be at least 2: the first token of a block is not predicted.")
    options |= {
        "model_name_or_path": _choose_model(args.model.model_name_or_path),
        "max_length": options["block_size"],
        "max_eval_samples": options["max_eval_samples"] or args.data.max_eval_samples,
        # Each token has a logit for every entry of the vocabulary: what fits in training fits in evaluation too.
        "per_device_eval_batch_size": args.training.per_device_train_batch_size,
        "output_dir": f"{Path(args.training.output_dir)}_language_model",
    }
    planned = args.replace(**options)
    check_model(planned)
    check_output_dir(planned)
    return planned, replace(LANGUAGE_MODELING, tokenize=partial(make_blocks, args=planned))


def _choose_model(name: str) -> str:
    architectures = AutoConfig.from_pretrained(name).architectures or []
    if set(architectures) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return name
    print(f"Language modeling: {name} ({', '.join(architectures)}) is no language model; {TINY_GPT2} is used.")
    return TINY_GPT2


def generate_examples(result: RunResult, documents: DatasetDict) -> pd.DataFrame:
    """Return what the untuned and the saved, tuned model generate from the first words of three test documents."""
    seed, prompts = result.args.training.seed, first_words(documents["test"])
    model, tokenizer = load_adapter(result.args.training.output_dir, LANGUAGE_MODELING)
    with model.disable_adapter():
        untuned = generate_texts(model, tokenizer, prompts, seed)
    tuned = generate_texts(model, tokenizer, prompts, seed)
    return pd.DataFrame({"prompt": prompts, "untuned": untuned, "tuned": tuned})


def summarize_run(result: RunResult, examples: pd.DataFrame) -> dict:
    """Return the contents of ``results.json``; ``examples`` come from `generate_examples`."""
    untuned, tuned = result.untuned.metrics, result.tuned.metrics
    return {
        "perplexity": {"untuned": untuned["test_perplexity"], "tuned": tuned["test_perplexity"]},
        "test_blocks": tuned["test_examples"],
        "generated": examples.to_dict("records"),
        "trainable_parameters": result.trainable_parameters,
        "parameters": result.parameters,
        "arguments": result.args.describe(),
        "seconds": result.seconds,
    }


def describe_run(result: RunResult, examples: pd.DataFrame) -> str:
    """Return the perplexity before and after, then each prompt with what the two models generate from it."""
    untuned, tuned = (output.metrics["test_perplexity"] for output in (result.untuned, result.tuned))
    blocks = f"{result.tuned.metrics['test_examples']:,} test blocks"
    scores = f"Perplexity on {blocks}: {untuned:.2f} untuned, {tuned:.2f} tuned ({tuned / untuned - 1:+.1%})."
    texts = [f"Prompt: {row.prompt}\nUntuned: {row.untuned}\nTuned: {row.tuned}" for row in examples.itertuples()]
    return "\n\n".join([scores, *texts])
