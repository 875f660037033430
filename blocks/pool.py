"""Pooling between stages and cropping of map borders: blocks without a weight.

Max pooling with overlap: Krizhevsky 2014 (AlexNet), arXiv:1404.5997.
Cropping what padding has touched: SiamDW, arXiv:1901.01660.
"""

from typing import Any

from torch import Tensor, nn

from bblab.blockkit import block, padding, positive
from bblab.blockkit import crop as crop_sides


def _checked(in_ch: int, out_ch: int, kernel: int, stride: int, pad: str | int | list[int]) -> tuple[int, int]:
    """The pool's padding, or a ValueError for what torch would refuse later or silently do otherwise."""
    positive(kernel=kernel, stride=stride)
    if in_ch != out_ch:
        raise ValueError(f"out must be the input's {in_ch} channels, read {out_ch}")
    sides = padding(pad, (kernel, kernel), stride)
    if sides is None:
        raise ValueError("pad tf_same is not for pools; give a number")
    if max(sides) > kernel // 2:
        raise ValueError(f"pad must be at most half the kernel {kernel}, read {pad}")
    return sides


@block("maxpool", keeps_channels=True)
class MaxPool(nn.MaxPool2d):
    """Largest value of each window; the step is the row's stride.

    kernel: the window's side.
    pad: pixels added on each side (never the largest), or a padding rule.
    ceil_mode: keep a last window that is only partly on the map.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        kernel: int = 3,
        pad: str | int | list[int] = 0,
        ceil_mode: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sides = _checked(in_ch, out_ch, kernel, stride, pad)
        super().__init__(kernel, stride, sides, ceil_mode=ceil_mode)


@block("avgpool", keeps_channels=True)
class AvgPool(nn.AvgPool2d):
    """Mean of each window; the step is the row's stride. Padded zeros count, as torch has it.

    kernel: the window's side.
    pad: pixels of zeros added on each side, or a padding rule.
    ceil_mode: keep a last window that is only partly on the map.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        kernel: int = 3,
        pad: str | int | list[int] = 0,
        ceil_mode: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sides = _checked(in_ch, out_ch, kernel, stride, pad)
        super().__init__(kernel, stride, sides, ceil_mode=ceil_mode)


@block("crop", keeps_channels=True)
class Crop(nn.Module):
    """Cut pixels off each side of the map, so that nothing that padding has touched remains.

    Zhang and Peng 2019 (SiamDW), arXiv:1901.01660, figure 4.

    crop: pixels a side.
    """

    def __init__(self, in_ch: int, out_ch: int, *, crop: int = 1, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        positive(crop=crop)
        if in_ch != out_ch:
            raise ValueError(f"out must be the input's {in_ch} channels, read {out_ch}")
        self.crop = crop

    def forward(self, x: Tensor) -> Tensor:  # B, C, H, W
        return crop_sides(x, self.crop)  # B, C, H - 2 crop, W - 2 crop
