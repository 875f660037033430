"""QARepVGG: RepVGG whose branches stay close to each other in size, so that the fused layer survives 8-bit rounding.

Chu et al. 2022, arXiv:2212.01593, figure 3, setting S4; the 1x1 and the identity have no norm, their sum has one.
"""

from typing import Any

from bblab.blockkit import RepConvNorm, block


@block("qarepvgg")
class QARepVGG(RepConvNorm):
    """3x3 with norm, 1x1 and identity without, one norm after the sum; a single convolution on the device.

    kernel: side of the convolution, odd.
    groups: channel groups that do not see each other.
    act: activation, or none.
    pad: padding rule.
    dilation: distance between the kernel's taps.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        kernel: int = 3,
        groups: int = 1,
        act: str | None = "relu",
        pad: str | int | list[int] = "same",
        dilation: int = 1,
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        shape: dict[str, Any] = {"pad": pad, "dilation": dilation, "groups": groups}
        super().__init__(in_ch, out_ch, kernel, stride, act=act, eps=eps, device=device, dtype=dtype, **shape)
