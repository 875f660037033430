"""Effective receptive field: how much each pixel moves the central unit of the last tap.

Luo et al. 2016, arXiv:1701.04128: the gradient of the central unit with respect to the image, its absolute value
averaged over images of noise. With random weights it shows what the architecture prefers; training widens it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class EffectiveField:
    """`rows`: mean absolute gradient of each pixel over the largest; `centre`: its centre of mass (row, column)."""

    rows: tuple[tuple[float, ...], ...]
    centre: tuple[float, float]
    images: int

    def side_holding(self, share: float) -> int:
        """The side in pixels of the smallest square around the centre that holds this share of the gradient."""
        total = sum(map(sum, self.rows))
        by_side: dict[int, float] = {}
        for i, row in enumerate(self.rows):
            for j, value in enumerate(row):
                reach = max(abs(i + 0.5 - self.centre[0]), abs(j + 0.5 - self.centre[1])) + 0.5
                side = math.ceil(2 * reach)
                by_side[side] = by_side.get(side, 0.0) + value
        held = 0.0
        for side in sorted(by_side):
            held += by_side[side]
            if held >= share * total * (1 - 1e-9):
                return side
        return len(self.rows)


def effective_field(
    module: nn.Module, shape: tuple[int, int, int], *, images: int = 16, seed: int = 0
) -> EffectiveField:
    """The field of a net that gives a tuple of maps (the last one is looked at), for images of `shape`.

    The net is put in evaluation mode: its norms' statistics should be calibrated, or deep maps fade. Raises
    ValueError where the gradient is zero or not finite.
    """
    import torch

    module.eval()
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(shape[1:], dtype=torch.float64)
    for _ in range(images):
        image = torch.randn((1, *shape), generator=generator, requires_grad=True)
        found = module(image)
        last = found[-1] if isinstance(found, (tuple, list)) else found
        central = last[0, :, last.shape[2] // 2, last.shape[3] // 2]
        # Random signs: the gradients of many channels must not cancel out.
        signs = torch.randint(0, 2, central.shape, generator=generator) * 2 - 1
        (gradient,) = torch.autograd.grad((central * signs).sum(), image)
        total += gradient[0].abs().sum(0).double()
    top = float(total.max())
    if not (top > 0 and math.isfinite(top)):
        raise ValueError("the central unit does not depend on the image in a finite way")
    mass = total / total.sum()
    places = torch.arange(shape[1], dtype=torch.float64) + 0.5, torch.arange(shape[2], dtype=torch.float64) + 0.5
    centre = float((mass.sum(1) * places[0]).sum()), float((mass.sum(0) * places[1]).sum())
    rows = tuple(tuple(float(f"{v:.4g}") for v in row) for row in (total / top).tolist())
    return EffectiveField(rows, centre, images)
