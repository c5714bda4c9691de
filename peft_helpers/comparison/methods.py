"""The PEFT methods that can be compared: what is right for a classifier on GPT-2, and what is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import peft
from peft import PeftConfig, PeftModel, PeftType
from peft.utils.constants import DUMMY_TARGET_MODULES, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel, TrainerCallback

from peft_helpers.arguments import TINY_GPT2, Arguments
from peft_helpers.comparison.tables import read_results
from peft_helpers.modeling import head_modules, lora_arguments, uses_conv1d

REPEATED = ("lora-r8", "dora", "ia3")  # methods that run with `comparison_seeds` seeds


@dataclass(frozen=True)
class Method:
    """One way of fine-tuning.

    ``learning_rate_factor`` times ``learning_rate``, which is LoRA's, is the learning rate that suits the method, for
    the reason in ``reason``. ``make_config`` is None for full fine-tuning, in which PEFT has no part.
    """

    name: str
    learning_rate_factor: float
    reason: str
    make_config: Callable[[Arguments, PreTrainedModel], PeftConfig] | None = None
    quantized: bool = False


def find_method(name: str) -> Method:
    """Return the method of that name.

    Raises:
        ValueError: there is no such method, or it is refused; the message says why, and what to use instead.
    """
    if name in REFUSED:
        reason, nearest = REFUSED[name]
        raise ValueError(f"{name} is refused: {reason}. The nearest method that works is {nearest}.")
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}; the known ones are {', '.join(METHODS)}.")
    return METHODS[name]


def plan_comparison(args: Arguments) -> list[tuple[str, int]]:
    """Return the runs of ``args.comparison``: each method with its seed, those of `REPEATED` with several.

    Raises:
        ValueError: a method is not known, or refused, or ``comparison_file`` cannot be used; see `read_results`.
    """
    names = list(dict.fromkeys(args.comparison.comparison_methods))
    if not names or (len(names) > 1 and {"all", "none"}.intersection(names)):
        raise ValueError(f"comparison_methods is {names}; expected names of methods, or all or none alone.")
    methods = {"all": list(METHODS), "none": []}.get(names[0], names)
    for name in methods:
        find_method(name)
    if methods:
        read_results(args.comparison.comparison_file)
    seeds = range(args.training.seed, args.training.seed + args.comparison.comparison_seeds)
    return [(name, seed) for name in methods for seed in (seeds if name in REPEATED else seeds[:1])]


def adapt_model(model: PreTrainedModel, method: Method, args: Arguments) -> PreTrainedModel | PeftModel:
    """Return ``model`` with only those parameters trainable that ``method`` trains.

    Unless a method is about certain layers, PEFT chooses them for the architecture: for LoRA in GPT-2 ``c_attn``, and
    every linear layer where PEFT has no choice for the architecture.
    """
    return model if method.make_config is None else peft.get_peft_model(model, method.make_config(args, model))


class AllocateRanks(TrainerCallback):
    """Has AdaLoRA move its ranks to where they matter after each step, which the Trainer does not do by itself."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        """Call AdaLoRA's ``update_and_allocate`` while the step's gradients are still there."""
        if getattr(model, "peft_type", None) == PeftType.ADALORA:
            model.base_model.update_and_allocate(state.global_step + 1)


def learning_rate(method: Method, args: Arguments) -> float:
    """Return the learning rate of ``method`` when ``args.training.learning_rate`` is LoRA's."""
    tiny = TINY_GPT2_FACTORS if args.model.model_name_or_path == TINY_GPT2 else {}
    return tiny.get(method.name, method.learning_rate_factor) * args.training.learning_rate


def _lora(args: Arguments, model: PreTrainedModel, **options) -> peft.LoraConfig:
    is_known = model.config.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    arguments = lora_arguments(args.lora, model) | {"target_modules": None if is_known else "all-linear"} | options
    # Every rank scales its update alike.
    return peft.LoraConfig(**arguments | {"lora_alpha": args.lora.lora_alpha * arguments["r"] / args.lora.lora_r})


_head_only = partial(_lora, target_modules=DUMMY_TARGET_MODULES)  # PEFT's name for no layer at all
_lora_all_linear = partial(_lora, target_modules="all-linear")
_rank_stabilized = partial(_lora, r=16, use_rslora=True)


def _classifier(model: PreTrainedModel) -> dict:
    """Return what the other configurations say of the head: as in `lora_arguments`, all of it is trained and saved."""
    return {"task_type": "SEQ_CLS", "modules_to_save": head_modules(model)}


def _ia3(args: Arguments, model: PreTrainedModel) -> peft.IA3Config:
    return peft.IA3Config(**_classifier(model), fan_in_fan_out=uses_conv1d(model))


def _adalora(args: Arguments, model: PreTrainedModel) -> peft.AdaLoraConfig:
    steps = args.comparison.comparison_steps
    return peft.AdaLoraConfig(
        **_classifier(model),
        init_r=args.lora.lora_r * 3 // 2,  # Zhang et al. 2023, section 4: starts at 1.5 times its final rank
        target_r=args.lora.lora_r,
        total_step=steps,
        tinit=steps // 10,
        tfinal=steps // 3,
        lora_alpha=args.lora.lora_alpha,
        lora_dropout=args.lora.lora_dropout,
        fan_in_fan_out=uses_conv1d(model),
    )


def _vera(args: Arguments, model: PreTrainedModel) -> peft.VeraConfig:
    return peft.VeraConfig(**_classifier(model), vera_dropout=args.lora.lora_dropout, fan_in_fan_out=uses_conv1d(model))


def _layer_norms(args: Arguments, model: PreTrainedModel) -> peft.LNTuningConfig:
    names = {name.split(".")[-1] for name, module in model.named_modules() if "Norm" in type(module).__name__}
    return peft.LNTuningConfig(**_classifier(model), target_modules=sorted(names))


def _prefix_tuning(args: Arguments, model: PreTrainedModel) -> peft.PrefixTuningConfig:
    return peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=16)


_LORA = "the one that learning_rate is meant for"
# Reasons without a source were found on BBC News' validation examples with the tiny GPT-2, one seed, two or three
# factors.
METHODS = {
    method.name: method
    for method in (
        Method("head-only", 3, "few weights, none of them pre-trained", _head_only),
        Method("ln-tuning", 2, "2 was best of 2, 5 and 10", _layer_norms),
        Method("vera", 20, "only scales are learned: 10 times LoRA's and more (Kopiczko et al. 2024)", _vera),
        Method("ia3", 10, "only scales are learned: 3e-3 (Liu et al. 2022), where LoRA takes 2e-4 to 5e-4", _ia3),
        Method("prefix-tuning", 3, "random vectors; 3 was better than 10", _prefix_tuning),
        Method("lora-r4", 1, _LORA, partial(_lora, r=4)),
        Method("lora-r8", 1, _LORA, partial(_lora, r=8)),
        Method("lora-r16", 1, _LORA, partial(_lora, r=16)),
        Method("lora-all-linear", 1, _LORA, _lora_all_linear),
        Method("qlora", 1, _LORA, _lora_all_linear, quantized=True),
        Method("dora", 1, "as for LoRA (Liu et al. 2024 take about the same)", partial(_lora, use_dora=True)),
        Method("pissa", 1, "1 was better than 0.3", partial(_lora, init_lora_weights="pissa")),
        Method("rslora", 0.7, "its update is scaled up; 0.7 was better than 0.3", _rank_stabilized),
        Method("adalora", 3, "a diagonal from zero; 3 was best of 1, 3 and 10", _adalora),
        Method("full", 0.1, "LoRA's best is about 10 times higher (Schulman et al. 2025)"),
    )
}
# The tiny model has little to unlearn: its best was 0.5, of 0.1, 0.25, 0.5 and 1.
TINY_GPT2_FACTORS = {"full": 0.5}

_PADDING = (
    "its virtual tokens are joined to embeddings, so GPT-2 gets no token ids, takes the last position for the end of "
    "the text, and classifies every example that is shorter than its batch by padding, without an error"
)
_HEAD_UNTRAINED = "peft neither trains nor saves the classification head with it, so the head stays random"
_LINEAR_ONLY = "it knows torch.nn.Linear only, and GPT-2's layers are Conv1D: peft raises an error"
# Method: (why it is refused, the nearest that works). On peft 0.21.2; tests/comparison/test_methods.py shows each, and
# so tells when one is fixed.
REFUSED = {
    "prompt-tuning": (_PADDING, "prefix-tuning"),
    "p-tuning": (_PADDING, "prefix-tuning"),
    "osf": ("with a classifier it trains the head only", "head-only"),
    "adaption-prompt": (_HEAD_UNTRAINED, "prefix-tuning"),
    "trainable-tokens": (_HEAD_UNTRAINED, "head-only"),
    "olora": ("its initialization takes Conv1D's weights untransposed: the forward pass fails", "pissa"),
    "kasa": (_LINEAR_ONLY, "adalora"),
    "boft": (_LINEAR_ONLY, "dora"),
    "oft": (_LINEAR_ONLY, "dora"),
    "hra": (_LINEAR_ONLY, "dora"),
    "loha": (_LINEAR_ONLY, "lora-r8"),
    "lokr": (_LINEAR_ONLY, "lora-r8"),
    "miss": (_LINEAR_ONLY, "lora-r8"),
}
