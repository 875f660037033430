"""Data for pretraining: what a folder holds, whether every image decodes, and a smaller copy that loads fast.

`fingerprint` reads names and sizes only; `check` opens every image; `prepare` writes the copy; `digits` is a small
real set that is on the disk already. The transforms that training uses are in `bblab.pretraining.data.transforms`.
"""

from __future__ import annotations

from pathlib import Path

from bblab.pretraining.data.checking import check
from bblab.pretraining.data.digits import DIGITS, digits
from bblab.pretraining.data.preparing import prepare
from bblab.pretraining.data.values import BadFile, Checked, DataInfo, Prepared, Problem

__all__ = [
    "DIGITS",
    "BadFile",
    "Checked",
    "DataInfo",
    "Prepared",
    "Problem",
    "check",
    "digits",
    "fingerprint",
    "prepare",
]


def fingerprint(
    folder: str | Path,
    ann_train: str | Path | None = None,
    ann_val: str | Path | None = None,
    cache: Path | None = None,
) -> DataInfo:
    """What training reads from a folder: classes, counts, lists, a hash of names, labels and sizes; and its problems.

    A folder that `prepare` made is known from its own record, at once; another one is walked. Lists that mmpretrain
    needs (a class missing in val) are written into `cache`, else into bblab's cache. Raises BblabError for a missing
    folder or list; everything else that is wrong stands in `problems` (see `DataInfo.require_sound`).
    """
    from bblab.pretraining.data import listing
    from bblab.pretraining.data.preparing import recorded

    if ann_train is None and ann_val is None:
        known = recorded(listing.root_of(folder))
        if known is not None:
            return known
    return listing.to_info(listing.read(folder, ann_train, ann_val), cache)
