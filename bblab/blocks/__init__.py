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
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, near
from bblab.installing import how_to_install
from bblab.rooms import Rooms, room
from bblab.spec import BlockInfo, Param, Row

if TYPE_CHECKING:
    from torch import nn

# Bounds one block, so that `branches: 60000` is a message and not minutes of building. Chosen by us: ten times
# the modules of the largest stage in the zoo.
MAX_LAYERS = 16_384

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
            for info, is_replacing in _read(path, origin, _stamps(path, origin)):
                old = found.get(info.kind)
                if old is not None and not is_replacing:
                    raise BblabError(
                        f"{path}: the block {info.kind!r} is already defined in {old.file}",
                        hint='rename one, or write @block("' + info.kind + '", replace=True) to take its place',
                    )
                found[info.kind] = info
    return found


Stamp = tuple[int, int]


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return status.st_mtime_ns, status.st_size


def _stamps(path: Path, origin: str) -> tuple[Stamp, ...]:
    """Changes when the file or, in a lab, a file of the lab that it imports does."""
    return tuple(_stamp(p) for p in _with_imports(path, origin))


def _unreadable(path: Path, error: Exception) -> BblabError:
    said = getattr(error, "strerror", None) or error
    return BblabError(f"{path}: cannot be read: {said}", hint="mend the file, or move it out of the room `blocks`")


@cache
def _parsed(path: Path, stamp: Stamp) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))  # bytes: Python's own rules for the encoding
    except SyntaxError as error:
        hint = "mend the file, or move it out of the room `blocks`"
        line = f":{error.lineno}" if error.lineno else ""
        raise BblabError(f"{path}{line}: not Python: {error.msg}", hint=hint) from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(path, error) from None


@cache
def _read(path: Path, origin: str, stamps: tuple[Stamp, ...]) -> tuple[tuple[BlockInfo, bool], ...]:
    tree = _parsed(path, stamps[0])
    module_doc = ast.get_docstring(tree) or ""
    found = []
    own = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    helpers = [_parsed(p, _stamp(p)).body for p in _with_imports(path, origin)[1:]]
    # A base class may stand in a file that this one imports.
    classes = {node.name: node for body in helpers for node in body if isinstance(node, ast.ClassDef)} | own
    for node in own.values():
        marks = [d for d in node.decorator_list if isinstance(d, ast.Call) and _last_name(d.func) == "block"]
        if marks:
            flags = {k.arg: getattr(k.value, "value", None) for k in marks[0].keywords}
            name = marks[0].args[0] if marks[0].args else None
            if not isinstance(name, ast.Constant) or not isinstance(name.value, str):
                raise BblabError(f"{path}:{node.lineno}: @block needs its kind as a plain string")
            found.append(
                (_info(name.value, path, origin, node, classes, module_doc, flags), bool(flags.get("replace")))
            )
        elif origin == "lab" and _is_module(node, classes) and _takes_channels(node, classes):
            info = _info(f"{path.stem}.{node.name}", path, origin, node, classes, module_doc, {})
            found.append((info, False))
    return tuple(found)


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _is_module(node: ast.ClassDef, classes: dict[str, ast.ClassDef], depth: int = 0) -> bool:
    """Whether a class looks like an nn.Module: its base is one of torch.nn, or a class of the lab that is one."""
    for base in node.bases:
        name = _last_name(base)
        if name in ("Module", "Sequential") or (isinstance(base, ast.Attribute) and _last_name(base.value) == "nn"):
            return True
        if (
            name in classes
            and classes[name] is not node
            and depth < 10
            and _is_module(classes[name], classes, depth + 1)
        ):
            return True
    return False


def _takes_channels(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether two channel counts can be its first arguments: a pasted file also has activations and whole nets."""
    init = _init_of(node, classes)
    return init is not None and (len([*init.args.posonlyargs, *init.args.args]) > 2 or init.args.vararg is not None)


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
    except (ValueError, TypeError):
        return ast.unparse(node)


# ---------------------------------------------------------------------------------------------- versions


def code_files(info: BlockInfo) -> list[Path]:
    """The files whose text decides what a block does: its own and, in a lab, the lab's files that it imports."""
    return _with_imports(info.file, info.origin)


def _with_imports(path: Path, origin: str) -> list[Path]:
    files = [path]
    if origin == "lab":
        for file in files:
            files.extend(p for p in _lab_imports(file, _stamp(file)) if p not in files)
    return files


@cache
def _lab_imports(path: Path, stamp: Stamp) -> tuple[Path, ...]:
    """The lab's own files that a lab file imports: relative imports within its room."""
    found: list[Path] = []
    for node in ast.walk(_parsed(path, stamp)):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        folder = path.parents[node.level - 1] if node.level <= len(path.parents) else path.parent
        base = folder / (node.module or "").replace(".", "/")
        names = [base, *(base / alias.name for alias in node.names)]
        places = [p for n in names for p in (n.with_name(n.name + ".py"), n / "__init__.py")]
        found.extend(p for p in places if p.is_file() and p != path)
    return tuple(dict.fromkeys(found))


@cache
def _digest(path: Path, stamp: Stamp) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def code_version(info: BlockInfo) -> str:
    """A hash of the block's own code and the lab code it imports. Changes when any of these files does."""
    text = "".join(_digest(path, _stamp(path)) for path in code_files(info))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------- loading classes


def load(info: BlockInfo) -> type[Any]:
    """The block's class. Imports torch. Raises BblabError when a user's file cannot be imported."""
    module = _import(info)
    cls = getattr(module, info.class_name, None)
    if not inspect.isclass(cls):
        raise BblabError(
            f"{info.file}: no class {info.class_name}", hint="the file changed while it was read: try again"
        )
    return cls


def _import(info: BlockInfo) -> types.ModuleType:
    """The block's module, loaded anew when its file, or in a lab a file that it imports, has changed."""
    path = info.file
    stamps = tuple(_stamp(p) for p in code_files(info))
    package = "bblab.blocks" if info.origin == "built-in" else _lab_package(path.parent)
    name = f"{package}.{path.stem}"
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__bblab_stamps__", stamps) == stamps:
        known.__bblab_stamps__ = stamps  # type: ignore[attr-defined]
        return known
    # One edited file may be imported by the others of a lab. Built-in block files import no other.
    for other in [m for m in sys.modules if m == name or (info.origin == "lab" and m.startswith(package + "."))]:
        del sys.modules[other]
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        # No bytecode: Python holds it against whole seconds and the size, and would miss a quick `3` to `5`.
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if info.origin == "built-in":
            raise
        raise BblabError(
            f"{path}{line_in(path, error)}: cannot be imported: {type(error).__name__}: {error}",
            hint=_import_hint(path, error),
        ) from error
    finally:
        sys.dont_write_bytecode = writes_bytecode
    module.__bblab_stamps__ = stamps  # type: ignore[attr-defined]
    return module


def line_in(path: Path, error: BaseException) -> str:
    """ ":12" where the error passed through line 12 of the file; the innermost such line."""
    line, last = "", error.__traceback__
    while last is not None:
        if last.tb_frame.f_code.co_filename == str(path):
            line = f":{last.tb_lineno}"
        last = last.tb_next
    return line


def _import_hint(path: Path, error: BaseException) -> str:
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing and (path.with_name(f"{missing}.py").is_file() or path.with_name(missing).is_dir()):
        return f"files of a lab import each other relatively: from .{missing} import ..."
    if missing:  # a package's name on an index is often not its import name, and then a stranger's
        return f"{missing} is not installed: add the package that its project names ({how_to_install('PACKAGE')})"
    return "mend the file, then try again"


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
    accepted = _parameters(cls)  # type: ignore[arg-type]  # a class is hashable
    if "device" in accepted:
        kwargs["device"] = device
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > MAX_LAYERS:
            hint = "is one of its arguments too large?"
            raise BblabError(f"{row.kind} has more than {MAX_LAYERS:,} layers", hint=hint)

    handle = torch.nn.modules.module.register_module_module_registration_hook(counted)
    # Under torch.device every call of torch takes a detour through Python; built-in blocks hand `device` on themselves.
    hands_on = info.origin == "built-in" and "device" in accepted
    try:
        with nullcontext() if hands_on else torch.device("cpu" if device is None else device):
            return cls(first, out, **kwargs)
    except SystemExit as error:  # a pasted script's way to end
        raise RuntimeError(f"it called exit({error.code})") from None
    finally:
        handle.remove()


@cache
def _parameters(cls: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters)


def get(kind: str, kinds: dict[str, BlockInfo]) -> BlockInfo:
    """The info of a kind. Raises BblabError that lists the near ones."""
    if kind not in kinds:
        raise BblabError(f"no block {kind!r}", hint=near(kind, kinds))
    return kinds[kind]
