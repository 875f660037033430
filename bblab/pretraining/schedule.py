"""Learning rates: scaled to the batch that is really used, then as mmengine's own schedulers.

Linear scaling with a warm-up: Goyal et al. 2017, arXiv:1706.02677, for SGD. The square root for optimizers that divide
by the gradient's size: You et al. 2020, arXiv:1904.00962 (LAMB); Malladi et al. 2022, arXiv:2205.10287 (RMSprop, Adam).
Everything is counted in iterations, so that a schedule does not depend on how a loader counts.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bblab.pretraining.recipe import Recipe

Rule = Literal["none", "linear", "sqrt"]
RULES: tuple[Rule, ...] = ("none", "linear", "sqrt")
ADAPTIVE = ("rmsprop", "adamw", "lamb")
"""Optimizers whose step does not grow with the gradient."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """A recipe's learning rate at the batch of this run: `lr` = `recipe_lr` × `factor`.

    `total_batch` images stand behind one optimizer step: batch × processes × accumulation. Warm-up and floor are shares
    of the learning rate, so they scale with it.
    """

    recipe_lr: float
    base_batch: int
    batch_size: int
    processes: int = 1
    accumulation: int = 1
    rule: Rule = "none"
    optimizer: str = "sgd"

    @property
    def total_batch(self) -> int:
        return self.batch_size * self.processes * self.accumulation

    @property
    def factor(self) -> float:
        ratio = self.total_batch / self.base_batch
        return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[self.rule]

    @property
    def lr(self) -> float:
        return self.recipe_lr * self.factor

    @property
    def arithmetic(self) -> str:
        """The sum as a person checks it: "0.5 × 512/1024 = 0.25"."""
        share = f"{self.total_batch}/{self.base_batch}"
        if self.rule == "linear":
            return f"{self.recipe_lr:g} × {share} = {self.lr:.6g}"
        if self.rule == "sqrt":
            return f"{self.recipe_lr:g} × √({share}) = {self.lr:.6g}"
        return f"{self.recipe_lr:g}"

    @property
    def batch_arithmetic(self) -> str:
        """ "128 × 2 processes × 4 accumulated = 1024"; "512" where nothing multiplies it."""
        parts = [str(self.batch_size)]
        if self.processes > 1:
            parts.append(f"{self.processes} processes")
        if self.accumulation > 1:
            parts.append(f"{self.accumulation} accumulated")
        return " × ".join(parts) + (f" = {self.total_batch}" if len(parts) > 1 else "")

    @property
    def advice(self) -> str:
        """What a person should know of a batch that is not the recipe's; "" where it is, or the rule fits."""
        if self.total_batch == self.base_batch or self.rule == "sqrt":
            return ""
        ratio = self.total_batch / self.base_batch
        root = f"--lr-rule sqrt would make it {self.recipe_lr * math.sqrt(ratio):.6g}"
        if self.rule == "linear":
            why = f"the linear rule is SGD's; for {self.optimizer} the square root is usual: {root}"
            return why if self.optimizer in ADAPTIVE else ""
        made = f"--lr-scale would make it {self.recipe_lr * ratio:.6g}"
        if self.optimizer in ADAPTIVE:
            made = f"{root} (usual for {self.optimizer}), {made}"
        return f"the recipe's learning rate is for batch {self.base_batch}, this run has {self.total_batch}: {made}"

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "total_batch": self.total_batch,
            "factor": self.factor,
            "lr": self.lr,
            "arithmetic": self.arithmetic,
            "batch_arithmetic": self.batch_arithmetic,
        }


def keeps_last_batch(images: int, batch_size: int, processes: int) -> bool:
    """Whether an epoch ends with a smaller batch: of half the size, or of a quarter if it is a tenth of the epoch.

    A smaller one would weigh its few images as a full batch's; it is left out, other images each epoch. A norm needs
    two.
    """
    mine = math.ceil(images / processes)
    rest = mine % batch_size
    return mine > batch_size and rest >= 2 and (2 * rest >= batch_size or (4 * rest >= batch_size and 10 * rest > mine))


def iterations_per_epoch(images: int, batch_size: int, processes: int, keeps_last: bool = False) -> int:
    """Batches that each process sees in an epoch: the full ones, and a smaller last one where `keeps_last`."""
    mine = math.ceil(images / processes)
    return math.ceil(mine / batch_size) if keeps_last else mine // batch_size


def warmup_steps(recipe: Recipe, iterations: int) -> int:
    """Steps of the warm-up in epochs of `iterations`; 0 where it would be a single one, which cannot rise."""
    warm = min(round(recipe.warmup_epochs * iterations), recipe.epochs * iterations - 1)
    return warm if warm >= 2 else 0


def schedulers(recipe: Recipe, iterations: int) -> list[dict[str, Any]]:
    """The recipe's schedule as mmengine's param_scheduler, for epochs of `iterations`."""
    total = recipe.epochs * iterations
    warm = warmup_steps(recipe, iterations)
    found: list[dict[str, Any]] = []
    if warm and recipe.warmup == "linear":
        start = max(recipe.warmup_start_factor, 1e-9)  # LinearLR multiplies: it cannot rise from 0
        found.append({"type": "LinearLR", "start_factor": start, "by_epoch": False, "begin": 0, "end": warm})
    elif warm:
        share = recipe.warmup_start_factor
        found.append({"type": "ConstantLR", "factor": share, "by_epoch": False, "begin": 0, "end": warm})
    found += _main(recipe, iterations, warm, total)
    if recipe.final_weight_decay is not None and recipe.weight_decay:
        # A share of each group's own decay: an absolute floor would lift the norms, whose decay is 0.
        share = recipe.final_weight_decay / recipe.weight_decay
        found.append(
            {
                "type": "CosineAnnealingParamScheduler",
                "param_name": "weight_decay",
                "eta_min_ratio": share,
                "T_max": total,
                "by_epoch": False,
                "begin": 0,
                "end": total,
            }
        )
    return found


def _main(recipe: Recipe, iterations: int, begin: int, total: int) -> list[dict[str, Any]]:
    floor = recipe.final_lr_ratio
    span = {"by_epoch": False, "begin": begin, "end": total}
    if recipe.schedule == "cosine":
        return [{"type": "CosineAnnealingLR", "T_max": total - begin, "eta_min_ratio": floor, **span}]
    if recipe.schedule == "linear":
        return [{"type": "LinearLR", "start_factor": 1.0, "end_factor": floor, **span}]
    if recipe.schedule == "exponential":
        size = max(1, round(recipe.step_epochs * iterations))
        return [{"type": "StepLR", "step_size": size, "gamma": recipe.gamma, **span}]
    if recipe.schedule == "step":
        # Milestones are counted from the scheduler's own beginning.
        at = [m * iterations - begin for m in recipe.milestones]
        return [{"type": "MultiStepLR", "milestones": at, "gamma": recipe.gamma, **span}]
    assert recipe.schedule == "constant", recipe.schedule
    return []
