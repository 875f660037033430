"""HRNet: branches at several resolutions side by side, exchanging what they see after every module.

Wang et al. 2020, arXiv:1908.07919, figures 1 to 3; classification head: figure 4c. As in
github.com/HRNet/HRNet-Image-Classification and timm.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bblab.blockkit import ConvNorm, block, positive
from bblab.blockkit import act as activation


class _Residual(nn.Module):
    """main(x) + shortcut(x), then the activation."""

    def __init__(self, main: nn.Module, shortcut: nn.Module, act: str | None) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.main(x) + self.shortcut(x))


def _basic(channels: int, act: str | None, **dd: Any) -> nn.Module:
    """ResNet's basic unit."""
    first, second = ConvNorm(channels, channels, 3, act=act, **dd), ConvNorm(channels, channels, 3, act=None, **dd)
    return _Residual(nn.Sequential(first, second), nn.Identity(), act)


def _bottleneck(in_ch: int, width: int, act: str | None, **dd: Any) -> nn.Module:
    """ResNet's bottleneck to four times its width."""
    out_ch = 4 * width
    main = nn.Sequential(
        ConvNorm(in_ch, width, 1, act=act, **dd),
        ConvNorm(width, width, 3, act=act, **dd),
        ConvNorm(width, out_ch, 1, act=None, **dd),
    )
    shortcut = ConvNorm(in_ch, out_ch, 1, act=None, **dd) if in_ch != out_ch else nn.Identity()
    return _Residual(main, shortcut, act)


class _Up(nn.Module):
    """1x1 to the finer map's channels, each unit copied `factor` times."""

    def __init__(self, in_ch: int, out_ch: int, factor: int, **dd: Any) -> None:
        super().__init__()
        self.point = ConvNorm(in_ch, out_ch, 1, act=None, **dd)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:  # B, in_ch, H, W
        return F.interpolate(self.point(x), scale_factor=self.factor, mode="nearest")  # B, out_ch, H*f, W*f


def _down(in_ch: int, out_ch: int, steps: int, act: str | None, last_act: str | None, **dd: Any) -> nn.Module:
    """Strided 3x3 convolutions; only the last one changes the channels."""
    chain = [ConvNorm(in_ch, in_ch, 3, 2, act=act, **dd) for _ in range(steps - 1)]
    return nn.Sequential(*chain, ConvNorm(in_ch, out_ch, 3, 2, act=last_act, **dd))


@block("hr")
class HighResolution(nn.Module):
    """One module: basic units on every map, then each map takes the sum of all, brought to its size. Out is a list.

    Each further map has half the side of the one before. Maps that the input lacks are made from its last one by
    strided 3x3 convolutions; a map whose channels change passes a 3x3 first. `repeat` gives several modules.

    units: basic units on each map before the exchange.
    act: activation, or none.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int | list[int],
        out_ch: int | list[int],
        *,
        units: int = 4,
        act: str | None = "relu",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        positive(units=units)
        dd: dict[str, Any] = {"eps": eps, "device": device, "dtype": dtype}
        given = [in_ch] if isinstance(in_ch, int) else list(in_ch)
        widths = [out_ch] if isinstance(out_ch, int) else list(out_ch)
        if len(widths) < len(given):
            raise ValueError(f"out must have at least the input's {len(given)} maps, read {widths}")
        self.enter = nn.ModuleList()
        for i, width in enumerate(widths):
            if i >= len(given):
                step = _down(given[-1], width, i + 1 - len(given), act, act, **dd)
            elif width != given[i]:
                step = ConvNorm(given[i], width, 3, act=act, **dd)
            else:
                step = nn.Identity()
            self.enter.append(step)
        self.num_given = len(given)
        self.branches = nn.ModuleList(nn.Sequential(*(_basic(c, act, **dd) for _ in range(units))) for c in widths)
        self.exchange = nn.ModuleList()
        for i, to in enumerate(widths):
            paths: list[nn.Module] = []
            for j, source in enumerate(widths):
                if j > i:
                    paths.append(_Up(source, to, 2 ** (j - i), **dd))
                elif j < i:
                    paths.append(_down(source, to, i - j, act, None, **dd))
                else:
                    paths.append(nn.Identity())
            self.exchange.append(nn.ModuleList(paths))
        self.act = activation(act)

    def forward(self, maps: Tensor | list[Tensor]) -> list[Tensor]:
        given = [maps] if isinstance(maps, Tensor) else maps
        inner = []  # B, C_i, H / 2^i, W / 2^i
        for i, (step, branch) in enumerate(zip(self.enter, self.branches, strict=True)):
            inner.append(branch(step(given[min(i, self.num_given - 1)])))
        out = []
        for paths in self.exchange:
            assert isinstance(paths, nn.ModuleList)
            total = paths[0](inner[0])
            for path, x in zip(paths[1:], inner[1:], strict=True):
                total = total + path(x)
            out.append(self.act(total) if len(inner) > 1 else total)
        return out


@block("hr_classifier", is_head=True)
class HighResolutionClassifier(nn.Module):
    """Widen every map with a bottleneck, add them up from fine to coarse, 1x1, average pool, linear.

    width: bottleneck width on the first map; it doubles from map to map, and each gives four times its width.
    features: channels of the last 1x1.
    act: activation, or none.
    eps: the norms' epsilon.
    """

    def __init__(
        self,
        in_ch: int | list[int],
        out_ch: int,
        *,
        width: int = 32,
        features: int = 2048,
        act: str | None = "relu",
        eps: float = 1e-5,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        positive(width=width, features=features)
        dd: dict[str, Any] = {"eps": eps, "device": device, "dtype": dtype}
        given = [in_ch] if isinstance(in_ch, int) else list(in_ch)
        widths = [width * 2**i for i in range(len(given))]
        self.widen = nn.ModuleList(_bottleneck(c, w, act, **dd) for c, w in zip(given, widths, strict=True))
        self.down = nn.ModuleList(ConvNorm(4 * w, 8 * w, 3, 2, bias=True, act=act, **dd) for w in widths[:-1])
        self.last = ConvNorm(4 * widths[-1], features, 1, bias=True, act=act, **dd)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.scores = nn.Linear(features, out_ch, device=device, dtype=dtype)

    def forward(self, maps: Tensor | list[Tensor]) -> Tensor:
        given = [maps] if isinstance(maps, Tensor) else maps
        total = self.widen[0](given[0])
        for down, widen, x in zip(self.down, self.widen[1:], given[1:], strict=True):
            total = widen(x) + down(total)
        return self.scores(self.pool(self.last(total)).flatten(1))  # B, out_ch
