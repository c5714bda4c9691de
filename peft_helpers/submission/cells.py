"""The cells of a notebook: what their outputs show, and what their code does with which model."""

import ast
import html
import json
import re
import warnings
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

# Cells of other languages, lines of the shell, magics and help, and what is assigned from them.
MAGIC = r"\A\s*%%(?!time|capture|prun)(?s:.*)|^([ \t]*)(?:[!%?](?:.*\\\n)*.*|[\w.]+\?+[ \t]*)$|(?<==)\s*[!%].*$"
# Colours, styles, bars of progress; and tags but for those that end a row.
NOT_SHOWN = re.compile(
    r"(?i)\x1b\[[0-9;]*m|<(style|script)\b[^<]*</\1>|\d{1,3}%\|.*|\[[^][\n]{0,80}\d+/\d+[^][\n]{0,80}\]"
)
TAG = re.compile(r"(?i)\s*<(?!/tr|/p|/div|br)[^<>]{0,999}>\s*")
Statement = namedtuple("Statement", "cell line code used changed is_definition")  # sorts by cell and line


class Cell:
    """A cell and its number from 1: the ``text`` that a reader sees, and the statements of its code."""

    def __init__(self, number: int, raw: dict, functions: dict[str, Statement]):
        is_code, outputs, notes = raw["cell_type"] == "code", raw.get("outputs") or [], raw.get("metadata") or {}
        self.number, self.source, self.count = number, "".join(raw.get("source") or ""), raw.get("execution_count") or 0
        self.text = "\n".join(map(_shown, outputs)) if is_code else self.source
        self.was_run = bool(self.count or outputs or {"execution", "executionInfo"} & set(notes))
        self.has_error = any(output.get("output_type") == "error" for output in outputs)
        self.statements = [_read(number, node, functions) for node in (_parse(self.source) if is_code else [])]


def read_cells(notebook: Path, executed: list[str] | None = None) -> list[Cell]:
    """Return the cells of a notebook as it was saved; what a kernel has ``executed`` takes the place of the outputs."""
    try:
        functions, cells = {}, json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        cells = [Cell(number, raw, functions) for number, raw in enumerate(cells, 1)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(notebook)!r} is not a valid notebook ({error!r}). Save it again.") from error
    for cell in cells if executed is not None else []:
        cell.text, cell.has_error = "", False
        cell.was_run = cell.source.strip() in {source.strip() for source in executed}
    return cells


def _shown(output: dict) -> str:
    data = output.get("data") or {}
    parts = [output.get("text") if output.get("name") != "stderr" else "", *data.values(), *data]
    text = "\n".join("".join(part) if isinstance(part, str | list) else json.dumps(part) for part in parts if part)
    return html.unescape(TAG.sub(" ", NOT_SHOWN.sub("", text))).replace("\xa0", " ")


def _parse(source: str) -> list[ast.stmt]:
    plain = re.sub(MAGIC, r"\1None", re.sub(r"(?m)^([ \t]*)%time(?:it)? ", r"\1", source), flags=re.MULTILINE)
    for text in (source, plain):
        with suppress(SyntaxError, ValueError, RecursionError, MemoryError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes such as "\d" in other people's code
            nodes = ast.parse(text).body
            return [node for node in nodes if not re.fullmatch(r"(?s)pass|None|(['\"]).*\1", ast.unparse(node))]
    return ast.parse("...").body  # not Python: a statement of which nothing is known


def _read(cell: int, node: ast.stmt, functions: dict[str, Statement]) -> Statement:
    """Return a statement with the code of the notebook's functions that it names, what it reads and what it changes."""
    parts, code = list(ast.walk(node)), ast.unparse(node)
    used, stored = ({part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, kind)}
                    for kind in (ast.Load, ast.Store))  # fmt: skip
    changed = stored | set(re.findall(r"(?m)^ *(\w+)[.[]", code))  # metric.add_batch(...), trainer.model = ...
    for function in [functions[name] for name in sorted(used & functions.keys())]:
        code, used = f"{code}\n{function.code}", used | function.used
    if hasattr(node, "name"):
        used = used - changed - {part.arg for part in parts if isinstance(part, ast.arg)}
        functions[node.name] = Statement(cell, node.lineno, code, used, set(), True)
    return functions.get(getattr(node, "name", ""), Statement(cell, node.lineno, code, used, changed, False))


def find(cells: list[Cell], pattern: str, defined: bool = False) -> list[Statement]:
    """Return the statements that match, or the definitions of functions and classes that do."""
    found = [each for cell in cells for each in cell.statements if re.search(pattern, each.code)]
    return [each for each in found if each.is_definition == defined]


def follow(statements: list[Statement], load: str, act: str, end: Statement | None = None) -> list[Statement]:
    """Return what does ``act`` with a model that ``load`` gives or changes, until ``end``, and what uses results."""
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
