"""A measuring process of our own on this machine: one JSON request in, one JSON answer out.

For what the worker's line format does not carry (the times of single operators, the stages of a pipeline). The process
is a module with a function `answer(request)`; it runs as `python -m bblab.latency.tasks MODULE`, in a group of its own,
so that it is ended with all it started, whatever happens here.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bblab.errors import RunError

TAG = "BBLAB-ANSWER "
LAST_LINES = 12

# -P: code is not loaded from where one happens to stand.
COMMAND = (sys.executable, "-P", "-m", "bblab.latency.tasks")


def ask(
    module: str, request: Mapping[str, Any], *, limit_s: float, threads: int = 1, command: Sequence[str] = COMMAND
) -> dict[str, Any]:
    """What `module.answer(request)` returns, from a process of its own.

    Raises RunError, with the process's last words, if it fails, is killed, or takes longer than `limit_s`.
    """
    process = subprocess.Popen(
        [*command, module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(json.dumps(request, allow_nan=False), timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise RunError(
            f"a measuring process took longer than {limit_s:g} s and was ended",
            hint="measure less (--budget), or a smaller net",
        ) from None
    finally:
        _end(process)
    found = [line for line in out.splitlines() if line.startswith(TAG)]
    if process.returncode != 0 or not found:
        raise RunError(f"a measuring process {_ending(process.returncode)}" + _last_words(err, out))
    try:
        answer: dict[str, Any] = json.loads(found[-1].removeprefix(TAG))
    except ValueError:
        raise RunError("a measuring process was cut off while it answered" + _last_words(err, "")) from None
    if "error" in answer:
        raise RunError(f"a measuring process failed: {answer['error']}" + _last_words(err, ""))
    return answer


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError, ValueError):
                pipe.close()


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed by SIGKILL (out of memory is the usual reason)"
    return f"ended with code {code} and no answer" if code >= 0 else f"was killed by signal {-code}"


def _last_words(err: str, out: str) -> str:
    lines = [*err.splitlines()[-LAST_LINES:], *(line for line in out.splitlines()[-3:] if not line.startswith(TAG))]
    return ":" + "".join(f"\n  | {line}" for line in lines) if lines else " (it left no message)"


def main(module: str) -> int:
    """Answer the request on standard input; whatever libraries print goes to standard error."""
    sys.stdout.flush()
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        answer = importlib.import_module(module).answer(json.loads(sys.stdin.read()))
        code = 0
    except Exception as error:
        import traceback

        traceback.print_exc()
        answer, code = {"error": f"{type(error).__name__}: {error}"}, 0
    ours.write(TAG + json.dumps(answer, allow_nan=False) + "\n")
    ours.flush()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
