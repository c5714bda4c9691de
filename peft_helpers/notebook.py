"""What keeps a notebook's output worth keeping."""

import platform
import warnings
from importlib.metadata import PackageNotFoundError, version

import datasets
import huggingface_hub
import pandas as pd
import torch
import transformers

from peft_helpers.models import best_device


def keep_output_clean() -> None:
    """Silence what the libraries write to stderr and as widgets; the Trainer's progress stays.

    Saved widgets can keep GitHub from rendering a notebook. The warning of a newly initialised head is expected here.
    """
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    pd.options.display.max_colwidth = 100
    # peft 0.21 reads a property that transformers 5 has renamed.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # What peft 0.21 says of LN tuning and of AdaLoRA where both do what they should: each reload is checked.
    warnings.filterwarnings("ignore", message="Unsupported layer type .*LayerNorm", category=UserWarning)
    warnings.filterwarnings("ignore", message="The following rank_pattern keys .*lora_E", category=RuntimeWarning)


def describe_environment() -> pd.Series:
    """Return the versions that the results depend on, and the device."""
    names = ("torch", "transformers", "peft", "datasets", "evaluate", "accelerate", "scikit-learn", "bitsandbytes")
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    rows = {"python": platform.python_version()} | {name: _version(name) for name in names}
    return pd.Series(rows | {"device": f"{best_device()} ({name})"}, name="version")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
