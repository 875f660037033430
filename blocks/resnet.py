"""ResNet's two residual units, with the projections and crops that Siamese trackers put on them.

He et al. 2016, arXiv:1512.03385, figure 5. 3x3 projections and unpadded strides: SiamRPN++, arXiv:1812.11703.
Cropping after the sum and a norm there: SiamDW's CIR units, arXiv:1901.01660, figure 4.
"""

from typing import Any

from torch import Tensor, nn

from bblab.blockkit import ConvNorm, block, choose, positive, shrinkage
from bblab.blockkit import act as activation
from bblab.blockkit import crop as crop_sides


class _Residual(nn.Module):
    """main(x) + shortcut(x), then norm (`norm_sum`), activation and crop. The units below fill in `main`."""

    def __init__(
        self,
        main: nn.Sequential,
        in_ch: int,
        out_ch: int,
        stride: int,
        *,
        projection: dict | None,
        dilation: int,
        pad: str | int | list[int],
        crop: int,
        act: str | None,
        eps: float,
        norm_sum: bool = False,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"kernel": 1, **(projection or {})}
        for key in options:
            choose(key, "key of projection", ("kernel",))
        kernel = options["kernel"]
        if isinstance(kernel, bool) or kernel not in (1, 3):
            raise ValueError(f"projection: kernel must be 1 or 3, read {kernel!r}")
        if crop < 0:
            raise ValueError(f"crop must be at least 0, read {crop}")
        if shrinkage(pad, 3, 1, dilation) != (0, 0):
            raise ValueError(f"pad {pad} changes the map at stride 1, so that nothing can be added; crop after the sum")
        self.main = main
        self.shortcut: nn.Module = nn.Identity()
        if in_ch != out_ch or stride > 1:
            rule = pad if kernel > 1 else "valid"
            if shrinkage(pad, 3, stride, dilation) != shrinkage(rule, kernel, stride, dilation):
                raise ValueError(f"pad {pad} shortens the 3x3 path only; it needs projection: {{kernel: 3}}")
            self.shortcut = ConvNorm(
                in_ch,
                out_ch,
                kernel,
                stride,
                pad=rule,
                dilation=dilation,
                bias=False,
                norm=not norm_sum,
                act=None,
                eps=eps,
                device=device,
                dtype=dtype,
            )
        self.norm = nn.BatchNorm2d(out_ch, eps=eps, device=device, dtype=dtype) if norm_sum else nn.Identity()
        self.act = activation(act)
        self.crop = crop

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        total = self.main(x) + self.shortcut(x)  # B, out_ch, H/stride, W/stride
        return crop_sides(self.act(self.norm(total)), self.crop)  # B, out_ch, H/stride - 2 crop, W/stride - 2 crop


@block("basic")
class Basic(_Residual):
    """Two 3x3 convolutions and a shortcut (ResNet-18 and 34). The first one strides.

    width: channels between the convolutions; null is out.
    groups: channel groups of the convolutions.
    dilation: distance between the kernels' taps, in the projection too.
    projection: form of the shortcut where channels or stride change: {kernel: 1} or {kernel: 3}.
    last_act: whether an activation follows the sum.
    crop: pixels cut from each side after the sum.
    act: activation, or none.
    pad: padding rule of every kernel above 1x1.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        width: int | None = None,
        groups: int = 1,
        dilation: int = 1,
        projection: dict | None = None,
        last_act: bool = True,
        crop: int = 0,
        act: str | None = "relu",
        pad: str | int | list[int] = "same",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        mid = out_ch if width is None else width
        dd: dict[str, Any] = {"eps": eps, "device": device, "dtype": dtype}
        conv: dict[str, Any] = {"pad": pad, "dilation": dilation, "groups": groups, **dd}
        main = nn.Sequential(
            ConvNorm(in_ch, mid, 3, stride, act=act, **conv),
            ConvNorm(mid, out_ch, 3, act=None, **conv),
        )
        last = act if last_act else None
        shape: dict[str, Any] = {"projection": projection, "dilation": dilation, "pad": pad, "crop": crop}
        super().__init__(main, in_ch, out_ch, stride, act=last, **shape, **dd)


@block("bottleneck")
class Bottleneck(_Residual):
    """1x1, 3x3, 1x1 and a shortcut (ResNet-50). The 3x3 strides, as in torchvision and pysot.

    width: channels of the 3x3 convolution; null is a quarter of out.
    widen: how many times its input channels the 3x3 convolution gives (CIResNet22W: 2).
    groups: channel groups of the 3x3 convolution (ResNeXt).
    dilation: distance between the 3x3 kernels' taps, in the projection too.
    projection: form of the shortcut where channels or stride change: {kernel: 1} or {kernel: 3} (pysot).
    norm_sum: a norm after the sum, none after the projection (CIResNeXt22).
    last_act: whether an activation follows the sum.
    crop: pixels cut from each side after the sum (SiamDW's CIR unit: 1).
    act: activation, or none.
    pad: padding rule of every kernel above 1x1.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        width: int | None = None,
        widen: int = 1,
        groups: int = 1,
        dilation: int = 1,
        projection: dict | None = None,
        norm_sum: bool = False,
        last_act: bool = True,
        crop: int = 0,
        act: str | None = "relu",
        pad: str | int | list[int] = "same",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        mid = out_ch // 4 if width is None else width
        if mid < 1:
            raise ValueError(f"width must be at least 1; a quarter of out {out_ch} is not")
        positive(widen=widen)
        wide = mid * widen
        dd: dict[str, Any] = {"eps": eps, "device": device, "dtype": dtype}
        main = nn.Sequential(
            ConvNorm(in_ch, mid, 1, act=act, **dd),
            ConvNorm(mid, wide, 3, stride, pad=pad, dilation=dilation, groups=groups, act=act, **dd),
            ConvNorm(wide, out_ch, 1, act=None, **dd),
        )
        last = act if last_act else None
        shape: dict[str, Any] = {"projection": projection, "dilation": dilation, "pad": pad, "crop": crop}
        super().__init__(main, in_ch, out_ch, stride, act=last, norm_sum=norm_sum, **shape, **dd)
