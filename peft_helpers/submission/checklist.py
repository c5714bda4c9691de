"""The reviewer's list for a notebook and its adapter: what is found, what is missing, what could not be told."""

import json
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

from peft_helpers.submission.facts import LIST, WORDS, Cell, find_facts, read_cells

FOUND, MISSING, UNCLEAR = "found", "missing", "could not be told"
ANSWERS = {"found": FOUND, "unclear": UNCLEAR, "missing": MISSING, "perhaps": UNCLEAR}  # by rules, in this order
Row = namedtuple("Row", "requirement answer cells to_do refuses")


class Checklist(list):
    """Rows of requirement, answer, cells, what to do, and whether it refuses a zip; what to do first is shown first."""

    def __repr__(self):
        lines = []
        for row in sorted(self, key=lambda row: (not row.refuses, row.answer == FOUND)):
            cells = f", cell {', '.join(map(str, row.cells))}" if row.cells else ""
            lines.append(f"{row.answer:<17}  {row.requirement}{cells}" + (f": {row.to_do}" if row.to_do else ""))
        return "\n".join(lines)


def check_submission(notebook: str | Path, adapter_dir: str | Path, outputs: bool = True) -> Checklist:
    """Go through the reviewer's list for a notebook, as it was last saved, and for the folder of its adapter.

    Without ``outputs``, only code and adapter count: while a notebook runs, its file has those of an earlier run.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the file is not a notebook.
    """
    notebook, (folder, config, weights) = Path(notebook), find_adapter(Path(adapter_dir))
    cells = read_cells(notebook)
    facts = find_facts(cells)
    others = {
        "no_adapter": not weights,
        "no_head": weights and not (config.get("task_type") or config.get("modules_to_save")),
        "checkpoint": (folder / "trainer_state.json").is_file(),
        "pickle": weights and weights.suffix == ".bin",
        "elsewhere": folder.resolve().parent != notebook.resolve().parent,
        "newer": weights and weights.stat().st_mtime > notebook.stat().st_mtime + 2,  # seconds: copies differ a little
    }
    facts |= {fact: {0} for fact, is_so in others.items() if is_so}  # of no cell
    if not outputs:
        facts["run"], facts["failed"] = facts["code"], set()
    if "SequenceClassification" in str(config.get("auto_mapping")) or not facts["classifier"]:
        facts["causal_loaded"] = set()  # which is right
    words = {"folder": folder, "modules": ", ".join(find_own_modules(cells))}
    words["files"] = ", ".join(sorted(path.name for path in folder.glob("*"))[:5]) or "nothing"
    entries = [entry for entry in LIST["requirements"].values() if outputs or "needs_outputs" not in entry]
    return Checklist(judge(entry, facts, words) for entry in entries)


def judge(entry: dict, facts: dict[str, set[int]], words: dict[str, str]) -> Row:
    """Return the row of a requirement by the first of its answers that has a rule which holds for any cells."""
    cells = {key: set().union(*(find_cells(rule, facts) for rule in entry.get(key, []))) for key in ANSWERS}
    key = next((key for key in ANSWERS if cells[key]), "")
    answer, to_do = ANSWERS.get(key, MISSING if "found" in entry else FOUND), entry["to_do"]
    if not key and answer == MISSING and words["modules"]:
        answer, to_do = UNCLEAR, f"look into {{modules}}, or {to_do}"
    if answer == FOUND:
        to_do = "; ".join(advice for fact, advice in entry.get("advice", {}).items() if facts[fact])
    refuses = answer == MISSING and {"always": True, "nowhere": not key}.get(entry.get("refuses"), False)
    return Row(entry["requirement"], answer, sorted(cells.get(key, set()) - {0}), to_do.format(**words), refuses)


def find_cells(rule: str, facts: dict[str, set[int]]) -> set[int]:
    """Return the cells for which all of a rule holds, such as "metric and not training"."""
    wanted, *unwanted = rule.split(" and not ")
    cells = set.intersection(*(facts[fact] for fact in wanted.split(" and ")))
    return cells.difference(*(facts[fact] for fact in unwanted))


def find_own_modules(cells: list[Cell]) -> list[str]:
    """Return the scripts and modules, but for packages, where a step may be."""
    modules = WORDS["imported"].findall("\n".join(cell.code for cell in cells))
    scripts = WORDS["script"].findall("\n".join(cell.source for cell in cells))
    return sorted({*modules, *scripts} - {*LIST["packages"], *sys.stdlib_module_names})


def find_adapter(folder: Path) -> tuple[Path, dict, Path | None]:
    """Return the folder of an adapter, or of the newest within it, its configuration and weights, or {} and None."""
    from safetensors import SafetensorError, safe_open

    paths = sorted(folder.rglob("adapter_config.json"), key=lambda path: (path.parent != folder, -path.stat().st_mtime))
    for path in paths:
        with suppress(OSError, ValueError, KeyError, TypeError, StopIteration, SafetensorError):
            config = json.loads(path.read_text(encoding="utf-8"))
            files = [path.with_name("adapter_model.safetensors"), path.with_name("adapter_model.bin")]
            weights = next(file for file in files if file.is_file())
            if config["peft_type"] and (weights.suffix == ".bin" or safe_open(weights, framework="numpy").keys()):
                return path.parent, config, weights
    return folder, {}, None
