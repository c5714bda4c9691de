"""A saved adapter merged into its base model: a transformers folder that needs no PEFT, and an ONNX file."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, BatchEncoding, PreTrainedModel

from peft_helpers import INSTALL
from peft_helpers.interruptions import replace_folder
from peft_helpers.pipeline import load_adapter, load_recipe


@torch.no_grad()
def export_adapter(adapter_dir: str | Path, export_dir: str | Path, onnx: bool = False) -> None:
    """Write the merged model, with label names and tokenizer, to ``export_dir``; with ``onnx`` also ``model.onnx``.

    An ``export_dir`` that is not empty is a FileExistsError, a missing package an ImportError, an adapter in 4 bits a
    ValueError, and a logit x that differs by more than 1e-5 (1 + |x|), in ONNX 1e-4 (1 + |x|), an AssertionError.
    """
    target = Path(export_dir)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise FileExistsError(f"export_dir is {str(export_dir)!r}, which exists and is not empty; choose another.")
    if load_recipe(adapter_dir).model.load_in_4bit:
        raise ValueError("The adapter was trained in 4 bits, and merging rounds anew: train without --load_in_4bit.")
    if onnx and (missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if not find_spec(name)]):
        raise ImportError(f"--onnx needs {', '.join(missing)}, not installed; install with {INSTALL}.")
    model, tokenizer = load_adapter(adapter_dir)
    batch = tokenizer(["A text", "and a longer one, for padding"], padding=True, truncation=True, return_tensors="pt")
    expected = model.cpu()(**batch).logits
    with replace_folder(target) as folder:
        model.merge_and_unload().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        merged = AutoModelForSequenceClassification.from_pretrained(folder)
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-5, atol=1e-5)
        if onnx:
            logits = _export_to_onnx(merged, batch, folder / "model.onnx")
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def _export_to_onnx(model: PreTrainedModel, batch: BatchEncoding, path: Path) -> torch.Tensor:
    """Write a file for batches of any size, and return the logits that onnxruntime computes with it."""
    import onnxruntime

    sizes = dict.fromkeys(batch, dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC))  # texts and tokens
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            model, kwargs=dict(batch), f=path, dynamic_shapes=sizes, output_names=["logits"], verbose=False
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in batch.items()})
    return torch.from_numpy(logits)
