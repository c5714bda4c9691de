"""What is handed in: whether notebook and adapter are complete, and both in one zip. Nothing is run or loaded."""

import html
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

import nbformat
import pandas as pd
from safetensors import SafetensorError, safe_open

from peft_helpers.adapter_checks import PICKLES
from peft_helpers.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from peft_helpers.notebook_code import FOUNDATION, RELOADED, RESULTS, CodeReader, Step, parse_cell

MAX_FOLDER_MB = 1000.0  # MB (10^6 bytes): the workspaces' limit of 1 GB
AN_EPOCH = 0.95  # a Trainer that accumulates gradients counts a whole one as little less
COPIED = 2.0  # seconds between files that were copied together
_METRIC = r"(?<![a-z0-9])(accuracy|accu?|f1|precision|recall|matthews|mcc|(?:roc[ _-]?)?auc)(?![a-z0-9])"
# In the same line, or in the next one of a table that has the metrics as columns. Bounded, as outputs can be huge.
_SHOWN = re.compile(
    rf"{_METRIC}(?=[^\n]{{0,60}}?(?:\.\d|\d ?%|[:=] ?[01]\b)|[^\n]{{0,300}}\n\s{{0,80}}[^\n]{{0,300}}?\.\d)",
    re.IGNORECASE,
)
_NUMBER = r"(?<![\d.])(\d{1,6}(?:\.\d{1,6})?)"
_EPOCHS = re.compile(rf"epoch\W{{1,4}}{_NUMBER}|{_NUMBER} epochs?\b", re.IGNORECASE)
_COMPARED = re.compile(r"compar|improv|increas|differen|better|worse|before|versus|\bvs\b|untuned", re.IGNORECASE)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CHECKPOINT_FILES = {"optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "trainer_state.json"}
_HANDED_IN = {".json", ".safetensors", ".md", ".txt", ".model", ".jinja"}
_COMMENT = b"A hand-in made by peft_helpers.package_submission"


@dataclass(frozen=True)
class Cell:
    """A cell: its number from 1, what a reader sees of it, and for code how it was run and whose results it has."""

    number: int
    text: str
    is_code: bool = False
    is_empty: bool = True
    execution_count: int | None = None
    has_error: bool = False
    results: frozenset[str] = frozenset()

    @cached_property
    def metrics(self) -> set[str]:
        """The metrics that stand in the cell's text with a value."""
        names = {match[1].lower() for match in _SHOWN.finditer(self.text)}
        return {"accuracy" if name.startswith("acc") else name for name in names}


def check_submission(
    notebook: str | Path, adapter_dir: str | Path, max_folder_mb: float = MAX_FOLDER_MB
) -> pd.DataFrame:
    """Go through the reviewer's list: a row a requirement, with ``found``, ``where`` (cells, from 1) and ``to_do``.

    What is read is the notebook as it was last saved: its code, its outputs, and the files' names, sizes and headers.
    Rows whose ``required`` is False are the ways to stand out. A cell that calls this function or `package_submission`
    need not have been run. ``max_folder_mb`` is the limit for notebook and adapter together, in MB (10^6 bytes).

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the file is not a notebook.
    """
    notebook, adapter_dir = Path(notebook), Path(adapter_dir)
    cells, steps = read_notebook(notebook)
    rows = _check_steps(cells, steps, adapter_dir) + _check_execution(cells, steps)
    rows += _check_folder(notebook, adapter_dir, max_folder_mb)
    return pd.DataFrame(rows, columns=["requirement", "required", "found", "where", "to_do"])


def read_notebook(notebook: str | Path) -> tuple[list[Cell], list[Step]]:
    """Return the cells of a notebook and the steps that its code takes.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the file is not a notebook.
    """
    if not Path(notebook).is_file():
        raise FileNotFoundError(f"There is no notebook {str(notebook)!r}; save it first, or name another.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cells without an id, which older versions write
            content = nbformat.read(notebook, as_version=4)
            sources = list(content.cells)
    except Exception as error:  # what a broken file makes nbformat raise is many things
        raise ValueError(
            f"{str(notebook)!r} is not a valid notebook ({type(error).__name__}: {error}); save it again."
        ) from error
    reader = CodeReader()
    return [_read_cell(number, cell, reader) for number, cell in enumerate(sources, 1)], reader.steps


def _read_cell(number: int, cell: nbformat.NotebookNode, reader: CodeReader) -> Cell:
    source = cell.get("source") or ""
    if cell.get("cell_type") != "code":
        return Cell(number, source)
    outputs = cell.get("outputs") or []
    has_error = any(output.get("output_type") == "error" for output in outputs)
    results = frozenset(reader.read_cell(number, source))
    tree = parse_cell(source)
    is_empty = tree is not None and not tree.body
    text = "\n".join(map(_output_text, outputs))
    count = cell.get("execution_count")
    return Cell(number, text, True, is_empty, count if isinstance(count, int) else None, has_error, results)


def _output_text(output: nbformat.NotebookNode) -> str:
    """Return what a reader sees: plain text without colours, and tables row by row."""
    data = output.get("data") or {}
    text = str(output.get("text") or data.get("text/plain") or "")
    table = re.sub(r"(?i)<(style|script)\b[^<]*</\1>", "", str(data.get("text/html") or ""))
    rows = [re.sub(r"(?:<[^<>]*>|\s)+", " ", row) for row in re.split(r"(?i)</tr>|<p>|</div>|<br>", table)]
    return "\n".join([_ANSI.sub("", text), *(html.unescape(row) for row in rows)])


def _check_steps(cells: list[Cell], steps: list[Step], adapter_dir: Path) -> list[tuple]:
    """Look for each step of the form, in the order in which they have to come."""
    before = [cell for cell in cells if RESULTS[FOUNDATION] in cell.results and cell.metrics]
    metrics = set().union(*(cell.metrics for cell in before))
    quantized = _cells(steps, "quantization")
    return [
        _row("a pre-trained sequence classifier is loaded", _cells(steps, "classifier"),
             "call AutoModelForSequenceClassification.from_pretrained"),
        _row("a Hugging Face data set is loaded", _cells(steps, "dataset"), "call datasets.load_dataset"),
        _row("a Hugging Face tokenizer prepares it", _cells(steps, "tokenizer"), "call AutoTokenizer.from_pretrained"),
        _row("a metric of the untuned model is shown", _numbers(before),
             "evaluate the loaded classifier before training and show its accuracy or F1 in the output"),
        _row("a PEFT configuration is made", _cells(steps, "configuration"), "make one of peft's, such as LoraConfig"),
        _row("a PEFT model is made from it", _cells(steps, "peft model"), "call get_peft_model"),
        _check_training(cells, steps),
        _check_save(steps, adapter_dir),
        _check_reload(steps),
        *_check_reloaded_results(cells, steps, metrics),
        _row("QLoRA with bitsandbytes", quantized, "load the model with a BitsAndBytesConfig", required=False),
        _row("several PEFT configurations", _several(steps), "make and compare at least two", required=False),
    ]  # fmt: skip


def _row(requirement: str, where: Iterable[int], to_do: str, required: bool = True, found: bool | None = None) -> tuple:
    """Return a row of the table; unless ``found`` says otherwise, what stands somewhere is found."""
    numbers = sorted(set(where))
    found = bool(numbers) if found is None else found
    cells = f"cell {', '.join(map(str, numbers))}" if numbers else ""
    return requirement, required, found, cells, "" if found else to_do


def _cells(steps: list[Step], kind: str) -> list[int]:
    return [step.cell for step in steps if step.kind == kind]


def _numbers(cells: Iterable[Cell]) -> list[int]:
    return [cell.number for cell in cells]


def _several(steps: list[Step]) -> list[int]:
    made = [step for step in steps if step.kind == "configuration"]
    several = len(made) > 1 or any(step.repeated for step in made)
    return (_numbers_of(made) if several else []) + _cells(steps, "configurations")


def _numbers_of(steps: list[Step]) -> list[int]:
    return [step.cell for step in steps]


def _check_training(cells: list[Cell], steps: list[Step]) -> tuple:
    """Look for an epoch: what the outputs say of it; if nothing, that the cells were run without an error."""
    numbers = _cells(steps, "training")
    reload = min(_cells(steps, "reload"), default=len(cells) + 1)
    seen = [cell for cell in cells if numbers and min(numbers) <= cell.number < reload and cell.is_code]
    epochs = [float(a or b) for cell in seen for a, b in _EPOCHS.findall(cell.text) if "." in (a or b) or int(a or b)]
    trained = any(cell.number in numbers and cell.execution_count and not cell.has_error for cell in cells)
    to_do = "train with num_train_epochs=1 or more, to its end, and save the notebook"
    if epochs and max(epochs) < AN_EPOCH:
        to_do = f"train a whole epoch: the output says {max(epochs):g}"
    found = trained and max(epochs, default=1) >= AN_EPOCH
    return _row("at least one epoch is trained", numbers, to_do, found=found)


def _check_save(steps: list[Step], adapter_dir: Path) -> tuple:
    """Look for a call that saves, to the folder that is handed in as far as the code tells."""
    folders = {step.folder for step in steps if step.kind == "save"}
    found = any(not _is_path(folder) or Path(folder).name == adapter_dir.resolve().name for folder in folders)
    to_do = "call save_pretrained of the PEFT model after training"
    if folders and not found:
        to_do = f"hand in the folder that the notebook saves, {' or '.join(sorted(folders))}, not {adapter_dir.name}"
    return _row("the adapter is saved after training", _cells(steps, "save"), to_do, found=found)


def _check_reload(steps: list[Step]) -> tuple:
    """Look for a reload after saving, of a folder that was saved as far as the code tells."""
    saves = [step for step in steps if step.kind == "save"]
    reloads = [step for step in steps[steps.index(saves[0]) :] if step.kind == "reload"] if saves else []
    folders = {step.folder for step in saves}
    known = all(map(_is_path, folders))
    fitting = [step for step in reloads if step.folder in folders or not known or not _is_path(step.folder)]
    to_do = "call AutoPeftModelForSequenceClassification.from_pretrained on the folder after saving"
    if reloads and not fitting:
        to_do = f"load the folder that was saved, {' or '.join(sorted(folders))}, not {reloads[0].folder}"
    return _row("the saved adapter is loaded", _numbers_of(fitting or reloads), to_do, found=bool(fitting))


def _is_path(folder: str) -> bool:
    """Tell whether the code names the folder of a `Step` as a string, rather than computes it."""
    return bool(folder) and not folder.startswith("<")


def _check_reloaded_results(cells: list[Cell], steps: list[Step], metrics: set[str]) -> list[tuple]:
    """Look for what the untuned model was measured by, measured with the reloaded model, and for a comparison."""
    shown = [cell for cell in cells if RESULTS[RELOADED] in cell.results and cell.metrics]
    again = [cell for cell in shown if not metrics or cell.metrics & metrics]
    first = min(_numbers(again), default=len(cells) + 1)
    compared = [
        cell
        for cell in cells
        if cell.number >= first
        and (set(RESULTS.values()) <= cell.results or (cell.metrics and _COMPARED.search(cell.text)))
    ]
    name = " or ".join(sorted(metrics)) or "the metric of the untuned one"
    to_do = f"evaluate the loaded model and show {name}"
    reload = min(_cells(steps, "reload"), default=len(cells) + 1)
    old = [cell for cell in cells if cell.number >= reload and cell.metrics and cell.is_code]
    if shown:
        to_do = f"show {name}: the loaded model has {', '.join(sorted(set().union(*(c.metrics for c in shown))))} only"
    elif old:
        to_do = f"cell {old[0].number} measures the model in memory: make a new Trainer with the loaded one"
    return [
        _row("the same metric of the loaded model is shown", _numbers(again), to_do),
        _row("the two are compared", _numbers(compared), "show both metrics side by side, or say what changed"),
    ]


def _check_execution(cells: list[Cell], steps: list[Step]) -> list[tuple]:
    """Look for code that was not run, or not in order, or that failed; the cells that make the check are exempt."""
    exempt = set(_cells(steps, "check"))
    code = [cell for cell in cells if cell.is_code and not cell.is_empty and cell.number not in exempt]
    run = [cell for cell in code if cell.execution_count]
    missing = [cell for cell in code if not cell.execution_count]
    late = [cell for last, cell in pairwise(run) if cell.execution_count <= last.execution_count]
    failed = [cell for cell in code if cell.has_error]
    to_do = "run these cells, save the notebook (Ctrl-S), then check again"
    if not run:
        to_do = "the notebook on disk is not executed: run it, save it (Ctrl-S), then check again"
    return [
        _row("every cell was run", _numbers(missing), to_do, found=bool(run) and not missing),
        _row("the cells were run from top to bottom", _numbers(late), "restart the kernel, run all cells, save",
             found=not late),
        _row("no cell ended in an error", _numbers(failed), "mend these cells, run all cells, save", found=not failed),
    ]  # fmt: skip


def _check_folder(notebook: Path, folder: Path, max_folder_mb: float) -> list[tuple]:
    """Look at the adapter's folder: its place, what it holds and lacks, and its size."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    names = ", ".join(sorted(path.relative_to(folder).as_posix() for path in files)[:8]) or "nothing"
    beside = folder.is_dir() and folder.resolve().parent == notebook.resolve().parent
    weights = folder / ADAPTER_WEIGHTS
    models = [path for path in files if path.suffix == ".safetensors" and path.name != ADAPTER_WEIGHTS]
    pickles = [path for path in files if path.suffix in PICKLES and path.name != "training_args.bin"]
    checkpoints = [path for path in files if _is_of_checkpoint(path.relative_to(folder))]
    megabytes = (notebook.stat().st_size + sum(path.stat().st_size for path in files)) / 1e6
    current = weights.is_file() and notebook.stat().st_mtime + COPIED >= weights.stat().st_mtime
    checks = [
        ("the adapter has a folder of its own beside the notebook", beside,
         f"save the adapter in a folder beside {notebook.name}{'' if folder.is_dir() else f'; {folder} is no folder'}"),
        (f"it holds {ADAPTER_CONFIG}", _is_adapter_config(folder / ADAPTER_CONFIG),
         f"call save_pretrained of the PEFT model; {folder.name} holds {names}"),
        (f"it holds {ADAPTER_WEIGHTS}", _is_safetensors(weights),
         f"call save_pretrained of the PEFT model; {folder.name} holds {names}"),
        ("it holds no whole model", not models, f"save the adapter only: remove {_first(models)}"),
        ("it holds no pickled weights", not pickles, f"remove {_first(pickles)}: opening a pickle runs its code"),
        ("it holds no checkpoints", not checkpoints, f"remove {_first(checkpoints)}"),
        ("the notebook was saved after the adapter", current,
         "the notebook on disk may show an earlier run: save it (Ctrl-S), then check again"),
        (f"notebook and adapter take at most {max_folder_mb:g} MB", megabytes <= max_folder_mb,
         f"they take {megabytes:.1f} MB: remove what is not needed, or clear large outputs"),
    ]  # fmt: skip
    return [(requirement, True, bool(found), "", "" if found else to_do) for requirement, found, to_do in checks]


def _is_of_checkpoint(path: Path) -> bool:
    return path.name in _CHECKPOINT_FILES or any(part.startswith("checkpoint-") for part in path.parts[:-1])


def _first(paths: list[Path]) -> str:
    names = [path.name for path in sorted(paths)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_adapter_config(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["peft_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_safetensors(path: Path) -> bool:
    """Tell whether a file is whole: safetensors compares its size with what the header says, and reads no weight."""
    try:
        with safe_open(path, framework="numpy") as weights:
            return len(weights.keys()) > 0
    except (OSError, SafetensorError):
        return False


def package_submission(
    notebook: str | Path,
    adapter_dir: str | Path,
    zip_path: str | Path | None = None,
    allow_incomplete: bool = False,
) -> pd.DataFrame:
    """Write notebook and adapter in one zip; return the name and size in MB (10^6 bytes) of each file in it.

    The notebook is taken as it was last saved. Of the adapter's folder only what is needed to load the adapter and
    read about it is taken: no checkpoints, optimizer states, caches, pickles, links, or weights of a whole model. What
    is left out is printed. The same files give the same bytes.

    Args:
        notebook: the notebook's file.
        adapter_dir: the folder that the adapter was saved in.
        zip_path: the zip to write, by default beside the notebook and by its name. One of an earlier call is replaced.
        allow_incomplete: write it even if `check_submission` finds that something required is missing.

    Raises:
        FileNotFoundError: there is no such notebook, or no folder to write the zip in.
        ValueError: the file is not a notebook, or something required is missing; the message names it.
        FileExistsError: ``zip_path`` is a file that this function has not written.
    """
    notebook, adapter_dir = Path(notebook), Path(adapter_dir)
    zip_path = notebook.with_suffix(".zip") if zip_path is None else Path(zip_path)
    table = check_submission(notebook, adapter_dir)
    missing = table[table["required"] & ~table["found"]]
    if len(missing) and not allow_incomplete:
        rows = "; ".join(f"{row.requirement}: {row.to_do}" for row in missing.itertuples())
        raise ValueError(f"The hand-in is incomplete. Missing: {rows}. Or pass allow_incomplete.")
    _check_zip_path(zip_path)
    files = {notebook.name: notebook} | _files_to_hand_in(adapter_dir)
    _write_zip(zip_path, files)
    sizes = [path.stat().st_size / 1e6 for path in files.values()]
    return pd.DataFrame({"file": list(files), "MB": sizes})


def _check_zip_path(zip_path: Path) -> None:
    if not zip_path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(zip_path.parent)!r} to write {zip_path.name} in; make it.")
    if not os.path.lexists(zip_path):
        return
    try:
        with ZipFile(zip_path) as archive:
            ours = archive.comment == _COMMENT
    except (OSError, BadZipFile):
        ours = False
    if not ours:
        raise FileExistsError(f"{str(zip_path)!r} is not a hand-in written before; choose another zip_path.")


def _files_to_hand_in(adapter_dir: Path) -> dict[str, Path]:
    """Return the files to take, by their names in the zip; none where the folder is not an adapter's."""
    folder = adapter_dir.resolve()
    if not (folder / ADAPTER_CONFIG).is_file():
        return {}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [path for path in paths if _is_handed_in(path, folder)]
    if left_out := [path.relative_to(folder).as_posix() for path in paths if path not in kept]:
        print(f"Left out: {', '.join(left_out)}")
    return {f"{folder.name}/{path.relative_to(folder).as_posix()}": path for path in kept}


def _is_handed_in(path: Path, folder: Path) -> bool:
    relative = path.relative_to(folder)
    hidden = any(part.startswith((".", "__")) for part in relative.parts)
    weights = path.suffix != ".safetensors" or path.name == ADAPTER_WEIGHTS
    inside = path.resolve() == path  # no link in it
    return path.suffix in _HANDED_IN and weights and inside and not hidden and not _is_of_checkpoint(relative)


def _write_zip(zip_path: Path, files: dict[str, Path]) -> None:
    """Write all of the zip under another name first: a failure leaves an earlier one whole."""
    part = zip_path.with_name(f".{zip_path.name}.{os.getpid()}.part")
    try:
        with ZipFile(part, "x", ZIP_DEFLATED) as archive:
            archive.comment = _COMMENT
            for name in sorted(files):
                entry = ZipInfo(name)  # dated 1980, whatever the file's date
                entry.compress_type, entry.create_system, entry.external_attr = ZIP_DEFLATED, 3, 0o100644 << 16
                with archive.open(entry, "w") as target, files[name].open("rb") as source:
                    shutil.copyfileobj(source, target)
        part.replace(zip_path)
    finally:
        part.unlink(missing_ok=True)
