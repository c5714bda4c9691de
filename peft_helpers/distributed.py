"""The device that is there, and several processes: the first one prints and writes, the others compute alongside."""

import os
import sys
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import datasets
import torch
import transformers
from accelerate import PartialState


def best_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def compute_dtype() -> torch.dtype:
    """Return bfloat16 on a GPU that computes in it, float16 on one that does not, float32 on a CPU."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def quantization_problem() -> str | None:
    """Return None where bitsandbytes can quantize a layer and compute with it, else the reason why not."""
    device = best_device()
    try:
        from bitsandbytes.nn import Linear4bit  # it may be missing, or made for other hardware

        Linear4bit(64, 64, quant_type="nf4").to(device)(torch.ones(1, 64, device=device))
    except Exception as error:  # whatever it is, QLoRA is left out for it
        return f"bitsandbytes cannot quantize on this machine ({type(error).__name__}: {error})"
    return None


def process_state() -> PartialState:
    """Return Accelerate's state of the processes: their number, and which one this is."""
    # Accelerate connects processes without a GPU only when it is told that they are to use the CPU.
    return PartialState(cpu=not torch.accelerator.is_available())


def start_processes() -> None:
    """Connect with the other processes, if there are any; let the first one alone print and show its progress.

    To be called at the beginning of a program.
    """
    state = process_state()
    if not state.is_main_process:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (for the rest of the process)
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
        warnings.simplefilter("ignore")


def report_idle_gpus() -> None:
    """Print a line if this is the only process and there are several GPUs."""
    gpus = torch.cuda.device_count()
    if gpus > 1 and process_state().num_processes == 1:
        print(
            f"One of {gpus} GPUs is used. To use all of them, run the command line rather than the notebook, with "
            f"`accelerate launch --num_processes {gpus}` before it."
        )


def main_process_first() -> AbstractContextManager:
    """Have the first process do what stands in the ``with`` block, then the others, who find its files in the cache."""
    return process_state().main_process_first()
