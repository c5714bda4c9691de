"""What the cells of a notebook do, and with which model: untuned, in memory, or loaded; and what they show."""

import re
from collections import defaultdict
from itertools import pairwise

from peft_helpers.submission.cells import LIST, WORDS, Cell, Code

RESULTS = {"model": "untuned", "peft_model": "in_memory", "loaded": "tuned"}  # of measuring each model


def find_facts(cells: list[Cell]) -> dict[str, set[int]]:
    """Return the numbers of the cells of each fact; what is in a function counts where the function is named."""
    functions = {part.name: part for cell in cells for part in cell.parts if part.name}
    facts, held = defaultdict(set), {}
    for cell in cells:
        statements = [_add_functions(part, functions) for part in cell.parts if not part.name]
        cell.code = "\n".join(part.text for parts in statements for part in parts)
        for fact in _find_shown(cell).union(*(_follow(parts, held) for parts in statements)):
            facts[fact].add(cell.number)
    _compare_cells(cells, facts)
    return facts


def _add_functions(statement: Code, functions: dict[str, Code]) -> list[Code]:
    """Return a statement, the functions that it names, those that they name, and so on."""
    parts = [statement]
    for part in parts:  # it grows meanwhile
        parts += [functions[name] for name in functions if name in part.reads and functions[name] not in parts]
    return parts


def _follow(parts: list[Code], held: dict[str, set[str]]) -> set[str]:
    """Return what a statement with its functions does, and note in ``held`` which models and results variables hold."""
    code = "\n".join(part.text for part in parts)
    calls = {name: call for name, pattern in LIST["calls"].items() if (call := re.search(pattern, code))}
    names = held.keys() & set().union(*(part.reads for part in parts))
    models = {name for name in names if held[name] & RESULTS.keys()}
    does = {*calls, *("measuring" for name in models if re.search(rf"\b{name}\(", code))}
    involved = does.union(*(held[name] for name in names))
    if "training" in does:
        does |= {f"training_{kind}" for kind in involved}
        held |= {name: kinds - {"model"} for name, kinds in held.items()}  # it may be trained now
    if does & {"training", "loaded"}:
        involved.discard("model")
    elif "perhaps_loaded" in does:
        involved -= RESULTS.keys()
    if "whole" in involved:
        does.discard("saved")

    results = {RESULTS[kind] for kind in involved & RESULTS.keys()} if "measuring" in does else set()
    changed = names.intersection(re.findall(r"(?m)^ *(\w+)[.[]", parts[0].text))  # trainer.model = ..., metric.add(...)
    for name in changed.union(parts[0].assigns, *(call.groups() for call in calls.values())) - {None}:
        if not results:
            held[name] = involved
        elif name not in models:  # trainer.evaluate() leaves the trainer what it is
            held[name] = (involved | results) - RESULTS.keys()
    return does | results | involved & {*RESULTS.values()}


def _find_shown(cell: Cell) -> set[str]:
    """Return how a cell was run, and what its text and the names that it prints say, but for what is only planned."""
    sentences = [each for each in re.split(r"(?<=[.!?])\s|\n", cell.text) if len(each) < 1000]  # others are data
    sentences = [each for each in sentences if not WORDS["planned"].search(each)]
    printed = WORDS["name"].findall("\n".join(WORDS["printed"].findall(cell.code)))
    facts = {name: re.search(words, "\n".join(sentences + printed), re.I) for name, words in LIST["shows"].items()}
    facts |= {"code": cell.parts, "run": cell.was_run, "failed": cell.has_error}
    return {name for name, is_so in (facts | {"metric": cell.find_metrics()}).items() if is_so}


def _compare_cells(cells: list[Cell], facts: dict[str, set[int]]) -> None:
    """Add the facts that are seen from several cells."""
    counted = [cell for cell in cells if cell.count]
    facts["too_early"] = {cell.number for last, cell in pairwise(counted) if cell.count <= last.count}
    if not counted:  # counts that were stripped do not tell, outputs do
        facts["no_counts"], facts["run"] = {0}, facts["code"] if facts["run"] else set()
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
