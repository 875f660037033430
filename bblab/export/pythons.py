"""The oldest Python that a text runs on: trackers' trainers live in environments of Python 3.8."""

from __future__ import annotations

import ast
from collections.abc import Iterator

OLDEST = 8
"""Python 3.8: what everything in a hand-over folder is written for."""
NEWEST = 13

# Names that came later, as attributes, imports or built-ins.
_LATER = {
    9: "removeprefix removesuffix cache lcm nextafter is_relative_to with_stem readlink randbytes unparse zoneinfo "
    "graphlib waitstatus_to_exitcode to_thread TopologicalSorter",
    10: "pairwise aiter anext bit_count hardlink_to NoneType EllipsisType NotImplementedType TypeAlias ParamSpec "
    "Concatenate TypeGuard aclosing",
    11: "tomllib StrEnum ReprEnum ExceptionGroup BaseExceptionGroup TaskGroup cbrt exp2 file_digest UTC Self "
    "LiteralString Never assert_never reveal_type dataclass_transform add_note",
    12: "batched override sumprod TypeAliasType walk_up",
}
_SINCE = {name: minor for minor, names in _LATER.items() for name in names.split()}
# Words of a call that came later: (what is called, the keyword).
_KEYWORDS = {("zip", "strict"): 10, ("dataclass", "slots"): 10, ("dataclass", "kw_only"): 10, ("field", "kw_only"): 10}
_GENERIC = ("list", "dict", "tuple", "set", "frozenset", "type", "OrderedDict", "defaultdict", "deque", "Counter")


def oldest(text: str) -> tuple[int, str]:
    """The minor version of the oldest Python 3 that runs a module's text, and what asks for it ("" for 3.8).

    Syntax by the parser itself; of what is called, the names that are known to be later. A name of the text's own
    (`self.cache`) counts as later too where it is an attribute that the text does not assign.
    """
    minor, why = OLDEST, ""
    for candidate in range(OLDEST, NEWEST + 1):
        try:
            ast.parse(text, feature_version=(3, candidate))
        except SyntaxError as error:
            minor, why = candidate + 1, f"line {error.lineno}: {error.msg}"
            continue
        break
    for at, name, line in _later(ast.parse(text)):
        if at > minor:
            minor, why = at, f"line {line}: {name}"
    return minor, why


def _later(tree: ast.Module) -> Iterator[tuple[int, str, int]]:
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    own |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    own |= {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for name in _names(node):
            if name in _SINCE and name not in own:
                yield _SINCE[name], name, line
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for keyword in node.keywords:
                if (called, keyword.arg or "") in _KEYWORDS:
                    yield _KEYWORDS[called, keyword.arg or ""], f"{called}({keyword.arg}=)", line
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in _GENERIC:
            yield 9, f"{node.value.id}[...]", line
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = (node.left, node.right)
            if any(map(_is_dict, sides)):
                yield 9, "dict | dict", line
            elif any(isinstance(s, ast.Constant) and s.value is None for s in sides):
                yield 10, "X | None as a value", line
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.BitOr) and _is_dict(node.value):
            yield 9, "dict |= dict", line
        if _is_call(node, "isinstance") or _is_call(node, "issubclass"):
            kinds = node.args[1:]  # type: ignore[attr-defined]
            if any(isinstance(k, ast.BinOp) and isinstance(k.op, ast.BitOr) for k in kinds):
                yield 10, "isinstance(x, A | B)", line


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((node.module or "").partition(".")[0], *(alias.name for alias in node.names))


def _is_dict(node: ast.AST) -> bool:
    return isinstance(node, ast.Dict | ast.DictComp) or _is_call(node, "dict")


def _is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
