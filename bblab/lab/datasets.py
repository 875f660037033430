"""Data sets checked and prepared, each with a row in the notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.store import NewRun

if TYPE_CHECKING:
    from bblab.lab import Lab
    from bblab.pretraining.data import Checked, Prepared, Problem
    from bblab.pretraining.recipe import Recipe


def check(lab: Lab, folder: str | Path, **options: Any) -> tuple[Checked, dict[str, Any]]:
    """`options` as in `data.check`. Returns what was found and its JSON, stored where every image was looked at."""
    from bblab.pretraining import data

    done = data.check(folder, **options)
    row = {
        **_shared(done.info.to_json(), done.problems),
        "worst": done.worst,
        "images": done.images,
        "formats": dict(done.formats),
        "bad": [asdict(b) for b in done.bad],
        "read_bytes": done.read_bytes,
        "seconds": done.seconds,
        "is_looked_inside": bool(options.get("contents", True)),
    }
    if row["is_looked_inside"] and done.images:
        row["run_id"] = _store(lab, "data-check", row, {"folder": done.info.root})
    return done, row


def prepare(lab: Lab, folder: str | Path, out: str | Path, **options: Any) -> tuple[Prepared, dict[str, Any]]:
    """`options` as in `data.prepare`. Returns what was made and its JSON, stored."""
    from bblab.pretraining import data

    done = data.prepare(folder, out, **options)
    row = {
        **_shared(done.info.to_json(), done.problems),
        "written": done.written,
        "reused": done.reused,
        "bad": [asdict(b) for b in done.bad],
        "read_bytes": done.read_bytes,
        "total_bytes": done.total_bytes,
        "seconds": done.seconds,
    }
    if done.written:
        row["run_id"] = _store(lab, "data-prepare", row, {"folder": str(folder), **dict(done.info.prepared or {})})
    return done, row


def _shared(info: Mapping[str, Any], problems: Sequence[Problem]) -> dict[str, Any]:
    return {**info, "classes": len(info["classes"]), "problems": [asdict(p) for p in problems]}


def _store(lab: Lab, kind: str, row: Mapping[str, Any], inputs: Mapping[str, Any]) -> int:
    from bblab.lab import code_version

    result = {k: v for k, v in row.items() if k != "bad"} | {"num_bad": len(row["bad"]), "bad": row["bad"][:100]}
    run = NewRun(kind, "", Path(row["root"]).name, code_version(), dict(inputs), result)
    with lab.notebook() as store:
        return store.add_many([run])[0]


def costs(recipe: Recipe, rate: float | None, at_px: float, source: str) -> dict[str, Any]:
    """What a recipe costs: in epochs at 224 px, and in hours where the training rate (images/s at `at_px`) is known."""
    assumed = {"images_per_s": rate, "at_px": at_px, "data": recipe.for_data, "source": source}
    return {
        "epochs_at_224px": recipe.epochs_at(224),
        "hours": None if rate is None else recipe.hours(rate, at_px),
        "hours_assume": None if rate is None else assumed,
    }


def measured_rate(lab: Lab) -> tuple[float | None, float, str]:
    """(images/s, px, of what) of the newest training in the lab: the size is the mean over the epochs it trained."""
    if not lab.store_path.exists():
        return None, 224, ""
    with lab.notebook(read_only=True) as store:
        for run in store.runs(kind="pretrain", limit=20):
            try:
                recipe, result = run.inputs["recipe"], run.result
                rate, epochs = float(result["images_per_s"]), max(1, int(result["epochs_trained"]))
                ramp = [(0, recipe["resolution_px"]), *recipe["resolution_ramp"]]
                sizes = [next(px for start, px in reversed(ramp) if start <= e) for e in range(epochs)]
                px = (sum(float(size) ** 2 for size in sizes) / epochs) ** 0.5
            except (KeyError, TypeError, ValueError):  # a run that ended before its first epoch
                continue
            if rate > 0 and px > 0:
                return rate, px, f"run {run.id}, {run.name} on {result.get('device') or 'this machine'}"
    return None, 224, ""
