"""RepVGG: 3x3, 1x1 and identity side by side in training, a single 3x3 on the device.

Ding et al. 2021, arXiv:2101.03697, figure 2.
"""

from typing import Any

from bblab.blockkit import RepConv, block


@block("repvgg")
class RepVGG(RepConv):
    """Dense re-parameterised convolution. With scale and identity off it is a plain 3x3 layer.

    kernel: side of the convolution, odd.
    scale: the 1x1 branch.
    identity: the batch-norm-only branch, where channels and stride allow it.
    groups: channel groups that do not see each other (RepVGG's g2 and g4 nets).
    se: squeeze-and-excitation between branch sum and activation: {ratio, gate, act, divisor, ...}.
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
        scale: bool = True,
        identity: bool = True,
        groups: int = 1,
        se: dict | None = None,
        act: str | None = "relu",
        pad: str | int | list[int] = "same",
        dilation: int = 1,
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
            scale=scale,
            identity=identity,
            se=se,
            act=act,
            eps=eps,
            device=device,
            dtype=dtype,
            **shape,
        )
