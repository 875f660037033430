"""The one mmengine hook of a run: it switches sizes, seeds, stops, steps, averages, records, scores and saves.

mmengine orders hooks by their priority, each at every point alike: a size that is switched after the seeds were set has
none, a checkpoint that is written before an average is taken lacks it. Here each point is a list of calls, to be read.
The parts touch a run through mmengine's public hook points only. Importing this module registers the hook.
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dist import all_reduce, get_dist_info
from mmengine.hooks import EMAHook, Hook, ParamSchedulerHook
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader

from bblab.errors import RunError
from bblab.pretraining import checkpoints, norms, record
from bblab.pretraining.gates import Gate
from bblab.pretraining.unreadable import BadList, are_too_many

STATE = "bblab"  # our part of a checkpoint
TELL_S = 0.25
STEP, LOADER, STATISTICS = 0, 1, 2  # what random numbers are for
Outputs = Mapping[str, Any] | None


class Ended(RunError):
    """A training that was ended on purpose: `status` as in `record`."""

    def __init__(self, status: str, message: str, *, hint: str = "", **facts: Any) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.facts = facts


@HOOKS.register_module(name="BblabTraining")
class Training(Hook):
    """What happens at each point of a run, in order.

    sizes: (epoch counted from 0, training px, the images' pipeline from then on). average: an ImageEMAHook's arguments.
    precise_images: how many training images the norms' statistics are computed over before each validation; 0: not.
    loss_interval: steps between looks at the loss. bad_list: where the loaders note images that they could not read.
    """

    priority = "VERY_LOW"  # after mmengine's own, which name the epoch to the sampler and log

    def __init__(
        self,
        seed: int = 0,
        sizes: Sequence[tuple[int, int, Sequence[Mapping[str, Any]]]] = (),
        loss_interval: int = 1,
        average: Mapping[str, Any] | None = None,
        precise_images: int = 0,
        keep: int = 2,
        save_minutes: float = 0.0,
        gates: Sequence[Mapping[str, Any]] = (),
        bad_list: str | None = None,
    ) -> None:
        self.sizes = Sizes(sizes)
        self.seeds = Seeds(seed)
        self.loss = StopOnBadLoss(loss_interval)
        self.schedules = ParamSchedulerHook()
        self.average: ImageEMAHook | None = HOOKS.build(dict(average)) if average else None
        self.norms = PreciseNorms(seed, precise_images)
        self.record = Record(BadList(Path(bad_list) if bad_list else None))
        self.saving = SurvivingCheckpoint(keep, save_minutes, self.record, self.average)
        self.gates = StopAtGate(gates)

    # ---- beginning, and going on

    def before_run(self, runner: Any) -> None:
        if self.average:
            self.average.before_run(runner)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            self.saving.after_load_checkpoint(runner, checkpoint)
            self.norms.after_load_checkpoint(runner, checkpoint)
        if self.average:
            self.average.after_load_checkpoint(runner, checkpoint)

    def before_train(self, runner: Any) -> None:
        self.saving.before_train(runner)
        if runner.epoch == 0 or self.saving.is_inside:
            return
        history = record.History.of(Path(runner.work_dir))
        score = history.validations.get(runner.epoch)
        if runner.val_loop is not None and score is None:  # killed between a checkpoint and its validation
            self.record.last = dict(history.epochs.get(runner.epoch, {}))
            runner.val_loop.run()
        elif score is not None:  # killed after it
            self._scored(runner, score.get("top1_percent"))

    # ---- an epoch

    def before_train_epoch(self, runner: Any) -> None:
        self.sizes.before_train_epoch(runner)
        self.seeds.before_train_epoch(runner)
        self._progress(runner)
        self.saving.before_train_epoch(runner)
        self.record.before_train_epoch(runner, self.sizes.px)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.seeds.before_train_iter(runner, self.saving.offset + batch_idx)
        self.record.before_train_iter(runner)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Outputs = None) -> None:
        step = {"batch_idx": self.saving.offset + batch_idx, "data_batch": data_batch, "outputs": outputs}
        self.loss.after_train_iter(runner, **step)
        self.schedules.after_train_iter(runner, **step)
        if self.average:
            self.average.after_train_iter(runner, **step)
        self.record.after_train_iter(runner, **step)
        self.saving.after_train_iter(runner, **step)

    def after_train_epoch(self, runner: Any) -> None:
        self.schedules.after_train_epoch(runner)
        self.record.after_train_epoch(runner)
        self.record.tell(runner, "averaging the norms' statistics" if self.norms.images else "saving")
        began = time.perf_counter()
        self.norms.after_train_epoch(runner, self._kept(runner))
        self.record.norms_s = time.perf_counter() - began
        self.saving.after_train_epoch(runner)

    # ---- its validation

    def before_val_epoch(self, runner: Any) -> None:
        self._progress(runner)
        if self.average:
            self.average.before_val_epoch(runner)
        self.norms.before_val_epoch(runner)
        self.record.before_val_epoch(runner)

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float] | None = None) -> None:
        self.norms.after_val_epoch(runner)
        if self.average:
            self.average.after_val_epoch(runner)
        found = metrics or {}
        self.record.after_val_epoch(runner, found)
        self._scored(runner, found.get("accuracy/top1"))
        self.saving.after_val_epoch(runner)

    def _scored(self, runner: Any, top1_percent: float | None) -> None:
        """What follows from a score. Doing it twice, after a kill, does no harm."""
        self.saving.scored(runner, top1_percent)
        self.gates.scored(runner, top1_percent)

    # ---- saving

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if self.average:
            self.average.before_save_checkpoint(runner, checkpoint)
        self.saving.before_save_checkpoint(runner, checkpoint)
        if not self.saving.is_part:
            self.norms.before_save_checkpoint(runner, checkpoint)
        refuse_unsound(checkpoint, runner.epoch + 1)

    def _kept(self, runner: Any) -> torch.nn.Module:
        """The net whose weights are scored and kept."""
        net: torch.nn.Module = self.average.ema_model.module if self.average else _bare(runner.model)
        return net

    def _progress(self, runner: Any) -> None:
        """Tell blocks that change over the training (VanillaNet's slope) how far it is, also in the averaged net."""
        t = runner.epoch / max(1, runner.max_epochs)
        for net in {id(net): net for net in (_bare(runner.model), self._kept(runner))}.values():
            for module in net.modules():
                teller = getattr(module, "set_progress", None)
                if callable(teller):
                    teller(t)


def _bare(model: Any) -> Any:
    """The model without the wrapper that several processes put around it."""
    return getattr(model, "module", model)


# ---------------------------------------------------------------------------------------------- sizes and seeds


class Sizes:
    """The training size of each epoch, whichever epoch a run begins with."""

    def __init__(self, sizes: Sequence[tuple[int, int, Sequence[Mapping[str, Any]]]]) -> None:
        self.starts = [(int(epoch), int(px), Compose([dict(step) for step in steps])) for epoch, px, steps in sizes]
        self.px = 0

    def before_train_epoch(self, runner: Any) -> None:
        if not self.starts:
            return
        _, self.px, pipeline = next(s for s in reversed(self.starts) if s[0] <= runner.epoch)
        runner.train_dataloader.dataset.pipeline = pipeline


class Seeds:
    """Every step's random numbers begin from (seed, epoch, step, rank), every image's from (seed, epoch, image).

    So a resumed run draws what the other would have drawn, whatever was drawn in between: by workers that are one more
    or less, by a validation, by the norms' statistics.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_epoch(self, runner: Any) -> None:
        begin_random(self.seed, runner.epoch, 0, LOADER)  # for what the loader draws when it starts
        for transform in getattr(getattr(runner.train_dataloader.dataset, "pipeline", None), "transforms", ()):
            if type(transform).__name__ == "SeededSample":
                transform.seed, transform.epoch = self.seed, runner.epoch

    def before_train_iter(self, runner: Any, step: int) -> None:
        begin_random(self.seed, runner.epoch, step, STEP)


def begin_random(*place: int) -> None:
    """Set torch's, NumPy's and Python's random numbers of this process from a place in the run and the rank."""
    mixed = hash((*place, get_dist_info()[0])) & 0x7FFFFFFF
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


# ---------------------------------------------------------------------------------------------- averages


@HOOKS.register_module()
class ImageEMAHook(EMAHook):
    """mmengine's running average of weights and buffers, paced by images instead of iterations.

    `momentum` is the share of the new weights for each `base_batch` images; a step of B images takes
    1 - (1 - momentum) ** (B / base_batch): the EMA scaling rule of Busbridge et al. 2023, arXiv:2307.13813. While
    gradients accumulate there are no new weights: the average is taken at the updates.
    """

    def __init__(self, momentum: float, base_batch: int) -> None:
        super().__init__(ema_type="ExponentialMovingAverage", momentum=momentum, update_buffers=True)
        self.share = momentum
        self.base_batch = base_batch
        self.images = 0
        """Images since the last update of the weights."""

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Outputs = None) -> None:
        self.images += len(data_batch["inputs"]) * get_dist_info()[1]
        if not runner.optim_wrapper.should_update():
            return
        self.ema_model.momentum = 1 - (1 - self.share) ** (self.images / self.base_batch)
        self.images = 0
        super().after_train_iter(runner, batch_idx, data_batch, outputs)


class PreciseNorms:
    """The norms' statistics over training images, before each validation and in what is kept; see `norms`.

    The training goes on with its own: they are put back after the validation, and a checkpoint has both.
    """

    def __init__(self, seed: int, images: int) -> None:
        self.seed = seed
        self.images = images
        self.made: norms.Statistics = {}
        self.before: norms.Statistics = {}

    def after_train_epoch(self, runner: Any, net: Any) -> None:
        norms.share(_bare(runner.model))
        if net is not _bare(runner.model):
            norms.share(net)
        if self.images:
            self.made = norms.precise(net, self._batches(runner), lambda batch: _features(net, batch))

    def _batches(self, runner: Any) -> Iterator[Any]:
        """Full batches of this process as the training has them, of images that are drawn anew for each epoch."""
        loader = runner.train_dataloader
        rank, world = get_dist_info()
        size = loader.batch_size
        count = max(1, min(self.images, len(loader.dataset)) // (size * world))
        order = np.random.default_rng((self.seed, runner.epoch, STATISTICS)).permutation(len(loader.dataset))
        mine = order[rank::world][: count * size].tolist()
        more = {"worker_init_fn": loader.worker_init_fn, "pin_memory": loader.pin_memory}
        if loader.num_workers:
            more["prefetch_factor"] = loader.prefetch_factor
        batches = DataLoader(
            loader.dataset, size, sampler=mine, num_workers=loader.num_workers, collate_fn=loader.collate_fn, **more
        )
        for number, batch in enumerate(batches):
            begin_random(self.seed, runner.epoch, number, STATISTICS)
            yield batch

    def before_val_epoch(self, runner: Any) -> None:
        self.before = norms.exchanged(_bare(runner.model), self.made)

    def after_val_epoch(self, runner: Any) -> None:
        norms.exchanged(_bare(runner.model), self.before)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        checkpoint[STATE]["training_statistics"] = {name: state[name] for name in self.made}
        state.update({name: value.cpu() for name, value in self.made.items()})

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["state_dict"]
        training = (checkpoint.get(STATE) or {}).get("training_statistics") or {}
        self.made = {name: state[name].clone() for name in training}
        state.update(training)


def _features(net: Any, batch: Any) -> object:
    """A batch through the net as in a training step (augmented, mixed), without a loss."""
    return net(**net.data_preprocessor(batch, True))


# ---------------------------------------------------------------------------------------------- stops


class StopOnBadLoss:
    """End the run where the loss is NaN or infinite, before anything is saved. `interval`: steps between looks."""

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Outputs = None) -> None:
        """`batch_idx` counts the epoch's steps, also where a part of them was taken by an earlier start."""
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


class StopAtGate:
    """End the run where a gate is hit, after its epoch was saved and validated."""

    def __init__(self, gates: Sequence[Mapping[str, Any]]) -> None:
        self.gates = [Gate(**g) for g in gates]

    def scored(self, runner: Any, top1_percent: float | None) -> None:
        if not self.gates:
            return
        history = record.History.of(Path(runner.work_dir))
        epoch = runner.epoch
        if any(line.get("status") == record.GATED and line.get("epoch") == epoch for line in history.lines):
            return  # it ended here before, and whoever resumed it knows
        figures: dict[str, float] = {}
        if epoch in history.epochs:
            figures["loss"] = history.epochs[epoch]["train_loss"]
        if top1_percent is not None:
            figures["accuracy"] = float(top1_percent)
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


def refuse_unsound(checkpoint: Mapping[str, Any], epoch: int) -> None:
    """Raises Ended for weights or statistics that are not finite: they are not to be saved."""
    state = {**checkpoint["state_dict"], **(checkpoint[STATE].get("training_statistics") or {})}
    for key, value in {**checkpoint.get("ema_state_dict", {}), **state}.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise Ended(
                record.BAD_LOSS,
                f"{key} is no longer finite in epoch {epoch}: not saved",
                hint="the last good checkpoint is kept. Try a smaller learning rate",
                epoch=epoch,
            )


# ---------------------------------------------------------------------------------------------- the record


class Record:
    """One line an epoch and one a validation, and where the run is a few times a second.

    Losses stay on the device until the epoch ends. Too many images that the loaders could not read end the run.
    """

    def __init__(self, bad: BadList) -> None:
        self.bad = bad
        self.sums: dict[str, float] = {}
        self.pending: dict[str, float] | None = None
        self.last: dict[str, Any] = {}
        self.told: dict[str, Any] = {}
        """Of the last validation: it stays in the progress, which is looked at only now and then."""
        self.told_at = 0.0
        self.norms_s = 0.0
        self.px = 0

    def before_train_epoch(self, runner: Any, px: int) -> None:
        self.loss: Any = 0.0
        self.sums = self.pending or {"loss": 0.0, "steps": 0, "images": 0, "wait_s": 0.0, "epoch_s": 0.0}
        self.pending = None
        self.began = self.mark = time.perf_counter()
        self.px = px
        self.bad.begin()

    def before_train_iter(self, runner: Any) -> None:
        self.sums["wait_s"] += time.perf_counter() - self.mark

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Outputs = None) -> None:
        if outputs is not None:
            self.loss = self.loss + torch.as_tensor(outputs["loss"]).detach().double()
        self.sums["steps"] += 1
        self.sums["images"] += len(data_batch["inputs"]) if isinstance(data_batch, Mapping) else 0
        self.mark = time.perf_counter()
        if self.mark - self.told_at > TELL_S:
            self.told_at = self.mark
            self.tell(runner, "training", outputs)
            self.look_at_bad_images(len(runner.train_dataloader.dataset))

    def tell(self, runner: Any, doing: str, outputs: Outputs = None) -> None:
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
        record.write_progress(Path(runner.work_dir), {**self.told, **value})

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
                "bad_images": self.bad.count(),
            }
            self.look_at_bad_images(int(images))
            record.append(Path(runner.work_dir), "epoch", **self.last)

    def look_at_bad_images(self, images: int) -> None:
        """Raises Ended where more of this epoch's images could not be read than a training takes."""
        if get_dist_info()[0]:
            return
        bad = self.bad.count()
        if are_too_many(bad, images):
            raise Ended(
                record.FAILED,
                f"{bad} of {images:,} training images could not be read, listed in {self.bad.path}",
                hint="is the disk there? bblab data check finds them all; this epoch is not kept: --resume begins it "
                "anew",
            )

    def before_val_epoch(self, runner: Any) -> None:
        self.val_began = time.perf_counter()
        if get_dist_info()[0] == 0:
            told = record.read_progress(Path(runner.work_dir))
            record.write_progress(Path(runner.work_dir), {**told, "doing": "validating"})

    def after_val_epoch(self, runner: Any, metrics: Mapping[str, float]) -> None:
        scored, bad = int(metrics.get("accuracy/scored", 0)), int(metrics.get("accuracy/unreadable", 0))
        if are_too_many(bad, scored + bad):  # the same in every process
            raise Ended(
                record.FAILED,
                f"{bad} of {scored + bad:,} validation images could not be read, listed in {self.bad.path}: "
                f"epoch {runner.epoch} has no score",
                hint="is the disk there? bblab data check finds them all; the epoch is saved, --resume scores it",
                epoch=runner.epoch,
            )
        if get_dist_info()[0]:
            return
        values = {"top1_percent": metrics.get("accuracy/top1"), "top5_percent": metrics.get("accuracy/top5")}
        record.append(
            Path(runner.work_dir),
            "val",
            epoch=runner.epoch,
            val_s=time.perf_counter() - self.val_began,
            norms_s=self.norms_s,
            **({"images": scored, "bad_images": bad} if "accuracy/scored" in metrics else {}),  # else it does not say
            **{k: round(float(v), 4) for k, v in values.items() if v is not None},  # counted in float32 there
        )
        told = record.read_progress(Path(runner.work_dir))
        told = {"epoch": runner.epoch, "epochs": runner.max_epochs, **told}  # there may be none yet
        self.told = {"top1_percent": values["top1_percent"], "validated_epoch": runner.epoch}
        self.told["epoch_bad_val_images"] = bad
        if self.last:
            self.told |= {"epoch_s": self.last["epoch_s"], "epoch_loss": self.last["train_loss"]}
            self.told |= {f"epoch_{key}": self.last.get(key, 0) for key in ("images_per_s", "wait_share", "bad_images")}
        record.write_progress(Path(runner.work_dir), told | self.told)


# ---------------------------------------------------------------------------------------------- checkpoints


class SurvivingCheckpoint:
    """A checkpoint at every epoch's end, and inside an epoch when asked to stop or after `save_minutes`.

    Files are whole or absent, load with `weights_only=True`, and hold all that the next step needs: also gradients that
    have not made an update yet, and the images that an average has not taken yet.
    """

    def __init__(self, keep: int, save_minutes: float, recorder: Record, average: ImageEMAHook | None) -> None:
        self.keep = keep
        self.save_s = 60 * save_minutes
        self.recorder = recorder
        self.average = average
        self.asked: str | None = None
        self.pending: Mapping[str, Any] = {}
        self.inside: dict[str, Any] = {}
        self.offset = 0
        self.parent = os.getppid()

    @property
    def is_inside(self) -> bool:
        """Whether the run goes on inside an epoch."""
        return bool(self.pending.get("batches"))

    @property
    def is_part(self) -> bool:
        """Whether what is being saved is a part of an epoch."""
        return bool(self.inside.get("batches"))

    def after_load_checkpoint(self, runner: Any, checkpoint: Mapping[str, Any]) -> None:
        self.pending = checkpoint.get(STATE) or {}

    def before_train(self, runner: Any) -> None:
        self.saved_at = time.perf_counter()
        if _in_main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._ask)
        if self.average:
            self.average.images = int(self.pending.get("average_images", 0))
        gradients = self.pending.get("gradients") or {}
        for name, p in _bare(runner.model).named_parameters():
            if name in gradients:
                p.grad = gradients[name].to(p.device)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt  # the second time at once
        self.asked = signal.Signals(number).name

    def before_train_epoch(self, runner: Any) -> None:
        """Skip what an earlier start has done of this epoch."""
        state, self.pending = self.pending, {}
        self.offset = int(state.get("batches", 0))
        if self.offset:
            runner.train_dataloader.sampler.skip = self.offset * runner.train_dataloader.batch_size
            self.recorder.pending = dict(state["sums"])

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Outputs = None) -> None:
        done = batch_idx + 1
        is_due = self.save_s > 0 and time.perf_counter() - self.saved_at > self.save_s
        if os.getppid() != self.parent and self.asked is None:
            self.asked = "the end of the command"
        wanted = self._agreed(batch_idx, is_due)
        if not wanted or done >= len(runner.train_dataloader):
            return
        self._save(runner, f"epoch_{runner.epoch}_iter_{done}.pth", runner.epoch, runner.iter + 1, done)
        if wanted == 2:
            raise self._stopped(f"stopped in epoch {runner.epoch + 1}, after step {done}")

    def _agreed(self, batch_idx: int, is_due: bool) -> int:
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

    def scored(self, runner: Any, top1_percent: float | None) -> None:
        """Link the best checkpoint."""
        folder = Path(runner.work_dir)
        path = folder / f"epoch_{runner.epoch}.pth"
        if get_dist_info()[0] or top1_percent is None or not path.exists():
            return
        known = record.History.of(folder).curve("val", "top1_percent")
        if round(float(top1_percent), 4) >= max((v for v in known if v is not None), default=0):
            checkpoints.link_best(path)

    def after_val_epoch(self, runner: Any) -> None:
        if self._agreed(0, False) == 2 and runner.epoch < runner.max_epochs:
            raise self._stopped(f"stopped after epoch {runner.epoch}")

    def _stopped(self, message: str) -> Ended:
        return Ended(record.STOPPED, message, hint="all of it is saved: go on with --resume", by=self.asked)

    def _save(self, runner: Any, name: str, epoch: int, iteration: int, batches: int) -> None:
        began = time.perf_counter()
        self.saved_at = began
        gradients = {} if runner.optim_wrapper.should_update() else _gradients(_bare(runner.model))
        if get_dist_info()[0]:
            return
        folder = Path(runner.work_dir)
        self.inside = {"gradients": gradients, "average_images": self.average.images if self.average else 0}
        if batches:
            self.inside |= {"batches": batches, "sums": self.recorder.state()}
        checkpoints.write(
            folder / name,
            lambda partial: runner.save_checkpoint(
                str(partial.parent), partial.name, meta={"epoch": epoch, "iter": iteration}, by_epoch=batches == 0
            ),
            lambda facts: record.append(
                folder, "checkpoint", epoch=epoch, batches=batches, save_s=time.perf_counter() - began, **facts
            ),
        )
        checkpoints.prune(folder, self.keep)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Plain data only: mmengine's log buffers pickle methods, which no safe loader takes."""
        checkpoint["message_hub"]["log_scalars"] = {}
        checkpoint["message_hub"]["runtime_info"] = _plain(checkpoint["message_hub"]["runtime_info"])
        kept = checkpoint["message_hub"]["runtime_info"]
        checkpoint["message_hub"]["resumed_keys"] = dict.fromkeys(kept, True)
        checkpoint["meta"] = _plain(checkpoint["meta"])
        checkpoint["param_schedulers"] = _plain(checkpoint.get("param_schedulers", []))
        checkpoint[STATE] = dict(self.inside)


def _gradients(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Gradients that the next update will take, by parameter; in several processes their mean, as the update's is."""
    found = {name: p.grad.detach().clone() for name, p in net.named_parameters() if p.grad is not None}
    if get_dist_info()[1] > 1:
        for value in found.values():
            all_reduce(value, "mean")
    return {name: value.cpu() for name, value in found.items()}


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
