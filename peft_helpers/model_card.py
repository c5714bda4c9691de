"""The adapter's model card, from ``templates/model_card.md``."""

from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftModel

from peft_helpers.arguments import BBC_NEWS, TINY_GPT2, Arguments

_TERMS = {BBC_NEWS: ": BBC News, for research and non-commercial use (D. Greene and P. Cunningham, ICML 2006)"}
_SCORES = {"accuracy": "accuracy", "f1": "F1 (macro)", "perplexity": "perplexity"}
_METHOD = {"peft_type": "PEFT type", "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout",
           "target_modules": "target modules"}  # fmt: skip


def make_card(peft_model: PeftModel, args: Arguments, untuned: dict, tuned: dict, config: dict) -> ModelCard:
    """Return the model card: what the adapter is, how it was made, what it scores, how to load it without this package.

    Args:
        peft_model: the trained model, whose configuration names the labels.
        args: the run that made it.
        untuned: ``metrics`` of the output of `predict` before fine-tuning.
        tuned: the same after it, on the same examples.
        config: contents of ``adapter_config.json``.
    """
    base, dataset = display_name(args.model.model_name_or_path), display_name(args.data.dataset_name)
    names = [name for name in _SCORES if f"test_{name}" in tuned]
    is_classifier = config["task_type"] == "SEQ_CLS"
    kind = "text-classification" if is_classifier else "text-generation"
    data = ModelCardData(
        base_model=None if is_local(args.model.model_name_or_path) else args.model.model_name_or_path,
        datasets=None if is_local(args.data.dataset_name) else args.data.dataset_name,
        library_name="peft",
        tags=[config["peft_type"].lower()],
        pipeline_tag=kind,
        model_name=display_name(args.training.output_dir),
        eval_results=[
            EvalResult(task_type=kind, dataset_type=dataset, dataset_name=dataset, dataset_split="test",
                       metric_type=name, metric_name=_SCORES[name], metric_value=round(tuned[f"test_{name}"], 4))
            for name in names
        ],
    )  # fmt: skip
    trained, total = peft_model.get_nb_trainable_parameters()
    labels = [name for _, name in sorted(peft_model.config.id2label.items())] if is_classifier else []
    return ModelCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("templates") / "model_card.md"),
        base=base,
        base_path="peft_helpers/tiny_gpt2" if args.model.model_name_or_path == TINY_GPT2 else base,
        base_is_local=is_local(args.model.model_name_or_path),
        dataset=dataset,
        folder=display_name(args.training.output_dir),
        auto_class="AutoModelForSequenceClassification" if is_classifier else "AutoModelForCausalLM",
        terms=_TERMS.get(args.data.dataset_name, ""),
        labels=", ".join(f"`{name}`" for name in labels),
        number_of_labels=len(labels),
        trained=trained,
        total=total,
        examples=int(tuned["test_examples"]),
        scores={_SCORES[name]: [f"{run[f'test_{name}']:.3f}" for run in (untuned, tuned)] for name in names},
        method=_list_method(config),
        epochs=args.training.num_train_epochs,
        learning_rate=args.training.learning_rate,
        seed=args.training.seed,
        max_length=args.data.max_length,
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "datasets")),
    )


def is_local(name: str) -> bool:
    """Tell whether a model or dataset is a local one, which is nothing that the Hub could link to."""
    return name == BBC_NEWS or Path(name).exists() or Path(name).is_absolute() or name.startswith(".")


def display_name(name: str) -> str:
    """Return the name as given, of a local path the last part only: a card has no business with others' folders."""
    return Path(name).absolute().name if is_local(name) else name


def _list_method(config: dict) -> dict[str, str]:
    rows = {name: config[field] for field, name in _METHOD.items() if config.get(field) is not None}
    return {name: ", ".join(value) if isinstance(value, list) else value for name, value in rows.items()}
