"""ShuffleNetV2 units: work on half of the channels, then interleave the halves.

Ma et al. 2018 (ShuffleNetV2), arXiv:1807.11164, figures 3c and 3d.
The pooled shortcut is that of ShuffleNet's stride-2 unit: Zhang et al. 2017, arXiv:1707.01083, figure 2c.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bblab.blockkit import ConvNorm, RepConv, block, channel_shuffle, shrinkage


@block("shuffle")
class Shuffle(nn.Module):
    """Stride 1: half of the channels passes, half goes through 1x1, depthwise, 1x1. Stride 2: shuffle_down.

    kernel: side of the depthwise convolution.
    act: activation after the 1x1 convolutions; the depthwise one has none.
    pad: padding rule of the depthwise convolution.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        kernel: int = 3,
        act: str | None = "relu",
        pad: str | int | list[int] = "same",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check_even(out_ch)
        shared: dict[str, Any] = {"pad": pad, "act": act, "eps": eps, "device": device, "dtype": dtype}
        half = self.half_ch = out_ch // 2
        self.splits = stride == 1
        if self.splits:
            if in_ch != out_ch:
                raise ValueError(f"out must be the input's {in_ch} channels at stride 1, read {out_ch}")
            if shrinkage(pad, kernel) != (0, 0):
                raise ValueError(f"pad {pad} changes the map, so that the halves no longer fit together")
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = _depth_point(in_ch, half, stride, kernel, **shared)
        self.main = _point_depth_point(half if self.splits else in_ch, half, stride, kernel, **shared)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        # split, not chunk: a fixed size exports as one ONNX op, chunk as the arithmetic that finds the size
        left, right = x.split(self.half_ch, dim=1) if self.splits else (x, x)
        joined = torch.cat((self.shortcut(left), self.main(right)), dim=1)  # B, out_ch, H/stride, W/stride
        return channel_shuffle(joined)


@block("shuffle_down")
class ShuffleDown(nn.Module):
    """Two branches over the whole input, side by side in the output. At stride 1 it keeps the map ("false stride").

    shortcut: conv is ShuffleNetV2's unit: depthwise and 1x1 give half of the channels, and the main branch (1x1,
        depthwise, 1x1) the other half. avgpool and maxpool: the input itself, pooled 3x3, keeps its channels, and the
        main branch (depthwise first, 1x1 on the smaller map, as in MobileOne) adds the rest: out minus in.
    kernel: side of the depthwise convolutions.
    branches: 0 for plain convolutions; from 1 each is re-parameterised, with that many parallel convolutions.
    shuffle: interleave the channels of the two branches.
    act: activation after the 1x1 convolutions; beside a pool also after the depthwise one.
    pad: padding rule of the depthwise convolutions and of the pool.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        shortcut: Literal["conv", "avgpool", "maxpool"] = "conv",
        kernel: int = 3,
        branches: int = 0,
        shuffle: bool = True,
        act: str | None = "relu",
        pad: str | int | list[int] = "same",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if branches < 0:
            raise ValueError(f"branches must be at least 0, read {branches}")
        if shuffle:
            _check_even(out_ch)
        shared: dict[str, Any] = {"pad": pad, "act": act, "eps": eps, "device": device, "dtype": dtype}
        shared["branches"] = branches
        self.is_shuffled = shuffle
        if shortcut == "conv":
            half = out_ch // 2
            self.shortcut: nn.Module = _depth_point(in_ch, half, stride, kernel, **shared)
            self.main = _point_depth_point(in_ch, out_ch - half, stride, kernel, **shared)
        elif shortcut in ("avgpool", "maxpool"):
            if out_ch <= in_ch:
                raise ValueError(f"out must be above the {in_ch} channels that the {shortcut} keeps, read {out_ch}")
            lost = shrinkage(pad, 3, stride)
            if pad == "tf_same" or lost != shrinkage(pad, kernel, stride):
                raise ValueError(f"pad {pad} gives the 3x3 {shortcut} and the {kernel}x{kernel} kernel different maps")
            pool = nn.AvgPool2d if shortcut == "avgpool" else nn.MaxPool2d
            self.shortcut = pool(3, stride, (1 - lost[0] // 2, 1 - lost[1] // 2))
            self.main = _depth_point(in_ch, out_ch - in_ch, stride, kernel, mid_act=act, **shared)
        else:
            raise ValueError(f"shortcut must be conv, avgpool or maxpool, read {shortcut!r}")

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        joined = torch.cat((self.shortcut(x), self.main(x)), dim=1)  # B, out_ch, H/stride, W/stride
        return channel_shuffle(joined) if self.is_shuffled else joined


def _check_even(out_ch: int) -> None:
    if out_ch % 2:
        raise ValueError(f"out must be even, to be shuffled in two halves; read {out_ch}")


def _layer(in_ch: int, out_ch: int, kernel: int, stride: int = 1, *, branches: int = 0, **shared: Any) -> nn.Module:
    if branches:
        return RepConv(in_ch, out_ch, kernel, stride, branches=branches, **shared)
    return ConvNorm(in_ch, out_ch, kernel, stride, **shared)


def _depth_point(
    in_ch: int, out_ch: int, stride: int, kernel: int, *, pad: Any, act: Any, mid_act: Any = None, **shared: Any
) -> nn.Sequential:
    return nn.Sequential(
        _layer(in_ch, in_ch, kernel, stride, groups=in_ch, pad=pad, act=mid_act, **shared),
        _layer(in_ch, out_ch, 1, act=act, **shared),
    )


def _point_depth_point(
    in_ch: int, out_ch: int, stride: int, kernel: int, *, pad: Any, act: Any, **shared: Any
) -> nn.Sequential:
    return nn.Sequential(
        _layer(in_ch, out_ch, 1, act=act, **shared),
        *_depth_point(out_ch, out_ch, stride, kernel, pad=pad, act=act, **shared),
    )
