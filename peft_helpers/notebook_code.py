"""What a notebook's code does, read without running it: which steps it takes, and on which model it measures."""

import ast
import posixpath
import re
import warnings
from collections import ChainMap
from contextlib import suppress
from dataclasses import dataclass

import peft
from IPython.core.inputtransformer2 import TransformerManager

# The kind of a step, by the dotted name of the call that takes it; the first that matches.
_KINDS = {
    "other task": r"\bAuto(Peft)?ModelFor(?!SequenceClassification)\w+\.from_pretrained$",
    "check": r"\b(check|package)_submission$",
    "reload": r"\b(AutoPeftModel\w*|PeftModel\w*)\.from_pretrained$|\bload_\w*adapter$",
    "classifier": r"ForSequenceClassification\.from_pretrained$|\bload_base_model$",
    "tokenizer": r"Tokenizer\w*\.from_pretrained$",
    "dataset": r"\b(load_dataset|load_from_disk|load_bbc_news|Dataset(Dict)?\.from_\w+)$",
    "quantization": r"\bBitsAndBytesConfig$|\bquantization_config$",
    "configurations": r"\brun_methods$",
    "configuration": rf"\b({'|'.join(name for name in peft.__all__ if name.endswith('Config'))})$",
    "peft model": r"\bget_peft_model$",
    "save": r"^(?!.*([Tt]ok\w*|[Pp]rocessor|[Cc]onfig)\.save_)(.*\.)?save_(pretrained|model|adapter)$",
    # model.train() only switches dropout on; an optimizer's step comes after backward.
    "training": r"(?<![Mm]odel)(?<![Nn]et)(?<!tokenizer)\.train$|^train$|[Tt]rainer\w*\.fit$|\.backward$",
    "measuring": r"\b(?!eval$)\w*(evaluat|predict|infer|test|comput|scor|accuracy|f1|metric|report|classif)\w*$"
    r"|\b(forward|generate)$|\.model$",
}
_MUTATORS = {"append", "extend", "add", "add_batch", "update", "insert"}
_TIMERS = r"\s*%{1,2}(time|timeit|capture|prun|memit)\b.*"
_DEPTH, _CALLS = 6, 2000  # functions that call functions: where following them ends

FOUNDATION, RELOADED, OTHER = "foundation", "reloaded", "other task"
RESULTS = {FOUNDATION: "result of the foundation model", RELOADED: "result of the reloaded model"}


@dataclass(frozen=True)
class Step:
    """A call that matters to a hand-in: its kind, its cell, the folder it names, and whether a loop repeats it.

    ``folder`` is a normalised path, an expression in angle brackets where the code does not tell, or "".
    """

    kind: str
    cell: int
    folder: str = ""
    repeated: bool = False


def parse_cell(source: str) -> ast.Module | None:
    """Return the syntax tree of a cell without its magics and shell lines; None if it is not Python."""
    timed = re.match(_TIMERS, source)  # what follows is run as in any other cell
    source = source[timed.end() :] if timed and timed[0].lstrip().startswith("%%") else source
    source = re.sub(r"(?m)^(\s*)%(time|timeit|prun)\s+(-\S+ +)*", r"\1", source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's escapes
        try:
            return ast.parse(TransformerManager().transform_cell(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


class CodeReader:
    """Follows models and their results through the code of the cells, in order.

    Every variable has marks: ``FOUNDATION`` if it holds, or was made with, a classifier not yet trained, ``RELOADED``
    if one loaded after training, and `RESULTS` of either if it was measured with one. Whatever is computed from a
    variable has its marks. So ``trainer.evaluate()`` after the reload has no mark when ``trainer`` was made before,
    even if the reloaded model has taken the old one's name. ``OTHER`` marks a model of another task, such as a language
    model: what is trained, saved or loaded of it is no step of the hand-in. Functions that are defined in cells are
    followed where they are called; classes are not.
    """

    def __init__(self):
        self.steps: list[Step] = []
        self._variables = ChainMap({})
        self._aliases: dict[str, str] = {}
        self._imported: set[str] = set()
        self._functions: dict[str, ast.FunctionDef] = {}
        self._strings: dict[str, str] = {}
        self._loops = self._depth = self._cell = self._followed = 0
        self._seen: set[str] = set()
        self._returned: set[str] = set()

    def read_cell(self, number: int, source: str) -> set[str]:
        """Follow the code of the next cell; return the `RESULTS` that it makes or uses."""
        self._cell, self._seen = number, set()
        tree = parse_cell(source)
        with suppress(RecursionError):  # an expression nested too deeply to be someone's own
            self._run(tree.body if tree else [])
        return self._seen

    def _kinds(self) -> set[str]:
        return {step.kind for step in self.steps}

    def _folders(self, kind: str) -> set[str]:
        return {step.folder for step in self.steps if step.kind == kind}

    def _run(self, statements: list[ast.stmt], certain: bool = True) -> None:
        for node in statements:
            self._statement(node, certain)

    def _statement(self, node: ast.AST, certain: bool) -> None:
        match node:
            case ast.Import() | ast.ImportFrom():
                self._import(node)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self._functions[node.name] = node
            case ast.ClassDef():
                pass
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                self._assign(node, certain and not isinstance(node, ast.AugAssign))
            case ast.Return():
                self._returned |= self._marks(node.value)
            case ast.Expr():
                self._marks(node.value)
            case _:
                self._compound(node, certain)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for name in node.names:
            bound = name.asname or name.name.split(".")[0]
            module = getattr(node, "module", None)
            self._imported.add(bound)
            self._aliases[bound] = f"{module}.{name.name}" if module else name.name if name.asname else bound

    def _assign(self, node: ast.Assign | ast.AnnAssign | ast.AugAssign, certain: bool) -> None:
        marks = self._marks(node.value)
        for target in getattr(node, "targets", None) or [node.target]:
            self._bind(target, marks, certain)
            if isinstance(target, ast.Name):
                self._aliases.pop(target.id, None)
                self._functions.pop(target.id, None)
                if isinstance(node.value, ast.Name | ast.Attribute) and self._root(node.value) in self._imported:
                    self._aliases[target.id] = self._name(node.value)
                self._strings[target.id] = self._text(node.value)

    def _compound(self, node: ast.AST, certain: bool) -> None:
        """Follow what a statement such as ``for`` or ``if`` holds; what an ``if`` or ``try`` holds may be left out."""
        loop = isinstance(node, ast.For | ast.AsyncFor | ast.While)
        certain = certain and not isinstance(node, ast.If | ast.Try | ast.Match)
        if loop and any(isinstance(part, ast.Attribute) and part.attr == "backward" for part in ast.walk(node)):
            self._forget_foundation()  # from the loop's beginning: it measures what it trains
        target = getattr(node, "target", None) if loop else getattr(node, "optional_vars", None)
        source = getattr(node, "iter", None) if loop else getattr(node, "context_expr", None)
        if target is not None:
            self._bind(target, self._marks(source), certain)
        self._loops += loop
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                if child is not target and (target is None or child is not source):
                    self._marks(child)
            else:
                self._statement(child, certain)
        self._loops -= loop

    def _bind(self, target: ast.AST, marks: set[str], certain: bool) -> None:
        if isinstance(target, ast.Tuple | ast.List):
            for element in target.elts:
                self._bind(element, marks, certain)
        elif name := self._root(target):
            kept = set() if certain and isinstance(target, ast.Name) else self._variables.get(name, set())
            self._variables[name] = marks | kept

    def _marks(self, node: ast.AST | None) -> set[str]:
        """Return the marks of an expression, and note the steps that its calls take."""
        match node:
            case None:
                return set()
            case ast.Name():
                marks = set(self._variables.get(node.id, ()))
                self._seen |= marks & set(RESULTS.values())
                return marks
            case ast.Call():
                return self._call(node)
            case ast.NamedExpr():
                self._bind(node.target, self._marks(node.value), True)
                return self._marks(node.target)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                return self._comprehension(node)
        return set().union(*(self._marks(child) for child in ast.iter_child_nodes(node)))

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> set[str]:
        for part in node.generators:
            self._bind(part.target, self._marks(part.iter), True)
        self._loops += 1
        conditions = [condition for part in node.generators for condition in part.ifs]
        values = [getattr(node, name) for name in ("elt", "key", "value") if hasattr(node, name)]
        marks = set().union(*map(self._marks, values + conditions))
        self._loops -= 1
        return marks

    def _call(self, call: ast.Call) -> set[str]:
        name, root = self._name(call.func), self._root(call.func)
        values = call.args + [keyword.value for keyword in call.keywords]
        handed = [self._marks(value) for value in values]
        marks = self._marks(call.func).union(*handed)
        for value in values:
            if isinstance(value, ast.Name) and value.id in self._functions:  # a function that is passed on
                marks |= self._follow(self._functions[value.id], {})
        if name in self._functions:
            function = self._functions[name]
            return self._follow(function, self._parameters(function, call, handed))
        if name.rpartition(".")[2] in _MUTATORS and root and root not in self._imported:
            self._variables[root] = self._variables.get(root, set()) | marks
        return self._step(call, name, root, marks)

    def _step(self, call: ast.Call, name: str, root: str, marks: set[str]) -> set[str]:
        """Note the step that ``call`` takes, and return the marks of what it returns."""
        kind = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, name)), None)
        folder = self._folder(call, kind, name)
        if kind == "classifier" and folder and folder in self._folders("save"):
            kind = "reload"  # transformers finds the adapter in the folder and loads its foundation model with it
        if kind == "other task":
            return {OTHER}
        if OTHER in marks and kind in ("peft model", "training", "save", "measuring"):
            return marks
        trained = "training" in self._kinds()
        if kind in ("save", "reload") and not trained:
            return marks  # of something else
        if kind:
            self.steps.append(Step(kind, self._cell, folder, self._loops > 0))
        if kind == "training":
            self._forget_foundation()
            return set()
        if kind == "reload":
            self._reload(call, name, root)
            return {RELOADED}
        if kind == "classifier":
            return {FOUNDATION}
        called = isinstance(call.func, ast.Name) and self._marks(call.func)  # model(**batch)
        results = {RESULTS[mark] for mark in marks & set(RESULTS)} if called or kind == "measuring" else set()
        self._seen |= results
        return marks | results

    def _reload(self, call: ast.Call, name: str, root: str) -> None:
        """Mark what a reload changes in place: the model that is given, or called."""
        if name.endswith(".load_adapter") and root and root not in self._imported:
            self._variables[root] = {RELOADED}
        for value in call.args:
            if self._root(value) in self._variables:
                self._variables[self._root(value)] = self._variables[self._root(value)] - {FOUNDATION}

    def _forget_foundation(self) -> None:
        for variables in self._variables.maps:
            for name, marks in variables.items():
                variables[name] = marks - {FOUNDATION}

    def _parameters(self, function: ast.FunctionDef, call: ast.Call, handed: list[set[str]]) -> dict[str, set[str]]:
        names = [parameter.arg for parameter in function.args.posonlyargs + function.args.args]
        parameters = {name: set() for name in names}  # a default hides no variable of the same name
        parameters |= dict(zip(names, handed[: len(call.args)], strict=False))
        return parameters | {
            keyword.arg: marks for keyword, marks in zip(call.keywords, handed[len(call.args) :], strict=True)
        }

    def _follow(self, function: ast.FunctionDef, parameters: dict[str, set[str]]) -> set[str]:
        """Follow the body of a function that a cell has defined; return the marks of what it returns."""
        self._followed += 1
        if self._depth >= _DEPTH or self._followed > _CALLS:
            return set().union(*parameters.values())
        outer, variables = self._returned, self._variables
        self._returned, self._variables = set(), variables.new_child(parameters)
        self._depth += 1
        self._run(function.body)
        self._depth -= 1
        returned, self._returned, self._variables = self._returned, outer, variables
        return returned

    def _name(self, node: ast.AST) -> str:
        """Return the dotted name of what is called, with what imports have renamed by its own name."""
        match node:
            case ast.Name():
                return self._aliases.get(node.id, node.id)
            case ast.Attribute():
                return f"{self._name(node.value)}.{node.attr}"
            case ast.Call():
                return self._name(node.func)
            case ast.Subscript():
                return self._name(node.value)
        return ""

    def _root(self, node: ast.AST) -> str:
        while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
            node = node.value
        return node.id if isinstance(node, ast.Name) else ""

    def _folder(self, call: ast.Call, kind: str | None, name: str) -> str:
        """Return the folder that a call saves to or loads from."""
        place = 1 if re.search(r"\bPeftModel\w*\.from_pretrained$", name) else 0
        keywords = ("save_directory", "output_dir", "model_id", "pretrained_model_name_or_path")
        named = [keyword.value for keyword in call.keywords if keyword.arg in keywords]
        given = named or call.args[place : place + 1]
        return self._text(given[0]) if kind in ("save", "reload", "classifier") and given else ""

    def _text(self, node: ast.AST | None) -> str:
        """Return the string that an expression is, as a path; in angle brackets the expression, where it is unknown."""
        match node:
            case ast.Constant(value=str()):
                return posixpath.normpath(node.value)
            case ast.Name() if node.id in self._strings:
                return self._strings[node.id]
        return f"<{ast.unparse(node)}>" if node is not None else ""
