"""A block's own time is found between its neighbours, choices are compared with intervals, and nets are sums of it."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bblab.errors import BblabError
from bblab.lab import Lab, blocktables
from bblab.latency import blocktable as table
from bblab.latency import devices, models, stats, wire
from bblab.latency.blocktable import BlockTime, Seat
from bblab.latency.devices.host import Host
from bblab.latency.models import Model
from bblab.latency.stats import Estimate
from bblab.latency.values import Candidate
from bblab.store import Store

# What a made-up machine takes: a call, a map brought in, out or copied (a number of its own), a block, the reference.
CALL_S, IN_S, OUT_S, POOL_S, REFERENCE_S = 20e-6, 3e-9, 5e-9, 2e-9, 40e-3


def numel(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def block_s(label: str) -> float:
    """100 us, 5x5 a fifth more; 128 wide three times as much."""
    return 100e-6 * (1.2 if "kernel=5" in label else 1) * (3 if " 128 " in label else 1)


class FakeDevice:
    """Each process has a level of its own that the reference shares, each call its own noise."""

    name = "fake"
    waits = False

    def __init__(self, address: str = "") -> None:
        self.rng = random.Random(3)

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_: object) -> None: ...

    def send(self, path: Path) -> str:
        return str(path)

    def conditions(self) -> dict[str, Any]:
        return {"load_average": [0.1], "absent": []}

    def seconds(self, label: str, given: tuple[int, ...]) -> float:
        way = (IN_S + OUT_S) * numel(given)
        if label.startswith("copy"):
            return CALL_S + way + 2 * POOL_S * numel(given)
        if label.startswith("resnet18"):
            return REFERENCE_S
        seat = label.split()[-1]
        return CALL_S + way + block_s(label) + seat.count("1") * POOL_S * numel(given)

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        yield wire.Hello(request.runtime, "9.9.1", "float32", "fake")
        yield wire.Ready(len(request.models))
        level = math.exp(self.rng.gauss(0, 0.05))
        for number, order in enumerate(request.orders):
            yield wire.Speed(number, 0.003, 0.003)
            for at in order:
                model = request.models[at]
                seconds = level * self.seconds(model.label, model.input) * (1 + 0.002 * self.rng.random())
                for state in request.visit:
                    yield wire.Call(number, at, state, seconds, seconds)
        yield wire.Speed(request.rounds, 0.003, 0.003)
        yield wire.End(request.rounds)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(models, "is_remembered", lambda *_: True)
    monkeypatch.setattr(models, "converted", lambda c, r: Model(Path(f"{c.label}.x"), "sha", 10, 1e-7))
    devices.find("host")
    devices.DEVICES.add("host", FakeDevice, replace=True)
    devices.DEVICES.add("elsewhere", FakeDevice, replace=True)
    yield
    devices.DEVICES.add("host", Host, replace=True)
    del devices.DEVICES._items["elsewhere"]


# The arithmetic -------------------------------------------------------------------------------------------------


def estimate(block: BlockTime) -> float:
    return block.value_s.value


def seat(given: tuple[int, int, int], out: tuple[int, int, int], before: bool = True, after: bool = True) -> Seat:
    key = f"{given}>{out}"
    return Seat(Candidate(key, key, "deploy", given, key, lambda: None), out, before, after)  # type: ignore[arg-type,return-value]


class FakeTiming:
    """As much of a Timing as the arithmetic reads."""

    def __init__(self, *processes: float) -> None:
        self._cpu_s = tuple((2 * s, s) for s in processes)

    def functional(self) -> str:
        return "cpu_min"

    def series(self) -> Any:
        return self._cpu_s


def test_the_parts_of_a_net_add_up_to_one_call_one_way_in_and_one_way_out() -> None:
    # a net of three blocks of 7, 11 and 13 us between maps of these sizes
    maps = [(3, 64, 64), (8, 32, 32), (16, 16, 16), (16, 16, 16)]
    own = [7e-6, 11e-6, 13e-6]
    seats = [seat(a, b, i > 0, i < 2) for i, (a, b) in enumerate(itertools.pairwise(maps))]

    def way(given: tuple[int, ...], out: tuple[int, ...]) -> float:
        return CALL_S + IN_S * numel(given) + OUT_S * numel(out)

    timings: dict[str, Any] = {}
    for s, seconds in zip(seats, own, strict=True):
        pools = POOL_S * sum(map(numel, s.borders()))
        timings[s.key] = FakeTiming(way(s.block.input, s.out) + seconds + pools)
        for shape in s.borders():
            timings[table.copier(shape, "deploy").key] = FakeTiming(way(shape, shape) + 2 * POOL_S * numel(shape))
    found = table.block_times(seats, timings, FakeTiming(1.0))  # type: ignore[arg-type]
    net = way(maps[0], maps[-1]) + sum(own)
    assert sum(b.seconds[0] for b in found.values()) == pytest.approx(net, rel=1e-9)


def test_a_block_between_equal_maps_is_found_exactly() -> None:
    s = seat((8, 32, 32), (8, 32, 32))
    both = CALL_S + (IN_S + OUT_S + 2 * POOL_S) * numel((8, 32, 32))
    timings: Any = {s.key: FakeTiming(both + 50e-6), table.copier((8, 32, 32), "deploy").key: FakeTiming(both)}
    assert estimate(table.block_times([s], timings, FakeTiming(1.0))[s.key]) == pytest.approx(50e-6)  # type: ignore[arg-type]


def test_a_block_without_its_copies_is_left_out() -> None:
    s = seat((8, 32, 32), (8, 32, 32))
    assert table.block_times([s], {s.key: FakeTiming(1.0)}, FakeTiming(1.0)) == {}  # type: ignore[arg-type,dict-item]


def test_the_interval_of_a_mean_is_students() -> None:
    # 1, 2, 3: mean 2, sd 1, t(0.975, 2) = 4.3027, half width 4.3027 / sqrt(3) = 2.4841
    found = stats.mean_interval([1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == (
        2,
        pytest.approx(2 - 2.4841, abs=1e-4),
        pytest.approx(4.4841, abs=1e-4),
    )
    assert stats.mean_interval([1.0]).high == math.inf


def block_time(*seconds: float) -> BlockTime:
    return BlockTime(seat((8, 9, 9), (8, 9, 9)), seconds, seconds)


def test_two_blocks_are_compared_process_by_process() -> None:
    # a machine that doubles its pace in the middle leaves the ratio alone
    a, b = block_time(1e-4, 1e-4, 2e-4, 2e-4), block_time(1.2e-4, 1.2e-4, 2.4e-4, 2.4e-4)
    found = table.ratio_of(b, a)
    assert found is not None
    assert (found.value, found.low, found.high) == tuple(pytest.approx(1.2) for _ in range(3))


def test_a_block_that_is_not_told_from_nothing_is_not_compared() -> None:
    lost = block_time(1e-6, 3e-4, 1e-6, 1e-6)
    assert lost.is_lost
    assert table.ratio_of(lost, block_time(1e-4, 1e-4, 1e-4, 1e-4)) is None
    assert table.ratio_of(block_time(-1e-6, 1e-4), block_time(1e-4, 1e-4)) is None


def sum_of(label: str, measured: float, added: float) -> table.Sum:
    def at(x: float) -> Estimate:
        return Estimate(x, x, x)

    return table.Sum(label, (), at(measured), at(added), at(added / measured - 1))


def test_the_sums_of_several_nets_are_judged_by_bias_spread_and_order() -> None:
    # errors +10 %, 0, +20 %: mean 10, sd 10; b (1.0) and c (1.1) change places: 1.0 and 1.32 keep theirs, a passes b
    found = table.accuracy([sum_of("a", 0.95, 1.045), sum_of("b", 1.0, 1.0), sum_of("c", 1.1, 1.32)])
    assert (found.mean, found.sd, found.worst) == tuple(pytest.approx(x) for x in (0.1, 0.1, 0.2))
    assert (found.turned, found.pairs) == ((("a", "b"),), 3)


# The grid -------------------------------------------------------------------------------------------------------


def test_every_choice_meets_every_other_one(lab: Path) -> None:
    cells = blocktables.grid(Lab(), "kind=mobileone,kernel=3|5,width=64|128,size=32")
    assert [s.name for _, s in cells] == [
        "mobileone kernel=3 64 s1 32px", "mobileone kernel=3 128 s1 32px",
        "mobileone kernel=5 64 s1 32px", "mobileone kernel=5 128 s1 32px",
    ]  # fmt: skip
    assert cells[3][1].input == (128, 32, 32)
    assert cells[3][1].stages[0].rows[0].kwargs == {"kernel": 5}


def test_arguments_may_be_maps_and_channels_may_change(lab: Path) -> None:
    cells = blocktables.grid(
        Lab(), "kind=mobileone,se={ratio: 0.25, gate: hsigmoid}|null,in=32,width=64,size=16,stride=2"
    )
    assert cells[0][1].stages[0].rows[0].kwargs["se"] == {"ratio": 0.25, "gate": "hsigmoid"}
    assert cells[0][1].name == "mobileone se={ratio:0.25 gate:hsigmoid} 32>64 s2 16px"
    assert cells[1][1].stages[0].rows[0].kwargs == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kernel", "'kernel' is no key=value"),
        ("kind=conv,width=8", "size is missing"),
        ("width=8,size=8", "kind is missing"),
        ("kind=conv,width=8|x,size=8", "width='x'"),
        ("kind=conv,width=0,size=8", "width=0"),
        ("kind=conv,kind=dwsep,width=8,size=8", "kind is given twice"),
        ("kind=conv,width=8,size=8,act={", "cannot be read"),
        ("kind=conv,width=8,size=8,act=" + "[" * 5000 + "]" * 5000, "cannot be read: nested deeper than"),
        ("kind=cnv,width=8,size=8", "no block 'cnv'"),
        ("kind=conv,width=8,size=8,colour=red", "no argument 'colour'"),
        ("kind=conv,width=" + "|".join(map(str, range(1, 70))) + ",size=8", "69 blocks"),
        ("kind=conv,width=8|8,size=8", "the same block"),
        ("kind=hr,width=8,size=8", "hr"),
    ],
)
def test_a_wrong_grid_is_refused_in_one_line(bblab: Callable[..., Any], text: str, said: str) -> None:
    done = bblab("bench", "--blocks", text)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""


# The commands ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "words",
    [("--blocks", "kind=mobileone,kernel=3|5,width=64,size=32"), ("nanotrack", "--estimate")],
    ids=("blocks", "estimate"),
)
def test_blocks_and_sums_are_measured_wherever_bench_runs(
    bblab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setattr(Host, "run", lambda *_, **__: pytest.fail("measured here"))
    done = bblab("bench", *words, "--device", "elsewhere", "--json", "-")
    assert done.code == 0, done.err
    rows = json.loads(done.out)[words[0].removeprefix("--") if words[0] == "--blocks" else "estimates"]
    assert rows and {(row["protocol"], row["state"]) for row in rows} == {(2, "warm")}


@pytest.mark.usefixtures("fake")
def test_is_5x5_slower_here(bblab: Callable[..., Any]) -> None:
    done = bblab("bench", "--blocks", "kind=mobileone,kernel=3|5,width=64|128,size=32")
    assert (done.code, done.err) == (0, "")
    assert "mobileone kernel=5 128 s1 32px" in done.out
    lines = [line for line in done.out.splitlines() if line.startswith("kernel 5 against 3")]
    # 120 us against 100, 360 against 300
    assert len(lines) == 2
    assert all(": 1.2" in line or ": 1.19" in line for line in lines)
    assert all(line.endswith("slower") for line in lines)
    with Store.open(Lab().store_path, read_only=True) as store:
        runs = store.runs(kind="block")
        assert len(runs) == 4
        assert {r.inputs["kind"] for r in runs} == {"mobileone"}
        assert {r.inputs["args"].get("kernel", 3) for r in runs} == {3, 5}
        samples = store.samples(runs[0].id)
        assert len(samples["copy0_cpu_s"]) == blocktables.PROCESSES * blocktables.ROUNDS * wire.WARM_CALLS


@pytest.mark.usefixtures("fake")
def test_json_holds_the_blocks_and_the_comparisons(bblab: Callable[..., Any]) -> None:
    done = bblab("bench", "--blocks", "kind=mobileone,kernel=3|5,width=64,size=32", "--json", "-")
    found = json.loads(done.out)
    assert found["blocks"][0]["block_s"] == pytest.approx(100e-6, rel=0.05)
    assert found["blocks"][0]["ratio"] == pytest.approx(100e-6 / REFERENCE_S, rel=0.02)  # the processes' levels cancel
    (c,) = found["comparisons"]
    assert (c["key"], c["first"], c["second"], c["verdict"]) == ("kernel", 3, 5, "slower")
    assert c["ratio_low"] < 1.2 < c["ratio_high"]


@pytest.mark.usefixtures("fake")
def test_nets_stand_beside_the_sums_of_their_blocks(bblab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # nanotrack has nine blocks; the fake net takes what a block takes, so the sum is about nine times too much
    done = bblab("bench", "nanotrack", "--estimate", "--json", "-")
    found = json.loads(done.out)
    (row,) = found["estimates"]
    assert [b["row"] for b in row["blocks"]][:2] == ["stem.0 conv", "stage1.0 mbconv"]
    assert len(row["blocks"]) == 9
    assert row["error"] == pytest.approx(row["added_ratio"] / row["measured_ratio"] - 1, rel=0.02)
    assert all(b["run_id"] for b in row["blocks"])
    assert found["accuracy"][0]["nets"] == 1


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    "argv",
    [["nanotrack", "--estimate"], ["--blocks", "kind=mobileone,kernel=3|5,width=64,size=32"]],
    ids=lambda a: a[-2 if "=" in a[-1] else -1],
)
def test_an_interval_of_one_process_is_said_to_be_missing(
    bblab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argv: list[str]
) -> None:
    # One process has no spread over processes: no number may stand where its interval would.
    monkeypatch.setattr(blocktables, "PROCESSES", 1)
    done = bblab("bench", *argv, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    assert done.code == 0, done.err
    assert "(no interval)" in done.out
    assert "at least 2 are needed" in done.out
    assert "1 process × " in done.out
    for text in (done.out, (tmp_path / "a.csv").read_text(), (tmp_path / "a.json").read_text()):
        assert not re.search(r"\b(inf|nan|infinity)\b", text, re.IGNORECASE), text

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    ends = [v for rows in found.values() for row in rows if isinstance(row, dict)
            for k, v in row.items() if k.endswith(("_low", "_high", "_low_s", "_high_s"))]  # fmt: skip
    assert ends and set(ends) == {None}
    if "--blocks" in argv:  # the two are as large as before, so not "too small to measure"
        assert [c["verdict"] for c in found["comparisons"]] == ["too few processes"]
        assert found["comparisons"][0]["ratio"] == pytest.approx(1.2, rel=0.02)
        assert not any(b["is_lost"] for b in found["blocks"])
        assert "cannot be told from nothing" not in done.out


@pytest.mark.usefixtures("fake")
def test_an_estimate_of_latency_has_a_kind_of_its_own(bblab: Callable[..., Any]) -> None:
    assert bblab("bench", "nanotrack", "--estimate").code == 0
    with Store.open(Lab().store_path, read_only=True) as store:
        (run,) = store.runs(kind="latency_estimate")
        assert run.result["measured_ratio"] > 0
        assert not store.runs(kind="pretrain_estimate")
    listed = bblab("runs", "--kind", "latency_estimate").out
    assert "sum of its blocks" in listed and "× resnet18" in listed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hrnet_w18_small", "--estimate"], "several maps at once"),
        (["nanotrack", "--estimate", "--form", "both"], "one form"),
        (["nanotrack", "--estimate", "--per-op"], "different measurements"),
        (["nanotrack", "--blocks", "kind=conv,width=8,size=8"], "a spec has no meaning with --blocks"),
    ],
)
def test_what_cannot_be_added_up_is_refused(bblab: Callable[..., Any], words: list[str], said: str) -> None:
    done = bblab("bench", *words)
    assert done.code == 2
    assert said in done.err


# For real -------------------------------------------------------------------------------------------------------


def test_a_seated_block_is_the_block_with_two_pools_that_the_runtime_keeps(lab: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from bblab.latency import runtimes

    opened = Lab()
    ((_, spec),) = blocktables.grid(opened, "kind=mobileone,width=16,size=8")
    block = opened.candidate(spec, "deploy", (8, 8))
    made = models.converted(Seat(block, (16, 8, 8)).candidate(), runtimes.find("ort"))
    assert made.rel_error < 1e-4
    ops = [n.op_type for n in onnx.load(str(made.path)).graph.node]
    assert (ops[0], ops[-1], ops.count("MaxPool")) == ("MaxPool", "MaxPool", 2)


def test_blocks_of_several_maps_are_refused_by_name(lab: Path) -> None:
    with pytest.raises(BblabError):
        Lab().bench_estimate(["hrnet_w18_small"])
