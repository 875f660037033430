"""The process that times a tracker frame by frame: stage after stage, as it would run, back to back and paced.

A sequence begins with the template (once a target); then come its frames. Sequences of both paces take turns. Where
the target is comes from a script and not from the net, whose weights are random.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from bblab.latency import trackerframe
from bblab.latency.worker import speedometer, timed

TEMPLATE = ("template: crop, resize, normalise", "template: backbone")
FRAME = ("crop, resize, normalise", "backbone on search", "correlation and head", "argmax and box decoding")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """`request`: runtime, threads, models {template, search, head: path and input}, sizes, maps, paces, counts."""
    import numpy as np

    from bblab.latency import runtimes

    runtime = runtimes.find(request["runtime"])
    nets = {name: runtime.load(m["path"], request["threads"]) for name, m in request["models"].items()}
    if "torch" in sys.modules and not runtimes.uses_torch(runtime):
        raise RuntimeError("torch was imported into the worker; its threads would be timed too")
    frame, photo = trackerframe.photo()
    height, width = frame.shape[:2]
    resize, resized_by = trackerframe.resizer(request["threads"])
    small, large = request["template_px"], request["search_px"]
    z_h, z_w = request["template_map"]
    x_h, x_w = request["search_map"]
    packed = np.zeros((1, request["channels"], 1, z_h * z_w + x_h * x_w), np.float32)
    decode = trackerframe.Decoder(x_h, x_w, request["stride"])
    begins: dict[str, Any] = {}

    def begin(number: int, note: Callable[[str, Callable[[], Any]], Any]) -> None:
        box = trackerframe.path(number, height, width)
        side = trackerframe.context_side(box, small, small)
        x = note(TEMPLATE[0], lambda: trackerframe.patch(frame, box[:2], side, small, resize))
        z = note(TEMPLATE[1], lambda: nets["template"].run(x))[-1]
        # Random weights know no scale; trained heads see values of order 1. Once a target, and not timed.
        scale = float(np.abs(z).mean()) ** 2 * z.shape[1] or 1.0
        packed[0, :, 0, : z_h * z_w] = z[0].reshape(z.shape[1], -1) / scale
        begins["box"] = box

    def follow(number: int, note: Callable[[str, Callable[[], Any]], Any]) -> None:
        box = trackerframe.path(number, height, width)
        side = trackerframe.context_side(box, large, small)
        x = note(FRAME[0], lambda: trackerframe.patch(frame, box[:2], side, large, resize))
        found = note(FRAME[1], lambda: nets["search"].run(x))[-1]

        def head() -> Any:
            packed[0, :, 0, z_h * z_w :] = found[0].reshape(found.shape[1], -1)
            return nets["head"].run(packed)

        scores, distances = note(FRAME[2], head)
        note(FRAME[3], lambda: decode(scores, distances, begins["box"], side / large))

    def silent(_: str, work: Callable[[], Any]) -> Any:
        return work()

    for number in range(request["warmups"]):
        begin(number, silent)
        follow(number, silent)
    rng = random.Random(request["seed"])
    paces: list[float | None] = [fps for fps in request["paces"] for _ in range(request["sequences"])]
    rng.shuffle(paces)
    samples: dict[str, dict[str, list[tuple[float, float]]]] = {}
    whole: dict[str, list[tuple[float, float]]] = {}
    late: dict[str, int] = {}
    speed: list[float] = []
    gc.collect()
    gc.disable()
    at = 1000 * request["seed"]
    for fps in paces:
        pace = f"{fps:g}" if fps else ""
        own = samples.setdefault(pace, {})

        def note(stage: str, work: Callable[[], Any], own: dict[str, list[tuple[float, float]]] = own) -> Any:
            kept: list[Any] = []
            seconds = timed(lambda: kept.append(work()), time.perf_counter, time.process_time)
            own.setdefault(stage, []).append(seconds)
            return kept[0]

        speed.append(timed(speedometer, time.perf_counter, time.process_time)[1])
        at += 1
        begin(at, note)
        due = time.perf_counter()
        for _ in range(request["frames"]):
            if fps:
                time.sleep(max(0.0, due - time.perf_counter()))
                due = max(due, time.perf_counter() - 1 / fps) + 1 / fps
            at += 1
            number = at
            seconds = timed(lambda number=number: follow(number, note), time.perf_counter, time.process_time)  # type: ignore[misc]
            whole.setdefault(pace, []).append(seconds)
            if fps and seconds[0] > 1 / fps:
                late[pace] = late.get(pace, 0) + 1
    gc.enable()
    return {
        "runtime_version": runtime.version(),
        "precision": runtime.precision,
        "photo": photo,
        "resized_by": resized_by,
        "frame": [height, width],
        "samples": samples,
        "whole": whole,
        "late": late,
        "speedometer_cpu_s": speed,
    }
