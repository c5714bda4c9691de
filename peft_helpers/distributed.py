"""The device, the type that it computes in, and the processes."""

import ctypes
import timeit
from contextlib import suppress
from functools import cache

import torch
from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def compute_dtype() -> torch.dtype:
    """Return bfloat16 where a GPU or CPU has it, float16 on another GPU of NVIDIA, float32 elsewhere."""
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if not torch.accelerator.is_available() and cpu_has_bfloat16() else torch.float32


@cache
def cpu_has_bfloat16() -> bool:
    """Tell whether the CPU names an instruction for bfloat16 and PyTorch uses it, which a product in it shows."""
    if not any(is_there for name, is_there in torch.cpu.get_capabilities().items() if "bf16" in name):
        return False
    # In it, a product takes half the time; where PyTorch does without, 30 to 250 times: no other work can hide that.
    limit = 4 * min(_time_product(torch.float32) for _ in range(20))
    return any(_time_product(torch.bfloat16) < limit for _ in range(20))


def _time_product(dtype: torch.dtype) -> float:
    matrix = torch.ones(256, 256, dtype=dtype)
    return timeit.timeit(lambda: matrix @ matrix, number=1)


def hold_in_bfloat16(model: PreTrainedModel) -> None:
    """Hold the frozen weights of linear layers in bfloat16, to which autocast would convert them in each pass anyway.

    What is computed stays the same to the last bit (but for DoRA's norms), in half of the memory. Weights of LoRA, of a
    new head and of embeddings keep their 32 bits. Outside of autocast, the layers convert what they get.
    """
    adapters = set(getattr(model, "peft_config", {}))
    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, torch.nn.Embedding)}
    for name, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear | Conv1D) or adapters & set(name.split(".")):
            continue
        is_trained = any(parameter.requires_grad for parameter in layer.parameters())
        if not is_trained and layer.weight.dtype == torch.float32 and id(layer.weight) not in embeddings:
            layer.to(torch.bfloat16).register_forward_pre_hook(lambda layer, inputs: inputs[0].to(layer.weight.dtype))


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees, to the end of the process: the next step would get it page by page."""
    # https://man7.org/linux/man-pages/man3/mallopt.3.html
    trim_threshold, mmap_max = -1, -4
    call_glibc("mallopt", trim_threshold, -1)  # no trimming
    call_glibc("mallopt", mmap_max, 0)  # large tensors lie in the heap, too


def call_glibc(function: str, *arguments: int) -> None:
    """Call a function of glibc; where there is another C library, do nothing."""
    with suppress(OSError, AttributeError):
        getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)


def quantization_problem() -> str | None:
    """Return None where bitsandbytes can quantize a layer and compute with it, else the reason why not."""
    device = process_state().device
    try:
        from bitsandbytes.nn import Linear4bit  # it may be missing, or made for other hardware

        Linear4bit(64, 64, quant_type="nf4").to(device)(torch.ones(1, 64, device=device))
    except Exception as error:  # whatever it is, QLoRA is left out for it
        return f"bitsandbytes cannot quantize on this machine ({type(error).__name__}: {error})"
    return None


def process_state() -> PartialState:
    """Return Accelerate's state of the processes: their number, which one this is, and its device."""
    # Accelerate connects processes without a GPU only when it is told that they are to use the CPU.
    return PartialState(cpu=not torch.accelerator.is_available())
