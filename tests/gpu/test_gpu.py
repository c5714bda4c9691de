"""What only a GPU can show: `python -m pytest tests/gpu`, with one GPU or more."""

import pytest
import torch
from transformers.trainer_utils import PredictionOutput

from peft_helpers import (
    assert_same_predictions,
    classify_texts,
    guard_training,
    load_adapter,
    predict,
    prepare_splits,
    run,
)
from peft_helpers.distributed import compute_dtype

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA: run `python -m pytest tests/gpu` on a GPU"
)
TEXTS = ["a fine film", "what a sad, cold and tired story", ""]


@pytest.fixture
def dataset(raw, args):
    return prepare_splits(raw, args)


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def dtype(request, monkeypatch):
    if request.param == torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU does not compute in bfloat16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: request.param == torch.bfloat16)
    return request.param


@pytest.mark.parametrize("load_in_4bit", [False, True], ids=["LoRA", "QLoRA"])
def test_a_run_trains_and_reloads_within_the_rounding_of_what_computes(args, dataset, dtype, load_in_4bit):
    assert compute_dtype() == dtype
    args = args.replace(load_in_4bit=load_in_4bit, bf16=None, fp16=None)  # the type that `dtype` asks for
    result = run(dataset, args)  # asserts that the reload agrees
    losses = [entry["loss"] for entry in result.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_loaded_adapter_predicts_on_the_gpu_what_it_predicts_on_the_cpu(args, dataset):
    run(dataset, args)
    model, tokenizer = load_adapter(args.training.output_dir)
    assert model.device.type == "cuda"
    on_gpu, on_cpu = (
        PredictionOutput(classify_texts(model.to(device), tokenizer, TEXTS).filter(like="P(").to_numpy(), None, {})
        for device in ("cuda", "cpu")
    )
    # Outside the Trainer nothing is cast: float32, or TensorFloat-32, whose factors have the precision of float16.
    assert_same_predictions(on_cpu, on_gpu, torch.float16)


def test_other_batches_give_the_same_logits_within_the_rounding(args, dtype, model, tokenizer, tokenized):
    args = args.replace(bf16=None, fp16=None)
    alone, together = (
        predict(model, tokenizer, tokenized["test"], args.replace(per_device_eval_batch_size=size)) for size in (1, 16)
    )
    assert_same_predictions(alone, together, dtype)


def test_running_out_of_memory_says_what_to_change(new_trainer):
    trainer = new_trainer(per_device_train_batch_size=32)
    _, total = torch.cuda.mem_get_info()
    trainer.model.register_forward_hook(lambda *_: torch.empty(2 * total, dtype=torch.uint8, device="cuda"))
    message = r"Out of memory in training, on 32 examples.*CUDA out of memory.*a smaller --per_device_train_batch_size"
    with pytest.raises(MemoryError, match=message), guard_training(trainer):
        trainer.train()


def test_peak_memory_counts_what_was_taken_and_given_back():
    from peft_helpers.comparison.runner import free_memory, peak_memory

    before = free_memory()
    block = torch.empty(64_000_000, dtype=torch.uint8, device="cuda")
    del block
    assert peak_memory() - before == pytest.approx(64e6, abs=3e6)
