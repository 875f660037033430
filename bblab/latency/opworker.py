"""The process that times single operators: the same model plain and profiled, in turn.

Plain calls say what a call takes; profiled ones how it divides. Profiling itself costs time, so the parts are held
against the plain calls, and what profiling adds is told.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from typing import Any

from bblab.latency.worker import speedometer, timed


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """`request`: runtime, path, input (with the batch), threads, calls, warmups, seed."""
    import numpy as np

    from bblab.latency import runtimes

    runtime = runtimes.find(request["runtime"])
    x = np.random.default_rng(request["seed"]).standard_normal(request["input"], dtype=np.float32)
    plain = runtime.load(request["path"], request["threads"])
    profiled = runtimes.profiled(runtime, request["path"], request["threads"])
    if "torch" in sys.modules and not runtimes.uses_torch(runtime):
        raise RuntimeError("torch was imported into the worker; its threads would be timed too")
    for _ in range(request["warmups"]):
        plain.run(x)
        profiled.run(x)
    skipped = request["warmups"]
    rng = random.Random(request["seed"])
    wall: dict[str, list[float]] = {"plain": [], "profiled": []}
    cpu: dict[str, list[float]] = {"plain": [], "profiled": []}
    speed = []
    gc.collect()
    gc.disable()
    for _ in range(request["calls"]):
        speed.append(timed(speedometer, time.perf_counter, time.process_time)[1])
        turn = ["plain", "profiled"]
        rng.shuffle(turn)
        for name in turn:
            model = plain if name == "plain" else profiled
            wall_s, cpu_s = timed(lambda model=model: model.run(x), time.perf_counter, time.process_time)  # type: ignore[misc]
            wall[name].append(wall_s)
            cpu[name].append(cpu_s)
    gc.enable()
    layers = profiled.layers()
    return {
        "overhead_s": profiled.overhead_s(),
        "runtime_version": runtime.version(),
        "precision": runtime.precision,
        "wall_s": wall["plain"],
        "cpu_s": cpu["plain"],
        "profiled_wall_s": wall["profiled"],
        "profiled_cpu_s": cpu["profiled"],
        "speedometer_cpu_s": speed,
        "layers": [
            {"name": a.name, "op": a.op, "module": a.module, "told_by": a.told_by, "kernel": a.kernel,
             "seconds": list(a.seconds[skipped:])}
            for a in layers
        ],
    }  # fmt: skip
