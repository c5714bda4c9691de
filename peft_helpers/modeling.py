"""The pre-trained classifier: what it is loaded with, and what is checked before."""

import re
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.pytorch_utils import Conv1D

from peft_helpers.arguments import Arguments
from peft_helpers.sources.local_files import check_model_folder
from peft_helpers.speed import speed_up
from peft_helpers.tokenization import set_padding


def check_model(args: Arguments) -> None:
    """Read the model's configuration, without its weights, and check that it can run ``config``.

    Raises:
        FileNotFoundError: a local folder lacks ``config.json`` or safetensors weights; the message lists what it holds.
        ValueError: ``max_length`` exceeds the positions that the model has, ``target_modules`` matches no layer, or
            ``load_in_4bit`` is asked for where bitsandbytes does not work.
    """
    name = args.model.model_name_or_path
    check_model_folder(name)
    if args.model.load_in_4bit and (problem := quantization_problem()):
        raise ValueError(f"load_in_4bit is asked for, but {problem}. Leave it out, or repair the installation.")
    model_config = AutoConfig.from_pretrained(name)
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and args.data.max_length > positions:
        raise ValueError(f"max_length is {args.data.max_length}, but {name} has {positions} positions; choose fewer.")
    _check_target_modules(args.lora.target_modules, model_config)


def _check_target_modules(target_modules: str, model_config: PreTrainedConfig) -> None:
    names = [name for name, _ in empty_model(model_config).named_modules()]
    if target_modules != "all-linear" and not any(re.fullmatch(target_modules, name) for name in names):
        raise ValueError(
            f"target_modules is {target_modules!r}, which matches no layer as a whole name; expected all-linear or a "
            f"regular expression such as '.*c_attn'. The layers are {', '.join(filter(None, names))}."
        )


def empty_model(model_config: PreTrainedConfig) -> PreTrainedModel:
    """Return the classifier of a configuration without weights: what its layers are called and of what kind."""
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(model_config)


def classifier_arguments(label_names: list[str]) -> dict:
    """Return what a classifier of ``label_names`` is loaded with: the labels, float32 and safetensors only."""
    return {
        "num_labels": len(label_names),
        "id2label": dict(enumerate(label_names)),
        "label2id": {name: number for number, name in enumerate(label_names)},
        "dtype": torch.float32,
        "use_safetensors": True,
    }


def saved_classifier_arguments(adapter_dir: str | Path) -> dict:
    """Return `classifier_arguments` of the labels in ``adapter_dir``, and its quantisation if it was trained on one.

    Its ``config.json`` names both.
    """
    args = AutoConfig.from_pretrained(adapter_dir)
    arguments = classifier_arguments([config.id2label[number] for number in sorted(config.id2label)])
    if quantization := getattr(args, "quantization_config", None):
        arguments["quantization_config"] = BitsAndBytesConfig.from_dict(quantization)
    return arguments


def quantization_arguments(args: Arguments) -> dict:
    """Return what the model is loaded with besides: QLoRA's 4 bits if ``args.model.load_in_4bit``, else nothing."""
    return (
        {"quantization_config": quantization_config(args.model.model_name_or_path)} if args.model.load_in_4bit else {}
    )


def quantization_config(model_name_or_path: str) -> BitsAndBytesConfig:
    """Return QLoRA's settings (Dettmers et al. 2023) for a model: NF4, double quantisation.

    The head stays as it is: it is new and trained, and would be quantised like any linear layer. What is computed from
    the weights has the type of `compute_dtype`.
    """
    model = empty_model(AutoConfig.from_pretrained(model_name_or_path))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(),
        llm_int8_skip_modules=head_modules(model),  # the name is older than 4 bits
    )


def quantization_problem() -> str | None:
    """Return None where bitsandbytes can quantise a layer and compute with it, else the reason why not."""
    device = best_device()
    try:
        from bitsandbytes.nn import Linear4bit  # it may be missing, or made for other hardware

        Linear4bit(64, 64, quant_type="nf4").to(device)(torch.ones(1, 64, device=device))
    except Exception as error:  # whatever it is, QLoRA is left out for it
        return f"bitsandbytes cannot quantise on this machine ({type(error).__name__}: {error})"
    return None


def best_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def move_to_device(model: torch.nn.Module) -> None:
    """Move ``model`` to `best_device`; a quantised one is where transformers has put it."""
    if not getattr(model, "is_quantized", False):
        model.to(best_device())


def compute_dtype() -> torch.dtype:
    """Return bfloat16 on a GPU that computes in it, float16 on one that does not, float32 on a CPU."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load_base_model(args: Arguments, label_names: list[str], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the pre-trained model with a new head, as the notebook's cells do: seeded, padded, fast."""
    set_seed(args.training.seed)  # the head is random
    model = AutoModelForSequenceClassification.from_pretrained(
        args.model.model_name_or_path, **classifier_arguments(label_names), **quantization_arguments(args)
    )
    keep_4bit_weights_unpacked(model)
    set_padding(tokenizer, model)
    turn_off_dropout(model)
    speed_up(model)
    return model


def keep_4bit_weights_unpacked(model: torch.nn.Module) -> None:
    """Have 4-bit layers compute from the weights as they were stored, on every CPU alike; others are left alone.

    On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weights in the first evaluation. Training then fails, a
    state dict unpacks them with loss, and layers whose outputs are not divisible by 32 are refused.
    """
    # https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.50.2/bitsandbytes/nn/modules.py, Linear4bit.forward
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def turn_off_dropout(model: torch.nn.Module) -> None:
    """Set every dropout in ``model`` to 0; called before LoRA is injected, it leaves LoRA's own dropout alone.

    What is frozen cannot overfit. On a CPU, dropout in the attention also costs memory that grows with the square of
    the length, since SDPA then has to keep every attention weight.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the layers on top of the foundation model: to be trained in full, not by LoRA."""
    children = dict(model.named_children())
    return [name for name in children if name != model.base_model_prefix and list(children[name].parameters())]


def uses_conv1d(model: torch.nn.Module) -> bool:
    """Tell whether the linear layers are GPT-2's ``Conv1D``, whose weights LoRA finds transposed."""
    return any(isinstance(module, Conv1D) for module in model.modules())
