"""A session: how much is run, in what order, and what survives, with a fake device and a fake clock."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bblab.errors import BblabError, RunError
from bblab.latency import (
    Broken,
    Candidate,
    Interrupted,
    Plan,
    Race,
    Timing,
    measure,
    models,
    protocol,
    ranking,
    run_races,
    sentence,
    session,
    wire,
)
from bblab.latency.devices import Device, talk
from bblab.latency.models import Model

START_S = 1.0


class FakeDevice:
    """Keeps a clock of its own: a process takes START_S and its calls. `fail_at` names a process (from 0)."""

    name = "fake"
    waits = False

    def __init__(self, cpu_s: dict[str, float], *, fail_at: int | None = None, noise: float = 0.01) -> None:
        self.cpu_s = cpu_s
        self.fail_at = fail_at
        self.noise = noise
        self.now = 100.0
        self.requests: list[wire.Request] = []
        self.closed = 0
        self.rng = random.Random(0)

    def clock(self) -> float:
        return self.now

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None: ...

    def send(self, path: Path) -> str:
        return f"/there/{path.name}"

    def conditions(self) -> dict[str, Any]:
        return {"now": self.now, "absent": ["governor"]}

    def spend(self, seconds: float) -> tuple[float, float]:
        taken = seconds * (1 + self.noise * self.rng.random())
        self.now += taken
        return taken, taken

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        self.requests.append(request)
        try:
            yield wire.Hello(request.runtime, "9.9.1", "float32", "fake")
            self.now += START_S
            yield wire.Ready(len(request.models), 1, 0.1)
            for number, order in enumerate(request.orders):
                yield wire.Speed(number, *self.spend(0.003))
                if number == 1 and len(self.requests) - 1 == self.fail_at:
                    raise RunError("the worker was killed by SIGKILL")
                for model in order:
                    for state in request.visit:
                        yield wire.Call(number, model, state, *self.spend(self.cpu_s[request.models[model].label]), 0)
            yield wire.Speed(request.rounds, *self.spend(0.003))
            yield wire.End(request.rounds)
        finally:
            self.closed += 1


def never() -> Any:
    raise AssertionError("the module is not needed")


def net(label: str, key: str = "") -> Candidate:
    return Candidate(label, label, "deploy", (3, 8, 8), key or label, never)


@pytest.fixture(autouse=True)
def no_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "is_remembered", lambda *_: True)
    monkeypatch.setattr(models, "converted", lambda c, r: Model(Path(f"{c.key}.onnx"), "sha-" + c.key, 10, 1e-7))


TIMES = {"a": 0.010, "b": 0.020, "resnet18": 0.040}


def run(device: FakeDevice, plan: Plan | None = None, **more: Any) -> list[Timing]:
    plan = plan or Plan()
    return measure([net("a"), net("b")], net("resnet18"), device=device, plan=plan, clock=device.clock, **more)


def test_ratios_come_out_in_the_candidates_order_with_the_reference_last() -> None:
    a, b, reference = run(FakeDevice(TIMES))
    assert [t.label for t in (a, b, reference)] == ["a", "b", "resnet18"]
    assert (a.ratio, b.ratio) == (pytest.approx(0.25, rel=0.01), pytest.approx(0.5, rel=0.01))
    assert (reference.ratio, reference.ratio_low, reference.ratio_high) == (1.0, 1.0, 1.0)
    assert reference.is_reference and not a.is_reference
    assert a.ratio_low <= a.ratio <= a.ratio_high
    assert a.steady and reference.steady
    assert ranking([b, reference, a]) == "a < b < resnet18"


def test_default_plan_is_six_processes_of_five_rounds_in_new_orders() -> None:
    device = FakeDevice(TIMES)
    a, *_ = run(device)
    assert (a.processes, a.rounds) == (6, 5)
    assert {state: own.calls for state, own in a.samples.items()} == {"warm": 90, "cold": 30}
    assert len(device.requests) == 6
    orders = [o for r in device.requests for o in r.orders]
    # 3 models have 6 orders; 30 draws that leave one out are one chance in 40 and the seed is fixed
    assert len(set(orders)) == 6
    assert len({r.orders for r in device.requests}) == 6
    assert {r.warmups for r in device.requests} == {5}


def test_models_are_loaded_in_an_order_of_their_own_in_each_process() -> None:
    device = FakeDevice(TIMES)
    a, b, reference = run(device, Plan(processes=12))
    loaded = {tuple(m.label for m in r.models) for r in device.requests}
    assert len(loaded) >= 4  # of the six orders of three; the seed is fixed
    # and yet every time is the right net's
    for timing, seconds in ((a, 0.010), (b, 0.020), (reference, 0.040)):
        assert all(x == pytest.approx(seconds, rel=0.011) for p in timing.warm.cpu_s for x in p)


def test_the_reference_is_not_run_twice_when_it_is_a_candidate() -> None:
    device = FakeDevice(TIMES)
    reference = net("resnet18")
    timings = measure([reference, net("a")], reference, device=device, clock=device.clock)
    assert [t.label for t in timings] == ["resnet18", "a"]
    assert timings[0].is_reference
    assert len(device.requests[0].models) == 2


def test_two_candidates_of_one_label_are_refused() -> None:
    with pytest.raises(BblabError, match="two candidates are called 'a'"):
        measure([net("a"), net("a", key="other")], net("resnet18"), device=FakeDevice(TIMES))


def test_json_has_every_key_of_the_interface() -> None:
    a, *_ = run(FakeDevice(TIMES))
    record = json.loads(json.dumps(a.to_json(), allow_nan=False))
    interface = (
        "spec device runtime runtime_version form precision threads input processes rounds cpu_p10_s wall_p50_s "
        "wall_p90_s wall_over_cpu reference ratio ratio_low ratio_high drift steady protocol warm cold paced"
    ).split()
    assert [k for k in interface if k not in record] == []
    of_state = ("cpu_p10_s", "wall_p50_s", "wall_p90_s", "ratio", "ratio_low", "ratio_high")
    assert [k for k in of_state if k not in record["warm"] or k not in record["cold"]] == []
    assert [record[k] for k in of_state] == [record["warm"][k] for k in of_state]
    assert (record["protocol"], record["paced"]) == (2, None)
    assert (record["pinned_cpus"], record["slice_s"]) == ([1] * 6, 0.1)
    assert (record["reference"], record["drift"], record["runtime_version"]) == ("resnet18", "none", "9.9.1")
    assert record["cpu_p10_s"] == pytest.approx(0.010, rel=0.01)
    assert json.loads(json.dumps(a.raw()))["cpu_s"][5][4] == a.warm.cpu_s[5][4]
    assert json.loads(json.dumps(a.raw()))["cold_cpu_s"][5][4] == a.samples["cold"].cpu_s[5][4]
    assert a.conditions_before["now"] < a.conditions_after["now"]


def test_the_pace_reaches_the_worker_and_the_record() -> None:
    device = FakeDevice(TIMES)
    a, *_ = run(device, Plan(pace_fps=25.0))
    assert {(r.pace_s, r.paced_calls) for r in device.requests} == {(0.04, 3)}
    record = a.to_json()
    assert (record["pace_fps"], record["paced"]["calls"], record["paced"]["functional"]) == (25.0, 90, "wall_paired")
    assert (record["warm"]["functional"], record["cold"]["functional"]) == ("cpu_min", "cpu_paired")


# Budget ---------------------------------------------------------------------------------------------------------
# A process costs 1 s and 0.283 s a round (0.003 and four calls of 0.010, 0.020, 0.040), and 0.003 s: 6 x 5 are 14.5 s.


def test_a_generous_budget_changes_nothing_after_the_first_process() -> None:
    device = FakeDevice(TIMES)
    a, *_ = run(device, Plan(budget_s=60.0))
    assert [r.rounds for r in device.requests] == [2, 5, 5, 5, 5, 5]
    assert a.steady and a.notes == ()


def test_a_tight_budget_takes_rounds_before_processes() -> None:
    device = FakeDevice(TIMES)
    a, *_ = run(device, Plan(budget_s=11.0))
    assert a.processes == 6
    assert 2 <= a.rounds < 5
    assert device.now - 100 <= 11.0


def test_a_short_budget_is_kept_and_told() -> None:
    device = FakeDevice(TIMES)
    a, *_ = run(device, Plan(budget_s=5.0))
    # three processes of 1 s and two rounds are 4.7 s, a fourth would be too late
    assert (a.processes, a.rounds) == (3, 2)
    assert device.now - 100 <= 5.0
    assert "the budget ended it after 3 of 6 processes" in a.notes[0]
    assert "a ranking needs 5 x 2" in sentence(a)


def test_a_process_over_the_budget_is_ended_after_a_whole_round_and_keeps_it() -> None:
    device = FakeDevice(TIMES)
    a, *_ = run(device, Plan(budget_s=1.2))
    # the first round ends at 1.3 s: it is whole when the second's speedometer comes, and there it ends
    assert (a.processes, a.rounds) == (1, 1)
    assert device.closed == 1
    assert a.to_json()["ratio_low"] is None and a.to_json()["cold"]["ratio_high"] is None
    assert "one process: there is no interval" in sentence(a)
    assert ranking([a]) == "one process gives no interval: nothing is ranked"


def test_a_budget_below_one_round_is_said_so() -> None:
    class Slow(FakeDevice):
        def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
            self.now += silence_s  # nothing is heard while it loads
            raise RunError("the worker said nothing")
            yield

    with pytest.raises(
        Broken, match="a budget of 2 s is below one round of these 3 nets on fake: nothing was measured"
    ):
        run(Slow(TIMES), Plan(budget_s=2.0))


def test_a_conversion_is_ended_by_the_budget_and_its_net_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def converted(candidate: Candidate, runtime: Any) -> Model:
        if candidate.label == "b":
            time.sleep(30)
        return Model(Path(f"{candidate.key}.onnx"), "sha-" + candidate.key, 10, 1e-7)

    monkeypatch.setattr(models, "is_remembered", lambda net, runtime: net.label != "b")
    monkeypatch.setattr(models, "converted", converted)
    device, began = FakeDevice(TIMES), time.monotonic()
    measured = session.run([net("a"), net("b")], net("resnet18"), device=device, plan=Plan(budget_s=0.5))
    assert time.monotonic() - began < 10
    assert measured.not_reached == ("b",)
    assert [t.label for t in measured.timings] == ["a", "resnet18"]
    assert "not reached in 0.5 s (not converted for ort): b" in measured.notes[0]


def test_a_budget_that_is_gone_before_the_reference_is_converted_measures_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "is_remembered", lambda *_: False)
    monkeypatch.setattr(models, "converted", lambda *_: time.sleep(30))
    with pytest.raises(RunError, match="too short to convert the reference resnet18"):
        run_for_real(Plan(budget_s=0.2))


def run_for_real(plan: Plan) -> list[Timing]:
    return measure([net("a")], net("resnet18"), device=FakeDevice(TIMES), plan=plan)


def test_ties_are_given_more_processes_up_to_the_bound() -> None:
    tied = FakeDevice({"a": 0.010, "b": 0.010, "resnet18": 0.040})
    run(tied, Plan(max_processes=9))
    settled = FakeDevice(TIMES)
    run(settled, Plan(max_processes=9))
    assert (len(tied.requests), len(settled.requests)) == (9, 6)


class Turning(FakeDevice):
    """b takes as long as a to the last digit in the first six processes, and 10 % longer in all later ones."""

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        self.cpu_s = {**self.cpu_s, "b": 0.010 if len(self.requests) < 6 else 0.011}
        yield from super().run(request, silence_s=silence_s)


def test_whether_ties_are_left_is_asked_at_the_agreed_looks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    has_separated = protocol.has_separated

    def recorded(timings: list[Timing]) -> bool:
        asked.append(timings[0].processes)
        return has_separated(timings)

    monkeypatch.setattr(protocol, "has_separated", recorded)
    device = Turning({"a": 0.010, "resnet18": 0.040}, noise=0.0)
    run(device, Plan(max_processes=100))
    # k of n processes say 10 %, the others nothing: the mean of their logs over its standard error is
    # k / sqrt(k (n - k) / (n - 1)). n = 8: 2 / sqrt(12 / 7) = 1.53, n = 11: 5 / sqrt(30 / 10) = 2.89, n = 15:
    # 9 / sqrt(54 / 14) = 4.58. The looks spend .05/6, .05/12, .05/20, and tables have t.995 of 7 and 10 degrees as 3.50
    # and 3.17, t.9995 of 14 as 4.14: tied at 8 and 11, settled at 15.
    assert asked == [6, 8, 11, 15]
    assert len(device.requests) == 15


# What survives --------------------------------------------------------------------------------------------------


def stop_at(process: int) -> Any:
    def on_progress(done: int, total: int, seconds_left: float | None, text: str) -> None:
        if text.startswith(f"process {process} ") and done % 5 == 3:
            raise KeyboardInterrupt

    return on_progress


def test_nets_of_two_sizes_run_in_the_same_rounds_each_beside_the_reference_of_its_size() -> None:
    device = FakeDevice({"small": 0.002, "large": 0.010, "resnet18 8px": 0.040, "resnet18 4px": 0.010})
    small = replace(net("small"), input=(3, 4, 4))
    references = [net("resnet18 8px"), replace(net("resnet18 4px"), input=(3, 4, 4))]
    timings = measure([net("large"), small], references, device=device, clock=device.clock)
    by_label = {t.label: t for t in timings}
    # 2 of 10 ms at 4 px, 10 of 40 ms at 8 px
    assert by_label["small"].ratio == pytest.approx(0.2, rel=0.02)
    assert by_label["large"].ratio == pytest.approx(0.25, rel=0.02)
    assert by_label["small"].reference_input == (3, 4, 4)
    # 2 and 10 ms in the same rounds, although their ratios to their references are near each other
    assert protocol.ratio_between(by_label["small"], by_label["large"]).value == pytest.approx(0.2, rel=0.02)
    assert len(device.requests[0].models) == 4


def test_a_probe_changes_what_is_asked_and_its_messages_are_kept() -> None:
    class Talking(FakeDevice):
        def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
            yield wire.Note("about", request.options["what"])
            yield from super().run(request, silence_s=silence_s)

    device = Talking(TIMES)
    measured = session.run(
        [net("a")], net("resnet18"), device=device, clock=device.clock,
        ask=lambda request, number: replace(request, options={"what": f"process {number}"}),
    )  # fmt: skip
    assert [r.told for r in measured.results] == [(wire.Note("about", f"process {n}"),) for n in range(6)]


def test_ctrl_c_gives_back_the_finished_processes_and_ends_the_worker() -> None:
    device = FakeDevice(TIMES)
    with pytest.raises(Interrupted) as stopped:
        run(device, on_progress=stop_at(3))
    a, *_ = stopped.value.partial
    assert (a.processes, a.rounds) == (2, 5)
    assert a.ratio == pytest.approx(0.25, rel=0.02)
    assert not a.steady
    assert stopped.value.exit_code == 1
    assert "2 finished process(es)" in str(stopped.value)
    assert device.closed == 3


def test_ctrl_c_in_the_first_process_gives_nothing_back() -> None:
    with pytest.raises(Interrupted) as stopped:
        run(FakeDevice(TIMES), on_progress=stop_at(1))
    assert stopped.value.partial == []


def test_a_worker_that_dies_midway_leaves_the_finished_processes() -> None:
    with pytest.raises(Broken, match="killed by SIGKILL") as broken:
        run(FakeDevice(TIMES, fail_at=3))
    assert broken.value.partial[0].processes == 3
    assert "a worker failed after 3 process(es)" in broken.value.partial[0].notes
    assert broken.value.exit_code == 1


class Refusing(FakeDevice):
    """Its workers cannot load b, from the process `from_process` on."""

    from_process = 0

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        labels = [m.label for m in request.models]
        if "b" in labels and len(self.requests) >= self.from_process:
            self.requests.append(request)
            yield wire.Hello(request.runtime, "9.9.1", "float32", "fake")
            raise talk.ModelRefused(wire.Failure("no operator Odd", labels.index("b")))
        yield from super().run(request, silence_s=silence_s)


def test_a_net_that_the_worker_refuses_is_left_out_by_name_and_the_others_are_measured() -> None:
    device = Refusing(TIMES)
    (done,) = run_races([Race((net("a"), net("b")), (net("resnet18"),))], device=device, clock=device.clock)
    assert [t.label for t in done.timings] == ["a", "resnet18"]
    assert (done.problem, [t.processes for t in done.timings]) == (None, [6, 6])
    assert done.left_out == ("b: the worker of ort on fake cannot run it (no operator Odd)",)


def test_a_refusal_after_finished_processes_keeps_them() -> None:
    device = Refusing(TIMES)
    device.from_process = 2
    (done,) = run_races([Race((net("a"), net("b")), (net("resnet18"),))], device=device, clock=device.clock)
    assert [(t.label, t.processes) for t in done.timings] == [("a", 2), ("b", 2), ("resnet18", 2)]
    assert done.problem is not None and "no operator Odd" in done.problem.message


def test_a_time_limit_leaves_somebody_elses_alarm_running() -> None:
    rang: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rang.append(number))
    theirs = signal.setitimer(signal.ITIMER_REAL, 100.0)
    try:
        with session.time_limit(50.0):
            pass
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 90 < left <= 100
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.1)
        assert rang == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *theirs)


def test_a_worker_that_leaves_a_call_out_is_refused() -> None:
    class Forgetful(FakeDevice):
        def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
            inner: Iterator[wire.Message] = super().run(request, silence_s=silence_s)
            yield from (
                m
                for m in inner
                if not (isinstance(m, wire.Call) and m.round == 2 and m.model == 1 and m.state == wire.COLD)
            )

    with pytest.raises(Broken, match="left out 1 of its measurements"):
        run(Forgetful(TIMES))


def test_progress_counts_rounds_to_the_end_and_foretells_the_time() -> None:
    told: list[tuple[int, int, float | None, str]] = []
    run(FakeDevice(TIMES), on_progress=lambda *now: told.append(now))
    dones = [done for done, *_ in told]
    assert dones == sorted(dones)
    assert told[-1][:3] == (30, 30, 0.0)
    first_of_second = next(t for t in told if t[3].startswith("process 2 "))
    # five processes of 1 s + 5 x 0.283 s are left
    assert first_of_second[2] == pytest.approx(5 * 2.415, rel=0.05)


def test_an_unknown_device_or_runtime_lists_the_known() -> None:
    with pytest.raises(BblabError, match="no device 'hots'"):
        measure([net("a")], net("r"), device="hots")
    with pytest.raises(BblabError, match="no runtime 'otr'") as wrong:
        measure([net("a")], net("r"), runtime="otr")
    assert "ort" in wrong.value.hint


@pytest.mark.parametrize(
    "wrong",
    [{"processes": 0}, {"rounds": 0}, {"threads": 0}, {"budget_s": 0.0}, {"pace_fps": 0.0}, {"max_processes": 2}],
)
def test_a_plan_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BblabError, match=next(iter(wrong))):
        Plan(**wrong)


def test_a_candidate_that_cannot_be_is_refused() -> None:
    with pytest.raises(BblabError, match="form 'fused'"):
        Candidate("a", "a", "fused", (3, 8, 8), "a", never)  # type: ignore[arg-type]
    with pytest.raises(BblabError, match="input"):
        Candidate("a", "a", "train", (255, 255), "a", never)  # type: ignore[arg-type]
