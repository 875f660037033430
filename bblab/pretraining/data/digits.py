"""scikit-learn's handwritten digits as an image folder: a small real data set that is on the disk already.

1,797 images of 8x8 pixels (Alpaydin & Kaynak 1998, UCI), enlarged to 48 px: train 1,437, val 360 (36 of each
class), split the same way on every machine.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from bblab.errors import BblabError, RunError
from bblab.installing import how_to_install

PX = 48
DIGITS = f"digits-{PX}px-v1"
"""Their folder's name in a cache; another number for other pictures."""
_VAL_PER_CLASS = 36


def digits(cache_folder: Path) -> Path:
    """The data set's folder in `cache_folder`, written on first use and never half-written.

    Raises BblabError without scikit-learn, RunError where the folder cannot be written.
    """
    from bblab.pretraining.data import images

    target = cache_folder / DIGITS
    if target.is_dir():
        return target
    images.packages()
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BblabError("the digits come with scikit-learn", hint=how_to_install("scikit-learn")) from None
    bunch = load_digits()
    try:
        cache_folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".digits-", dir=cache_folder))
        try:
            _write(bunch.images, bunch.target, partial)
            partial.chmod(0o755)
            with suppress(OSError):  # another process was faster: its folder is the same
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise RunError(
            f"{target} cannot be written: {error.strerror}", hint="free some space, or set BBLAB_CACHE"
        ) from None
    return target


def _write(pictures: Any, labels: Any, folder: Path) -> None:  # scikit-learn's arrays
    import cv2
    import numpy as np
    import simplejpeg

    chosen = _val_indices(labels.tolist())
    for i, (picture, label) in enumerate(zip(pictures, labels.tolist(), strict=True)):
        split = "val" if i in chosen else "train"
        grey = np.clip(picture * (255 / 16), 0, 255).astype(np.uint8)
        large = cv2.resize(grey, (PX, PX), interpolation=cv2.INTER_CUBIC)
        place = folder / split / str(label)
        place.mkdir(parents=True, exist_ok=True)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(large[:, :, None]), 95, "GRAY", "Gray")
        (place / f"{i:04d}.jpg").write_bytes(data)


def _val_indices(labels: list[int]) -> frozenset[int]:
    """Thirty-six of each class: every fifth, and where a class has too few, from between them."""
    chosen: list[int] = []
    for label in sorted(set(labels)):
        members = [i for i, found in enumerate(labels) if found == label]
        chosen += (members[::5] + members[2::5])[:_VAL_PER_CLASS]
    return frozenset(chosen)
