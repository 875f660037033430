"""Published figures of trackers: every one has a source, a known metric and, for a speed, a device."""

from __future__ import annotations

import dataclasses

import pytest

from bblab.rooms import room
from bblab.tracking import PublishedScore, published
from bblab.tracking.metrics import METRICS

SCORES = published()


def of(tracker: str, metric: str) -> list[PublishedScore]:
    return [s for s in SCORES if (s.tracker, s.metric) == (tracker, metric)]


def test_figures_are_those_of_their_sources() -> None:
    assert [s.value for s in of("NanoTrackV1", "vot2018_eao")] == [0.311]
    assert [s.value for s in of("SiamRPN++ MobileNetV2", "vot2018_eao")] == [0.410]
    (v3,) = of("NanoTrackV3", "got10k_val_ao")
    assert (v3.value, v3.params, v3.macs, v3.spec) == (0.719, 541_400, 115_600_000, "nanotrack_v3")
    (v1,) = of("NanoTrackV1", "vot2019_eao")
    assert (v1.fps, v1.speeds[0].bound, v1.device) == (200, ">", "Apple M1 CPU")


def test_every_figure_is_sourced_and_in_its_range() -> None:
    assert len(SCORES) > 100
    for s in SCORES:
        assert s.source and s.metric in METRICS, s
        assert 0 < s.value < 1, s
        assert bool(s.cost_source) == (s.params is not None or s.macs is not None), s
        assert all(speed.device and speed.source and speed.fps > 1 for speed in s.speeds), s


def test_every_speed_has_its_device_beside_it() -> None:
    light = of("LightTrack-Mobile", "lasot_auc")[0]
    assert [(x.fps, x.device.partition(",")[0]) for x in light.speeds] == [
        (13.4, "Raspberry Pi 5"),
        (44, "Apple M4 CPU"),
        (124, "Jetson Orin Nano"),
    ]


def test_validation_and_test_scores_of_got10k_are_two_metrics_and_far_apart() -> None:
    both = [(of(t, "got10k_val_ao"), of(t, "got10k_ao")) for t in ("SiamFC++ AlexNet", "SiamFC++ GoogLeNet")]
    for (val,), (test,) in both:
        assert (val.split, test.split) == ("val", "test")
        assert val.value - test.value > 0.15
    assert {s.split for s in SCORES if s.metric.startswith("got10k_val")} == {"val"}


def test_two_sources_of_one_figure_stand_side_by_side() -> None:
    paper, again = of("LightTrack-Mobile", "vot2019_eao")
    assert (paper.value, again.value) == (0.333, 0.328)
    assert paper.source != again.source and "again" in again.note


def test_a_backbone_that_is_named_is_declared_here() -> None:
    specs = {path.stem for path in room("arch_specs").glob("*.yaml")}
    named = {s.spec for s in SCORES if s.spec}
    assert len(named) >= 14 and named <= specs


def test_no_figure_is_given_twice() -> None:
    keys = [(s.tracker, s.metric, s.source) for s in SCORES]
    assert len(set(keys)) == len(keys)


def test_figures_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCORES[0].value = 1  # type: ignore[misc]
