"""What keeps a notebook's output worth keeping."""

import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import datasets
import huggingface_hub
import pandas as pd
import transformers
from IPython.display import display


def keep_output_clean() -> None:
    """Silence what the libraries write to stderr and as widgets; the Trainer's progress stays.

    Saved widgets can keep GitHub from rendering a notebook. The warning of a newly initialised head is expected here.
    """
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    pd.options.display.max_colwidth = 100
    # On a new machine the first figure builds a font cache and says so on stderr.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    # peft 0.21 reads a property that transformers 5 has renamed.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # An adapter trained on 4-bit layers is checked on the shapes of GPT-2's own ones.
    warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False but", category=UserWarning)
    # What peft 0.21 says of LN tuning and of AdaLoRA where both do what they should: each reload is checked.
    warnings.filterwarnings("ignore", message="Unsupported layer type .*LayerNorm", category=UserWarning)
    warnings.filterwarnings("ignore", message="The following rank_pattern keys .*lora_E", category=RuntimeWarning)


@dataclass
class Box:
    """A heading and a text: a frame in a notebook, a line where it is printed."""

    heading: str
    text: str

    def __repr__(self) -> str:
        return f"{self.heading}: {self.text}"

    def _repr_html_(self) -> str:
        # A table, since GitHub takes the styles away and leaves a table its lines.
        content = f"<h3>\u26a0\ufe0f {escape(self.heading)}</h3><p>{escape(self.text)}</p>"
        frame = "border: 4px solid #d9480f; width: 100%; font-size: 1rem"
        return f'<table style="{frame}"><tr><td style="text-align: left; padding: 0 1em">{content}</td></tr></table>'


def warn_offline(wanted: Iterable[str], taken: Iterable[str]) -> None:
    """Show that this machine is offline and which names take the places of which, in a notebook in a box."""
    text = (
        f"{' and '.join(taken)} in place of {' and '.join(wanted)}. That shows whether everything works, not how good "
        "the results are. Connect this machine to the Hugging Face Hub and run it again."
    )
    display(Box("Offline", text))
