"""Depthwise-separable convolution: filter each channel, then mix the channels with a 1x1.

Howard et al. 2017 (MobileNet), arXiv:1704.04861, figure 3.
"""

from typing import Any

from torch import Tensor, nn

from bblab.blockkit import ConvNorm, block


@block("dwsep")
class DepthSeparable(nn.Module):
    """Depthwise kernel x kernel, then 1x1, each with batch norm and activation. No shortcut.

    kernel: side of the depthwise convolution, 3, 5 or 7 as a rule.
    pad: padding rule of the depthwise convolution.
    dilation: distance between the kernel's taps.
    act: activation after the 1x1, or none.
    mid_act: activation after the depthwise convolution; same means that of act.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        kernel: int = 3,
        pad: str | int | list[int] = "same",
        dilation: int = 1,
        act: str | None = "relu",
        mid_act: str | None = "same",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"eps": eps, "device": device, "dtype": dtype}
        middle = act if mid_act == "same" else mid_act
        self.depth = ConvNorm(
            in_ch, in_ch, kernel, stride, pad=pad, dilation=dilation, groups=in_ch, act=middle, **shared
        )
        self.point = ConvNorm(in_ch, out_ch, 1, act=act, **shared)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        return self.point(self.depth(x))  # B, out_ch, H/stride, W/stride
