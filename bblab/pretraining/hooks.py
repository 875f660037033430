"""mmengine hooks: seeds, records, checkpoints that survive, and the stops.

Importing this module registers them. They touch a run through mmengine's public hook points only.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from bblab.errors import RunError
from bblab.pretraining import checkpoints, record
from bblab.pretraining.gates import Gate

STATE = "bblab"  # our part of a checkpoint
TELL_S = 0.25
MANY_BAD = 0.01  # of an epoch's images


class Ended(RunError):
    """A training that was ended on purpose: `status` as in `record`."""

    def __init__(self, status: str, message: str, *, hint: str = "", **facts: Any) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.facts = facts


# ---------------------------------------------------------------------------------------------- seeds


@HOOKS.register_module()
class EpochSeed(Hook):
    """Begin every epoch's random numbers from (seed, epoch, rank): a resumed run draws what the other would have."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def before_train_epoch(self, runner: Any) -> None:
        rank, _ = get_dist_info()
        mixed = hash((self.seed, runner.epoch, rank)) & 0x7FFFFFFF
        torch.manual_seed(mixed)
        np.random.seed(mixed)
        for transform in getattr(getattr(runner.train_dataloader.dataset, "pipeline", None), "transforms", ()):
            if type(transform).__name__ == "SeededSample":
                transform.seed, transform.epoch = self.seed, runner.epoch
        set_progress(runner, runner.epoch / max(1, runner.max_epochs))

    def before_val_epoch(self, runner: Any) -> None:
        set_progress(runner, runner.epoch / max(1, runner.max_epochs))


def set_progress(runner: Any, t: float) -> None:
    """Tell blocks that change over the training (VanillaNet's slope) how far it is, also in the averaged net."""
    nets = [runner.model] + [h.ema_model for h in runner.hooks if hasattr(h, "ema_model")]
    for net in nets:
        for module in net.modules():
            teller = getattr(module, "set_progress", None)
            if callable(teller):
                teller(t)


# ---------------------------------------------------------------------------------------------- stops


@HOOKS.register_module()
class StopOnBadLoss(Hook):
    """End the run where the loss is NaN or infinite, before anything is saved. `interval`: iterations between looks."""

    priority = "HIGH"

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        if (batch_idx + 1) % self.interval and batch_idx + 1 < len(runner.train_dataloader):
            return
        loss = float(torch.as_tensor((outputs or {}).get("loss", 0.0)).detach())
        if not math.isfinite(loss):
            step = f"step {batch_idx + 1} of {len(runner.train_dataloader)}"
            raise Ended(
                record.BAD_LOSS,
                f"the loss is {loss} at epoch {runner.epoch + 1}, {step}",
                hint="the last good checkpoint is kept. Try a smaller learning rate (--lr-scale for a smaller batch), "
                "a longer warm-up, or --precision fp32",
                epoch=runner.epoch + 1,
                step=batch_idx + 1,
            )


@HOOKS.register_module()
class StopAtGate(Hook):
    """End the run where a gate is hit, after its epoch was saved and validated."""

    priority = "LOWEST"

    def __init__(self, gates: Sequence[Mapping[str, Any]]) -> None:
        self.gates = [Gate(**g) for g in gates]

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        history = record.History.of(Path(runner.work_dir))
        epoch = runner.epoch
        figures: dict[str, float] = {}
        if epoch in history.epochs:
            figures["loss"] = history.epochs[epoch]["train_loss"]
        if (metrics or {}).get("accuracy/top1") is not None:
            figures["accuracy"] = float(metrics["accuracy/top1"])  # type: ignore[index]
        hit = next((g for g in self.gates if g.is_hit(epoch, figures)), None)
        rank, world = get_dist_info()
        if world > 1:  # the first process decides: another may not see its record yet
            flag = torch.tensor([0 if hit is None or rank else 1])
            flag = flag.cuda() if torch.distributed.get_backend() == "nccl" else flag
            all_reduce(flag, "max")
            if flag and rank:
                raise Ended(record.GATED, "stopped by a gate")
            hit = hit if flag else None
        if hit is None:
            return
        left = (runner.max_epochs - epoch) * history.train_s / max(1, len(history.epochs))
        raise Ended(
            record.GATED,
            f"stopped by a gate: {hit.because(figures)}",
            hint=f"{runner.max_epochs - epoch} epochs not trained: {left / 3600:.3g} h saved",
            gate=hit.text,
            epoch=epoch,
            saved_s=left,
        )


# ---------------------------------------------------------------------------------------------- the record


@HOOKS.register_module()
class Record(Hook):
    """One line an epoch and one a validation, and where the run is a few times a second.

    ramp: (epoch counted from 0, training px), for the record. Losses stay on the device until the epoch ends.
    bad_list: where the loaders note images that they could not use; too many of them end the run.
    """

    priority = "LOW"

    def __init__(self, ramp: Sequence[Sequence[int]] = ((0, 0),), bad_list: str | None = None) -> None:
        self.ramp = [(int(e), int(px)) for e, px in ramp]
        self.bad_list = Path(bad_list) if bad_list else None
        self.sums: dict[str, float] = {}
        self.pending: dict[str, float] | None = None
        self.last: dict[str, Any] = {}
        self.told_at = 0.0

    def before_train_epoch(self, runner: Any) -> None:
        self.loss: Any = 0.0
        self.sums = self.pending or {"loss": 0.0, "steps": 0, "images": 0, "wait_s": 0.0, "epoch_s": 0.0}
        self.pending = None
        self.began = self.mark = time.perf_counter()
        self.px = next(px for e, px in reversed(self.ramp) if e <= runner.epoch)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.sums["wait_s"] += time.perf_counter() - self.mark

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        if outputs is not None:
            self.loss = self.loss + torch.as_tensor(outputs["loss"]).detach().double()
        self.sums["steps"] += 1
        self.sums["images"] += len(data_batch["inputs"]) if isinstance(data_batch, Mapping) else 0
        self.mark = time.perf_counter()
        if self.mark - self.told_at > TELL_S:
            self.told_at = self.mark
            self.tell(runner, "training", outputs)

    def tell(self, runner: Any, doing: str, outputs: Mapping[str, Any] | None = None) -> None:
        rank, world = get_dist_info()
        if rank:
            return
        spent = self.mark - self.began
        s = self.sums
        in_epoch = len(runner.train_dataloader)
        value = {
            "doing": doing,
            "epoch": runner.epoch + 1,
            "epochs": runner.max_epochs,
            "iteration": int(s["steps"]),
            "iterations": in_epoch,
            "iterations_done": runner.iter + 1,
            "iterations_total": runner.max_iters,
            "images_per_s": world * s["images"] / max(1e-9, spent + s["epoch_s"]),
            "wait_share": s["wait_s"] / max(1e-9, spent + s["epoch_s"]),
            "lr": runner.optim_wrapper.optimizer.param_groups[0]["lr"],
            "px": self.px,
        }
        if outputs is not None:
            value["loss"] = float(torch.as_tensor(outputs["loss"]).detach())
        record.write_progress(Path(runner.work_dir), value)

    def state(self) -> dict[str, float]:
        """The sums of an epoch so far, for a checkpoint inside it."""
        spent = time.perf_counter() - self.began
        return {**self.sums, "loss": self.sums["loss"] + float(self.loss), "epoch_s": self.sums["epoch_s"] + spent}

    def after_train_epoch(self, runner: Any) -> None:
        s = self.state()
        rank, world = get_dist_info()
        totals = torch.tensor([s["loss"], s["steps"], s["images"]], dtype=torch.float64)
        if world > 1:
            totals = totals.cuda() if torch.distributed.get_backend() == "nccl" else totals
            all_reduce(totals, "sum")
        loss, steps, images = totals.tolist()
        if rank == 0:
            self.last = {
                "epoch": runner.epoch + 1,
                "train_loss": loss / max(1, steps),
                "lr": runner.optim_wrapper.optimizer.param_groups[0]["lr"],
                "px": self.px,
                "images": int(images),
                "iterations": runner.iter + (0 if runner.iter % len(runner.train_dataloader) == 0 else 1),
                "epoch_s": s["epoch_s"],
                "images_per_s": images / max(1e-9, s["epoch_s"]),
                "wait_share": s["wait_s"] / max(1e-9, s["epoch_s"]),
                "bad_images": self.bad_images(),
            }
            record.append(Path(runner.work_dir), "epoch", **self.last)
            self.tell(runner, "saving")
            self.look_at_bad_images(int(images))

    def bad_images(self) -> int:
        """How many different images could not be used so far."""
        if self.bad_list is None or not self.bad_list.exists():
            return 0
        with self.bad_list.open("rb") as file:
            return len({line.split(b"\t")[0] for line in file})

    def look_at_bad_images(self, images: int) -> None:
        bad = self.bad_images()
        if bad > max(10, MANY_BAD * images):
            raise Ended(
                record.FAILED,
                f"{bad} images could not be read, listed in {self.bad_list}",
                hint="is the disk there? bblab data check finds them all; then go on with --resume",
            )

    def before_val_epoch(self, runner: Any) -> None:
        self.val_began = time.perf_counter()
        self.tell_val(runner)

    def tell_val(self, runner: Any) -> None:
        if get_dist_info()[0] == 0:
            told = record.read_progress(Path(runner.work_dir))
            record.write_progress(Path(runner.work_dir), {**told, "doing": "validating"})

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        if get_dist_info()[0]:
            return
        metrics = metrics or {}
        values = {"top1_percent": metrics.get("accuracy/top1"), "top5_percent": metrics.get("accuracy/top5")}
        record.append(
            Path(runner.work_dir),
            "val",
            epoch=runner.epoch,
            val_s=time.perf_counter() - self.val_began,
            **{k: round(float(v), 4) for k, v in values.items() if v is not None},  # counted in float32 there
        )
        told = record.read_progress(Path(runner.work_dir))
        told |= {"top1_percent": values["top1_percent"], "validated_epoch": runner.epoch}
        if self.last:
            told |= {"epoch_s": self.last["epoch_s"], "epoch_loss": self.last["train_loss"]}
            told |= {f"epoch_{key}": self.last[key] for key in ("images_per_s", "wait_share")}
        record.write_progress(Path(runner.work_dir), told)


# ---------------------------------------------------------------------------------------------- checkpoints


@HOOKS.register_module()
class SurvivingCheckpoint(Hook):
    """A checkpoint at every epoch's end, and inside an epoch when asked to stop or after `save_minutes`.

    Files are whole or absent, load with `weights_only=True`, and hold all that the next iteration needs.
    """

    priority = "VERY_LOW"

    def __init__(self, keep: int = 2, save_minutes: float = 0.0) -> None:
        self.keep = keep
        self.save_s = 60 * save_minutes
        self.asked: str | None = None
        self.pending: Mapping[str, Any] | None = None
        self.random: Mapping[str, Any] | None = None
        self.offset = 0
        self.parent = os.getppid()

    def before_train(self, runner: Any) -> None:
        self.saved_at = time.perf_counter()
        if _in_main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._ask)
        history = record.History.of(Path(runner.work_dir))
        is_resumed = runner.epoch > 0 and not self.pending
        # Killed between a checkpoint and its validation: make up for it.
        if is_resumed and runner.val_loop is not None and runner.epoch not in history.validations:
            runner.val_loop.run()

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt  # the second time at once
        self.asked = signal.Signals(number).name

    # ---- resuming inside an epoch

    def before_train_epoch(self, runner: Any) -> None:
        self.offset = 0
        state, self.pending = self.pending, None
        if state is None:
            return
        self.offset = int(state["batches"])
        runner.train_dataloader.sampler.skip = self.offset * runner.train_dataloader.batch_size
        self.random = state

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Only now: making the loader's iterator has drawn a number, which it drew long ago in the other run."""
        state, self.random = self.random, None
        if state is None:
            return
        torch.set_rng_state(state["torch_rng"])
        if torch.cuda.is_available() and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"])
        if runner.train_dataloader.num_workers:  # else the images of this batch have set NumPy's numbers already
            name, keys, *rest = state["numpy_rng"]
            np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(STATE) or {}
        if runner._resume and state.get("batches"):
            self.pending = state
            self._recorder(runner).pending = dict(state["sums"])

    def _recorder(self, runner: Any) -> Record:
        found = next(h for h in runner.hooks if isinstance(h, Record))
        assert isinstance(found, Record)
        return found

    # ---- saving

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        done = batch_idx + 1 + self.offset
        is_due = self.save_s > 0 and time.perf_counter() - self.saved_at > self.save_s
        if os.getppid() != self.parent and self.asked is None:
            self.asked = "the end of the command"
        wanted = self._agreed(runner, batch_idx, is_due)
        if not wanted or done >= len(runner.train_dataloader) or not runner.optim_wrapper.should_update():
            return
        self._save(runner, f"epoch_{runner.epoch}_iter_{done}.pth", runner.epoch, runner.iter + 1, done)
        if wanted == 2:
            raise self._stopped(f"stopped in epoch {runner.epoch + 1}, after step {done}")

    def _agreed(self, runner: Any, batch_idx: int, is_due: bool) -> int:
        """0 go on, 1 save, 2 save and stop: the same in every process, which look at each other now and then."""
        wanted = 2 if self.asked else 1 if is_due else 0
        _, world = get_dist_info()
        if world == 1:
            return wanted
        if batch_idx % 10:
            return 0
        flag = torch.tensor([wanted])
        flag = flag.cuda() if torch.distributed.get_backend() == "nccl" else flag
        all_reduce(flag, "max")
        return int(flag)

    def after_train_epoch(self, runner: Any) -> None:
        self._save(runner, f"epoch_{runner.epoch + 1}.pth", runner.epoch + 1, runner.iter, 0)

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        folder = Path(runner.work_dir)
        if get_dist_info()[0] == 0:
            known = record.History.of(folder).curve("val", "top1_percent")
            mine = (metrics or {}).get("accuracy/top1")
            path = folder / f"epoch_{runner.epoch}.pth"
            if mine is not None and path.exists() and mine >= max((v for v in known if v is not None), default=0):
                checkpoints.link_best(path)
        if self._agreed(runner, 0, False) == 2 and runner.epoch < runner.max_epochs:
            raise self._stopped(f"stopped after epoch {runner.epoch}")

    def _stopped(self, message: str) -> Ended:
        return Ended(record.STOPPED, message, hint="all of it is saved: go on with --resume", by=self.asked)

    def _save(self, runner: Any, name: str, epoch: int, iteration: int, batches: int) -> None:
        began = time.perf_counter()
        self.saved_at = began
        if get_dist_info()[0]:
            return
        folder = Path(runner.work_dir)
        self.inside = {} if not batches else {"batches": batches, "sums": self._recorder(runner).state(), **_random()}
        facts = checkpoints.write(
            folder / name,
            lambda partial: runner.save_checkpoint(
                str(partial.parent), partial.name, meta={"epoch": epoch, "iter": iteration}, by_epoch=batches == 0
            ),
        )
        checkpoints.prune(folder, self.keep)
        spent = time.perf_counter() - began
        record.append(folder, "checkpoint", epoch=epoch, batches=batches, save_s=spent, **facts)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Plain data only: mmengine's log buffers pickle methods, which no safe loader takes."""
        checkpoint["message_hub"]["log_scalars"] = {}
        checkpoint["message_hub"]["runtime_info"] = _plain(checkpoint["message_hub"]["runtime_info"])
        kept = checkpoint["message_hub"]["runtime_info"]
        checkpoint["message_hub"]["resumed_keys"] = dict.fromkeys(kept, True)
        checkpoint["meta"] = _plain(checkpoint["meta"])
        checkpoint["param_schedulers"] = _plain(checkpoint.get("param_schedulers", []))
        checkpoint[STATE] = self.inside
        for key, value in checkpoint["state_dict"].items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise Ended(
                    record.BAD_LOSS,
                    f"{key} is no longer finite at the end of epoch {runner.epoch + 1}: not saved",
                    hint="the last good checkpoint is kept. Try a smaller learning rate",
                    epoch=runner.epoch + 1,
                )


def _random() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    found = {
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *map(_plain, rest)],
    }
    if torch.cuda.is_available():
        found["cuda_rng"] = torch.cuda.get_rng_state()
    return found


def _plain(value: Any) -> Any:
    """Without NumPy's scalars, which `isinstance` takes for floats, and without mappings of other types."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    return value


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
