"""The reviewer's list for a notebook and its adapter: what is found, what is missing, what could not be told."""

import json
import re
import tomllib
from collections import namedtuple
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from peft_helpers.submission.cells import Cell, Statement, read_cells

LIST = tomllib.loads(Path(__file__).with_name("requirements.toml").read_text(encoding="utf-8"))
CALLS = {name: entry["call"] for name, entry in LIST.items() if "call" in entry}
SAYS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in LIST["says"].items()}
FOUND, MISSING, UNCLEAR = "found", "missing", "could not be told"
Row = namedtuple("Row", "requirement answer cells to_do refuses")


class Checklist(list):
    """Rows of requirement, answer, cells, what to do, and whether it refuses a zip; what to do first is shown first."""

    def __init__(self, cells: list[Cell]):
        self.cells, statements = cells, [each for cell in cells for each in cell.statements if not each.is_definition]
        self.code = {name: [each for each in statements if re.search(call, each.code)] for name, call in CALLS.items()}
        modules = SAYS["elsewhere"].findall("\n".join(cell.source for cell in cells))
        self.elsewhere = ", ".join(sorted({one or other for one, other in modules}))

    def __repr__(self):
        lines = []
        for row in sorted(self, key=lambda row: (not row.refuses, row.answer == FOUND)):
            cells = f", cell {', '.join(map(str, row.cells))}" if row.cells else ""
            to_do = f": {row.to_do}" if row.to_do else ""
            lines.append(f"{row.answer:<17}  {row.requirement}{cells}{to_do}")
        return "\n".join(lines)

    def judge(self, name: str, good: object, wrong: object = (), unsure: object = (), advice: str = "") -> None:
        """Add the row of what meets a requirement, or surely does not, or perhaps does."""
        answer = FOUND if good else MISSING if wrong or not (unsure or self.elsewhere) else UNCLEAR
        places, to_do = good or wrong or unsure, advice if good else f"{LIST[name]['to_do']}{advice}"
        cells = sorted({getattr(each, "cell", each) for each in places}) if isinstance(places, list) else []
        if answer == UNCLEAR and not unsure:
            to_do = f"look into {self.elsewhere}, or {to_do}"
        needed = {"any": not wrong, "all": True}.get(LIST[name].get("needed"), False)
        self.append(Row(LIST[name]["requirement"], answer, cells, to_do, answer == MISSING and needed))

    def follow(self, load: str, act: str, start: object = None, end: object = None) -> list[Statement]:
        """Return what does ``act`` with a model that ``load`` gives or changes, or uses the results of that."""
        models, results, found = set(), set(), []
        for each in self.code["any"]:
            is_open = (not start or each > start) and (not end or each < end)
            if load in ("classifier", "model") and each in self.code["loaded"]:
                continue  # the adapter changes the model
            loaded, mine = is_open and re.search(CALLS[load], each.code), models & each.used if is_open else set()
            acts = re.search(CALLS[act].replace("<model>", "|".join(mine) or "<"), each.code)
            if results & each.used or (acts and (mine or loaded)):
                found.append(each)
                results |= each.changed - models
            elif loaded or mine:
                models |= each.changed | set(filter(None, loaded.groups() if loaded else []))
        return found

    def check_code(self, config: dict, outputs: bool) -> None:
        """Look for the steps of the project in the code, and whether the training was run."""
        code = self.code
        for name in ("classifier", "dataset", "tokenizer", "configuration", "peft_model"):
            self.judge(name, code[name], code["model"] if name == "classifier" else [])
        trained = self.follow("peft_model", "training") if code["peft_model"] else code["training"]
        complete = {cell.number for cell in self.cells if not outputs or (cell.was_run and not cell.has_error)}
        seen = [cell.number for cell in self.cells if SAYS["trained"].search(cell.text)]
        wrong = [] if trained else code["training"]
        self.judge("training", [each for each in trained if each.cell in complete], wrong, trained or seen)
        start, merged = (trained or code["training"])[:1], self.follow("whole", "saved")
        saved = [each for each in code["saved"] if [each] >= start and each not in merged]
        self.judge("saved", saved, code["saved"] + code["whole"], code["loaded"])
        is_other = code["classifier"] and "SequenceClassification" not in str(config.get("auto_mapping"))
        loaded = [each for each in code["loaded"] if [each] >= start and not (is_other and "ForCausalLM" in each.code)]
        later = [each for each in code["model"] if saved and each > saved[0]]
        self.judge("loaded", loaded, [] if saved else code["whole"], code["loaded"] or later)
        made = {call for each in code["configuration"] for call in re.findall(f"{CALLS['configuration']}.*", each.code)}
        self.judge("several", code["configuration"] if len(made) > 1 else code["several"], True)
        self.judge("quantized", code["quantized"], True)

    def check_run(self) -> None:
        """Look for cells that were not run, or not in order, or that failed; those that make this check are exempt."""
        checking = {each.cell for each in self.code["check"]}
        cells = [cell for cell in self.cells if cell.statements and cell.number not in checking]
        counted = [cell for cell in cells if cell.count]
        wrong = {"run": [cell.number for cell in cells if not cell.was_run]}
        wrong["order"] = [cell.number for last, cell in pairwise(counted) if cell.count <= last.count]
        wrong["errors"] = [cell.number for cell in cells if cell.has_error]
        for name, numbers in wrong.items():
            self.judge(name, not numbers and (name != "order" or bool(counted)), numbers, True)

    def check_results(self) -> None:
        """Look for metrics of the untuned and of the loaded model in the outputs, and for a comparison."""
        shown, start = {cell.number: find_metrics(cell) for cell in self.cells}, (self.code["training"] or [None])[0]
        model, loaded = "classifier" if self.code["classifier"] else "model", self.code["loaded"]
        base = self.follow(model, "measuring", end=start)
        base += self.follow(model, "measuring", start=self.code["training"][-1]) if start else []
        tuned = self.follow("loaded", "measuring")
        before, after, measured = ([x for x in each if shown[x.cell]] for each in (base, tuned, self.code["measuring"]))
        early = [each for each in measured if not start or each < start or each in self.code[model] + self.code["off"]]
        self.judge("untuned", before, [] if base or early else measured, base or early)
        names = set().union(*(shown[each.cell] for each in before))
        same = [each for each in after if not names or shown[each.cell] & names]
        old = [each for each in measured if loaded and each > loaded[0] and not tuned]
        self.judge("tuned", same, after or old, tuned)
        ending = [cell for cell in self.cells if not start or cell.number >= start.cell]
        compared = [cell.number for cell in ending if compares(cell, shown[cell.number])]
        charts = [cell.number for cell in ending if "image/png" in cell.text]
        self.judge("compared", compared, [], charts or (before and same and before + same))


def check_submission(notebook: str | Path, adapter_dir: str | Path, outputs: bool = True) -> Checklist:
    """Go through the reviewer's list for a notebook, as it was last saved, and for the folder of its adapter.

    Without ``outputs``, only code and adapter count: while a notebook runs, its file has those of an earlier run.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the file is not a notebook.
    """
    notebook, folder, (config, weights) = Path(notebook), Path(adapter_dir), read_adapter(Path(adapter_dir))
    rows = Checklist(read_cells(notebook))
    rows.check_code(config, outputs)
    if outputs:
        rows.check_run()
        rows.check_results()
        late = weights and notebook.stat().st_mtime + 2 < weights.stat().st_mtime  # seconds: copies differ a little
        rows.judge("newer", not late, [], late)
    place = f"copy {folder} beside {notebook.name}" if folder.resolve().parent != notebook.resolve().parent else ""
    place = "this is a checkpoint; better save the model" if (folder / "trainer_state.json").is_file() else place
    place = "save it as safetensors, with a newer peft" if weights and weights.suffix == ".bin" else place
    names = ", ".join(sorted(path.name for path in folder.glob("*"))[:5])
    whole = config and weights
    rows.judge("adapter", whole, not whole, advice=place if whole else f"; {folder} has {names or 'nothing'}")
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
    return {name.lower()[:3] for name in names}  # acc is accuracy


def compares(cell: Cell, metrics: set[str]) -> bool:
    """Tell whether results of both models stand in a cell, or a sentence says how they differ."""
    text = "\n".join([cell.text, *(each.code for each in cell.statements if SAYS["printed"].search(each.code))])
    both = SAYS["before"].search(text) and SAYS["after"].search(SAYS["before"].sub("", text))
    both = both and SAYS["metric"].search(text) and len(SAYS["number"].findall(cell.text)) > 1
    sentences = [part for part in re.split(r"(?<=[.!?])\s|\n", cell.text) if not SAYS["planned"].search(part)]
    return bool((metrics or not cell.statements) and (both or any(map(SAYS["change"].search, sentences))))


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
