"""One process of a training: `python -m bblab.pretraining.run FOLDER`, alone or under torchrun.

The folder holds the plan (`run.json`); everything that happens is written into it. mmengine's Runner trains.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bblab.errors import BblabError, RunError
from bblab.pretraining import checkpoints, record
from bblab.pretraining.config import BAD_IMAGES, CLASSES, Plan, build

EXIT = {record.DONE: 0, record.GATED: 0, record.STOPPED: 3, record.BAD_LOSS: 1, record.FAILED: 1}
CONFIG = "config.py"


def read_plan(folder: Path) -> Plan:
    """The plan of a run folder. Raises BblabError where there is none."""
    try:
        return Plan.from_json(json.loads((folder / record.PLAN).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BblabError(f"{folder} is no run: it has no {record.PLAN}", hint="bblab runs --kind pretrain") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BblabError(f"{folder / record.PLAN} cannot be read: {error!r}", hint="begin a new run") from None


def write_plan(folder: Path, plan: Plan) -> None:
    partial = folder / f".{record.PLAN}.{os.getpid()}.partial"
    partial.write_text(json.dumps(plan.to_json(), indent=1, ensure_ascii=False, default=str), encoding="utf-8")
    partial.replace(folder / record.PLAN)


def settle(plan: Plan) -> Plan:
    """The plan with what depends on this machine: CUDA, precision, workers."""
    import torch

    s = plan.settings
    is_cuda = torch.cuda.is_available()
    precision = s.precision
    if precision == "auto":
        precision = "bf16" if is_cuda and torch.cuda.is_bf16_supported() else "fp32"
    workers = s.workers
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # On a CPU the net takes nearly all of the time: loading in the same process costs nothing and repeats exactly.
        workers = max(1, min(16, cores // s.processes)) if is_cuda else 0
    return replace(plan, settings=replace(s, is_cuda=is_cuda, precision=precision, workers=workers))


def train(folder: Path | str) -> str:
    """Train the plan of a folder from its newest checkpoint that loads, or from the start; how it ended.

    Everything is recorded in the folder, also what went wrong. Raises BblabError where the plan cannot be carried out.
    """
    folder = Path(folder).resolve()
    rank = int(os.environ.get("RANK", "0"))
    lock = record.hold(folder) if rank == 0 else None
    if rank == 0 and lock is None:
        raise BblabError(f"{folder} is being trained by another process", hint="wait for it, or stop it first")
    began = time.perf_counter()
    status = record.FAILED
    facts: dict[str, Any] = {}
    try:
        status, facts = _trained(folder, rank)
        return status
    except BaseException as error:
        status, facts = _explained(error)
        raise
    finally:
        if rank == 0:
            with suppress(OSError):
                record.append(folder, "end", status=status, process_s=time.perf_counter() - began, **facts)
        if lock is not None:
            lock.close()


def _explained(error: BaseException) -> tuple[str, dict[str, Any]]:
    if isinstance(error, BblabError):
        facts = {"message": error.message, "hint": error.hint, **getattr(error, "facts", {})}
        return getattr(error, "status", record.FAILED), facts
    if isinstance(error, KeyboardInterrupt):
        return record.STOPPED, {"message": "stopped at once", "hint": "go on with --resume"}
    said = f"{type(error).__name__}: {error}"
    from bblab.pretraining.unreadable import NONE_READABLE

    if NONE_READABLE in said:  # from a loader's process, with its traceback
        return record.FAILED, {
            "message": f"{NONE_READABLE}: they are listed in {BAD_IMAGES}",
            "hint": "is the disk there? bblab data check finds them all; then go on with --resume",
        }
    return record.FAILED, {"message": said[:500], "trace": traceback.format_exc()[-4000:]}


def _trained(folder: Path, rank: int) -> tuple[str, dict[str, Any]]:
    from bblab.pretraining.hooks import Ended

    quieten()
    plan = settle(read_plan(folder))
    newest, wrong = checkpoints.start(folder)
    if rank == 0:
        record.append(
            folder, "start", resumed_from=newest.name if newest else None, unreadable=wrong, **_versions(plan)
        )
    try:
        runner = make_runner(plan, folder, newest)
        _room(plan, folder, runner)
        runner.train()
    except Ended as ended:
        if ended.status != record.GATED:
            raise
        if rank == 0:
            _finish(plan, folder, runner)
        return ended.status, {"message": ended.message, "hint": ended.hint, **ended.facts}
    if rank == 0:
        _finish(plan, folder, runner)
    return record.DONE, {}


def make_runner(plan: Plan, folder: Path, newest: Path | None = None) -> Any:
    """mmengine's Runner of a settled plan; the Config is dumped beside the run."""
    from mmengine.runner import Runner

    from bblab.pretraining.adapter import PlainConfig  # a Config built in memory does not do its custom_imports

    config = PlainConfig(build(plan, folder))
    if int(os.environ.get("RANK", "0")) == 0:
        (folder / CLASSES).write_text("".join(f"{name}\n" for name in plan.data["classes"]), encoding="utf-8")
        config.dump(str(folder / CONFIG))
    config.load_from = str(newest) if newest else None
    config.resume = newest is not None
    config.experiment_name = f"{folder.name}_{os.getpid()}_{time.monotonic_ns()}"
    if plan.settings.processes > 1 and not plan.settings.is_cuda:
        import torch.distributed

        # mmengine's own start would ask for a CUDA device, also with gloo.
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
    runner = Runner.from_cfg(config)
    # mmengine's warning of gradients that a resumed run loses: they are in the checkpoint.
    runner.logger.addFilter(lambda line: "Resumed iteration number is not divisible" not in line.getMessage())
    return runner


def _room(plan: Plan, folder: Path, runner: Any) -> None:
    parameters = sum(p.numel() for p in runner.model.parameters())
    moments = 2 if plan.recipe.optimizer in ("adamw", "lamb", "rmsprop") else 1
    has_ema = plan.recipe.ema_momentum is not None
    checkpoints.check_room(
        folder, parameters, keep=plan.settings.keep, has_ema=has_ema, moments=moments,
        accumulates=plan.settings.accumulation > 1,
    )  # fmt: skip


def _finish(plan: Plan, folder: Path, runner: Any) -> None:
    from bblab.pretraining import result

    record.write_progress(folder, {**record.read_progress(folder), "doing": "comparing both forms"})
    result.export(plan, folder, runner.val_dataloader, runner.model)


def _versions(plan: Plan) -> dict[str, Any]:
    import torch

    names = (
        "torch",
        "mmpretrain",
        "mmengine",
        "mmcv-lite",
        "numpy",
        "onedl-mmpretrain",
        "onedl-mmengine",
        "onedl-mmcv",
    )
    versions = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    device = torch.cuda.get_device_name() if plan.settings.is_cuda else platform.processor() or platform.machine()
    return {
        "versions": versions, "python": platform.python_version(), "host": platform.node(), "device": device,
        "threads": torch.get_num_threads(), "settings": plan.to_json()["settings"], "pid": os.getpid(),
    }  # fmt: skip


def quieten() -> None:
    """Warnings that say nothing to who trains: mmcv-lite's missing CUDA ops, AutoAugment's remark on every image."""
    warnings.filterwarnings("ignore", message="Fail to import")
    warnings.filterwarnings("ignore", message="Only use 'alpha'")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="Detected call of")  # schedules count steps, also where they accumulate
    logging.getLogger("mmengine").setLevel(logging.WARNING)


def die_with_parent() -> None:
    """A killed `bblab pretrain` takes its training with it (Linux); elsewhere the next step notices and saves."""
    with suppress(Exception):
        import ctypes
        import signal

        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bblab.pretraining.run")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--local-rank", type=int, default=0)
    asked = parser.parse_args(argv)
    die_with_parent()
    try:
        return EXIT[train(asked.folder)]
    except BblabError as error:
        print(error, file=sys.stderr)
        return EXIT.get(getattr(error, "status", ""), error.exit_code)
    except RunError:
        return 1
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    # With os._exit no worker or pinned-memory thread can hold the process; all files are written by now.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
