"""The probe `stages`: a tracker timed frame by frame, stage after stage as it would run, without a pause and paced.

A sequence begins with the template (once a target); then come its frames. A round is a sequence; the rounds of both
paces take turns. Where the target is comes from a script and not from the net, whose weights are random.

The request's models are labelled template, search and head; its `options` are `template_px`, `search_px`,
`template_map`, `search_map`, `channels`, `stride`, `frames` (of a sequence) and `paces` ("warm" or "paced", one a
round). Each stage of each frame is a `stage` line, and each whole frame one named WHOLE; `note` lines say which photo,
its size and what resized it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bblab.latency import trackerframe, wire
from bblab.latency.worker import Bench, Say, check_torch

TEMPLATE = ("template: crop, resize, normalise", "template: backbone")
FRAME = ("crop, resize, normalise", "backbone on search", "correlation and head", "argmax and box decoding")
WHOLE = "whole frame"

Timed = Callable[[str, Callable[[], Any]], Any]  # does the work of a stage and gives back what it made


def run(request: wire.Request, say: Say, bench: Bench) -> None:
    import numpy as np

    from bblab.latency import runtimes

    runtime, how = runtimes.find(request.runtime), request.options
    nets = {m.label: runtime.load(m.path, request.threads) for m in request.models}
    template, search, head_net = (nets[name] for name in ("template", "search", "head"))
    check_torch(request)
    frame, photo = trackerframe.photo()
    height, width = frame.shape[:2]
    resize, resized_by = trackerframe.resizer(request.threads)
    small, large = how["template_px"], how["search_px"]
    z_h, z_w = how["template_map"]
    x_h, x_w = how["search_map"]
    packed = np.zeros((1, how["channels"], 1, z_h * z_w + x_h * x_w), np.float32)
    decode = trackerframe.Decoder(x_h, x_w, how["stride"])
    begins: dict[str, Any] = {}

    def begin(number: int, timed: Timed) -> None:
        box = trackerframe.path(number, height, width)
        side = trackerframe.context_side(box, small, small)
        x = timed(TEMPLATE[0], lambda: trackerframe.patch(frame, box[:2], side, small, resize))
        z = timed(TEMPLATE[1], lambda: template.run(x))[-1]
        # Random weights know no scale; trained heads see values of order 1. Once a target, and not timed.
        scale = float(np.abs(z).mean()) ** 2 * z.shape[1] or 1.0
        packed[0, :, 0, : z_h * z_w] = z[0].reshape(z.shape[1], -1) / scale
        begins["box"] = box

    def follow(number: int, timed: Timed) -> None:
        box = trackerframe.path(number, height, width)
        side = trackerframe.context_side(box, large, small)
        x = timed(FRAME[0], lambda: trackerframe.patch(frame, box[:2], side, large, resize))
        found = timed(FRAME[1], lambda: search.run(x))[-1]

        def head() -> Any:
            packed[0, :, 0, z_h * z_w :] = found[0].reshape(found.shape[1], -1)
            return head_net.run(packed)

        scores, distances = timed(FRAME[2], head)
        timed(FRAME[3], lambda: decode(scores, distances, begins["box"], side / large))

    for number in range(request.warmups):
        begin(number, lambda name, work: work())
        follow(number, lambda name, work: work())
    say([wire.Note("photo", photo), wire.Note("resized_by", resized_by), wire.Note("frame", f"{height} {width}")])
    with bench.measuring(request, say):
        at = 1000 * request.seed
        for number, state in enumerate(how["paces"]):
            spoken: list[wire.Message] = [bench.speed(number)]

            def timed(
                name: str,
                work: Callable[[], Any],
                spoken: list[wire.Message] = spoken,
                about: tuple[int, str] = (number, state),
            ) -> Any:
                kept: list[Any] = []
                wall_s, cpu_s, _ = bench.timed(lambda: kept.append(work()))
                spoken.append(wire.Stage(*about, name, wall_s, cpu_s))
                return kept[0]

            at += 1
            begin(at, timed)
            bench.due = bench.wall()
            for place in range(at + 1, at + 1 + how["frames"]):
                if state == wire.PACED:
                    bench.wait(request.pace_s)
                timed(WHOLE, lambda place=place, timed=timed: follow(place, timed))  # type: ignore[misc]
            at += how["frames"]
            say(spoken)
        say([bench.speed(request.rounds)])
