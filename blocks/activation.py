"""An activation as a row of its own, for nets that put something between a convolution and its activation.

Pooling before the activation: AlexNet as pysot has it (SiamRPN), Li et al. 2018, and VanillaNet, arXiv:2305.12972.
"""

from typing import Any

from torch import Tensor, nn

from bblab.blockkit import act as activation
from bblab.blockkit import block


@block("activation", keeps_channels=True)
class Activation(nn.Module):
    """One activation over the whole map.

    act: its name.
    """

    def __init__(self, in_ch: int, out_ch: int, *, act: str = "relu", device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if in_ch != out_ch:
            raise ValueError(f"out must be the input's {in_ch} channels, read {out_ch}")
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:  # B, C, H, W
        return self.act(x)
