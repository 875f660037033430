"""What a tracker does around its nets: cut out and resize a patch, and turn scores into a box.

As SiamFC and its followers do (Bertinetto et al. 2016, arXiv:1606.09549; penalties of Li et al. 2018, "High
performance visual tracking with Siamese region proposal network"). OpenCV resizes where it is installed, else numpy,
which takes some fifteen times longer (430 to 255 px: 4 ms against 0.25 ms); the output says who did.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of 0 to 255
CONTEXT = 0.5  # of the mean side is added on each side
WINDOW_SHARE, PENALTY = 0.4, 0.15

Box = tuple[float, float, float, float]  # centre x, centre y, width, height in pixels


def context_side(box: Box, size: int, template: int) -> float:
    """The side of the square around a target that becomes `size` pixels."""
    _, _, w, h = box
    pad = CONTEXT * (w + h)
    return math.sqrt((w + pad) * (h + pad)) * size / template


Resize = Callable[["np.ndarray", int], "np.ndarray"]  # H, W, 3 uint8, side -> 3, side, side float32


def resizer(threads: int) -> tuple[Resize, str]:
    """What resizes, bilinear, and its name."""
    import numpy as np

    try:
        import cv2
    except ImportError:
        return by_numpy, "numpy (slower than the OpenCV of a tracker)"
    cv2.setNumThreads(threads)

    def by_opencv(cut: np.ndarray, size: int) -> np.ndarray:
        planes: np.ndarray = cv2.resize(cut, (size, size)).transpose(2, 0, 1).astype(np.float32, order="C")
        return planes

    return by_opencv, f"OpenCV {cv2.__version__}"


def by_numpy(cut: np.ndarray, size: int) -> np.ndarray:
    """Bilinear between pixel centres, as OpenCV's INTER_LINEAR but not rounded to whole values."""
    import numpy as np

    reach = cut.shape[0]
    at = np.clip((np.arange(size) + 0.5) * (reach / size) - 0.5, 0, reach - 1)
    low = np.minimum(at.astype(np.intp), max(0, reach - 2))
    high, part = np.minimum(low + 1, reach - 1), (at - low).astype(np.float32)
    planes = np.ascontiguousarray(cut.transpose(2, 0, 1))
    rows, after = planes[:, low].astype(np.float32), planes[:, high].astype(np.float32)
    rows += (after - rows) * part[:, None]
    found, after = np.take(rows, low, axis=2), np.take(rows, high, axis=2)
    found += (after - found) * part
    return found


def patch(
    frame: np.ndarray, centre: tuple[float, float], side: float, size: int, resize: Resize = by_numpy
) -> np.ndarray:
    """H, W, 3 uint8 -> 1, 3, size, size float32: cropped (mean colour outside), resized, normalised."""
    import numpy as np

    reach = max(1, round(side))
    left, top = round(centre[0] - side / 2), round(centre[1] - side / 2)
    height, width = frame.shape[:2]
    x0, y0, x1, y1 = max(0, left), max(0, top), min(width, left + reach), min(height, top + reach)
    cut = frame[y0:y1, x0:x1]
    if cut.shape[:2] != (reach, reach):
        whole = np.empty((reach, reach, 3), np.uint8)
        whole[:] = frame[::8, ::8].mean((0, 1))
        whole[y0 - top : y1 - top, x0 - left : x1 - left] = cut
        cut = whole
    found = resize(cut, size)
    found -= np.asarray(MEAN, np.float32)[:, None, None]
    found *= 1 / np.asarray(STD, np.float32)[:, None, None]
    return found[None]


class Decoder:
    """Scores and distances to a box; the grid and the window are made once."""

    def __init__(self, height: int, width: int, stride: int) -> None:
        import numpy as np

        self._stride = stride
        self._y = ((np.arange(height) - (height - 1) / 2) * stride).astype(np.float32)[:, None]
        self._x = ((np.arange(width) - (width - 1) / 2) * stride).astype(np.float32)[None, :]
        self._window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)

    def __call__(self, scores: np.ndarray, distances: np.ndarray, box: Box, scale: float) -> Box:
        """The box of the best position. `scale`: frame pixels per patch pixel."""
        import numpy as np

        s, d = scores[0], distances[0] * self._stride
        target = 1 / (1 + np.exp(np.clip(s[0] - s[1], -80, 80)))
        left, top, right, bottom = d
        w, h = left + right, top + bottom

        def change(r: np.ndarray) -> np.ndarray:
            return np.maximum(r, 1 / np.maximum(r, 1e-9))

        def padded(w: np.ndarray | float, h: np.ndarray | float) -> np.ndarray:
            pad = (w + h) * 0.5
            return np.sqrt((w + pad) * (h + pad))

        old_w, old_h = box[2] / scale, box[3] / scale
        size = change(padded(w, h) / padded(old_w, old_h))
        shape = change((old_w / old_h) / (w / np.maximum(h, 1e-9)))
        penalty = np.exp(-(size * shape - 1) * PENALTY)
        ranked = penalty * target * (1 - WINDOW_SHARE) + self._window * WINDOW_SHARE
        row, column = divmod(int(np.argmax(ranked)), ranked.shape[1])
        x = self._x[0, column] + (right[row, column] - left[row, column]) / 2
        y = self._y[row, 0] + (bottom[row, column] - top[row, column]) / 2
        rate = float(penalty[row, column] * target[row, column]) * 0.3
        new_w = box[2] * (1 - rate) + float(w[row, column]) * scale * rate
        new_h = box[3] * (1 - rate) + float(h[row, column]) * scale * rate
        return box[0] + float(x) * scale, box[1] + float(y) * scale, new_w, new_h


def photo() -> tuple[np.ndarray, str]:
    """A frame, H, W, 3 uint8, and what it is: a real photo where a library brings one, else noise."""
    import importlib

    import numpy as np

    for name, module, make in (
        ("photo (astronaut, scikit-image)", "skimage.data", lambda m: m.astronaut()),
        ("photo (china.jpg, scikit-learn)", "sklearn.datasets", lambda m: m.load_sample_image("china.jpg")),
    ):
        try:
            found = make(importlib.import_module(module))
            return np.ascontiguousarray(found[..., :3], np.uint8), name
        except Exception:  # missing, or without its data: the next one
            continue
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    return noise, "SYNTHETIC NOISE (no photo: neither scikit-image nor scikit-learn is installed)"


def path(number: int, height: int, width: int) -> Box:
    """Where the target is in a frame: it wanders and breathes, so that every crop is another one."""
    angle = number * 0.37
    side = min(height, width)
    x = width / 2 + 0.15 * width * math.sin(angle)
    y = height / 2 + 0.15 * height * math.cos(0.7 * angle)
    return x, y, side * (0.20 + 0.04 * math.sin(0.5 * angle)), side * (0.26 + 0.04 * math.cos(0.3 * angle))
