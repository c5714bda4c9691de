"""What goes with an adapter to others: its model card, from ``model_card.md``, and ``--push_to_hub``."""

import json
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, get_token
from peft import PeftModel
from transformers.trainer_utils import PredictionOutput

from peft_helpers.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RUN_FILE
from peft_helpers.arguments import BBC_NEWS, Arguments
from peft_helpers.distributed import process_state

# All that is sent and fetched: neither your own files in the folder, nor what could be pickled.
HUB_FILES = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, RUN_FILE, "README.md", "config.json", "tokenizer.json",
             "tokenizer_config.json", "calibration.json"]  # fmt: skip
_SCORES = {"test_accuracy": "accuracy", "test_f1": "F1 (macro)", "test_perplexity": "perplexity"}
_METHOD = {"peft_type": "PEFT type", "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout",
           "target_modules": "target modules"}  # fmt: skip


def save_model_card(
    peft_model: PeftModel, args: Arguments, untuned: PredictionOutput, tuned: PredictionOutput, folder: str | Path
) -> None:
    """Write the model card over PEFT's empty one; ``untuned`` and ``tuned`` are of `predict` on the same examples."""
    config = json.loads(Path(folder, ADAPTER_CONFIG).read_text(encoding="utf-8"))
    is_classifier = config["task_type"] == "SEQ_CLS"
    card = ModelCard.from_template(
        _describe_to_hub(args, config, tuned),
        template_path=str(Path(__file__).with_name("model_card.md")),
        args=args,
        base=display_name(args.model.model_name_or_path),
        base_is_local=_is_local(args.model.model_name_or_path),
        dataset=display_name(args.data.dataset_name),
        folder=display_name(args.training.output_dir),
        labels=[name for _, name in sorted(peft_model.config.id2label.items())] if is_classifier else [],
        parameters=peft_model.get_nb_trainable_parameters(),
        method={name: config[field] for field, name in _METHOD.items() if config.get(field) is not None},
        scores=_SCORES,
        untuned=untuned.metrics,
        tuned=tuned.metrics,
        versions=", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "datasets")),
    )
    card.save(Path(folder, "README.md"))


def _describe_to_hub(args: Arguments, config: dict, tuned: PredictionOutput) -> ModelCardData:
    """Return the metadata of the card; a local model or dataset is none that the Hub could link to."""
    base, dataset = args.model.model_name_or_path, args.data.dataset_name
    task = "text-classification" if config["task_type"] == "SEQ_CLS" else "text-generation"
    results = [
        EvalResult(task_type=task, dataset_type=display_name(dataset), dataset_name=display_name(dataset),
                   dataset_split="test", metric_type=name.removeprefix("test_"), metric_name=title,
                   metric_value=round(tuned.metrics[name], 4))
        for name, title in _SCORES.items() if name in tuned.metrics
    ]  # fmt: skip
    return ModelCardData(
        base_model=None if _is_local(base) else base,
        datasets=None if _is_local(dataset) else dataset,
        library_name="peft",
        tags=[config["peft_type"].lower()],
        pipeline_tag=task,
        model_name=display_name(args.training.output_dir),
        eval_results=results,
    )


def _is_local(name: str) -> bool:
    return name == BBC_NEWS or Path(name).exists() or Path(name).is_absolute() or name.startswith(".")


def display_name(name: str) -> str:
    """Return the name as given, of a local path the last part only: a card has no business with others' folders."""
    return Path(name).absolute().name if _is_local(name) else name


def create_repository(args: Arguments) -> str | None:
    """Return the id of the repository for `upload_adapter`, made if it is missing; None without ``push_to_hub``.

    A missing token is a ValueError; a Hub that does not allow it, or cannot be reached, a ConnectionError.
    """
    training = args.training
    if not training.push_to_hub:
        return None
    if not (token := training.hub_token or get_token()):
        raise ValueError("push_to_hub needs a token that may write: `hf auth login`, HF_TOKEN, or --hub_token.")
    name = training.hub_model_id or Path(training.output_dir).absolute().name  # as the Trainer has it
    try:
        return HfApi(token=token).create_repo(name, private=training.hub_private_repo, exist_ok=True).repo_id
    except Exception as error:  # also of the connection, which is no OSError
        raise ConnectionError(f"push_to_hub cannot write to {name!r} on the Hub: {error}") from error


def upload_adapter(args: Arguments) -> None:
    """Send `HUB_FILES` of ``output_dir`` to the Hub with ``push_to_hub``; the Trainer would send checkpoints, too."""
    if process_state().is_main_process and (name := create_repository(args)):
        options = {"folder_path": args.training.output_dir, "revision": args.training.hub_revision}
        commit = HfApi(token=args.training.hub_token).upload_folder(repo_id=name, allow_patterns=HUB_FILES, **options)
        print(f"The adapter is on the Hub: {commit.repo_url}")
