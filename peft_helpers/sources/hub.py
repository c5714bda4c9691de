"""Whether a model and a data set are available: from the local Hugging Face cache or from the Hub."""

import errno
import socket

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff, httpx

TIMEOUT = 10.0  # seconds that the Hub may be silent
RETRIES = 3  # after 1, 2 and 4 seconds, or after as long as the Hub says
_NO_NETWORK = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


class NotOnHubError(ConnectionError):
    """The Hub answers that it has no such repository (404)."""


def explain_availability(
    model_name_or_path: str | None = None, dataset_name: str | None = None, *, instead: str = "--profile offline"
) -> tuple[bool, str]:
    """Return whether all that is named is available, and the reason as half a sentence.

    It is unavailable only where the cache lacks it and this machine is offline: without network, without name server,
    or with ``HF_HUB_OFFLINE``. A Hub that is busy or slow is asked again, of which `huggingface_hub` tells on stderr.

    Args:
        instead: the option that does without the Hub, for the message of an error.

    Raises:
        ConnectionError: the Hub refuses, stays busy or silent, or something else answers in its place; the message
            names the repository and the answer, and says what to do. `NotOnHubError` if the answer is 404.
    """
    wanted = [(kind, name) for kind, name in (("model", model_name_or_path), ("dataset", dataset_name)) if name]
    missing = [(kind, name) for kind, name in wanted if not _IS_CACHED[kind](name)]
    names = " and ".join(name for _, name in missing or wanted)
    for kind, name in missing:
        try:
            _ask_hub(kind, name)
        except (httpx.HTTPError, OSError, ValueError) as error:
            if cause := _offline_cause(error):
                return False, f"the local Hugging Face cache lacks {names}, and this machine is offline ({cause})"
            is_missing = isinstance(error, HfHubHTTPError) and error.response.status_code == 404
            kind_of_error = NotOnHubError if is_missing else ConnectionError
            raise kind_of_error(f"{_explain(error, kind, name)}; or do without: `{instead}`.") from error
    return True, f"the {'Hugging Face Hub serves' if missing else 'local Hugging Face cache holds'} {names}"


def _model_is_cached(name: str) -> bool:
    needed = ("config.json", "model.safetensors", "tokenizer.json")
    return all(isinstance(try_to_load_from_cache(name, file), str) for file in needed)


def _dataset_is_cached(name: str) -> bool:
    import datasets  # takes a second, and `config` needs this module

    folder = datasets.config.HF_DATASETS_CACHE / name.replace("/", "___")
    return any(folder.glob("**/dataset_info.json"))


_IS_CACHED = {"model": _model_is_cached, "dataset": _dataset_is_cached}


def _ask_hub(kind: str, name: str) -> None:
    """Ask for a repository as `HfApi.repo_info` does, which would not ask again."""
    response = http_backoff(
        "GET", f"{constants.ENDPOINT}/api/{kind}s/{name}", headers=build_hf_headers(), timeout=TIMEOUT,
        max_retries=RETRIES, retry_on_exceptions=httpx.TimeoutException,
    )  # fmt: skip
    hf_raise_for_status(response)
    if "sha" not in response.json():
        raise ValueError("the answer names no revision")


def _offline_cause(error: BaseException | None) -> str | None:
    """Return why there is no network, from the socket's error below those of the HTTP client; None if there is one."""
    while error is not None:
        if isinstance(error, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        if isinstance(error, ConnectionRefusedError | socket.gaierror) or getattr(error, "errno", None) in _NO_NETWORK:
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _explain(error: Exception, kind: str, name: str) -> str:
    """Return what was answered and what to do about it, without the end of the sentence."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    to_do = f"Open {page} in a browser to see whether a proxy or the login page of a network answers in its place"
    answer = f"does not answer as expected ({type(error).__name__}: {error})"
    if isinstance(error, httpx.TimeoutException):
        answer, to_do = "does not answer", "Try again later"
    elif isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        answer = f"answers {status} {error.response.reason_phrase}"
        to_do = "Try again later" if status == 429 or status >= 500 else _TO_DO.get(status, to_do)
    return f"The Hugging Face Hub {answer} when asked for the {kind} {name}. {to_do.format(page=page)}"


_TO_DO = {
    401: "Log in with `hf auth login`, and check the name at {page}",
    403: "Accept the terms at {page} and log in with `hf auth login`",
    404: "Check the name at {page}",
}
