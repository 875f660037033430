"""What is answered without torch on the meta device equals what torch computes on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bblab.shapes import plain_result, shapes_only

X = (1, 6, 13, 10)
CALLS: dict[str, Callable[[Callable[..., Tensor]], Any]] = {
    "relu": lambda t: F.relu(t(*X)),
    "hardswish": lambda t: F.hardswish(t(*X)),
    "gelu": lambda t: F.gelu(t(*X)),
    "leaky_relu": lambda t: F.leaky_relu(t(*X), 0.1),
    "zeros_like": lambda t: torch.zeros_like(t(*X)),
    "batch_norm": lambda t: F.batch_norm(t(*X), t(6), t(6), t(6), t(6)),
    "batch norm of a cropped map": lambda t: F.batch_norm(t(*X)[:, :, 1:-1, 1:-1], t(6), t(6)),
    "layer_norm": lambda t: F.layer_norm(t(2, 5, 8), (8,), t(8), t(8)),
    "layer_norm of a permuted map": lambda t: F.layer_norm(t(*X).permute(0, 2, 3, 1), (6,)),
    "softmax": lambda t: F.softmax(t(2, 5, 8), dim=-1),
    "add": lambda t: t(*X) + t(*X),
    "add a number": lambda t: t(*X) + 1,
    "number first": lambda t: 2.0 * t(*X),
    "gate": lambda t: t(*X) * t(1, 6, 1, 1),
    "gate of lower rank": lambda t: t(4, 6) * t(6),
    "spread": lambda t: t(1, 6, 1, 1) * t(*X),
    "divide": lambda t: t(*X) / 3,
    "cat": lambda t: torch.cat([t(*X), t(1, 3, 13, 10)], 1),
    "cat from the end": lambda t: torch.cat([t(2, 3), t(2, 4)], dim=-1),
    "stack": lambda t: torch.stack([t(3, 4), t(3, 4)]),
    "linear": lambda t: F.linear(t(2, 5, 8), t(3, 8), t(3)),
    "matrix": lambda t: t(3, 4) @ t(4, 5),
    "matrix by vector": lambda t: t(3, 4) @ t(4),
    "attention": lambda t: F.scaled_dot_product_attention(t(2, 4, 9, 8), t(2, 4, 9, 8), t(2, 4, 9, 8)),
    "einsum": lambda t: torch.einsum("om,mikl->oikl", t(3, 4), t(4, 5, 2, 2)),
    "conv": lambda t: F.conv2d(t(*X), t(4, 6, 3, 3), t(4), 2, 1),
    "oblong conv": lambda t: F.conv2d(t(*X), t(4, 6, 1, 7), padding=(0, 3)),
    "dilated grouped conv": lambda t: F.conv2d(t(*X), t(6, 1, 3, 3), None, 1, 2, 2, 6),
    "conv of a cropped map": lambda t: F.conv2d(t(*X)[:, :, 2:-2], t(4, 6, 3, 3)),
    "max pool": lambda t: F.max_pool2d(t(*X), 3, 2, 1),
    "max pool, its own stride": lambda t: F.max_pool2d(t(*X), 2),
    "ceil pool": lambda t: F.max_pool2d(t(*X), 3, 2, ceil_mode=True),
    "ceil pool with padding": lambda t: F.max_pool2d(t(1, 2, 7, 8), 2, 2, 1, ceil_mode=True),
    "average pool": lambda t: F.avg_pool2d(t(*X), 3, 2, 1),
    "ceil average pool": lambda t: F.avg_pool2d(t(1, 2, 6, 9), 3, 2, ceil_mode=True),
    "global pool": lambda t: F.adaptive_avg_pool2d(t(*X), 1),
    "pool to a size": lambda t: F.adaptive_avg_pool2d(t(*X), (3, 2)),
    "mean": lambda t: t(*X).mean((2, 3)),
    "mean kept": lambda t: t(*X).mean((2, 3), keepdim=True),
    "mean of one": lambda t: t(3, 4).mean(0),
    "nearest": lambda t: F.interpolate(t(*X), scale_factor=2, mode="nearest"),
    "bilinear to a size": lambda t: F.interpolate(t(*X), size=(7, 9), mode="bilinear"),
}


def on_cpu(*shape: int) -> Tensor:
    return torch.rand(shape)


def on_meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize("name", CALLS)
def test_plain_calls_have_torchs_shape_type_and_order(name: str) -> None:
    answered = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = plain_result(func, args, kwargs or {})
            answered.append(made is not None)
            return func(*args, **(kwargs or {})) if made is None else made

    expected = CALLS[name](on_cpu)
    with Spy():
        made = CALLS[name](on_meta)
    assert any(answered), "torch was asked after all"
    assert made.is_meta
    assert (made.shape, made.dtype, made.stride()) == (expected.shape, expected.dtype, expected.stride())


@pytest.mark.parametrize(
    "call",
    [
        lambda t: F.conv2d(t(1, 5, 8, 8), t(4, 6, 3, 3)),
        lambda t: F.conv2d(t(1, 6, 2, 2), t(4, 6, 3, 3)),
        lambda t: F.max_pool2d(t(1, 6, 8, 8), 2, 2, 2),
        lambda t: F.linear(t(2, 7), t(3, 8)),
        lambda t: t(1, 6, 8, 8) + t(1, 6, 7, 8),
        lambda t: torch.cat([t(1, 6, 8, 8), t(1, 6, 7, 8)], 1),
        lambda t: t(3, 4) @ t(5, 4),
    ],
)
def test_what_cannot_be_is_left_to_torch_which_says_why(call: Callable[..., Any]) -> None:
    with shapes_only(), pytest.raises(RuntimeError):
        call(on_meta)


def test_real_tensors_are_computed() -> None:
    with shapes_only():
        assert torch.equal(F.relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


def test_in_place_and_training_calls_are_left_to_torch() -> None:
    assert plain_result(F.relu, (on_meta(1, 2, 3, 3),), {"inplace": True}) is None
    assert plain_result(F.batch_norm, (on_meta(1, 2, 3, 3), on_meta(2), on_meta(2), None, None, True), {}) is None
