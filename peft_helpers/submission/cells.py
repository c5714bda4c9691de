"""The cells of a notebook as it was last saved: their code, and what a reader sees of them. Nothing is run."""

import ast
import html
import json
import re
import tomllib
import warnings
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

LIST = tomllib.loads(Path(__file__).with_name("requirements.toml").read_text(encoding="utf-8"))
WORDS = {name: re.compile(pattern, re.IGNORECASE | re.MULTILINE) for name, pattern in LIST["words"].items()}
Code = namedtuple("Code", "name text reads assigns")  # of a function, or of a statement, which has no name


class Cell:
    """A cell, by its number from 1: the parts of its code, and the ``text`` that it shows or, as Markdown, is."""

    def __init__(self, number: int, raw: dict, aliases: dict[str, str]):
        outputs, is_code = raw.get("outputs") or [], raw["cell_type"] == "code"
        self.number, self.source = number, "".join(raw.get("source") or "")
        self.parts = _read_code(self.source, aliases) if is_code else []
        self.code = ""  # of the statements with the functions that they name, when these are known
        self.text = "\n".join(map(_read_output, outputs)) if is_code else self.source
        self.count = raw.get("execution_count") or 0
        self.was_run = bool(self.count or outputs)
        self.has_error = any(output.get("output_type") == "error" for output in outputs)

    def find_metrics(self) -> set[str]:
        """Return the names of the metrics that are shown with a number; a name may stand in the code alone."""
        lines = [*filter(WORDS["word"].search, self.text.splitlines()), ""]
        shown = [line for line, below in pairwise(lines) if WORDS["number"].search(f"{line}\n{below}")]
        names = WORDS["metric"].findall("\n".join(shown))
        if not names and WORDS["decimal"].search(WORDS["other"].sub("", self.text)):
            names = WORDS["metric"].findall(self.code)
        return {name.lower()[:3] for name in names}  # acc is accuracy


def read_cells(notebook: Path) -> list[Cell]:
    """Return the cells of a notebook; a file that is no notebook is a ValueError."""
    try:
        aliases, raw_cells = {}, json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [Cell(number, raw, aliases) for number, raw in enumerate(raw_cells, 1)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(notebook)!r} is not a valid notebook ({error!r}). Save it again.") from error


def _read_output(output: dict) -> str:
    data = output.get("data") or {}
    parts = [output.get("text") or ""] if output.get("name") != "stderr" else []
    parts += [part for kind, part in data.items() if kind.startswith("text/")]
    parts += [json.dumps(part) for kind, part in data.items() if kind == "application/json"]
    text = "\n".join(["".join(part) for part in parts] + [*data])  # the kinds of data tell of charts
    return WORDS["tag"].sub(" ", html.unescape(WORDS["hidden"].sub("", text)))


def _read_code(source: str, aliases: dict[str, str]) -> list[Code]:
    """Return statements, functions and methods; what was imported `as` another name gets its own name again."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes such as "\d" in other people's code
            tree = ast.parse(WORDS["magic"].sub(r"\1None", WORDS["skipped"].sub(r"\1", source)))
        for node in ast.walk(tree):
            if isinstance(node, ast.alias) and node.asname:
                aliases[node.asname] = node.name
            elif isinstance(node, ast.Name):
                node.id = aliases.get(node.id, node.id)
        parts = [(part, node) for node in tree.body for part in (node.body if hasattr(node, "bases") else [node])]
        codes = [_read_part(part, node) for part, node in parts]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [Code("", source, set(), set())]  # no Python
    return [code for code in codes if not WORDS["constant"].fullmatch(code.text)]


def _read_part(node: ast.stmt, parent: ast.stmt) -> Code:
    """Return a statement or a function; a method is named ".name", and __init__ as its class, which calls it."""
    name = getattr(node, "name", "")
    if name and node is not parent:
        name = parent.name if name == "__init__" else f".{name}"
    parts = list(ast.walk(node))
    variables = [part for part in parts if isinstance(part, ast.Name)]
    reads = {part.id for part in variables if isinstance(part.ctx, ast.Load)}
    assigns = {part.id for part in variables if isinstance(part.ctx, ast.Store)}
    targets = [part.target for part in parts if isinstance(part, ast.comprehension)]  # which live in it only
    assigns -= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    if name or isinstance(node, ast.For | ast.While | ast.With):
        reads -= assigns  # by itself, before it reads them
    reads -= {part.arg for part in parts if isinstance(part, ast.arg)}
    methods = {f".{part.attr}" for part in parts if isinstance(part, ast.Attribute)}
    return Code(name, ast.unparse(node), reads | methods, assigns)
