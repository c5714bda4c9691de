import shutil
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from peft import LoraConfig, get_peft_model

import peft_helpers as helpers
from peft_helpers.adapters import save_recipe
from peft_helpers.app import web_page
from peft_helpers.app.command_line import main
from peft_helpers.app.web_page import classify_with_both, open_page
from peft_helpers.modeling import load_model

# Gradio 6 uses what pandas 3 keeps without effect; not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")
NO_GRADIO = "gradio, an optional requirement, is not installed"
BASE, TUNED = "Before fine-tuning", "After fine-tuning"
MARKUP = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


def save_adapter(peft_model, tokenizer, args) -> Path:
    """Save the folder as the notebook does."""
    tokenizer.model_max_length = args.data.max_length
    peft_model.save_pretrained(args.training.output_dir)
    peft_model.config.save_pretrained(args.training.output_dir)
    tokenizer.save_pretrained(args.training.output_dir)
    save_recipe(args, args.training.output_dir)
    return Path(args.training.output_dir)


@pytest.fixture
def adapter_dir(peft_model, tokenizer, args) -> Path:
    return save_adapter(peft_model, tokenizer, args)


@pytest.fixture
def untuned(args, tokenizer):
    return load_model(args, tokenizer, helpers.CLASSIFICATION, ["negative", "positive"])


def probabilities(model, tokenizer, text: str) -> dict[str, float]:
    table = helpers.classify_texts(model, tokenizer, [text])
    return {name: pytest.approx(float(table[f"P({name})"][0]), abs=1e-6) for name in model.config.id2label.values()}


def test_both_models_give_each_label_its_probability(peft_model, untuned, tokenizer):
    tuned_answer, untuned_answer, note = classify_with_both("a fine film", peft_model, tokenizer)
    assert tuned_answer == probabilities(peft_model, tokenizer, "a fine film")
    assert untuned_answer == probabilities(untuned, tokenizer, "a fine film")
    assert tuned_answer != untuned_answer
    assert note == ""


def test_the_tuned_model_is_calibrated_and_the_untuned_one_is_not(peft_model, tokenizer):
    plain, calibration = classify_with_both("a fine film", peft_model, tokenizer), helpers.Calibration(5.0, 0.999, 1)
    tuned, untuned, note = classify_with_both("a fine film", peft_model, tokenizer, calibration)
    assert untuned == plain[1]
    assert 0.5 < max(tuned.values()) < max(plain[0].values())
    assert note.strip() == "With the threshold of this adapter, its answer is negative."


@pytest.mark.reliability("fault")
def test_a_base_model_that_has_gone_is_named(adapter_dir, args):
    pytest.importorskip("gradio", reason=NO_GRADIO)
    save_recipe(args.replace(model_name_or_path="./gone"), adapter_dir)
    with pytest.raises(FileNotFoundError, match=r"model_name_or_path is './gone': expected a folder"):
        open_page(adapter_dir)


@pytest.mark.reliability("fault")
def test_an_adapter_is_checked_before_it_is_loaded(adapter_dir):
    pytest.importorskip("gradio", reason=NO_GRADIO)
    (adapter_dir / "adapter_model.safetensors").rename(adapter_dir / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="Pickled weights can run any code"):
        open_page(adapter_dir)


def test_a_truncated_text_is_reported(peft_model, tokenizer):
    tokenizer.model_max_length = 5
    text = "the cast is a joy to watch " * 9
    length = len(tokenizer(text)["input_ids"])
    note = classify_with_both(text, peft_model, tokenizer)[2]
    assert note == f"The models have read the first 5 of the text's {length} tokens."


def test_with_all_chunks_nothing_is_truncated(peft_model, tokenizer):
    tokenizer.model_max_length, tokenizer.init_kwargs["average_chunks"] = 5, True
    assert classify_with_both("the cast is a joy to watch " * 9, peft_model, tokenizer)[2] == ""


def test_a_pair_is_read_whole(peft_model, tokenizer):
    answers = [classify_with_both(pair, peft_model, tokenizer)[0] for pair in (("good", "bad film"), ("good", "good"))]
    assert answers[0] == probabilities(peft_model, tokenizer, ("good", "bad film"))
    assert answers[0] != answers[1]


@pytest.mark.reliability("bad input")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (("good", " "), "Write or paste a text first"),
        (("good film!!", "good"), "too long: at most 10 characters"),
        ("", "Write or paste a text first"),
        (" \n\t\u2003", "Write or paste a text first"),
        ("good film!!", "too long: at most 10 characters are read; shorten it"),
        ("a \ud83d", "half of a surrogate pair"),
    ],
    ids=["half a pair", "too long in a pair", "empty", "blank", "too long", "half a character"],
)
def test_a_text_that_cannot_be_read_is_answered(text, message, peft_model, tokenizer, monkeypatch):
    monkeypatch.setattr(web_page, "MAX_CHARACTERS", 10)
    with pytest.raises(ValueError, match=message):
        classify_with_both(text, peft_model, tokenizer)


@pytest.mark.reliability("fault")
def test_without_gradio_the_command_that_installs_it_is_named(adapter_dir, monkeypatch):
    monkeypatch.setattr(web_page, "gradio", None)
    with pytest.raises(ImportError, match=r"python -m pip install -r \S+optional_requirements\.txt"):
        open_page(adapter_dir)


@pytest.mark.reliability("bad input")
def test_a_port_in_use_is_named(adapter_dir):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"in use.*'127\.0\.0\.1', {port}"):
            open_page(adapter_dir, server_port=port)


@pytest.mark.reliability("bad input")
def test_an_address_that_is_not_this_machines_is_named_before_anything_is_loaded(tmp_path):
    with pytest.raises(OSError, match=r"bind on address \('203\.0\.113\.1', 0\)"):
        open_page(tmp_path / "no adapter", "203.0.113.1")


@pytest.mark.reliability("bad input")
def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Expected the options of a run in .*run_config.json .*No such file"):
        open_page(tmp_path)


@pytest.fixture
def opened(adapter_dir, tmp_path, monkeypatch):
    """Open the page of an adapter; it is closed when the test ends."""
    pytest.importorskip("gradio", reason=NO_GRADIO)
    pages = []
    monkeypatch.chdir(tmp_path)

    def start(folder=adapter_dir, **options):
        pages.append(open_page(folder, **options))
        return pages[-1]

    yield start
    for page in pages:
        page.close()


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright, for these tests only, is not installed")
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no chromium")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=executable)


@pytest.fixture
def visit(browser):
    """Open an address in a browser window of its own, which keeps a list of its requests."""
    windows = []

    def start(url: str, **options):
        window = browser.new_page(**options)
        window.set_default_timeout(10_000)
        window.requests = []
        window.on("request", lambda request: window.requests.append(request.url))
        window.goto(url)
        windows.append(window)
        return window

    yield start
    for window in windows:
        window.close()


def classify(window, text: str) -> None:
    window.get_by_label("Text").fill(text)
    window.get_by_role("button", name="Classify").click()


def block(window, label: str):
    return window.get_by_test_id("label").filter(has_text=label)


def read_bars(window, label: str) -> dict[str, float]:
    bars = block(window, label).get_by_role("meter")
    bars.first.wait_for()
    return {bar.get_attribute("aria-label"): float(bar.get_attribute("value")) for bar in bars.all()}


def hosts(window) -> set[str]:
    return {urlsplit(url).netloc for url in window.requests if urlsplit(url).scheme not in ("data", "blob")}


@pytest.mark.slow
def test_the_page_of_an_adapter_for_pairs_has_two_text_boxes(opened, visit, adapter_dir, args, peft_model, tokenizer):
    save_recipe(args.replace(text_pair_column="answer"), adapter_dir)
    window = visit(opened().local_url)
    window.get_by_label("Second text").fill("a dull film")
    window.get_by_label("Text", exact=True).fill("good")
    window.get_by_role("button", name="Classify").click()
    assert read_bars(window, TUNED) == probabilities(peft_model, tokenizer, ("good", "a dull film"))


@pytest.mark.slow
def test_the_page_shows_both_models_bars(opened, visit, peft_model, untuned, tokenizer):
    page = opened()
    window = visit(page.local_url)
    classify(window, "a dull film")
    for model, label in ((peft_model, TUNED), (untuned, BASE)):
        bars = read_bars(window, label)  # first, so that the page has done its work
        assert bars == probabilities(model, tokenizer, "a dull film")
        assert block(window, label).get_by_test_id("label-output-value").inner_text() == max(bars, key=bars.get)
    assert hosts(window) == {f"127.0.0.1:{page.server_port}"}


@pytest.mark.slow
def test_an_adapter_that_was_trained_names_the_right_label(opened, visit, new_trainer, tokenizer, args):
    trainer = new_trainer(num_train_epochs=6)
    trainer.train()
    window = visit(opened(save_adapter(trainer.model, tokenizer, args.replace(output_dir="trained"))).local_url)
    for text, label in (("a fine film", "positive"), ("a dull film", "negative")):
        classify(window, text)
        block(window, TUNED).get_by_role("heading", name=label).wait_for()


@pytest.mark.slow
def test_a_bad_text_is_answered_on_the_page_and_clears_the_bars(opened, visit, monkeypatch):
    monkeypatch.setattr(web_page, "MAX_CHARACTERS", 20)
    window = visit(opened().local_url)
    for text, message in (("x" * 21, "at most 20 characters are read"), (" ", "Write or paste a text first")):
        classify(window, "good")
        read_bars(window, TUNED)
        classify(window, text)
        window.get_by_text(message).wait_for()
        block(window, TUNED).get_by_role("meter").first.wait_for(state="detached")
    classify(window, "good")
    read_bars(window, TUNED)
    assert not window.get_by_text("Write or paste").count()


@pytest.mark.slow
def test_pasting_too_much_is_reported_rather_than_silently_cut(opened, visit, monkeypatch):
    monkeypatch.setattr(web_page, "MAX_CHARACTERS", 20)
    window = visit(opened().local_url)
    window.get_by_label("Text").click()
    window.keyboard.insert_text("\U0001f600" * 500)
    assert len(window.get_by_label("Text").input_value()) <= 30
    window.get_by_role("button", name="Classify").click()
    window.get_by_text("at most 20 characters are read").wait_for()


@pytest.mark.slow
def test_markup_is_shown_as_text(opened, visit, args, tokenizer):
    """Names come with an adapter, which may be somebody else's; a text is whatever was pasted."""
    labels = [MARKUP, "{{7*7}} ${7*7}"]
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", fan_in_fan_out=True)
    model = get_peft_model(load_model(args, tokenizer, helpers.CLASSIFICATION, labels), lora)
    name = f"{MARKUP} ![picture](http://203.0.113.1/p.png) [link](javascript:window.hacked=1) </title>"
    folder = save_adapter(model, tokenizer, args.replace(dataset_name=name, output_dir="markup"))
    page = opened(folder)
    window = visit(page.local_url)
    window.on("dialog", lambda dialog: pytest.fail(dialog.message))
    classify(window, MARKUP)
    assert set(read_bars(window, TUNED)) == set(labels)
    window.get_by_text(name).wait_for()
    window.wait_for_timeout(200)
    assert window.evaluate("window.hacked") is None
    assert window.locator("img[src=x], img[src*='203.0.113.1'], a[href^='javascript']").count() == 0
    assert hosts(window) == {f"127.0.0.1:{page.server_port}"}


@pytest.mark.slow
@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_follows_the_browsers_color_scheme(color_scheme, opened, visit):
    window = visit(opened().local_url, viewport={"width": 400, "height": 800}, color_scheme=color_scheme)
    classify(window, "good")
    read_bars(window, BASE)
    assert window.evaluate("document.documentElement.scrollWidth") <= 400
    for label in (TUNED, BASE):
        assert block(window, label).bounding_box()["width"] > 280
    red = window.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(red) < 50) == (color_scheme == "dark")


def listening(port: int) -> set[str]:
    connections = psutil.Process().net_connections(kind="inet")
    return {found.laddr.ip for found in connections if found.status == "LISTEN" and found.laddr.port == port}


@pytest.mark.slow
def test_it_listens_on_this_machine_only_unless_told_otherwise(opened):
    assert listening(opened().server_port) == {"127.0.0.1"}
    assert listening(opened(server_name="0.0.0.0").server_port) == {"0.0.0.0"}


def test_it_neither_gives_nor_takes_nor_writes_files_and_publishes_no_interface(opened, tmp_path):
    httpx = pytest.importorskip("httpx")
    before = set(tmp_path.rglob("*"))
    page = opened()
    with httpx.Client(base_url=page.local_url) as client:
        assert client.get(f"gradio_api/file={tmp_path}/adapter/config.json").status_code == 403
        assert client.post("gradio_api/upload", files={"files": ("a.txt", b"text")}).status_code == 413
        assert client.get("openapi.json").status_code == 404
        assert client.get("gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
    assert set(tmp_path.rglob("*")) == before


def test_one_text_at_a_time_is_classified(opened, monkeypatch):
    """The adapter is switched off and on meanwhile."""
    httpx = pytest.importorskip("httpx")
    running, seen = [], []

    def classify(text, *_):
        running.append(text)
        seen.append(list(running))
        time.sleep(0.05)
        running.remove(text)
        return {"positive": 1.0}, {"negative": 1.0}, ""

    monkeypatch.setattr(web_page, "classify_with_both", classify)
    monkeypatch.setenv("GRADIO_DEFAULT_CONCURRENCY_LIMIT", "8")
    page = opened()
    (number,) = (number for number, listener in page.fns.items() if listener.name == "answer")
    texts = [f"text {window}" for window in "abc"]
    with httpx.Client(base_url=page.local_url) as client:
        for text in texts:
            call = {"data": [text], "fn_index": number, "session_hash": text[-1]}
            assert client.post("gradio_api/queue/join", json=call).status_code == 200
            assert client.post("gradio_api/run/answer", json=call).status_code == 404  # past the queue
        deadline = time.monotonic() + 20
        while (len(seen) < len(texts) or running) and time.monotonic() < deadline:
            time.sleep(0.05)
    assert sorted(seen) == [[text] for text in texts]


def test_the_environment_opens_nothing(opened, monkeypatch):
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda **_: "https://tunnel.example")
    for name in ("SHARE", "ANALYTICS_ENABLED", "RUN_HISTORY"):
        monkeypatch.setenv(f"GRADIO_{name}", "True")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    page = opened()
    assert listening(page.server_port) == {"127.0.0.1"}
    assert page.share_url is None
    assert not any((page.analytics_enabled, page.run_history))


def test_the_command_keeps_the_page_open(adapter_dir, monkeypatch, capsys):
    gradio = pytest.importorskip("gradio", reason="gradio, an optional requirement, is not installed")
    seen = []

    def block_thread(page):
        seen.append(page.is_running)
        page.close()

    monkeypatch.setattr(gradio.Blocks, "block_thread", block_thread)
    assert main(["serve", str(adapter_dir)]) == 0
    assert seen == [True]
    assert "The page is open at http://127.0.0.1:" in capsys.readouterr().out
