"""A data set is looked at before a GPU waits for it: layouts, labels, and everything that would end a training."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bblab.errors import BblabError
from bblab.pretraining import data
from bblab.pretraining.data import listing, pool

cv2 = pytest.importorskip("cv2")
np = pytest.importorskip("numpy")
simplejpeg = pytest.importorskip("simplejpeg")

CLASSES = ("ant", "bee", "cat")


def picture(seed: int, height: int = 40, width: int = 60) -> np.ndarray:
    """Smooth and different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 255, (5, 5, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(seed: int, height: int = 40, width: int = 60) -> bytes:
    return simplejpeg.encode_jpeg(picture(seed, height, width), 90, "BGR", "420")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes: 4 training and 2 validation images each."""
    root = tmp_path / "set"
    seed = 0
    for split, count in (("train", 4), ("val", 2)):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.jpg").write_bytes(jpeg(seed := seed + 1))
    return root


def rules(problems: Sequence[data.Problem]) -> set[tuple[str, str, str]]:
    return {(p.severity, p.rule, p.where) for p in problems}


def test_a_sound_folder_has_no_problem(folder):
    done = data.check(folder, jobs=1)
    assert (done.problems, done.bad, done.formats, done.images) == ((), (), {"jpeg": 18}, 18)
    info = done.info
    assert (info.layout, info.classes, info.train_count, info.val_count) == ("folders", CLASSES, 12, 6)
    assert (info.ann_train, info.ann_val) == (None, None)
    info.require_sound()


def test_mmpretrain_reads_the_labels_that_the_listing_tells(folder, tmp_path):
    datasets = pytest.importorskip("mmpretrain.datasets")
    shutil.rmtree(folder / "val" / "bee")  # by itself, val would now number cat as 1
    info = data.fingerprint(folder, cache=tmp_path / "cache")
    assert ("warning", "class-not-in-val", "val") in rules(info.problems)
    made = datasets.CustomDataset(
        data_root=info.root, data_prefix=info.prefix_val, ann_file=info.ann_val, metainfo={"classes": info.classes}
    )
    assert [(Path(made[i]["img_path"]).parent.name, made[i]["gt_label"]) for i in range(4)] == [
        ("ant", 0), ("ant", 0), ("cat", 2), ("cat", 2),
    ]  # fmt: skip


def test_the_fingerprint_is_of_names_labels_and_sizes_not_of_the_place(folder, tmp_path):
    first = data.fingerprint(folder).hash
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert data.fingerprint(moved).hash == first
    (moved / "train" / "ant" / "0.jpg").write_bytes(b"x")
    assert data.fingerprint(moved).hash != first


def test_the_value_survives_json(folder):
    (folder / "train" / "dog").mkdir()
    info = data.fingerprint(folder)
    assert data.DataInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_everything_wrong_is_told_at_once(folder):
    train, val = folder / "train", folder / "val"
    (train / "empty").mkdir()
    (train / "ant" / "0.jpg").write_bytes(jpeg(1)[:-100])
    (train / "ant" / "1.jpg").write_bytes(b"")
    (train / "ant" / "2.jpg").write_text("hello")
    (train / "bee" / "leak.jpg").write_bytes((val / "bee" / "0.jpg").read_bytes())
    (train / "cat" / "other.jpg").write_bytes((train / "bee" / "0.jpg").read_bytes())
    (train / "cat" / "again.jpg").write_bytes((train / "cat" / "0.jpg").read_bytes())
    (train / "cat" / "x.webp").write_bytes(b"x")
    (train / "stray.jpg").write_bytes(jpeg(50))
    (train / "cat" / "link.jpg").symlink_to("/nowhere")
    (val / "zebra").mkdir()
    (val / "zebra" / "0.jpg").write_bytes(jpeg(51))
    (val / "cat" / "tiny.jpg").write_bytes(jpeg(52, 8, 8))
    done = data.check(folder, jobs=1)
    assert rules(done.problems) == {
        ("error", "empty-class", "train"), ("error", "empty-image", "train"), ("error", "corrupt-image", "train"),
        ("error", "class-not-in-train", "val"), ("warning", "class-not-in-val", "val"),
        ("warning", "stray-images", "train"), ("warning", "ignored-images", "train"),
        ("warning", "missing-image", "train"), ("warning", "train-in-val", "val"), ("warning", "two-labels", "train"),
        ("note", "same-image", "train"), ("note", "small-image", "val"),
    }  # fmt: skip
    assert {b.path: b.reason for b in done.bad} == {
        "ant/0.jpg": "truncated", "ant/1.jpg": "empty", "ant/2.jpg": "not an image",
    }  # fmt: skip
    with pytest.raises(BblabError, match="cannot be trained on"):
        done.info.require_sound()


def test_a_wrong_name_is_no_fault_but_the_contents_are_told(folder):
    ok, coded = cv2.imencode(".png", picture(60))
    assert ok
    png = coded.tobytes()
    (folder / "train" / "ant" / "0.jpg").write_bytes(png)
    (folder / "train" / "ant" / "cut.png").write_bytes(png[: len(png) // 2])
    done = data.check(folder, jobs=1)
    assert done.formats == {"jpeg": 17, "png": 1}
    assert [(b.path, b.reason) for b in done.bad] == [("ant/cut.png", "corrupt png")]


def test_processes_find_what_one_finds(folder, monkeypatch):
    for i in range(300):
        (folder / "train" / "ant" / f"more{i}.jpg").write_bytes(jpeg(100 + i) if i % 50 else b"no")
    one, two = data.check(folder, jobs=1), data.check(folder, jobs=2)
    assert sorted(b.path for b in one.bad) == sorted(b.path for b in two.bad)
    assert len(one.bad) == 6 and one.formats == two.formats == {"jpeg": 312}


WORK = """
import os
def dies_of_seven(items):
    if 7 in items:
        os._exit(139)
    return [i * i for i in items]
def raises(items):
    raise OSError(28, "No space left on device")
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module that worker processes can import, which a test file is not."""
    (tmp_path / "work_for_pool.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    return importlib.import_module("work_for_pool")


def test_an_item_that_kills_its_process_costs_only_itself(work):
    found = [n for part in pool.spread(work.dies_of_seven, range(20), lambda i: [-i], jobs=2, chunk=4) for n in part]
    assert sorted(found) == sorted([-7] + [i * i for i in range(20) if i != 7])


def test_an_exception_of_the_work_is_raised_here(work):
    with pytest.raises(OSError, match="No space left"):
        list(pool.spread(work.raises, range(20), lambda i: [], jobs=2, chunk=4))


# Layouts ---------------------------------------------------------------------------------------------------------


def write_lists(folder: Path, place: Callable[[str], Path], prefix: str = "") -> None:
    for split in ("train", "val"):
        rows = [(p, CLASSES.index(p.parent.name)) for p in sorted((folder / split).glob("*/*.jpg"))]
        text = "".join(f"{prefix.format(split=split)}{p.relative_to(folder / split)} {n}\n" for p, n in rows)
        target = place(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def test_imagenets_layout_is_read_with_its_lists(folder):
    plain = data.fingerprint(folder)
    write_lists(folder, lambda split: folder / "meta" / f"{split}.txt")
    info = data.fingerprint(folder)
    assert (info.layout, info.classes, info.ann_train, info.prefix_val) == (
        "imagenet",
        CLASSES,
        "meta/train.txt",
        "val",
    )
    assert info.hash == plain.hash and not info.problems


def test_a_flat_val_with_its_list_goes_with_training_folders(folder):
    write_lists(folder, lambda split: folder / "meta" / f"{split}.txt")
    (folder / "meta" / "train.txt").unlink()
    lines = (folder / "meta" / "val.txt").read_text().splitlines()
    for line in lines:
        path = folder / "val" / line.split()[0]
        path.rename(folder / "val" / f"{path.parent.name}{path.name}")
    (folder / "meta" / "val.txt").write_text("".join(line.replace("/", "", 1) + "\n" for line in lines))
    for name in CLASSES:
        (folder / "val" / name).rmdir()
    info = data.fingerprint(folder)
    assert (info.classes, info.ann_train, info.val_count, info.problems) == (CLASSES, None, 6, ())


def test_a_flat_val_without_a_list_is_told_what_to_write(folder):
    for name in CLASSES:
        for path in (folder / "val" / name).iterdir():
            path.rename(folder / "val" / f"{name}{path.name}")
        (folder / "val" / name).rmdir()
    (found,) = data.fingerprint(folder).errors
    assert found.rule == "flat-split" and "meta/val.txt" in found.hint


def test_annotation_files_lie_anywhere(folder, tmp_path):
    write_lists(folder, lambda split: tmp_path / f"my_{split}.txt", prefix="{split}/")
    info = data.fingerprint(folder, tmp_path / "my_train.txt", tmp_path / "my_val.txt")
    assert (info.layout, info.classes, info.prefix_train) == ("annotations", CLASSES, "")
    assert info.ann_train == str(tmp_path / "my_train.txt") and not info.problems


def test_one_annotation_file_alone_is_refused(folder, tmp_path):
    with pytest.raises(BblabError, match="--ann-train alone"):
        data.fingerprint(folder, "a.txt")


def test_a_list_with_mistakes_tells_all_of_them(folder):
    write_lists(folder, lambda split: folder / "meta" / f"{split}.txt")
    train, val = folder / "meta" / "train.txt", folder / "meta" / "val.txt"
    train.write_text(train.read_text() + "ant/0.jpg 0\nant/1.jpg 2\nant/nope.jpg 0\nant/2.jpg one\n\nbee/0.jpg 5\n")
    val.write_text(val.read_text() + "ant/0.jpg 9\n")
    (folder / "classes.txt").write_text("ant\nbee\ncat\nx\ny\nz\n")
    info = data.fingerprint(folder)
    assert rules(info.problems) == {
        ("error", "bad-line", "train.txt"), ("error", "missing-image", "train"), ("warning", "listed-twice", "train"),
        ("error", "two-labels", "train"), ("error", "empty-class", "train"), ("error", "class-not-in-train", "val"),
        ("error", "two-labels", "val"), ("warning", "class-not-in-val", "val"),
    }  # fmt: skip
    said = {p.rule: p.message for p in info.problems}
    assert "2 lines" in said["bad-line"] and "line 16" in said["bad-line"]


def test_an_image_in_both_lists_is_an_error(folder, tmp_path):
    write_lists(folder, lambda split: tmp_path / f"{split}.txt", prefix="{split}/")
    with (tmp_path / "val.txt").open("a") as file:
        file.write("train/ant/0.jpg 0\n")
    info = data.fingerprint(folder, tmp_path / "train.txt", tmp_path / "val.txt")
    assert ("error", "train-in-val", "val") in rules(info.problems)


def test_counts_of_imagenet_are_known(tmp_path, monkeypatch):
    root = tmp_path / "in"
    for split in ("train", "val"):
        for i in range(1000):
            (root / split / f"n{i:08d}").mkdir(parents=True)
            (root / split / f"n{i:08d}" / "x.jpg").write_bytes(b"x")
    said = [p.message for p in data.fingerprint(root).problems if p.rule == "wrong-count"]
    assert said == ["1,000 images, ImageNet-1k has 1,281,167", "1,000 images, ImageNet-1k has 50,000"]


# Where nothing can be read ---------------------------------------------------------------------------------------


def test_a_missing_folder_tells_what_is_there(folder):
    with pytest.raises(BblabError, match="no data folder") as error:
        data.fingerprint(folder.parent / "sett")
    assert "set" in error.value.hint


def test_a_split_of_another_name_or_depth_is_suggested(folder, tmp_path):
    (folder / "val").rename(folder / "validation")
    assert "rename it to val" in data.fingerprint(folder).errors[0].hint
    (folder / "validation").rename(folder / "val")
    assert f"did you mean {folder}?" in data.fingerprint(folder / "train").errors[0].hint
    folder.rename(tmp_path / "imagenet")
    assert f"did you mean {tmp_path / 'imagenet'}?" in data.fingerprint(tmp_path).errors[0].hint


def test_an_unreadable_class_is_an_error(folder, monkeypatch):
    real = listing._entries

    def refuse(place: Path):
        if place.name == "bee":
            raise PermissionError(13, "Permission denied")
        return real(place)

    monkeypatch.setattr(listing, "_entries", refuse)
    assert ("error", "unreadable", "train") in rules(data.fingerprint(folder).problems)


# The command -----------------------------------------------------------------------------------------------------


def test_the_command_stores_what_it_found_and_exits_by_it(bblab, folder):
    ran = bblab("data", "check", folder)
    assert ran.code == 0 and "nothing wrong found" in ran.out and "stored as run 1" in ran.out
    (folder / "train" / "ant" / "0.jpg").write_bytes(b"no")
    ran = bblab("data", "check", folder, "--bad", "-")
    assert (ran.code, ran.out) == (1, "train/ant/0.jpg\tnot an image\n")
    assert "corrupt-image" in ran.err


def test_quick_opens_no_image(bblab, folder, monkeypatch):
    (folder / "train" / "ant" / "0.jpg").write_bytes(b"no")
    ran = bblab("data", "check", folder, "--quick", "--json", "-")
    value = json.loads(ran.out)
    assert ran.code == 0 and value["bad"] == [] and value["train_count"] == 12 and "run_id" not in value


def test_digits_are_written_once_and_are_balanced(tmp_path):
    pytest.importorskip("sklearn")
    place = data.digits(tmp_path)
    info = data.fingerprint(place)
    assert (info.train_count, info.val_count, info.classes) == (1437, 360, tuple("0123456789"))
    assert {len(list((place / "val" / c).iterdir())) for c in info.classes} == {36}
    before = (place / "train" / "0").stat().st_mtime_ns
    assert data.digits(tmp_path) == place and (place / "train" / "0").stat().st_mtime_ns == before
    again = data.digits(tmp_path / "other")
    assert data.fingerprint(again).hash == info.hash
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    image = cv2.imread(str(next((place / "val" / "0").iterdir())))
    assert image.shape == (48, 48, 3)
