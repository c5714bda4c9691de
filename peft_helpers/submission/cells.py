"""The cells of a notebook: what their outputs show, and what their code does with which model."""

import ast
import html
import json
import re
import warnings
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

MAGIC = re.compile(r"^([ \t]*)(?:[!%?](?:.*\\\n)*.*|[\w.]+\?+[ \t]*)$|(?<==)\s*[!%].*$", re.MULTILINE)
NOT_SHOWN = re.compile(
    r"(?i)\x1b\[[0-9;]*m|<(style|script)\b[^<]*</\1>|\d{1,3}%\|.*|\[[^][\n]{0,80}\d+/\d+[^][\n]{0,80}\]"
)
NO_ROW = re.compile(r"(?i)\s*<(?!/tr|/p|/div|br)[^<>]{0,999}>\s*")  # tags other than those that end a row
# Code has that of the notebook's functions that it names. Statements sort by cell and line.
Statement = namedtuple("Statement", "cell line code used changed is_definition")


class Cell:
    """A cell and its number from 1: the ``text`` that a reader sees, and the statements of its code."""

    def __init__(self, number: int, raw: dict, functions: dict[str, Statement]):
        self.number, self.source, self.is_code = number, "".join(raw.get("source") or ""), raw["cell_type"] == "code"
        outputs, notes = raw.get("outputs") or [], raw.get("metadata") or {}
        self.text = "\n".join(map(_shown, outputs)) if self.is_code else self.source
        self.count = raw.get("execution_count") or 0
        self.was_run = bool(self.count or outputs or "execution" in notes or "executionInfo" in notes)
        self.has_error = any(output.get("output_type") == "error" for output in outputs)
        nodes = _parse(self.source) if self.is_code else []
        self.is_python, self.statements = nodes is not None, [_read(number, node, functions) for node in nodes or []]


def read_cells(notebook: str | Path) -> list[Cell]:
    """Return the cells of a notebook as it was last saved; a file that is no notebook is a ValueError."""
    try:
        functions, cells = {}, json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        return [Cell(number, raw, functions) for number, raw in enumerate(cells, 1)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(notebook)!r} is not a valid notebook ({error!r}). Save it again.") from error


def _shown(output: dict) -> str:
    data = output.get("data") or {}
    parts = [output.get("text") if output.get("name") != "stderr" else "", *data.values(), *data]
    text = "\n".join("".join(part) if isinstance(part, str | list) else json.dumps(part) for part in parts if part)
    return html.unescape(NO_ROW.sub(" ", NOT_SHOWN.sub("", text))).replace("\xa0", " ")


def _parse(source: str) -> list[ast.stmt] | None:
    """Return the statements of a cell, without magics and loose values; None if it is not Python."""
    if re.match(r"\s*%%(?!time|capture|prun)", source):
        return []  # another language
    for text in (source, MAGIC.sub(r"\1None", re.sub(r"(?m)^([ \t]*)%time(?:it)? ", r"\1", source))):
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d" in other people's code
            nodes = ast.parse(text).body
            return [node for node in nodes if not re.fullmatch(r"(?s)pass|None|(['\"]).*\1", ast.unparse(node))]
    return None


def _read(cell: int, node: ast.stmt, functions: dict[str, Statement]) -> Statement:
    code, parts = ast.unparse(node), list(ast.walk(node))
    used = {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)}
    changed = {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    changed |= set(re.findall(r"(?m)^ *(\w+)[.[]", code))  # metric.add_batch(...), trainer.model = ...
    for function in [functions[name] for name in sorted(used & functions.keys())]:
        code, used = f"{code}\n{function.code}", used | function.used
    statement = Statement(cell, node.lineno, code, used, changed, hasattr(node, "name"))
    if statement.is_definition:
        used -= changed | {part.arg for part in parts if isinstance(part, ast.arg)}
        functions[node.name] = statement
    return statement


def find(cells: list[Cell], pattern: str, defined: bool = False) -> list[Statement]:
    """Return the statements that match, or the definitions of functions and classes that do."""
    found = [each for cell in cells for each in cell.statements if re.search(pattern, each.code)]
    return [each for each in found if each.is_definition == defined]


def follow(statements: list[Statement], load: str, act: str, end: Statement | None = None) -> list[Statement]:
    """Return what does ``act`` with a model that ``load`` returns or changes, until ``end``, and what uses its results."""
    models, results, found = set(), set(), []
    for each in statements:
        is_open = end is None or each < end
        loaded, mine = is_open and re.search(load, each.code), models & each.used if is_open else set()
        acts = re.search(act.replace("<model>", "|".join(mine) or "<"), each.code)
        if results & each.used or (acts and (mine or loaded)):
            found.append(each)
            results |= each.changed - models
        elif loaded or mine:
            models |= each.changed | set(filter(None, loaded.groups() if loaded else []))
    return found
