import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS
from peft import LoraModel
from transformers import AutoModelForSequenceClassification

from peft_helpers import classify_texts, describe_adapter, export_adapter, load_adapter
from peft_helpers.app import export

TEXTS = ["a fine film", "bad", "what a sad, cold and tired story"]
CLASSIFY = """
import json, sys
from transformers import pipeline
print(json.dumps(pipeline("text-classification", sys.argv[1], top_k=None)(sys.argv[2:], batch_size=3)))
assert not {"peft", "peft_helpers"} & sys.modules.keys()
"""


@pytest.fixture
def adapter(peft_model, tokenizer, args) -> Path:
    """An adapter whose B is not zero, as `run` saves one."""
    folder = Path(args.training.output_dir)
    peft_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    describe_adapter(peft_model, args, folder)
    return folder


def test_transformers_alone_gives_the_same_from_the_merged_model(adapter, tmp_path):
    export_adapter(adapter, tmp_path / "merged")
    command = [sys.executable, "-I", "-c", CLASSIFY, str(tmp_path / "merged"), *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    expected = classify_texts(*load_adapter(adapter), TEXTS)
    for number, scores in enumerate(json.loads(done.stdout.splitlines()[-1])):
        assert {score["label"] for score in scores} == set(LABELS)
        for score in scores:
            assert score["score"] == pytest.approx(expected.loc[number, f"P({score['label']})"], abs=1e-5)


def test_onnx_gives_the_same_for_padded_batches_of_any_size(adapter, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export_adapter(adapter, tmp_path / "merged", onnx=True)
    session = onnxruntime.InferenceSession(tmp_path / "merged" / "model.onnx")
    model, tokenizer = load_adapter(adapter)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    for texts in (TEXTS, TEXTS[:1], TEXTS * 4):
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected, of_merged = model(**batch).logits.numpy(), merged(**batch).logits.numpy()
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})
        np.testing.assert_allclose(of_merged, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected, axis=0).min() > 1e-2  # texts differ, so an error in padding would show


@pytest.mark.parametrize("onnx", [False, True])
def test_other_logits_are_an_error_and_leave_no_folder(onnx, adapter, tmp_path, monkeypatch):
    if onnx:
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
        write = export._export_to_onnx
        monkeypatch.setattr(export, "_export_to_onnx", lambda *inputs: write(*inputs) + 1e-3)
    else:
        monkeypatch.setattr(LoraModel, "merge_and_unload", lambda model: model.unload())
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        export_adapter(adapter, tmp_path / "merged", onnx)
    assert not (tmp_path / "merged").exists()


@pytest.mark.reliability("bad input")
def test_what_cannot_be_exported_is_refused_before_it_is_loaded(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "load_adapter", lambda *_: pytest.fail("loaded the adapter"))
    with pytest.raises(FileExistsError, match="which exists and is not empty; choose another"):
        export_adapter(adapter, adapter)
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(
        ImportError, match=r"needs onnxscript.* `python -m pip install -r .*optional_requirements\.txt`"
    ):
        export_adapter(adapter, tmp_path / "merged", onnx=True)
    recipe = json.loads((adapter / "run_config.json").read_text()) | {"load_in_4bit": True}
    (adapter / "run_config.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="trained in 4 bits"):
        export_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
