"""What a unit sees, against the gradient: every weight positive, no bias, nothing non-linear, no norm.

Then the input gradient of one output unit is non-zero exactly where the unit sees. The padded units are found the same
way, forwards: the input is 0 and every padding 1, so that an output that is not 0 has seen padding.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bblab import blocks, build, ops, spec
from bblab.analysis import sight
from bblab.analysis import window as win
from bblab.analysis.net import Analyst
from bblab.rooms import Rooms
from bblab.spec import ArchSpec, BlockInfo

LINEAR = frozenset(
    """batch_norm relu relu6 hardtanh hardswish hardsigmoid sigmoid silu gelu leaky_relu tanh mish dropout
    layer_norm""".split()
)


class Positive(TorchFunctionMode):
    """Runs a net as a sum of what each unit sees. Pools over the whole map, which see everything, give 1."""

    def __init__(self, padding_value: float = 0.0) -> None:
        super().__init__()
        self.value = padding_value

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        if name in LINEAR:
            return args[0]
        out = func(*args, **kwargs)
        if name in ("mean", "sum", "adaptive_avg_pool2d") and out.shape[2:].numel() == 1 < args[0].shape[2:].numel():
            return torch.ones_like(out)
        if name == "conv2d":
            _, weight, _, stride, _, dilation, groups = self.given(args, kwargs, (None, 1, 0, 1, 1))
            x = self.padded(args[0], out, weight.shape[2:], two(stride), self.pad_of(args, kwargs, 4), two(dilation))
            return F.conv2d(x, weight, None, stride, 0, dilation, groups)[:, :, : out.shape[2], : out.shape[3]]
        if name in ("max_pool2d", "avg_pool2d"):
            kernel = two(args[1] if len(args) > 1 else kwargs["kernel_size"])
            stride = args[2] if len(args) > 2 else kwargs.get("stride")
            stride = kernel if stride in (None, []) else two(stride)
            pad = two(args[3] if len(args) > 3 else kwargs.get("padding", 0))
            x = self.padded(args[0], out, kernel, stride, pad, (1, 1))
            return F.avg_pool2d(x, kernel, stride)[:, :, : out.shape[2], : out.shape[3]]
        if name == "conv_transpose2d":
            _, weight, _, stride, padding, _, groups, dilation = self.given(args, kwargs, (None, 1, 0, 0, 1, 1))
            s, p, reach = two(stride), two(padding), 4
            wide = F.pad(args[0], [reach] * 4, value=self.value)
            full = F.conv_transpose2d(wide, weight, None, s, 0, 0, groups, dilation)
            top, left = reach * s[0] + p[0], reach * s[1] + p[1]
            return full[:, :, top : top + out.shape[2], left : left + out.shape[3]]
        if name == "pad":
            return F.pad(args[0], args[1] if len(args) > 1 else kwargs["pad"], value=self.value)
        return out

    def given(self, args: Any, kwargs: Any, defaults: tuple[Any, ...]) -> list[Any]:
        names = ("bias", "stride", "padding", "dilation", "groups")
        if len(defaults) == 6:
            names = ("bias", "stride", "padding", "output_padding", "groups", "dilation")
        rest = [kwargs.get(n, d) for n, d in zip(names, defaults, strict=True)]
        return [args[0], args[1], *args[2:], *rest[len(args) - 2 :]]

    def pad_of(self, args: Any, kwargs: Any, at: int) -> tuple[int, int]:
        pad = args[at] if len(args) > at else kwargs.get("padding", 0)
        if pad == "valid":
            return (0, 0)
        if pad == "same":
            dilation = two(args[5] if len(args) > 5 else kwargs.get("dilation", 1))
            return tuple((k - 1) * d // 2 for k, d in zip(args[1].shape[2:], dilation, strict=True))  # type: ignore
        return two(pad)

    def padded(self, x: Tensor, out: Tensor, kernel: Any, stride: Any, pad: Any, dilation: Any) -> Tensor:
        sides: list[int] = []
        for axis in (1, 0):  # F.pad wants the last dimension first; ceil_mode and "same" may reach further at the end
            needed = (out.shape[2 + axis] - 1) * stride[axis] + (kernel[axis] - 1) * dilation[axis] + 1
            sides += [pad[axis], max(0, needed - x.shape[2 + axis] - pad[axis])]
        return F.pad(x, sides, value=self.value)


def two(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]


def positive(module: nn.Module) -> nn.Module:
    """Weights above 0, of mean 1 over the fan-in, so that deep nets neither vanish nor overflow; biases 0."""
    torch.manual_seed(0)
    for name, p in module.double().named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
        else:
            nn.init.uniform_(p, 0.5, 1.5)
            p.data /= max(1, p[0].numel())
    return module.eval()


def seen(module: Callable[[Tensor], Tensor], x: Tensor, unit: int, axis: int) -> tuple[int, int]:
    """First and last input row (axis 0) or column (axis 1) that a row or column of units sees."""
    x = x.detach().requires_grad_()
    with Positive():
        out = module(x)
    (gradient,) = torch.autograd.grad(out.select(2 + axis, unit).sum(), x)
    touched = gradient.abs().sum([d for d in range(4) if d != 2 + axis]).nonzero().flatten()
    return int(touched[0]), int(touched[-1])


def untouched(module: Callable[[Tensor], Tensor], x: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns of units that no padding reaches."""
    with torch.no_grad(), Positive(padding_value=1.0):
        out = module(torch.zeros_like(x))
    found = out.sum((0, 1))
    return (found.amin(1) == 0).nonzero().flatten().tolist(), (found.amin(0) == 0).nonzero().flatten().tolist()


def check(module: nn.Module, size: tuple[int, int], channels: int = 4, *, is_same_clean: bool = True) -> sight.Sight:
    """Windows and padded units of both axes agree with the gradient, at the middle and at both ends."""
    positive(module)
    x = torch.rand(1, channels, *size, dtype=torch.float64)
    (found,) = sight.follow(ops.record(module, [x]))
    assert found.unknown == ""
    windows = found.windows[0]
    brute = untouched(module, x)
    for axis in (0, 1):
        first, last = found.clean[axis]
        if is_same_clean:
            assert list(range(first, last + 1)) == brute[axis], f"axis {axis}"
        else:
            assert set(range(first, last + 1)) <= set(brute[axis])
        assert last - first >= 2, "the input is too small for this check"
        for unit in {first, (first + last) // 2, (first + last) // 2 + 1, last}:
            low, high = windows[axis].low(unit), windows[axis].high(unit)
            assert (low, high) == seen(module, x, unit, axis), f"axis {axis}, unit {unit}"
    return found


def conv(in_ch: int, out_ch: int, kernel: Any, stride: Any = 1, pad: Any = 0, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(in_ch, out_ch, kernel, stride, pad, **more)


# ---------------------------------------------------------------------------------------------- nets


class Lambda(nn.Module):
    """Layers by name, and a forward written in one line, as code pasted from a paper would be."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def shuffled(x: Tensor, groups: int = 2) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def unshuffled_by_hand(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


def shuffled_out_by_hand(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, 2 * h, 2 * w)


def sequence(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    tokens = m.n(x.flatten(2).transpose(1, 2))  # B, H * W, C
    halves = torch.stack(tokens.reshape(b, h * w, 2, c // 2).permute(2, 0, 1, 3).unbind(0)).sum(0)
    return m.a(halves.transpose(1, 2).view(b, c // 2, h, w))


def gated(m: Any, x: Tensor) -> Tensor:
    return m.a(x) * m.g(F.adaptive_avg_pool2d(x, 1)).sigmoid()


def half_dw(m: Any, x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return shuffled(torch.cat((left, m.a(right)), dim=1))


FOLLOWED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: conv(4, 4, 3, 2, 1), (33, 40)),
    "oblong kernel, stride and padding": (lambda: conv(4, 4, (1, 7), (1, 2), (0, 3)), (20, 41)),
    "oblong pair": (lambda: nn.Sequential(conv(4, 4, (5, 1), 2, (2, 0)), conv(4, 4, (1, 3), 1, (0, 1))), (31, 30)),
    "even kernel": (lambda: nn.Sequential(conv(4, 4, 4, 2, 1), conv(4, 4, 2)), (31, 34)),
    "dilated": (
        lambda: nn.Sequential(conv(4, 4, 3, 1, 2, dilation=2), conv(4, 4, 3, 2, (3, 2), dilation=(3, 2))),
        (35, 36),
    ),
    "grouped and depthwise": (
        lambda: nn.Sequential(conv(4, 8, 3, 1, 1, groups=2), conv(8, 8, 5, 2, 2, groups=8)),
        (33, 30),
    ),
    "strided 1x1": (lambda: nn.Sequential(conv(4, 4, 3, 1, 1), conv(4, 4, 1, 2), conv(4, 4, 3, 1, 1)), (33, 34)),
    "1x1 strides over a shortcut": (
        lambda: Lambda(lambda m, x: m.a(x) + m.b(x), a=conv(4, 4, 3, 2, 1), b=conv(4, 4, 1, 2)),
        (33, 34),
    ),
    "padding by name": (
        lambda: nn.Sequential(conv(4, 4, 4, 1, "same", dilation=2), conv(4, 4, 3, 2, "valid")),
        (30, 31),
    ),
    "padding call, one-sided": (lambda: Lambda(lambda m, x: m.a(F.pad(x, [0, 1, 2, 0])), a=conv(4, 4, 3, 2)), (30, 31)),
    "negative padding": (lambda: Lambda(lambda m, x: m.a(F.pad(x, [-1, -2, -3, -1])), a=conv(4, 4, 3, 2, 1)), (32, 33)),
    "max pool": (lambda: nn.Sequential(conv(4, 4, 3, 1, 1), nn.MaxPool2d(3, 2, 1)), (33, 36)),
    "ceil-mode pools": (
        lambda: nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), conv(4, 4, 3), nn.AvgPool2d(2, 2, ceil_mode=True)),
        (34, 37),
    ),
    "average pool beside a convolution": (
        lambda: Lambda(lambda m, x: torch.cat((F.avg_pool2d(x, 3, 2, 1), m.a(x)), 1), a=conv(4, 4, 5, 2, 2)),
        (33, 34),
    ),
    "pool without a stride": (lambda: nn.Sequential(nn.AvgPool2d((2, 3)), conv(4, 4, 3, 1, 1)), (30, 45)),
    "adaptive pool": (lambda: nn.Sequential(conv(4, 4, 3, 1, 1), nn.AdaptiveAvgPool2d((10, 6))), (30, 36)),
    "residual": (
        lambda: Lambda(lambda m, x: F.relu(x + m.b(F.relu(m.a(x)))), a=conv(4, 4, 3, 1, 1), b=conv(4, 4, 3, 1, 1)),
        (20, 21),
    ),
    "residual in place": (lambda: Lambda(lambda m, x: m.a(x).add_(x).relu_(), a=conv(4, 4, 5, 1, 2)), (20, 21)),
    "written into": (
        lambda: Lambda(lambda m, x: add_into(m.a(x), m.b(x)), a=conv(4, 4, 1), b=conv(4, 4, 5, 1, 2)),
        (20, 21),
    ),
    "some channels overwritten": (
        lambda: Lambda(partly, a=conv(4, 4, 3, 1, 1), b=conv(2, 2, 5, 1, 2)),
        (20, 21),
    ),
    "changed through a view": (
        lambda: Lambda(through_a_view, a=conv(4, 4, 1), b=conv(4, 2, 5, 1, 2)),
        (20, 21),
    ),
    "crop after the sum": (
        lambda: Lambda(lambda m, x: (x + m.a(x))[:, :, 1:-1, 2:-2], a=conv(4, 4, 3, 1, 1)),
        (20, 23),
    ),
    "crop, then padded": (lambda: Lambda(lambda m, x: m.a(x[..., 3:, :-2]), a=conv(4, 4, 3, 2, 1)), (33, 34)),
    "crop from the end": (lambda: Lambda(lambda m, x: m.a(x[:, :, -25:, 1:30]), a=conv(4, 4, 3)), (31, 34)),
    "narrow": (lambda: Lambda(lambda m, x: m.a(x.narrow(2, 4, 20)), a=conv(4, 4, 3)), (31, 34)),
    "unpadded beside cropped": (
        lambda: Lambda(lambda m, x: m.a(x) + x[:, :, 2:-2, 1:-1], a=conv(4, 4, (5, 3))),
        (20, 23),
    ),
    "every second pixel": (lambda: Lambda(lambda m, x: m.a(x[:, :, 1::2, ::2]), a=conv(4, 4, 3, 1, 1)), (32, 33)),
    "focus": (
        lambda: Lambda(
            lambda m, x: m.a(
                torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)
            ),
            a=conv(16, 4, 3, 1, 1),
        ),
        (32, 34),
    ),
    "pixel unshuffle": (lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(16, 4, 3, 1, 1)), (32, 34)),
    "pixel shuffle": (lambda: nn.Sequential(conv(4, 16, 3, 1, 1), nn.PixelShuffle(2), conv(4, 4, 3, 1, 1)), (16, 17)),
    "pixel shuffle, then stride": (
        lambda: nn.Sequential(conv(4, 16, 3, 1, 1), nn.PixelShuffle(2), conv(4, 4, 3, 2, 1)),
        (16, 17),
    ),
    "space to depth by hand": (
        lambda: Lambda(lambda m, x: m.a(unshuffled_by_hand(x)), a=conv(16, 4, 3, 1, 1)),
        (32, 34),
    ),
    "depth to space by hand": (
        lambda: Lambda(lambda m, x: m.b(shuffled_out_by_hand(m.a(x))), a=conv(4, 8, 3, 1, 1), b=conv(2, 4, 3, 1, 1)),
        (16, 17),
    ),
    "split after a permutation": (
        lambda: Lambda(lambda m, x: m.a(x.permute(0, 2, 3, 1)[..., :2].permute(0, 3, 1, 2)), a=conv(2, 2, 3, 1, 1)),
        (16, 17),
    ),
    "a sequence, normed, gathered, halved": (
        lambda: Lambda(sequence, a=conv(2, 2, 3, 1, 1), n=nn.LayerNorm(4)),
        (16, 17),
    ),
    "mean over the channels": (
        lambda: Lambda(lambda m, x: m.a(x + x.mean(1, keepdim=True)), a=conv(4, 4, 3, 1, 1)),
        (16, 17),
    ),
    "nearest upsampling": (
        lambda: nn.Sequential(conv(4, 4, 3, 2, 1), nn.Upsample(scale_factor=2), conv(4, 4, 3, 1, 1)),
        (32, 34),
    ),
    "nearest by three, stride two": (
        lambda: nn.Sequential(nn.Upsample(scale_factor=3), conv(4, 4, 3, 2, 1), conv(4, 4, 3, 1, 1)),
        (16, 17),
    ),
    "nearest, summed with what it came from": (
        lambda: Lambda(lambda m, x: x + F.interpolate(m.a(x), scale_factor=2), a=conv(4, 4, 3, 2, 1)),
        (32, 36),
    ),
    "area downsampling": (
        lambda: Lambda(lambda m, x: F.interpolate(m.a(x), scale_factor=0.5, mode="area"), a=conv(4, 4, 3, 1, 1)),
        (32, 34),
    ),
    "nearest downsampling": (
        lambda: Lambda(lambda m, x: m.a(F.interpolate(x, scale_factor=0.5)), a=conv(4, 4, 3, 1, 1)),
        (32, 34),
    ),
    "transposed convolution": (lambda: nn.Sequential(conv(4, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 4, 2, 1)), (33, 34)),
    "transposed, by three": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 5, 3, 1, output_padding=1), conv(4, 4, 3, 1, 1)),
        (16, 17),
    ),
    "transposed, dilated": (lambda: nn.ConvTranspose2d(4, 4, 3, 1, 2, dilation=2), (16, 17)),
    "split, convolve, interleave": (lambda: Lambda(half_dw, a=conv(2, 2, 3, 1, 1)), (16, 17)),
    "split by sizes": (
        lambda: Lambda(
            lambda m, x: torch.cat([f(p) for f, p in zip((m.a, m.b), x.split([1, 3], 1), strict=True)], 1),
            a=conv(1, 1, 3, 1, 1),
            b=conv(3, 3, 7, 1, 3),
        ),
        (16, 17),
    ),
    "tensor split of channels": (
        lambda: Lambda(lambda m, x: m.a(x.tensor_split(2, dim=1)[0]), a=conv(2, 2, 3, 1, 1)),
        (16, 17),
    ),
    "channel shuffle module": (lambda: nn.Sequential(conv(4, 4, 3, 1, 1), nn.ChannelShuffle(2)), (16, 17)),
    "stacked branches": (
        lambda: Lambda(
            lambda m, x: torch.stack((m.a(x), m.b(x)), 1).sum(1), a=conv(4, 4, 3, 1, 1), b=conv(4, 4, 5, 1, 2)
        ),
        (16, 17),
    ),
    "channels last": (
        lambda: Lambda(
            lambda m, x: m.b(m.lin(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
            a=conv(4, 4, 3, 1, 1),
            lin=nn.Linear(4, 4),
            b=conv(4, 4, 3, 1, 1),
        ),
        (16, 17),
    ),
    "a sequence and back": (
        lambda: Lambda(
            lambda m, x: m.b(m.lin(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)),
            lin=nn.Linear(4, 4),
            b=conv(4, 4, 3, 1, 1),
        ),
        (16, 17),
    ),
    "layer norm over the channels": (
        lambda: Lambda(
            lambda m, x: m.n(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=conv(4, 4, 3, 1, 1), n=nn.LayerNorm(4)
        ),
        (16, 17),
    ),
    "computed weight": (lambda: Lambda(lambda m, x: F.conv2d(x, m.a.weight * 2, padding=2), a=conv(4, 4, 5)), (16, 17)),
    "gate from the whole map": (lambda: Lambda(gated, a=conv(4, 4, 3, 1, 1), g=conv(4, 4, 1)), (16, 17)),
}


GROWS = {
    "focus": 2,
    "pixel unshuffle": 2,
    "space to depth by hand": 2,
    "adaptive pool": 30,
    "area downsampling": 2,
    "nearest downsampling": 2,
    "nearest, summed with what it came from": 2,
}
"""How much the second size is larger, where not every size will do."""


def partly(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :2] = m.b(y[:, :2])  # FasterNet's partial convolution: the other channels pass
    return y


def through_a_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, 1:3].add_(m.b(x))
    return y


def add_into(y: Tensor, x: Tensor) -> Tensor:
    y.add_(x)  # the result is dropped: y itself has changed
    return y


@pytest.mark.parametrize("name", FOLLOWED)
def test_windows_are_where_the_gradient_is(name: str) -> None:
    make, (height, width) = FOLLOWED[name]
    for extra in (0, GROWS.get(name, 1)):  # odd and even sides
        check(make(), (height + extra, width + extra))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bilinear_upsampling_sees_two_neighbours(factor: int) -> None:
    net = nn.Sequential(conv(4, 4, 3, 2, 1), nn.Upsample(scale_factor=factor, mode="bilinear"), conv(4, 4, 3, 1, 1))
    # At the border torch repeats the last row: no padding, but not the pattern of the other units either.
    check(net, (32, 35), is_same_clean=False)


def test_bilinear_downsampling_sees_the_middle_pixels() -> None:
    for factor in (2, 3, 4):
        net = Lambda(
            lambda m, x, f=factor: F.interpolate(m.a(x), size=(x.shape[2] // f, x.shape[3] // f), mode="bilinear"),
            a=conv(4, 4, 3, 1, 1),
        )
        check(net, (48, 36), is_same_clean=False)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "area"])
@pytest.mark.parametrize("side", [20, 30, 42])
def test_a_map_may_be_resized_by_any_ratio(mode: str, side: int) -> None:
    net = Lambda(
        lambda m, x: m.b(F.interpolate(m.a(x), size=(side, 12), mode=mode)),
        a=conv(4, 4, 3, 1, 1),
        b=conv(4, 4, 3, 1, 1),
    )
    check(net, (28, 30), is_same_clean=False)


# ---------------------------------------------------------------------------------------------- never a guess


def some_rows_overwritten(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :, 1:] = m.a(x)[:, :, :-1]
    return y


def some_rows_changed(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :, 4:].add_(m.b(x)[:, :, 4:])
    return y


def scrambled(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.a(x.permute(0, 2, 3, 1).reshape(b, c, h, w))  # a common mistake: channels and places mixed up


NOT_FOLLOWED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "roll": (lambda: Lambda(lambda m, x: m.a(x.roll(1, 2)), a=conv(4, 4, 3)), "roll"),
    "flip": (lambda: Lambda(lambda m, x: m.a(x) + m.a(x.flip(3)), a=conv(4, 4, 3)), "flip"),
    "some rows overwritten": (lambda: Lambda(some_rows_overwritten, a=conv(4, 4, 3, 1, 1)), "setitem"),
    "some rows changed": (
        lambda: Lambda(some_rows_changed, a=conv(4, 4, 3, 1, 1), b=conv(4, 4, 5, 1, 2)),
        "into a part of a map",
    ),
    "unfold": (lambda: Lambda(lambda m, x: F.unfold(x, 3).unflatten(2, (14, 14)), a=conv(4, 4, 3)), "unfold"),
    "places of two stacked maps": (lambda: Lambda(lambda m, x: m.a(torch.cat((x, x), 2)), a=conv(4, 4, 3)), "cat"),
    "half of the rows by tensor_split": (lambda: Lambda(lambda m, x: x.tensor_split(2, dim=2)[1]), "tensor_split"),
    "half of the rows by chunk": (lambda: Lambda(lambda m, x: x.chunk(2, 2)[1]), "chunk"),
    "a map and its transpose": (lambda: Lambda(lambda m, x: m.a(x + x.transpose(2, 3)), a=conv(4, 4, 3)), "add"),
    "a transposed map": (lambda: Lambda(lambda m, x: x.transpose(2, 3)), "last two dimensions"),
    "resized by a factor that leaves a rest": (
        lambda: Lambda(lambda m, x: F.interpolate(x, scale_factor=1.3)),
        "interpolate",
    ),
    "aligned corners": (
        lambda: Lambda(lambda m, x: F.interpolate(x, (32, 32), mode="bilinear", align_corners=True)),
        "interpolate",
    ),
    "maps at different strides": (
        lambda: Lambda(lambda m, x: x[:, :, ::2, ::2] + x[:, :, 4:12, 4:12]),
        "different strides",
    ),
    "channels and places mixed up": (lambda: Lambda(scrambled, a=conv(4, 4, 3)), "conv2d"),
    "a permutation of the places": (
        lambda: Lambda(
            lambda m, x: m.a(x.flatten(2)[:, :, torch.arange(255, -1, -1)].view(1, 4, 16, 16)), a=conv(4, 4, 3)
        ),
        "getitem",
    ),
    "windows in the batch": (
        lambda: Lambda(
            lambda m, x: m.a(x.view(1, 4, 2, 8, 2, 8).permute(0, 2, 4, 1, 3, 5).reshape(4, 4, 8, 8)), a=conv(4, 4, 3)
        ),
        "conv2d",
    ),
    "does not depend on the input": (lambda: Lambda(lambda m, x: torch.ones(1, 4, 16, 16)), "depend"),
    "a transposed convolution with gaps": (lambda: nn.ConvTranspose2d(4, 4, 2, 3), "conv_transpose2d"),
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_what_cannot_be_followed_is_named(name: str) -> None:
    make, said = NOT_FOLLOWED[name]
    graph = ops.record(make(), [torch.zeros(1, 4, 16, 16)])
    assert any(said in s.unknown for s in sight.follow(graph)), sight.follow(graph)


def attention(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    q = m.a(x).flatten(2).transpose(1, 2)  # B, H * W, C
    mixed = (q @ q.transpose(1, 2)).softmax(-1) @ q
    return m.b(x + mixed.transpose(1, 2).reshape(b, c, h, w))


GLOBAL: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Lambda(attention, a=conv(4, 4, 3, 1, 1), b=conv(4, 4, 3, 1, 1)),
    "a gate": lambda: Lambda(lambda m, x: m.a(x) * x.mean((2, 3), keepdim=True), a=conv(4, 4, 5, 1, 2)),
    "a gate from a pool of the map's size": lambda: Lambda(
        lambda m, x: m.a(x) * F.avg_pool2d(x, 16), a=conv(4, 4, 5, 1, 2)
    ),
    "a pooled branch": lambda: Lambda(
        lambda m, x: torch.cat((m.a(x), F.interpolate(F.adaptive_avg_pool2d(x, 1), x.shape[2:])), 1),
        a=conv(4, 4, 5, 1, 2),
    ),
    "a norm over the map": lambda: nn.Sequential(conv(4, 4, 5, 1, 2), nn.GroupNorm(2, 4)),
    "tokens mixed by a linear layer": lambda: Lambda(
        lambda m, x: m.a(x) + m.t(x.flatten(2)).view(x.shape), a=conv(4, 4, 5, 1, 2), t=nn.Linear(256, 256)
    ),
    "rows mixed by a linear layer": lambda: Lambda(
        lambda m, x: m.a(x) + m.t(x), a=conv(4, 4, 5, 1, 2), t=nn.Linear(16, 16)
    ),
    "softmax over the places": lambda: Lambda(
        lambda m, x: m.a(x) * x.flatten(2).softmax(2).view(x.shape), a=conv(4, 4, 5, 1, 2)
    ),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_global_paths_are_flagged_and_widen_nothing(name: str) -> None:
    (found,) = sight.follow(ops.record(GLOBAL[name](), [torch.zeros(1, 4, 16, 16)]))
    assert found.is_global, found
    assert found.unknown == "" or "rows" in name, found
    assert all(5 <= w.extent(8) <= 5 for w in found.windows.get(0, ())), found


# ---------------------------------------------------------------------------------------------- whole nets


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, BlockInfo]:
    return blocks.infos(Rooms(tmp_path_factory.mktemp("lab")))


# Pixels along the axis looked at: more than the receptive field, so that the middle unit sees no border; and across,
# where clipping does no harm.
NETS = {
    "mobileone_s0": (511, 32),
    "mobilenetv3_small": (703, 32),
    "shufflenetv2_x1_0": (575, 32),
    "ciresnet22": (191, 96),
    "resnet18": (479, 32),
    "nanotrack": (383, 16),
    "mobileone_shuffle": (447, 16),
    "lighttrack_mobile": (831, 16),
}
FAST = (("shufflenetv2_x1_0", 0), ("nanotrack", 1), ("ciresnet22", 0))
"""The rest is slow: minutes of float64 gradients."""


def every_stage(name: str, kinds: Mapping[str, BlockInfo], form: ops.Form) -> tuple[ArchSpec, nn.Module]:
    one = spec.resolve(name, Rooms(Path("nowhere")), kinds)
    every = replace(one, taps=tuple(s.name for s in one.stages), head=None)
    net: nn.Module = build.Backbone(every, kinds).eval()
    return every, positive(build.to_deploy(net, every, kinds) if form == "deploy" else net)


@pytest.mark.parametrize(
    ("name", "axis"),
    [pytest.param(n, a, marks=[] if (n, a) in FAST else [pytest.mark.slow]) for n in NETS for a in (0, 1)],
)
def test_every_stage_of_the_nets_sees_what_its_gradient_sees(
    name: str, axis: int, kinds: Mapping[str, BlockInfo]
) -> None:
    along, across = NETS[name]
    size = (along, across) if axis == 0 else (across, along + 1)  # odd, then even
    form: ops.Form = "train" if name == "ciresnet22" else "deploy"
    one, net = every_stage(name, kinds, form)
    cost = Analyst(kinds).cost(one, form, size)
    x = torch.rand(1, 3, *size, dtype=torch.float64, requires_grad=True)
    with Positive():
        outs = net(x)
    assert len(outs) == len(cost.maps)
    for out, m in zip(outs, cost.maps, strict=True):
        window, (first, last) = ((m.window_h, m.clean_h), (m.window_w, m.clean_w))[axis]
        assert window is not None
        assert out.shape[1:] == (m.channels, m.height, m.width)
        unit = out.shape[2 + axis] // 2
        assert first <= unit <= last, "the input is too small for this check"
        (gradient,) = torch.autograd.grad(out.select(2 + axis, unit).sum(), x, retain_graph=True)
        rows = gradient.abs().sum([d for d in range(4) if d != 2 + axis]).nonzero().flatten()
        assert (window.low(unit), window.high(unit)) == (int(rows[0]), int(rows[-1])), m.stage
        assert window.extent(unit) == int(rows[-1] - rows[0]) + 1


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in ("shufflenetv2_x1_0", "ciresnet22") else [pytest.mark.slow]) for n in NETS],
)
def test_padding_reaches_the_units_that_the_card_says(name: str, kinds: Mapping[str, BlockInfo]) -> None:
    size = (159, 144)
    one, net = every_stage(name, kinds, "deploy")
    cost = Analyst(kinds).cost(one, "deploy", size)
    with torch.no_grad(), Positive(padding_value=1.0):
        marks = net(torch.zeros(1, 3, *size, dtype=torch.float64))
    seen_clean = 0
    for mark, m in zip(marks, cost.maps, strict=True):
        is_clean = mark[0].amax(0) == 0  # H, W: no channel has seen padding
        rows, columns = (is_clean.any(d).nonzero().flatten().tolist() for d in (1, 0))
        claimed = [list(range(first, last + 1)) for first, last in (m.clean_h, m.clean_w)]
        if all(claimed):
            assert [rows, columns] == claimed, m.stage
            seen_clean += 1
        else:  # where every row or every column has seen padding, no unit is clean
            assert not rows and not columns, m.stage
        assert m.padded_units == (max(claimed[0][0], m.height - 1 - claimed[0][-1]) if claimed[0] else m.height)
    assert seen_clean >= 2


def test_the_longer_side_is_the_receptive_field(kinds: Mapping[str, BlockInfo]) -> None:
    # 1x7 then 3x1 over it: 3 rows, 7 columns
    text = "name: t\nstages: {a: [{block: conv, out: 8, kernel: [1, 7]}, {block: conv, kernel: [3, 1]}]}"
    (m,) = Analyst(kinds).cost(spec.parse(text, kinds), "deploy").taps
    assert m.window_h is not None and m.window_w is not None
    assert (m.window_h.extent(), m.window_w.extent(), m.receptive_field) == (3, 7, 7)


# ---------------------------------------------------------------------------------------------- the centre


@pytest.mark.parametrize(
    ("pad", "size", "side", "offset"),
    [
        # 3x3 stride 2 padded by 1: unit i looks at pixel 2 i. 31 -> 16 units: centres 0 to 30, the image's 15.
        (1, 31, 16, 0.0),
        # 32 -> 16 units: the same centres, but the image's centre is 15.5.
        (1, 32, 16, -0.5),
        # unpadded: unit i looks at pixel 2 i + 1. 31 -> 15 units: centres 1 to 29.
        (0, 31, 15, 0.0),
        (0, 32, 15, -0.5),
    ],
)
def test_offset_of_the_maps_centre(
    pad: int, size: int, side: int, offset: float, kinds: Mapping[str, BlockInfo]
) -> None:
    text = f"name: t\nstages: {{a: {{block: conv, out: 8, stride: 2, pad: {pad}}}}}"
    (m,) = Analyst(kinds).cost(spec.parse(text, kinds), "deploy", (size, size)).taps
    assert (m.height, m.offset_px(size)) == (side, offset)


def test_a_window_between_two_units_is_between_their_centres() -> None:
    step = win.sliding(3, 2, 1)
    assert (step.centre(0), step.centre(1), step.centre(0.5)) == (0.0, 2.0, 1.0)
    assert win.upsampled(2).centre(0.5) == 0.0  # two copies of pixel 0
