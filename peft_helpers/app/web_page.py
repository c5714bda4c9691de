"""A web page to try an adapter: what it makes of a text, beside the same model before fine-tuning."""

import os
import re
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from peft_helpers.analysis.model_card import display_name
from peft_helpers.arguments import Arguments
from peft_helpers.distributed import best_device
from peft_helpers.modeling import load_model
from peft_helpers.pipeline import classify_texts, load_adapter, load_recipe
from peft_helpers.tokenization import check_texts, count_tokens
from peft_helpers.training import CLASSIFICATION

if TYPE_CHECKING:
    import gradio

REQUIREMENTS = Path(__file__).with_name("serve_requirements.txt")
# Gradio shows the first 60 characters.
EXAMPLES = [
    "A gentle comedy with two leads who are a joy to watch.",
    "A long, dull film: even its star looks bored by the end.",
    "The goalkeeper saved a penalty in the last minute.",
    "The bank's shares fell after it warned of lower profits.",
    "The minister promised voters lower taxes after the election.",
    "Since the software update my phone freezes twice a day.",
]


def open_page(
    adapter_dir: str | Path, server_name: str = "127.0.0.1", server_port: int | None = None, max_characters: int = 5000
) -> "gradio.Blocks":
    """Load the adapter and the untuned model, open a page that classifies texts with both, print its address.

    The page stays open until its ``close()``. It needs no network, and keeps and sends out no text.

    Args:
        adapter_dir: folder of an adapter that a run has saved.
        server_name: address to listen on. The default can be reached from this machine only; 0.0.0.0 by anybody in
            the network.
        server_port: port to listen on; by default the first free one from 7860 on.
        max_characters: a longer text is refused.

    Raises:
        FileNotFoundError, ValueError: see `load_adapter`.
        ImportError: Gradio, which is optional, is not installed.
        OSError: nothing can listen on that address and port.
    """
    _check_address(server_name, server_port)
    if max_characters < 1:
        raise ValueError(f"max_characters is {max_characters}; it must be greater than 0.")
    args = load_recipe(adapter_dir)
    if find_spec("gradio") is None:
        raise ImportError(
            "The web page needs Gradio, which is optional and not installed; install it with "
            f"`python -m pip install -r {os.path.relpath(REQUIREMENTS)}`."
        )
    import gradio

    page = _make_page(adapter_dir, args, max_characters)
    page.launch(
        server_name=server_name, server_port=server_port or None, prevent_thread_lock=True, quiet=True, footer_links=[],
        # Gradio would else take these from the environment, or switch them on in hosted notebooks.
        share=False, ssr_mode=False, mcp_server=False, pwa=False, run_history=False, enable_monitoring=False,
        app_kwargs={"openapi_url": None}, max_file_size=0,
        theme=gradio.themes.Default(font="system-ui", font_mono="system-ui"),
    )  # fmt: skip
    print(f"The page is open at {page.local_url}", flush=True)
    return page


def _check_address(server_name: str, server_port: int | None) -> None:
    try:
        socket.create_server((server_name, server_port or 0)).close()
    except (OSError, OverflowError) as error:
        raise OSError(
            f"Cannot listen on {server_name}, port {server_port or 'any'} ({error}); choose another --server_port, "
            "from 1024 to 65535 and not in use, or another --server_name: 127.0.0.1 is this machine."
        ) from error


def load_models(adapter_dir: str | Path) -> tuple[PeftModel, PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the tuned model, the one that fine-tuning began from, with its random head, and the tokenizer.

    Raises:
        FileNotFoundError, ValueError: see `load_adapter`.
    """
    tuned, tokenizer = load_adapter(adapter_dir)
    labels = [tuned.config.id2label[number] for number in range(tuned.config.num_labels)]
    untuned = load_model(load_recipe(adapter_dir), tokenizer, CLASSIFICATION, labels)
    if not getattr(untuned, "is_quantized", False):
        untuned.to(best_device())
    return tuned, untuned.eval(), tokenizer


def _make_page(adapter_dir: str | Path, args: Arguments, max_characters: int) -> "gradio.Blocks":
    import gradio

    tuned, untuned, tokenizer = load_models(adapter_dir)

    def answer(text: str) -> tuple[dict[str, float] | None, dict[str, float] | None, str]:
        try:
            return classify_with_both(text, tuned, untuned, tokenizer, max_characters)
        except ValueError as error:
            return None, None, str(error)

    with gradio.Blocks(title="Try the adapter", analytics_enabled=False) as page:
        gradio.Markdown(_describe(args, tuned, tokenizer))
        # A browser counts UTF-16 units and cuts what is pasted: so far behind the limit that the page says so.
        text = gradio.Textbox(label="Text", lines=4, max_lines=12, max_length=3 * max_characters)
        button = gradio.Button("Classify", variant="primary")
        note = gradio.Markdown()
        with gradio.Row():
            after = gradio.Label(label="After fine-tuning", num_top_classes=10, min_width=280)
            before = gradio.Label(label="Before fine-tuning", num_top_classes=10, min_width=280)
        listener = {"fn": answer, "outputs": [after, before, note], "api_visibility": "private"}
        gradio.on([button.click, text.submit], inputs=text, concurrency_limit=1, **listener)
        gradio.Examples(EXAMPLES, text, run_on_click=True, cache_examples=False, **listener)
    return page


def _describe(args: Arguments, tuned: PeftModel, tokenizer: PreTrainedTokenizerBase) -> str:
    # Punctuation as entities, which mean nothing to Markdown and HTML: an adapter may be anybody's.
    base, dataset = (
        re.sub(r"[^\w\s]", lambda match: f"&#{ord(match[0])};", display_name(name))
        for name in (args.model.model_name_or_path, args.data.dataset_name)
    )
    return f"""\
# Try the adapter

**{base}**, fine-tuned on **{dataset}** with {tuned.active_peft_config.peft_type.value}, beside the same model before
fine-tuning, whose classification head is new and random.

Any text gets one of the {tuned.config.num_labels} labels, however little it fits. The percentages say how sure a model
*believes* to be, not whether it is right. Both read the first {tokenizer.model_max_length:,} tokens of a text.
"""


def classify_with_both(
    text: str, tuned: PreTrainedModel, untuned: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_characters: int
) -> tuple[dict[str, float], dict[str, float], str]:
    """Return the probability of each label after and before fine-tuning, and a note if the text was truncated.

    Raises:
        ValueError: the text is blank, longer than ``max_characters``, or see `check_texts`.
    """
    if not text.strip():
        raise ValueError("Write or paste a text first.")
    if len(text) > max_characters:
        raise ValueError(f"This text is too long: at most {max_characters:,} characters are read; shorten it.")
    length, read = count_tokens(check_texts([text]), tokenizer)[0], tokenizer.model_max_length
    note = f"The models have read the first {read:,} of the text's {length:,} tokens." if length > read else ""
    return _probabilities(tuned, tokenizer, text), _probabilities(untuned, tokenizer, text), note


def _probabilities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, float]:
    table = classify_texts(model, tokenizer, [text])
    return {name: float(table[f"P({name})"][0]) for name in model.config.id2label.values()}
