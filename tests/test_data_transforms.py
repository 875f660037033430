"""The fast transforms give mmpretrain's pictures, and do with a bad image what they were told."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest

from bblab.errors import BblabError, RunError

np = pytest.importorskip("numpy")
cv2 = pytest.importorskip("cv2")
simplejpeg = pytest.importorskip("simplejpeg")
pytest.importorskip("mmpretrain")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmpretrain.datasets import CustomDataset
    from mmpretrain.registry import TRANSFORMS

    from bblab.pretraining.data import images, transforms


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (7, 7, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def write(path: Path, image: np.ndarray, quality: int = 95) -> str:
    path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality, "BGR", "420"))
    return str(path)


def build(kind: str, **options):
    return TRANSFORMS.build({"type": kind, **options})


def apart(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("kind", ["jpeg", "grey", "progressive", "cmyk", "turned", "png"])
def test_loads_what_mmpretrain_loads(tmp_path, kind):
    pil = pytest.importorskip("PIL.Image")
    path, image = tmp_path / "x.jpg", pil.fromarray(picture(90, 140))
    if kind == "grey":
        image.convert("L").save(path, "JPEG")
    elif kind == "progressive":
        image.save(path, "JPEG", progressive=True)
    elif kind == "cmyk":
        image.convert("CMYK").save(path, "JPEG")
    elif kind == "turned":
        exif = pil.Exif()
        exif[0x0112] = 8
        image.save(path, "JPEG", exif=exif)
    else:
        image.save(path, kind.upper())
    ours = build("LoadImageFast")({"img_path": str(path)})
    theirs = build("LoadImageFromFile")({"img_path": str(path)})
    assert apart(ours["img"], theirs["img"]) < 1 and ours["ori_shape"] == theirs["ori_shape"]


def test_boxes_are_distributed_as_mmpretrains():
    ours, theirs = build("LoadRandomCropFast", px=64), build("RandomResizedCrop", scale=64)
    image = np.zeros((300, 400, 3), np.uint8)

    def drawn(draw):
        np.random.seed(3)
        return np.array([draw() for _ in range(4000)], float)

    a = drawn(lambda: ours.box(300, 400))
    b = drawn(lambda: theirs.rand_crop_params(image))
    # 4000 draws: the standard error of a mean is a 63rd of the spread
    assert np.all(np.abs(a.mean(0) - b.mean(0)) < 5 * b.std(0) / 63)
    assert np.all(np.abs(a.std(0) / b.std(0) - 1) < 0.1)


def test_every_box_lies_in_the_image():
    crop = build("LoadRandomCropFast", px=64)
    for height, width in ((1, 1), (1, 500), (500, 1), (3, 2), (200, 300)):
        for _ in range(200):
            top, left, h, w = crop.box(height, width)
            assert h > 0 and w > 0 and 0 <= top <= height - h and 0 <= left <= width - w


@pytest.mark.parametrize(("height", "width", "px"), [(120, 160, 64), (600, 800, 64), (1200, 900, 64), (96, 80, 64)])
def test_the_crop_shows_the_same_part_whatever_it_was_decoded_at(tmp_path, height, width, px):
    image = picture(height, width)
    path = write(tmp_path / "x.jpg", image)
    crop = build("LoadRandomCropFast", px=px, flip=0.0)
    for seed in range(10):
        np.random.seed(seed)
        got = crop({"img_path": path})["img"]
        np.random.seed(seed)
        top, left, h, w = crop.box(height, width)
        wanted = cv2.resize(image[top : top + h, left : left + w], (px, px), interpolation=cv2.INTER_AREA)
        assert apart(got, wanted) < 8, (seed, images.factor_for(h, w, px, px))


def test_large_photos_are_decoded_small(tmp_path, monkeypatch):
    path = write(tmp_path / "x.jpg", picture(1024, 1024))
    seen = []
    real = images.decode
    monkeypatch.setattr(images, "decode", lambda *a, **k: seen.append(real(*a, **k)) or seen[-1])
    build("LoadRandomCropFast", px=64, scale=(1.0, 1.0), ratio=(1.0, 1.0))({"img_path": path})
    assert seen[0].shape == (128, 128, 3)  # 1024 / 8: still more than 64


def test_half_of_the_images_are_mirrored(tmp_path):
    path = write(tmp_path / "x.jpg", picture(80, 80))
    whole = {"px": 80, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "is_rough": False}
    plain = build("LoadRandomCropFast", **whole, flip=0.0)({"img_path": path})
    mirrored = build("LoadRandomCropFast", **whole, flip=1.0)({"img_path": path})
    assert (plain["flip"], mirrored["flip"]) == (False, True)
    assert np.array_equal(plain["img"][:, ::-1], mirrored["img"])
    crop = build("LoadRandomCropFast", px=16)
    np.random.seed(0)
    share = np.mean([crop({"img_path": path})["flip"] for _ in range(400)])
    assert 0.4 < share < 0.6


def test_an_image_stays_when_the_next_one_is_decoded(tmp_path):
    crop = build("LoadRandomCropFast", px=80, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    first = crop({"img_path": write(tmp_path / "a.jpg", picture(80, 80, 1))})["img"]
    kept = first.copy()
    crop({"img_path": write(tmp_path / "b.jpg", picture(80, 80, 2))})
    assert np.array_equal(first, kept)


def test_the_same_seed_gives_the_same_picture_after_a_pickle(tmp_path):
    path = write(tmp_path / "x.jpg", picture(200, 300))
    crop = build("LoadRandomCropFast", px=64)
    np.random.seed(5)
    one = crop({"img_path": path})["img"]
    np.random.seed(5)
    assert np.array_equal(one, pickle.loads(pickle.dumps(crop))({"img_path": path})["img"])


def test_the_size_can_change_between_epochs(tmp_path):
    path = write(tmp_path / "x.jpg", picture(200, 300))
    crop = build("LoadRandomCropFast", px=64)
    crop.px = 96
    assert crop({"img_path": path})["img"].shape == (96, 96, 3)


@pytest.mark.parametrize(("height", "width"), [(256, 341), (341, 256), (256, 256)])
def test_validation_of_a_prepared_image_is_mmpretrains_to_the_bit(tmp_path, height, width):
    path = write(tmp_path / "x.jpg", picture(height, width))
    ours = build("LoadCenterCropFast", edge=256, px=224)({"img_path": path})["img"]
    theirs = build("LoadImageFast")({"img_path": path})
    theirs = build("ResizeEdge", scale=256, edge="short", backend="pillow")(theirs)
    assert np.array_equal(ours, build("CenterCrop", crop_size=224)(theirs)["img"])


@pytest.mark.parametrize(("height", "width"), [(500, 375), (300, 900), (1100, 1300), (100, 80)])
def test_validation_of_a_photo_is_close_to_mmpretrains(tmp_path, height, width):
    path = write(tmp_path / "x.jpg", picture(height, width))
    ours = build("LoadCenterCropFast", edge=256, px=224)({"img_path": path})["img"]
    theirs = build("LoadImageFromFile")({"img_path": path})
    theirs = build("ResizeEdge", scale=256, edge="short", backend="pillow")(theirs)
    assert apart(ours, build("CenterCrop", crop_size=224)(theirs)["img"]) < 2.5


def test_rough_colours_differ_by_little(tmp_path):
    data = Path(write(tmp_path / "x.jpg", picture(200, 300))).read_bytes()
    assert 0 < apart(images.decode(data), images.decode(data, is_rough=True)) < 1.5


# Bad images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for i in range(6):
        write(folder / f"{i}.jpg", picture(60, 60, i))
    (folder / "3.jpg").write_bytes((folder / "3.jpg").read_bytes()[:-100])
    (tmp_path / "train" / "b").mkdir()
    write(tmp_path / "train" / "b" / "0.jpg", picture(60, 60, 9))
    return tmp_path


def data_set(root: Path, **options) -> CustomDataset:
    pipeline = [{"type": "LoadRandomCropFast", "px": 32, **options}, {"type": "PackInputs"}]
    return CustomDataset(data_root=str(root), data_prefix="train", pipeline=pipeline)


def test_a_bad_image_ends_the_run_with_its_name(damaged):
    with pytest.raises(RunError, match=r"3\.jpg: truncated") as error:
        data_set(damaged)[3]
    assert "bblab data check" in error.value.hint


def test_a_bad_image_is_skipped_for_another_and_noted(damaged, tmp_path):
    noted = tmp_path / "bad.txt"
    made = data_set(damaged, on_bad="skip", bad_list=str(noted))
    assert made[3]["inputs"].shape == (3, 32, 32)
    made[3]
    lines = noted.read_text().splitlines()
    assert len(lines) == 2 and all(line.endswith("3.jpg\ttruncated") for line in lines)


def test_a_vanished_image_is_a_bad_one(damaged):
    made = data_set(damaged)
    (damaged / "train" / "a" / "1.jpg").unlink()
    with pytest.raises(RunError, match=r"1\.jpg: missing"):
        made[1]


def test_validation_goes_on_with_a_grey_image(damaged, tmp_path):
    noted = tmp_path / "bad.txt"
    crop = build("LoadCenterCropFast", edge=36, px=32, on_bad="blank", bad_list=str(noted))
    made = crop({"img_path": str(damaged / "train" / "a" / "3.jpg")})
    assert made["img"].shape == (32, 32, 3) and set(np.unique(made["img"])) == {128}
    assert noted.read_text().count("\n") == 1


def test_validation_never_skips():
    with pytest.raises(BblabError, match="every image counts once"):
        transforms.LoadCenterCropFast(on_bad="skip")


def test_workers_of_a_loader_read_alike(damaged):
    from mmengine.runner import Runner

    (damaged / "train" / "a" / "3.jpg").unlink()
    loader = Runner.build_dataloader(
        {
            "dataset": data_set(damaged), "batch_size": 2, "num_workers": 2, "persistent_workers": True,
            "sampler": {"type": "DefaultSampler", "shuffle": False}, "collate_fn": {"type": "default_collate"},
        }
    )  # fmt: skip
    for _ in range(2):
        labels = [n for batch in loader for n in (int(s.gt_label) for s in batch["data_samples"])]
        assert labels == [0] * 5 + [1]
