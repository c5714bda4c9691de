"""Whether a model and a data set can be had: from the local Hugging Face cache or from the Hub."""

import threading

from huggingface_hub import HfApi, try_to_load_from_cache

TIMEOUT = 4.0  # seconds


def explain_availability(model_name_or_path: str | None = None, dataset_name: str | None = None) -> tuple[bool, str]:
    """Return whether all that is named can be had, and the reason as half a sentence; takes `TIMEOUT` s at most."""
    names = " and ".join(name for name in (model_name_or_path, dataset_name) if name)
    model_is_cached = model_name_or_path is None or _model_is_cached(model_name_or_path)
    dataset_is_cached = dataset_name is None or _dataset_is_cached(dataset_name)
    if model_is_cached and dataset_is_cached:
        return True, f"the local Hugging Face cache holds {names}"
    failure = _ask_hub(model_name_or_path, dataset_name)
    if failure is None:
        return True, f"the Hugging Face Hub serves {names}"
    return False, f"the local Hugging Face cache lacks {names}, and the Hub cannot serve it ({failure})"


def _model_is_cached(name: str) -> bool:
    needed = ("config.json", "model.safetensors", "tokenizer.json")
    return all(isinstance(try_to_load_from_cache(name, file), str) for file in needed)


def _dataset_is_cached(name: str) -> bool:
    import datasets  # takes a second, and `config` needs this module

    folder = datasets.config.HF_DATASETS_CACHE / name.replace("/", "___")
    return any(folder.glob("**/dataset_info.json"))


def _ask_hub(model_name: str | None, dataset_name: str | None) -> str | None:
    """Return None if the Hub knows what is named, else why not."""
    answer = [f"no answer within {TIMEOUT:.0f} seconds"]

    def ask() -> None:
        try:
            if model_name is not None:
                HfApi().model_info(model_name, timeout=TIMEOUT)
            if dataset_name is not None:
                HfApi().dataset_info(dataset_name, timeout=TIMEOUT)
            answer[0] = None
        except Exception as error:  # whatever it is, the answer is: not from the Hub
            answer[0] = type(error).__name__

    # A thread, since no timeout of the request covers a name server that does not answer.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return answer[0]
