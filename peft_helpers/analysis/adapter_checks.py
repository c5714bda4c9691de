"""What is checked before a saved adapter is loaded: that it is complete, safe to open, and fits its base and data."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from peft_helpers.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peft_helpers.arguments import find_model

_JSON = (ADAPTER_CONFIG, "config.json", "tokenizer_config.json")
_NEEDED = (*_JSON, ADAPTER_WEIGHTS, "tokenizer.json")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
# Entries by which transformers 5.23 and PEFT 0.21 import code, or read another model or file.
_LEADS_ELSEWHERE = ("auto_map", "attn_implementation", "_attn_implementation", "experts_implementation",
                    "_experts_implementation", "fast_tokenizer_files", "auto_mapping", "revision", "megatron_config",
                    "adapters", "shadow_model", "tokenizer_name_or_path",
                    "prompt_tuning_init_state_dict_path")  # fmt: skip


def check_adapter(
    adapter_dir: str | Path, model_name_or_path: str, label_names: list[str] | None = None, task_type: str = "SEQ_CLS"
) -> None:
    """Check that an adapter can be loaded safely, onto the base model ``model_name_or_path``.

    ``label_names`` are those it has to know, in the order of their numbers; None: any. ``task_type`` is PEFT's name.

    Raises:
        FileNotFoundError: the folder or a file in it is missing, or the weights are pickled, which are never opened.
        ValueError: a file cannot be read, or names code or files elsewhere; or the base model, the labels, the
            tokenizer or the tensors differ from those expected. The message names the difference.
    """
    folder = Path(adapter_dir)
    _check_files(folder)
    adapter, *_ = [_read_json(folder / name) for name in _JSON]
    _check_peft_config(adapter, model_name_or_path, task_type)
    with _explain(f"config.json or the tokenizer in {folder} cannot be read"):
        config, entries = AutoConfig.from_pretrained(folder), len(AutoTokenizer.from_pretrained(folder))
    found = [name for _, name in sorted(config.id2label.items())]
    if task_type == "SEQ_CLS" and label_names not in (None, found):
        raise ValueError(f"The adapter in {folder} has the labels {found}, expected {label_names}; use it with the "
                         "dataset that it was trained on, or train another.")  # fmt: skip
    base = AutoConfig.from_pretrained(model_name_or_path, num_labels=config.num_labels)
    if entries > (known := base.get_text_config().vocab_size):
        raise ValueError(f"The tokenizer in {folder} has {entries:,} entries, but the base model only {known:,} "
                         "embeddings: it is another model's; save the tokenizer that was trained with.")  # fmt: skip
    model, base_model = (_empty_model(each, task_type) for each in (config, base))
    _compare(folder / "config.json", _shapes(model.state_dict()), _shapes(base_model.state_dict()))
    _compare(folder / ADAPTER_WEIGHTS, _read_shapes(folder / ADAPTER_WEIGHTS), _expected_shapes(folder, model))


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise FileNotFoundError(
            f"Expected an adapter's folder at {str(folder)!r}, found {found}; save an adapter there, or name another."
        )
    outside = [path.name for path in folder.rglob("*") if not path.resolve().is_relative_to(folder.resolve())]
    if outside:
        raise ValueError(f"In {folder}, {', '.join(outside)} links to outside the folder; replace the link by a copy.")
    names = sorted(path.name for path in folder.iterdir())
    if missing := [name for name in _NEEDED if not (folder / name).is_file()]:
        is_pickled = ADAPTER_WEIGHTS in missing and any(Path(name).suffix in _PICKLES for name in names)
        why = "Pickled weights can run any code and are not loaded. " if is_pickled else ""
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}; found {', '.join(names) or 'nothing'}. {why}Copy the whole folder "
            "again, or save the adapter again."
        )


@contextmanager
def _explain(what: str) -> Iterator[None]:
    """Put ``what`` and what to do around the error of a library, whatever its type."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} ({error!r}); copy the folder again, or save the adapter again.") from error


def _read_json(path: Path) -> dict:
    with _explain(f"{path} is no JSON object"):
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    for name in _LEADS_ELSEWHERE:
        if content.get(name) is not None:
            raise ValueError(
                f"{path} has {name} {content[name]!r}, by which loading could read or run what lies elsewhere. Use "
                "adapters from a source that you trust, without this entry."
            )
    return content


def _check_peft_config(adapter: dict, model_name_or_path: str, task_type: str) -> None:
    if adapter.get("task_type") != task_type:
        raise ValueError(f"{ADAPTER_CONFIG} has the task_type {adapter.get('task_type')!r}, expected {task_type!r}: it "
                         "was trained for another task, or saved without its head.")  # fmt: skip
    found = adapter.get("base_model_name_or_path")
    if find_model(str(found)) != find_model(model_name_or_path):
        raise ValueError(
            f"The adapter was made for the base model {found!r}, but {model_name_or_path!r} was expected. If it is the "
            f"same model under another name, correct the name in {ADAPTER_CONFIG}."
        )


def _empty_model(config: PreTrainedConfig, task_type: str) -> PreTrainedModel:
    kind = AutoModelForSequenceClassification if task_type == "SEQ_CLS" else AutoModelForCausalLM
    with torch.device("meta"):  # shapes without weights
        return kind.from_config(config)


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _read_shapes(weights: Path) -> dict[str, list[int]]:
    what = f"{weights}, {weights.stat().st_size:,} bytes, is no complete safetensors file"
    with _explain(what), safe_open(weights, framework="pt") as file:  # compares the header with the file's size
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def _expected_shapes(folder: Path, model: PreTrainedModel) -> dict[str, list[int]]:
    with _explain(f"The adapter in {folder} cannot be put on the base model"), warnings.catch_warnings(action="ignore"):
        peft_config = PeftConfig.from_pretrained(folder, inference_mode=True)
        peft_model = get_peft_model(model, peft_config, low_cpu_mem_usage=True)
    return _shapes(get_peft_model_state_dict(peft_model, save_embedding_layers=False))


def _compare(file: Path, found: dict[str, list[int]], expected: dict[str, list[int]]) -> None:
    """Compare tensors by name and shape: of missing ones, the libraries would only warn."""
    differences = [name for name in sorted(found | expected) if found.get(name) != expected.get(name)]
    if differences:
        first = differences[0]
        raise ValueError(
            f"{file} does not fit the base model: {len(differences)} tensors differ, {first} is "
            f"{found.get(first, 'missing')}, expected {expected.get(first, 'missing')}. Load the adapter with the base "
            "model and configuration that it was trained with."
        )
