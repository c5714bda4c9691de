"""A web page to try an adapter: what it makes of a text, beside the same model before fine-tuning."""

import re
import socket
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, set_seed

from peft_helpers import INSTALL
from peft_helpers.analysis.calibration import AS_IT_IS, Calibration, classify_texts
from peft_helpers.analysis.sharing import display_name
from peft_helpers.arguments import Arguments
from peft_helpers.pipeline import load_adapter, load_recipe
from peft_helpers.tokenization import Text

try:
    import gradio
except ImportError:  # it is optional
    gradio = None

MAX_CHARACTERS = 5000  # longer texts are refused


def open_page(adapter_dir: Path, server_name: str = "127.0.0.1", server_port: int | None = None) -> "gradio.Blocks":
    """Open a page that classifies texts with the adapter and with the untuned model, and print its address.

    It needs no network, and keeps and sends out no text. The default address can be reached from this machine only. If
    nothing can listen on address and port, that is an OSError; a missing Gradio is an ImportError.
    """
    socket.create_server((server_name, server_port or 0)).close()  # an error here need not wait for the model
    args = load_recipe(adapter_dir)
    if gradio is None:
        raise ImportError(f"The web page needs Gradio, which is not installed; install it with {INSTALL}.")
    set_seed(args.training.seed)  # the untuned model's head is the one that training began from
    page = _make_page(*load_adapter(adapter_dir), args)
    page.launch(
        server_name=server_name, server_port=server_port, prevent_thread_lock=True, quiet=True, footer_links=[],
        # Gradio would else take these from the environment, or switch them on in hosted notebooks.
        share=False, ssr_mode=False, mcp_server=False, pwa=False, run_history=False, enable_monitoring=False,
        app_kwargs={"openapi_url": None}, max_file_size=0,
        theme=gradio.themes.Default(font="system-ui", font_mono="system-ui"),
    )  # fmt: skip
    print(f"The page is open at {page.local_url}", flush=True)
    return page


def _make_page(model: PeftModel, tokenizer: PreTrainedTokenizerBase, args: Arguments) -> "gradio.Blocks":
    calibration = Calibration.load(args.training.output_dir)

    def answer(*texts: str) -> tuple[dict | None, dict | None, str]:
        try:
            return classify_with_both(texts if len(texts) > 1 else texts[0], model, tokenizer, calibration)
        except ValueError as error:
            return None, None, str(error)

    with gradio.Blocks(title="Try the adapter", analytics_enabled=False) as page:
        gradio.Markdown(_describe(args, model, tokenizer))
        # A browser counts UTF-16 units and cuts what is pasted: so far behind the limit that the page says so.
        names = ["Text", "Second text"] if args.data.text_pair_column else ["Text"]
        texts = [gradio.Textbox(label=name, lines=4, max_lines=12, max_length=3 * MAX_CHARACTERS) for name in names]
        button = gradio.Button("Classify", variant="primary")
        note = gradio.Markdown()
        with gradio.Row():
            after = gradio.Label(label="After fine-tuning", num_top_classes=10, min_width=280)
            before = gradio.Label(label="Before fine-tuning", num_top_classes=10, min_width=280)
        triggers = [button.click, *(text.submit for text in texts)]
        # One text at a time: the adapter is switched off and on.
        gradio.on(triggers, answer, texts, [after, before, note], concurrency_limit=1, api_visibility="private")
    return page.queue(api_open=False)  # nothing goes past the queue


def _describe(args: Arguments, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> str:
    # Punctuation as entities, which mean nothing to Markdown and HTML: an adapter may be anybody's.
    base, dataset = (
        re.sub(r"[^\w\s]", lambda match: f"&#{ord(match[0])};", display_name(name))
        for name in (args.model.model_name_or_path, args.data.dataset_name)
    )
    reading = "all chunks of" if args.data.average_chunks else "the first"
    return f"""\
# Try the adapter

**{base}**, fine-tuned on **{dataset}** with {model.active_peft_config.peft_type.value}, beside the same model before
fine-tuning, whose classification head is new and random.

Any text gets one of the {model.config.num_labels} labels, however little it fits. The percentages say how sure a model
*believes* to be, not whether it is right. Both read {reading} {tokenizer.model_max_length:,} tokens of a text.
"""


def classify_with_both(
    text: Text, model: PeftModel, tokenizer: PreTrainedTokenizerBase, calibration: Calibration = AS_IT_IS
) -> tuple[dict, dict, str]:
    """Return each label's probability after and before fine-tuning, and a note; an unusable text is a ValueError."""
    parts = (text,) if isinstance(text, str) else text
    if not all(part.strip() for part in parts):
        raise ValueError("Write or paste a text first.")
    if max(map(len, parts)) > MAX_CHARACTERS:
        raise ValueError(f"This text is too long: at most {MAX_CHARACTERS:,} characters are read; shorten it.")
    tuned = classify_texts(model, tokenizer, [text], calibration)
    with model.disable_adapter():
        untuned = classify_texts(model, tokenizer, [text])
    names = model.config.id2label.values()
    after, before = ({name: float(table[f"P({name})"][0]) for name in names} for table in (tuned, untuned))
    length, read = len(tokenizer(*parts, verbose=False)["input_ids"]), tokenizer.model_max_length
    is_truncated = length > read and not tokenizer.init_kwargs.get("average_chunks")
    note = f"The models have read the first {read:,} of the text's {length:,} tokens." if is_truncated else ""
    if calibration.threshold != 0.5:
        note += f" With the threshold of this adapter, its answer is {tuned['label'][0]}."
    return after, before, note
