"""MobileViT: a convolution for what is near, a small transformer over patches for what is far, fused with the input.

Mehta and Rastegari 2022, arXiv:2110.02178, figure 1b; as in timm and mmpretrain.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bblab.blockkit import ConvNorm, act, block, positive


class _Transformer(nn.Module):
    """Self-attention and two linear layers, each behind a layer norm and beside a shortcut: B, N, C -> B, N, C."""

    def __init__(self, channels: int, heads: int, expand: float, act_name: str | None, **dd: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels, **dd)
        self.qkv = nn.Linear(channels, 3 * channels, **dd)
        self.out = nn.Linear(channels, channels, **dd)
        self.norm2 = nn.LayerNorm(channels, **dd)
        self.widen = nn.Linear(channels, int(channels * expand), **dd)
        self.act = act(act_name)
        self.narrow = nn.Linear(int(channels * expand), channels, **dd)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v)  # B, heads, N, C / heads
        x = x + self.out(seen.transpose(1, 2).reshape(b, n, c))
        return x + self.narrow(self.act(self.widen(self.norm2(x))))


@block("mobilevit")
class MobileViT(nn.Module):
    """Convolution, 1x1, transformer over the units at the same place in every patch, 1x1, concat, convolution.

    Maps that no whole number of patches fills are resized (bilinear) for the transformer, and back.

    width: channels inside the transformer.
    depth: transformer layers.
    heads: attention heads; they share the width.
    expand: width of the transformer's linear layers, as a multiple of its channels.
    patch: side of a patch in units.
    kernel: side of the first and the last convolution.
    act: activation, or none.
    eps: the batch norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        *,
        width: int,
        depth: int = 2,
        heads: int = 4,
        expand: float = 2,
        patch: int = 2,
        kernel: int = 3,
        act: str | None = "silu",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        positive(width=width, depth=depth, heads=heads, patch=patch, expand=int(width * expand))
        if width % heads:
            raise ValueError(f"width must be a multiple of the {heads} heads, read {width}")
        dd = {"device": device, "dtype": dtype}
        conv: dict[str, Any] = {"act": act, "eps": eps, **dd}
        self.patch = patch
        self.near = ConvNorm(in_ch, in_ch, kernel, **conv)
        self.enter = nn.Conv2d(in_ch, width, 1, bias=False, **dd)
        self.far = nn.Sequential(
            *(_Transformer(width, heads, expand, act, **dd) for _ in range(depth)), nn.LayerNorm(width, **dd)
        )
        self.leave = ConvNorm(width, out_ch, 1, **conv)
        self.join = ConvNorm(in_ch + out_ch, out_ch, kernel, **conv)

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        inner = self.enter(self.near(x))  # B, width, H, W
        b, c, h, w = inner.shape
        p = self.patch
        rows, columns = -(-h // p), -(-w // p)
        is_resized = (rows * p, columns * p) != (h, w)
        if is_resized:
            inner = F.interpolate(inner, size=(rows * p, columns * p), mode="bilinear", align_corners=False)
        parts = inner.reshape(b * c * rows, p, columns, p).transpose(1, 2)
        # One sequence for each place in a patch: B p p, patches, width
        tokens = parts.reshape(b, c, rows * columns, p * p).transpose(1, 3).reshape(b * p * p, rows * columns, c)
        tokens = self.far(tokens)
        parts = tokens.reshape(b, p * p, rows * columns, c).transpose(1, 3).reshape(b * c * rows, columns, p, p)
        inner = parts.transpose(1, 2).reshape(b, c, rows * p, columns * p)
        if is_resized:
            inner = F.interpolate(inner, size=(h, w), mode="bilinear", align_corners=False)
        return self.join(torch.cat((x, self.leave(inner)), dim=1))  # B, out_ch, H, W
