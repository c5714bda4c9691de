"""Whether a model and a data set can be had: from the local Hugging Face cache or from the Hub."""

import threading

import datasets
from huggingface_hub import HfApi, try_to_load_from_cache

TIMEOUT = 4.0  # seconds


def explain_availability(model_name_or_path: str, dataset_name: str) -> tuple[bool, str]:
    """Return whether both can be had, and the reason as half a sentence. Takes about `TIMEOUT` seconds at most."""
    both = f"{model_name_or_path} and {dataset_name}"
    if _model_is_cached(model_name_or_path) and _dataset_is_cached(dataset_name):
        return True, f"{both} are in the local Hugging Face cache"
    failure = _ask_hub(model_name_or_path, dataset_name)
    if failure is None:
        return True, f"the Hugging Face Hub serves {both}"
    return False, f"{both} are not in the local Hugging Face cache, and the Hub cannot serve them ({failure})"


def _model_is_cached(name: str) -> bool:
    return isinstance(try_to_load_from_cache(name, "model.safetensors"), str)


def _dataset_is_cached(name: str) -> bool:
    folder = datasets.config.HF_DATASETS_CACHE / name.replace("/", "___")
    return any(folder.glob("**/dataset_info.json"))


def _ask_hub(model_name: str, dataset_name: str) -> str | None:
    """Return None if the Hub knows both, else why not."""
    answer = [f"no answer within {TIMEOUT:.0f} seconds"]

    def ask() -> None:
        try:
            HfApi().model_info(model_name, timeout=TIMEOUT)
            HfApi().dataset_info(dataset_name, timeout=TIMEOUT)
            answer[0] = None
        except Exception as error:  # whatever it is, the answer is: not from the Hub
            answer[0] = type(error).__name__

    # A thread, since no timeout of the request covers a name server that does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return answer[0]
