"""Finds the block files of the top-level room and of the user's lab.

`blocks/mbconv.py` of a checkout *is* `bblab.blocks.mbconv`. A lab's files load under a package name of their own, so
that a lab may have a `mbconv.py` too. What a block accepts is read from its file as text: validating, listing and
profiling a remembered spec never imports torch.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import types
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, near
from bblab.rooms import Rooms, room
from bblab.spec import BlockInfo, Param, Row

if TYPE_CHECKING:
    from torch import nn

# The engine's folder holds only this file; in a wheel the block files lie beside it, in a checkout in the room.
__path__ = [str(room("blocks"))]


# ---------------------------------------------------------------------------------------------- reading files


def infos(rooms: Rooms) -> dict[str, BlockInfo]:
    """Every block by its kind. Raises BblabError where two files claim one kind without `replace=True`."""
    found: dict[str, BlockInfo] = {}
    for origin, folder in rooms.folders("blocks"):
        for path in sorted(folder.glob("*.py")):
            if path.name.startswith(("_", ".")):
                continue
            for info, is_replacing in _read(path, origin, _stamp(path)):
                old = found.get(info.kind)
                if old is not None and not is_replacing:
                    raise BblabError(
                        f"{path}: the block {info.kind!r} is already defined in {old.file}",
                        hint='rename one, or write @block("' + info.kind + '", replace=True) to take its place',
                    )
                found[info.kind] = info
    return found


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@cache
def _read(path: Path, origin: str, stamp: tuple[int, int]) -> tuple[tuple[BlockInfo, bool], ...]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise BblabError(f"{path}:{error.lineno}: not Python: {error.msg}", hint="mend the file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BblabError(f"{path}: cannot be read: {error}", hint="mend or move the file") from None
    module_doc = ast.get_docstring(tree) or ""
    found = []
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in classes.values():
        marks = [d for d in node.decorator_list if isinstance(d, ast.Call) and _last_name(d.func) == "block"]
        if marks:
            flags = {k.arg: getattr(k.value, "value", None) for k in marks[0].keywords}
            name = marks[0].args[0] if marks[0].args else None
            if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
                raise BblabError(f"{path}:{node.lineno}: @block needs its kind as a plain string")
            found.append(
                (_info(name.value, path, origin, node, classes, module_doc, flags), bool(flags.get("replace")))
            )
        elif origin == "lab" and _is_module(node, classes):
            info = _info(f"{path.stem}.{node.name}", path, origin, node, classes, module_doc, {})
            found.append((info, False))
    return tuple(found)


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _is_module(node: ast.ClassDef, classes: dict[str, ast.ClassDef], depth: int = 0) -> bool:
    """Whether a class looks like an nn.Module: by its base's name, or by a base class in the same file."""
    for base in node.bases:
        name = _last_name(base)
        if name in ("Module", "Sequential"):
            return True
        if (
            name in classes
            and classes[name] is not node
            and depth < 10
            and _is_module(classes[name], classes, depth + 1)
        ):
            return True
    return False


def _init_of(node: ast.ClassDef, classes: dict[str, ast.ClassDef], depth: int = 0) -> ast.FunctionDef | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    for base in node.bases:
        name = _last_name(base)
        if name in classes and classes[name] is not node and depth < 10:
            return _init_of(classes[name], classes, depth + 1)
    return None


def _info(
    kind: str,
    path: Path,
    origin: str,
    node: ast.ClassDef,
    classes: dict[str, ast.ClassDef],
    module_doc: str,
    flags: dict[str | None, Any],
) -> BlockInfo:
    init = _init_of(node, classes)
    params: list[Param] = []
    has_stride = False
    if init is not None:
        spec = init.args
        positional = [*spec.posonlyargs, *spec.args][1:]
        defaults: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults)) + list(spec.defaults)
        named = list(zip(positional, defaults, strict=True))[2:]
        pairs = [*named, *zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]
        for argument, default in pairs:
            if argument.arg == "stride":
                has_stride = True
            elif argument.arg not in ("device", "dtype"):
                written = ast.unparse(argument.annotation) if argument.annotation else ""
                params.append(Param(argument.arg, written, _literal(default), default is None))
    doc = ast.get_docstring(node) or module_doc
    source = next((line.strip() for line in (doc + "\n" + module_doc).splitlines() if "arXiv" in line), "")
    return BlockInfo(
        kind=kind,
        file=path,
        class_name=node.name,
        params=tuple(params),
        doc=doc,
        source=source,
        origin=origin,
        has_stride=has_stride,
        keeps_channels=bool(flags.get("keeps_channels")),
        is_head=bool(flags.get("is_head")),
    )


def _literal(node: ast.expr | None) -> Any:
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


# ---------------------------------------------------------------------------------------------- versions


def code_files(info: BlockInfo) -> list[Path]:
    """The files whose text decides what a block does: its own and, in a lab, the lab's files that it imports."""
    files = [info.file]
    if info.origin == "lab":
        for path in files:
            files.extend(p for p in _lab_imports(path, _stamp(path)) if p not in files)
    return files


@cache
def _lab_imports(path: Path, stamp: tuple[int, int]) -> tuple[Path, ...]:
    """The lab's own files that a lab file imports: relative imports within its room."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                candidate = path.parent / (name.replace(".", "/") + ".py")
                if candidate.is_file():
                    found.append(candidate)
    return tuple(found)


@cache
def _digest(path: Path, stamp: tuple[int, int]) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code_version(info: BlockInfo) -> str:
    """A hash of the block's own code and the lab code it imports. Changes when any of these files does."""
    text = "".join(_digest(path, _stamp(path)) for path in code_files(info))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- loading classes


def load(info: BlockInfo) -> type[Any]:
    """The block's class. Imports torch. Raises BblabError when a user's file cannot be imported."""
    module = _import(info.file, info.origin)
    cls = getattr(module, info.class_name, None)
    if not inspect.isclass(cls):
        raise BblabError(
            f"{info.file}: no class {info.class_name}", hint="the file changed while it was read: try again"
        )
    return cls


def _import(path: Path, origin: str) -> types.ModuleType:
    if origin == "built-in":
        return importlib.import_module(f"bblab.blocks.{path.stem}")
    package = _lab_package(path.parent)
    name = f"{package}.{path.stem}"
    status = path.stat()
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__bblab_stamp__", None) == (status.st_mtime_ns, status.st_size):
        return known
    sys.modules.pop(name, None)
    for other in [m for m in sys.modules if m.startswith(package + ".")]:
        del sys.modules[other]  # one edited file may be imported by the others
    try:
        module = importlib.import_module(name)
    except BblabError:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        last = error.__traceback__
        line = ""
        while last is not None:
            if last.tb_frame.f_code.co_filename == str(path):
                line = f":{last.tb_lineno}"
            last = last.tb_next
        raise BblabError(
            f"{path}{line}: cannot be imported: {type(error).__name__}: {error}", hint="mend the file, then try again"
        ) from error
    module.__bblab_stamp__ = (status.st_mtime_ns, status.st_size)  # type: ignore[attr-defined]
    return module


def _lab_package(folder: Path) -> str:
    """A package name of its own for a lab's block room, so that no built-in module is ever shadowed."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]
    top = f"bblab_lab_{digest}"
    for name, places in ((top, []), (f"{top}.blocks", [str(folder)])):
        if name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = places
            sys.modules[name] = package
    importlib.invalidate_caches()
    return f"{top}.blocks"


def make(row: Row, in_ch: int | tuple[int, ...], info: BlockInfo, *, device: Any = None) -> nn.Module:
    """Build the module of one row. Raises BblabError when the block refuses its arguments."""
    import torch

    cls = load(info)
    out = list(row.out) if isinstance(row.out, tuple) else row.out
    first: Any = list(in_ch) if isinstance(in_ch, tuple) else in_ch
    kwargs = row.kwargs
    if info.has_stride:
        kwargs["stride"] = row.stride
    accepted = inspect.signature(cls).parameters
    if "device" in accepted:
        kwargs["device"] = device
    with torch.device(device) if device is not None else torch.device("cpu"):
        return cls(first, out, **kwargs)


def get(kind: str, kinds: dict[str, BlockInfo]) -> BlockInfo:
    """The info of a kind. Raises BblabError that lists the near ones."""
    if kind not in kinds:
        raise BblabError(f"no block {kind!r}", hint=near(kind, kinds))
    return kinds[kind]
