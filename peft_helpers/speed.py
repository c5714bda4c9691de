"""What makes a classifier faster without changing what it computes."""

import ctypes
import platform
import threading

import torch
from peft import PeftModel
from transformers import GPT2ForSequenceClassification, PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

# Option numbers of mallopt, from glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_INT = 2**31 - 1  # what mallopt takes


def speed_up(model: PreTrainedModel | PeftModel) -> None:
    """Have ``model`` compute the same in less time and memory; measured in ``tests/benchmarks/README.md``.

    GELU becomes one operation, no keys and values are kept for a next token, GPT-2's last layer spares the tokens that
    the head does not read, and freed memory is reused. Logits change by rounding only, by less than 1e-5.
    """
    fuse_gelu(model)
    model.config.use_cache = False
    read_one_token(model)
    reuse_freed_memory()


def fuse_gelu(model: torch.nn.Module) -> None:
    """Replace GPT-2's GELU of eight operations, each with a result in memory, by the same function as one."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, GELUTanh())


def read_one_token(model: PreTrainedModel | PeftModel) -> None:
    """Have the last layer's MLP, two thirds of the layer's weights, see only the token that GPT-2's head reads.

    No other token's output of that MLP reaches the logits; ``hidden_states`` of the last layer lose their meaning.
    A model of another architecture is left as it is.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(model, GPT2ForSequenceClassification) or hasattr(model, "_reads_one_token"):
        return
    model._reads_one_token = True
    batch = threading.local()  # a served model may be called by several threads
    # A layer is computed again for the gradients by activation_checkpointing, on a GPU in a thread of autograd's own.
    latest = {}

    def find(transformer, args, kwargs):
        input_ids = args[0] if args else kwargs["input_ids"]
        batch.last = None  # of embeddings in place of ids, the head reads the last
        latest["last"] = batch.last
        if input_ids is not None:
            # As GPT2ForSequenceClassification does: the last token that is no padding.
            tokens = torch.arange(input_ids.shape[-1], dtype=torch.int32, device=input_ids.device)
            batch.last = latest["last"] = (tokens * (input_ids != model.config.pad_token_id)).argmax(-1)

    def select(layer_norm, args):
        (hidden_states,) = args
        last = getattr(batch, "last", latest["last"])
        if last is None:
            return hidden_states
        rows = torch.arange(len(hidden_states), device=hidden_states.device)
        return hidden_states[rows, last.to(hidden_states.device)][:, None]  # added to the residual of each token

    model.transformer.register_forward_pre_hook(find, with_kwargs=True)
    model.transformer.h[-1].ln_2.register_forward_pre_hook(select)


def reuse_freed_memory() -> None:
    """Have glibc's allocator keep freed memory for what is allocated next.

    By default it gives large blocks back at once, and the system then clears every page anew: in a training step on a
    CPU the same blocks are allocated over and over. Other C libraries and CUDA's allocator are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)  # bytes
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
