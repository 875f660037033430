"""Inception modules: branches of different depth over the same map, side by side in the output.

Szegedy et al. 2015 (GoogLeNet), arXiv:1409.4842, figure 2b; A, B and C of Inception-v3: arXiv:1512.00567, figures 5,
10 and 6. The cropped two-branch unit: SiamDW, arXiv:1901.01660, figure 4.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bblab.blockkit import ConvNorm, block, positive
from bblab.blockkit import crop as crop_sides


def _check_sum(out_ch: int, parts: list[int]) -> None:
    if sum(parts) != out_ch:
        raise ValueError(f"out must be the branches' {' + '.join(map(str, parts))} = {sum(parts)}, read {out_ch}")


class _Parallel(nn.Module):
    """Every branch over the same map, concatenated in order."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        return torch.cat([branch(x) for branch in self.branches], dim=1)  # B, out_ch, H', W'


@block("inception")
class Inception(_Parallel):
    """GoogLeNet's module: 1x1; 1x1 and 3x3; 1x1 and a larger kernel; 3x3 max pool and 1x1.

    one: channels of the 1x1 branch.
    three: channels of the 3x3 branch, [after its 1x1, after its 3x3].
    five: channels of the third branch, [after its 1x1, after its kernel].
    pool: channels of the 1x1 behind the pool.
    kernel: side of the third branch's kernel: 5 in the paper, 3 in torchvision's net and its weights.
    act: activation after every convolution, or none.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        *,
        one: int,
        three: list[int],
        five: list[int],
        pool: int,
        kernel: int = 5,
        act: str | None = "relu",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        for name, widths in (("three", three), ("five", five)):
            if len(widths) != 2:
                raise ValueError(f"{name} must be [after its 1x1, after its kernel], read {widths}")
        _check_sum(out_ch, [one, three[1], five[1], pool])
        dd: dict[str, Any] = {"act": act, "eps": eps, "device": device, "dtype": dtype}
        super().__init__(
            ConvNorm(in_ch, one, 1, **dd),
            nn.Sequential(ConvNorm(in_ch, three[0], 1, **dd), ConvNorm(three[0], three[1], 3, **dd)),
            nn.Sequential(ConvNorm(in_ch, five[0], 1, **dd), ConvNorm(five[0], five[1], kernel, **dd)),
            nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(in_ch, pool, 1, **dd)),
        )


@block("inception_a")
class InceptionA(_Parallel):
    """Inception-v3's module for large maps: 1x1 (64); 5x5 (64); two 3x3 (96); average pool and 1x1 (out minus 224).

    act: activation after every convolution, or none.
    eps: the norms' epsilon; the authors' is 1e-3.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        *,
        act: str | None = "relu",
        eps: float = 1e-3,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if out_ch <= 224:
            raise ValueError(f"out must be above the 64 + 64 + 96 channels of the convolutions, read {out_ch}")
        dd: dict[str, Any] = {"act": act, "eps": eps, "device": device, "dtype": dtype}
        super().__init__(
            ConvNorm(in_ch, 64, 1, **dd),
            nn.Sequential(ConvNorm(in_ch, 48, 1, **dd), ConvNorm(48, 64, 5, **dd)),
            nn.Sequential(ConvNorm(in_ch, 64, 1, **dd), ConvNorm(64, 96, 3, **dd), ConvNorm(96, 96, 3, **dd)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvNorm(in_ch, out_ch - 224, 1, **dd)),
        )


@block("inception_b")
class InceptionB(_Parallel):
    """Inception-v3's reduction, unpadded: 3x3 (384); 1x1, 3x3, 3x3 (96); max pool, which keeps the input's channels.

    act: activation after every convolution, or none.
    eps: the norms' epsilon; the authors' is 1e-3.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        act: str | None = "relu",
        eps: float = 1e-3,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_sum(out_ch, [384, 96, in_ch])
        dd: dict[str, Any] = {"act": act, "eps": eps, "device": device, "dtype": dtype}
        super().__init__(
            ConvNorm(in_ch, 384, 3, stride, pad="valid", **dd),
            nn.Sequential(
                ConvNorm(in_ch, 64, 1, **dd),
                ConvNorm(64, 96, 3, **dd),
                ConvNorm(96, 96, 3, stride, pad="valid", **dd),
            ),
            nn.MaxPool2d(3, stride),
        )


@block("inception_c")
class InceptionC(_Parallel):
    """Inception-v3's module for middle maps: 1x1; 1x7 and 7x1; the same twice; average pool and 1x1. Each a quarter.

    width: channels between the rectangular kernels (128, 160 and 192 in Inception-v3).
    act: activation after every convolution, or none.
    eps: the norms' epsilon; the authors' is 1e-3.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        *,
        width: int = 128,
        act: str | None = "relu",
        eps: float = 1e-3,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        positive(width=width)
        if out_ch % 4:
            raise ValueError(f"out must be a multiple of 4, one quarter a branch; read {out_ch}")
        part, row, column = out_ch // 4, [1, 7], [7, 1]
        dd: dict[str, Any] = {"act": act, "eps": eps, "device": device, "dtype": dtype}
        super().__init__(
            ConvNorm(in_ch, part, 1, **dd),
            nn.Sequential(
                ConvNorm(in_ch, width, 1, **dd),
                ConvNorm(width, width, row, **dd),
                ConvNorm(width, part, column, **dd),
            ),
            nn.Sequential(
                ConvNorm(in_ch, width, 1, **dd),
                ConvNorm(width, width, column, **dd),
                ConvNorm(width, width, row, **dd),
                ConvNorm(width, width, column, **dd),
                ConvNorm(width, part, row, **dd),
            ),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvNorm(in_ch, part, 1, **dd)),
        )


@block("cir_inception")
class CirInception(_Parallel):
    """SiamDW's CIR-Inception unit: a 1x1 in the shortcut, concatenated with the bottleneck instead of added; cropped.

    Four fifths of out come from 1x1, 3x3 (a fifth wide), 1x1; the last fifth is the shortcut.

    last_act: whether an activation ends both branches.
    crop: pixels cut from each side of the map.
    act: activation, or none.
    eps: the bottleneck's norms' epsilon.
    shortcut_eps: that of the shortcut's norm; the authors' is larger there.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        *,
        last_act: bool = True,
        crop: int = 1,
        act: str | None = "relu",
        eps: float = 1e-5,
        shortcut_eps: float = 1e-3,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if out_ch % 5:
            raise ValueError(f"out must be a multiple of 5: one part shortcut, four parts bottleneck; read {out_ch}")
        if crop < 0:
            raise ValueError(f"crop must be at least 0, read {crop}")
        part = out_ch // 5
        last = act if last_act else None
        dd = {"device": device, "dtype": dtype}
        super().__init__(
            nn.Sequential(
                ConvNorm(in_ch, part, 1, act=act, eps=eps, **dd),
                ConvNorm(part, part, 3, act=act, eps=eps, **dd),
                ConvNorm(part, 4 * part, 1, act=last, eps=eps, **dd),
            ),
            ConvNorm(in_ch, part, 1, act=last, eps=shortcut_eps, **dd),
        )
        self.crop = crop

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        return crop_sides(super().forward(x), self.crop)  # B, out_ch, H - 2 crop, W - 2 crop
