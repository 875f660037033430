"""A tracker's frame: patches and boxes are right, stages add up, and both paces stand beside each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bblab.lab import Lab, benching
from bblab.latency import devices, models, pipeline, trackerframe, trackerhead, wire
from bblab.latency.devices.host import Host
from bblab.latency.models import Model
from bblab.latency.stageworker import FRAME, TEMPLATE, WHOLE
from bblab.latency.trackerframe import MEAN, STD, Decoder, by_numpy, patch
from bblab.store import Store

RNG = np.random.default_rng(1)


# Pictures -------------------------------------------------------------------------------------------------------


def test_numpy_resizes_as_torch_does() -> None:
    torch = pytest.importorskip("torch")
    cut = RNG.integers(0, 256, (41, 41, 3), dtype=np.uint8)
    for size in (20, 41, 63):
        x = torch.from_numpy(cut.transpose(2, 0, 1)[None].astype(np.float32))
        theirs = torch.nn.functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        assert np.abs(by_numpy(cut, size) - theirs[0].numpy()).max() < 1e-3


def test_opencv_and_numpy_agree_within_rounding() -> None:
    pytest.importorskip("cv2")
    resize, name = trackerframe.resizer(1)
    cut = RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8)
    assert name.startswith("OpenCV")
    assert np.abs(resize(cut, 63) - by_numpy(cut, 63)).max() <= 1.0  # OpenCV rounds to whole values


def test_a_patch_of_its_own_size_is_the_frame_normalised() -> None:
    frame = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    found = patch(frame, (40, 30), 20, 20)
    assert found.shape == (1, 3, 20, 20)
    expected = (frame[20:40, 30:50] - np.array(MEAN)) / np.array(STD)
    assert np.allclose(found[0].transpose(1, 2, 0), expected, atol=1e-4)


def test_outside_the_frame_stands_its_mean_colour() -> None:
    frame = np.full((40, 40, 3), 100, np.uint8)
    frame[:, :, 2] = 200
    found = patch(frame, (0, 0), 30, 15)
    expected = (np.array([100, 100, 200]) - np.array(MEAN)) / np.array(STD)
    assert np.allclose(found[0].transpose(1, 2, 0), expected, atol=1e-4)


def test_the_context_doubles_a_square_target() -> None:
    # 20x20: half the mean side on each side makes 40x40; the search region is twice that at 254 to 127
    assert trackerframe.context_side((0, 0, 20, 20), 127, 127) == pytest.approx(40)
    assert trackerframe.context_side((0, 0, 20, 20), 254, 127) == pytest.approx(80)


def test_the_best_position_becomes_the_box() -> None:
    # 5x5 cells of 8 px; the target moves by (8, -8) px of the patch, its distances are 2 and 3 strides to each side
    scores = np.full((1, 2, 5, 5), 0.0, np.float32)
    scores[0, 0] = 9.0
    scores[0, 1, 1, 3], scores[0, 0, 1, 3] = 30.0, 0.0
    distances = np.ones((1, 4, 5, 5), np.float32)
    distances[0, :, 1, 3] = [2, 3, 2, 3]  # left, top, right, bottom: 32 x 48 px of the patch
    x, y, w, h = Decoder(5, 5, 8)(scores, distances, (100.0, 50.0, 64.0, 96.0), 2.0)
    assert (x, y) == (pytest.approx(100 + 8 * 2), pytest.approx(50 - 8 * 2))
    assert (w, h) == (pytest.approx(64, rel=1e-3), pytest.approx(96, rel=1e-3))  # 32 x 48 px, twice as large: the same


def test_distances_shift_the_centre() -> None:
    scores = np.zeros((1, 2, 3, 3), np.float32)
    scores[0, 1, 1, 1] = 50.0
    distances = np.full((1, 4, 3, 3), 2.0, np.float32)
    distances[0, 2] = 4.0  # right: the centre lies (4 - 2) / 2 strides of 16 px to the right
    x, y, *_ = Decoder(3, 3, 16)(scores, distances, (0.0, 0.0, 96.0, 64.0), 1.0)
    assert (x, y) == (pytest.approx(16.0), pytest.approx(0.0, abs=1e-6))


# The head -------------------------------------------------------------------------------------------------------


def test_the_head_correlates_every_template_position_with_every_search_position() -> None:
    torch = pytest.importorskip("torch")
    head = trackerhead.build(6, (2, 3), (4, 5))
    z, x = torch.randn(1, 6, 2, 3), torch.randn(1, 6, 4, 5)
    packed = torch.cat([z.flatten(2), x.flatten(2)], dim=2)[:, :, None]
    seen: list[Any] = []
    handle = head.squeeze.register_forward_hook(lambda m, given, out: seen.append(given[0]))
    scores, distances = head(packed)
    handle.remove()
    # the same by convolution: each template position is a 1x1 kernel
    corr = torch.nn.functional.conv2d(x, z.flatten(2)[0].T[:, :, None, None])
    assert torch.allclose(seen[0][0, :, 0, 0], corr.mean((2, 3))[0], atol=1e-5)
    assert (scores.shape, distances.shape) == ((1, 2, 4, 5), (1, 4, 4, 5))
    assert (distances > 0).all()


# Measuring ------------------------------------------------------------------------------------------------------

SECONDS = dict(zip((*FRAME, *TEMPLATE), (1e-3, 4e-3, 2e-3, 1e-3, 0.5e-3, 1e-3), strict=True))


class FakeHost(Host):
    """Paced frames take half as long again; the third frame of each sequence is twice as slow."""

    requests: list[wire.Request] = []  # noqa: RUF012
    stop_at = 0

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        FakeHost.requests.append(request)
        if len(FakeHost.requests) == FakeHost.stop_at:
            raise KeyboardInterrupt
        yield wire.Hello(request.runtime, "1.32.0", "float32", "fake")
        for name, text in (("photo", "photo (made up)"), ("resized_by", "numpy"), ("frame", "480 640")):
            yield wire.Note(name, text)
        yield wire.Ready(3)
        for number, state in enumerate(request.options["paces"]):
            yield wire.Speed(number, 3e-3, 3e-3)
            slow = 1.5 if state == "paced" else 1.0
            for name in TEMPLATE:
                yield wire.Stage(number, state, name, SECONDS[name] * slow, SECONDS[name] * slow)
            for k in (1, 1, 2):
                for name in FRAME:
                    yield wire.Stage(number, state, name, SECONDS[name] * slow * k, SECONDS[name] * slow * k)
                yield wire.Stage(number, state, WHOLE, 8e-3 * slow * k, 8e-3 * slow * k)
        yield wire.Speed(request.rounds, 3e-3, 3e-3)
        yield wire.End(request.rounds)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[wire.Request]]:
    monkeypatch.setattr(models, "is_remembered", lambda *_: True)
    monkeypatch.setattr(models, "converted", lambda c, r: Model(Path(f"{c.label}.x"), "sha", 10, 1e-7))
    monkeypatch.setattr(FakeHost, "requests", [])
    monkeypatch.setattr(FakeHost, "stop_at", 0)
    devices.kinds()
    real = devices.DEVICES["host"]
    devices.DEVICES.add("host", FakeHost, replace=True)
    yield FakeHost.requests
    devices.DEVICES.add("host", real, replace=True)


def test_stages_have_shares_and_both_paces(asked: list[Any], bblab: Callable[..., Any]) -> None:
    done = bblab("bench", "nanotrack", "--pipeline", "--fps", "60", "--json", "-")
    (row,) = json.loads(done.out)["pipelines"]
    assert len(asked) == pipeline.PLAN.processes
    # six sequences of each pace, in a new order in each process
    assert {tuple(sorted(r.options["paces"])) for r in asked} == {("paced",) * 6 + ("warm",) * 6}
    assert len({tuple(r.options["paces"]) for r in asked}) > 1
    assert asked[0].pace_s == pytest.approx(1 / 60)
    assert (row["protocol"], {s["state"] for s in row["stages"]}) == (2, {"warm", "paced"})
    by = {(s["stage"], s["pace_fps"]): s for s in row["stages"]}
    # 1, 4, 2 and 1 of 8 ms
    assert [by[name, None]["share"] for name in FRAME] == [pytest.approx(x / 8) for x in (1, 4, 2, 1)]
    assert by["backbone on search", None]["p50_s"] == pytest.approx(4e-3)
    assert by["backbone on search", 60]["p50_s"] == pytest.approx(6e-3)
    assert by["backbone on search", None]["p90_s"] == pytest.approx(8e-3)  # a third of the frames are twice as slow
    assert [by[name, None]["share"] for name in TEMPLATE] == [None, None]
    assert [w["stage"] for w in row["whole"]] == [WHOLE, WHOLE]
    # at 60 fps a frame has 16.7 ms: the third of each paced sequence takes 8 x 1.5 x 2 = 24
    assert row["late_frames"] == {"60": pipeline.PLAN.processes * 6}


def test_a_person_reads_shares_the_photo_and_what_came_late(asked: list[Any], bblab: Callable[..., Any]) -> None:
    done = bblab("bench", "nanotrack", "--pipeline")
    assert (done.code, done.err) == (0, "")
    line = next(x for x in done.out.splitlines() if x.startswith("backbone on search"))
    assert line.split()[3:] == ["4.000", "8.000", "50%", "6.000", "12.000", "50%", "1.50"]
    assert "photo (made up), 640×480; resized by numpy" in done.out
    assert "0 of 90 frames took longer than the 33.3 ms of 30 fps" in done.out
    with Store.open(Lab().store_path, read_only=True) as store:
        (run,) = store.runs(kind="pipeline")
        assert len(store.samples(run.id)["backbone on search, 30 fps, cpu_s"]) == 90


def test_the_nets_are_cut_to_the_trackers_own_sizes(lab: Path) -> None:
    opened = Lab()
    found = benching.tracker(opened, opened.spec("nanotrack"), "deploy")
    assert (found.template.input, found.search.input) == ((3, 127, 127), (3, 255, 255))
    assert (found.template_map, found.search_map, found.channels, found.stride) == ((8, 8), (16, 16), 48, 16)
    assert found.head.input == (48, 1, 8 * 8 + 16 * 16)


def test_ctrl_c_keeps_the_finished_processes(asked: list[Any], lab: Path) -> None:
    FakeHost.stop_at = 3
    done = Lab().bench_pipeline(["nanotrack", "mobileone_s0@s16"])
    (row,) = done.rows  # and the second net is not begun
    assert row["processes"] == 2
    assert row["notes"] == ["stopped by hand after 2 process(es)"]
    assert "2 finished process(es)" in str(done.problems[0]) or "stopped" in str(done.problems[0])


def test_a_pipeline_that_ended_before_both_paces_is_a_problem_and_no_row(
    asked: list[Any], lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "PLAN", pipeline.Plan(processes=1, rounds=1))  # one sequence has one pace
    done = Lab().bench_pipeline(["nanotrack", "mobileone_s0@s16"])
    assert done.rows == ()
    assert [p.message for p in done.problems] == ["the session ended before a paced crop, resize, normalise"] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pipeline"], "of which net?"),
        (["nanotrack", "--pipeline", "--fps", "0"], "--fps must be between 1 and 1000"),
        (["nanotrack", "--pipeline", "--budget", "0"], "--budget must be seconds above 0"),
        (["nanotrack", "--pipeline", "--device", "adb:x"], "on the host only"),
        (["nanotrack", "--pipeline", "--per-op"], "different measurements"),
        (["no_such_net", "--pipeline"], "no spec 'no_such_net'"),
    ],
)
def test_wrong_questions_are_refused(asked: list[Any], bblab: Callable[..., Any], words: list[str], said: str) -> None:
    done = bblab("bench", *words)
    assert (done.code, asked) == (2, [])
    assert said in done.err


def test_a_real_pipeline_runs(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "FRAMES", 3)
    monkeypatch.setattr(pipeline, "PLAN", pipeline.Plan(processes=1, rounds=2))
    done = Lab().bench_pipeline(["nanotrack"], fps=100)
    assert done.problems == ()
    (row,) = done.rows
    assert {s["stage"] for s in row["stages"]} == {*FRAME, *TEMPLATE}
    assert all(s["wall_p50_s"] > 0 for s in row["stages"])
    assert math.isclose(sum(s["share"] for s in row["stages"] if s["share"] and s["pace_fps"] is None), 1)
    assert max(row["conversion_rel_errors"].values()) < 1e-3
