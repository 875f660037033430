"""What bblab's own hook costs an epoch, against the whole of it, in the same run: should be under 2 %.

Every point of bblab's hook is timed inside a real training (mobilenetv3_small on the digits); the checkpoints with
their fsync and the norms' precise statistics, a forward pass over training images, are named apart.
`python benchmarks/pretrain_hooks.py [EPOCHS]`
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

OURS = ("BblabTraining", "ImageEMAHook")
POINTS = [
    f"{when}_{what}"
    for when in ("before", "after")
    for what in ("run", "train", "train_epoch", "train_iter", "val_epoch", "val_iter")
]


def main(epochs: int) -> int:
    from dataclasses import replace

    from mmengine.registry import HOOKS

    from bblab.lab import Lab, training
    from bblab.pretraining import hooks, record, run

    spent: dict[str, float] = defaultdict(float)
    saving, averaging = [0.0], [0.0]

    def timed(name: str, inner: Any) -> Any:
        def outer(*args: Any, **kwargs: Any) -> Any:
            began, before = time.perf_counter(), saving[0] + averaging[0]
            try:
                return inner(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - began - (saving[0] + averaging[0] - before)

        return outer

    def apart(place: list[float], inner: Any) -> Any:
        def outer(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                place[0] += time.perf_counter() - began

        return outer

    for part, point, place in (
        (hooks.SurvivingCheckpoint, "_save", saving),
        (hooks.PreciseNorms, "after_train_epoch", averaging),
    ):
        setattr(part, point, apart(place, getattr(part, point)))
    for name in OURS:
        cls = HOOKS.get(name)
        for point in POINTS:
            if point in vars(cls):
                setattr(cls, point, timed(name, getattr(cls, point)))
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder) / "lab")
        made = training.plan(lab, lab.spec("mobilenetv3_small"), training.Wanted(epochs=epochs))
        made = replace(made, settings=replace(made.settings, keep=2))
        place = Path(folder) / "run"
        place.mkdir()
        run.write_plan(place, made)
        run.train(place)
        history = record.History.of(place)
    total = history.train_s + saving[0]
    ours = sum(spent.values())
    found = {
        "epochs": epochs, "total_s": total, "hooks_s": ours, "hooks_share": ours / total, "checkpoints_s": saving[0],
        "checkpoints_share": saving[0] / total, "norms_share": averaging[0] / total, "by_hook_s": dict(spent),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    shares = f"hooks {100 * ours / total:.2f} % of the training, checkpoints {100 * saving[0] / total:.2f} %, norms "
    shares += f"{100 * averaging[0] / total:.2f} %"
    print(shares, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
