"""A plain convolution with batch norm and activation: stems, tails, hand-made stages.

Batch norm: Ioffe and Szegedy 2015, arXiv:1502.03167.
"""

from typing import Any

from bblab.blockkit import ConvNorm, block


@block("conv")
class Conv(ConvNorm):
    """Convolution, batch norm, activation.

    kernel: side in pixels, or [height, width].
    pad: same, valid, same_unless_strided, tf_same, a number or [height, width].
    dilation: distance between the kernel's taps.
    groups: channel groups that do not see each other.
    bias: null gives the convolution a bias only where there is no norm; true keeps one beside the norm.
    norm: batch norm after the convolution.
    act: activation, or none.
    eps: the norm's epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        kernel: int | list[int] = 3,
        pad: str | int | list[int] = "same",
        dilation: int = 1,
        groups: int = 1,
        bias: bool | None = None,
        norm: bool = True,
        act: str | None = "relu",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        shape: dict[str, Any] = {"pad": pad, "dilation": dilation, "groups": groups, "bias": bias}
        super().__init__(
            in_ch, out_ch, kernel, stride, **shape, norm=norm, act=act, eps=eps, device=device, dtype=dtype
        )
