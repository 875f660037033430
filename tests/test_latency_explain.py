"""Why two timings differ, on made-up rows: the most likely cause first, nothing where nothing was recorded."""

from __future__ import annotations

from typing import Any

import pytest

from bblab.latency import explain

CPU = {"cpu_model": "Cortex-A76", "packages": {"torch": "2.13.0"}, "governor": ["performance"]}


def row(cpu_ms: float = 6.62, *, conditions: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A stored timing, as `bblab show --json` prints it, with these of its inputs and results changed."""
    inputs = {
        "spec": "mine", "device": "host", "runtime": "ort", "runtime_version": "1.32.0", "form": "deploy",
        "precision": "float32", "threads": 1, "input": [3, 255, 255], "warmups": 5, "pace_fps": None,
        "reference": "resnet18", "model_sha256": "abc",
    }  # fmt: skip
    result = {
        "cpu_p10_s": cpu_ms / 1e3, "cpu_p10_low_s": cpu_ms * 0.99e-3, "cpu_p10_high_s": cpu_ms * 1.01e-3,
        "measured_wall_p50_s": cpu_ms / 1e3, "wall_over_cpu": 1.0, "ratio": cpu_ms / 36, "ratio_low": cpu_ms / 36.4,
        "ratio_high": cpu_ms / 35.6, "speedometer_s": 0.0033, "speedometer": "python", "processes": 6, "drift": "none",
        "estimator": "cpu_p10", "steal_share": 0.0, "reference_input": [3, 255, 255],
        "conditions": {"before": CPU, "after": CPU | (conditions or {})},
    }  # fmt: skip
    made = {
        "id": 1,
        "spec_id": "774d1a4636aa",
        "name": "mine",
        "code_version": "0.1.0+aa",
        "inputs": inputs,
        "result": result,
    }
    for key, value in changes.items():
        place = inputs if key in inputs else result if key in result else made
        place[key] = value
    return made


def first(a: dict[str, Any], b: dict[str, Any]) -> str:
    return explain(a, b)[0]


def test_the_same_number_twice_needs_no_explanation() -> None:
    said = explain(row(6.62), row(6.65))
    assert said == [
        "the two agree within their intervals (6.55 ms to 6.69 ms; 6.58 ms to 6.72 ms): "
        "there is no difference to explain"
    ]


def test_22_ms_was_the_unfused_train_form() -> None:
    said = first(row(22.1, form="train", model_sha256="def"), row(6.62))
    assert said == "22.1 ms was the unfused train form, 6.62 ms the fused deploy form, which is what a device runs"
    assert first(row(6.62), row(22.1, form="train")) == said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spec": "other"}, "two nets"),
        ({"spec_id": "other"}, "the spec mine itself was edited"),
        ({"input": [3, 127, 127]}, "4.03 times the pixels"),  # (255 / 127) ** 2
        ({"device": "adb:phone"}, "two devices"),
        ({"runtime": "ncnn"}, "6.62 ms was ort, 10.0 ms ncnn"),
        ({"runtime_version": "1.20.0"}, "ort itself was another: 1.32.0, then 1.20.0"),
        ({"precision": "float16"}, "in float32, 10.0 ms in float16"),
        ({"threads": 2}, "1 thread(s), then 2"),
        ({"pace_fps": 30.0}, "10.0 ms was paced at 30 fps"),
        ({"model_sha256": "def"}, "the model file is another"),
    ],
)
def test_a_choice_is_named_before_the_state_of_the_machine(change: dict[str, Any], words: str) -> None:
    state = {"load_average": [9.0, 9, 9]}
    a = row(6.62, conditions={"load_average": [0.1, 0, 0]})
    assert words in first(a, row(10.0, ratio_low=0.2, ratio_high=0.3, conditions=state, **change))


def test_a_slower_clock_is_seen_by_the_fixed_kernel_and_comes_first() -> None:
    said = explain(row(6.62), row(9.93, speedometer_s=0.00495, ratio=0.184, ratio_low=0.18, ratio_high=0.188))
    assert "the CPU itself ran 1.50 times slower for 9.93 ms than for 6.62 ms" in said[0]
    assert "4.95 ms against 3.30 ms, which accounts for it" in said[0]
    assert "beside the reference they are the same (0.184 and 0.184 × resnet18)" in said[1]


def test_a_clock_that_explains_only_part_does_not_push_the_form_aside() -> None:
    said = explain(row(6.62), row(22.1, form="train", speedometer_s=0.0036))
    assert "train form" in said[0]
    assert any("1.09 times slower" in text for text in said[1:])


def test_only_wall_time_differs_when_the_machine_was_busy() -> None:
    said = explain(row(6.62), row(6.65, measured_wall_p50_s=0.0153, wall_over_cpu=2.3))
    assert any(
        "CPU times are within 5 %, other work held the machine (wall/CPU 1.00 against 2.30)" in t for t in said[:2]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conditions": {"thermal_c": {"cpu": 41.0}}}, "the hottest sensor read 41 °C, then 85 °C"),
        ({"conditions": {"load_average": [0.2, 0, 0]}}, "the load was 0.2, then 7.0"),
        (
            {"conditions": {"pressure": {"cpu": {"some_avg10_percent": 3.0}}}},
            "waited for a CPU 3 % of the time, then 80 %",
        ),
        ({"steal_share": 0.01}, "the hypervisor took 1.0% of the machine, then 20.0%"),
        ({"wall_over_cpu": 1.0}, "other work held the machine during 9.00 ms"),
        ({"estimator": "cpu_paired"}, "computed in two ways"),
    ],
)
def test_each_state_of_the_machine_is_named(change: dict[str, Any], words: str) -> None:
    hot = {"thermal_c": {"cpu": 85.0}, "load_average": [7.0, 0, 0], "pressure": {"cpu": {"some_avg10_percent": 80.0}}}
    b = row(9.0, conditions=hot, steal_share=0.2, wall_over_cpu=2.3, ratio_low=0.2, ratio_high=0.3)
    said = explain(row(6.62, **change), b)
    assert any(words in text for text in said)


def test_a_drift_a_governor_and_a_capped_clock_are_named() -> None:
    drifting = {"series": "reference", "change_ratio": 1.3}
    a, b = row(6.62), row(9.0, drift="drift", drift_detail=drifting, ratio_low=0.2, ratio_high=0.3, processes=2)
    b["result"]["conditions"]["before"] = CPU | {
        "governor": ["powersave"],
        "frequencies_hz": {"max_allowed": [1_200_000_000], "max": [2_400_000_000]},
    }
    said = "\n".join(explain(a, b))
    assert "the clock drifted while 9.00 ms was measured: the reference changed 1.30-fold" in said
    assert "another frequency governor: performance, then powersave" in said
    assert "the clock was capped during 9.00 ms (1.20 of 2.40 GHz)" in said
    assert "9.00 ms rests on 2 process(es) only" in said


def test_what_was_not_recorded_is_passed_over() -> None:
    bare = {"spec": "mine", "form": "deploy", "cpu_p10_s": 0.006}
    assert explain(bare, {**bare, "cpu_p10_s": 0.009}) == [
        "nothing that was recorded differs: measure both in one session, side by side, with `bblab bench`"
    ]
    assert "train form" in explain(bare, {**bare, "form": "train", "cpu_p10_s": 0.02})[0]
    assert explain({}, {})


def test_where_other_work_held_the_machine_both_times_neither_wall_time_is_called_the_nets() -> None:
    said = explain(row(6.62, wall_over_cpu=4.99), row(9.0, wall_over_cpu=5.18, ratio_low=0.2, ratio_high=0.3))
    (text,) = [t for t in said if "other work held" in t]
    assert (
        text == "other work held the machine during both (wall/CPU 4.99 against 5.18): neither wall time is the net's"
    )
