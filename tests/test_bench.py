"""bench and duel from the command line to the notebook, on a device whose every number is made up."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bblab import reports
from bblab.cli import main
from bblab.errors import RunError
from bblab.lab import Lab
from bblab.latency import devices, models, sessions, wire
from bblab.latency.models import CannotConvert, Model
from bblab.store import NewRun, Store

# Seconds a net takes on the fake device, by its label's first word; a runtime or form may change them.
TIMES = {
    "lighttrack_mobile": 0.010,
    "resnet18": 0.040,
    "mobileone_s0@s16": 0.007,
    "nanotrack": 0.002,
    "mobilenetv3_small@s16": 0.002,
}
COLDER = {"warm": 1.0, "cold": 1.2, "paced": 1.3}
SLOWER = {("ncnn", "nanotrack"): 6.0, ("ort", "train"): 3.0}


class FakeDevice:
    """A machine whose every number is made up; each process has its own level, each call its own noise."""

    name = "fake"
    waits = False
    colder: dict[str, float] = {}  # noqa: RUF012  further than others, by net
    hook: Callable[[wire.Request, int], None] = staticmethod(lambda request, process: None)

    def __init__(self, address: str = "") -> None: ...

    requests: list[wire.Request]

    def __enter__(self) -> FakeDevice:
        self.rng = random.Random(7)
        FakeDevice.requests = []
        return self

    def __exit__(self, *_: object) -> None: ...

    def send(self, path: Path) -> str:
        return str(path)

    def conditions(self) -> dict[str, Any]:
        return {"load_average": [0.5, 0.5, 0.5], "cpu_model": "made up", "absent": ["governor", "thermal_c"]}

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        FakeDevice.requests.append(request)
        FakeDevice.hook(request, len(FakeDevice.requests))
        yield wire.Hello(request.runtime, "9.9.1", "float32", "fake")
        yield wire.Ready(len(request.models))
        level = [math.exp(self.rng.gauss(0, 0.005)) for _ in request.models]
        for number, order in enumerate(request.orders):
            yield wire.Speed(number, 0.003, 0.003)
            for at in order:
                label = request.models[at].label
                words = label.split()
                seconds = TIMES[words[0]] * level[at] * (1 + 0.005 * self.rng.random())
                seconds *= SLOWER.get((request.runtime, words[0]), 1.0) * SLOWER.get((request.runtime, words[1]), 1.0)
                spin = 1 + 0.4 * (request.threads - 1)
                for state in request.visit:
                    own = seconds * COLDER[state]
                    if state == "cold":
                        own *= FakeDevice.colder.get(words[0], 1.0)
                    yield wire.Call(number, at, state, own / request.threads, own * spin)
        yield wire.Speed(request.rounds, 0.003, 0.003)
        yield wire.End(request.rounds)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("BBLAB_LAB", str(tmp_path / "lab"))
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(models, "is_remembered", lambda *_: True)
    monkeypatch.setattr(models, "converted", lambda c, r: Model(Path(f"{c.label}.x"), "sha-" + c.key, 10, 1e-7))
    monkeypatch.setattr("bblab.latency.runtimes.ncnn.Ncnn.version", lambda self: "1.0")
    monkeypatch.setattr("bblab.latency.runtimes.ort.Ort.version", lambda self: "1.32.0")
    devices.DEVICES.add("fake", FakeDevice, replace=True)
    FakeDevice.hook = staticmethod(lambda request, process: None)
    FakeDevice.colder = {}
    yield
    del devices.DEVICES._items["fake"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main([*words, "--device", "fake"])
    out, err = capsys.readouterr()
    return code, out, err


def stored(kind: str = "timing") -> list[Any]:
    with Store.open(Lab().store_path, read_only=True) as store:
        return store.runs(kind=kind)


# bench ----------------------------------------------------------------------------------------------------------


def test_a_bench_ranks_stores_and_says_what_next(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "bench", "mobileone_s0@s16", "nanotrack")
    assert (code, err) == (0, "")
    assert "ranking: nanotrack deploy < mobileone_s0@s16 deploy < resnet18 deploy" in out
    assert "fake, ort 9.9.1, float32, 1 thread, batch 1, 3×255×255; 6 processes, a net: 90 warm calls, 30 cold; " in out
    assert "beside resnet18 deploy; workers on any core, usual time slices" in out
    assert next(x for x in out.splitlines() if x.startswith("1 nanotrack")).split()[8:9] == ["1.20"]  # cold over warm
    assert "load 0.5, cannot be read here: governor, temperature" in out
    assert "0.050 [0.0" in out  # 2 ms of 40
    assert "next: bblab duel mobileone_s0@s16 nanotrack" in out.splitlines()[-1]
    assert {r.name for r in stored()} == {"nanotrack", "mobileone_s0@s16", "resnet18"}
    assert {r.result["rank"] for r in stored()} == {1, 2, 3}
    assert len(stored("conditions")) == 1


def test_ties_are_printed_as_ties_after_more_processes(capsys: pytest.CaptureFixture[str]) -> None:
    # two names for the same 2 ms: goes on to the bound of 11 processes and leaves them equal
    _, out, _ = run(capsys, "bench", "mobilenetv3_small@s16", "nanotrack")
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines if line[1:2] in (["nanotrack"], ["mobilenetv3_small@s16"])][:2] == ["1=", "1="]
    assert " = " in next(line for line in out.splitlines() if line.startswith("ranking"))
    assert "11 processes, a net: 165 warm calls, 55 cold" in out
    assert "next: bblab duel" in out.splitlines()[-1]


def test_json_is_json_and_each_row_is_a_latency_element(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "bench", "nanotrack", "--json", "-", "--form", "both")
    rows = json.loads(out)["latency"]
    assert code == 0
    assert [(r["spec"], r["form"]) for r in rows] == [
        ("nanotrack", "deploy"), ("nanotrack", "train"), ("resnet18", "deploy")
    ]  # fmt: skip
    assert rows[1]["ratio"] == pytest.approx(0.15, rel=0.03)  # 3 * 2 / 40
    assert rows[0]["conditions"]["before"]["cpu_model"] == "made up"
    assert all(r["samples_id"] and r["conditions_id"] for r in rows)


def test_two_runtimes_that_rank_differently_are_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    # in ncnn nanotrack takes 12 ms, mobileone 7: of three pairs one is turned, (2 - 1) / 3
    _, out, _ = run(capsys, "bench", "mobileone_s0@s16", "nanotrack", "--runtime", "ort,ncnn")
    assert (
        "ort and ncnn rank 1 of 3 pairs the other way round (Kendall tau 0.33): nanotrack deploy is faster than "
        "mobileone_s0@s16 deploy in ort, slower in ncnn"
    ) in out
    assert len({r.inputs["runtime"] for r in stored()}) == 2


def test_threads_show_what_spinning_wastes(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "bench", "nanotrack", "--threads", "1,2")
    assert "CPU time of 2 threads over that of 1 (spinning; 1.00 is none wasted), ort: nanotrack deploy 1.4" in out
    assert {r.result["functional"] for r in stored() if r.inputs["threads"] == 2} == {"wall_paired"}


def test_warm_cold_and_paced_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "bench", "nanotrack", "--fps", "30")
    (row,) = (line for line in out.splitlines() if line.startswith("1 nanotrack"))
    # CPU ms warm, cold, cold over warm, paced, paced over warm, as made up
    assert [row.split()[i] for i in (8, 10)] == ["1.20", "1.30"]
    assert {r.pace_s for r in FakeDevice.requests} == {1 / 30}  # all in one session
    assert len({r.result["session"] for r in stored()}) == 1
    (stored_row,) = (r for r in stored() if r.name == "nanotrack")
    assert {state: stored_row.result[state]["calls"] for state in ("warm", "cold", "paced")} == {
        "warm": 90, "cold": 30, "paced": 90
    }  # fmt: skip
    assert stored_row.inputs["protocol"] == 2


def test_a_pair_that_cold_turns_round_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TIMES, "mobilenetv3_small@s16", 0.0022)
    FakeDevice.colder = {"nanotrack": 1.5}
    _, out, _ = run(capsys, "bench", "mobilenetv3_small@s16", "nanotrack")
    # warm 2.0 against 2.2 ms, cold 3.0 against 2.64
    assert "cold turns the order of nanotrack deploy and mobilenetv3_small@s16 deploy: the first is faster warm" in out


def test_one_process_has_no_place_in_a_ranking(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(request: wire.Request, process: int) -> None:
        if process == 2:
            raise KeyboardInterrupt

    FakeDevice.hook = staticmethod(stop)
    _, out, _ = run(capsys, "bench", "nanotrack")
    assert "ranking: none: one process gives no interval" in out
    (row,) = (r for r in stored() if r.name == "nanotrack")
    assert (row.result["rank"], row.result["ratio_low"], row.result["processes"]) == (None, None, 1)


def test_nets_of_two_sizes_stand_in_one_table_by_their_own_times(capsys: pytest.CaptureFixture[str]) -> None:
    # lighttrack_mobile runs at 256 px, nanotrack at 255: one session, a reference at each size
    _, out, _ = run(capsys, "bench", "nanotrack", "lighttrack_mobile")
    lines = [line.split() for line in out.splitlines() if " deploy" in line and line[:6].strip()[:3] in ("255", "256")]
    assert [(words[0], words[2]) for words in lines] == [
        ("255", "nanotrack"), ("256", "lighttrack_mobile"), ("255", "resnet18"), ("256", "resnet18")
    ]  # fmt: skip
    assert len({r.result["session"] for r in stored()}) == 1
    assert {tuple(r.result["reference_input"]) for r in stored()} == {(3, 255, 255), (3, 256, 256)}
    assert "beside resnet18 deploy of the same size" in out


def test_ctrl_c_keeps_the_sessions_and_processes_that_had_finished(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(request: wire.Request, process: int) -> None:
        if request.runtime == "ncnn" and process == 3:
            raise KeyboardInterrupt

    FakeDevice.hook = staticmethod(stop)
    code, out, err = run(capsys, "bench", "mobileone_s0@s16", "nanotrack", "--runtime", "ort,ncnn")
    assert code == 1
    assert "2 finished process(es)" in err
    assert "stopped by hand after 2 process(es)" in out
    assert {(r.inputs["runtime"], r.result["processes"]) for r in stored()} == {("ort", 6), ("ncnn", 2)}


def test_a_worker_that_crashes_ends_its_session_only(capsys: pytest.CaptureFixture[str]) -> None:
    def crash(request: wire.Request, process: int) -> None:
        if request.runtime == "ort" and process == 3:
            raise RunError("the worker was killed by SIGKILL")

    FakeDevice.hook = staticmethod(crash)
    code, _, err = run(capsys, "bench", "nanotrack", "--runtime", "ort,ncnn")
    assert code == 1
    assert "killed by SIGKILL" in err
    assert {(r.inputs["runtime"], r.result["processes"]) for r in stored()} == {("ort", 2), ("ncnn", 6)}


def test_a_net_that_a_runtime_cannot_take_is_left_out_and_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(candidate: Any, runtime: Any) -> Model:
        if (runtime.name, candidate.spec) == ("ncnn", "nanotrack"):
            raise CannotConvert(candidate.label, f"{candidate.label}: ncnn cannot convert it (no Gather)")
        return Model(Path("x"), "sha-" + candidate.key, 10, 1e-7)

    monkeypatch.setattr(models, "converted", convert)
    code, out, err = run(capsys, "bench", "mobileone_s0@s16", "nanotrack", "--runtime", "ort,ncnn")
    assert code == 1
    assert "left out of ncnn, 1 thread: nanotrack deploy: ncnn cannot convert it (no Gather)" in err
    assert "ranking, ncnn: mobileone_s0@s16 deploy < resnet18 deploy" in out


def test_a_notebook_that_cannot_be_written_does_not_take_the_table_with_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RunError("the notebook cannot grow: the disk is full")

    monkeypatch.setattr(Store, "add", refuse)
    code, out, err = run(capsys, "bench", "nanotrack")
    assert code == 1
    assert "disk is full" in err
    assert "ranking: nanotrack deploy" in out and "not stored" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--runtime", "otr"), "did you mean 'ort'?"),
        (("--runtime", ","), "names none"),
        (("--threads", "0"), "--threads '0'"),
        (("--threads", "two"), "whole numbers from 1"),
        (("--form", "fused"), "deploy, train or both"),
        (("--size", "big"), "search, template, or pixels"),
        (("--budget", "-3"), "--budget must be seconds above 0, got -3"),
        (("--budget", "nan"), "--budget must be seconds above 0, got nan"),
        (("--fps", "0"), "pace_fps is 0"),
        (("--reference", "resnet81"), "resnet18"),
        (("--json", "-", "--csv", "-"), "both want stdout"),
    ],
)
def test_wrong_words_are_told_before_anything_is_measured(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeDevice.hook = staticmethod(lambda *_: pytest.fail("measured"))
    for command in (("bench", "nanotrack"), ("duel", "nanotrack", "mobileone_s0@s16")):
        if command[0] == "duel" and "--csv" in words:
            continue
        code, _, err = run(capsys, *command, *words)
        assert code == 2
        assert said in err


def test_a_wrong_device_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "nanotrack", "--device", "hots"]) == 2
    assert "did you mean 'host'?" in capsys.readouterr().err


def test_a_missing_runtime_is_told_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bblab.latency import runtimes

    monkeypatch.setattr(
        "bblab.latency.runtimes.ncnn.Ncnn.version", lambda self: runtimes.installed("ncnn", "no-such-package")
    )
    code, out, err = run(capsys, "bench", "nanotrack", "--runtime", "ort,ncnn")
    assert (code, out) == (1, "")
    assert "pip install no-such-package" in err
    assert stored() == []


def test_the_template_size_is_the_templates(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "bench", "nanotrack", "--size", "template")
    assert {m.input for r in FakeDevice.requests for m in r.models} == {(1, 3, 127, 127)}


def test_the_report_needs_rows_only() -> None:
    rows = Lab().bench(["nanotrack"], device="fake").rows
    page = reports.find("bench", Lab().rooms)(json.loads(json.dumps(list(rows))))
    assert [cells[4] for cells in page.table.cells] == ["1", "2"]
    assert page.table.to_csv().splitlines()[0].startswith("runtime,threads,input_px,rank")


# duel -----------------------------------------------------------------------------------------------------------


def test_a_duel_says_who_is_faster_and_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "duel", "mobileone_s0@s16", "nanotrack")
    assert code == 0
    # 2 of 7 ms is 71 % less
    assert out.startswith("nanotrack deploy is faster: it takes 71 % less time than mobileone_s0@s16 deploy (95 %: 7")
    assert "after 6 processes" in out
    assert "next: bblab bench" in out.splitlines()[-1]
    assert {m.label for r in FakeDevice.requests for m in r.models} == {"mobileone_s0@s16 deploy", "nanotrack deploy"}


def test_a_net_against_itself_cannot_be_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "DUEL", sessions.DUEL)
    monkeypatch.setattr("bblab.latency.DUEL", sessions.Plan(rounds=3, max_processes=15))
    code, out, _ = run(capsys, "duel", "nanotrack", "nanotrack")
    assert code == 0
    assert out.startswith("cannot tell on this machine in this time: the difference is below 0.")
    assert "after 15 processes" in out
    assert "A and B are one and the same net" in out


def test_a_duel_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "duel", "mobileone_s0@s16", "nanotrack", "--runtime", "ort,ncnn", "--json", "-")
    one, two = json.loads(out)["verdicts"]
    assert (one["runtime"], one["faster"], two["runtime"], two["faster"]) == (
        "ort", "nanotrack deploy", "ncnn", "mobileone_s0@s16 deploy"
    )  # fmt: skip
    assert one["ratio"] == pytest.approx(2 / 7, rel=0.02)
    assert one["ratio_low"] < one["ratio"] < one["ratio_high"] < 1


def test_a_net_duels_with_its_own_edit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "duel", "nanotrack", "--set", "stage2.1.kernel=5")
    assert code == 0
    assert "A is nanotrack deploy (as it is), B is nanotrack deploy (stage2.1.kernel=5)" in out
    assert {r.result["label"] for r in stored()} == {
        "nanotrack deploy (as it is)", "nanotrack deploy (stage2.1.kernel=5)"
    }  # fmt: skip
    assert len({r.spec_id for r in stored()}) == 2
    # the same net but for its form, in this made-up machine: it cannot tell, and the next command is the same pair
    assert out.splitlines()[-1].endswith(
        "next: bblab duel nanotrack --set stage2.1.kernel=5 --device fake --budget 240"
    )
    code, _, err = run(capsys, "duel", "nanotrack")
    assert code == 2
    assert "a duel needs two nets" in err and "--set" in err


def test_two_sizes_are_no_duel(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "duel", "nanotrack", "lighttrack_mobile")
    assert code == 2
    assert "255 px and 256 px" in err and "--size N" in err


# diff -----------------------------------------------------------------------------------------------------------


def test_diff_of_two_timings_begins_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "bench", "nanotrack", "--form", "both")
    ids = {r.inputs["form"]: r.id for r in stored() if r.name == "nanotrack"}
    assert main(["diff", str(ids["train"]), str(ids["deploy"])]) == 0
    out = capsys.readouterr().out
    why = next(line for line in out.splitlines() if line.startswith("why: "))
    assert "ms was the unfused train form" in why
    assert out.index("why: ") < out.index("inputs.form")
    main(["diff", str(ids["train"]), str(ids["deploy"]), "--json", "-"])
    items = json.loads(capsys.readouterr().out)
    assert "unfused train form" in items[0]["why"]
    assert any(item["path"] == "inputs.form" for item in items)


# an older protocol ----------------------------------------------------------------------------------------------


def as_protocol_1(*names: str) -> list[int]:
    """The stored timings of these nets once more, as an older version wrote them."""
    found = [r for r in stored() if r.name in names]
    with Store.open(Lab().store_path) as store:
        return store.add_many(
            [
                NewRun(
                    "timing", r.spec_id, r.name, "0.1.0", {k: v for k, v in r.inputs.items() if k != "protocol"},
                    {k: v for k, v in r.result.items() if k not in ("warm", "cold", "paced", "protocol")},
                )
                for r in found
            ]
        )  # fmt: skip


def test_a_diff_of_two_protocols_begins_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "bench", "nanotrack")
    new = next(r.id for r in stored() if r.name == "nanotrack")
    (old,) = as_protocol_1("nanotrack")
    for ids in ((old, new), (new, old)):
        assert main(["diff", *map(str, ids)]) == 0
        why = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("why: "))
        assert why.startswith("why: measured by another protocol: ")
        assert "protocol 1 (cold, mixed)" in why and "bblab bench --again" in why


def test_again_measures_what_an_older_protocol_timed_in_one_session(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "bench", "nanotrack", "mobileone_s0@s16", "--form", "both")
    rows = stored()
    monkeypatch.setenv("BBLAB_LAB", str(tmp_path / "older"))
    with Store.open(Lab().store_path) as store:
        for r in rows:
            inputs = {k: v for k, v in r.inputs.items() if k != "protocol"}
            is_changed = r.name == "mobileone_s0@s16" and r.inputs["form"] == "train"
            store.add("timing", spec_id="0" * 12 if is_changed else r.spec_id, name=r.name, code_version="0",
                      inputs=inputs, result={"ratio": 1.0, "cpu_p10_s": 1.0})  # fmt: skip
    code, _, err = run(capsys, "bench", "--again")
    assert code == 1
    assert "not measured again: mobileone_s0@s16: its spec has changed since run" in err
    new = [r for r in stored() if r.inputs.get("protocol") == 2]
    assert {(r.name, r.inputs["form"]) for r in new} == {
        ("nanotrack", "deploy"), ("nanotrack", "train"), ("mobileone_s0@s16", "deploy"), ("resnet18", "deploy")
    }  # fmt: skip
    assert len({r.result["session"] for r in new}) == 1
    # and what has been measured again is not asked for any more
    code, _, err = run(capsys, "bench", "--again")
    assert code == 1 and "its spec has changed" in err and len(stored()) == len(rows) + len(new)


def test_again_on_a_device_without_old_timings_names_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "bench", "nanotrack")
    code, _, err = run(capsys, "bench", "--again")
    assert code == 2
    assert "no timing of fake is left that an older protocol measured" in err and "bblab bench SPEC" in err
    run(capsys, "bench", "mobileone_s0@s16", "--size", "127")
    monkeyed = next(r for r in stored() if r.name == "mobileone_s0@s16")
    with Store.open(Lab().store_path) as store:
        inputs = {k: v for k, v in monkeyed.inputs.items() if k != "protocol"} | {"device": "pixel"}
        store.add("timing", spec_id=monkeyed.spec_id, name=monkeyed.name, code_version="0", inputs=inputs,
                  result={"ratio": 1.0, "cpu_p10_s": 1.0})  # fmt: skip
    _, _, err = run(capsys, "bench", "--again")
    assert "there are some of pixel: --device pixel" in err


# budgets --------------------------------------------------------------------------------------------------------


def test_sessions_share_a_budget_conversions_included_and_leave_over(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    now = [0.0]

    def fake_run(candidates: Any, references: Any, **how: Any) -> Any:
        shares.append(how["plan"].budget_s)
        now[0] += 10.0
        raise RunError("nothing")

    monkeypatch.setattr(sessions.session, "run", fake_run)
    races = [sessions.Race((), (), runtime) for runtime in ("ort", "ncnn", "torch")]
    list(sessions.run(races, plan=sessions.Plan(budget_s=60.0), clock=lambda: now[0]))
    # 60 / 3; then 50 for two; then 40 for the last
    assert shares == [20.0, 25.0, 40.0]
    shares.clear()
    # 50 s are gone before: the first has 10 / 3 and takes 10, the others are not reached
    outcomes = list(sessions.run(races, plan=sessions.Plan(budget_s=60.0), clock=lambda: now[0], spent_s=50.0))
    assert shares == [pytest.approx(10 / 3)]
    assert [outcome.problem is None for outcome in outcomes] == [False, True, True]


def test_what_the_budget_did_not_reach_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(candidate: Any, runtime: Any) -> Model:
        if runtime.name == "ncnn" and candidate.spec == "nanotrack":
            time.sleep(30)
        return Model(Path("x"), "sha-" + candidate.key, 10, 1e-7)

    monkeypatch.setattr(models, "is_remembered", lambda net, runtime: runtime.name == "ort")
    monkeypatch.setattr(models, "converted", slow)
    words = ("bench", "mobileone_s0@s16", "nanotrack", "--runtime", "ort,ncnn", "--budget", "4")
    began = time.monotonic()
    code, out, err = run(capsys, *words)
    assert time.monotonic() - began < 20
    assert code == 1
    assert "not reached in 4 s, ncnn, 1 thread: nanotrack deploy" in err
    assert "ranking, ncnn: mobileone_s0@s16 deploy < resnet18 deploy" in out


def test_progress_of_several_sessions_foretells_them_all() -> None:
    told: list[Any] = []
    race = sessions.Race((), (), "ncnn", 2)
    now = [0.0]
    tell = sessions._Teller(lambda *what: told.append(what), race, 1, 3, lambda: now[0])
    tell(0, 30, None, "process 1 of 6")
    now[0] = 10.0
    tell(5, 30, 50.0, "process 2 of 6")
    # 50 s of this one, and 60 for the one to come
    assert told[-1] == (5, 30, 110.0, "session 2 of 3, ncnn, 2 threads: process 2 of 6")


def test_of_one_process_no_interval_is_printed(bblab: Any) -> None:
    ran = bblab("bench", "nanotrack", "mobileone_s0@s16", "--json", "-", "--device", "fake")
    assert ran.code == 0, ran.err
    rows = [{**row, "processes": 1} for row in json.loads(ran.out)["latency"]]
    page = reports.find("bench", Lab().rooms)(rows)
    at = [c.key for c in page.table.columns].index("ratio")
    ratios = [cells[at] for cells in page.table.cells if cells[at] != "the reference"]
    assert len(ratios) == 2 and all(text.endswith("(no interval)") for text in ratios)
    assert any("at least 2 are needed" in note for note in page.notes)
