"""MBConv: widen with a 1x1, filter per channel, squeeze back.

Sandler et al. 2018 (MobileNetV2), arXiv:1801.04381, figure 3b; with SE and hard-swish: arXiv:1905.02244.
"""

from typing import Any, Literal

from torch import Tensor, nn

from bblab.blockkit import ConvNorm, block, make_divisible, positive, shrinkage, squeeze_excite
from bblab.blockkit import act as activation


@block("mbconv")
class MBConv(nn.Module):
    """Inverted residual of MobileNetV2 and V3, EfficientNet, LightTrack and NanoTrack.

    kernel: side of the depthwise convolution.
    expand: expanded width as a multiple of the input channels; 1 keeps them.
    width: the expanded width itself; wins over expand.
    round_width: round expand times input to a multiple of 8 (false: cut to a whole number, as pysot does).
    expand_conv: whether the widening 1x1 exists; null leaves it away where it would not widen.
    se: squeeze-and-excitation of the expanded channels: {ratio, gate, act, divisor, base, layers, squeeze}.
    se_position: after_act or before_act of the depthwise convolution's activation.
    act: activation after the first two convolutions, or none; the last one never has any.
    dilation: distance between the depthwise kernel's taps.
    pad: padding rule of the depthwise convolution.
    residual: add the input, where channels and stride allow it.
    bias: keep a bias in each convolution beside its norm (FBNet).
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        kernel: int = 3,
        expand: float = 6,
        width: int | None = None,
        round_width: bool = True,
        expand_conv: bool | None = None,
        se: dict | None = None,
        se_position: Literal["after_act", "before_act"] = "after_act",
        act: str | None = "relu",
        dilation: int = 1,
        pad: str | int | list[int] = "same",
        residual: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        shared: dict[str, Any] = {"bias": bias, "eps": eps, **dd}
        if width is None:
            if expand <= 0:
                raise ValueError(f"expand must be above 0, read {expand}")
            width = make_divisible(in_ch * expand) if round_width and expand != 1 else int(in_ch * expand)
        positive(width=width, kernel=kernel)
        if expand_conv is False and width != in_ch:
            raise ValueError(f"expand_conv: false keeps the {in_ch} input channels, but the width is {width}")
        self.has_residual = residual and stride == 1 and in_ch == out_ch
        if self.has_residual and shrinkage(pad, kernel, stride, dilation) != (0, 0):
            raise ValueError(f"pad {pad} changes the map, so that nothing can be added: say residual: false")
        if se_position not in ("after_act", "before_act"):
            raise ValueError(f"se_position must be after_act or before_act, read {se_position!r}")
        is_gated_first = se is not None and se_position == "before_act"

        has_expand = width != in_ch if expand_conv is None else expand_conv
        self.expand = ConvNorm(in_ch, width, 1, act=act, **shared) if has_expand else nn.Identity()
        self.depth = ConvNorm(
            width,
            width,
            kernel,
            stride,
            pad=pad,
            dilation=dilation,
            groups=width,
            act=None if is_gated_first else act,
            **shared,
        )
        self.se = squeeze_excite(se, width, in_ch=in_ch, **dd)
        self.act = activation(act if is_gated_first else None)
        self.project = ConvNorm(width, out_ch, 1, act=None, **shared)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        wide = self.depth(self.expand(x))  # B, width, H/stride, W/stride
        out = self.project(self.act(self.se(wide)))  # B, out_ch, H/stride, W/stride
        return x + out if self.has_residual else out
