"""VanillaNet: few wide 1x1 layers, no shortcut; what makes it non-linear is an activation that looks around.

Chen et al. 2023, arXiv:2305.12972: deep training (section 2.1), series activation (section 2.2), table 1;
github.com/huawei-noah/VanillaNet.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bblab.blockkit import ConvNorm, block, folded, positive, with_weights
from bblab.blockkit import act as activation

LINEAR_AT = 0.33
"""Share of the training after which the inner activation is linear; the authors': epoch 100 of 300."""


class _Pair(nn.Module):
    """Two convolutions with an activation between them that fades out while training, so that one remains.

    leaky_relu whose slope grows from 0 to 1 (deep training); at 1 the pair is linear and folds to one convolution.
    """

    def __init__(
        self, in_ch: int, mid_ch: int, out_ch: int, kernel: int, stride: int, *, last_norm: bool, eps: float, **dd: Any
    ) -> None:
        super().__init__()
        self.first = ConvNorm(in_ch, mid_ch, kernel, stride, pad="valid", bias=True, act=None, eps=eps, **dd)
        self.second = ConvNorm(mid_ch, out_ch, 1, bias=True, norm=last_norm, act=None, eps=eps, **dd)
        self.slope = 1.0

    def set_progress(self, t: float) -> None:
        self.slope = min(1.0, max(0.0, t / LINEAR_AT))

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        return self.second(F.leaky_relu(self.first(x), self.slope))  # B, out_ch, H/stride, W/stride

    def deploy(self) -> nn.Module:
        """One convolution, once the activation has faded out; before that two, with their norms folded."""
        if self.slope < 1:
            first, second = self.first.deploy(), self.second.deploy()
            return nn.Sequential(first, nn.LeakyReLU(self.slope), second).train(self.training)
        kernel, bias = folded(self.first.conv, self.first.norm)
        point, point_bias = folded(self.second.conv, self.second.norm)
        mix = point[:, :, 0, 0]  # out_ch, mid_ch
        whole = torch.einsum("om,mikl->oikl", mix, kernel)
        like = nn.Conv2d(
            self.first.conv.in_channels,
            len(mix),
            self.first.conv.kernel_size,  # type: ignore[arg-type]
            self.first.conv.stride,  # type: ignore[arg-type]
            device="meta",
            dtype=self.first.conv.weight.dtype,
        )
        return with_weights(like.train(self.training), whole, mix @ bias + point_bias)


class _Layer(nn.Module):
    """A pair of convolutions, a pool, the series activation."""

    def __init__(
        self, pair: _Pair, out_ch: int, pool: int, *, series: int, first_act: str | None, eps: float, **dd: Any
    ) -> None:
        super().__init__()
        positive(series=series)
        self.pair = pair
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.act = activation(first_act)
        self.around = ConvNorm(out_ch, out_ch, 2 * series + 1, groups=out_ch, act=None, eps=eps, **dd)

    def set_progress(self, t: float) -> None:
        """How far the training is, 0 to 1: moves the inner activation towards linear."""
        self.pair.set_progress(t)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        return self.around(self.act(self.pool(self.pair(x))))  # B, out_ch, H/stride, W/stride


@block("vanilla_stem")
class VanillaStem(_Layer):
    """A convolution over patches that do not overlap (its kernel is the stride), then the series activation.

    series: reach of the learned activation in units; it is a depthwise convolution of side 2 series + 1.
    act: the activation in front of it.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        series: int = 3,
        act: str | None = "relu",
        eps: float = 1e-6,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        pair = _Pair(in_ch, out_ch, out_ch, stride, stride, last_norm=True, eps=eps, **dd)
        super().__init__(pair, out_ch, 1, series=series, first_act=act, eps=eps, **dd)


@block("vanilla")
class Vanilla(_Layer):
    """1x1 convolution (two in training), max pool of the stride's side, series activation.

    series: reach of the learned activation in units; it is a depthwise convolution of side 2 series + 1.
    act: the activation in front of it.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        series: int = 3,
        act: str | None = "relu",
        eps: float = 1e-6,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd = {"device": device, "dtype": dtype}
        pair = _Pair(in_ch, in_ch, out_ch, 1, 1, last_norm=True, eps=eps, **dd)
        super().__init__(pair, out_ch, stride, series=series, first_act=act, eps=eps, **dd)


@block("vanilla_classifier", is_head=True)
class VanillaClassifier(nn.Module):
    """Average pool, dropout, 1x1 convolution to the classes (two in training).

    dropout: share of the values dropped while training.
    eps: the norm's epsilon.
    """

    def __init__(
        self, in_ch: int, out_ch: int, *, dropout: float = 0.0, eps: float = 1e-6, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be from 0 to below 1, read {dropout}")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.pair = _Pair(in_ch, out_ch, out_ch, 1, 1, last_norm=False, eps=eps, device=device, dtype=dtype)

    def set_progress(self, t: float) -> None:
        """How far the training is, 0 to 1: moves the inner activation towards linear."""
        self.pair.set_progress(t)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        return self.pair(self.dropout(self.pool(x))).flatten(1)  # B, out_ch
