"""RepViT: a transformer block's order (mix places, then channels) made of re-parameterised convolutions.

Wang et al. 2024, arXiv:2307.09283, figure 4; downsampling: figure 5; as in github.com/THU-MIG/RepViT.
"""

from typing import Any

import torch
from torch import Tensor, nn

from bblab.blockkit import ConvNorm, RepConvNorm, affine, block, positive, squeeze_excite


class _Mlp(nn.Module):
    """x + two 1x1 convolutions, wider in between: the channel mixer."""

    def __init__(self, channels: int, width: int, *, act: str | None, eps: float, device: Any, dtype: Any) -> None:
        super().__init__()
        dd: dict[str, Any] = {"eps": eps, "device": device, "dtype": dtype}
        self.widen = ConvNorm(channels, width, 1, act=act, **dd)
        self.narrow = ConvNorm(width, channels, 1, act=None, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(self.widen(x))


class _Unit(nn.Sequential):
    """Depthwise token mixer, SE, channel mixer: B, C, H, W -> B, C, H, W."""

    def __init__(
        self, channels: int, *, kernel: int, expand: float, se: dict | None, act: str | None, eps: float, **dd: Any
    ) -> None:
        positive(expand=int(channels * expand))
        super().__init__(
            RepConvNorm(channels, channels, kernel, groups=channels, scale_bias=True, act=None, eps=eps, **dd),
            squeeze_excite(se, channels, **dd),
            _Mlp(channels, int(channels * expand), act=act, eps=eps, **dd),
        )


@block("repvit")
class RepViT(nn.Sequential):
    """Units of a re-parameterised depthwise convolution, SE and a two-layer channel mixer with a shortcut.

    units: how many in a row.
    se: squeeze-and-excitation in every second unit, beginning with the first: {ratio, gate, act, divisor, ...}.
    kernel: side of the depthwise convolution, odd.
    expand: width between the mixer's 1x1 convolutions, as a multiple of the channels.
    act: activation between them, or none.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        *,
        units: int = 1,
        se: dict | None = None,
        kernel: int = 3,
        expand: float = 2,
        act: str | None = "gelu",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        positive(units=units)
        if in_ch != out_ch:
            raise ValueError(f"out must be the input's {in_ch} channels, read {out_ch}; repvit_down changes them")
        shared: dict[str, Any] = {"kernel": kernel, "expand": expand, "act": act, "eps": eps}
        shared.update(device=device, dtype=dtype)
        super().__init__(*(_Unit(in_ch, se=se if i % 2 == 0 else None, **shared) for i in range(units)))


@block("repvit_down")
class RepViTDown(nn.Sequential):
    """A unit without SE, a strided depthwise convolution, a 1x1 to the new width, a channel mixer with a shortcut.

    kernel: side of both depthwise convolutions, odd.
    expand: width between the mixers' 1x1 convolutions, as a multiple of their channels.
    act: activation between them, or none.
    pad: padding rule of the strided convolution.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        stride: int = 1,
        *,
        kernel: int = 3,
        expand: float = 2,
        act: str | None = "gelu",
        pad: str | int | list[int] = "same",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd: dict[str, Any] = {"eps": eps, "device": device, "dtype": dtype}
        super().__init__(
            _Unit(in_ch, kernel=kernel, expand=expand, se=None, act=act, **dd),
            ConvNorm(in_ch, in_ch, kernel, stride, pad=pad, groups=in_ch, act=None, **dd),
            ConvNorm(in_ch, out_ch, 1, act=None, **dd),
            _Mlp(out_ch, int(out_ch * expand), act=act, **dd),
        )


@block("repvit_classifier", is_head=True)
class RepViTClassifier(nn.Module):
    """Average pool, then `heads` times norm and linear layer, averaged; one linear layer on the device.

    heads: 2 where the net was distilled (one head learns from the teacher), else 1.
    eps: the norms' epsilon.
    """

    def __init__(
        self, in_ch: int, out_ch: int, *, heads: int = 2, eps: float = 1e-5, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        positive(heads=heads)
        dd = {"device": device, "dtype": dtype}
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.norms = nn.ModuleList(nn.BatchNorm1d(in_ch, eps=eps, **dd) for _ in range(heads))
        self.lasts = nn.ModuleList(nn.Linear(in_ch, out_ch, **dd) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        flat = self.pool(x).flatten(1)  # B, in_ch
        scores = [last(norm(flat)) for norm, last in zip(self.norms, self.lasts, strict=True)]
        total = scores[0]
        for score in scores[1:]:
            total = total + score
        return total / len(scores)  # B, out_ch

    def deploy(self) -> nn.Module:
        weights, biases = [], []
        for norm, last in zip(self.norms, self.lasts, strict=True):
            assert isinstance(norm, nn.BatchNorm1d) and isinstance(last, nn.Linear)
            gain, shift = affine(norm)
            weight = last.weight.detach().double()
            weights.append(weight * gain)
            biases.append(weight @ shift + last.bias.detach().double())
        like = self.lasts[0]
        assert isinstance(like, nn.Linear)
        fused = nn.Linear(like.in_features, like.out_features, device="meta")
        fused.weight = nn.Parameter(torch.stack(weights).mean(0).to(like.weight.dtype))
        fused.bias = nn.Parameter(torch.stack(biases).mean(0).to(like.weight.dtype))
        return nn.Sequential(self.pool, nn.Flatten(1), fused).train(self.training)
