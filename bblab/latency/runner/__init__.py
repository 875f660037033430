"""The runner: one static program that times ncnn models on a phone or board, where no Python is.

    path = runner.built("aarch64") or runner.build("aarch64", on_progress=tell)
    push path and the model to the device; run  ./runner --cpus 4-7  there, a request on its standard input

It does what `worker.py` does, in the same words (`wire.py`): it warms up, says `ready`, then runs the rounds in the
order it is told, each bracketed by its speedometer, with cold, warm and paced calls of every net; of the probes it has
"rounds" and "layers". It is made of `runner.cpp`
here and of ncnn's own source (`source.py`, `making.py`), linked statically with glibc, so that it needs nothing on the
device but a Linux kernel.

The command line, the same on every device:

    runner [--cpus 0,4-7] [--precision float32|float16] [--limit S]
        Read one request line (`wire.Request`) from standard input, measure, say one tagged JSON line a message.
        `runtime` and `threads` are taken from the request; a model is the .ncnn.zip that bblab converts to, at its
        path on the device; `input` is 1, C, H, W. The seed fills the inputs (not with numpy's numbers).
        No models and empty orders are allowed: then it says its speedometer only.
    runner [--cpus ...] --speedometer N
        N `speed` lines: is the device as cool as it was?
    runner [--threads N] [--precision P] --compute MODEL 1,3,255,255 IN OUT
        IN: raw float32 of that shape. OUT: every output, raw float32, one after another; a line each says
        BBLAB {"kind": "output", "place": 0, "name": "out0", "shape": [96, 16, 16], "precision": "float32"}
    runner --about
        BBLAB {"kind": "about", "program": "bblab-runner", "wire": 2, "protocol": 2, "ncnn": "1.0.20261020",
        "arch": "aarch64", "compiler": "12.2.0", "speedometer": "xorshift64-2000000", "float16": "float16",
        "cpus": [0, 1]}
        `float16` is what --precision float16 would compute with here: "float16", "float16 storage" (half as large in
        memory, computed in float32), on x86-64 "float32, linear weights float16", or "none".

--cpus is refused, not half obeyed, where the system gives other cores than were asked. --limit (600 s) is the longest
that loading a model or one call may take before the runner ends itself: a phone whose cable was pulled is not left
computing. `hello` has the further keys "arch" and "cpus" (the cores it may use), `end` has
"peak_memory_bytes"; readers pass over keys they do not know. What went wrong is an `error` line and exit code 1
(2: a wrong command line; 3: --limit; 4: nobody reads), also for a crash, whose signal then ends the process.

Importing this loads nothing heavy. Nothing of it was run on a phone yet: under qemu-user and on x86-64 only.
"""

from __future__ import annotations

from bblab.latency.runner.making import ARCHES, Build, about, build, builds, built, engine, host_arch, toolchain

__all__ = ["ARCHES", "Build", "about", "arguments", "build", "builds", "built", "engine", "host_arch", "toolchain"]


def arguments(*, precision: str = "float32", cpus: tuple[int, ...] = (), limit_s: int | None = None) -> tuple[str, ...]:
    """The runner's arguments for a measurement; `cpus` are the cores it is to be held to, all where empty."""
    words: list[str] = []
    if cpus:
        words += ["--cpus", ",".join(map(str, cpus))]
    if precision != "float32":
        words += ["--precision", precision]
    if limit_s is not None:
        words += ["--limit", str(limit_s)]
    return tuple(words)
