"""``--push_to_hub``: the adapter on the Hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token

from peft_helpers.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RUN_FILE
from peft_helpers.arguments import Arguments
from peft_helpers.distributed import process_state

# All that is sent and fetched: neither your own files in the folder, nor what could be pickled.
HUB_FILES = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, RUN_FILE, "README.md", "config.json", "tokenizer.json",
             "tokenizer_config.json", "calibration.json"]  # fmt: skip


def create_repository(args: Arguments) -> str | None:
    """Return the id of the repository for `upload_adapter`, made if it is missing; None without ``push_to_hub``.

    Raises:
        ValueError, ConnectionError: there is no token; the Hub does not allow it, or cannot be reached.
    """
    training = args.training
    if not training.push_to_hub:
        return None
    if not (token := training.hub_token or get_token()):
        raise ValueError("push_to_hub needs a token that may write: `hf auth login`, HF_TOKEN, or --hub_token.")
    name = training.hub_model_id or Path(training.output_dir).absolute().name  # as the Trainer has it
    try:
        return HfApi(token=token).create_repo(name, private=training.hub_private_repo, exist_ok=True).repo_id
    except Exception as error:  # also of the connection, which is no OSError
        raise ConnectionError(f"push_to_hub cannot write to {name!r} on the Hub: {error}") from error


def upload_adapter(args: Arguments) -> None:
    """Send adapter, tokenizer and model card in ``output_dir`` to the Hub, if ``push_to_hub`` asks for it.

    The Trainer would send checkpoints, too.
    """
    if process_state().is_main_process and (name := create_repository(args)):
        options = {"folder_path": args.training.output_dir, "revision": args.training.hub_revision}
        commit = HfApi(token=args.training.hub_token).upload_folder(repo_id=name, allow_patterns=HUB_FILES, **options)
        print(f"The adapter is on the Hub: {commit.repo_url}")
