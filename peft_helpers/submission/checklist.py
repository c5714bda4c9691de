"""The reviewer's list for a notebook and its adapter: what is found, what is missing, what could not be told."""

import json
import re
import tomllib
from collections import namedtuple
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from peft_helpers.submission.cells import Cell, find, follow, read_cells

LIST = tomllib.loads(Path(__file__).with_name("requirements.toml").read_text(encoding="utf-8"))
CALLS = {name: entry["call"] for name, entry in LIST.items() if "call" in entry}
WORDS = {"<number>": LIST["says"]["number"], "<metric>": LIST["says"]["metric"]}
SAYS = {
    name: re.compile(re.sub("<number>|<metric>", lambda word: WORDS[word[0]], pattern), re.IGNORECASE)
    for name, pattern in LIST["says"].items()
}
FOUND, MISSING, UNCLEAR = "found", "missing", "could not be told"
CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
Row = namedtuple("Row", "requirement answer cells to_do refuses")


class Checklist(list):
    """Rows of requirement, answer, cells, what to do, and whether it refuses a zip; what to do first is shown first."""

    def __init__(self, cells: list[Cell]):
        self.cells, self.code = cells, {name: find(cells, call) for name, call in CALLS.items()}
        self.statements, self.defined = find(cells, ""), {name: find(cells, call, True) for name, call in CALLS.items()}
        source = "\n".join(cell.source for cell in cells if cell.is_code)
        local = re.findall(
            r"(?m)^\s*(?:from|import) +\.*(\w*(?:util|helper)\w*)|^\s*[!%](?:run|python3?) +(\S+)", source
        )
        self.elsewhere = ", ".join(sorted({module or script for module, script in local}))

    def __repr__(self):
        rows = sorted(self, key=lambda row: (not row.refuses, row.answer == FOUND))
        lines = [(row, f" (cell {str(row.cells)[1:-1]})" if row.cells else "") for row in rows]
        return "\n".join(
            f"{row.answer:<17}  {row.requirement}{where}: {row.to_do}".rstrip(": ") for row, where in lines
        )

    def judge(self, name: str, good: object, wrong: object = (), unsure: object = (), advice: str = "") -> None:
        """Add the row of what meets a requirement, or surely does not, or perhaps does."""
        places, to_do = good or wrong or unsure, advice if good else f"{LIST[name]['to_do']}{advice}"
        answer = FOUND if good else MISSING if wrong or not (unsure or self.elsewhere) else UNCLEAR
        cells = sorted({getattr(each, "cell", each) for each in places}) if isinstance(places, list) else []
        if answer == UNCLEAR and not unsure:
            to_do = f"look into {self.elsewhere}, or {to_do}"
        needed = {"any": not wrong, "all": True}.get(LIST[name].get("needed"), False)
        self.append(Row(LIST[name]["requirement"], answer, cells, to_do, answer == MISSING and needed))

    def check_code(self, config: dict) -> None:
        """Look for the steps of the project in the code."""
        code, defined, whole = self.code, self.defined, self.code["whole"]
        for name in ("dataset", "tokenizer", "configuration", "peft_model"):
            self.judge(name, code[name], [], defined[name])
        self.judge("classifier", code["classifier"], code["model"], defined["classifier"])
        self.judge("quantized", code["quantized"], True)
        several = len({each.code for each in code["configuration"]}) > 1
        looped = [each for each in code["configuration"] if re.search(r"\bfor\b", each.code)]
        self.judge("several", code["configuration"] if several else looped, True)

        training = follow(self.statements, CALLS["peft_model"], CALLS["training"])
        training = training if code["peft_model"] else code["training"]
        start = (training or code["training"])[:1]
        ended = [
            each for each in training if self.cells[each.cell - 1].was_run and not self.cells[each.cell - 1].has_error
        ]
        seen = [cell.number for cell in self.cells if re.search("train_runtime|Training Loss", cell.text)]
        self.judge("training", ended, [] if training else code["training"], training or defined["training"] or seen)
        merged = follow(self.statements, CALLS["whole"], CALLS["saved"])
        saved = [each for each in code["saved"] if [each] >= start and each not in merged]
        self.judge("saved", saved, code["saved"] + whole, defined["saved"] or code["loaded"])
        classifies = code["classifier"] and "SequenceClassification" not in str(config.get("auto_mapping"))
        loaded = [
            each for each in code["loaded"] if [each] >= start and not (classifies and "ForCausalLM" in each.code)
        ]
        later = [each for each in code["model"] if saved and each > saved[0]]
        self.judge("loaded", loaded, [] if saved else whole, code["loaded"] or defined["loaded"] or later)

    def check_run(self, names: list[str]) -> None:
        """Look for cells that were not run, or not in order, or that failed; those that make this check may be."""
        code = [cell for cell in self.cells if cell.statements or not cell.is_python]
        code = [cell for cell in code if not find([cell], r"\b(?:check|package)_submission\(")]
        counted = [cell for cell in code if cell.count]
        late = [cell.number for last, cell in pairwise(counted) if cell.count <= last.count]
        idle = [cell.number for cell in code if not cell.was_run]
        failed = [cell.number for cell in code if cell.has_error]
        wrong = {"run": idle, "order": late, "errors": failed}
        for name in names:
            self.judge(name, not wrong[name], wrong[name])

    def check_results(self) -> None:
        """Look for metrics of the untuned and of the loaded model in the outputs, and for a comparison."""
        metrics = {cell.number: find_metrics(cell) for cell in self.cells}
        training, loaded, measuring = self.code["training"], self.code["loaded"], CALLS["measuring"]
        start = training[0] if training else None
        model = CALLS["classifier" if self.code["classifier"] else "model"]
        fresh = [each for each in self.statements if training and each > training[-1] and each not in loaded]
        base = follow(self.statements, model, measuring, start) + follow(fresh, model, measuring)
        tuned = follow(self.statements, CALLS["loaded"], measuring)
        measured = [each for each in self.code["measuring"] if metrics[each.cell]]
        before, after = ([each for each in found if metrics[each.cell]] for found in (base, tuned))
        early = [each for each in measured if not start or each < start]
        self.judge("untuned", before, [] if base or early else measured, base or early)
        names = set().union(*(metrics[each.cell] for each in before))
        same = [each for each in after if not names or metrics[each.cell] & names]
        old = [each for each in measured if loaded and each > loaded[0] and not tuned]
        self.judge("tuned", same, after or old, tuned)
        ending = [cell for cell in self.cells if not start or cell.number >= start.cell]
        charts = [cell.number for cell in ending if "image/png" in cell.text]
        compared = [cell.number for cell in ending if compares(cell, metrics[cell.number])]
        self.judge("compared", compared, [], charts or (before and same and [*before, *same]))

    def check_folder(self, notebook: Path, folder: Path) -> None:
        """Look at the adapter's files and where they are."""
        config, weights = read_config(folder), find_weights(folder)
        names = sorted(path.name for path in folder.glob("*"))
        there = f"; {folder} has {', '.join(names[:5]) or 'nothing'}"
        place = f"copy {folder} beside {notebook.name}" if folder.resolve().parent != notebook.resolve().parent else ""
        place = "this is a checkpoint of the Trainer; better save the model" if "trainer_state.json" in names else place
        self.judge("config", config, not config, advice=place if config else there)
        old = "save it again as safetensors, with a newer peft" if weights and weights.name == PICKLE else ""
        self.judge("weights", weights, not weights, advice=old if weights else there)
        head = config.get("task_type") or config.get("modules_to_save")
        if config:
            self.judge("head", head, not head)


def check_submission(notebook: str | Path, adapter_dir: str | Path, executed: list[str] | None = None) -> Checklist:
    """Go through the reviewer's list for a notebook, as it was last saved, and for the folder of its adapter.

    In a running kernel give ``executed``, the sources that it has run (``In``): outputs are then not looked at.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the file is not a notebook.
    """
    cells, folder = read_cells(notebook), Path(adapter_dir)
    for cell in cells if executed is not None else []:
        cell.text, cell.count, cell.has_error = "", 0, False
        cell.was_run = cell.source.strip() in {source.strip() for source in executed}
    rows = Checklist(cells)
    rows.check_code(read_config(folder))
    rows.check_run(["run", "order", "errors"] if executed is None else ["run"])
    if executed is None:
        rows.check_results()
        late = Path(notebook).stat().st_mtime + 2 < max(
            (path.stat().st_mtime for path in folder.glob("adapter_*")), default=0
        )
        rows.judge("newer", not late, [], late)
    rows.check_folder(Path(notebook), folder)
    return rows


def find_metrics(cell: Cell) -> set[str]:
    """Return the names of the metrics that a cell shows with a number; a name may stand in its code alone."""
    names = {one or other for one, other in SAYS["named"].findall(cell.text)}
    if not names and SAYS["lone"].search(SAYS["other"].sub("", cell.text)):
        names = set(SAYS["metric"].findall("\n".join(each.code for each in cell.statements)))
    return {"accuracy" if name.lower().startswith("acc") else name.lower() for name in names}


def compares(cell: Cell, metrics: set[str]) -> bool:
    """Tell whether results of both models stand in a cell, or a sentence says how they differ."""
    printed = "\n".join(each.code for each in cell.statements if re.search(r"print\(|display\(|DataFrame\(", each.code))
    both = [
        t for t in (cell.text, printed) if SAYS["before"].search(t) and SAYS["after"].search(SAYS["before"].sub("", t))
    ]
    if both and len(SAYS["number"].findall(cell.text)) > 1 and (metrics or SAYS["metric"].search(cell.text)):
        return True
    sentences = [part for part in re.split(r"(?<=[.!?])\s|\n", cell.text) if not SAYS["planned"].search(part)]
    return any(SAYS["change"].search(part) for part in sentences) and (bool(metrics) or not cell.is_code)


def read_config(folder: Path) -> dict:
    """Return the adapter's configuration, empty if it cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return config if config["peft_type"] else {}
    return {}


def find_weights(folder: Path) -> Path | None:
    """Return the file with the adapter's weights, if there is one and it is whole."""
    from safetensors import SafetensorError, safe_open

    with suppress(OSError, SafetensorError), safe_open(folder / WEIGHTS, framework="numpy") as weights:
        return folder / WEIGHTS if weights.keys() else None
    return folder / PICKLE if (folder / PICKLE).is_file() else None
