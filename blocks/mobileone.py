"""MobileOne: depthwise and 1x1 layers with many branches in training, two convolutions on the device.

Vasu et al. 2023, arXiv:2206.04040, figure 3.
"""

from typing import Any

from torch import Tensor, nn

from bblab.blockkit import RepConv, block


@block("mobileone")
class MobileOne(nn.Module):
    """Re-parameterised depthwise convolution, then re-parameterised 1x1; each folds to one convolution.

    kernel: side of the depthwise convolution, odd.
    branches: parallel convolutions of each layer (4 in MobileOne-S0, 1 in S1 to S4).
    scale: a 1x1 branch beside the depthwise convolution, where its kernel is above 1.
    identity: a batch-norm-only branch, where channels and stride allow it.
    se: squeeze-and-excitation on both layers, between branch sum and activation: {ratio, gate, act, divisor, ...}.
    act: activation after each layer, or none.
    pad: padding rule of the depthwise convolution.
    dilation: distance between the depthwise kernel's taps.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        kernel: int = 3,
        branches: int = 1,
        scale: bool = True,
        identity: bool = True,
        se: dict | None = None,
        act: str | None = "relu",
        pad: str | int | list[int] = "same",
        dilation: int = 1,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        shared: dict[str, Any] = {"branches": branches, "identity": identity, "se": se, "act": act, "eps": eps}
        shared.update(device=device, dtype=dtype)
        self.depth = RepConv(
            in_ch, in_ch, kernel, stride, groups=in_ch, scale=scale, pad=pad, dilation=dilation, **shared
        )
        self.point = RepConv(in_ch, out_ch, 1, **shared)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        return self.point(self.depth(x))  # B, out_ch, H/stride, W/stride


@block("mobileone_dense")
class MobileOneDense(RepConv):
    """One re-parameterised dense convolution: MobileOne's stem, or 3x3 + 3x3 + ... + 1x1 + identity as one 3x3.

    kernel: side of the convolution, odd.
    branches: parallel convolutions of this kernel.
    scale: a 1x1 branch, where the kernel is above 1.
    identity: a batch-norm-only branch, where channels and stride allow it.
    se: squeeze-and-excitation between branch sum and activation: {ratio, gate, act, divisor, ...}.
    act: activation, or none.
    pad: padding rule.
    dilation: distance between the kernel's taps.
    groups: channel groups that do not see each other.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        kernel: int = 3,
        branches: int = 1,
        scale: bool = True,
        identity: bool = True,
        se: dict | None = None,
        act: str | None = "relu",
        pad: str | int | list[int] = "same",
        dilation: int = 1,
        groups: int = 1,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        shape: dict[str, Any] = {"pad": pad, "dilation": dilation, "groups": groups}
        super().__init__(
            in_ch,
            out_ch,
            kernel,
            stride,
            branches=branches,
            scale=scale,
            identity=identity,
            se=se,
            act=act,
            eps=eps,
            device=device,
            dtype=dtype,
            **shape,
        )
