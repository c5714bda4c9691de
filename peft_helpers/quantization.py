"""QLoRA's base: linear layers in 4 bits by bitsandbytes, on a GPU or a CPU."""

import pandas as pd
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_helpers.models import empty_model, head_modules


def quantization_problem() -> str | None:
    """Return None where bitsandbytes can quantise a layer and compute with it, else the reason why not."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        Linear4bit(64, 64, quant_type="nf4").to(device)(torch.ones(1, 64, device=device))
    except Exception as error:  # whatever it is, QLoRA is left out for it
        return f"bitsandbytes cannot quantise on this machine ({type(error).__name__}: {error})"
    return None


def quantization_config(model_name_or_path: str) -> BitsAndBytesConfig:
    """Return QLoRA's settings (Dettmers et al. 2023) for a model: NF4, double quantisation.

    The head stays as it is: it is new and trained, and would be quantised like any linear layer. What is computed from
    the weights is bfloat16 on a GPU that has it, else float32, as in `evaluation_arguments`.
    """
    model = empty_model(AutoConfig.from_pretrained(model_name_or_path))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(),
        llm_int8_skip_modules=head_modules(model),  # the name is older than 4 bits
    )


def compute_dtype() -> torch.dtype:
    """Return bfloat16 on a GPU that computes in it, float16 on one that does not, float32 on a CPU."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def compare_sizes(full: PreTrainedModel, quantized: PreTrainedModel) -> pd.DataFrame:
    """Return the sizes in MB (10^6 bytes) of a model and of the same with 4-bit layers, and how many times smaller."""
    columns = {name: _sizes(model) for name, model in (("32 bits, MB", full), ("4 bits, MB", quantized))}
    table = pd.DataFrame(columns, index=["weights of the linear layers", "whole model"])
    return table.assign(**{"times smaller": table["32 bits, MB"] / table["4 bits, MB"]})


def _sizes(model: PreTrainedModel) -> list[float]:
    """Return the MB of the weights of all linear layers but the head, and of the whole model."""
    head = set(head_modules(model))
    weights = [layer.weight for name, layer in model.named_modules()
               if isinstance(layer, (torch.nn.Linear, Conv1D)) and name not in head]  # fmt: skip
    scales = sum(map(_scale_bytes, weights))  # not parameters, so the model does not count them
    return [(sum(weight.nbytes for weight in weights) + scales) / 1e6, (model.get_memory_footprint() + scales) / 1e6]


def _scale_bytes(weight: torch.Tensor) -> int:
    if not isinstance(weight, Params4bit):
        return 0
    state = weight.quant_state
    scales = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return sum(tensor.nbytes for tensor in scales)
