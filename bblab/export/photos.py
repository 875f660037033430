"""Real photos to check converted models on, and to calibrate int8 with: those that scikit-image and scikit-learn ship.

A model that agrees with torch on noise may still differ on photos, whose values lie elsewhere. Where neither package
is there, random images with structure at every scale take their place, and the manifest says so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError
from bblab.installing import how_to_install

if TYPE_CHECKING:
    import numpy as np

# Photos in colour of things and people, in the wheels themselves (skimage 0.24 to 0.26, sklearn 1.5 to 1.8).
SHIPPED = {
    "skimage/data": ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True, slots=True)
class Photo:
    """One image, H, W, 3, RGB, uint8. `is_real`: not made up."""

    name: str
    pixels: np.ndarray
    is_real: bool = True


def shipped() -> list[Photo]:
    """The photos of installed packages; made-up images where there are none."""
    found = []
    for place, names in SHIPPED.items():
        package, _, folder = place.partition("/")
        there = importlib.util.find_spec(package)
        for root in (there.submodule_search_locations or []) if there else []:
            paths = [Path(root) / folder / name for name in names]
            found += [_read(path) for path in paths if path.is_file()]
    if found and importlib.util.find_spec("PIL"):
        return found
    return made_up(6)


def made_up(count: int) -> list[Photo]:
    """Random images with structure at every scale, as in photos."""
    import torch

    made = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        image, step = torch.zeros(1, 3, 320, 320), 1
        while step < 320:
            coarse = torch.randn(1, 3, -(-320 // step) + 1, -(-320 // step) + 1, generator=generator)
            image += torch.nn.functional.interpolate(coarse, size=(320, 320), mode="bilinear") * step**0.5
            step *= 2
        pixels = (128 + 50 * image[0] / image.std()).clamp(0, 255).byte().permute(1, 2, 0).numpy()
        made.append(Photo(f"made up {seed}", pixels, is_real=False))
    return made


def of_folder(folder: Path, limit: int = 512) -> list[Photo]:
    """The images of a folder, at most `limit`, evenly chosen. Raises BblabError where there are none."""
    if not folder.is_dir():
        raise BblabError(f"no folder {folder}", hint="name a folder of photos as the tracker will see them")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise BblabError(f"{folder} has no images", hint=f"photos ending in {', '.join(SUFFIXES)}")
    step = max(1, len(paths) / limit)
    return [_read(paths[int(i * step)]) for i in range(min(limit, len(paths)))]


def _read(path: Path) -> Photo:
    try:
        import numpy as np
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise BblabError("reading photos needs pillow", hint=how_to_install("pillow"), exit_code=1) from None
    try:
        with Image.open(path) as image:
            return Photo(path.name, np.asarray(image.convert("RGB")))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BblabError(f"{path} is no image that can be read: {error}", hint="remove it from the folder") from None


def crops(photos: Sequence[Photo], side_px: int, each: int = 1, *, seed: int = 0) -> np.ndarray:
    """Square crops of the photos: N, side, side, 3, RGB, uint8; the first of each central, the others at random."""
    import numpy as np
    import torch

    generator = np.random.default_rng(seed)
    made: list[Any] = []
    for photo in photos:
        image = photo.pixels
        for number in range(each):
            short = min(image.shape[:2])
            side = short if number == 0 else int(short * generator.uniform(0.4, 1.0))
            room = [image.shape[0] - side, image.shape[1] - side]
            top, left = [r // 2 if number == 0 else int(generator.integers(0, r + 1)) for r in room]
            piece = torch.from_numpy(image[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float()
            scaled = torch.nn.functional.interpolate(
                piece, size=(side_px, side_px), mode="bilinear", antialias=True, align_corners=False
            )
            made.append(scaled[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
    return np.stack(made)
