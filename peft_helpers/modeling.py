"""The pre-trained model: what it is loaded with, what is checked before, and where LoRA goes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from datasets import DatasetDict
from peft import prepare_model_for_kbit_training
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from peft_helpers.arguments import Arguments, LoraArguments, ModelArguments
from peft_helpers.distributed import compute_dtype, quantization_problem
from peft_helpers.tokenization import set_padding


@dataclass(frozen=True)
class Task:
    """What differs between classification and language modeling; all else is the same code."""

    task_type: str  # PEFT's name
    auto_class: type
    tokenize: Callable[[DatasetDict, PreTrainedTokenizerBase], DatasetDict]
    make_data_collator: Callable[[PreTrainedTokenizerBase], Callable]
    compute_metrics: Callable[[transformers.EvalPrediction], dict[str, float]] | None  # None: only the loss
    metric_for_best_model: str  # chooses the checkpoint on validation: the greatest, but of a loss the least


def check_model(args: Arguments) -> None:
    """Check, by the model's configuration alone, that it can run ``args``.

    A local folder without ``config.json`` or safetensors weights is a FileNotFoundError. A ValueError tells that the
    model has fewer positions than ``max_length``, ``target_modules`` matches no layer, or 4 bits do not work here.
    """
    name = args.model.model_name_or_path
    _check_folder(name)
    if args.model.load_in_4bit and (problem := quantization_problem()):
        raise ValueError(f"load_in_4bit is asked for, but {problem}. Leave it out, or repair the installation.")
    config = AutoConfig.from_pretrained(name)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and args.data.max_length > positions:
        raise ValueError(f"max_length is {args.data.max_length}, but {name} has {positions} positions; choose fewer.")
    target_modules, names = args.lora.target_modules, [name for name, _ in empty_model(config).named_modules()]
    if target_modules != "all-linear" and not any(re.fullmatch(target_modules, name) for name in names):
        raise ValueError(
            f"target_modules is {target_modules!r}, which matches no layer as a whole name; expected all-linear or a "
            f"regular expression such as '.*c_attn'. The layers are {', '.join(filter(None, names))}."
        )


def _check_folder(name: str) -> None:
    folder = Path(name)
    is_local = folder.is_dir() or folder.is_absolute() or name.startswith(".")
    if is_local and not (Path(folder, "config.json").is_file() and any(folder.glob("model*.safetensors"))):
        found = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
        raise FileNotFoundError(
            f"model_name_or_path is {name!r}: expected a folder with config.json and model*.safetensors (pickled "
            f"weights are not loaded), found {found}."
        )


def empty_model(config: transformers.PreTrainedConfig) -> PreTrainedModel:
    """Return the classifier of a configuration without weights: what its layers are called and of what kind."""
    with torch.device("meta"):
        return transformers.AutoModelForSequenceClassification.from_config(config)


def model_arguments(args: ModelArguments, label_names: list[str] | None = None) -> dict:
    """Return arguments for ``from_pretrained``: labels, float32, safetensors only, no dropout, 4 bits if asked for."""
    config = AutoConfig.from_pretrained(args.model_name_or_path)
    arguments = {"dtype": torch.float32, "use_safetensors": True}
    # Two arguments make the same function faster: GPT-2's activation as one fused operation, and no dropout in the
    # frozen model (LoRA's own stays). Dropout in the attention also costs memory that grows with the square of the
    # length, since PyTorch then has to keep every attention weight.
    arguments |= {name: 0.0 for name, value in config.to_dict().items() if "drop" in name and isinstance(value, float)}
    if getattr(config, "activation_function", None) == "gelu_new":
        arguments["activation_function"] = "gelu_pytorch_tanh"
    if label_names:
        arguments["num_labels"] = len(label_names)
        arguments["id2label"] = dict(enumerate(label_names))
        arguments["label2id"] = {name: number for number, name in enumerate(label_names)}
    if args.load_in_4bit:
        # QLoRA (Dettmers et al. 2023). A head is new and trained: it keeps its 32 bits.
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype(),
            llm_int8_skip_modules=head_modules(empty_model(config)) if label_names else None,  # also for 4 bits
        )
    return arguments


def load_model(
    args: Arguments, tokenizer: PreTrainedTokenizerBase, task: Task, label_names: list[str] | None = None
) -> PreTrainedModel:
    """Return the pre-trained model, with a new head if there are labels, as the notebook's cells load it."""
    transformers.set_seed(args.training.seed)  # the head is random
    model = task.auto_class.from_pretrained(args.model.model_name_or_path, **model_arguments(args.model, label_names))
    if args.model.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # left to the Trainer
    prepare_model(model, tokenizer)
    return model


def prepare_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set up padding, keep no past for tokens to come, and have 4-bit layers compute alike on every processor."""
    set_padding(tokenizer, model)
    model.config.use_cache = False
    # On a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weights in the first evaluation. Training then fails, a
    # state dict unpacks them with loss, and layers whose outputs are not divisible by 32 are refused.
    # https://github.com/bitsandbytes-foundation/bitsandbytes/blob/0.50.2/bitsandbytes/nn/modules.py, Linear4bit.forward
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def lora_arguments(args: LoraArguments, model: PreTrainedModel, task_type: str = "SEQ_CLS") -> dict:
    """Return the arguments of ``LoraConfig`` for ``model``; the whole head of a classifier is trained and saved."""
    return {
        "task_type": task_type,
        "r": args.lora_r,
        "lora_alpha": args.lora_alpha,
        "lora_dropout": args.lora_dropout,
        "target_modules": args.target_modules,
        # By itself PEFT takes only modules called classifier or score, which in some models are half the head.
        "modules_to_save": head_modules(model) if task_type == "SEQ_CLS" else None,
        "fan_in_fan_out": uses_conv1d(model),
    }


def head_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the layers on top of the pre-trained model: to be trained in full, not by LoRA."""
    children = model.named_children()
    return [name for name, child in children if name != model.base_model_prefix and list(child.parameters())]


def uses_conv1d(model: torch.nn.Module) -> bool:
    """Tell whether the linear layers are GPT-2's ``Conv1D``, whose weights LoRA finds transposed."""
    return any(isinstance(module, Conv1D) for module in model.modules())
