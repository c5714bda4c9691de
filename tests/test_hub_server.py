"""The notebook and the command line against the Hub of the tests: download, cache, upload."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import nbformat
import pytest
from hub_server import serve
from huggingface_hub import HfApi, hf_hub_download
from nbclient import NotebookClient
from test_the_notebook import code_cells, printed

NOTEBOOK = Path("LightweightFineTuning.ipynb").resolve()
ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "config.json", "run_config.json")


def execute(folder: Path, environment: dict[str, str], cells: int | None = None):
    """Run the notebook, or its first cells, in ``folder`` without any setting."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = notebook.cells[:cells]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LFT_ARGS", raising=False)
        for name, value in (environment | {"PYTHONPATH": str(NOTEBOOK.parent)}).items():
            patch.setenv(name, value)
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=240, resources=resources, store_widget_state=False).execute()
    return notebook


# The libraries ask again for a minute before they take what they have: what they wait is no part of a test.
COMMAND = "import time; time.sleep = lambda seconds: None; from peft_helpers.app.command_line import main; exit(main())"


def run_command(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", COMMAND, *words, "--output_dir", str(folder / "adapter")]
    environment = os.environ | environment | {"PYTHONPATH": str(NOTEBOOK.parent)}
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def executed(hub_root, tmp_path_factory):
    """The notebook as it was run from the Hub, its folder, which also has the cache, and what was asked for."""
    folder = tmp_path_factory.mktemp("from_the_hub")
    with serve(hub_root) as server:
        return execute(folder, server.environment(folder / "home")), folder, server


def test_the_notebook_runs_from_the_hub_without_any_setting(executed):
    notebook, folder, server = executed
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    text = printed(notebook)
    assert "Profile gpt2-sst2: the Hugging Face Hub serves gpt2 and stanfordnlp/sst2." in text
    assert "on Salesforce/wikitext wikitext-2-raw-v1: the Hugging Face Hub serves Salesforce/wikitext." in text
    assert "test: 24 of 24 rows have no label or no text and are left out." in text  # SST-2's labels of -1
    assert "logits of the model in memory and of the reloaded one: 0.0" in text
    assert not any(output.get("name") == "stderr" for cell in code_cells(notebook) for output in cell.outputs)
    for file in ("model.safetensors", "data/train-00000-of-00001.parquet", "raw-v1/test-00000-of-00001.parquet"):
        downloads = [line for line in server.requests if line.startswith("GET /") and line.endswith(file)]
        assert len(downloads) == 1, file
    assert {path.name for path in (folder / "lora_adapter").iterdir()} >= set(ADAPTER)


@pytest.mark.reliability("fault")
@pytest.mark.parametrize("hub", ["stopped", "busy"])
def test_a_second_run_from_the_cache_alone_gives_the_same(hub, executed, hub_root, tmp_path):
    _, folder, stopped = executed
    with serve(hub_root) as busy:
        busy.faults["/"] = lambda handler: handler.refuse(503)
        again = run_command(tmp_path, (stopped if hub == "stopped" else busy).environment(folder / "home"))
    assert again.returncode == 0, again.stderr
    assert "Profile gpt2-sst2: the local Hugging Face cache holds gpt2 and stanfordnlp/sst2." in again.stdout
    for name in ADAPTER:
        assert (tmp_path / "adapter" / name).read_bytes() == (folder / "lora_adapter" / name).read_bytes()


@pytest.mark.slow
def test_the_command_line_trains_on_imdb_from_the_hub(hub_root, tmp_path):
    words = ["--profile", "gpt2-imdb", "--max_steps", "2", "--max_length", "64"]
    with serve(hub_root) as server:
        done = run_command(tmp_path, server.environment(tmp_path / "home"), *words)
    assert done.returncode == 0, done.stderr
    assert "Profile gpt2-imdb: as asked for." in done.stdout
    results = json.loads((tmp_path / "adapter" / "results.json").read_text())
    assert results["config"]["dataset_name"] == "stanfordnlp/imdb"
    assert (results["test_examples"], results["label_names"]) == (40, ["neg", "pos"])


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_a_notebook_without_a_network_says_so_in_a_box(tmp_path):
    notebook = execute(tmp_path, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}, cells=6)
    outputs = code_cells(notebook)[-1].outputs
    pages = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    (box,) = [page for page in pages if page.startswith("<table")]  # the other one is the table of options
    assert box.startswith("<table")
    assert "Offline</h3>" in box
    assert "tiny_gpt2 and bbc-news in place of gpt2 and stanfordnlp/sst2." in box


@pytest.mark.slow
@pytest.mark.reliability("fault")
def test_a_command_ends_where_the_data_set_is_refused(hub_root, tmp_path):
    with serve(hub_root) as server:
        server.faults["/api/datasets"] = lambda handler: handler.refuse(403, "GatedRepo")
        done = run_command(tmp_path, server.environment(tmp_path / "home"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: The Hugging Face Hub answers 403 Forbidden when asked for the dataset")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "adapter").exists()


def break_off(handler):
    """Promise the whole file, and close the connection in the middle of it; a part of it is sent."""
    if handler.command == "HEAD" or "Range" in handler.headers:
        return handler.answer()
    content = next(handler.server.root.glob("models/*/gpt2/model.safetensors")).read_bytes()
    handler.send(200, content[: len(content) // 2], {"Content-Length": str(len(content))})
    handler.close_connection = True


@pytest.mark.reliability("fault")
def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub_server, hub_root, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # what is kept of a broken one
    hub_server.faults["model.safetensors"] = break_off
    file = hf_hub_download("gpt2", "model.safetensors", cache_dir=tmp_path, endpoint=hub_server.endpoint)
    original = hub_root / "models" / "openai-community" / "gpt2" / "model.safetensors"
    assert Path(file).read_bytes() == original.read_bytes()
    first, second = (line for line in hub_server.requests if line.startswith("GET") and "model.safetensors" in line)
    assert "bytes=" not in first
    assert int(second.split("bytes=")[1].strip("-")) >= original.stat().st_size // 2 - 100_000


def test_an_adapter_is_uploaded_and_comes_back_the_same(hub_server, tmp_path, peft_model):
    peft_model.save_pretrained(tmp_path / "adapter")
    api = HfApi(endpoint=hub_server.endpoint, token="hf_reader")
    name = api.create_repo("adapter", private=True).repo_id
    api.upload_folder(repo_id=name, folder_path=tmp_path / "adapter")
    files = set(api.list_repo_files(name))
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= files
    back = Path(api.snapshot_download(name, cache_dir=tmp_path / "cache"))
    for file in files:
        assert (back / file).read_bytes() == (tmp_path / "adapter" / file).read_bytes()
