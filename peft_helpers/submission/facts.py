"""What the cells of a saved notebook do and show, and with which model: untuned, in memory, or loaded."""

import ast
import html
import json
import re
import tomllib
import warnings
from collections import defaultdict, namedtuple
from pathlib import Path

LIST = tomllib.loads(Path(__file__).with_name("requirements.toml").read_text(encoding="utf-8"))
WORDS = {name: re.compile(pattern, re.IGNORECASE | re.MULTILINE) for name, pattern in LIST["words"].items()}
RESULTS = {"model": "untuned", "peft_model": "in_memory", "loaded": "tuned"}  # of measuring each model
Code = namedtuple("Code", "name text reads assigns")  # of a function, or of a statement, which has no name


class Cell:
    """A cell, by its number from 1: its code, and the ``text`` that it shows or, as Markdown, is."""

    def __init__(self, number: int, raw: dict, aliases: dict[str, str]):
        is_code = raw["cell_type"] == "code"
        self.number, self.source = number, "".join(raw.get("source") or "")
        self.count, self.outputs = raw.get("execution_count") or 0, raw.get("outputs") or []
        self.text = "\n".join(map(_read_output, self.outputs)) if is_code else self.source
        self.parts = _read_code(self.source, aliases) if is_code else []
        self.code = ""  # of the statements with the functions that they name, when these are known

    def find_metrics(self) -> set[str]:
        """Return the names of the metrics that are shown with a number; a name may stand in the code alone."""
        has_number = WORDS["number"].search(WORDS["other"].sub("", self.text))
        names = WORDS["metric"].findall(self.text) or WORDS["metric"].findall(self.code)
        return {name.lower()[:3] for name in names if has_number}  # acc is accuracy


def read_cells(notebook: Path) -> list[Cell]:
    """Return the cells of a notebook; a file that is no notebook is a ValueError."""
    try:
        aliases, raw_cells = {}, json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [Cell(number, raw, aliases) for number, raw in enumerate(raw_cells, 1)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(notebook)!r} is not a valid notebook ({error!r}). Save it again.") from error


def _read_output(output: dict) -> str:
    data = output.get("data") or {}
    parts = [data[kind] for kind in data if kind.startswith("text/")] + [json.dumps(data.get("application/json"))]
    parts += [*data, (output.get("name") != "stderr" and output.get("text")) or ""]  # the kinds of data tell of charts
    text = "\n".join("".join(part) for part in parts)
    return WORDS["tag"].sub(" ", html.unescape(WORDS["hidden"].sub("", text)))


def _read_code(source: str, aliases: dict[str, str]) -> list[Code]:
    """Return statements, functions and classes; what was imported `as` another name gets its own name again."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes such as "\d" in other people's code
            tree = ast.parse(WORDS["magic"].sub(r"\1None", WORDS["skipped"].sub(r"\1", source)))
        aliases |= {node.asname: node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}
        for node in [node for node in ast.walk(tree) if isinstance(node, ast.Name)]:
            node.id = aliases.get(node.id, node.id)
        return [code for code in map(_read_part, tree.body) if not WORDS["constant"].fullmatch(code.text)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [Code("", source, set(), set())]  # no Python


def _read_part(node: ast.stmt) -> Code:
    name, parts = getattr(node, "name", ""), list(ast.walk(node))
    variables = [part for part in parts if isinstance(part, ast.Name)]
    reads, assigns = ({part.id for part in variables if isinstance(part.ctx, use)} for use in (ast.Load, ast.Store))
    if name or isinstance(node, ast.For | ast.While | ast.With):
        reads -= assigns  # by itself, before it reads them
    return Code(name, ast.unparse(node), reads - {part.arg for part in parts if isinstance(part, ast.arg)}, assigns)


def find_facts(cells: list[Cell]) -> dict[str, set[int]]:
    """Return the numbers of the cells of each fact; what is in a function counts where the function is named."""
    functions = {part.name: part for cell in cells for part in cell.parts if part.name}
    facts, held = defaultdict(set), {}
    for cell in cells:
        found = set()
        for statement in [part for part in cell.parts if not part.name]:
            parts = [statement]
            for part in parts:  # it grows meanwhile, by the functions that its parts name
                parts += [functions[name] for name in functions if name in part.reads and functions[name] not in parts]
            code = "\n".join(part.text for part in parts)
            cell.code += f"{code}\n"
            found |= _follow(code, set().union(*(part.reads for part in parts)), statement.assigns, held)
        for fact in found | _find_shown(cell):
            facts[fact].add(cell.number)
    _compare_cells(cells, facts)
    return facts


def _follow(code: str, reads: set[str], assigns: set[str], held: dict[str, set[str]]) -> set[str]:
    """Return what a statement does, and note in ``held`` which models and results the variables hold."""
    calls = {name: call for name, pattern in LIST["calls"].items() if (call := re.search(pattern, code))}
    names = held.keys() & reads
    models = {name for name in names if held[name] & RESULTS.keys()}
    does = {*calls, *("measuring" for name in models if re.search(rf"\b{name}\(", code))}
    involved = does.union(*(held[name] for name in names))
    if "training" in does:
        does |= {f"training_{kind}" for kind in involved}
        held |= {name: kinds - {"model"} for name, kinds in held.items()}  # it may be trained now
    does -= {"saved"} if "whole" in involved else set()
    involved -= {"model"} if does & {"training", "loaded"} else RESULTS.keys() if "perhaps_loaded" in does else set()
    changed = names.intersection(re.findall(r"(?m)^ *(\w+)[.[]", code))  # trainer.model = ..., metric.add(...)
    changed = changed.union(assigns, *(call.groups() for call in calls.values()))
    if "measuring" in does and involved & RESULTS.keys():  # trainer.evaluate() leaves the trainer what it is
        changed -= models
        involved = {RESULTS.get(kind, kind) for kind in involved}
    held |= dict.fromkeys(changed, involved)
    return does | involved & {*RESULTS.values()}


def _find_shown(cell: Cell) -> set[str]:
    """Return how a cell was run, and what its text and the names that it prints say, but for what is only planned."""
    sentences = re.split(r"(?<=[.!?])\s|\n", cell.text)
    said = [each for each in sentences if len(each) < 1000 and not WORDS["planned"].search(each)]  # others are data
    said += WORDS["name"].findall("\n".join(WORDS["printed"].findall(cell.code)))
    facts = {name: re.search(words, "\n".join(said), re.I) for name, words in LIST["shows"].items()}
    facts |= {"code": cell.parts, "run": cell.count or cell.outputs, "metric": cell.find_metrics()}
    facts["failed"] = any(output.get("output_type") == "error" for output in cell.outputs)
    return {name for name, is_so in facts.items() if is_so}


def _compare_cells(cells: list[Cell], facts: dict[str, set[int]]) -> None:
    """Add the facts that are seen from several cells."""
    if facts["run"] and not any(cell.count for cell in cells):  # counts were stripped: the outputs tell
        facts["run"] = facts["code"]
    facts["late"] = {cell.number for cell in cells if cell.number >= min(facts["training"], default=0)}
    facts["early"] = {cell.number for cell in cells if cell.number < min(facts["training"], default=len(cells) + 1)}
    facts["trained"] = facts["training_peft_model"] | facts["training_in_memory"] | facts["training_loaded"]
    facts["trained"] |= set() if facts["peft_model"] else facts["training"]  # what is missing is told once
    made = {call for cell in cells for call in re.findall(LIST["calls"]["configuration"] + ".*", cell.code)}
    facts["several"] |= facts["configuration"] if len(made) > 1 else set()
    names = {name for cell in cells if cell.number in facts["untuned"] for name in cell.find_metrics()}
    facts["same_metric"] = {cell.number for cell in cells if not names or cell.find_metrics() & names}
    facts["opened"] = set() if facts["loaded"] else facts["untuned"]
    facts["known"] = facts["training"].union(*(facts[result] for result in RESULTS.values()))
