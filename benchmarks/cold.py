"""How long a spec takes that was never seen: nothing remembered, torch already imported, one form, one size.

    uv run python benchmarks/cold.py [SPEC...]

bblab: `Analyst.cost`, deploy form, at the spec's own input, with an empty cache folder: parameters, MACs, activations
(and elementwise work, memory, receptive field, which fvcore has not). The peer: the same spec built by bblab (no
calibration), fused, and counted by fvcore's FlopCountAnalysis, ActivationCountAnalysis and parameter_count. Both start
from a spec and end with those three figures; both run on one thread, in turn, medians of CPU time. Bar: at least twice
as fast on the worst spec. Beside it the ratio to building and FlopCountAnalysis only, and to that analysis alone.
"""

import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import machine
import torch
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis, parameter_count

from bblab import blocks, build, ops, spec
from bblab.analysis.net import Analyst
from bblab.rooms import Rooms
from bblab.spec import ArchSpec, BlockInfo

NUM_TURNS = 5
BAR_RATIO = 2.0


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print(machine.describe("torch", "fvcore"))
    with tempfile.TemporaryDirectory() as folder:
        rooms = Rooms(Path(folder))
        kinds = blocks.infos(rooms)
        specs = [spec.resolve(n, rooms, kinds) for n in names or sorted(rooms.files("arch_specs", ".yaml"))]
        ours_cold(specs[0], kinds, folder)  # imports and first calls of torch on meta and of its tracer
        peer(specs[0], kinds)
        heads = f"{'bblab':>9}{'build':>9}{'MACs':>9}{'others':>9}{'ratio':>8}{'MACs only':>11}{'unbuilt':>9}"
        print(f"{'ms of CPU time':<28}{heads}")
        ratios = {}
        for one in specs:
            turns = [(ours_cold(one, kinds, folder), *peer(one, kinds)) for _ in range(NUM_TURNS)]
            mine, built, macs, others = (statistics.median(values) for values in zip(*turns, strict=True))
            ratios[one.name] = (built + macs + others) / mine
            print(
                f"{one.name:<28}{1e3 * mine:9.0f}{1e3 * built:9.0f}{1e3 * macs:9.0f}{1e3 * others:9.0f}"
                f"{ratios[one.name]:8.1f}{(built + macs) / mine:11.1f}{macs / mine:9.1f}",
                flush=True,
            )
        worst = min(ratios, key=lambda name: ratios[name])
        text = f"{ratios[worst]:.1f} times as fast as fvcore on the worst spec ({worst}) >= {BAR_RATIO}"
        return machine.judge({text: ratios[worst] >= BAR_RATIO})


def timed(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def ours_cold(one: ArchSpec, kinds: Mapping[str, BlockInfo], folder: str) -> float:
    os.environ["BBLAB_CACHE"] = tempfile.mkdtemp(dir=folder)
    ops.MEMORY.forget()
    return timed(lambda: Analyst(kinds).cost(one, "deploy"))


def peer(one: ArchSpec, kinds: Mapping[str, BlockInfo]) -> tuple[float, float, float]:
    """CPU seconds to build and fuse the net, to count its MACs, and to count its activations and parameters."""
    began = time.process_time()
    net = build.to_deploy(build.Backbone(one, kinds), one, kinds)
    built_s = time.process_time() - began
    given = (torch.zeros(1, *one.input),)
    with torch.no_grad():
        macs_s = timed(lambda: FlopCountAnalysis(net, given).total())
        return built_s, macs_s, timed(lambda: (ActivationCountAnalysis(net, given).total(), parameter_count(net)[""]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
