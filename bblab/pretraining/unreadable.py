"""Images that cannot be read: another one is trained on in their place, none is scored, each is counted and listed.

Importing this module registers the data set and the metric. Loaders note what they could not read in a list (see
`bblab.pretraining.data.transforms`), one "path, tab, reason" line each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.registry import DATASETS, METRICS
from mmpretrain.datasets import CustomDataset
from mmpretrain.evaluation import Accuracy

FEW = 10
FEW_SHARE, MANY_SHARE = 0.01, 0.1
TRIES = 100
NONE_READABLE = f"{TRIES} training images in a row could not be read"
BLANK = "is_blank"
"""The mark of a grey picture that stands for an unreadable image, in the image's metadata."""


def are_too_many(bad: int, images: int) -> bool:
    """Whether a run ends for this: above a hundredth of the images and ten of them, or above a tenth."""
    return (bad > FEW and bad > FEW_SHARE * images) or bad > MANY_SHARE * images


@DATASETS.register_module()
class ReadableImages(CustomDataset):
    """mmpretrain's data set; in the place of an image that cannot be read it gives another one, always the same.

    mmpretrain draws the other image from NumPy's state, which each image begins anew: two unreadable images that draw
    each other would end the run as if there were no readable one.
    """

    def __getitem__(self, idx: int) -> Any:  # whatever the pipeline makes
        for attempt in range(TRIES):
            item = self.prepare_data(idx)
            if item is not None:
                return item
            idx = int(np.random.default_rng((int(idx), attempt)).integers(len(self)))
        raise RuntimeError(NONE_READABLE)


@METRICS.register_module()
class ReadableAccuracy(Accuracy):
    """mmpretrain's accuracy over the images that could be read, with `scored` and `unreadable`: how many there were.

    Without a readable image there is no accuracy.
    """

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        before = len(self.results)
        super().process(data_batch, data_samples)
        for result, sample in zip(self.results[before:], data_samples, strict=True):
            result[BLANK] = bool(sample.get(BLANK, False))

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Every process's images are here, in order and without the doubles that make the processes' shares equal."""
        readable = [r for r in results if not r[BLANK]]
        counts = {"scored": len(readable), "unreadable": len(results) - len(readable)}
        return {**(super().compute_metrics(readable) if readable else {}), **counts}


class BadList:
    """The loaders' list, read from where it ended when `begin` was called; None: there is no list."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.start = 0

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def begin(self) -> None:
        """Count from here: what could not be read earlier says nothing of the images now."""
        self.start = self.size

    def count(self) -> int:
        """How many different images have been noted since."""
        if self.path is None or self.size <= self.start:
            return 0
        with self.path.open("rb") as file:
            file.seek(self.start)
            return len({line.split(b"\t")[0] for line in file})
