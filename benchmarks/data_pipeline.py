"""Images a second of one core: our training pipeline after `bblab data prepare`, against mmpretrain's own.

    uv run python benchmarks/data_pipeline.py

Photos that scikit-image and scikit-learn ship, cropped at random into JPEGs of about ImageNet's size (0.25 MP, 63 KB
in the mean). mmpretrain's side is the training pipeline of its MobileOne config, word for word, on those files;
ours is what a recipe runs (LoadRandomCropFast, PackInputs) on what `prepare` made of the same files. Beside them, for
what each half is worth: mmpretrain's pipeline on the prepared files, and ours on the photos. Process CPU time of one
thread, each side once over all photos in turn, several rounds; a round's ratio compares neighbours in time.
Bar: the median ratio is at least 3.5, at 224 px, the size of mmpretrain's config.
"""

import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import machine

NUM_PHOTOS = 300
NUM_ROUNDS = 9
NUM_CLASSES = 6
BAR = 3.5
SOURCES = ("astronaut", "chelsea", "coffee", "rocket")


def write_photos(folder: Path, seed: int = 0) -> None:
    """Crops of real photos, 90 and more of each, in class folders."""
    import numpy as np
    import simplejpeg
    import skimage.data
    from sklearn.datasets import load_sample_images

    draw = random.Random(seed)
    photos = [*load_sample_images().images, *(getattr(skimage.data, name)() for name in SOURCES)]
    for split, count in (("train", NUM_PHOTOS), ("val", NUM_CLASSES)):
        for i in range(count):
            photo = draw.choice(photos)
            height, width = (min(side, draw.randint(*most)) for side, most in zip(photo.shape, PX, strict=False))
            top, left = draw.randint(0, photo.shape[0] - height), draw.randint(0, photo.shape[1] - width)
            part = np.ascontiguousarray(photo[top : top + height, left : left + width])
            place = folder / split / f"n{i % NUM_CLASSES:08d}"
            place.mkdir(parents=True, exist_ok=True)
            data = simplejpeg.encode_jpeg(part, draw.randint(*QUALITY), "RGB", "420")
            (place / f"{i:05d}.JPEG").write_bytes(data)


PX = ((430, 512), (480, 640))  # heights and widths to draw from, as far as the photo reaches
QUALITY = (88, 95)  # to come to 63 KB


def pipelines(px: int) -> tuple[list[dict], list[dict]]:
    """(mmpretrain's MobileOne training pipeline, ours)."""
    stock = [
        {"type": "LoadImageFromFile"},
        {"type": "RandomResizedCrop", "scale": px, "backend": "pillow"},
        {"type": "RandomFlip", "prob": 0.5, "direction": "horizontal"},
        {"type": "PackInputs"},
    ]
    return stock, [{"type": "LoadRandomCropFast", "px": px}, {"type": "PackInputs"}]


def data_set(root: Path, pipeline: list[dict]):
    from mmpretrain.datasets import CustomDataset

    return CustomDataset(data_root=str(root), data_prefix="train", pipeline=pipeline)


def cpu_s(made) -> float:
    """CPU seconds an image, once over all of them."""
    began = time.process_time()
    for i in range(len(made)):
        made[i]
    return (time.process_time() - began) / len(made)


def measure(photos: Path, small: Path, px: int) -> dict[str, list[float]]:
    stock, ours = pipelines(px)
    sides = {
        "mmpretrain on the photos": data_set(photos, stock),
        "ours after data prepare": data_set(small, ours),
        "mmpretrain after data prepare": data_set(small, stock),
        "ours on the photos": data_set(photos, ours),
    }
    for made in sides.values():
        cpu_s(made)  # imports, the disk cache
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(NUM_ROUNDS):
        for name, made in sides.items():
            taken[name].append(cpu_s(made))
    return taken


def ratios(taken: dict[str, list[float]], ours: str) -> list[float]:
    stock = taken["mmpretrain on the photos"]
    return sorted(a / b for a, b in zip(stock, taken[ours], strict=True))


def show(taken: dict[str, list[float]], px: int) -> None:
    print(f"\n{px} px, {NUM_PHOTOS} photos x {NUM_ROUNDS} rounds     images/s a core (lowest, highest)   x mmpretrain")
    for name, seconds in taken.items():
        rates = sorted(1 / s for s in seconds)
        found = ratios(taken, name)
        print(
            f"  {name:<32}{statistics.median(rates):8.0f} ({rates[0]:.0f}, {rates[-1]:.0f})"
            f"{statistics.median(found):14.2f} ({found[0]:.2f}, {found[-1]:.2f})"
        )


def quietly(action: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmcv-lite names an operator that it lacks
        action()


def main() -> int:
    import cv2
    import torch

    from bblab.pretraining import data

    quietly(lambda: __import__("bblab.pretraining.data.transforms"))
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    print(machine.describe("mmpretrain", "mmcv-lite", "opencv-python", "simplejpeg", "pillow", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        photos, small = Path(folder, "photos"), Path(folder, "small")
        write_photos(photos)
        files = [p.stat().st_size for p in photos.glob("train/*/*")]
        made = data.prepare(photos, small, jobs=1)
        done = sum(p.stat().st_size for p in small.glob("train/*/*.jpg")) / len(files)
        before, wall = statistics.mean(files) / 1e3, made.written / made.seconds
        print(
            f"photos: {before:.0f} KB in the mean; after data prepare {done / 1e3:.0f} KB, {wall:.0f}/s by one process"
        )
        at = {px: measure(photos, small, px) for px in (224, 160)}
    for px, taken in at.items():
        show(taken, px)
    found = ratios(at[224], "ours after data prepare")
    reached = statistics.median(found)
    spread = f"{found[0]:.2f} to {found[-1]:.2f}"
    print()
    return machine.judge({f"{reached:.2f} times mmpretrain's images/s a core ({spread}) >= {BAR}": reached >= BAR})


if __name__ == "__main__":
    sys.exit(main())
