"""What only a GPU can show: `python -m pytest tests/gpu`, with one GPU or more."""

from dataclasses import replace

import pytest
import torch

from peft_helpers import pipeline
from peft_helpers.checks import assert_same_logits
from peft_helpers.comparison.memory import PeakMemory
from peft_helpers.modeling import compute_dtype
from peft_helpers.prediction import classify_texts, predict
from peft_helpers.training import guard_training

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA: run `python -m pytest tests/gpu` on a GPU"
)
TEXTS = ["a fine film", "what a sad, cold and tired story", ""]


@pytest.fixture
def small(args, raw, monkeypatch):
    """A configuration whose data set is that of the fixture `raw`."""
    monkeypatch.setattr(pipeline, "load_dataset_arguments", lambda args: {})
    monkeypatch.setattr(pipeline, "load_dataset", lambda: raw)
    return args.replace(num_train_epochs=2)


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def dtype(request, monkeypatch):
    if request.param == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: request.param == torch.bfloat16)
    return request.param


@pytest.mark.parametrize("load_in_4bit", [False, True], ids=["LoRA", "QLoRA"])
def test_a_run_trains_and_reloads_within_the_rounding_of_what_computes(small, dtype, load_in_4bit):
    assert compute_dtype() == dtype
    result = pipeline.run(replace(small, load_in_4bit=load_in_4bit))  # asserts that the reload agrees
    losses = [entry["loss"] for entry in result.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_loaded_adapter_predicts_on_the_gpu_what_it_predicts_on_the_cpu(small):
    pipeline.run(small)
    model, tokenizer = pipeline.load_adapter(small.output_dir)
    assert model.device.type == "cuda"
    on_gpu = classify_texts(model, tokenizer, TEXTS).filter(like="P(").to_numpy()
    on_cpu = classify_texts(model.cpu(), tokenizer, TEXTS).filter(like="P(").to_numpy()
    # Outside the Trainer nothing is cast: float32, or TensorFloat-32, whose factors have the precision of float16.
    assert_same_logits(on_cpu, on_gpu, torch.float16)


def test_other_batches_give_the_same_logits_within_the_rounding(small, dtype, model, tokenizer, tokenized):
    alone = predict(model, tokenizer, tokenized["test"], replace(small, per_device_eval_batch_size=1))
    together = predict(model, tokenizer, tokenized["test"], replace(small, per_device_eval_batch_size=16))
    assert_same_logits(alone.predictions, together.predictions, dtype)


def test_running_out_of_memory_says_what_to_change(new_trainer):
    trainer = new_trainer(per_device_train_batch_size=32)
    _, total = torch.cuda.mem_get_info()
    trainer.model.register_forward_hook(lambda *_: torch.empty(2 * total, dtype=torch.uint8, device="cuda"))
    message = r"Out of memory in training, on 32 rows.*CUDA out of memory.*--per_device_train_batch_size 8"
    with pytest.raises(MemoryError, match=message), guard_training(trainer):
        trainer.train()


def test_peak_memory_counts_what_was_taken_and_given_back():
    with PeakMemory() as memory:
        block = torch.empty(64_000_000, dtype=torch.uint8, device="cuda")
        del block
    assert memory.megabytes == pytest.approx(64, abs=3)
