"""What every generated backbone has beside its blocks. Copied into the module; nothing here knows bblab.

The input norm, the taps, and norms that stay frozen while their parameters are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class InNorm(nn.Module):
    """Raw pixels as the trainer feeds them (BGR, 0 to 255) -> RGB less ImageNet's mean, over its deviation.

    Not folded into the first convolution: that is exact only where the convolution is unpadded. No key of its own in
    the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Iterable[float] = (123.675, 116.28, 103.53),
        std: Iterable[float] = (58.395, 57.12, 57.375),
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # B, 3, H, W
        return (x.flip(1) - self.mean) / self.std


class Tapped(nn.Module):
    """Stages in a row, some of which are handed out: one tensor for one tap, a list for several.

    `stages()` gives the stages in order, by name. A norm whose scale does not learn keeps its statistics too, whatever
    the trainer calls after freezing: `model.train()` at the start of an epoch would set it moving again.
    """

    def __init__(self, used_layers: Iterable[str] | None, known: Iterable[str]) -> None:
        super().__init__()
        known = tuple(known)
        self.used_layers = known[-1:] if used_layers is None else tuple(used_layers)
        unknown = [name for name in self.used_layers if name not in known]
        self.held: set[str] = set()
        if unknown or not self.used_layers:
            raise ValueError(f"used_layers {list(self.used_layers)}: the stages are {', '.join(known)}")

    def stages(self) -> Iterable[tuple[str, nn.Module]]:
        raise NotImplementedError

    def freeze_norms(self) -> None:
        """Statistics of frozen norms do not move; those that were held here move again once their scale learns."""
        for name, module in self.named_modules():
            if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.weight is None:
                continue
            if not module.weight.requires_grad:
                if module.training:
                    self.held.add(name)
                module.eval()
            elif name in self.held:
                self.held.remove(name)
                module.train()

    def train(self, mode: bool = True) -> Tapped:
        super().train(mode)
        if mode:
            self.freeze_norms()
        return self

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:  # B, 3, H, W
        if self.training:
            self.freeze_norms()
        norm = getattr(self, "in_norm", None)
        x = x if norm is None else norm(x)
        found = {}
        for name, stage in self.stages():
            x = stage(x)
            if name in self.used_layers:
                found[name] = x
            if len(found) == len(self.used_layers):
                break
        taps = [found[name] for name in self.used_layers]  # in the order asked for
        return taps[0] if len(taps) == 1 else taps
