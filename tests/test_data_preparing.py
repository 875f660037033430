"""The smaller copy of a data set: right pixels, right labels, and whole however the making of it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bblab.errors import BblabError, RunError
from bblab.pretraining import data
from bblab.pretraining.data import images, listing, preparing

cv2 = pytest.importorskip("cv2")
np = pytest.importorskip("numpy")
simplejpeg = pytest.importorskip("simplejpeg")


def picture(seed: int, height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(seed: int, height: int = 90, width: int = 120) -> bytes:
    return simplejpeg.encode_jpeg(picture(seed, height, width), 92, "BGR", "420")


def make_set(root: Path, train: int = 5, val: int = 2, names: tuple[str, ...] = ("ant", "bee", "cat")) -> Path:
    seed = 0
    for split, count in (("train", train), ("val", val)):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.JPEG").write_bytes(jpeg(seed := seed + 1))
    return root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_set(tmp_path / "source")


def prepare(source: Path, out: Path, **options) -> data.Prepared:
    return data.prepare(source, out, **{"short_side_px": 48, "jobs": 1, **options})


def tree(folder: Path) -> dict[str, bytes]:
    """Every image and list, without the record of how it was made."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("progress.jsonl", "bblab.json")
    }


def test_the_copy_is_what_its_lists_say(source, tmp_path):
    done = prepare(source, tmp_path / "out")
    assert (done.written, done.reused, done.bad, done.problems) == (21, 0, (), ())
    info = done.info
    assert (info.layout, info.train_count, info.val_count, info.classes) == ("imagenet", 15, 6, ("ant", "bee", "cat"))
    for split in ("train", "val"):
        for line in (tmp_path / "out" / "meta" / f"{split}.txt").read_text().splitlines():
            path, _, label = line.rpartition(" ")
            assert path.split("/")[0] == info.classes[int(label)]
            assert cv2.imread(str(tmp_path / "out" / split / path)).shape == (48, 64, 3)


def test_a_finished_copy_is_known_without_a_walk_and_a_walk_agrees(source, tmp_path, monkeypatch):
    done = prepare(source, tmp_path / "out")
    walked = listing.to_info(listing.read(tmp_path / "out"))
    monkeypatch.setattr(listing, "read", lambda *_: pytest.fail("walked"))
    assert data.fingerprint(tmp_path / "out") == done.info == walked
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert data.fingerprint(moved).root == str(moved)


def test_a_finished_copy_that_was_damaged_is_walked(source, tmp_path):
    prepare(source, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "train" / "bee")
    assert [p.rule for p in data.fingerprint(tmp_path / "out").errors] == ["missing-image"]


def test_stock_mmpretrain_reads_the_copy(source, tmp_path):
    datasets = pytest.importorskip("mmpretrain.datasets")
    prepare(source, tmp_path / "out")
    made = datasets.ImageNet(data_root=str(tmp_path / "out"), split="val", metainfo={"classes": ("ant", "bee", "cat")})
    assert [made[i]["gt_label"] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert all(Path(made[i]["img_path"]).is_file() for i in range(6))


def test_small_jpegs_keep_their_bytes(source, tmp_path):
    small = jpeg(99, 40, 50)
    (source / "train" / "ant" / "small.JPEG").write_bytes(small)
    prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "train" / "ant" / "small.jpg").read_bytes() == small


def test_other_formats_become_jpegs_beside_a_namesake(source, tmp_path):
    (source / "train" / "ant" / "0.png").write_bytes(cv2.imencode(".png", picture(5, 100, 100))[1].tobytes())
    done = prepare(source, tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out" / "train" / "ant").iterdir())
    assert done.info.train_count == 16 and {"0.jpg", "0.png.jpg"} <= set(names)


def test_a_turned_photo_is_stored_upright(source, tmp_path):
    pil = pytest.importorskip("PIL.Image")
    upright = picture(7, 200, 100)
    exif = pil.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    lying = np.ascontiguousarray(np.rot90(upright))
    path = source / "train" / "ant" / "turned.jpg"
    pil.fromarray(lying[:, :, ::-1]).save(path, quality=95, exif=exif)
    assert images.orientation(path.read_bytes()) == 6
    prepare(source, tmp_path / "out", short_side_px=50)
    found = (tmp_path / "out" / "train" / "ant" / "turned.jpg").read_bytes()
    assert images.orientation(found) == 1
    got = simplejpeg.decode_jpeg(found, "BGR").astype(int)
    wanted = cv2.resize(upright, (50, 100), interpolation=cv2.INTER_AREA).astype(int)
    assert got.shape == (100, 50, 3) and np.abs(got - wanted).mean() < 4


def test_bad_images_are_left_out_and_listed(source, tmp_path):
    (source / "train" / "ant" / "0.JPEG").write_bytes(b"")
    (source / "val" / "bee" / "1.JPEG").write_bytes(jpeg(3)[:-100])
    done = prepare(source, tmp_path / "out")
    assert (done.info.train_count, done.info.val_count) == (14, 5)
    listed = (tmp_path / "out" / "meta" / "bad.txt").read_text()
    assert listed == "train/ant/0.JPEG\tempty\nval/bee/1.JPEG\ttruncated\n"
    assert [p.severity for p in done.problems if p.rule == "left-out"] == ["error"]  # 2 of 21: more than 1 %


def test_labels_number_the_training_classes_where_val_lacks_one(source, tmp_path):
    shutil.rmtree(source / "val" / "ant")
    done = prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "meta" / "val.txt").read_text().splitlines()[0] == "bee/0.jpg 1"
    assert [p.rule for p in done.problems] == ["class-not-in-val"]


def test_folders_sort_as_the_labels_count(source, tmp_path):
    for split in ("train", "val"):  # a list may number the classes in any order, and name them in words
        order = ("cat", "ant", "bee")
        rows = [f"{p.relative_to(source / split)} {order.index(p.parent.name)}" for p in (source / split).glob("*/*")]
        (source / "meta").mkdir(exist_ok=True)
        (source / "meta" / f"{split}.txt").write_text("\n".join(sorted(rows)) + "\n")
    (source / "meta" / "classes.txt").write_text("a cat, a/c\nan ant\na bee\n")
    done = prepare(source, tmp_path / "out")
    folders = sorted(p.name for p in (tmp_path / "out" / "train").iterdir())
    assert folders == ["0_a_cat_a_c", "1_an_ant", "2_a_bee"]
    assert done.info.classes == ("a cat, a/c", "an ant", "a bee")
    assert data.fingerprint(tmp_path / "out").classes == done.info.classes


# Going on ----------------------------------------------------------------------------------------------------------


def test_a_second_call_makes_nothing_again(source, tmp_path):
    prepare(source, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "train").rglob("*.jpg")}
    done = prepare(source, tmp_path / "out")
    assert (done.written, done.reused) == (0, 21)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_changed_source_is_followed(source, tmp_path):
    prepare(source, tmp_path / "out")
    (source / "train" / "ant" / "0.JPEG").unlink()
    (source / "train" / "ant" / "new.JPEG").write_bytes(jpeg(70))
    (source / "train" / "bee" / "1.JPEG").write_bytes(jpeg(71, 95, 140))
    done = prepare(source, tmp_path / "out")
    fresh = prepare(source, tmp_path / "fresh")
    assert (done.written, done.reused) == (2, 19)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh") and done.info.hash == fresh.info.hash


@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted", "line lost", "line cut"])
def test_what_is_not_surely_whole_is_made_again(source, tmp_path, damage):
    prepare(source, tmp_path / "out")
    whole = tree(tmp_path / "out")
    image = tmp_path / "out" / "train" / "cat" / "2.jpg"
    journal = tmp_path / "out" / "meta" / "progress.jsonl"
    if damage == "truncated":
        image.write_bytes(image.read_bytes()[:-20])
    elif damage == "emptied":
        image.write_bytes(b"")
    elif damage == "deleted":
        image.unlink()
    else:
        lines = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join(lines[:-1]) + (lines[-1][:30] if damage == "line cut" else ""))
    done = prepare(source, tmp_path / "out")
    assert done.written >= 1 and tree(tmp_path / "out") == whole
    assert prepare(source, tmp_path / "out").written == 0


def start(source: Path, out: Path, lab: Path) -> subprocess.Popen:
    env = {**os.environ, "BBLAB_LAB": str(lab), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bblab", "data", "prepare", source, out, "--short-side", "48", "--jobs", "2"]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(out: Path, running: subprocess.Popen, count: int = 2) -> None:
    journal = out / "meta" / "progress.jsonl"
    for _ in range(3000):
        if journal.exists() and len(journal.read_bytes().splitlines()) >= count:
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    pytest.fail("nothing was written")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Enough work that a signal comes in the middle of it."""
    return make_set(tmp_path_factory.mktemp("large") / "set", train=500, val=20)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_goes_on_and_ends_like_one_that_was_not(large, tmp_path, lab, number):
    out = tmp_path / "out"
    running = start(large, out, lab)
    wait_for_lines(out, running)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode != 0 and not (out / "meta" / "bblab.json").exists()
    if number != signal.SIGKILL:
        assert running.returncode == 1 and "stopped by hand" in said and "goes on from there" in said
        assert "Traceback" not in said
    (out / "train" / "ant" / ".left.jpg.partial").write_bytes(b"half")  # what a kill between write and rename leaves
    done = prepare(large, out, jobs=2)
    assert done.reused >= 64 and done.written + done.reused == 1560
    assert not list(out.rglob("*.partial"))
    if number == signal.SIGKILL:
        prepare(large, tmp_path / "fresh", jobs=2)
        assert tree(out) == tree(tmp_path / "fresh")


def test_workers_leave_when_their_parent_is_killed(large, tmp_path, lab):
    running = start(large, tmp_path / "out", lab)
    wait_for_lines(tmp_path / "out", running)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    if not children.exists():
        running.kill()
        pytest.skip("no /proc")
    pids = [int(p) for p in children.read_text().split()]
    running.kill()
    running.communicate()
    for _ in range(500):
        alive = [p for p in pids if Path(f"/proc/{p}").exists() and "(zombie)" not in _state(p)]
        if not alive:
            break
        time.sleep(0.02)
    assert pids and not alive


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "(zombie)"


def test_a_disk_that_fills_up_keeps_what_is_done(source, tmp_path, monkeypatch):
    written = []
    real = preparing._write

    def full(path: str, content: bytes) -> None:
        if len(written) >= 7:
            raise OSError(28, "No space left on device", path)
        real(path, content)
        written.append(path)

    monkeypatch.setattr(preparing, "_write", full)
    monkeypatch.setattr(preparing.pool, "spread", _one_by_one)
    with pytest.raises(RunError, match="no room left") as error:
        prepare(source, tmp_path / "out")
    assert "the same command goes on" in error.value.hint
    monkeypatch.setattr(preparing, "_write", real)
    assert prepare(source, tmp_path / "out").reused == 7


def _one_by_one(work, items, crashed, **_):
    for item in items:
        yield work([item])


def test_too_little_room_is_known_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 50_000))
    with pytest.raises(RunError, match=r"needs about .* GB for 21 images, 5e-05 GB are free"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out" / "train").exists()


# What is refused ---------------------------------------------------------------------------------------------------


def test_an_empty_class_is_refused_before_the_work(source, tmp_path):
    (source / "train" / "dog").mkdir()
    with pytest.raises(BblabError, match="no image in 1 class: dog"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(BblabError, match="holds something else"):
        prepare(source, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_other_settings_need_another_folder(source, tmp_path):
    prepare(source, tmp_path / "out")
    with pytest.raises(BblabError, match="begun with 48 px, quality 90"):
        prepare(source, tmp_path / "out", quality=80)


@pytest.mark.parametrize("inside", ["", "train/x", ".."])
def test_the_source_is_never_written_into(source, inside):
    with pytest.raises(BblabError, match=r"holds the images|become a class"):
        prepare(source, source / inside if inside else source)


def test_a_second_process_is_refused(source, tmp_path):
    with (
        preparing._journal(tmp_path / "out", {"version": 1}, source),
        pytest.raises(BblabError, match="another process prepares"),
        preparing._journal(tmp_path / "out", {"version": 1}, source),
    ):
        pass


def test_names_from_a_list_cannot_leave_the_folder(source, tmp_path):
    out = tmp_path / "deep" / "out"
    for i in range(2):
        (tmp_path / f"evil{i}.jpg").write_bytes(jpeg(80 + i))
    for split in ("train", "val"):
        rows = [f"{p} {('ant', 'bee', 'cat').index(p.parent.name)}" for p in (source / split).glob("*/*")]
        rows.append("../evil0.jpg 0" if split == "train" else "../evil1.jpg 1")
        (tmp_path / f"{split}.txt").write_text("\n".join(rows) + "\n")
    before = set(tmp_path.rglob("*"))
    done = prepare(source, out, ann_train=tmp_path / "train.txt", ann_val=tmp_path / "val.txt")
    made = set(tmp_path.rglob("*")) - before
    assert done.info.train_count == 16 and all(p.is_relative_to(tmp_path / "deep") for p in made)


def test_the_command_tells_and_stores_what_it_made(bblab, source, tmp_path):
    ran = bblab("data", "prepare", source, tmp_path / "out", "--short-side", 48, "--jobs", 1)
    assert ran.code == 0
    assert "21 images written" in ran.out and "stored as run 1" in ran.out and "bblab pretrain SPEC --data" in ran.out
    value = json.loads(bblab("data", "prepare", source, tmp_path / "out", "--short-side", 48, "--json", "-").out)
    assert (value["written"], value["reused"], value["classes"]) == (0, 21, 3) and "run_id" not in value
