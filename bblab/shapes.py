"""The result of a torch call on the meta device, where its shape is plain: made here, without asking torch.

torch answers relu, hardswish, batch_norm and the like on meta in Python, 0.4 to 2 ms a call, and the first such call of
a process imports its compiler (5 s on two shared cores, torch 2.13). Recording a block needs shapes only. Whatever is
not plain (other layouts, odd arguments, a wrong size) is left to torch, which also says best what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

Shape = Sequence[int]


_MULTIPLYING = frozenset(("linear", "matmul", "__matmul__", "conv2d", "einsum", "scaled_dot_product_attention"))


def plain_result(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, with_products: bool = True
) -> Tensor | None:
    """An empty meta tensor as `func` would return it; None where torch must be asked.

    Without `with_products` torch is asked for every convolution and product: its counter wants to see them.
    """
    name = getattr(func, "__name__", "")
    if not with_products and name in _MULTIPLYING:
        return None
    rule = _RULES.get(name)
    if rule is None or not args:
        return None
    if name == "einsum":
        first = args[1] if len(args) > 1 else None
    else:
        first = args[0]
    lead: Any = first[0] if isinstance(first, (list, tuple)) and first else first
    if not _is_plain(lead, in_any_order=name in _MAKES_CONTIGUOUS):
        return None
    shape = rule(args, kwargs)
    if shape is None:
        return None
    import torch

    return torch.empty(tuple(shape), dtype=lead.dtype, device="meta")


def shapes_only() -> TorchFunctionMode:
    """A context that answers plain calls on meta tensors here, while a module is built or fused."""
    return _shapes_only()()


@cache
def _shapes_only() -> type[TorchFunctionMode]:
    from torch.overrides import TorchFunctionMode

    class ShapesOnly(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            # How the weights of a fused layer lie in memory does not matter: their shapes do.
            args = [_packed(a) for a in args]
            made = plain_result(func, args, kwargs or {})
            return func(*args, **(kwargs or {})) if made is None else made

    return ShapesOnly


def _packed(value: Any) -> Any:
    import torch

    if (
        isinstance(value, torch.Tensor)
        and value.is_meta
        and value.layout is torch.strided
        and not value.is_contiguous()
    ):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return value


def _is_plain(value: Any, *, in_any_order: bool = False) -> bool:
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.is_meta
        and value.layout is torch.strided
        and (in_any_order or value.is_contiguous())
        and value.is_floating_point()
    )


def _pair(value: Any, default: Any = 1) -> tuple[int, int] | None:
    """(height, width) of an argument given as one number or two; None for anything else."""
    value = default if value is None or value == [] or value == () else value
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return (value[0], value[1])
    return None


def _bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments by name; None where one is not among `names`."""
    if len(args) > len(names) or not set(kwargs) <= set(names):
        return None
    return {**dict(zip(names, args, strict=False)), **kwargs}


# ---------------------------------------------------------------------------------------------- rules

Rule = Callable[[Sequence[Any], Mapping[str, Any]], Shape | None]


def _same(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """Elementwise of one map. In-place calls and casts are left to torch."""
    if kwargs.get("inplace") or kwargs.get("dtype") is not None or True in args[1:]:
        return None
    return args[0].shape


def _batch_norm(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    bound = _bind(
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"), args, kwargs
    )
    if bound is None or bound.get("training") or bound.get("eps", 1e-5) <= 0:
        return None
    statistics = [bound.get(key) for key in ("running_mean", "running_var", "weight", "bias")]
    if any(s is not None and s.shape != args[0].shape[1:2] for s in statistics) or statistics[0] is None:
        return None
    return args[0].shape


def _broadcast(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """a + b of equal types."""
    if kwargs or len(args) != 2:
        return None
    a, b = args
    if isinstance(b, (int, float)) and not isinstance(b, bool):
        return a.shape
    if not _is_plain(b) or b.dtype != a.dtype:
        return None
    rank = max(a.dim(), b.dim())
    long, other = ([1] * (rank - t.dim()) + list(t.shape) for t in (a, b))
    if any(x != y and 1 not in (x, y) for x, y in zip(long, other, strict=True)):
        return None
    return [y if x == 1 else x for x, y in zip(long, other, strict=True)]


def _cat(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    bound = _bind(("tensors", "dim"), args, kwargs)
    if bound is None or not isinstance(bound["tensors"], (list, tuple)):
        return None
    parts, dim = bound["tensors"], bound.get("dim", 0)
    first = parts[0]
    if not isinstance(dim, int) or not -first.dim() <= dim < first.dim():
        return None
    dim %= first.dim()
    for p in parts:
        is_alike = _is_plain(p) and p.dtype == first.dtype and p.dim() == first.dim()
        if not is_alike or any(p.shape[d] != n for d, n in enumerate(first.shape) if d != dim):
            return None
    return [*first.shape[:dim], sum(p.shape[dim] for p in parts), *first.shape[dim + 1 :]]


def _linear(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    bound = _bind(("input", "weight", "bias"), args, kwargs)
    if bound is None or bound["weight"].dim() != 2 or bound["weight"].shape[1] != args[0].shape[-1]:
        return None
    if bound["weight"].dtype != args[0].dtype:
        return None
    return [*args[0].shape[:-1], bound["weight"].shape[0]]


def _slide(x: Tensor, channels: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Shape | None:
    k, s, p, d = _pair(kernel), _pair(stride, kernel), _pair(padding, 0), _pair(dilation)
    if x.dim() != 4 or None in (k, s, p, d):
        return None
    assert k and s and p and d
    if min(*k, *s, *d) < 1 or min(p) < 0:
        return None
    sides = [(x.shape[2 + a] + 2 * p[a] - d[a] * (k[a] - 1) - 1) // s[a] + 1 for a in (0, 1)]
    return [x.shape[0], channels, *sides] if min(sides) > 0 else None


def _conv2d(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    bound = _bind(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, kwargs)
    if bound is None or bound["weight"].dim() != 4 or bound["weight"].dtype != args[0].dtype:
        return None
    weight, groups, bias = bound["weight"], bound.get("groups", 1), bound.get("bias")
    if weight.shape[1] * groups != args[0].shape[1] or weight.shape[0] % groups:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    stride = bound.get("stride", 1)
    return _slide(args[0], weight.shape[0], list(weight.shape[2:]), stride, bound.get("padding"), bound.get("dilation"))


def _max_pool2d(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return _pool(_bind(names, args, kwargs), args)


def _avg_pool2d(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return _pool(_bind(names, args, kwargs), args)


def _pool(bound: dict[str, Any] | None, args: Sequence[Any]) -> Shape | None:
    if bound is None or bound.get("return_indices"):
        return None
    kernel, padding = _pair(bound["kernel_size"]), _pair(bound.get("padding"), 0)
    if kernel is None or padding is None or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        return None  # torch refuses a padding above half the kernel
    shape = _slide(args[0], args[0].shape[1], kernel, bound.get("stride"), padding, bound.get("dilation"))
    if shape is None or not bound.get("ceil_mode"):
        return shape
    stride, gap = _pair(bound.get("stride"), kernel), _pair(bound.get("dilation"))
    assert stride and gap
    sides = []
    for axis in (0, 1):
        size, p, s = args[0].shape[2 + axis], padding[axis], stride[axis]
        out = -(-(size + 2 * p - gap[axis] * (kernel[axis] - 1) - 1) // s) + 1
        sides.append(out - 1 if (out - 1) * s >= size + p else out)  # no window starts in the far padding
    return [*args[0].shape[:2], *sides]


def _adaptive_avg_pool2d(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    bound = _bind(("input", "output_size"), args, kwargs)
    size = _pair(bound["output_size"]) if bound is not None else None
    if size is None or args[0].dim() != 4 or min(size) < 1:
        return None
    return [*args[0].shape[:2], *size]


def _mean(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """The mean over some dimensions."""
    bound = _bind(("input", "dim", "keepdim"), args, kwargs)
    if bound is None or bound.get("dim") is None:
        return None
    x, dim = args[0], bound["dim"]
    dims = [dim] if isinstance(dim, int) else list(dim)
    if not dims or any(not isinstance(d, int) or not -x.dim() <= d < x.dim() for d in dims):
        return None
    gone = {d % x.dim() for d in dims}
    if bound.get("keepdim"):
        return [1 if d in gone else n for d, n in enumerate(x.shape)]
    return [n for d, n in enumerate(x.shape) if d not in gone]


def _stack(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    parts = args[0]
    if kwargs or len(args) > 1 or any(not _is_plain(p) or p.shape != parts[0].shape for p in parts):
        return None
    return [len(parts), *parts[0].shape] if len({p.dtype for p in parts}) == 1 else None


def _interpolate(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """Nearest or bilinear, by a whole factor or to a size."""
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    bound = _bind(names, args, kwargs)
    if bound is None or args[0].dim() != 4 or bound.get("recompute_scale_factor"):
        return None
    if bound.get("mode", "nearest") not in ("nearest", "bilinear"):
        return None
    if bound.get("size") is not None:
        size = _pair(bound["size"])
        return None if size is None or min(size) < 1 else [*args[0].shape[:2], *size]
    factor = bound.get("scale_factor")
    if not isinstance(factor, (int, float)) or factor < 1 or factor != int(factor):
        return None
    return [*args[0].shape[:2], *(n * int(factor) for n in args[0].shape[2:])]


def _einsum(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """Two factors, every letter named, the result written out."""
    equation = args[0].replace(" ", "") if isinstance(args[0], str) else ""
    given, arrow, result = equation.partition("->")
    terms = given.split(",")
    if kwargs or not arrow or "." in equation or len(terms) != 2 or len(args) != 3:
        return None
    sizes: dict[str, int] = {}
    for term, t in zip(terms, args[1:], strict=True):
        if not _is_plain(t) or t.dtype != args[1].dtype or len(term) != t.dim():
            return None
        for letter, n in zip(term, t.shape, strict=True):
            if sizes.setdefault(letter, n) != n:
                return None
    return [sizes[letter] for letter in result] if set(result) <= set(sizes) else None


def _normalized(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """layer_norm and softmax keep the shape; casts are left to torch."""
    return None if kwargs.get("dtype") is not None else args[0].shape


def _attention(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """softmax(q k) v of equal batches and heads."""
    bound = _bind(("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"), args, kwargs)
    if bound is None:
        return None
    q, k, v = bound["query"], bound["key"], bound["value"]
    if not all(_is_plain(t, in_any_order=True) and t.dtype == q.dtype and t.dim() == q.dim() for t in (k, v)):
        return None
    if q.shape[:-2] != k.shape[:-2] or k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1]:
        return None
    return [*q.shape[:-1], v.shape[-1]]


def _matmul(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Shape | None:
    """A matrix times a matrix or vector."""
    if kwargs or len(args) != 2 or not _is_plain(args[1]) or args[0].dtype != args[1].dtype:
        return None
    a, b = args
    if a.dim() != 2 or b.dim() not in (1, 2) or a.shape[1] != b.shape[0]:
        return None
    return [a.shape[0], *b.shape[1:]]


_MAKES_CONTIGUOUS = frozenset(
    ("scaled_dot_product_attention", "batch_norm", "layer_norm", "conv2d", "linear", "max_pool2d", "avg_pool2d")
)
"""Calls whose result lies in plain order whatever the order of their input."""

_ELEMENTWISE = (
    "relu relu6 hardtanh hardswish hardsigmoid sigmoid silu gelu tanh mish leaky_relu rsqrt neg reciprocal zeros_like"
)
_RULES: dict[str, Rule] = {
    "batch_norm": _batch_norm,
    "layer_norm": _normalized,
    "softmax": _normalized,
    "cat": _cat,
    "linear": _linear,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "stack": _stack,
    "interpolate": _interpolate,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(_ELEMENTWISE.split(), _same),
    **dict.fromkeys("add sub mul div __add__ __radd__ __sub__ __mul__ __rmul__ __truediv__".split(), _broadcast),
}
