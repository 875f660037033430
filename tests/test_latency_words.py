"""The one line that a person reads, and the record of the machine beside it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bblab.latency import Samples, Timing, conditions, ranking, sentence, words

STILL = Samples(((0.003,) * 6,) * 6, ((0.003,) * 6,) * 6)


def timing(label: str, cpu_ms: float, *, wall_over_cpu: float = 1.0, levels: Sequence[float] = (1.0,) * 6) -> Timing:
    """Every call of a process takes `cpu_ms` times that process's level; the reference always 36.2 ms."""
    processes = len(levels)
    cpu = tuple((cpu_ms / 1e3 * level,) * 5 for level in levels)
    wall = tuple(tuple(x * wall_over_cpu for x in process) for process in cpu)
    reference = {"warm": Samples(((0.0362,) * 5,) * processes, ((0.0362,) * 5,) * processes)}
    return Timing(
        label=label,
        spec=label,
        form="deploy",
        input=(3, 255, 255),
        key=label,
        device="host",
        runtime="ort",
        runtime_version="1.32.0",
        precision="float32",
        threads=1,
        warmups=5,
        samples={"warm": Samples(wall, cpu)},
        reference="resnet18",
        reference_form="deploy",
        reference_input=(3, 255, 255),
        reference_key="resnet18",
        reference_samples=reference,
        speedometer=STILL,
        speedometer_name="fake",
        model_sha256="0",
        model_bytes=1,
        conversion_rel_error=0.0,
        session="one",
    )


def test_a_busy_machine_shows_no_wall_time() -> None:
    # 6.62 / 36.2 = 0.18287
    busy = timing("a", 6.62, wall_over_cpu=1.3)
    assert sentence(busy) == (
        "6.62 ms CPU (p10), warm · 0.183 x resnet18 [0.183, 0.183] warm · deploy, ORT 1.32 float32, 1 thread, host, "
        "1x3x255x255 · machine busy (wall/CPU 1.3); wall time not shown"
    )
    record = busy.to_json()
    assert (record["wall_p50_s"], record["wall_p90_s"], record["is_busy"]) == (None, None, True)
    assert record["measured_wall_p50_s"] == pytest.approx(0.00662 * 1.3)


def test_load_is_said_with_what_it_does_and_no_ratio_is_to_be_trusted() -> None:
    said = sentence(timing("a", 6.62, wall_over_cpu=2.3))
    assert "loaded (wall/CPU 2.3): nets of 2 to 10 ms may come out 3 to 16 % too slow beside the reference" in said
    assert "trust" not in said
    assert words.busy_words(1.0199) == ""
    assert "loaded" not in words.busy_words(1.4999) and "loaded" in words.busy_words(1.5)


def test_every_state_is_named_with_its_own_ratio() -> None:
    a, cold = timing("a", 6.62), timing("a", 7.24)
    both = replace(
        a,
        samples={**a.samples, "cold": cold.warm},
        reference_samples={**a.reference_samples, "cold": a.reference_samples["warm"]},
    )
    # 7.24 / 36.2 = 0.2
    assert "0.183 x resnet18 [0.183, 0.183] warm, 0.200 [0.200, 0.200] cold" in sentence(both)


def test_a_reference_that_wavers_is_not_steady_though_its_ratio_is_one() -> None:
    wavering = {"warm": Samples(*[tuple((0.03 + 0.006 * p,) * 5 for p in range(6))] * 2)}
    reference = replace(timing("resnet18", 1.0), samples=wavering, reference_samples=wavering)
    assert reference.is_reference and reference.ratio == 1.0
    assert any("interval" in doubt for doubt in reference.doubts)
    assert "the reference ·" in sentence(reference)


def test_a_quiet_machine_shows_it() -> None:
    quiet = timing("a", 6.62, wall_over_cpu=1.01)
    assert sentence(quiet).endswith("1x3x255x255 · 6.69 ms wall (warm; median; p90 6.69 ms)")
    assert quiet.to_json()["wall_p50_s"] == pytest.approx(0.00662 * 1.01)


def test_doubts_an_unfused_form_and_notes_are_said() -> None:
    said = sentence(replace(timing("a", 6.62, levels=(1.0, 1.5) * 3), form="train", notes=("stopped by hand",)))
    # logs 0 and .40547 in turn: sd .20273 * sqrt(6 / 5) = .22208, half an interval 2.5706 * .22208 / sqrt(6) = .23306,
    # and exp(.23306) - exp(-.23306) = .4703
    assert "not steady: the interval is 47.0% wide, over 10%" in said
    assert "unfused" in said
    assert said.endswith("stopped by hand")


def test_more_threads_are_not_called_cpu_latency() -> None:
    said = sentence(replace(timing("a", 6.62, wall_over_cpu=0.6), threads=2))
    assert "6.62 ms CPU over 2 threads (p10, warm; not a latency)" in said
    assert "0.110 x resnet18" in said  # 0.6 * 0.18287
    assert "2 threads, host" in said


def test_the_precision_and_the_pace_are_named() -> None:
    said = sentence(replace(timing("a", 6.62), precision="float16", pace_fps=30.0))
    assert "ORT 1.32 float16, 1 thread, host, 1x3x255x255, paced calls at 30 fps ·" in said


def test_ranking_prints_ties_as_equal() -> None:
    assert ranking([timing("b", 9.0), timing("a", 5.0), timing("c", 9.0)]) == "a < b = c"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0123, "0.0123"),
        (6.6249, "6.62"),
        (36.249, "36.2"),
        (1239.6, "1240"),
        (9.996, "10.0"),
        (1.0, "1.00"),
        (0, "0"),
    ],
)
def test_three_significant_digits(value: float, shown: str) -> None:
    assert words.significant(value) == shown


# Conditions -----------------------------------------------------------------------------------------------------


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_board_is_read(tmp_path: Path) -> None:
    cpu, zone = "sys/devices/system/cpu/cpu{}/{}", "sys/class/thermal/thermal_zone0/"
    write(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nmodel name : Cortex-A76\n",
            "proc/loadavg": "3.20 2.10 1.00 4/512 999\n",
            "proc/stat": "cpu  100 0 50 800 20 0 10 20 0 0\ncpu0 1 2 3\n",
            "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 400 kB\n",
            "proc/pressure/cpu": "some avg10=12.50 avg60=1.00 avg300=0.00 total=12345\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 5\nthrottled_usec 2500000\n",
            zone + "type": "cpu-thermal\n",
            zone + "temp": "61500\n",
            cpu.format(0, "cpufreq/scaling_governor"): "ondemand\n",
            cpu.format(0, "cpufreq/scaling_cur_freq"): "600000\n",
            cpu.format(0, "cpufreq/cpuinfo_max_freq"): "2400000\n",
            cpu.format(10, "cpufreq/scaling_cur_freq"): "700000\n",
            cpu.format(2, "cpufreq/scaling_cur_freq"): "800000\n",
        },
    )
    found = conditions.read(tmp_path)
    assert found["cpu_model"] == "Cortex-A76"
    assert found["load_average"] == [3.2, 2.1, 1.0]
    assert found["running_tasks"] == 4
    assert found["cpu_ticks"] == {"total": 1000, "idle": 820, "steal": 20}
    assert found["memory_bytes"] == {"total": 1_024_000, "available": 409_600}
    assert found["pressure"] == {"cpu": {"some_avg10_percent": 12.5, "some_total_us": 12345.0}}
    assert found["cpu_quota"] == {"cores": 1.5, "throttled_s": 2.5}
    assert found["thermal_c"] == {"thermal_zone0:cpu-thermal": 61.5}
    assert found["governor"] == ["ondemand"]
    # in the order of the numbers, 0, 2, 10
    assert found["frequencies_hz"] == {"now": [600_000_000, 800_000_000, 700_000_000], "max": [2_400_000_000]}
    assert "cpu_capacity" in found["absent"]


def test_what_cannot_be_read_is_absent_and_said_so(tmp_path: Path) -> None:
    write(tmp_path, {"proc/stat": "garbage\n", "proc/cpuinfo": "", "sys/fs/cgroup/cpu.max": "what\n"})
    found = conditions.read(tmp_path)
    for name in ("cpu_model", "cpu_ticks", "governor", "frequencies_hz", "thermal_c", "pressure", "cpu_quota"):
        assert name in found["absent"]
        assert name not in found
    assert found["cores"] == os.cpu_count()


def test_steal_is_the_share_between_before_and_after() -> None:
    before, after = ({"cpu_ticks": {"total": t, "idle": 0, "steal": s}} for t, s in ((1000, 10), (1400, 50)))
    measured = replace(timing("a", 5.0), conditions_before=before, conditions_after=after)
    assert measured.steal_share == pytest.approx(0.1)
    assert timing("a", 5.0).steal_share is None


def test_what_is_not_a_number_is_no_number_in_words() -> None:
    assert [words.significant(v) for v in (math.inf, -math.inf, math.nan)] == ["–", "–", "–"]


def test_of_one_process_no_interval_is_printed() -> None:
    alone = sentence(timing("a", 6.62, levels=(1.0,)))
    assert "[" not in alone and "no interval: 1 process was measured, at least 2 are needed" in alone
