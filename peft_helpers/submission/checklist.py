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
SAYS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in LIST["says"].items()}
FOUND, MISSING, UNCLEAR = "found", "missing", "could not be told"
Row = namedtuple("Row", "requirement answer cells to_do refuses")


class Checklist(list):
    """Rows of requirement, answer, cells, what to do, and whether it refuses a zip; what to do first is shown first."""

    def __init__(self, cells: list[Cell]):
        self.cells, self.code = cells, {name: find(cells, call) for name, call in CALLS.items()}
        self.defined = {name: find(cells, call, True) for name, call in CALLS.items()}
        modules = SAYS["elsewhere"].findall("\n".join(cell.source for cell in cells))
        self.elsewhere = ", ".join(sorted({one or other for one, other in modules}))

    def __repr__(self):
        rows = sorted(self, key=lambda row: (not row.refuses, row.answer == FOUND))
        rows = [(row, f" (cell {', '.join(map(str, row.cells))})" if row.cells else "") for row in rows]
        return "\n".join(f"{row.answer:<17}  {row.requirement}{where}: {row.to_do}".rstrip(": ") for row, where in rows)

    def judge(self, name: str, good: object, wrong: object = (), unsure: object = (), advice: str = "") -> None:
        """Add the row of what meets a requirement, or surely does not, or perhaps does."""
        answer = FOUND if good else MISSING if wrong or not (unsure or self.elsewhere) else UNCLEAR
        places, to_do = good or wrong or unsure, advice if good else f"{LIST[name]['to_do']}{advice}"
        cells = sorted({getattr(each, "cell", each) for each in places}) if isinstance(places, list) else []
        if answer == UNCLEAR and not unsure:
            to_do = f"look into {self.elsewhere}, or {to_do}"
        needed = {"any": not wrong, "all": True}.get(LIST[name].get("needed"), False)
        self.append(Row(LIST[name]["requirement"], answer, cells, to_do, answer == MISSING and needed))

    def follow(self, load: str, act: str, **end: object) -> list:
        """Return the statements that act on a model that was loaded, or use results of it."""
        return follow(self.code["any"], CALLS[load], CALLS[act], **end)

    def check_code(self, config: dict) -> None:
        """Look for the steps of the project in the code."""
        code, defined, configurations = self.code, self.defined, self.code["configuration"]
        for name in ("classifier", "dataset", "tokenizer", "configuration", "peft_model"):
            self.judge(name, code[name], code["model"] if name == "classifier" else [], defined[name])
        trained = self.follow("peft_model", "training") if code["peft_model"] else code["training"]
        complete = {cell.number for cell in self.cells if cell.was_run and not cell.has_error}
        ended = [each for each in trained if each.cell in complete]
        seen = [cell.number for cell in self.cells if SAYS["trained"].search(cell.text)]
        self.judge("training", ended, [] if trained else code["training"], trained or defined["training"] or seen)
        start, merged = (trained or code["training"])[:1], self.follow("whole", "saved")
        saved = [each for each in code["saved"] if [each] >= start and each not in merged]
        self.judge("saved", saved, code["saved"] + code["whole"], defined["saved"] or code["loaded"])
        is_other = code["classifier"] and "SequenceClassification" not in str(config.get("auto_mapping"))
        loaded = [each for each in code["loaded"] if [each] >= start and not (is_other and "ForCausalLM" in each.code)]
        later = [each for each in code["model"] if saved and each > saved[0]]
        self.judge("loaded", loaded, [] if saved else code["whole"], code["loaded"] or defined["loaded"] or later)
        made = {call for each in configurations for call in re.findall(f"(?:{CALLS['configuration']}).*", each.code)}
        several = len(made) > 1 or any(SAYS["repeated"].search(each.code) for each in configurations)
        self.judge("several", configurations if several else [], True)
        self.judge("quantized", code["quantized"], True)

    def check_run(self, names: list[str]) -> None:
        """Look for cells that were not run, or not in order, or that failed; those that make this check are exempt."""
        cells = [cell for cell in self.cells if cell.statements and not find([cell], CALLS["check"])]
        counted = pairwise(cell for cell in cells if cell.count)
        wrong = {"order": [cell.number for last, cell in counted if cell.count <= last.count]}
        wrong["run"] = [cell.number for cell in cells if not cell.was_run]
        wrong["errors"] = [cell.number for cell in cells if cell.has_error]
        for name in names:
            self.judge(name, not wrong[name], wrong[name])

    def check_results(self) -> None:
        """Look for metrics of the untuned and of the loaded model in the outputs, and for a comparison."""
        shown, start = {cell.number: find_metrics(cell) for cell in self.cells}, (self.code["training"] or [None])[0]
        model, loaded = "classifier" if self.code["classifier"] else "model", self.code["loaded"]
        fresh = [each for each in self.code["any"] if start and each > self.code["training"][-1] and each not in loaded]
        base = self.follow(model, "measuring", end=start) + follow(fresh, CALLS[model], CALLS["measuring"])
        tuned = self.follow("loaded", "measuring")
        before, after, measured = ([x for x in each if shown[x.cell]] for each in (base, tuned, self.code["measuring"]))
        early = [each for each in measured if not start or each < start]
        self.judge("untuned", before, [] if base or early else measured, base or early)
        names = set().union(*(shown[each.cell] for each in before))
        same = [each for each in after if not names or shown[each.cell] & names]
        old = [each for each in measured if loaded and each > loaded[0] and not tuned]
        self.judge("tuned", same, after or old, tuned)
        ending = [cell for cell in self.cells if not start or cell.number >= start.cell]
        compared = [cell.number for cell in ending if compares(cell, shown[cell.number])]
        charts = [cell.number for cell in ending if "image/png" in cell.text]
        self.judge("compared", compared, [], charts or (before and same and before + same))


def check_submission(notebook: str | Path, adapter_dir: str | Path, executed: list[str] | None = None) -> Checklist:
    """Go through the reviewer's list for a notebook, as it was last saved, and for the folder of its adapter.

    In a running kernel give ``executed``, the sources that it has run (``In``): outputs are then not looked at.
    FileNotFoundError is raised if there is no such notebook, ValueError if the file is not a notebook.
    """
    notebook, folder, (config, weights) = Path(notebook), Path(adapter_dir), read_adapter(Path(adapter_dir))
    rows = Checklist(read_cells(notebook, executed))
    rows.check_code(config)
    rows.check_run(["run", "order", "errors"] if executed is None else ["run"])
    if executed is None:
        rows.check_results()
        late = weights and notebook.stat().st_mtime + 2 < weights.stat().st_mtime  # seconds: copies differ a little
        rows.judge("newer", not late, [], late)
    names = sorted(path.name for path in folder.glob("*"))
    there = f"; {folder} has {', '.join(names[:5]) or 'nothing'}"
    place = f"copy {folder} beside {notebook.name}" if folder.resolve().parent != notebook.resolve().parent else ""
    place = "this is a checkpoint of the Trainer; better save the model" if "trainer_state.json" in names else place
    rows.judge("config", config, not config, advice=place if config else there)
    old = "save it again as safetensors, with a newer peft" if weights and weights.suffix == ".bin" else ""
    rows.judge("weights", weights, not weights, advice=old if weights else there)
    if config:
        head = config.get("task_type") or config.get("modules_to_save")
        rows.judge("head", head, not head)
    return rows


def find_metrics(cell: Cell) -> set[str]:
    """Return the names of the metrics that a cell shows with a number; a name may stand in its code alone."""
    lines = pairwise([*(line for line in cell.text.splitlines() if line.strip()), ""])  # each with the one below it
    shown = [line for line, below in lines if SAYS["number"].search(f"{line}\n{below}")]
    names = {name for line in shown for name in SAYS["metric"].findall(line)}
    if not names and SAYS["lone"].search(SAYS["other"].sub("", cell.text)):
        names = set(SAYS["metric"].findall("\n".join(each.code for each in cell.statements)))
    return {"accuracy" if name.lower().startswith("acc") else name.lower() for name in names}


def compares(cell: Cell, metrics: set[str]) -> bool:
    """Tell whether results of both models stand in a cell, or a sentence says how they differ."""
    texts = [cell.text, "\n".join(each.code for each in cell.statements if SAYS["printed"].search(each.code))]
    both = [t for t in texts if SAYS["before"].search(t) and SAYS["after"].search(SAYS["before"].sub("", t))]
    if both and len(SAYS["number"].findall(cell.text)) > 1 and (metrics or SAYS["metric"].search(cell.text)):
        return True
    sentences = [part for part in re.split(r"(?<=[.!?])\s|\n", cell.text) if not SAYS["planned"].search(part)]
    return any(SAYS["change"].search(part) for part in sentences) and bool(metrics or not cell.statements)


def read_adapter(folder: Path) -> tuple[dict, Path | None]:
    """Return the configuration of an adapter and the file of its weights, or {} and None if they are not whole."""
    from safetensors import SafetensorError, safe_open

    config, weights = {}, folder / "adapter_model.bin" if (folder / "adapter_model.bin").is_file() else None
    with suppress(OSError, ValueError, KeyError, TypeError):
        read = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        config = read if read["peft_type"] else {}
    with suppress(OSError, SafetensorError), safe_open(folder / "adapter_model.safetensors", framework="numpy") as file:
        weights = folder / "adapter_model.safetensors" if file.keys() else weights
    return config, weights
