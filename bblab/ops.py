"""block -> OpGraph: recorded on the meta device, remembered on disk.

A `TorchFunctionMode` sees every torch call of one forward pass, by the name that the code used (so that
`scaled_dot_product_attention` stays one op). What runs below Python's calls (TorchScript, vmap) is seen by a
`TorchDispatchMode`. The result is a plain value without torch in it; params, MACs, memory, receptive field and latency
by op all read this list, and nothing else.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from bblab import aten, blocks, rooms
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
    `is_in_place`: overwrites its first input. `torch_macs`: what torch's own counter saw during the call (None where
    it did not run); `inside`: the different ATen ops of the call, by name, where it ran.
    """

    name: str
    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    params: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    is_view: bool = False
    is_in_place: bool = False
    torch_macs: int | None = None
    inside: tuple[str, ...] = ()


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
    torch_macs: int | None = None
    """MACs of the whole pass by torch's own counter; None where it did not run."""
    escapes: tuple[str, ...] = ()
    """Calls that carry values out of torch (`numpy (layer)`), where nothing can be followed."""

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
                    + ([] if o.torch_macs is None else [o.torch_macs, o.inside])
                    for o in self.ops
                ],
                [[w.name, w.shape, w.itemsize, int(w.is_learnable)] for w in self.params],
                self.module_outputs,
                self.unfused,
                self.torch_macs,
                self.escapes,
            ],
            separators=(",", ":"),
        )

    @staticmethod
    def from_json(text: str) -> OpGraph:
        tensors, roots, inputs, outputs, ops, params, modules, unfused, torch_macs, escapes = json.loads(text)
        return OpGraph(
            tuple(tuple(t) for t in tensors),
            tuple(roots),
            tuple(inputs),
            tuple(outputs),
            tuple(
                Op(
                    n,
                    la,
                    tuple(i),
                    tuple(o),
                    tuple(p),
                    a,
                    bool(f & 1),
                    bool(f & 2),
                    *((rest[0], tuple(rest[1])) if rest else ()),
                )
                for n, la, i, o, p, a, f, *rest in ops
            ),
            tuple(Weight(n, tuple(s), b, bool(le)) for n, s, b, le in params),
            tuple((n, t, k) for n, t, k in modules),
            tuple((layer, why, has_failed) for layer, why, has_failed in unfused),
            torch_macs,
            tuple(escapes),
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
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
    "deform_conv2d": ("input", "weight"),
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
}
# The two factors of a product by their positions and names; what is added to it is no factor.
_PRODUCTS: dict[str, tuple[tuple[int, str], tuple[int, str]]] = {
    "matmul": ((0, "input"), (1, "other")),
    "rmatmul": ((1, "other"), (0, "input")),
    "mm": ((0, "input"), (1, "mat2")),
    "bmm": ((0, "input"), (1, "mat2")),
    "mv": ((0, "input"), (1, "vec")),
    "dot": ((0, "input"), (1, "tensor")),
    "vdot": ((0, "input"), (1, "other")),
    "inner": ((0, "input"), (1, "other")),
    "addmm": ((1, "mat1"), (2, "mat2")),
    "addbmm": ((1, "batch1"), (2, "batch2")),
    "baddbmm": ((1, "batch1"), (2, "batch2")),
    "addmv": ((1, "mat"), (2, "vec")),
    "addr": ((1, "vec1"), (2, "vec2")),
    "tensordot": ((0, "a"), (1, "b")),
    "linalg_matmul": ((0, "input"), (1, "other")),
    "linalg_vecdot": ((0, "x"), (1, "y")),
}
_CHAINS = ("linalg_multi_dot", "chain_matmul", "multi_dot")
_RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split())
_HEADS = (  # F.multi_head_attention_forward, torch 2.13
    "query", "key", "value", "embed_dim", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v",
    "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training", "key_padding_mask", "need_weights",
    "attn_mask", "use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "static_k", "static_v",
)  # fmt: skip
# Calls that carry a tensor's values out of torch. `item` and `bool` do too, to decide something; that is no map.
_ESCAPES = frozenset(("numpy", "array", "tolist", "dlpack", "cpu_numpy"))
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
    if name in _PRODUCTS:
        (at, first), (_, _) = _PRODUCTS[name]
        left = kwargs[first] if first in kwargs else args[at]
        product: dict[str, Any] = {"contracted": _contracted(name, left, args, kwargs)}
        if name == "tensordot":
            product["dims"] = _tensordot_dims(left, args, kwargs)
        return product
    if name == "batch_norm":  # of the map's own statistics, where it keeps none
        training = kwargs.get("training", args[5] if len(args) > 5 else False)
        return {"training": training is True}
    if name == "einsum":
        return {"equation": args[0] if isinstance(args[0], str) else None}
    if name == "multi_head_attention_forward":
        heads = {**dict(zip(_HEADS, args, strict=False)), **kwargs}
        shaped = {k: list(v.shape) for k, v in heads.items() if k in _HEADS and hasattr(v, "shape")}
        return {"shapes_of": shaped, "add_zero_attn": bool(heads.get("add_zero_attn"))}
    if name in _RECURRENT:
        if name.endswith("_cell"):
            matrices: Sequence[Any] = args[2:4]
        else:  # the last list of tensors: a matrix and a vector for every gate, layer and direction
            matrices = [v for v in args if isinstance(v, (list, tuple))][-1]
        steps = args[0].numel() // max(1, args[0].shape[-1])  # times the batch; a packed input has a row for each
        return {"steps": steps, "matrices": [t.numel() for t in matrices if t.dim() == 2]}
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


def _contracted(name: str, left: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The length that is summed over: the last axis of the left factor, where it has no other name."""
    if name == "addr":
        return 1
    if name == "linalg_vecdot":
        return left.shape[kwargs.get("dim", -1)]
    if name == "addbmm":
        return left.shape[0] * left.shape[-1]
    if name == "tensordot":
        return _product(left.shape[d] for d in _tensordot_dims(left, args, kwargs)[0])
    return left.shape[-1]


def _tensordot_dims(left: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[list[int]]:
    """The summed axes of both factors."""
    dims = kwargs["dims"] if "dims" in kwargs else (args[2] if len(args) > 2 else 2)
    if hasattr(dims, "tolist"):
        dims = dims.tolist()
    if isinstance(dims, int):
        return [list(range(left.dim() - dims, left.dim())), list(range(dims))]
    first, second = dims
    return [[first] if isinstance(first, int) else list(first), [second] if isinstance(second, int) else list(second)]


def _factors(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The tensors that a product multiplies, in the order of its rule; empty for other calls."""
    if name in _PRODUCTS:
        return [kwargs[word] if word in kwargs else args[at] for at, word in _PRODUCTS[name]]
    if name in _CHAINS:
        return list(args[0]) if isinstance(args[0], (list, tuple)) else list(args)
    if name == "einsum" and isinstance(args[0], str):
        operands = args[1] if isinstance(args[1], (list, tuple)) else args[1:]
        return list(operands)
    if name in ("scaled_dot_product_attention", "flex_attention"):
        bound = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
        return [bound["query"], bound["key"], bound["value"]]
    return []


def _adaptive(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"sizes": _plain(kwargs["output_size"])} if "output_size" in kwargs else {}


def record(
    module: nn.Module, inputs: Sequence[Tensor], *, as_list: bool = False, is_deep: bool = True, counts: bool = False
) -> OpGraph:
    """The ops of one forward pass of `module` (in eval mode) on `inputs`; `as_list` hands them over as one list.

    Works on the meta device, where nothing is computed. `is_deep`: ops that run below Python's calls are seen too;
    without it they are not, for blocks that are known to have none. `counts`: torch's own counter counts beside, each
    call and the whole (attention unfused, which it does not know fused on a CPU). Raises whatever the module raises.
    """
    import torch
    from torch.overrides import TorchFunctionMode, resolve_name
    from torch.utils._python_dispatch import TorchDispatchMode

    names = {id(m): n for n, m in module.named_modules()}
    stack: list[str] = [""]
    tensors: list[Shape] = []
    roots: list[int] = []
    ids: dict[int, int] = {}
    storages: dict[int, int] = {}
    geometries: dict[tuple[Any, ...], int] = {}  # a tensor that C++ wrapped anew is known by its place in memory
    alive: list[Any] = []  # holds every tensor, so that no id is used twice
    weights: list[Weight] = []
    weight_ids: dict[int, int] = {}
    weight_storages: dict[int, int] = {}
    ops: list[Op] = []
    returned: list[tuple[str, int, int]] = []
    escapes: dict[str, None] = {}
    inside: list[str] = []  # the ATen ops of the call in progress
    depth = 0  # of calls in progress: what runs inside of one belongs to it

    def storage_of(t: Tensor) -> int:
        return t.untyped_storage()._cdata

    for is_learnable, found in ((True, module.named_parameters()), (False, module.named_buffers())):
        for name, p in found:
            weight_ids[id(p)] = len(weights)
            alive.append(p)
            with suppress(NotImplementedError, RuntimeError):  # a lazy parameter
                if p.numel():
                    weight_storages[storage_of(p)] = len(weights)
            weights.append(Weight(name, tuple(p.shape), p.element_size(), is_learnable))

    on_meta = all(t.is_meta for t in inputs)

    def version_of(t: Tensor) -> int:
        return -1 if t.is_inference() else t._version  # inference tensors count no changes

    def geometry_of(t: Tensor) -> tuple[Any, ...]:
        return (storage_of(t), t.storage_offset(), tuple(t.shape), t.stride())

    def enter(t: Tensor) -> int:
        index = len(tensors)
        tensors.append(tuple(t.shape))
        ids[id(t)] = index
        roots.append(storages.setdefault(storage_of(t), index))
        if is_deep and t.layout is torch.strided:
            geometries[geometry_of(t)] = index
        alive.append(t)
        return index

    def known(t: Tensor) -> int | None:
        """The tensor's index; None where no op made it and no input brought it."""
        if id(t) in ids or not is_deep or t.layout is not torch.strided or storage_of(t) not in storages:
            return ids.get(id(t))
        index = geometries.get(geometry_of(t))
        if index is None:  # a view that was made where nobody saw it
            index = enter(t)
            ops.append(Op("as_strided", stack[-1], (roots[index],), (index,), (), is_view=True))
        ids[id(t)] = index
        alive.append(t)
        return index

    def weight_of(t: Tensor) -> int | None:
        index = weight_ids.get(id(t))
        if index is None and is_deep and id(t) not in ids and t.layout is torch.strided:
            return weight_storages.get(storage_of(t))
        return index

    def flat(value: Any) -> list[Any]:
        if isinstance(value, torch.Tensor):
            return [value]
        if isinstance(value, (list, tuple)):
            return [t for v in value for t in flat(v)]
        if isinstance(value, dict):
            return [t for v in value.values() for t in flat(v)]
        return []

    if counts:
        from torch.utils.flop_counter import FlopCounterMode, _FlopCounterMode

        # As below: torch would import its compiler to keep it away; the function itself, put where it looks, does too.
        counting: Any = getattr(_FlopCounterMode.__torch_dispatch__, "__wrapped__", None)
        if counting is not None and not hasattr(counting, "__dynamo_disable"):
            setattr(counting, "__dynamo_disable", counting)
        counter = FlopCounterMode(display=False)

    def counted() -> int:
        return counter.get_total_flops() // 2 if counts else 0  # it counts a multiply-add as two

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal depth
            kwargs = kwargs or {}
            if depth:
                return func(*args, **kwargs)
            read = flat([args, kwargs])
            if is_deep and (aten.is_op(func) or aten.is_transforming()):
                return func(*args, **kwargs)  # the dispatcher announces it
            versions = [version_of(t) for t in read]
            before, depth = counted(), 1
            inside.clear()
            try:
                out = plain_result(func, args, kwargs, with_products=not counts) if on_meta else None
                if out is None:
                    out = func(*args, **kwargs)
                made = flat(out)
                changed = [t for t, v in zip(read, versions, strict=True) if version_of(t) != v]
                if out is None:  # x[:, :8] = y returns nothing; x has changed
                    made = changed
                if made and read:
                    note(_call_name(func, resolve_name), args, kwargs, read, changed, made, counted() - before)
                elif made:  # a constant made on the way (torch.zeros, arange): an input of later ops, no work
                    for t in made:
                        enter(t)
                elif _call_name(func, resolve_name) in _ESCAPES and any(known(t) is not None for t in read):
                    name = _call_name(func, resolve_name)
                    escapes[f"{name} ({stack[-1]})" if stack[-1] else name] = None
            finally:
                depth = 0
            return out

    class Below(TorchDispatchMode):
        supports_higher_order_operators = True

        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # else torch imports its compiler (4 s of CPU time) to keep it away from here

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal depth
            kwargs = kwargs or {}
            if depth:
                if counts:
                    inside.append(aten.plain_name(func))
                return func(*args, **kwargs)
            before, depth = counted(), 1
            inside[:] = [aten.plain_name(func)]
            try:
                out = func(*args, **kwargs)
                read, made = flat([args, kwargs]), flat(out)
                changed = aten.written(func, args, kwargs)
                made = made or changed
                if made and read:
                    name, given, named = aten.as_call(func, args, kwargs)
                    note(name, given, named, read, changed, made, counted() - before)
                else:
                    for t in made:
                        enter(t)
            finally:
                depth = 0
            return out

    def note(name: str, args: Any, kwargs: Any, read: Any, changed: Any, made: Any, seen: int) -> None:
        sources, used = [], []
        for t in read:
            weight = weight_of(t)
            if weight is not None:
                used.append(weight)
                continue
            index = known(t)
            sources.append(enter(t) if index is None else index)
        changed = [t for t in changed if weight_of(t) is None]
        read_storages = {storage_of(t) for t in read}
        is_view = not changed and all(storage_of(t) in read_storages for t in made)
        if is_view and all(id(t) in ids for t in made):
            return  # hands its input through (dropout in eval mode, contiguous, to)
        if is_view and not sources:  # a view of a weight is still that weight
            for t in made:
                weight_ids[id(t)] = used[0]
                alive.append(t)
            return
        attrs = _attributes(name, args, kwargs)
        if factors := _factors(name, args, kwargs):
            attrs["shapes"] = [list(t.shape) for t in factors]
            attrs["read"] = [None if weight_of(t) is not None else known(t) for t in factors]
        targets = [enter(t) for t in made]
        ops.append(
            Op(
                name,
                stack[-1],
                tuple(sources),
                tuple(targets),
                tuple(dict.fromkeys(used)),
                attrs,
                is_view,
                bool(changed),
                seen if counts else None,
                tuple(dict.fromkeys(inside)) if counts else (),
            )
        )

    def before(mod: nn.Module, _: Any) -> None:
        stack.append(names.get(id(mod), stack[-1]))

    def after(mod: nn.Module, _: Any, out: Any) -> None:
        stack.pop()
        if names.get(id(mod)) and isinstance(out, torch.Tensor) and not aten.is_transforming():
            index = known(out)
            if index is not None:
                returned.append((names[id(mod)], index, len(ops)))

    handles = [torch.nn.modules.module.register_module_forward_pre_hook(before)]
    handles.append(torch.nn.modules.module.register_module_forward_hook(after, always_call=True))
    sources = [enter(t) for t in inputs]
    try:
        with ExitStack() as modes:
            modes.enter_context(torch.no_grad())
            if counts:
                from torch.nn.attention import SDPBackend, sdpa_kernel

                modes.enter_context(sdpa_kernel(SDPBackend.MATH))
                modes.enter_context(counter)
            if is_deep:
                modes.enter_context(Below())
            modes.enter_context(Recorder())
            out = module(list(inputs)) if as_list else module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    results = flat(out)
    if not results:
        raise TypeError(f"forward returned {type(out).__name__}, expected a tensor or a list of tensors")
    indexes = [known(t) for t in results]
    outputs = tuple(enter(t) if i is None else i for t, i in zip(results, indexes, strict=True))
    return OpGraph(
        tuple(tensors), tuple(roots), tuple(sources), outputs, tuple(ops), tuple(weights), tuple(returned),
        torch_macs=counted() if counts else None, escapes=tuple(escapes),
    )  # fmt: skip


def _call_name(func: Any, resolve_name: Callable[[Any], str | None]) -> str:
    """The name under which the rules know a call of torch."""
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):  # x.T, x.data, x.mT
        name = (resolve_name(func) or "").split(".")[-2]
    name = name.strip("_") if name.strip("_") else name
    for prefix in "ir":  # __iadd__, __radd__
        if name.startswith(prefix) and name[1:] in ("add", "sub", "mul", "div", "truediv", "pow"):
            name = name[1:]
    return _ALIASES.get(name, name)


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
        plan = folding.planned(module, graph, None if is_ours else run, within=within)
        with shapes_only():
            return folding.fold_norms(plan, kept)


# A module that needs real numbers to run is built on the CPU up to this size. Chosen by us: four times ViT-L.
_MAX_RECORDED_BYTES = 5 * 10**9


def record_anywhere(
    make: Callable[[str], nn.Module],
    shapes: Sequence[Shape],
    *,
    as_list: bool = False,
    is_deep: bool = True,
    counts: bool = False,
) -> OpGraph:
    """Record on the meta device; on the CPU when the module cannot run there (it reads values, makes CPU tensors)."""
    import torch

    def run(device: str) -> OpGraph:
        module = make(device)
        blank = torch.empty if device == "meta" else torch.zeros  # zeros on meta take a detour through Python
        given = [blank((1, *shape), device=device) for shape in shapes]
        return record(module, given, as_list=as_list, is_deep=is_deep, counts=counts)

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
    text = b"".join(
        (here / name).read_bytes() for name in ("ops.py", "aten.py", "shapes.py", "folding.py", "blockkit.py")
    )
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
    with torch.no_grad():  # no `shapes_only` around a recording: it would be told of other tensors than the net's own
        example = [torch.zeros((1, *shape), device=device, dtype=dtype) for shape in shapes]
        before = record(module, example, as_list=several)
        whole = folding.Snapshot(module)
        with shapes_only():
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

    def make_row(other: Row, device: str) -> nn.Module:
        return blocks.make(other, in_ch, info, device=device).eval()

    def make(device: str) -> nn.Module:
        from torch import nn

        unfused.clear()
        module = blocks.make(row, in_ch, info, device=device)
        if not isinstance(module, nn.Module):
            raise BblabError(f"{info.class_name} is no nn.Module", hint=f"let it inherit from nn.Module in {info.file}")
        _refuse_lazy(module, info)
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
        is_own = info.origin != "built-in"  # built-in blocks run nothing below Python's calls: see their tests
        graph = record_anywhere(make, shapes, as_list=len(shapes) > 1, is_deep=is_own, counts=is_own)
        return replace(graph, unfused=tuple(unfused))
    except BblabError:
        raise
    except (Exception, SystemExit) as error:
        said = str(error).strip().splitlines()
        what = said[0] if said else type(error).__name__
        name = "" if isinstance(error, ValueError) or not said else f"{type(error).__name__}: "
        if isinstance(error, NotImplementedError) and "forward" in what:
            name, what = "", "it has no forward()"
        elif isinstance(row.out, tuple) and isinstance(error, TypeError):
            name, what = "", f"it makes one map, and out is a list ({type(error).__name__}: {what})"
        place = f"{info.file}{blocks.line_in(info.file, error)}"
        if info.origin == "built-in":
            raise BblabError(f"{row.kind} on a map of {size}: {name}{what}") from error
        hint = f"the block is {info.class_name} in {place}"
        why = _what_it_needs(row, in_ch, make_row, shapes)
        raise BblabError(f"{row.kind} on a map of {size}: {why}{name}{what}", hint=hint) from error


def _refuse_lazy(module: nn.Module, info: BlockInfo) -> None:
    """Raises BblabError for layers whose size depends on what they are fed first: a spec's sizes would be guesses."""
    from torch.nn.parameter import is_lazy

    for name, layer in module.named_modules():
        if any(is_lazy(t) for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None):
            kind = type(layer).__name__
            plain = kind.removeprefix("Lazy")
            raise BblabError(
                f"{info.class_name}: {name or 'it'} is a {kind}, which has no size before it has run",
                hint=f"write nn.{plain} with its input channels in {info.file}",
            )


def _what_it_needs(row: Row, in_ch: Any, make_row: Callable[[Row, str], nn.Module], shapes: tuple[Shape, ...]) -> str:
    """ "it runs at stride 1 only; " where the row asks a lab's block for what it cannot do; else nothing."""
    tries = []
    if row.stride != 1:
        tries.append((replace(row, stride=1), f"it runs at stride 1 only, the row says {row.stride}; "))
    if isinstance(in_ch, int) and row.out != in_ch:
        keeping = replace(row, out=in_ch)
        tries.append((keeping, f"it runs only where out equals its {in_ch} input channels, the row says {row.out}; "))
        if row.stride != 1:
            both = f"it runs only at stride 1 and where out equals its {in_ch} input channels; "
            tries.append((replace(keeping, stride=1), both))
    for other, words in tries:
        with suppress(Exception, SystemExit):
            record_anywhere(lambda device, other=other: make_row(other, device), shapes, as_list=len(shapes) > 1)  # type: ignore[misc]
            return words
    return ""
