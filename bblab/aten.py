"""What runs below torch's Python functions: ATen ops, as the Python calls that they are.

TorchScript (scripted and traced modules), `torch.vmap` and `torch.ops.aten.*` run ops that no Python function of
torch announces. They are seen where every op passes, in torch's dispatcher, and get the name and the order of
arguments of the Python function that does the same, so that one set of rules reads both.
Schemas: torch 2.13's native_functions.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_SAME = {  # other names of one op whose arguments begin alike
    "native_batch_norm": "batch_norm",
    "native_batch_norm_legit": "batch_norm",
    "native_batch_norm_legit_no_training": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "safe_softmax": "softmax",
    "unsafe_view": "view",
    "reshape_alias": "reshape",
    "unsafe_split": "split",
    "unsafe_chunk": "chunk",
    "to_copy": "to",
    "lift_fresh": "detach",
    "reflection_pad2d": "pad",
    "replication_pad2d": "pad",
    "constant_pad_nd": "pad",
    "max_pool2d_with_indices": "max_pool2d",
}
_RESIZING = ("nearest_exact", "nearest", "bilinear", "bicubic", "trilinear", "linear")


def plain_name(func: Any) -> str:
    """An op's name without its overload and outer underscores; of another namespace than ATen's with that name."""
    if not hasattr(func, "_schema"):  # a higher-order op, such as flex_attention
        return str(getattr(func, "__name__", "") or func.name())
    space, _, name = func._schema.name.partition("::")
    if space not in ("aten", "prims", "prim", "torchvision"):
        return f"{space}::{name}"
    return name.strip("_") or name


def is_op(func: Any) -> bool:
    """Whether a call is one of `torch.ops`, which the dispatcher announces too."""
    import torch

    return isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))


def as_call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, list[Any], dict[str, Any]]:
    """An ATen op as (name, arguments, keywords) of the Python function that does the same."""
    name, given, named = plain_name(func), list(args), dict(kwargs)
    if name in ("convolution", "convolution_overrideable", "cudnn_convolution", "mkldnn_convolution"):
        return _convolution(given)
    for mode in _RESIZING:
        if name.startswith(f"upsample_{mode}"):
            return "interpolate", given[:1], {"size": given[1], "mode": mode.replace("_", "-")}
    if name == "slice":
        dim = int(given[1]) if len(given) > 1 else 0
        dim %= given[0].dim()
        start, end, step = (given[2:] + [None] * 3)[:3]
        return "getitem", [given[0], (slice(None),) * dim + (slice(start, end, step or 1),)], {}
    if name == "index":
        return "getitem", [given[0], tuple(slice(None) if i is None else i for i in given[1])], {}
    if "scaled_dot_product" in name:
        return "scaled_dot_product_attention", given, named
    return _SAME.get(name, name), given, named


def _convolution(given: list[Any]) -> tuple[str, list[Any], dict[str, Any]]:
    x, weight, bias, stride, padding, dilation, is_transposed, output_padding, groups = (*given, *[None] * 9)[:9]
    rank = weight.dim() - 2
    if is_transposed:
        return f"conv_transpose{rank}d", [x, weight, bias, stride, padding, output_padding, groups, dilation], {}
    return f"conv{rank}d", [x, weight, bias, stride, padding, dilation, groups], {}


def written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that an op overwrites, by its schema."""
    if not hasattr(func, "_schema") or not func._schema.is_mutable:
        return []
    changed: list[Tensor] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        changed.extend(v for v in (value if isinstance(value, (list, tuple)) else [value]) if v is not None)
    return changed


def is_transforming() -> bool:
    """Whether `torch.vmap` or its kind is at work: the tensors of Python's calls then stand for others."""
    import torch

    return torch._C._functorch.peek_interpreter_stack() is not None
