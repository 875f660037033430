"""A head like NanoTrack's first: pixel-wise correlation, channel attention, two depthwise towers, scores and boxes.

Layout after github.com/HonglinChu/SiamTrackers, NanoTrack (V1): 128 channels over kernels 5, 5, 3 for the two scores,
96 over 3, 3, 5, 5 for the four distances; norms already folded. Pixel-wise correlation (Yan et al. 2021,
arXiv:2012.06815) makes one channel of each template position, so any backbone's channels fit. Weights are random.

Template and search map come in one tensor, as every runtime here takes one: 1, C, 1, template positions followed by
search positions. Taking them apart copies C x (Nz + Nx) floats (60 KB for NanoTrack), which is part of the head's time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bblab.latency.values import Candidate

if TYPE_CHECKING:
    from torch import nn

VERSION = "nanotrack-like head 1"
SCORE_TOWER, BOX_TOWER = (128, (5, 5, 3)), (96, (3, 3, 5, 5))  # channels, kernels
Side = tuple[int, int]


def candidate(channels: int, template: Side, search: Side) -> Candidate:
    """The head for maps of these sizes, as the latency room takes a net."""
    positions = template[0] * template[1] + search[0] * search[1]
    key = f"{VERSION}|{channels}|{template}|{search}"
    label = f"head {channels}x{search[0]}x{search[1]}"
    return Candidate(label, VERSION, "deploy", (channels, 1, positions), key, lambda: build(channels, template, search))


def build(channels: int, template: Side, search: Side, *, seed: int = 0) -> nn.Module:
    """1, C, 1, Nz + Nx -> scores 1, 2, H, W and distances left, top, right, bottom 1, 4, H, W (in strides)."""
    import torch
    from torch import Tensor, nn

    num_z = template[0] * template[1]

    def tower(wide: int, kernels: tuple[int, ...], out: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        given = num_z
        for kernel in kernels:
            layers.append(nn.Conv2d(given, given, kernel, padding=kernel // 2, groups=given, bias=False))
            layers += [nn.Conv2d(given, wide, 1), nn.ReLU6()]
            given = wide
        return nn.Sequential(*layers, nn.Conv2d(given, out, 1))

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.squeeze, self.expand = nn.Conv2d(num_z, num_z, 1), nn.Conv2d(num_z, num_z, 1)
            self.scores = tower(*SCORE_TOWER, 2)
            self.distances = tower(*BOX_TOWER, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            flat = x.reshape(1, channels, -1)
            z, s = flat[:, :, :num_z], flat[:, :, num_z:]
            corr = torch.matmul(z.transpose(1, 2), s).reshape(1, num_z, *search)
            gate = torch.sigmoid(self.expand(torch.relu(self.squeeze(corr.mean((2, 3), keepdim=True)))))
            corr = corr * gate
            return self.scores(corr), torch.exp(self.distances(corr))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head()
        with torch.no_grad():  # distances near 1 stride, whatever comes in
            last = head.distances[-1]
            assert isinstance(last, nn.Conv2d)
            last.weight.mul_(0.01)
    return head.eval()
