"""What a recipe would take, from a few steps of the net and of the data pipeline, each measured alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bblab.errors import BblabError
from bblab.pretraining.config import Plan, build
from bblab.pretraining.recipe import IMAGES

IMAGENET = IMAGES["imagenet-1k"]
BUDGET_S = 8.0  # for each of the measurements
STEPS = (3, 200)  # at least and at most


@dataclass(frozen=True, slots=True)
class Estimate:
    """Rates of one process, images a second: training steps on synthetic images, and loading without a net.

    `net_samples_s` and `loader_samples_s` are seconds of single steps and batches. `workers` 0: the training process
    loads, so both times add up; else the slower of the two limits.
    """

    device: str
    precision: str
    batch_size: int
    processes: int
    px: int
    workers: int
    train_images: int
    val_images: int
    net_samples_s: tuple[float, ...]
    loader_samples_s: tuple[float, ...]
    peak_memory_bytes: int | None
    hours: float
    imagenet_hours: float

    @property
    def net_images_per_s(self) -> float:
        return self.batch_size / _median(self.net_samples_s)

    @property
    def loader_images_per_s(self) -> float:
        return self.batch_size / _median(self.loader_samples_s)

    @property
    def limit(self) -> str:
        if self.workers == 0:
            return (
                "net" if self.net_images_per_s <= self.loader_images_per_s else "data (loaded by the training itself)"
            )
        return "net" if self.net_images_per_s <= self.loader_images_per_s else "data"

    def to_json(self) -> dict[str, Any]:
        rates = {"net_images_per_s": self.net_images_per_s, "loader_images_per_s": self.loader_images_per_s}
        return {**asdict(self), **rates, "limit": self.limit}


def _median(values: tuple[float, ...]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def hours(plan: Plan, net: float, loader: float, at_px: int, *, train_images: int, val_images: int) -> float:
    """Hours of the plan's recipe with these rates of one process."""
    processes, recipe = plan.settings.processes, plan.recipe
    # Norm statistics take a forward pass, as a validation image does.
    counts = {"train_images": train_images, "val_images": val_images + plan.settings.precise_images}
    val_images = counts["val_images"]
    if plan.settings.workers:
        return recipe.hours(net * processes, at_px, loader_images_per_s=loader * processes, **counts)
    # One process does both, one after the other: loading takes as long as if it were the only work.
    alone = recipe.hours(net * processes, at_px, **counts)
    images = recipe.epochs * (train_images + val_images)
    return alone + images / (loader * processes) / 3600


def estimate(
    plan: Plan,
    folder: Path,
    *,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
    alter: Callable[[dict[str, Any]], None] | None = None,
) -> Estimate:
    """Measure a few steps of a settled plan. Raises BblabError where the GPU's memory is too small.

    folder: for what the loaders note. alter: changes the Config before it is measured (a benchmark's other side).
    """
    from bblab.pretraining.run import quieten

    quieten()
    import torch
    from mmengine.registry import DefaultScope

    import bblab.pretraining.adapter  # noqa: F401  registers what the Config names

    s, recipe = plan.settings, plan.recipe
    made = build(plan, folder)
    if alter is not None:
        alter(made)
    (folder / "classes.txt").write_text("".join(f"{c}\n" for c in plan.data["classes"]), encoding="utf-8")
    px = max(px for _, px in recipe.resolutions_px)
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        try:
            net_s, peak = _steps(made, plan, px, budget_s, clock)
        except torch.OutOfMemoryError:
            raise BblabError(
                f"a batch of {s.batch_size} at {px} px does not fit into the GPU's memory",
                hint="a smaller --batch-size with --accumulate N, or --precision bf16",
            ) from None
        loader_s = _batches(made, plan, budget_s, clock)
    net, loader = s.batch_size / _median(net_s), s.batch_size / _median(loader_s)
    counts = {"train_images": plan.data["train_count"], "val_images": plan.data["val_count"]}
    return Estimate(
        device=torch.cuda.get_device_name() if s.is_cuda else "CPU",
        precision=s.precision,
        batch_size=s.batch_size,
        processes=s.processes,
        px=px,
        workers=s.workers or 0,
        net_samples_s=net_s,
        loader_samples_s=loader_s,
        peak_memory_bytes=peak,
        hours=hours(plan, net, loader, px, **counts),
        imagenet_hours=hours(plan, net, loader, px, train_images=IMAGENET[0], val_images=IMAGENET[1]),
        **counts,
    )


def _steps(
    made: dict[str, Any], plan: Plan, px: int, budget_s: float, clock: Callable[[], float]
) -> tuple[tuple[float, ...], int | None]:
    """Seconds of training steps on synthetic images, the first ones (allocation, compilation) left out."""
    import torch
    from mmengine.registry import MODELS
    from mmpretrain.structures import DataSample

    from bblab.pretraining.adapter import TwoGroups

    s = plan.settings
    torch.manual_seed(s.seed)
    device = "cuda" if s.is_cuda else "cpu"
    model = MODELS.build(
        {**made["model"], "data_preprocessor": {"type": "ClsDataPreprocessor", **made["data_preprocessor"]}}
    )
    model = model.to(device).train()
    wanted = {k: v for k, v in made["optim_wrapper"].items() if k not in ("constructor", "paramwise_cfg")}
    wrapper = TwoGroups(wanted, made["optim_wrapper"]["paramwise_cfg"])(model)
    images = torch.randint(0, 256, (s.batch_size, plan.spec["input"][0], px, px), dtype=torch.uint8, device=device)

    def step() -> None:
        samples = [DataSample().set_gt_label(i % plan.num_classes) for i in range(s.batch_size)]
        model.train_step({"inputs": images, "data_samples": samples}, wrapper)
        if s.is_cuda:
            torch.cuda.synchronize()

    for _ in range(2 + s.is_cuda * 3):
        step()
    if s.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    found = _timed(step, budget_s, clock)
    return found, torch.cuda.max_memory_allocated() if s.is_cuda else None


def _batches(made: dict[str, Any], plan: Plan, budget_s: float, clock: Callable[[], float]) -> tuple[float, ...]:
    """Seconds of batches from the training loader, with nothing else to do; its start left out."""
    from mmengine.runner import Runner

    loader = Runner.build_dataloader(made["train_dataloader"], seed=plan.settings.seed)
    iterator = iter(loader)
    seen = 0

    def batch() -> None:
        nonlocal iterator, seen
        try:
            next(iterator)
        except StopIteration:
            iterator = iter(loader)
            next(iterator)
        seen += 1

    # What the workers have prepared while they started says nothing of their pace.
    ahead = (plan.settings.workers or 0) * made["train_dataloader"].get("prefetch_factor", 0)
    for _ in range(min(1 + ahead, max(1, len(loader) - 1))):
        batch()
    if not plan.settings.workers:
        return _timed(batch, budget_s, clock)
    began, first = clock(), seen
    while clock() - began < budget_s and seen - first < 5 * STEPS[1]:
        batch()
    return ((clock() - began) / max(1, seen - first),)  # batches of several workers come in bursts: their mean


def _timed(act: Callable[[], None], budget_s: float, clock: Callable[[], float]) -> tuple[float, ...]:
    found: list[float] = []
    until = clock() + budget_s
    while len(found) < STEPS[0] or (clock() < until and len(found) < STEPS[1]):
        began = clock()
        act()
        found.append(clock() - began)
    assert all(math.isfinite(t) for t in found)
    return tuple(found)
