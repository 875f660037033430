"""What a block costs inside a net, and how far the sum of a net's blocks is from the net.

A block timed alone pays for what no net pays: the call, and bringing its map into the runtime's own layout and back
(for 64 x 64 x 64 floats on ONNX Runtime more than a depthwise convolution on it). So a block stands between two
max-pools of one pixel, which copy their map in the layout that a neighbour would leave it in, and half of a net of
two such pools is taken off for each side:

    block = T(pool, block, pool) - T(pool, pool at its input) / 2 - T(pool, pool at its output) / 2

What precedes the first block and follows the last is real, and stays in: such a block has no pool there. Then the
parts of a net add up to one call, one way in and one way out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bblab.latency import stats
from bblab.latency.stats import Estimate
from bblab.latency.values import Candidate, Timing

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Seat:
    """A block's place: between which maps, and whether the net goes on before and after it."""

    block: Candidate  # the block alone
    out: Shape
    has_before: bool = True
    has_after: bool = True

    @property
    def key(self) -> str:
        return f"{self.block.key}|seat {int(self.has_before)}{int(self.has_after)}"

    def borders(self) -> list[Shape]:
        """The maps at which the net goes on: half a copying net each is taken off."""
        return [self.block.input] * self.has_before + [self.out] * self.has_after

    def candidate(self) -> Candidate:
        def make() -> nn.Module:
            return _between(self.block.make_module(), self.has_before, self.has_after)

        c = self.block
        return Candidate(f"{c.label} {self.key[-2:]}", c.spec, c.form, c.input, self.key, make)


def copier(shape: Shape, form: Any) -> Candidate:  # Form, as the block's
    """A net of two pools of one pixel."""

    def make() -> nn.Module:
        from torch import nn

        return nn.Sequential(nn.MaxPool2d(1), nn.MaxPool2d(1))

    name = "x".join(map(str, shape))
    return Candidate(f"copy {name}", "(copy)", form, shape, f"two pools of one pixel|{name}", make)


def _between(module: nn.Module, has_before: bool, has_after: bool) -> nn.Module:
    from torch import Tensor, nn

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.MaxPool2d(1) if has_before else None
            self.block = module
            self.after = nn.MaxPool2d(1) if has_after else None

        def forward(self, x: Tensor) -> Tensor:
            if self.before is not None:
                x = self.before(x)
            out = self.block(x)
            x = out[-1] if isinstance(out, (tuple, list)) else out
            return x if self.after is None else self.after(x)

    return Between().eval()


# From timings to blocks -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlockTime:
    """A block's own time in each process, as seconds and as a ratio to the reference of the same process."""

    seat: Seat
    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def value_s(self) -> Estimate:
        return stats.mean_interval(self.seconds)

    @property
    def ratio(self) -> Estimate:
        return stats.mean_interval(self.ratios)

    @property
    def has_interval(self) -> bool:
        """Whether more than one process measured it: the spread over one is unknown."""
        return len(self.ratios) > 1

    @property
    def is_lost(self) -> bool:
        """Whether it cannot be told from nothing; without an interval, whether it came out as nothing."""
        return (self.ratio.low if self.has_interval else self.ratio.value) <= 0


def per_process(timing: Timing) -> tuple[float, ...]:
    """Seconds of a warm call in each process: those whose ratio is taken everywhere else."""
    return tuple(stats.level(process, timing.functional()) for process in timing.series())


def block_times(seats: Sequence[Seat], timings: Mapping[str, Timing], reference: Timing) -> dict[str, BlockTime]:
    """Each seat's block by its key, from timings by the candidates' keys; those not wholly timed are left out."""
    scale = per_process(reference)
    found = {}
    for seat in seats:
        needed = [timings.get(copier(shape, seat.block.form).key) for shape in seat.borders()]
        whole = timings.get(seat.key)
        if whole is None or any(n is None for n in needed):
            continue
        borders = [per_process(n) for n in needed if n is not None]
        own = tuple(value - sum(border[at] for border in borders) / 2 for at, value in enumerate(per_process(whole)))
        found[seat.key] = BlockTime(seat, own, tuple(a / b for a, b in zip(own, scale, strict=True)))
    return found


def ratio_of(ours: BlockTime, theirs: BlockTime) -> Estimate | None:
    """ours / theirs, paired over processes; None where one of them cannot be told from nothing.

    Its interval is infinitely wide for one process.
    """
    if min(*ours.seconds, *theirs.seconds) <= 0 or ours.is_lost or theirs.is_lost:
        return None
    return stats.mean_ratio([math.log(a / b) for a, b in zip(ours.seconds, theirs.seconds, strict=True)])


# Sums ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sum:
    """A net and the sum of its blocks, both as ratios to the reference; `error` is sum / net - 1."""

    label: str
    blocks: tuple[BlockTime, ...]
    measured: Estimate
    added: Estimate
    error: Estimate

    @property
    def added_s(self) -> float:
        return sum(b.value_s.value for b in self.blocks)


def summed(label: str, blocks: Sequence[BlockTime], net: Timing, reference: Timing) -> Sum:
    scale = per_process(reference)
    whole = [a / b for a, b in zip(per_process(net), scale, strict=True)]
    measured = stats.mean_ratio([math.log(w) for w in whole])
    added = [sum(b.ratios[at] for b in blocks) for at in range(len(scale))]
    errors = [a / w - 1 for a, w in zip(added, whole, strict=True)]
    return Sum(label, tuple(blocks), measured, stats.mean_interval(added), stats.mean_interval(errors))


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How the sums of several nets err: the mean (a bias), its spread over nets, the worst, the pairs turned."""

    nets: int
    mean: float
    sd: float
    worst: float
    turned: tuple[tuple[str, str], ...]
    pairs: int

    def to_json(self) -> dict[str, Any]:
        return {
            "nets": self.nets,
            "mean_error": self.mean,
            "sd_error": self.sd,
            "worst_error": self.worst,
            "pairs": self.pairs,
            "pairs_turned": [list(pair) for pair in self.turned],
        }


def accuracy(sums: Sequence[Sum]) -> Accuracy:
    errors = [s.error.value for s in sums]
    mean = sum(errors) / len(errors)
    spread = math.sqrt(sum((e - mean) ** 2 for e in errors) / (len(errors) - 1)) if len(errors) > 1 else math.nan
    pairs = [(a, b) for i, a in enumerate(sums) for b in sums[i + 1 :]]
    turned = [
        (a.label, b.label)
        for a, b in pairs
        if (a.measured.value - b.measured.value) * (a.added.value - b.added.value) < 0
    ]
    return Accuracy(len(sums), mean, spread, max(errors, key=abs), tuple(turned), len(pairs))
