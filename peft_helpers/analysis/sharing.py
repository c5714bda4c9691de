"""Adapters that are shared: the model card, ``--push_to_hub``, and what is checked before one is loaded."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, constants, get_token
from peft import PeftConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.trainer_utils import PredictionOutput

from peft_helpers.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RUN_FILE
from peft_helpers.arguments import BBC_NEWS, Arguments
from peft_helpers.distributed import process_state
from peft_helpers.interruptions import CALIBRATION_FILE
from peft_helpers.tiny_gpt2 import find_model

_JSON = [ADAPTER_CONFIG, "config.json", "tokenizer_config.json"]
_NEEDED = [*_JSON, ADAPTER_WEIGHTS, "tokenizer.json"]
# All that is sent and fetched: neither your own files in the folder, nor what could be pickled.
HUB_FILES = [*_NEEDED, RUN_FILE, CALIBRATION_FILE, "README.md"]
# Entries by which transformers 5.23 and PEFT 0.21 import code, or read another model or file.
_LEADS_ELSEWHERE = ("auto_map", "attn_implementation", "_attn_implementation", "experts_implementation",
                    "_experts_implementation", "fast_tokenizer_files", "auto_mapping", "revision", "megatron_config",
                    "adapters", "shadow_model", "tokenizer_name_or_path",
                    "prompt_tuning_init_state_dict_path")  # fmt: skip
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
    """Return the id of the Hub's repository, made if it is missing, with ``push_to_hub``; else None.

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


def check_adapter(
    adapter_dir: str | Path, model_name_or_path: str, label_names: list[str] | None = None, task_type: str = "SEQ_CLS"
) -> None:
    """Check that an adapter can be loaded safely, onto the base model ``model_name_or_path``.

    ``label_names`` are those it has to know, in the order of their numbers; None: any. A missing file is a
    FileNotFoundError, also where there are pickled weights in its place, which are never opened; a file that cannot be
    read, leads elsewhere, or belongs to another base model, task or dataset is a ValueError.
    """
    folder = Path(adapter_dir)
    _check_files(folder)
    adapter, *_ = [_read_json(folder / name) for name in _JSON]
    _expect(f"{ADAPTER_CONFIG} has the task_type", adapter.get("task_type"), task_type)
    found = find_model(str(adapter.get("base_model_name_or_path")))
    _expect(f"{ADAPTER_CONFIG} names the base model", found, find_model(model_name_or_path))
    with _explain(f"config.json or the tokenizer in {folder} cannot be read"):
        config, entries = AutoConfig.from_pretrained(folder), len(AutoTokenizer.from_pretrained(folder))
    if label_names is not None:
        _expect(f"{folder} has the labels", [name for _, name in sorted(config.id2label.items())], label_names)
    base = AutoConfig.from_pretrained(model_name_or_path, num_labels=config.num_labels)
    if entries > (known := base.get_text_config().vocab_size):
        raise ValueError(f"The tokenizer in {folder} has {entries:,} entries, but the base model {known:,} embeddings.")
    auto_class = AutoModelForSequenceClassification if task_type == "SEQ_CLS" else AutoModelForCausalLM
    with torch.device("meta"):  # shapes without weights
        _check_tensors(folder, *(auto_class.from_config(each) for each in (config, base)))


def _check_tensors(folder: Path, model: torch.nn.Module, base_model: torch.nn.Module) -> None:
    with _explain(f"{folder / ADAPTER_WEIGHTS} is no complete safetensors file"):
        found = model.state_dict() | load_file(folder / ADAPTER_WEIGHTS)
    expected = base_model.state_dict()
    with _explain(f"The adapter in {folder} cannot be put on the base model"), warnings.catch_warnings(action="ignore"):
        peft_config = PeftConfig.from_pretrained(folder, inference_mode=True)
        peft_model = get_peft_model(base_model, peft_config, low_cpu_mem_usage=True)
    expected |= get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    for name in sorted(found | expected):  # of missing tensors, the libraries would only warn
        shapes = [list(tensors[name].shape) if name in tensors else "missing" for tensors in (found, expected)]
        _expect(f"{folder} has {name} of shape", *shapes)


def _check_files(folder: Path) -> None:
    cache = Path(constants.HF_HUB_CACHE).resolve()  # in which a download from the Hub consists of links
    place = cache if folder.resolve().is_relative_to(cache) else folder.resolve()
    if outside := [path.name for path in folder.rglob("*") if not path.resolve().is_relative_to(place)]:
        raise ValueError(f"In {folder}, {', '.join(outside)} links to outside the folder; replace the link by a copy.")
    found = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
    if missing := [name for name in _NEEDED if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}; found {found}. Copy the whole folder again, or save the adapter "
            "again. Pickled weights can run any code and are not loaded."
        )


@contextmanager
def _explain(what: str) -> Iterator[None]:
    """Put ``what`` and what to do around the error of a library, whatever its type."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} ({error!r}); copy the folder again, or save the adapter again.") from error


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{what} {found!r}, expected {expected!r}: it was trained for another model, task or dataset. "
                         "Use the adapter with those; where only a name has changed, correct it.")  # fmt: skip


def _read_json(path: Path) -> dict:
    with _explain(f"{path} is no JSON object"):
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    for name in _LEADS_ELSEWHERE:
        if content.get(name) is not None:
            raise ValueError(f"{path} has {name} {content[name]!r}, by which loading could read or run what lies "
                             "elsewhere. Use adapters from a source that you trust, without this entry.")  # fmt: skip
    return content


def adapter_size(adapter_dir: str | Path) -> float:
    """Return the size of the adapter's weights in MB (10^6 bytes)."""
    return Path(adapter_dir, ADAPTER_WEIGHTS).stat().st_size / 1e6
