"""Work on many files in several processes, so that Ctrl-C keeps what is done and one crash costs one file.

A native decoder may die of a hostile file and take its process along: the files that were in work then go one by one
through a process of their own, and the one that kills it is named.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from bblab.errors import RunError

MANY_DEATHS = 20
"""So many images that crash their decoder are no accident: something kills the processes."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """How many processes this one may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(
    work: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    crashed: Callable[[Item], Result],
    *,
    jobs: int,
    chunk: int = 64,
) -> Iterator[Result]:
    """`work` on `items` in chunks, results as they come; `crashed` makes the result of an item that kills its process.

    An exception of `work` is raised here. On Ctrl-C nothing new begins, what is in work is finished and yielded, then
    KeyboardInterrupt is raised.
    """
    chunks = [items[i : i + chunk] for i in range(0, len(items), chunk)]
    if jobs == 1:
        for one in chunks:
            yield work(one)
        return
    waiting = iter(chunks)
    broken: list[Sequence[Item]] = []
    is_stopped = False
    pool = _pool(jobs)
    running: dict[Future[Result], Sequence[Item]] = {}
    try:
        while True:
            while not (is_stopped or broken) and len(running) < 2 * jobs:
                try:
                    one = next(waiting)
                except StopIteration:
                    break
                try:
                    running[pool.submit(work, one)] = one
                except BrokenProcessPool:
                    broken.append(one)
            if broken and not running:
                pool.shutdown(wait=True)
                for one in broken:
                    yield from _alone(work, one, crashed)
                broken, pool = [], _pool(jobs)
                continue
            if not running:
                break
            try:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                if is_stopped:
                    raise
                is_stopped = True
                for future in list(running):
                    if future.cancel():
                        del running[future]
                continue
            for future in done:
                one = running.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:
                    broken.append(one)
                    continue
                yield result
        if is_stopped:
            raise KeyboardInterrupt
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], crashed: Callable[[Item], Result]
) -> Iterator[Result]:
    pool = _pool(1)
    deaths = 0
    try:
        for item in items:
            try:
                result = pool.submit(work, [item]).result()
            except BrokenProcessPool:
                deaths += 1
                if deaths > MANY_DEATHS:
                    said = f"{deaths} worker processes died, one an item, the last of {item}"
                    raise RunError(said, hint="is there enough memory? ask for fewer jobs") from None
                pool.shutdown(wait=True)
                pool = _pool(1)
                result = crashed(item)
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(jobs: int) -> ProcessPoolExecutor:
    """A pool whose processes are known to start, so that a later death is the fault of an item."""
    # Not fork: a progress display has threads, whose locks a forked child would inherit locked.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        pool.submit(cores).result()
    except BrokenProcessPool:
        pool.shutdown(wait=True)
        hint = "in a script, call it below `if __name__ == '__main__':`, or ask for one job"
        raise RunError("worker processes die as they start", hint=hint) from None
    return pool


def _begin() -> None:
    """In a worker: Ctrl-C belongs to the parent; no threads of its own; never outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain there themselves; exceptions travel otherwise
    parent = multiprocessing.parent_process()

    def leave() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
    try:
        import cv2

        cv2.setNumThreads(0)
    except (ImportError, AttributeError):
        pass


class Clock:
    """Seconds left, from what was done so far."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.began = now, now()

    def left(self, done: int, total: int) -> float | None:
        passed = self.now() - self.began
        return passed / done * (total - done) if done and passed > 2 else None

    def rate(self, done: int) -> float:
        return done / max(self.now() - self.began, 1e-9)
