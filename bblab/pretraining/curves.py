"""The curves of a run as a picture: loss, accuracy, learning rate by epoch."""

from __future__ import annotations

import os
from pathlib import Path

from bblab.errors import BblabError
from bblab.installing import how_to_install
from bblab.pretraining.config import Plan
from bblab.pretraining.record import History

CURVES = "curves.png"


def draw(plan: Plan, history: History, folder: Path) -> Path | None:
    """Write `curves.png`; None where no epoch was finished. Raises BblabError without matplotlib."""
    epochs, vals = history.epochs, history.validations
    if not epochs:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        raise BblabError("curves are drawn with matplotlib", hint=how_to_install("matplotlib")) from None
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    xs = list(epochs)
    losses = [epochs[e]["train_loss"] for e in xs]
    top.plot(xs, losses, color="#b2471b", marker="o", markersize=3)
    top.set_ylabel("training loss (mean over the epoch)", color="#b2471b")
    top.set_ylim(bottom=0)
    known = [(e, v["top1_percent"]) for e, v in vals.items() if v.get("top1_percent") is not None]
    if known:
        right = top.twinx()
        right.plot(*zip(*known, strict=True), color="#1b5e8c", marker="s", markersize=3)
        right.set_ylabel("top-1, validation (%)", color="#1b5e8c")
        low = min(v for _, v in known)
        right.set_ylim(max(0.0, low - 0.1 * (100 - low) - 1), 100)
        best_epoch, best = max(known, key=lambda item: item[1])
        right.annotate(
            f"{best:.2f} % at epoch {best_epoch}", (best_epoch, best), xytext=(0, -14), textcoords="offset points",
            ha="right", color="#1b5e8c",
        )  # fmt: skip
    bottom.plot(xs, [epochs[e]["lr"] for e in xs], color="#444444", marker="o", markersize=3)
    bottom.set_ylabel("learning rate\n(end of epoch)")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("epoch")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (top, bottom):
        axis.grid(alpha=0.25)
    figure.suptitle(f"{plan.name}: {plan.recipe.name}, lr {plan.scaling.arithmetic}, seed {plan.settings.seed}")
    path = folder / CURVES
    partial = folder / f".{CURVES}.{os.getpid()}.partial"
    try:
        figure.savefig(partial, format="png", dpi=110)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
