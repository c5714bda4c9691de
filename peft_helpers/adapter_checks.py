"""What is checked before a saved adapter is loaded: that it is whole, safe to open, and fits its base and data."""

import json
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)

from peft_helpers.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peft_helpers.arguments import find_model

_CONFIGS = (ADAPTER_CONFIG, "config.json", "tokenizer_config.json")
_NEEDED = (*_CONFIGS, ADAPTER_WEIGHTS, "tokenizer.json")
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
# Fields of PEFT 0.21 that name code to import, another model or another file.
_LEADS_ELSEWHERE = ("auto_mapping", "revision", "megatron_config", "adapters", "shadow_model",
                    "tokenizer_name_or_path", "prompt_tuning_init_state_dict_path")  # fmt: skip


def check_adapter(
    adapter_dir: str | Path,
    model_name_or_path: str,
    label_names: list[str] | None = None,
    task_type: str = "SEQ_CLS",
) -> None:
    """Check that the adapter in ``adapter_dir`` can be loaded safely, and is one for this model and these labels.

    Reads the folder's JSON files and tokenizer, the names and shapes of its tensors, and the base model's
    configuration. Once it has passed, loading reads nothing but the folder and the base model.

    Args:
        adapter_dir: folder of the adapter.
        model_name_or_path: the base model to load it with, as ``adapter_config.json`` has to name it; the embedded
            model by any path.
        label_names: the labels of the data set, in the order of their numbers; None where there is no data set, and
            any names will do.
        task_type: PEFT's name of the task; ``CAUSAL_LM`` has no labels.

    Raises:
        FileNotFoundError: the folder or a file in it is missing, or the weights are pickled, which are never opened.
        ValueError: a file is broken off or names code or files elsewhere; or the base model, the labels, the tokenizer
            or the tensors' shapes differ from those expected. The message names the difference.
    """
    folder = Path(adapter_dir)
    _check_files(folder)
    adapter, model, tokenizer = (_read_json(folder / name) for name in _CONFIGS)
    _check_peft_config(adapter, model_name_or_path, task_type)
    _check_custom_code(folder, model, tokenizer)
    labels = {}
    if task_type == "SEQ_CLS":
        labels = {"num_labels": len(_check_labels(folder, model, label_names))}
    saved = _read_shapes(folder / ADAPTER_WEIGHTS)
    base = AutoConfig.from_pretrained(model_name_or_path, **labels)
    if model.get("model_type") != base.model_type:
        raise ValueError(
            f"{folder / 'config.json'} is of a {model.get('model_type')!r} model, but {model_name_or_path} is "
            f"{base.model_type!r}; load the adapter with the model that it was trained on."
        )
    _check_tokenizer(folder, base)
    _check_shapes(saved, _expected_shapes(folder, base, adapter["task_type"]), model_name_or_path)


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise FileNotFoundError(f"Expected an adapter's folder at {str(folder)!r}, found {found}; run the cell that "
                                "saves it, or name the folder that holds it.")  # fmt: skip
    names = sorted(path.name for path in folder.iterdir())
    root = folder.resolve()
    outside = [path.name for path in folder.rglob("*") if not path.resolve().is_relative_to(root)]
    if outside:
        raise ValueError(f"In {folder}, {', '.join(sorted(outside))} links to outside the folder; put a copy in place "
                         "of the link if you trust what it leads to.")  # fmt: skip
    pickled = [name for name in names if Path(name).suffix in PICKLES]
    if ADAPTER_WEIGHTS not in names and pickled:
        raise FileNotFoundError(
            f"{folder} has {', '.join(pickled)}, but no {ADAPTER_WEIGHTS}. Pickled weights can run any code when they "
            "are opened and are not loaded; have the adapter saved again by PEFT, whose default is safetensors."
        )
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}; found {', '.join(names) or 'nothing'}. Copy the whole folder again, "
            "or save adapter, config and tokenizer again."
        )


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # invalid JSON or UTF-8
        raise ValueError(f"{path} is no valid JSON ({error}); copy or save the adapter again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object; save the adapter again.")
    return content


def _check_peft_config(adapter: dict, model_name_or_path: str, task_type: str) -> None:
    peft_type = str(adapter.get("peft_type"))
    if peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ValueError(f"{ADAPTER_CONFIG} has the peft_type {peft_type!r}, which peft {version('peft')} does not "
                         "know; load it with the version of peft that made it.")  # fmt: skip
    if adapter.get("task_type") != task_type:
        what = {"SEQ_CLS": "no sequence classifier, or it was saved without its head", "CAUSAL_LM": "no language model"}
        raise ValueError(f"{ADAPTER_CONFIG} has the task_type {adapter.get('task_type')!r}, expected {task_type!r}: "
                         f"this is {what[task_type]}; train it anew.")  # fmt: skip
    found = adapter.get("base_model_name_or_path")
    if find_model(str(found)) != find_model(model_name_or_path):
        raise ValueError(
            f"The adapter was made for the base model {found!r}, but {model_name_or_path!r} was expected. If you trust "
            f"it, pass --model_name_or_path {found}; if it is the same model under another name, correct the name in "
            f"{ADAPTER_CONFIG}."
        )
    usual = {field.name: field.default for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[peft_type])}
    for name in _LEADS_ELSEWHERE:
        if name in adapter and adapter[name] != usual.get(name):
            raise ValueError(f"{ADAPTER_CONFIG} has {name} {adapter[name]!r}, by which loading could read or run what "
                             f"lies elsewhere; expected {usual.get(name)!r}. Use adapters from a source that you "
                             "trust, without this entry.")  # fmt: skip


def _check_custom_code(folder: Path, model: dict, tokenizer: dict) -> None:
    for name, content in (("config.json", model), ("tokenizer_config.json", tokenizer)):
        if "auto_map" in content:
            raise ValueError(f"{folder / name} has auto_map {content['auto_map']!r}: code of its own, which is never "
                             "run; expected a model and tokenizer that transformers knows.")  # fmt: skip
    files = tokenizer.get("fast_tokenizer_files")
    if files not in (None, ["tokenizer.json"]):
        raise ValueError(f"{folder / 'tokenizer_config.json'} has fast_tokenizer_files {files!r}, expected only "
                         "tokenizer.json in the folder; remove the entry.")  # fmt: skip


def _check_labels(folder: Path, model: dict, label_names: list[str] | None) -> list[str]:
    id2label = model.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # the default is not saved
    try:
        numbered = {int(number): name for number, name in id2label.items()}
        saved = [numbered[number] for number in sorted(numbered)]
        if not saved or not all(isinstance(name, str) for name in saved):
            raise ValueError("no names")
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} has the id2label {id2label!r}, expected an object of "
                         "label names by number; save the adapter again.") from error  # fmt: skip
    if label_names is None or saved == label_names:
        return saved
    if len(saved) != len(label_names):
        difference = f"{len(saved)} labels, expected {len(label_names)}"
    elif sorted(map(str, saved)) == sorted(label_names):
        difference = "the expected labels in another order"
    else:
        difference = "labels of other names"
    raise ValueError(
        f"The adapter in {folder} has {difference}: found {saved}, expected {label_names}. Evaluate it on the data "
        "set that it was trained on, or train another adapter for this one."
    )


def _read_shapes(weights: Path) -> dict[str, list[int]]:
    try:
        with safe_open(weights, framework="pt") as file:  # compares the header with the size of the file
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{weights}, {weights.stat().st_size:,} bytes, is no whole safetensors file ({error}): probably a copy or "
            "download broke off. Copy or save the adapter again."
        ) from error


def _check_tokenizer(folder: Path, base: PreTrainedConfig) -> None:
    try:
        entries = len(AutoTokenizer.from_pretrained(folder))
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(f"The tokenizer in {folder} cannot be read ({error}); copy or save it again.") from error
    known = base.get_text_config().vocab_size
    if entries > known:
        raise ValueError(f"The tokenizer in {folder} has {entries:,} entries, but the base model only {known:,} "
                         "embeddings: it is another model's; save the tokenizer that was trained with.")  # fmt: skip


def _expected_shapes(folder: Path, base: PreTrainedConfig, task_type: str) -> dict[str, list[int]]:
    """Return the shapes of the adapter's tensors when its configuration is put on the base model."""
    try:
        with torch.device("meta"):  # shapes without weights
            peft_config = PeftConfig.from_pretrained(folder)
            peft_config.inference_mode = True
            kind = AutoModelForSequenceClassification if task_type == "SEQ_CLS" else AutoModelForCausalLM
            model = kind.from_config(base)
            peft_model = get_peft_model(model, peft_config, low_cpu_mem_usage=True)
    except Exception as error:  # whatever PEFT raises, the reason is the same
        raise ValueError(
            f"The adapter that {folder / ADAPTER_CONFIG} describes cannot be put on the base model: {error} Load it "
            "with the model that it was trained on."
        ) from error
    tensors = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _check_shapes(saved: dict[str, list[int]], expected: dict[str, list[int]], model_name_or_path: str) -> None:
    differences = [
        f"{name} is {saved.get(name, 'missing')}, expected {expected.get(name, 'no such tensor')}"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if differences:
        raise ValueError(
            f"{len(differences)} tensors of the adapter do not fit {model_name_or_path}: {'; '.join(differences[:3])}"
            f"{' ...' if len(differences) > 3 else ''}. It was trained on a model of another width or depth, with "
            f"another number of labels, or with another {ADAPTER_CONFIG}; load it with its own."
        )
