"""Whether a model and a data set are available: from the local Hugging Face cache or from the Hub."""

import re

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

TIMEOUT = 10.0  # seconds that the Hub may be silent


class NotOnHubError(ConnectionError):
    """The Hub answers that it has no such repository (404)."""


def explain_availability(
    model_name_or_path: str | None = None, dataset_name: str | None = None, *, instead: str = "--profile offline"
) -> tuple[bool, str]:
    """Return whether all that is named is available, and the reason as half a sentence.

    It is unavailable only where the cache lacks it and this machine is offline: it can make no connection to the Hub,
    or with ``HF_HUB_OFFLINE``. A Hub that refuses, is busy or silent, or something else that answers in its place, is a
    ConnectionError (404: a `NotOnHubError`) that says what to do, and names the option ``instead``, which does without.
    """
    wanted = [(kind, name) for kind, name in (("model", model_name_or_path), ("dataset", dataset_name)) if name]
    missing = [(kind, name) for kind, name in wanted if not _is_cached(kind, name)]
    names = " and ".join(name for _, name in missing or wanted)
    for kind, name in missing:
        try:
            HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT)
        except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError) as error:  # the last: something else answers
            # Where a certificate is refused, or a connection reset (104), somebody is there.
            is_nobody_there = re.search(r"\[(Errno (?!104\b)|WinError)", str(error))
            if isinstance(error, OfflineModeIsEnabled) or (isinstance(error, httpx.ConnectError) and is_nobody_there):
                return False, f"the local Hugging Face cache lacks {names}, and this machine is offline ({error})"
            raise _explain(error, kind, name, instead) from error
    return True, f"the {'Hugging Face Hub serves' if missing else 'local Hugging Face cache holds'} {names}"


def _is_cached(kind: str, name: str) -> bool:
    if kind == "model":
        needed = ("config.json", "model.safetensors", "tokenizer.json")
        return all(isinstance(try_to_load_from_cache(name, file), str) for file in needed)
    import datasets  # takes a second, and `app.profiles` needs this module

    folder = datasets.config.HF_DATASETS_CACHE / name.replace("/", "___")
    return any(folder.glob("**/dataset_info.json"))


def _explain(error: Exception, kind: str, name: str, instead: str) -> ConnectionError:
    answer = f"{type(error).__name__}: {error}"
    if isinstance(error, HfHubHTTPError):
        answer = f"{error.response.status_code} {error.response.reason_phrase}"
    page = f"{constants.ENDPOINT}/{constants.REPO_TYPES_URL_PREFIXES.get(kind, '')}{name}"
    to_do = f"Try again later, or open {page} in a browser: a proxy or a login page may be in between"
    if answer[:3] in ("401", "403", "404"):
        to_do = f"Check the name and accept the terms, if any, at {page}, and log in with `hf auth login`"
    message = f"The Hugging Face Hub answers {answer} when asked for the {kind} {name}. {to_do}"
    error_class = NotOnHubError if answer.startswith("404") else ConnectionError
    return error_class(f"{message}; or do without: `{instead}`.")
