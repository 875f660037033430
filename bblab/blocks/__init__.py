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
from bblab.spec import BlockInfo, Param, Row, usable

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
        elif origin == "lab" and _is_module(node, classes):
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
    arguments = _arguments(node, classes)
    is_head, keeps_channels = bool(flags.get("is_head")), bool(flags.get("keeps_channels"))
    feeds: tuple[tuple[str, str], ...] = ()
    refusal = remedy = ""
    if origin == "built-in":  # always (in_ch, out_ch, stride)
        own = (arguments or [])[2:]
        has_stride = any(a.name == "stride" for a in own)
        params = [a for a in own if a.name not in ("stride", "device", "dtype")]
    else:
        feeds, refusal = roles(arguments, is_head=is_head)
        has_stride = any(role in ("stride", "strides") for _, role in feeds)
        fed = {name for name, _ in feeds}
        params = [a for a in arguments or [] if a.name not in fed and a.name not in ("device", "dtype")]
        keeps_channels = keeps_channels or (not refusal and "out" not in [role for _, role in feeds])
        if refusal:
            remedy = _adapter(path, node.name, arguments)
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
        keeps_channels=keeps_channels,
        is_head=is_head,
        feeds=feeds,
        refusal=refusal,
        remedy=remedy,
    )


def _arguments(node: ast.ClassDef, classes: dict[str, ast.ClassDef], depth: int = 0) -> list[Param] | None:
    """What the constructor takes by name, as its text says; None where that cannot be read from the lab's files.

    `**kwargs` are handed on to the base class, where the lab has it.
    """
    init = _init_of(node, classes)
    if init is None:
        return [] if [_last_name(base) for base in node.bases] == ["Module"] else None
    spec = init.args
    positional = [*spec.posonlyargs, *spec.args][1:]
    if spec.posonlyargs[1:] or (spec.vararg is not None and spec.kwarg is None and not positional):
        return None
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults)) + list(spec.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(spec.kwonlyargs, spec.kw_defaults, strict=True)]
    found = [
        Param(a.arg, ast.unparse(a.annotation) if a.annotation else "", _literal(default), default is None)
        for a, default in pairs
    ]
    if spec.kwarg is not None and depth < 10:
        for base in node.bases:
            parent = classes.get(_last_name(base))
            if parent is not None and parent is not node and init in node.body:
                known = {p.name for p in found}
                found += [p for p in _arguments(parent, classes, depth + 1) or [] if p.name not in known]
    return found


# ---------------------------------------------------------------------------------------------- what goes where

# What papers and their code call a block's widths and its stride. Compared in small letters.
_IN = frozenset(
    """
    in_ch in_chs in_channel in_channels in_c in_planes in_plane inplanes inplane inp inps inc in_dim in_dims dim_in
    input_dim input_dims in_features in_feature in_filters in_nc in_feat in_feats in_width in_size cin c_in c1 ch_in
    chin channels_in channel_in nin n_in num_in num_in_channels ni input_channels input_channel inchannels inchannel
    in_embed_dim in_chans in_chan ich ic i_ch width_in nb_in input_size input_filters input_width input_planes
    """.split()
)
_OUT = frozenset(
    """
    out_ch out_chs out_channel out_channels out_c out_planes out_plane outplanes outplane oup oups outp outc ouc
    out_dim out_dims dim_out output_dim output_dims out_features out_feature out_filters out_nc out_feat out_feats
    out_width out_size cout c_out c2 ch_out chout channels_out channel_out nout n_out num_out num_out_channels no
    output_channels output_channel outchannels outchannel out_embed_dim out_chans out_chan och oc o_ch out planes
    width_out nb_out output_size output_filters output_width output_planes
    """.split()
)
_BOTH = frozenset(
    """
    dim dims channels channel ch chs c num_channels n_channels n_ch nch nf n_feat n_feats num_features features feat
    width embed_dim embed_dims d_model model_dim hidden_dim hidden_size filters num_filters n_filters chan chans chn
    """.split()
)
_OUT_BESIDE_IN = frozenset("channels channel ch chs c num_channels n_channels dim dims filters num_filters nf".split())
_CLASSES = frozenset("num_classes n_classes classes nclass num_class nb_classes".split())
_STRIDE = frozenset("stride strides s conv_stride stride_size".split())
_STRIDES = frozenset("down downsample down_sample downsampling is_down do_downsample downscale subsample".split())


def roles(arguments: list[Param] | None, *, is_head: bool = False) -> tuple[tuple[tuple[str, str], ...], str]:
    """What a row may give a constructor: ((argument, role), ...), or nothing and the words why not.

    Roles: "in" and "out" for channels ("in" alone: the block keeps them), "stride" for a number, "strides" for a yes or
    no. Only arguments that are named like that are fed; every other one is the spec's own to give.
    """
    if arguments is None:
        return (), "has a constructor that its file does not spell out, so a row cannot feed it"
    if not arguments:
        return (), "takes no channels, so a row cannot feed it"
    small = {a.name: a.name.lower().strip("_") for a in arguments}
    given = next((a.name for a in arguments if small[a.name] in _IN), None)
    result = next((a.name for a in arguments if small[a.name] in _OUT | (_CLASSES if is_head else frozenset())), None)
    both = [a for a in arguments if small[a.name] in _BOTH]
    if given is None and both:
        given = both[0].name
    elif (
        given is not None and result is None and both and both[0].is_required and small[both[0].name] in _OUT_BESIDE_IN
    ):
        result = both[0].name
    if given is None and result is not None:  # Block(planes): as many out as in
        given, result = result, None
    if given is None:
        names = ", ".join(a.name for a in arguments)
        return (), f"takes ({names}): none of these is named like channels, so a row cannot feed it"
    feeds = [(given, "in")] + ([(result, "out")] if result is not None else [])
    for a in arguments:
        word = small[a.name]
        is_number = isinstance(a.default, int) and not isinstance(a.default, bool)
        if word == "stride" or (word in _STRIDE and (a.is_required or is_number or isinstance(a.default, tuple))):
            feeds.append((a.name, "strides" if isinstance(a.default, bool) else "stride"))
            break
        if word in _STRIDES and (a.is_required or is_number or isinstance(a.default, bool)):
            feeds.append((a.name, "stride" if is_number else "strides"))
            break
    return tuple(feeds), ""


def _adapter(path: Path, name: str, arguments: list[Param] | None) -> str:
    """The class to write for a constructor that cannot be fed."""
    needed = ", ".join(f"{a.name}=..." for a in arguments or () if a.is_required) or "..."
    return (
        f"say in {path.name} what goes where, and use `block: {path.stem}.{name}Block`:\n"
        f"    class {name}Block(nn.Module):\n"
        f"        def __init__(self, in_ch, out_ch, stride=1):\n"
        f"            super().__init__(); self.body = {name}({needed if arguments else ''})\n"
        f"        def forward(self, x): return self.body(x)"
    )


def fed(row: Row, in_ch: Any, info: BlockInfo) -> tuple[list[Any], dict[str, Any]]:
    """(arguments, keywords) of a row's block: its channels and stride, without the row's own arguments."""
    if not info.feeds:
        return [in_ch, row.out], {"stride": row.stride} if info.has_stride else {}
    values = {"in": in_ch, "out": row.out, "stride": row.stride, "strides": row.stride > 1}
    return [], {name: values[role] for name, role in info.feeds}


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
    given, kwargs = fed(row, in_ch, info)
    given = [list(v) if isinstance(v, tuple) else v for v in given]
    kwargs = {k: list(v) if isinstance(v, tuple) else v for k, v in kwargs.items()} | row.kwargs
    accepted = _parameters(cls)  # type: ignore[arg-type]  # a class is hashable
    if info.feeds and not accepted.issuperset(kwargs) and not _takes_any(cls):  # type: ignore[arg-type]
        named = sorted(set(kwargs) - accepted)
        raise BblabError(
            f"{info.class_name} takes ({', '.join(inspect.signature(cls).parameters)}) once its file has run, but its "
            f"text says it takes {', '.join(named)}",
            hint=f"spell the constructor out in {info.file}, without a decorator that changes it",
        )
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
            return cls(*given, **kwargs)
    except SystemExit as error:  # a pasted script's way to end
        raise RuntimeError(f"it called exit({error.code})") from None
    finally:
        handle.remove()


@cache
def _parameters(cls: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(cls).parameters)


@cache
def _takes_any(cls: type[nn.Module]) -> bool:
    """Whether the constructor has `**kwargs`."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values())


def get(kind: str, kinds: dict[str, BlockInfo]) -> BlockInfo:
    """The info of a kind. Raises BblabError that lists the near ones, or says why a class cannot be a block."""
    if kind not in kinds:
        raise BblabError(f"no block {kind!r}", hint=near(kind, usable(kinds)))
    if kinds[kind].refusal:
        raise BblabError(f"{kind} {kinds[kind].refusal}", hint=kinds[kind].remedy)
    return kinds[kind]
