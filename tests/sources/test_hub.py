"""Each answer that a Hub can give, or that something gives in its place, and what becomes of the profile `auto`."""

import errno
import socket
import time

import datasets
import pytest
from conftest import use_hub

from peft_helpers import parse_arguments
from peft_helpers.sources import hub
from peft_helpers.tiny_gpt2 import TINY_GPT2

NAMES = {"model_name_or_path": "gpt2", "dataset_name": "stanfordnlp/sst2"}
OFFLINE = "the local Hugging Face cache lacks gpt2 and stanfordnlp/sst2, and this machine is offline"


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *names: None)
    monkeypatch.setattr(hub, "TIMEOUT", 1.0)
    return tmp_path


def refuse(status, code="", **headers):
    return lambda handler: handler.refuse(status, code, **headers)


def page(handler):
    handler.send(200, b"<html>Welcome to our hotel</html>", {"Content-Type": "text/html"})


def other_json(handler):
    handler.send(200, b'{"status": "ok"}', {"Content-Type": "application/json"})


def close(handler):
    handler.close_connection = True


def be_silent(handler):
    time.sleep(3)
    handler.close_connection = True


def is_offline(capsys):
    args = parse_arguments("")
    assert (args.profile, args.model.model_name_or_path) == ("offline", TINY_GPT2)
    box, reason = capsys.readouterr().out.splitlines()
    assert box.startswith(f"Offline: {TINY_GPT2} and bbc-news in place of gpt2 and stanfordnlp/sst2.")
    return reason


# 1. What means that there is no network: the embedded profile, and a box that says so.


@pytest.mark.reliability("fault")
def test_offline_mode_is_offline(capsys):
    reason = is_offline(capsys)
    assert OFFLINE in reason
    assert "offline mode is enabled. To disable it, please unset the `HF_HUB_OFFLINE`" in reason


@pytest.mark.reliability("fault")
def test_a_connection_that_is_refused_is_offline(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    use_hub(f"http://127.0.0.1:{port}", monkeypatch)
    assert f"{OFFLINE} ([Errno {errno.ECONNREFUSED}]" in is_offline(capsys)


@pytest.mark.reliability("fault")
@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("getaddrinfo", socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")),
        ("getaddrinfo", socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
        ("create_connection", OSError(errno.ENETUNREACH, "Network is unreachable")),
        ("create_connection", OSError(errno.EHOSTUNREACH, "No route to host")),
    ],
)
def test_no_name_server_and_no_route_are_offline(function, error, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    use_hub("https://hub.invalid", monkeypatch)
    monkeypatch.setattr(socket, function, fail)
    assert f"{OFFLINE} ({error})" in is_offline(capsys)


# 2. Any other answer: an error that says what to do, and no other model in its place.


@pytest.mark.slow
@pytest.mark.reliability("fault")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (refuse(401), r"answers 401 Unauthorized when .* model gpt2\. Check the name .* log in with `hf auth login`"),
        (refuse(401, "RepoNotFound"), r"answers 401 Unauthorized .* Check the name .* at http://127.*/gpt2,"),
        (refuse(403, "GatedRepo"), r"answers 403 Forbidden .* accept the terms, .* at http://127.*/gpt2, and log in"),
        (refuse(404, "RepoNotFound"), r"answers 404 Not Found .* Check the name .* at http://127.*/gpt2,"),
        (refuse(429), r"answers 429 Too Many Requests .* Try again later"),
        (refuse(503), r"answers 503 Service Unavailable .* Try again later"),
        (refuse(451), r"answers 451 .* open http://127.*/gpt2 in a browser"),
        (be_silent, r"answers ReadTimeout: .* when asked for the model gpt2\. Try again later"),
        (page, r"answers JSONDecodeError: .* open http://127.*/gpt2 in a browser.* login page"),
        (refuse(302, Location="/login"), r"answers JSONDecodeError: "),
        (other_json, r"answers KeyError: .* open http://127.*/gpt2 in a browser"),
        (close, r"answers RemoteProtocolError: .* in a browser"),
    ],
    ids=["401", "401 of the Hub", "gated", "404", "429", "503", "451", "silent", "login page",
         "redirect to a login page", "other JSON", "connection closed"],
)  # fmt: skip
def test_any_other_answer_is_an_error_that_says_what_to_do(fault, message, hub_server, capsys):
    hub_server.faults |= {"/api/models": fault, "/login": page}
    with pytest.raises(ConnectionError, match=f"^The Hugging Face Hub {message}.*; or do without: `--profile offline`"):
        parse_arguments("")
    assert capsys.readouterr().out == ""


@pytest.mark.reliability("fault")
def test_a_proxy_that_refuses_is_an_error(hub_server, monkeypatch):
    use_hub("https://hub.invalid", monkeypatch)
    monkeypatch.setenv("HTTPS_PROXY", hub_server.endpoint)
    hub_server.faults["hub.invalid:443"] = refuse(407)
    with pytest.raises(ConnectionError, match=r"ProxyError: 407 .* open https://hub.invalid/gpt2 in a browser"):
        parse_arguments("")
    assert hub_server.requests == ["CONNECT hub.invalid:443"]


@pytest.mark.reliability("fault")
def test_a_data_set_that_is_refused_is_an_error_too(hub_server):
    hub_server.faults["/api/datasets"] = refuse(404, "RepoNotFound")
    with pytest.raises(ConnectionError, match=r"404 .* dataset stanfordnlp/sst2\. Check .*/datasets/stanfordnlp/sst2,"):
        parse_arguments("")
    with pytest.raises(ConnectionError, match="or do without: `--lm_dataset_name bbc-news`"):
        hub.explain_availability(dataset_name="stanfordnlp/sst2", instead="--lm_dataset_name bbc-news")


# 3. A Hub that serves, and a cache that holds.


def test_a_hub_that_serves_both_is_enough(hub_server, capsys):
    assert parse_arguments("").profile == "gpt2-sst2"
    assert capsys.readouterr().out == "Profile gpt2-sst2: the Hugging Face Hub serves gpt2 and stanfordnlp/sst2.\n"


def test_the_cache_is_enough_only_with_model_and_data(monkeypatch, empty_cache):
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *names: "model.safetensors")
    assert hub.explain_availability(**NAMES)[1].startswith("the local Hugging Face cache lacks stanfordnlp/sst2, and")
    folder = empty_cache / "stanfordnlp___sst2" / "default"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").touch()
    available, reason = hub.explain_availability(**NAMES)
    assert available
    assert reason == "the local Hugging Face cache holds gpt2 and stanfordnlp/sst2"


def test_only_what_is_named_and_not_cached_is_asked_for(hub_server, monkeypatch):
    assert hub.explain_availability(model_name_or_path="gpt2") == (True, "the Hugging Face Hub serves gpt2")
    assert hub_server.requests == ["GET /api/models/gpt2", "GET /api/models/openai-community/gpt2"]
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *names: "model.safetensors")
    assert hub.explain_availability(**NAMES) == (True, "the Hugging Face Hub serves stanfordnlp/sst2")
    assert hub_server.requests[2:] == ["GET /api/datasets/stanfordnlp/sst2"]


def test_weights_without_a_tokenizer_are_not_enough(monkeypatch):
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda _, file: file if file == "model.safetensors" else None)
    assert not hub.explain_availability(model_name_or_path="gpt2")[0]
