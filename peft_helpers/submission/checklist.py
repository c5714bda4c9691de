"""The reviewer's list for a notebook and its adapter: what is found, missing or could not be told; both in a zip."""

import json
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZIP_DEFLATED, ZipFile, is_zipfile

from peft_helpers.submission.facts import LIST, WORDS, Cell, find_facts, read_cells

FOUND, MISSING, UNCLEAR = "found", "missing", "could not be told"
ANSWERS = {"found": FOUND, "unclear": UNCLEAR, "missing": MISSING, "perhaps": UNCLEAR}  # by rules, in this order
Row = namedtuple("Row", "requirement answer cells to_do refuses")
KINDS = {".json", ".md", ".txt", ".model", ".jinja"}  # what an adapter is saved with, beside its weights


class Checklist(list):
    """Rows of requirement, answer, cells, what to do, and whether it refuses a zip; what to do first is shown first."""

    def __repr__(self):
        lines = []
        for row in sorted(self, key=lambda row: (not row.refuses, row.answer == FOUND)):
            cells = f", cell {', '.join(map(str, row.cells))}" if row.cells else ""
            lines.append(f"{row.answer:<17}  {row.requirement}{cells}" + (f": {row.to_do}" if row.to_do else ""))
        return "\n".join(lines)


def check_submission(notebook: str | Path, adapter_dir: str | Path) -> Checklist:
    """Go through the reviewer's list for a notebook, as it was last saved, and for the folder of its adapter."""
    notebook, (folder, config, weights) = Path(notebook), find_adapter(Path(adapter_dir))
    facts = find_facts(cells := read_cells(notebook))
    others = {
        "no_adapter": not weights,
        "no_head": weights and not (config.get("task_type") or config.get("modules_to_save")),
        "checkpoint": (folder / "trainer_state.json").is_file(),
        "pickle": weights and weights.suffix == ".bin",
        "elsewhere": folder.resolve().parent != notebook.resolve().parent,
    }
    facts |= {fact: {0} for fact, is_so in others.items() if is_so}  # of no cell
    if "SequenceClassification" in str(config.get("auto_mapping")) or not facts["classifier"]:
        facts["causal_loaded"] = set()  # which is right
    words = {"folder": folder, "modules": ", ".join(find_own_modules(cells))}
    words["files"] = ", ".join(sorted(path.name for path in folder.glob("*"))[:5]) or "nothing"
    return Checklist(judge(entry, facts, words) for entry in LIST["requirements"].values())


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
    """Return the scripts, classes and modules, but for packages, where a step may be."""
    modules = WORDS["imported"].findall("\n".join(cell.code for cell in cells))
    scripts = WORDS["script"].findall("\n".join(cell.source for cell in cells))
    return sorted({*modules, *scripts} - {*LIST["packages"], *sys.stdlib_module_names})


def find_adapter(folder: Path) -> tuple[Path, dict, Path | None]:
    """Return the folder of an adapter, or of the newest within it, its configuration and weights, or {} and None."""
    from safetensors import SafetensorError, safe_open

    newest_first = sorted(folder.rglob("adapter_model.*"), key=lambda path: -path.stat().st_mtime)
    for path in sorted(newest_first, key=lambda path: (path.parent != folder, path.suffix == ".bin")):
        with suppress(OSError, ValueError, KeyError, TypeError, SafetensorError):
            config = json.loads(path.with_name("adapter_config.json").read_text(encoding="utf-8"))
            if config["peft_type"] and (path.suffix == ".bin" or safe_open(path, framework="numpy").keys()):
                return path.parent, config, path
    return folder, {}, None


def package_submission(notebook: str | Path, adapter_dir: str | Path, zip_path: str | Path | None = None) -> Path:
    """Write the notebook and what loads its adapter to a zip, by default beside the notebook; return its path.

    If something is missing that refuses a zip, it is a ValueError; another file at the zip's path is a FileExistsError.
    """
    notebook, (folder, _, weights) = Path(notebook), find_adapter(Path(adapter_dir).resolve())
    path = Path(zip_path or notebook.with_suffix(".zip"))
    missing = [f"{row.requirement}: {row.to_do}" for row in check_submission(notebook, folder) if row.refuses]
    if missing:
        raise ValueError(f"No zip was written. Missing: {'; '.join(missing)}.")
    if path.exists() and not (is_zipfile(path) and notebook.name in ZipFile(path).namelist()):
        raise FileExistsError(f"{str(path)!r} is not an earlier zip of a submission. Choose another zip_path.")
    files = [file for file in sorted(folder.glob("[!.]*")) if file.is_file() and not file.is_symlink()]
    with TemporaryDirectory(prefix=".", dir=path.parent) as part:  # a failure leaves an earlier zip as it was
        with ZipFile(Path(part, path.name), "w", ZIP_DEFLATED, strict_timestamps=False) as archive:
            archive.write(notebook, notebook.name)
            for file in [file for file in files if file == weights or file.suffix in KINDS]:
                archive.write(file, f"{folder.name}/{file.name}")
        return Path(archive.filename).replace(path)
