"""The model card of a training: what was trained, how, on what, what it reached and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bblab.pretraining.config import Plan
from bblab.pretraining.record import History

CARD = "card.md"


def interval(percent: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy measured on `count` images, in percent (Wilson 1927)."""
    p = percent / 100
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def duration(seconds: float) -> str:
    """4 min 10 s; 2.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    hours = seconds / 3600
    if hours < 100:
        return f"{hours:.3g} h"
    return f"{hours:,.0f} h ({hours / 24:,.0f} days)"


def accuracy_text(percent: float | None, count: int) -> str:
    """ "97.2 % [95.0, 98.5]" with its interval; a dash where there is none."""
    if percent is None or not count:
        return "–"
    low, high = interval(percent, count)
    return f"{percent:.2f} % [{low:.1f}, {high:.1f}]"


def rounding(result: Mapping[str, Any]) -> str:
    """What follows a result's difference of the two forms where rounding alone explains it, in words; else ""."""
    exact = result.get("forms_rel_diff_float64")
    return "" if exact is None else f", rounding alone: {exact:.1g} in float64"


def text(plan: Plan, history: History) -> str:
    """Markdown. Only what the record holds is said."""
    last = history.last
    result: Mapping[str, Any] = last.get("result", {})
    start: Mapping[str, Any] = last.get("start", {})
    data, recipe, s = plan.data, plan.recipe, plan.settings
    epochs = history.epochs
    count = history.scored(int(result.get("epoch", 0)), data["val_count"])
    left = data["val_count"] - count
    versions = ", ".join(f"{k} {v}" for k, v in (start.get("versions") or {}).items())
    lines = [
        f"# {plan.name}",
        "",
        f"Trained for {len(epochs)} of {recipe.epochs} epochs with the recipe `{recipe.name}`"
        + (" (weights averaged)" if result.get("is_average") else "")
        + ".",
        "",
        "| | |",
        "|---|---|",
        f"| top-1, validation | {accuracy_text(result.get('top1_percent'), count)} ({count} images; 95 % interval)"
        + (f"; {left} images could not be read and are not scored" if left else "")
        + " |",
        f"| spec | `{plan.spec_id}` {plan.name} |",
        f"| recipe | {recipe.name}: {recipe.about} |",
        f"| source of the recipe | {recipe.source} |",
        f"| data | {data['train_count']} training images in {len(data['classes'])} classes, {count} validation images"
        f"; fingerprint `{str(data.get('hash', ''))[:16]}` |",
        f"| learning rate | {plan.scaling.arithmetic} ({recipe.optimizer}, {recipe.schedule}) |",
        f"| batch | {plan.scaling.batch_arithmetic} |",
        f"| precision, seed | {s.precision}, {s.seed} |",
        f"| cost | {duration(history.train_s)} on {start.get('device', '?')}"
        f" ({s.processes} process{'es' if s.processes > 1 else ''}, {start.get('threads', '?')} threads) |",
        f"| software | bblab {plan.code_version}; {versions}; Python {start.get('python', '?')} |",
    ]
    if result.get("forms_rel_diff") is not None:
        lines.append(
            f"| deploy form | scores differ by {result['forms_rel_diff']:.2g} of the largest, "
            f"{result['forms_other_answers']} of {result['forms_images']} answers change{rounding(result)} |"
        )
    if s.precise_images:
        lines.append(
            f"| norm statistics | computed over {s.precise_images} training images after each epoch (precise BN, "
            "arXiv:2105.07576), not the training's running averages |"
        )
    if recipe.ema_momentum is not None:
        lines.append(f"| average | {recipe.ema_momentum:g} of the new weights for each {recipe.base_batch} images |")
    if s.freeze:
        lines.append(f"| frozen | up to and with stage {s.freeze}, norm statistics too |")
    if s.weights:
        lines.append(f"| began from | {s.weights} |")
    lines += [
        "",
        f"Weights: `{result.get('file', '–')}`, sha256 of their content `{result.get('content_sha256', '–')}`.",
    ]
    if plan.notes:
        lines += ["", *(f"- {note}" for note in plan.notes)]
    return "\n".join(lines) + "\n"
