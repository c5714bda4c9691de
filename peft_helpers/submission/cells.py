"""The cells of a notebook: what a reader sees of them, and the statements of their code."""

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
NOT_SHOWN = r"(?i)\x1b\[[0-9;]*m|<(style|script)\b[^<]*</\1>|\d{1,3}%\|.*|\[[^][\n]{0,80}\d+/\d+[^][\n]{0,80}\]"
TAG = r"(?i)\s*<(?!/tr|/p|/div|br)[^<>]{0,999}>\s*"
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


def read_cells(notebook: Path) -> list[Cell]:
    """Return the cells of a notebook as it was last saved; a file that is no notebook is a ValueError."""
    try:
        functions, cells = {}, json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        cells = [Cell(number, raw, functions) for number, raw in enumerate(cells, 1)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(notebook)!r} is not a valid notebook ({error!r}). Save it again.") from error
    if not any(cell.count for cell in cells):  # counts that were stripped do not tell, outputs do
        was_run = any(cell.was_run for cell in cells)
        for cell in cells:
            cell.was_run = was_run
    return cells


def _shown(output: dict) -> str:
    data = output.get("data") or {}
    parts = [output.get("text") if output.get("name") != "stderr" else "", *data.values(), *data]
    text = "\n".join("".join(part) if isinstance(part, str | list) else json.dumps(part) for part in parts if part)
    return html.unescape(re.sub(TAG, " ", re.sub(NOT_SHOWN, "", text))).replace("\xa0", " ")


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
    code, parts, is_definition = ast.unparse(node), list(ast.walk(node)), hasattr(node, "name")
    names = [part for part in parts if isinstance(part, ast.Name)]
    used = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    stored = {name.id for name in names if isinstance(name.ctx, ast.Store)}
    changed = stored | set(re.findall(r"(?m)^ *(\w+)[.[]", code))  # metric.add_batch(...), trainer.model = ...
    methods = {f".{part.attr}" for part in parts if isinstance(part, ast.Attribute)}
    for function in [functions[name] for name in [*sorted(used), *sorted(methods)] if name in functions]:
        code, used = f"{code}\n{function.code}", used | function.used
    if is_definition:
        used -= stored | {part.arg for part in parts if isinstance(part, ast.arg)}
    statement = Statement(cell, node.lineno, code, used, changed, is_definition)
    if isinstance(node, ast.ClassDef):  # its name stands for making an instance, its methods for themselves
        for method in [part for part in node.body if hasattr(part, "name")]:
            name = node.name if method.name == "__init__" else f".{method.name}"
            functions[name] = statement._replace(code=ast.unparse(method), used=set())
    elif is_definition:
        functions[node.name] = statement
    for name in [] if is_definition else stored & functions.keys():
        del functions[name]  # it is a variable now
    return statement
