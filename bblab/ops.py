"""block -> OpGraph: recorded on the meta device, remembered on disk.

A `TorchFunctionMode` sees every torch call of one forward pass, by the name that the code used (so that
`scaled_dot_product_attention` stays one op). The result is a plain value without torch in it; params, MACs, memory,
receptive field and latency by op all read this list, and nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from bblab import blocks, rooms
from bblab.errors import BblabError
from bblab.shapes import plain_result, shapes_only
from bblab.spec import BlockInfo, Row

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from bblab import folding

Shape = tuple[int, ...]


# ---------------------------------------------------------------------------------------------- values


@dataclass(frozen=True, slots=True)
class Op:
    """One torch call. `inputs` and `outputs` index `OpGraph.tensors`, `params` index `OpGraph.params`.

    `attrs` holds the geometry that the call's rule needs (kernel, stride, padding, ...). `is_view`: writes nothing;
    `is_in_place`: overwrites its first input.
    """

    name: str
    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    is_view: bool = False
    is_in_place: bool = False


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter (learnable) or buffer of the recorded module."""

    name: str
    shape: Shape
    itemsize: int
    is_learnable: bool

    @property
    def numel(self) -> int:
        return _product(self.shape)


@dataclass(frozen=True, slots=True)
class OpGraph:
    """What one module does at one input size, in the order it does it.

    `tensors[i]` is a shape; `roots[i]` the tensor whose memory it shares (itself, unless a view or in place).
    `inputs` and `outputs` are tensor indexes.
    """

    tensors: tuple[Shape, ...]
    roots: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ops: tuple[Op, ...]
    params: tuple[Weight, ...]
    module_outputs: tuple[tuple[str, int, int], ...] = ()
    """(module, tensor, number of ops done) for every submodule that returned one tensor, in order."""
    unfused: tuple[folding.Unfused, ...] = ()
    """Of a deploy form: what stays as it is in training."""

    @property
    def output_shapes(self) -> tuple[Shape, ...]:
        return tuple(self.tensors[i] for i in self.outputs)

    def to_json(self) -> str:
        return json.dumps(
            [
                self.tensors,
                self.roots,
                self.inputs,
                self.outputs,
                [
                    [o.name, o.layer, o.inputs, o.outputs, o.params, o.attrs, int(o.is_view) + 2 * int(o.is_in_place)]
                    for o in self.ops
                ],
                [[w.name, w.shape, w.itemsize, int(w.is_learnable)] for w in self.params],
                self.module_outputs,
                self.unfused,
            ],
            separators=(",", ":"),
        )

    @staticmethod
    def from_json(text: str) -> OpGraph:
        tensors, roots, inputs, outputs, ops, params, modules, unfused = json.loads(text)
        return OpGraph(
            tuple(tuple(t) for t in tensors),
            tuple(roots),
            tuple(inputs),
            tuple(outputs),
            tuple(Op(n, la, tuple(i), tuple(o), tuple(p), a, bool(f & 1), bool(f & 2)) for n, la, i, o, p, a, f in ops),
            tuple(Weight(n, tuple(s), b, bool(le)) for n, s, b, le in params),
            tuple((n, t, k) for n, t, k in modules),
            tuple((layer, why, has_failed) for layer, why, has_failed in unfused),
        )


def _product(shape: Iterable[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


# ---------------------------------------------------------------------------------------------- recording

# Positional names of the calls whose geometry is kept. From torch 2.13's documentation of each function.
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    "conv1d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv3d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose2d": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "max_pool2d": ("input", "kernel", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": ("input", "kernel", "stride", "padding", "ceil_mode"),
    "lp_pool2d": ("input", "norm_type", "kernel", "stride", "ceil_mode"),
    "pad": ("input", "pad", "mode", "value"),
    "mean": ("input", "dim", "keepdim"),
    "sum": ("input", "dim", "keepdim"),
    "amax": ("input", "dim", "keepdim"),
    "amin": ("input", "dim", "keepdim"),
    "max": ("input", "dim", "keepdim"),
    "std": ("input", "dim"),
    "var": ("input", "dim"),
    "cumsum": ("input", "dim"),
    "norm": ("input", "p", "dim"),
    "normalize": ("input", "p", "dim"),
    "softmax": ("input", "dim"),
    "log_softmax": ("input", "dim"),
    "cat": ("tensors", "dim"),
    "stack": ("tensors", "dim"),
    "interpolate": ("input", "size", "scale_factor", "mode", "align_corners"),
    "layer_norm": ("input", "normalized_shape"),
    "permute": ("input", "dims"),
    "transpose": ("input", "dim0", "dim1"),
    "swapaxes": ("input", "dim0", "dim1"),
    "pixel_shuffle": ("input", "factor"),
    "pixel_unshuffle": ("input", "factor"),
    "unfold": ("input", "kernel", "dilation", "padding", "stride"),
    "roll": ("input", "shifts", "dims"),
    "flip": ("input", "dims"),
    "narrow": ("input", "dim", "start", "length"),
    "select": ("input", "dim", "index"),
    "chunk": ("input", "chunks", "dim"),
    "split": ("input", "split", "dim"),
    "split_with_sizes": ("input", "split", "dim"),
    "tensor_split": ("input", "split", "dim"),
    "unbind": ("input", "dim"),
    "repeat": ("input", "repeats"),
    "repeat_interleave": ("input", "repeats", "dim"),
    "multi_head_attention_forward": ("query", "key", "value", "embed_dim", "num_heads"),
}
_PRODUCTS = {"matmul": 0, "mm": 0, "bmm": 0, "rmatmul": 1, "addmm": 1, "baddbmm": 1}
_KEYWORDS = {
    "kernel_size": "kernel",
    "downscale_factor": "factor",
    "upscale_factor": "factor",
    "split_size": "split",
    "split_size_or_sections": "split",
    "split_sizes": "split",
    "indices_or_sections": "split",
    "axis": "dim",
}
_SKIP = {"input", "weight", "bias", "tensors", "query", "key", "value"}
_ALIASES = {
    "max_pool2d_with_indices": "max_pool2d",
    "_max_pool2d": "max_pool2d",
    "concat": "cat",
    "concatenate": "cat",
    "truediv": "div",
    "rsub": "sub",
    "mH": "transpose",
}


def _plain(value: Any) -> Any:
    """A call's argument as JSON data; None where it is nothing that a rule could read."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, slice):
        return ["slice", value.start, value.stop, value.step]
    if value is Ellipsis:
        return "..."
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "__index__") and not hasattr(value, "shape"):
        return int(value)
    return None


def _attributes(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if name in ("getitem", "setitem"):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        found: dict[str, Any] = {"index": [("tensor" if hasattr(i, "shape") else _plain(i)) for i in index]}
        return found if name == "getitem" else {**found, "written": args[0][args[1]].numel()}
    if name in _PRODUCTS:  # the length that is summed over: the last axis of the left factor
        return {"contracted": args[_PRODUCTS[name]].shape[-1]}
    if name == "einsum":
        operands = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
        return {"equation": args[0], "shapes": [list(t.shape) for t in operands]}
    names = _SIGNATURES.get(name)
    if names is None:
        return {"sizes": _plain(args[1])} if name.startswith("adaptive") and len(args) > 1 else _adaptive(name, kwargs)
    if name in ("permute", "repeat") and len(args) > 2:  # x.permute(0, 2, 1) beside x.permute((0, 2, 1))
        args = [args[0], list(args[1:])]
    bound = dict(zip(names, args, strict=False))
    bound.update({_KEYWORDS.get(k, k): v for k, v in kwargs.items()})
    if "weight" in names:
        bound["weight_shape"] = list(bound["weight"].shape)
        names = (*names, "weight_shape")
    return {k: _plain(v) for k, v in bound.items() if k not in _SKIP and k in names}


def _adaptive(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"sizes": _plain(kwargs["output_size"])} if "output_size" in kwargs else {}


def record(module: nn.Module, inputs: Sequence[Tensor], *, as_list: bool = False) -> OpGraph:
    """The ops of one forward pass of `module` (in eval mode) on `inputs`; `as_list` hands them over as one list.

    Works on the meta device, where nothing is computed. Raises whatever the module raises.
    """
    import torch
    from torch.overrides import TorchFunctionMode, resolve_name

    names = {id(m): n for n, m in module.named_modules()}
    stack: list[str] = [""]
    tensors: list[Shape] = []
    roots: list[int] = []
    ids: dict[int, int] = {}
    storages: dict[int, int] = {}
    alive: list[Any] = []  # holds every tensor, so that no id is used twice
    weights: list[Weight] = []
    weight_ids: dict[int, int] = {}
    ops: list[Op] = []
    returned: list[tuple[str, int, int]] = []

    for name, p in module.named_parameters():
        weight_ids[id(p)] = len(weights)
        weights.append(Weight(name, tuple(p.shape), p.element_size(), True))
    for name, b in module.named_buffers():
        weight_ids[id(b)] = len(weights)
        weights.append(Weight(name, tuple(b.shape), b.element_size(), False))

    on_meta = all(t.is_meta for t in inputs)

    def storage_of(t: Tensor) -> int:
        return t.untyped_storage()._cdata

    def enter(t: Tensor) -> int:
        index = len(tensors)
        tensors.append(tuple(t.shape))
        ids[id(t)] = index
        roots.append(storages.setdefault(storage_of(t), index))
        alive.append(t)
        return index

    def flat(value: Any) -> list[Any]:
        if isinstance(value, torch.Tensor):
            return [value]
        if isinstance(value, (list, tuple)):
            return [t for v in value for t in flat(v)]
        if isinstance(value, dict):
            return [t for v in value.values() for t in flat(v)]
        return []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            read = flat([args, kwargs])
            versions = [t._version for t in read]
            out = plain_result(func, args, kwargs) if on_meta else None
            if out is None:
                out = func(*args, **kwargs)
            made = flat(out)
            if out is None:  # x[:, :8] = y returns nothing; x has changed
                made = [t for t, v in zip(read, versions, strict=True) if t._version != v]
            if made and read:
                note(func, args, kwargs, read, versions, made)
            elif made:  # a constant made on the way (torch.zeros, arange): an input of later ops, no work
                for t in made:
                    enter(t)
            return out

    def note(func: Any, args: Any, kwargs: Any, read: Any, versions: Any, made: Any) -> None:
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):  # x.T, x.data, x.mT
            name = (resolve_name(func) or "").split(".")[-2]
        name = name.strip("_") if name.strip("_") else name
        for prefix in "ir":  # __iadd__, __radd__
            if name.startswith(prefix) and name[1:] in ("add", "sub", "mul", "div", "truediv", "pow"):
                name = name[1:]
        name = _ALIASES.get(name, name)
        sources, used = [], []
        for t in read:
            if id(t) in weight_ids:
                used.append(weight_ids[id(t)])
            else:
                if id(t) not in ids:
                    enter(t)
                sources.append(ids[id(t)])
        changed = [t for t, v in zip(read, versions, strict=True) if t._version != v and id(t) not in weight_ids]
        read_storages = {storage_of(t) for t in read}
        is_view = not changed and all(storage_of(t) in read_storages for t in made)
        if is_view and all(id(t) in ids for t in made):
            return  # hands its input through (dropout in eval mode, contiguous, to)
        if is_view and not sources:  # a view of a weight is still that weight
            for t in made:
                weight_ids[id(t)] = used[0]
                alive.append(t)
            return
        targets = [enter(t) for t in made]
        ops.append(
            Op(
                name,
                stack[-1],
                tuple(sources),
                tuple(targets),
                tuple(dict.fromkeys(used)),
                _attributes(name, args, kwargs),
                is_view,
                bool(changed),
            )
        )

    def before(mod: nn.Module, _: Any) -> None:
        stack.append(names.get(id(mod), stack[-1]))

    def after(mod: nn.Module, _: Any, out: Any) -> None:
        stack.pop()
        if id(out) in ids and names.get(id(mod)):
            returned.append((names[id(mod)], ids[id(out)], len(ops)))

    handles = [torch.nn.modules.module.register_module_forward_pre_hook(before)]
    handles.append(torch.nn.modules.module.register_module_forward_hook(after, always_call=True))
    sources = [enter(t) for t in inputs]
    try:
        with torch.no_grad(), Recorder():
            out = module(list(inputs)) if as_list else module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    results = flat(out)
    if not results:
        raise TypeError(f"forward returned {type(out).__name__}, expected a tensor or a list of tensors")
    outputs = tuple(ids[id(t)] if id(t) in ids else enter(t) for t in results)
    return OpGraph(tuple(tensors), tuple(roots), tuple(sources), outputs, tuple(ops), tuple(weights), tuple(returned))


def fold_norms(
    module: nn.Module,
    inputs: Sequence[Tensor],
    *,
    within: int = 0,
    as_list: bool = False,
    kept: Collection[nn.Module] = (),
    is_ours: bool = False,
) -> list[folding.Unfused]:
    """Fold every batch norm into the layer before it, in place, where the recorded ops prove that nothing changes.

    For modules that do not fuse themselves; returns the norms that stay, with the reason. See `folding.fold_norms`.
    `is_ours`: no scripted code that would hide a read from the recorder is in it (timm's, torchvision's nets).
    """
    import torch

    from bblab import folding

    def run() -> None:
        module(list(inputs)) if as_list else module(*inputs)

    with torch.no_grad():
        graph = record(module, inputs, as_list=as_list)
        return folding.fold_norms(module, graph, None if is_ours else run, within=within, kept=kept)


# A module that needs real numbers to run is built on the CPU up to this size. Chosen by us: four times ViT-L.
_MAX_RECORDED_BYTES = 5 * 10**9


def record_anywhere(make: Callable[[str], nn.Module], shapes: Sequence[Shape], *, as_list: bool = False) -> OpGraph:
    """Record on the meta device; on the CPU when the module cannot run there (it reads values, makes CPU tensors)."""
    import torch

    def run(device: str) -> OpGraph:
        module = make(device)
        blank = torch.empty if device == "meta" else torch.zeros  # zeros on meta take a detour through Python
        given = [blank((1, *shape), device=device) for shape in shapes]
        return record(module, given, as_list=as_list)

    try:
        return run("meta")
    except Exception as on_meta:
        # Anything else would fail on the CPU too, and a net that is too large must not be allocated to find that out.
        if not isinstance(on_meta, NotImplementedError) and "meta" not in str(on_meta).lower():
            raise
        weights = 0
        with suppress(Exception):  # fusing may need real numbers too; the train form was measured before
            weights = sum(p.numel() * p.element_size() for p in make("meta").parameters())
        if weights > _MAX_RECORDED_BYTES:
            raise
        return run("cpu")


# ---------------------------------------------------------------------------------------------- remembering


@cache
def recorder_version() -> str:
    """Changes when the recorder, the block kit or torch changes: what was remembered then is recorded anew."""
    import hashlib
    import importlib.metadata
    from pathlib import Path

    here = Path(__file__).parent
    text = b"".join((here / name).read_bytes() for name in ("ops.py", "shapes.py", "folding.py", "blockkit.py"))
    try:
        torch_version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch_version = "no torch"
    return hashlib.sha256(text + torch_version.encode()).hexdigest()[:16]


class Memory:
    """Recorded graphs and measured facts by key, in memory and in one SQLite file of the cache folder.

    Losing the file costs time only: what cannot be read or written is recorded again.
    """

    def __init__(self) -> None:
        self._db: sqlite3.Connection | bool | None = None
        self._graphs: dict[str, OpGraph] = {}

    def _open(self) -> sqlite3.Connection | None:
        if self._db is None:
            path = rooms.cache_dir() / "ops.sqlite"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                db = sqlite3.connect(path, timeout=5, isolation_level=None)
                db.execute("PRAGMA synchronous=OFF")  # first: making a new file's log then waits for no disk
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("CREATE TABLE IF NOT EXISTS remembered (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
                self._db = db
            except sqlite3.DatabaseError as error:
                self._db = False
                if "not a database" in str(error) or "malformed" in str(error):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)  # only a cache: begin anew at the next start
            except OSError:
                self._db = False
        return self._db or None  # type: ignore[return-value]

    def text(self, key: str) -> str | None:
        db = self._open()
        if db is None:
            return None
        try:
            row = db.execute("SELECT value FROM remembered WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError:
            return None
        return row[0] if row else None

    def keep_text(self, key: str, value: str) -> None:
        db = self._open()
        if db is not None:
            with suppress(sqlite3.DatabaseError):  # a full disk or a locked file: it is recorded again next time
                db.execute("INSERT OR REPLACE INTO remembered VALUES (?, ?)", (key, value))

    def graph(self, key: str, make: Callable[[], OpGraph]) -> OpGraph:
        """The remembered graph, else the one that `make` records."""
        known = self._graphs.get(key)
        if known is None:
            text = self.text(key)
            if text is not None:
                try:
                    known = OpGraph.from_json(text)
                except (ValueError, TypeError, KeyError):
                    known = None
            if known is None:
                known = make()
                self.keep_text(key, known.to_json())
            self._graphs[key] = known
        return known

    def forget(self) -> None:
        """Drop what is held in memory (tests, a changed cache folder)."""
        if isinstance(self._db, sqlite3.Connection):
            self._db.close()
        self._db = None
        self._graphs.clear()


MEMORY = Memory()


# ---------------------------------------------------------------------------------------------- blocks of a spec


def _typename(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {', '.join(type(v).__name__ for v in value) or 'nothing'}"
    return type(value).__name__


Form = Literal["train", "deploy"]


def block_graph(row: Row, info: BlockInfo, shapes: tuple[Shape, ...], form: Form) -> OpGraph:
    """What a row's block does with maps of these shapes (channels, height, width), in one form.

    Remembered by the block's code, its arguments and the shapes. Raises BblabError, in the words of the spec, when
    the block refuses its arguments or fails on these shapes.
    """
    key = "|".join((recorder_version(), blocks.code_version(info), row.key, repr(shapes), form))
    return MEMORY.graph(key, lambda: _record_block(row, info, shapes, form))


def deploy_block(
    module: nn.Module,
    info: BlockInfo,
    shapes: tuple[Shape, ...],
    device: str,
    unfused: list[folding.Unfused] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A block fused in place, for a module of one's own; a user's module also gets its batch norms folded.

    A user's fuse method that raises, or whose result does not run or gives another shape, leaves the train form;
    `unfused` then has the layer and the reason, as it has every norm that stays. On the meta device a fuse method that
    fails raises NotImplementedError: it may need real numbers.
    """
    import torch

    from bblab import blockkit, folding

    module = module.eval()
    if info.origin != "lab":
        with shapes_only():
            return blockkit.deploy_in_place(module)
    several = len(shapes) > 1
    stay: list[folding.Unfused] = [] if unfused is None else unfused
    with torch.no_grad(), shapes_only():
        example = [torch.zeros((1, *shape), device=device, dtype=dtype) for shape in shapes]
        before = record(module, example, as_list=several)
        whole = folding.Snapshot(module)
        made = folding.deploy(module)
        fused, failed = made.module, made.failed
        why = _wrong_form(fused, example, several, before) if made.calls else ""
        if device == "meta" and (why or failed):
            raise NotImplementedError(f"on the meta device the deploy form {why or failed[0][1]}")
        if why:
            whole.restore()
            stay.append(("", f"its deploy form {why}", True))
            return module
        stay += failed
        if any(folding.is_norm(m) for m in fused.modules()):
            parts = folding.Snapshot(fused)
            left = fold_norms(fused, example, as_list=several, kept=made.kept)
            why = _wrong_form(fused, example, several, before)
            if why:  # the forward looks at the norm itself, say
                parts.restore()
                norms = [name for name, m in fused.named_modules() if folding.is_norm(m)]
                left = [(name, f"with it folded the block {why}", False) for name in norms]
            stay += left
    return fused


def _wrong_form(module: nn.Module, example: Sequence[Tensor], several: bool, before: OpGraph) -> str:
    """What is wrong with a fused block (it does not run, or gives other shapes than the train form); or nothing."""
    from bblab import folding

    try:
        shapes = record(module, example, as_list=several).output_shapes
    except (Exception, SystemExit) as error:
        return f"does not run: {folding.words(error)}"
    if shapes != before.output_shapes:
        theirs, ours = (" and ".join("x".join(map(str, s)) for s in each) for each in (shapes, before.output_shapes))
        return f"gives {theirs}, the train form {ours}"
    return ""


def _record_block(row: Row, info: BlockInfo, shapes: tuple[Shape, ...], form: Form) -> OpGraph:
    in_ch: int | tuple[int, ...] = shapes[0][0] if len(shapes) == 1 else tuple(s[0] for s in shapes)

    unfused: list[folding.Unfused] = []

    def make(device: str) -> nn.Module:
        from torch import nn

        unfused.clear()
        module = blocks.make(row, in_ch, info, device=device)
        if not isinstance(module, nn.Module):
            raise BblabError(f"{info.class_name} is no nn.Module", hint=f"let it inherit from nn.Module in {info.file}")
        module = module.eval() if form == "train" else deploy_block(module, info, shapes, device, unfused)
        module.register_forward_hook(check_output)
        return module

    def check_output(_: nn.Module, __: Any, out: Any) -> None:
        import torch

        several = isinstance(row.out, tuple) and isinstance(out, (list, tuple))
        if not all(isinstance(t, torch.Tensor) for t in (out if several else [out])):
            wanted = "a list of tensors" if isinstance(row.out, tuple) else "a tensor"
            raise TypeError(f"forward returned {_typename(out)}, expected {wanted}")

    size = " and ".join("x".join(map(str, s)) for s in shapes)
    try:
        return replace(record_anywhere(make, shapes, as_list=len(shapes) > 1), unfused=tuple(unfused))
    except BblabError:
        raise
    except (Exception, SystemExit) as error:
        said = str(error).strip().splitlines()
        what = said[0] if said else type(error).__name__
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        if isinstance(error, NotImplementedError) and "forward" in what:
            name, what = "", "it has no forward()"
        elif isinstance(row.out, tuple) and isinstance(error, TypeError):
            name, what = "", f"it makes one map, and out is a list ({type(error).__name__}: {what})"
        place = f"{info.file}{blocks.line_in(info.file, error)}"
        hint = "" if info.origin == "built-in" else f"the block is {info.class_name} in {place}"
        raise BblabError(f"{row.kind} on a map of {size}: {name}{what}", hint=hint) from error
