"""The PEFT methods that can be compared: what is right for a classifier on GPT-2, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import peft
from peft.utils.constants import DUMMY_TARGET_MODULES, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel

from peft_helpers.arguments import Arguments
from peft_helpers.comparison.tables import read_results
from peft_helpers.modeling import head_modules, lora_arguments, uses_conv1d
from peft_helpers.tiny_gpt2 import TINY_GPT2

REPEATED = ("lora-r8", "dora")  # methods that run with `comparison_seeds` seeds


@dataclass(frozen=True)
class Method:
    """One way of fine-tuning."""

    learning_rate_factor: float  # times --learning_rate, which is LoRA's, it is the one that suits the method
    make_config: Callable[[Arguments, PreTrainedModel], peft.PeftConfig] | None  # None: all is trained, without PEFT
    quantized: bool = False


def plan_comparison(args: Arguments) -> list[tuple[str, int]]:
    """Return methods with their seeds, those of `REPEATED` with several; what cannot run is a ValueError."""
    names = list(dict.fromkeys(args.comparison.comparison_methods))
    names = list(METHODS) if names == ["all"] else [] if names == ["none"] else names
    for name in names:
        for refused, reason in REFUSED.items():
            if name in refused:
                raise ValueError(f"{name} is refused: {reason} instead.")
        if name not in METHODS:
            raise ValueError(f"Unknown method {name!r}; the known ones are {', '.join(METHODS)}, or all or none alone.")
    read_results(args.comparison.comparison_file)
    seeds = range(args.training.seed, args.training.seed + args.comparison.comparison_seeds)
    return [(name, seed) for name in names for seed in (seeds if name in REPEATED else seeds[:1])]


def adapt_model(model: PreTrainedModel, method: Method, args: Arguments) -> PreTrainedModel | peft.PeftModel:
    """Return ``model`` with only those parameters trainable that ``method`` trains."""
    return model if method.make_config is None else peft.get_peft_model(model, method.make_config(args, model))


def learning_rate(name: str, args: Arguments) -> float:
    """Return the learning rate of a method when ``args.training.learning_rate`` is LoRA's."""
    factor = METHODS[name].learning_rate_factor
    if name == "full" and args.model.model_name_or_path == TINY_GPT2:
        factor = 0.5  # it has little to unlearn: the best of 0.1, 0.25, 0.5 and 1
    return factor * args.training.learning_rate


def _lora(args: Arguments, model: PreTrainedModel, **options) -> peft.LoraConfig:
    # The layers that PEFT chooses for the architecture, in GPT-2 c_attn.
    layers = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, "all-linear")
    arguments = lora_arguments(args.lora, model) | {"target_modules": layers} | options
    arguments["lora_alpha"] *= arguments["r"] / args.lora.lora_r  # every rank scales its update alike
    return peft.LoraConfig(**arguments)


def _classifier(model: PreTrainedModel) -> dict:
    """Return what the other configurations say of the head and of Conv1D, as in `lora_arguments`."""
    return {"task_type": "SEQ_CLS", "modules_to_save": head_modules(model), "fan_in_fan_out": uses_conv1d(model)}


def _layer_norms(args: Arguments, model: PreTrainedModel) -> peft.LNTuningConfig:
    names = {name.split(".")[-1] for name, module in model.named_modules() if "Norm" in type(module).__name__}
    return peft.LNTuningConfig(task_type="SEQ_CLS", modules_to_save=head_modules(model), target_modules=sorted(names))


# Factors without a source: the best of two or three on BBC News' validation examples, with the tiny GPT-2, one seed.
METHODS = {
    "head-only": Method(3, partial(_lora, target_modules=DUMMY_TARGET_MODULES)),  # PEFT's name for no layer at all
    "ln-tuning": Method(2, _layer_norms),
    # Only scales are learned: 10 times LoRA's and more (Kopiczko et al. 2024); 3e-3 (Liu et al. 2022).
    "vera": Method(20, lambda args, model: peft.VeraConfig(**_classifier(model), vera_dropout=args.lora.lora_dropout)),
    "ia3": Method(10, lambda args, model: peft.IA3Config(**_classifier(model))),
    "prefix-tuning": Method(3, lambda args, model: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=16)),
    "lora-r4": Method(1, partial(_lora, r=4)),
    "lora-r8": Method(1, partial(_lora, r=8)),
    "lora-r16": Method(1, partial(_lora, r=16)),
    "lora-all-linear": Method(1, partial(_lora, target_modules="all-linear")),
    "qlora": Method(1, partial(_lora, target_modules="all-linear"), quantized=True),
    "dora": Method(1, partial(_lora, use_dora=True)),  # Liu et al. 2024 take about LoRA's
    "pissa": Method(1, partial(_lora, init_lora_weights="pissa")),
    "rslora": Method(0.7, partial(_lora, r=16, use_rslora=True)),
    "full": Method(0.1, None),  # LoRA's best is about 10 times higher (Schulman et al. 2025)
}
# Why methods are refused, on peft 0.21.2, and the nearest that work; the tests show each, and when one is fixed.
REFUSED = {
    ("prompt-tuning", "p-tuning"): "without token ids, GPT-2 classifies short examples by padding; use prefix-tuning",
    ("osf",): "with a classifier it trains the head only; use head-only",
    ("adaption-prompt", "trainable-tokens"): "peft neither trains nor saves the head with it; use prefix-tuning",
    ("adalora",): "its ranks move in a call after each step, which the Trainer does not make; use lora-r8",
    ("olora",): "its initialization takes Conv1D's weights untransposed: the forward pass fails; use pissa",
    ("kasa", "boft", "oft", "hra", "loha", "lokr", "miss"): "it needs torch.nn.Linear, GPT-2 has Conv1D; use dora",
}
