"""Definitions copied out of Python files, with all they need: what makes a generated file self-contained.

Functions, classes and constants are taken as they are written, without type annotations (old interpreters and untyped
trainers read the copies) and without the spec language's `@block`. Nothing that is not used is copied.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from bblab.errors import BblabError
from bblab.rooms import room

_IGNORED_DECORATORS = ("block", "final", "override")
_TYPE_COMMENT = re.compile(rb"[ \t]*# (?:type: ignore|noqa)[^\n]*")

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


@dataclass(frozen=True)
class Source:
    """A parsed file: what it defines at the top, and which name it imports from where ("" for a plain import)."""

    path: Path
    text: bytes
    doc: str
    definitions: dict[str, Definition]
    imports: dict[str, tuple[str, str, int]]
    starts: tuple[int, ...]

    def at(self, line: int, column: int) -> int:
        """The byte offset of a place as `ast` gives it."""
        return self.starts[line - 1] + column


def read(path: Path) -> Source:
    return _read(path, path.stat().st_mtime_ns)


@cache
def _read(path: Path, _: int) -> Source:
    text = path.read_bytes()
    tree = ast.parse(text)
    definitions: dict[str, Definition] = {}
    imports: dict[str, tuple[str, str, int]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    definitions[target.id] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            definitions[node.target.id] = node
        elif isinstance(node, ast.Import):
            for alias in node.names:
                imports[alias.asname or alias.name.partition(".")[0]] = (alias.name, "", 0)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imports[alias.asname or alias.name] = (node.module or "", alias.name, node.level)
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return Source(path, text, ast.get_docstring(tree) or "", definitions, imports, tuple(starts))


# ---------------------------------------------------------------------------------------------- names that are used


def _global_names(node: ast.AST) -> Iterator[ast.Name]:
    """The names that a definition takes from outside of itself, annotations aside."""
    yield from _names(node, frozenset())


def _names(node: ast.AST, local: frozenset[str]) -> Iterator[ast.Name]:
    if isinstance(node, ast.Name):
        if node.id not in local:
            yield node
        return
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        arguments = node.args
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        given += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                yield from _names(default, local)
        body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
        own = {a.arg for a in given} | {n for part in body for n in _stored(part)}
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if not _is_ignored(decorator):
                    yield from _names(decorator, local)
        for part in body:
            yield from _names(part, local | own)
        return
    if isinstance(node, ast.ClassDef):
        for decorator in node.decorator_list:
            if not _is_ignored(decorator):
                yield from _names(decorator, local)
        for base in (*node.bases, *(k.value for k in node.keywords)):
            yield from _names(base, local)
        bound = {n for part in node.body for n in _stored(part)}  # seen by the body's own lines, not by its methods
        for part in node.body:
            yield from _names(part, local if isinstance(part, ast.FunctionDef) else local | bound)
        return
    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
        own = {n for generator in node.generators for n in _stored(generator.target)}
        for child in ast.iter_child_nodes(node):
            yield from _names(child, local | own)
        return
    if isinstance(node, ast.AnnAssign):
        if node.value is not None:
            yield from _names(node.value, local)
        return
    for child in ast.iter_child_nodes(node):
        yield from _names(child, local)


def _stored(node: ast.AST) -> Iterator[str]:
    """Names that a piece of a function binds: assignments, loops, imports, functions in it."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    if isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0]
    if isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name
    for child in ast.iter_child_nodes(node):
        yield from _stored(child)


def _is_ignored(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Name) and called.id in _IGNORED_DECORATORS


# ---------------------------------------------------------------------------------------------- text of a definition


def _edits(source: Source, node: ast.AST) -> Iterator[tuple[int, int, bytes]]:
    """What is taken out of a copy: annotations, and zip's `strict`, which Python 3.8 and 3.9 do not have."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "zip":
            for keyword in part.keywords:
                if keyword.arg == "strict" and part.args:
                    before = part.args[-1]
                    start = source.at(before.end_lineno or 0, before.end_col_offset or 0)
                    yield start, source.at(keyword.end_lineno or 0, keyword.end_col_offset or 0), b""
        if isinstance(part, ast.FunctionDef):
            if part.returns is not None:
                end = source.at(part.returns.end_lineno or 0, part.returns.end_col_offset or 0)
                arrow = source.text.rindex(b"->", 0, source.at(part.returns.lineno, part.returns.col_offset))
                start = len(source.text[:arrow].rstrip())
                yield start, end, b""
            arguments = part.args
            ordered = [*arguments.posonlyargs, *arguments.args]
            without: list[ast.expr | None] = [None] * (len(ordered) - len(arguments.defaults))
            pairs = list(zip(ordered, [*without, *arguments.defaults], strict=True))
            pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
            pairs += [(a, None) for a in (arguments.vararg, arguments.kwarg) if a is not None]
            for argument, default in pairs:
                if argument.annotation is None:
                    continue
                start = source.at(argument.lineno, argument.col_offset) + len(argument.arg.encode())
                end = source.at(argument.annotation.end_lineno or 0, argument.annotation.end_col_offset or 0)
                if default is None:
                    yield start, end, b""
                else:
                    yield start, source.at(default.lineno, default.col_offset), b"="
        elif isinstance(part, ast.AnnAssign) and part.value is None:
            yield source.at(part.lineno, 0), source.at((part.end_lineno or 0) + 1, 0), b""
        elif isinstance(part, ast.AnnAssign) and part.value is not None:
            start = source.at(part.target.end_lineno or 0, part.target.end_col_offset or 0)
            yield start, source.at(part.value.lineno, part.value.col_offset), b" = "


def _text(source: Source, node: Definition, names: dict[str, str]) -> str:
    """A definition as written, less annotations and ignored decorators, with global names changed by `names`."""
    decorators = [] if isinstance(node, ast.Assign | ast.AnnAssign) else node.decorator_list
    kept = [d for d in decorators if not _is_ignored(d)]
    first = min([d.lineno for d in kept] + [node.lineno])
    begin, end = source.at(first, 0), source.at(node.end_lineno or 0, node.end_col_offset or 0)
    changes = {(a, b): new for a, b, new in _edits(source, node)}
    for decorator in decorators:
        if _is_ignored(decorator):
            line = (source.at(decorator.lineno, 0), source.at(decorator.lineno + 1, 0))
            if line[0] >= begin:
                changes[line] = b""
    for name in _global_names(node):
        if name.id in names:
            start = source.at(name.lineno, name.col_offset)
            changes[start, start + len(name.id.encode())] = names[name.id].encode()
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
        word = b"def " if isinstance(node, ast.FunctionDef) else b"class "
        start = source.text.index(word, source.at(node.lineno, 0)) + len(word)
        changes[start, start + len(node.name.encode())] = names[node.name].encode()
    made, at = b"", begin
    for (start, stop), new in sorted(changes.items()):
        if start < at:  # inside of something that was taken out
            continue
        made += source.text[at:start] + new
        at = stop
    made += source.text[at:end]
    return _TYPE_COMMENT.sub(b"", made).decode("utf-8").rstrip()


# ---------------------------------------------------------------------------------------------- a collection


@dataclass
class Collection:
    """Definitions gathered from files, with all that they use."""

    taken: dict[tuple[Path, str], str] = field(default_factory=dict)
    origins: dict[str, tuple[Path, str]] = field(default_factory=dict)
    imports: set[tuple[str, str, str]] = field(default_factory=set)
    aliases: dict[str, tuple[Path, str]] = field(default_factory=dict)
    reserved: frozenset[str] = frozenset()
    _needs: dict[Path, set[Path]] = field(default_factory=dict)
    _known_as: dict[Path, dict[str, str]] = field(default_factory=dict)

    def add(self, path: Path, name: str) -> str:
        """Take a definition and what it needs; the name that it has in the copy."""
        source = read(path)
        key = (path, name)
        if key in self.taken:
            return self.taken[key]
        if name not in source.definitions:
            raise BblabError(
                f"{path}: {name} is not defined at the top of the file, so it cannot be copied",
                hint="define it there with def, class or =",
            )
        node = source.definitions[name]
        self.taken[key] = self._free_name(path, name)
        for used in sorted({n.id for n in _global_names(node)} - {name}):
            self._need(source, used)
        self._needs.setdefault(path, set())
        if self.taken[key] != name:
            self._known_as.setdefault(path, {})[name] = self.taken[key]
        return self.taken[key]

    def _free_name(self, path: Path, name: str) -> str:
        wanted, count = name, 1
        while wanted in self.origins or wanted in self.reserved:
            lead = "_" if name.startswith("_") else ""
            stem = path.stem.title().replace("_", "") if name[:1].isupper() else path.stem
            joint = "" if name[:1].isupper() or lead else "_"
            wanted = f"{lead}{stem}{joint}{name}" + (str(count) if count > 1 else "")
            count += 1
        self.origins[wanted] = (path, name)
        return wanted

    def _need(self, source: Source, name: str) -> None:
        if name in source.definitions:
            self.add(source.path, name)
        elif name in source.imports:
            module, original, level = source.imports[name]
            file = _file_of(source.path, module, original, level)
            if file is None:
                if module != "__future__":
                    self.imports.add((module, original, name))
                return
            if not original:
                raise BblabError(
                    f"{source.path}: `import {module}` cannot be copied into a module of its own",
                    hint=f"write: from {module} import NAME",
                )
            called = self.add(file, original)
            self._needs.setdefault(source.path, set()).add(file)
            if name == original and called != name:
                self._known_as.setdefault(source.path, {})[name] = called
            elif name != original:  # a local name may be the original's: keep the importer's word for it
                alias = name if self.aliases.get(name, (file, called)) == (file, called) else ""
                if alias and alias not in self.aliases:
                    alias = self._free_name(source.path, name)
                    self.aliases[alias] = (file, called)
                if alias != name:
                    self._known_as.setdefault(source.path, {})[name] = alias or called
        elif not hasattr(builtins, name) and name not in ("__file__", "__name__"):
            raise BblabError(
                f"{source.path}: where {name} comes from cannot be seen, so it cannot be copied",
                hint="define or import it at the top of the file, by name",
            )

    def import_lines(self) -> list[str]:
        """The standard library, a blank line, the rest; in each plain imports first, every module once."""
        own = {item for item in self.imports if item[0].partition(".")[0] in sys.stdlib_module_names}
        first, second = self._import_lines(own), self._import_lines(self.imports - own)
        return [*first, *([""] if first and second else []), *second]

    @staticmethod
    def _import_lines(imports: set[tuple[str, str, str]]) -> list[str]:
        plain = sorted(
            f"import {module}" + ("" if name == module.partition(".")[0] else f" as {name}")
            for module, original, name in imports
            if not original
        )
        by_module: dict[str, list[str]] = {}
        for module, original, name in sorted(imports):
            if original:
                by_module.setdefault(module, []).append(original if original == name else f"{original} as {name}")
        return [*plain, *(f"from {module} import {', '.join(names)}" for module, names in sorted(by_module.items()))]

    def files(self) -> list[Path]:
        """Each file behind those it needs."""
        done: list[Path] = []

        def visit(path: Path) -> None:
            if path not in done:
                for needed in sorted(self._needs.get(path, ())):
                    if needed != path:
                        visit(needed)
                if path not in done:
                    done.append(path)

        for path in self._needs:
            visit(path)
        return done

    def texts(self, path: Path) -> list[str]:
        """The definitions taken from a file, in the file's order."""
        source = read(path)
        wanted = {name for file, name in self.taken if file == path}
        nodes: dict[int, Definition] = {id(source.definitions[n]): source.definitions[n] for n in wanted}
        ordered = sorted(nodes.values(), key=lambda node: node.lineno)
        made = [_text(source, node, self._known_as.get(path, {})) for node in ordered]
        return made + [f"{alias} = {called}" for alias, (file, called) in sorted(self.aliases.items()) if file == path]


def _file_of(importer: Path, module: str, original: str, level: int) -> Path | None:
    """The file of our own, or of the user's lab, that an import means; None for a package that is imported."""
    if level:
        folder = importer.parents[level - 1]
        base = folder / module.replace(".", "/") if module else folder
        for candidate in (base.with_suffix(".py"), base / "__init__.py", base / f"{original}.py"):
            if candidate.is_file():
                return candidate
        raise BblabError(f"{importer}: the file of `from {'.' * level}{module} import {original}` is not there")
    if module.split(".")[0] != "bblab":
        return None
    if module.startswith("bblab.blocks."):
        return room("blocks") / f"{module.split('.')[2]}.py"
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, module
    return Path(found.origin)
