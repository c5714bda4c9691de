"""Language modelling: the model goes on predicting the next token, and LoRA teaches it texts of one kind."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, DatasetDict
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from peft_helpers.adapter_checks import check_adapter
from peft_helpers.adapters import check_output_dir, replace_folder, save_run_config, sort_target_modules
from peft_helpers.arguments import BBC_NEWS, TINY_GPT2, Arguments
from peft_helpers.batches import LengthTrainer
from peft_helpers.checkpoints import make_checkpoint_folder, run_key
from peft_helpers.language_modeling.generation import generate_texts
from peft_helpers.language_modeling.perplexity import assert_same_perplexity, evaluate_perplexity, perplexity_arguments
from peft_helpers.model_card import save_language_model_card
from peft_helpers.modeling import (
    check_model,
    compute_dtype,
    keep_4bit_weights_unpacked,
    quantization_config,
    turn_off_dropout,
    uses_conv1d,
)
from peft_helpers.app.notebook import warn_offline
from peft_helpers.resources import check_space
from peft_helpers.sources.documents import DEFAULT_CONFIGURATIONS, WIKITEXT, load_documents, tokenize_blocks
from peft_helpers.sources.hub import NotOnHubError, explain_availability
from peft_helpers.tokenization import set_padding
from peft_helpers.training import CHECKPOINTS, check_steps, guard_training, training_arguments

PATIENCE = 3  # evaluations without a better validation perplexity
PROMPT_WORDS = 8
PROMPT_CHARACTERS = 100  # for scripts that write no blanks between words


def plan_language_modelling(args: Arguments) -> Arguments:
    """Return what the language modelling part of ``config`` runs, as a configuration, and print the model and texts.

    The fields that begin with ``lm_`` take the places of those without, ``block_size`` that of ``max_length``, and
    ``output_dir`` is a folder beside the classifier's adapter. A model that is no language model, such as BERT, gives
    way to the tiny GPT-2. All that would fail later is checked.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: see `check_model`, `check_output_dir` and `load_documents`.
        ConnectionError: the texts are ``auto``, and the Hub is there but does not serve; see `explain_availability`.
    """
    if args.data.streaming:
        raise ValueError("The texts of language modelling are cut into blocks as a table; leave out --streaming.")
    model, reason = _choose_model(args.model.model_name_or_path)
    dataset, why = _choose_dataset(args.language_modeling.lm_dataset_name)
    configuration = args.language_modeling.lm_dataset_config_name or DEFAULT_CONFIGURATIONS.get(dataset)
    name = " ".join(filter(None, (dataset, configuration)))
    print(f"Language modelling: {model}, {reason}, on {name}, {why}.")
    planned = replace(
        args,
        model_name_or_path=model,
        dataset_name=dataset,
        dataset_config_name=configuration,
        max_length=args.language_modeling.block_size,
        learning_rate=args.language_modeling.lm_learning_rate,
        num_train_epochs=args.language_modeling.lm_num_train_epochs,
        max_eval_samples=args.language_modeling.lm_max_eval_samples or args.data.max_eval_samples,
        # Each token has a logit for every entry of the vocabulary: as many rows as a classifier takes would not fit.
        per_device_eval_batch_size=min(
            args.training.per_device_eval_batch_size, args.training.per_device_train_batch_size
        ),
        output_dir=f"{Path(args.training.output_dir)}_language_model",
    )
    check_model(planned)
    check_output_dir(planned)
    load_documents(planned)
    return planned


def _choose_model(name: str) -> tuple[str, str]:
    architectures = AutoConfig.from_pretrained(name).architectures or []
    if set(architectures) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return name, "the same model"
    return TINY_GPT2, f"since {name} ({', '.join(architectures) or 'no architecture named'}) is no language model"


def _choose_dataset(name: str) -> tuple[str, str]:
    if name != "auto":
        return name, "as asked for"
    try:
        available, reason = explain_availability(dataset_name=WIKITEXT, instead=f"--lm_dataset_name {BBC_NEWS}")
    except NotOnHubError:  # a mirror that holds some repositories only
        return BBC_NEWS, f"since this Hub has no {WIKITEXT}"
    if available:
        return WIKITEXT, reason
    warn_offline([WIKITEXT], [BBC_NEWS])
    return BBC_NEWS, reason


def make_blocks(documents: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: Arguments) -> DatasetDict:
    """Return `tokenize_blocks` of each split, of ``args.data.max_length`` tokens, and of no more than its limits allow.

    ``max_train_samples`` and ``max_eval_samples`` count blocks; which ones are taken is drawn by ``args.training.seed``.
    """
    limits = {
        "train": args.data.max_train_samples,
        "validation": args.data.max_eval_samples,
        "test": args.data.max_eval_samples,
    }
    blocks = tokenize_blocks(documents, tokenizer, args.data.max_length)
    return DatasetDict({name: _take(blocks[name], rows, args.training.seed) for name, rows in limits.items()})


def _take(blocks: Dataset, max_rows: int | None, seed: int) -> Dataset:
    if max_rows is None or max_rows >= blocks.num_rows:
        return blocks
    order = np.random.default_rng(seed).permutation(blocks.num_rows)
    return blocks.select(np.sort(order[:max_rows]))


def language_model_arguments(args: Arguments) -> dict:
    """Return what the language model is loaded with: float32, safetensors only, and 4 bits if ``args.model.load_in_4bit``.

    In 4 bits too, the output layer stays as it is: with GPT-2 it is the embedding.
    """
    arguments = {"dtype": torch.float32, "use_safetensors": True}
    if args.model.load_in_4bit:
        quantization = quantization_config(args.model.model_name_or_path)
        quantization.llm_int8_skip_modules = None  # the library then finds the output layer
        arguments["quantization_config"] = quantization
    return arguments


def load_language_model(args: Arguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the pre-trained language model as the notebook's cells load it: padded, without dropout."""
    set_seed(args.training.seed)
    model = AutoModelForCausalLM.from_pretrained(args.model.model_name_or_path, **language_model_arguments(args))
    if args.model.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    keep_4bit_weights_unpacked(model)
    set_padding(tokenizer, model)
    turn_off_dropout(model)
    return model


def inject_lora(model: PreTrainedModel, args: Arguments) -> PeftModel:
    """Return the language model with LoRA, as the notebook's cells make it."""
    lora_config = LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora.lora_r,
        lora_alpha=args.lora.lora_alpha,
        lora_dropout=args.lora.lora_dropout,
        target_modules=args.lora.target_modules,
        fan_in_fan_out=uses_conv1d(model),
    )
    set_seed(args.training.seed)
    return get_peft_model(model, lora_config)


def make_language_model_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, blocks: DatasetDict, args: Arguments
) -> LengthTrainer:
    """Return the Trainer that trains ``model`` on ``blocks["train"]`` and keeps the best by validation perplexity.

    As with `make_trainer`, the test blocks are not handed to it, and `guard_training` keeps and removes checkpoints.

    Raises:
        ValueError: there is one training step only, which changes nothing.
        OSError: there is too little space for the checkpoints or for the adapter; see `check_space`.
        PermissionError: the folder of the checkpoints is not this user's alone; see `make_checkpoint_folder`.
    """
    check_steps(blocks["train"], args)
    check_space(args, model, tokenizer, CHECKPOINTS + 1)
    key = run_key(language_training_arguments(args, "not part of the key"), model, blocks)
    return LengthTrainer(
        model=model,
        args=language_training_arguments(args, str(make_checkpoint_folder(args, key))),
        train_dataset=blocks["train"],
        eval_dataset=blocks["validation"],
        processing_class=tokenizer,
        callbacks=[EarlyStoppingCallback(PATIENCE)],
        **perplexity_arguments(tokenizer),
    )


def language_training_arguments(args: Arguments, output_dir: str) -> TrainingArguments:
    """Return `training_arguments` with the least perplexity for the best checkpoint, judged five times in a run."""
    return replace(
        training_arguments(args, output_dir),
        metric_for_best_model="perplexity",
        greater_is_better=False,
        eval_steps=1 / 5,
        save_steps=1 / 5,
        logging_steps=1 / 5,
    )


def save_language_model(
    peft_model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    args: Arguments,
    untuned: dict[str, float],
    tuned: dict[str, float],
) -> None:
    """Save adapter, tokenizer and model card to ``args.training.output_dir``, as the notebook's cells do.

    ``untuned`` and ``tuned`` are the results of `evaluate_perplexity` before and after training.
    """
    sort_target_modules(peft_model)
    with replace_folder(args.training.output_dir) as folder:
        peft_model.save_pretrained(folder)
        peft_model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_run_config(args, folder)
        save_language_model_card(peft_model, args, untuned, tuned, folder)


def load_saved_language_model(args: Arguments) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Return the language model with the adapter of ``args.training.output_dir``, which is checked first, and its tokenizer.

    Raises:
        FileNotFoundError, ValueError: see `check_adapter`.
    """
    check_adapter(args.training.output_dir, args.model.model_name_or_path, task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(args.training.output_dir)
    model = AutoPeftModelForCausalLM.from_pretrained(args.training.output_dir, **language_model_arguments(args))
    keep_4bit_weights_unpacked(model)
    set_padding(tokenizer, model)
    return model, tokenizer


def first_words(documents: Dataset, prompts: int = 3) -> list[str]:
    """Return the first `PROMPT_WORDS` words of each of the first documents: prompts to go on from."""
    return [" ".join(text.split()[:PROMPT_WORDS])[:PROMPT_CHARACTERS] for text in documents[:prompts]["text"]]


def compare_perplexity(untuned: dict[str, float], tuned: dict[str, float]) -> pd.DataFrame:
    """Return the perplexity before and after, and the change in percent, on how many predicted tokens."""
    columns = {
        "untuned": untuned["perplexity"],
        "tuned": tuned["perplexity"],
        "change, %": 100 * (tuned["perplexity"] / untuned["perplexity"] - 1),
        "predicted tokens": tuned["predicted_tokens"],
    }
    return pd.DataFrame(columns, index=["perplexity"])


def run_language_model(args: Arguments) -> dict:
    """Do what the notebook's section on language modelling does, and print its tables; return what it found.

    Args:
        config: the configuration of the whole run, as for the classifier.

    Returns:
        ``perplexity`` of the ``untuned``, ``tuned`` and ``reloaded`` model on the same test blocks, their
        ``predicted_tokens``, ``train_seconds``, ``trainable_parameters``, the ``output_dir`` of the adapter, what was
        run (``model_name_or_path``, ``dataset_name``, ``dataset_config_name``) and ``generated``: for each prompt what
        the untuned and the tuned model write.

    Raises:
        AssertionError: the reloaded adapter has another perplexity than the model in memory.
    """
    (args,) = broadcast_object_list([plan_language_modelling(args)])  # whether the Hub answers, one process asks
    documents = load_documents(args)
    tokenizer = AutoTokenizer.from_pretrained(args.model.model_name_or_path)
    model = load_language_model(args, tokenizer)
    blocks, prompts = make_blocks(documents, tokenizer, args), first_words(documents["test"])
    untuned = evaluate_perplexity(model, tokenizer, blocks["test"], args)
    before = generate_texts(model, tokenizer, prompts, args.training.seed)
    model = inject_lora(model, args)
    trainer = make_language_model_trainer(model, tokenizer, blocks, args)
    with guard_training(trainer) as checkpoint:
        training = trainer.train(resume_from_checkpoint=checkpoint)
    tuned = evaluate_perplexity(model, tokenizer, blocks["test"], args)
    save_language_model(model, tokenizer, args, untuned, tuned)
    model, tokenizer = load_saved_language_model(args)
    reloaded = evaluate_perplexity(model, tokenizer, make_blocks(documents, tokenizer, args)["test"], args)
    assert_same_perplexity(tuned, reloaded, compute_dtype())
    after = generate_texts(model, tokenizer, prompts, args.training.seed)
    print(compare_perplexity(untuned, reloaded).round(2).to_string())
    generated = pd.DataFrame({"prompt": prompts, "untuned": before, "tuned": after})
    for row in generated.itertuples():
        print(f"\nPrompt: {row.prompt}\nUntuned: {row.untuned}\nTuned: {row.tuned}")
    return {
        "perplexity": {
            name: metrics["perplexity"]
            for name, metrics in (("untuned", untuned), ("tuned", tuned), ("reloaded", reloaded))
        },
        "predicted_tokens": reloaded["predicted_tokens"],
        "train_seconds": training.metrics["train_runtime"],
        "trainable_parameters": trainer.model.get_nb_trainable_parameters()[0],
        "generated": generated.to_dict("records"),
        **{name: getattr(args, name) for name in _WHAT_RAN},
    }


_WHAT_RAN = ("model_name_or_path", "dataset_name", "dataset_config_name", "output_dir")
