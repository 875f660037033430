"""mmpretrain transforms that read images fast: libjpeg-turbo for JPEGs, OpenCV on one thread for the geometry.

In a Config by name, with custom_imports = ["bblab.pretraining.data.transforms"]:

    {"type": "LoadImageFast"}                              in place of LoadImageFromFile
    {"type": "LoadRandomCropFast", "px": 160}              in place of LoadImageFromFile, RandomResizedCrop, RandomFlip
    {"type": "LoadCenterCropFast", "edge": 256, "px": 224} in place of LoadImageFromFile, ResizeEdge, CenterCrop

The two that crop decode a JPEG straight to a half, a quarter or an eighth where the crop has pixels to spare. All three
take `on_bad`, what to do with an image that does not decode: "error" ends the run and names the file, "skip" has the
data set draw another one (training only), "blank" gives a grey image, marked `is_blank`. Skipped and blank images are
appended to `bad_list`, one "path, tab, reason" line each, from whichever process met them.
"""

from __future__ import annotations

import math
import os
from typing import Any, Literal

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

from bblab.errors import BblabError, RunError
from bblab.pretraining.data import images

OnBad = Literal["error", "skip", "blank"]
AREA_ABOVE = 2.0  # linear sampling reads every pixel up to here; beyond, areas are averaged at five times the cost
_INTERPOLATIONS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


class _Loads(BaseTransform):
    """What the three share: reading, and what happens to a bad image."""

    def __init__(self, on_bad: OnBad = "error", bad_list: str | None = None) -> None:
        images.packages()
        if on_bad not in ("error", "skip", "blank"):
            raise BblabError(f"on_bad {on_bad!r}", hint="error, skip or blank")
        cv2.setNumThreads(0)  # a loader's processes are its threads: mmpretrain issue 1824, a training twice as slow
        self.on_bad = on_bad
        self.bad_list = bad_list

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        path = results["img_path"]
        try:
            data = _read(path)
            return self.load(results, data, images.header(data))
        except images.BadImage as bad:
            if self.on_bad == "error":
                hint = "bblab data check finds all of them before training"
                raise RunError(f"{path}: {bad}", hint=hint) from None
            self.note(path, str(bad))
            return None if self.on_bad == "skip" else {**self.blank(results), "is_blank": True}

    def load(self, results: dict[str, Any], data: bytes, head: images.Header) -> dict[str, Any]:
        raise NotImplementedError

    def blank(self, results: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def note(self, path: str, reason: str) -> None:
        if self.bad_list:
            line = f"{path}\t{reason}\n".encode("utf-8", "surrogateescape")
            file = os.open(self.bad_list, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(file, line)  # one short write: lines of several processes do not mix
            finally:
                os.close(file)


def _read(path: str) -> bytes:
    if "://" in path:
        from mmengine import fileio

        return fileio.get(path)
    return images.read_file(path)


def _filled(results: dict[str, Any], image: np.ndarray[Any, Any], ori_shape: tuple[int, int]) -> dict[str, Any]:
    results["img"] = image
    results["img_shape"] = image.shape[:2]
    results["ori_shape"] = ori_shape
    return results


def _grey(height: int, width: int) -> np.ndarray[Any, Any]:
    return np.full((height, width, 3), 128, np.uint8)


@TRANSFORMS.register_module()
class LoadImageFast(_Loads):
    """The whole image, uint8 BGR, as LoadImageFromFile gives it."""

    def load(self, results: dict[str, Any], data: bytes, head: images.Header) -> dict[str, Any]:
        image = images.decode(data, head)
        return _filled(results, image, image.shape[:2])

    def blank(self, results: dict[str, Any]) -> dict[str, Any]:
        return _filled(results, _grey(256, 256), (256, 256))


@TRANSFORMS.register_module()
class LoadRandomCropFast(_Loads):
    """A random part of the image, resized to px x px, mirrored at random: the distribution of RandomResizedCrop.

    Ten tries for a part of `scale` of the area with an aspect in `ratio` (drawn evenly in its logarithm), else the
    largest centred part with an aspect in `ratio` (Szegedy et al. 2015, arXiv:1409.4842). Set `px` between epochs for
    another size.
    """

    def __init__(
        self,
        px: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        interpolation: str = "bilinear",
        is_rough: bool = True,
        on_bad: OnBad = "error",
        bad_list: str | None = None,
    ) -> None:
        super().__init__(on_bad, bad_list)
        self.px, self.scale, self.flip, self.is_rough = px, tuple(scale), flip, is_rough
        self.space = images.Workspace()
        self.log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
        self.ratio = tuple(ratio)
        self.interpolation = _INTERPOLATIONS[interpolation]

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """top, left, height, width of the part."""
        draw = np.random.random
        for _ in range(10):
            area = height * width * (self.scale[0] + draw() * (self.scale[1] - self.scale[0]))
            aspect = math.exp(self.log_ratio[0] + draw() * (self.log_ratio[1] - self.log_ratio[0]))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(draw() * (height - h + 1)), int(draw() * (width - w + 1)), h, w
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
        return (height - h) // 2, (width - w) // 2, h, w

    def load(self, results: dict[str, Any], data: bytes, head: images.Header) -> dict[str, Any]:
        px = self.px
        if head.is_plain:
            height, width = head.height, head.width
            top, left, h, w = self.box(height, width)
            factor = images.factor_for(h, w, px, px)
            image = images.decode(data, head, factor, into=self.space, is_rough=self.is_rough)
        else:
            image = images.decode(data, head)
            height, width = image.shape[:2]
            top, left, h, w = self.box(height, width)
            factor = 1
        if factor > 1:
            down, across = image.shape[0] / height, image.shape[1] / width
            top, h = int(top * down), max(1, round(h * down))
            left, w = int(left * across), max(1, round(w * across))
        part = image[top : top + h, left : left + w]
        is_much = max(part.shape[0], part.shape[1]) > AREA_ABOVE * px
        part = cv2.resize(part, (px, px), interpolation=cv2.INTER_AREA if is_much else self.interpolation)
        is_mirrored = bool(np.random.random() < self.flip)
        if is_mirrored:
            part = cv2.flip(part, 1)
        results["flip"] = is_mirrored
        results["flip_direction"] = "horizontal" if is_mirrored else None
        return _filled(results, part, (height, width))

    def blank(self, results: dict[str, Any]) -> dict[str, Any]:
        return _filled(results, _grey(self.px, self.px), (self.px, self.px))


@TRANSFORMS.register_module()
class LoadCenterCropFast(_Loads):
    """The short side resized to `edge`, the centre px x px cut out. Images of that short side stay as they are."""

    def __init__(
        self,
        edge: int = 256,
        px: int = 224,
        interpolation: str = "bilinear",
        on_bad: OnBad = "error",
        bad_list: str | None = None,
        is_training: bool = False,
    ) -> None:
        super().__init__(on_bad, bad_list)
        if on_bad == "skip" and not is_training:
            raise BblabError("on_bad 'skip' in validation, where every image counts once", hint="error or blank")
        if edge < px:
            raise BblabError(f"edge {edge} px is below the crop of {px} px", hint="edge is the short side, at least px")
        self.edge, self.px = edge, px
        self.interpolation = _INTERPOLATIONS[interpolation]

    def load(self, results: dict[str, Any], data: bytes, head: images.Header) -> dict[str, Any]:
        edge, px = self.edge, self.px
        short = min(head.height, head.width)
        image = images.decode(data, head, images.factor_for(short, short, edge, edge) if head.is_plain else 1)
        height, width = image.shape[:2]
        ori_shape = (head.height, head.width) if head.is_plain else (height, width)
        if min(height, width) != edge:
            size = (edge, edge * height // width) if width < height else (edge * width // height, edge)
            is_smaller = min(height, width) > edge
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if is_smaller else self.interpolation)
        height, width = image.shape[:2]
        top, left = round((height - px) / 2), round((width - px) / 2)
        return _filled(results, np.ascontiguousarray(image[top : top + px, left : left + px]), ori_shape)

    def blank(self, results: dict[str, Any]) -> dict[str, Any]:
        return _filled(results, _grey(self.px, self.px), (self.px, self.px))


@TRANSFORMS.register_module()
class Grey(BaseTransform):
    """BGR to one channel, height x width x 1, for nets that take grey pictures. The last step before packing."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        results["img"] = cv2.cvtColor(results["img"], cv2.COLOR_BGR2GRAY)[:, :, None]
        return results
