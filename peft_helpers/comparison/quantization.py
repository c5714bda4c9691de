"""What 4-bit weights save."""

import pandas as pd
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_helpers.modeling import head_modules


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
    state = getattr(weight, "quant_state", None)
    if state is None:
        return 0
    scales = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
    return sum(tensor.nbytes for tensor in scales)
