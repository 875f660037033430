"""How many candidate networks a second one process can cost, when every block has been seen once.

    uv run python benchmarks/candidates.py

Candidates are random edits (widths, kernels, SE, repeats) of mobileone_k5_se and mobilenetv3_small; each is costed as
`bblab profile` does it: deploy form, 255x255. The peer is fvcore's FlopCountAnalysis on the same nets, already built,
on one thread. Bars: at least 10,000 nets a second of CPU time, and at least 1,000 times fvcore. Fifty of the
candidates are costed again with an empty cache, and recorded as one whole net: all must be equal.
"""

import logging
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import machine

from bblab import blocks, ops, spec
from bblab.analysis.cost import op_costs, peak_bytes, totals
from bblab.analysis.net import Analyst
from bblab.rooms import Rooms
from bblab.spec import ArchSpec, BlockInfo, Row, Stage

SIDE = (255, 255)
NUM_CANDIDATES = 4_000
NUM_CHECKED = 50
NUM_PEER = 6
NUM_PASSES = 7
BAR_PER_S = 10_000
BAR_RATIO = 1_000

SE = {"ratio": 0.25, "gate": "hsigmoid"}
WIDTHS: dict[str, dict[str, tuple[int, ...]]] = {  # a small set for every stage
    "mobileone_k5_se": {"stem": (32, 48, 64), "s4": (48, 64), "s8": (96, 128, 160), "s16": (192, 256, 320)},
    "mobilenetv3_small": {"stage2": (16, 24, 32), "stage3": (40, 48, 64)},
}
REPEATS = (2, 3, 4, 5, 6)


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BBLAB_CACHE"] = str(Path(folder, "cache"))
        rooms = Rooms(Path(folder))
        kinds = blocks.infos(rooms)
        bases = {name: bare(spec.resolve(name, rooms, kinds)) for name in WIDTHS}
        print(machine.describe("torch", "fvcore"))
        bars: dict[str, bool] = {}
        for name, base in bases.items():
            draw = random.Random(0)
            known: dict[tuple[object, ...], Row] = {}
            made_at = time.process_time()
            candidates = [edited(base, WIDTHS[name], draw, known) for _ in range(NUM_CANDIDATES)]
            making_s = (time.process_time() - made_at) / NUM_CANDIDATES
            bars |= measured(name, candidates, kinds, making_s)
            checked = random.Random(1).sample(candidates, NUM_CHECKED)
            bars[f"{name}: {NUM_CHECKED} candidates equal a cold start and the whole net recorded at once"] = all(
                is_equal(candidate, kinds, Path(folder)) for candidate in checked
            )
        return machine.judge(bars)


def bare(one: ArchSpec) -> ArchSpec:
    """The spec to stride 16, without a head: what a tracker runs and a search ranks."""
    return replace(spec.cut_at(one, "s16"), tracker=one.tracker)


def edited(
    base: ArchSpec, widths: Mapping[str, Sequence[int]], draw: random.Random, known: dict[tuple[object, ...], Row]
) -> ArchSpec:
    """A random neighbour. Equal rows are made once (`known`), as a search that draws from a menu would."""
    stages = []
    for stage in base.stages:
        out = draw.choice(widths[stage.name]) if stage.name in widths else 0
        kernel, has_se, repeats = draw.choice((3, 5)), draw.random() < 0.5, draw.choice(REPEATS)
        rows = [changed(row, out, kernel, has_se, known) for row in stage.rows[:repeats]]
        rows += rows[-1:] * (repeats - len(rows)) if len(stage.rows) > 1 and rows[-1].stride == 1 else []
        stages.append(Stage(stage.name, tuple(rows)))
    return replace(base, stages=tuple(stages))


def changed(row: Row, out: int, kernel: int, has_se: bool, known: dict[tuple[object, ...], Row]) -> Row:
    asked = (row.key, out, kernel, has_se)
    if asked not in known:
        args = row.kwargs
        if row.kind in ("mobileone", "mbconv"):
            args.pop("se", None)
            args.pop("kernel", None)
            args |= {"kernel": 5} if kernel == 5 else {}
            args |= {"se": SE} if has_se else {}
        frozen = tuple(sorted((k, spec.freeze(v)) for k, v in args.items()))
        known[asked] = Row(row.kind, out or row.out, row.stride, frozen)
    return known[asked]


# ---------------------------------------------------------------------------------------------- measuring


def measured(
    name: str, candidates: Sequence[ArchSpec], kinds: Mapping[str, BlockInfo], making_s: float
) -> dict[str, bool]:
    analyst = Analyst(kinds)
    began = time.process_time()
    for candidate in candidates:  # every block once
        analyst.cost(candidate, "deploy", SIDE)
    first_s = time.process_time() - began
    passes = []
    for _ in range(NUM_PASSES):
        began = time.process_time()
        for candidate in candidates:
            analyst.cost(candidate, "deploy", SIDE)
        passes.append((time.process_time() - began) / len(candidates))
    ours_s = statistics.median(passes)
    peer_s, built_s = fvcore(candidates[:NUM_PEER], kinds)
    rows = statistics.mean(sum(len(s.rows) for s in c.stages) for c in candidates)
    num_blocks = len(analyst._summaries)
    print(
        f"{name}: {len({c.spec_id for c in candidates}):,} different candidates of {rows:.1f} blocks on average, "
        f"{num_blocks} different blocks, recorded in {first_s:.1f} s\n"
        f"  bblab   {1 / ours_s:>10,.0f} nets/CPU-s  {1e6 * ours_s:8.1f} us a net "
        f"(passes {1 / max(passes):,.0f} to {1 / min(passes):,.0f})\n"
        f"  bblab   {1 / (ours_s + making_s):>10,.0f} nets/CPU-s  with making the ArchSpec\n"
        f"  fvcore  {1 / peer_s:>10,.2f} nets/CPU-s  {1e3 * peer_s:8.1f} ms a net, built before\n"
        f"  fvcore  {1 / (peer_s + built_s):>10,.2f} nets/CPU-s  with building the net"
    )
    ratio = peer_s / ours_s
    return {
        f"{name}: {1 / ours_s:,.0f} nets/CPU-s >= {BAR_PER_S:,}": 1 / ours_s >= BAR_PER_S,
        f"{name}: {ratio:,.0f} times fvcore >= {BAR_RATIO:,}": ratio >= BAR_RATIO,
    }


def fvcore(candidates: Sequence[ArchSpec], kinds: Mapping[str, BlockInfo]) -> tuple[float, float]:
    """Median CPU seconds to count a net with fvcore, and to build it. On one thread: faster here than on two."""
    import torch
    from fvcore.nn import FlopCountAnalysis

    from bblab import build

    torch.set_num_threads(1)
    counting, building = [], []
    x = torch.zeros(1, 3, *SIDE)
    for candidate in (candidates[0], *candidates):  # the first one warms up
        began = time.process_time()
        net = build.to_deploy(build.Backbone(candidate, kinds), candidate, kinds)
        built = time.process_time()
        with torch.no_grad():
            FlopCountAnalysis(net, (x,)).total()
        counting.append(time.process_time() - built)
        building.append(built - began)
    return statistics.median(counting[1:]), statistics.median(building[1:])


# ---------------------------------------------------------------------------------------------- equality


def is_equal(candidate: ArchSpec, kinds: Mapping[str, BlockInfo], folder: Path) -> bool:
    """Costed from memory, from an empty cache, and from one recording of the whole net: the same in every sum."""
    import torch

    from bblab import build

    warm = Analyst(kinds).cost(candidate, "deploy", SIDE)
    kept, os.environ["BBLAB_CACHE"] = os.environ["BBLAB_CACHE"], tempfile.mkdtemp(dir=folder)
    ops.MEMORY.forget()
    cold = Analyst(kinds).cost(candidate, "deploy", SIDE)
    os.environ["BBLAB_CACHE"] = kept
    ops.MEMORY.forget()

    net = build.to_deploy(build.Backbone(candidate, kinds, device="meta"), candidate, kinds)
    graph = ops.record(net, [torch.zeros(1, 3, *SIDE, device="meta")])
    whole = totals(graph, op_costs(graph)).astuple()
    return warm == cold and warm.sums == whole and warm.peak_activation_bytes == peak_bytes(graph)


if __name__ == "__main__":
    sys.exit(main())
