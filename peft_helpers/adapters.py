"""The folder that the adapter is saved in."""

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from peft_helpers.config import RunConfig

RUN_FILE = "run_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Where a run writes, not what it computes.
_NOT_COMPARED = {"output_dir", "overwrite_output_dir", "checkpoint_dir", "profile"}


def check_output_dir(config: RunConfig) -> None:
    """Check, before anything is computed, that saving to ``config.output_dir`` will not replace another run's adapter.

    The adapter of the same configuration may be replaced: running the notebook again gives it again.

    Raises:
        FileExistsError: the folder holds an adapter of another configuration, or files that are no adapter's.
    """
    folder = Path(config.output_dir)
    if config.overwrite_output_dir or not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    what = _difference(folder, config)
    if what:
        raise FileExistsError(
            f"output_dir is {config.output_dir!r}, which {what}. Choose another --output_dir, or pass "
            "--overwrite_output_dir to replace it. Nothing was changed."
        )


def _difference(folder: Path, config: RunConfig) -> str:
    if not (folder / ADAPTER_CONFIG).is_file():
        return "exists and holds no adapter"
    if not (folder / RUN_FILE).is_file():
        return "holds an adapter of unknown origin"
    saved = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    wanted = asdict(config)
    names = [name for name in wanted if name not in _NOT_COMPARED and saved.get(name) != wanted[name]]
    return f"holds the adapter of another run: {', '.join(f'{n} {saved.get(n)!r}' for n in names)}" if names else ""


def save_run_config(config: RunConfig, adapter_dir: str | Path) -> None:
    """Write the configuration beside the adapter, for `check_output_dir` and for whoever asks how it was made."""
    content = {name: value for name, value in asdict(config).items() if name not in _NOT_COMPARED - {"profile"}}
    Path(adapter_dir, RUN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def list_files(adapter_dir: str | Path) -> pd.DataFrame:
    """Return the files of ``adapter_dir`` with their sizes in MB (10^6 bytes)."""
    files = sorted(path for path in Path(adapter_dir).rglob("*") if path.is_file())
    sizes = [path.stat().st_size / 1e6 for path in files]
    return pd.DataFrame({"file": [path.relative_to(adapter_dir).as_posix() for path in files], "MB": sizes})


def adapter_size(adapter_dir: str | Path) -> float:
    """Return the size of the adapter's weights in MB (10^6 bytes)."""
    return Path(adapter_dir, ADAPTER_WEIGHTS).stat().st_size / 1e6
