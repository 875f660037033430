"""Operators brought home to the rows of a spec, whatever a runtime calls them, and nothing lost on the way."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Generator, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bblab import reports
from bblab.errors import BblabError
from bblab.lab import Lab, benching
from bblab.latency import Candidate, Plan, devices, models, perop, runtimes, wire
from bblab.latency.models import Model
from bblab.latency.perop import NOWHERE, Layer, Place, ncnn_modules, place_of, tabulate
from bblab.latency.runtimes import openvino, ort
from bblab.store import Store

PLACES = [
    Place("s2", "s2.0", "s2.0", "conv", macs=4_000_000),
    Place("s4", "s4.0", "s4.0", "dwsep", macs=1_000_000),
    Place("s4", "s4.1", "s4.1", "dwsep", macs=1_000_000),
    Place("s4", "s4.10", "s4.10", "dwsep"),
]


# Names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "module"),
    [
        ("/s8/s8.0/point/conv/Conv_output_0_nchwc", "s8.0.point.conv.Conv_output_0_nchwc"),
        ("fused /s8/s8.0/se/reduce/Gemm", "s8.0.se.reduce.Gemm"),
        ("/net/blocks/blocks.0/blocks.0.0/conv_pw/Conv", "net.blocks.0.0.conv_pw.Conv"),
        ("/stem/stem.0/act/Mul/QuickGeluFusion/", "stem.0.act.Mul.QuickGeluFusion"),
    ],
)
def test_a_scoped_name_is_the_path_of_its_module(scope: str, module: str) -> None:
    assert runtimes.module_path(scope) == module


def test_a_place_is_found_by_whole_words() -> None:
    assert [place_of(m, PLACES) for m in ("s4.1.conv", "s4.10.conv", "s4.1", "s4.11.conv", "", "x")] == [
        PLACES[2], PLACES[3], PLACES[2], None, None, None
    ]  # fmt: skip


def node(name: str, op: str, inputs: list[str], outputs: list[str]) -> Any:
    return SimpleNamespace(name=name, op_type=op, input=inputs, output=outputs)


def test_nodes_without_a_name_are_told_by_what_they_write_or_whose_data_they_move() -> None:
    graph = SimpleNamespace(
        node=[
            node("ReorderInput", "ReorderInput", ["input"], ["t0"]),  # in front: belongs to who reads it
            node("/s2/s2.0/conv/Conv_output_0_nchwc", "Conv", ["t0", "w"], ["t1"]),
            node("ReorderOutput_token_3", "ReorderOutput", ["t1"], ["/s2/s2.0/conv/Conv_output_0"]),
            node("", "HardSigmoid", ["/s2/s2.0/conv/Conv_output_0"], ["_inl_HS"]),
            node("", "Mul", ["_inl_HS"], ["/s4/s4.0/act/HardSwish_output_0"]),
            node("odd", "Shape", ["elsewhere"], ["out"]),
        ]
    )
    found = ort.origins(graph)
    assert [(module, told) for _, module, told in found] == [
        ("s2.0.conv.Conv_output_0_nchwc", "neighbour"),
        ("s2.0.conv.Conv_output_0_nchwc", "name"),
        ("s2.0.conv.Conv_output_0", "output"),
        ("s2.0.conv.Conv_output_0", "neighbour"),
        ("s4.0.act.HardSwish_output_0", "output"),
        ("", ""),
    ]
    assert found[3][0] == "(HardSigmoid)"


def test_events_of_a_profile_are_added_up_run_by_run() -> None:
    def event(name: str, ts: int, dur: int, cat: str = "Node") -> dict[str, Any]:
        return {"name": name, "ts": ts, "dur": dur, "cat": cat, "args": {"op_name": "Conv"}}

    events = [
        event("model_loading_uri", 0, 9, "Session"),
        event("model_run", 100, 50, "Session"),
        event("n1_kernel_time", 101, 10),
        event("n0_kernel_time", 120, 20),
        event("n0_fence_before", 119, 1),
        event("model_run", 200, 50, "Session"),
        event("n1_kernel_time", 201, 12),
        event("n0_kernel_time", 220, 20),
        event("n0_kernel_time", 245, 2),  # in a loop: twice in one run
    ]
    found = ort.layer_times(events, [("zero", "s4.0", "name"), ("one", "s2.0", "name")])
    assert [(a.name, [round(s * 1e6) for s in a.seconds]) for a in found] == [("one", [10, 12]), ("zero", [20, 22])]


def test_openvino_counters_keep_kernels_and_skip_what_did_not_run() -> None:
    us = lambda n: timedelta(microseconds=n)  # noqa: E731
    run = [
        ("input_abcd_acdb_/s2/s2.0/conv/Conv", "Reorder", "reorder_f32", "Status.EXECUTED", us(5)),
        ("/s2/s2.0/conv/Conv", "Convolution", "jit_f32", "Status.EXECUTED", us(20)),
        ("/s4/s4.0/act/Relu", "Relu", "undef", "Status.NOT_RUN", us(0)),
        ("257", "Subgraph", "jit_f32", "Status.EXECUTED", us(3)),
    ]
    found = openvino.layer_times([run, run])
    assert [(a.op, a.module, a.told_by, a.kernel) for a in found] == [
        ("Reorder", "s2.0.conv.Conv", "neighbour", "reorder_f32"),
        ("Convolution", "s2.0.conv.Conv", "name", "jit_f32"),
        ("Subgraph", "s2.0.conv.Conv", "neighbour", "jit_f32"),
    ]
    assert found[1].seconds == pytest.approx((20e-6, 20e-6))


PARAM = """7767517
6 6
Input            in0       0 1 in0
Convolution      conv_0    1 1 in0 1 0=16 6=432
HardSwish        hswish_1  1 1 1 2 0=0.1
InnerProduct     fcrelu_0  1 1 2 3 0=8 1=1 2=128 9=1
Convolution      conv_9    1 1 3 4 0=16 6=99
ConvolutionDepthWise convdw_0 1 1 4 5 0=16 6=144
"""


def test_ncnn_layers_are_matched_by_their_weights() -> None:
    # 3x3x3x16 = 432, 16x8 = 128, 3x3x16 = 144; 99 weights are nobody's
    found = ncnn_modules(PARAM, [("s2.0.conv", 432), ("s4.0.se.reduce", 128), ("s4.1.depth", 144)])
    assert found == {
        "conv_0": "s2.0.conv", "hswish_1": "s2.0.conv", "fcrelu_0": "s4.0.se.reduce", "conv_9": "",
        "convdw_0": "s4.1.depth",
    }  # fmt: skip


class Speaking:
    """A device whose worker tells layers: conv_0 of 4 us, then odd_1 of 1 us, in a call of 6 us."""

    name = "speaking"
    waits = False

    def __init__(self, names: tuple[str, str] = ("conv_0", "odd_1"), overhead_s: float = 0.0) -> None:
        self.asked: list[wire.Request] = []
        self.names, self.overhead_s = names, overhead_s

    def __enter__(self) -> Speaking:
        return self

    def __exit__(self, *_: object) -> None: ...

    def send(self, path: Path) -> str:
        return str(path)

    def conditions(self) -> dict[str, Any]:
        return {"absent": []}

    def layers(self) -> list[tuple[str, str, float, str, str]]:
        """Name, type, seconds, module and how it is known."""
        return [(self.names[0], "Convolution", 4e-6, "", ""), (self.names[1], "Permute", 1e-6, "", "")]

    whole_s = 6e-6

    def run(self, request: wire.Request, *, silence_s: float) -> Generator[wire.Message]:
        self.asked.append(request)
        assert request.probe == "layers"
        yield wire.Hello(request.runtime, "1.0", "float32", "xorshift")
        yield wire.Ready(1)
        for number in range(request.rounds):
            yield wire.Speed(number, 3e-3, 3e-3)
            for state in request.visit:
                yield wire.Call(number, 0, state, self.whole_s, self.whole_s)
            for call in range(request.warm_calls):
                for place, (name, kind, seconds, module, told_by) in enumerate(self.layers()):
                    yield wire.Layer(number, 0, call, place, name, kind, seconds, module, told_by)
        yield wire.Speed(request.rounds, 3e-3, 3e-3)
        if self.overhead_s:
            yield wire.Note("overhead_s 0", repr(self.overhead_s))
        yield wire.End(request.rounds)


def candidate() -> Candidate:
    return Candidate("net", "net", "deploy", (3, 9, 9), "net", lambda: pytest.fail("not needed"))


def test_the_layers_of_a_worker_become_a_table(
    converted: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bblab.latency.runtimes.ncnn.Ncnn.version", lambda self: "1.0")
    monkeypatch.setattr(perop, "modules_in", lambda path, weighted: {"conv_0": "s2.0.conv"})
    device = Speaking()
    found, problem = perop.measure(candidate(), PLACES, device=device, runtime="ncnn", plan=Plan(processes=2, rounds=3))
    assert problem is None and found is not None
    assert [(a.name, a.op, a.module, a.told_by, a.seconds) for a in found.table.layers] == [
        ("conv_0", "Convolution", "s2.0.conv", "weights", pytest.approx(4e-6)),
        ("odd_1", "Permute", "", "", pytest.approx(1e-6)),
    ]  # fmt: skip
    # three rounds of three warm calls, and as many with the clock on each layer
    assert [len(p) for p in found.wall_s] == [9, 9]
    assert [len(p) for p in found.table.layers[0].samples_s] == [9, 9]
    assert found.whole_s == pytest.approx(6e-6)
    assert (found.device, found.to_json()["protocol"]) == ("speaking", 2)


def test_a_specs_weights_are_listed_as_the_net_runs_them(lab: Path) -> None:
    opened = Lab()
    found = benching.weighted(opened, opened.spec("nanotrack"), "deploy", (3, 63, 63))
    # stem 3x3x3x16; the first unit: 3x3 depthwise of 16, a gate of 16 to 8 and back, 1x1 16 to 16
    assert found[:5] == [
        ("stem.0.conv", 432), ("stage1.0.depth.conv", 144), ("stage1.0.se.reduce", 128), ("stage1.0.se.expand", 128),
        ("stage1.0.project.conv", 256),
    ]  # fmt: skip


def test_a_model_that_is_no_ncnn_file_has_no_modules(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no zip")
    assert perop.modules_in(tmp_path / "x", []) == {}
    with zipfile.ZipFile(tmp_path / "y", "w") as packed:
        packed.writestr("model.ncnn.param", PARAM)
    assert perop.modules_in(tmp_path / "y", [("a", 432)])["conv_0"] == "a"


# The table ------------------------------------------------------------------------------------------------------


def layers() -> list[Layer]:
    return [
        Layer("a", 2e-3, "Conv", "s2.0.conv"),
        Layer("b", 1e-3, "Conv", "s4.0.depth"),
        Layer("c", 0.5e-3, "Relu", "s4.1.act"),
        Layer("d", 0.5e-3, "Cast", ""),
    ]


def test_nothing_is_dropped_and_shares_add_up() -> None:
    table = tabulate(layers(), PLACES)
    assert table.sum_s == pytest.approx(4e-3)
    for parts in (table.stages, table.rows, table.ops):
        assert sum(p.seconds for p in parts) == pytest.approx(4e-3)
        assert sum(p.share for p in parts) == pytest.approx(1)
        assert sum(p.count for p in parts) == 4
    assert [p.name for p in table.stages] == ["s2", "s4", NOWHERE]
    assert [p.name for p in table.ops] == ["Conv", "Relu", "Cast"]
    assert [layer.name for layer in table.unmapped] == ["d"]
    assert table.stages[0].macs_per_s == pytest.approx(2e9)  # 4 M in 2 ms
    assert table.stages[1].macs == 2_000_000


def test_what_the_profile_costs_is_taken_off_each_operator_but_never_below_nothing() -> None:
    layer = perop.summed_up("x", ((3e-6, 5e-6), (4e-6,)), overhead_s=2e-6)
    assert (layer.seconds, layer.low_s) == (pytest.approx(2e-6), pytest.approx(1.2e-6))  # median 4, p10 3.2
    assert perop.summed_up("x", ((1e-6,),), overhead_s=2e-6).seconds == 0


# Measuring ------------------------------------------------------------------------------------------------------


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "is_remembered", lambda *_: True)
    monkeypatch.setattr(models, "converted", lambda c, r: Model(Path("net.x"), "sha", 10, 1e-7))


class FakeHost(Speaking):
    """The host, whose workers number the layers that move data anew: 8 + 2 + 0.1 ms of an 11 ms call."""

    name = "host"
    whole_s = 11e-3
    every: list[wire.Request] = []  # noqa: RUF012

    def __init__(self, address: str = "") -> None:
        super().__init__(overhead_s=1e-6)
        self.asked = FakeHost.every

    def layers(self) -> list[tuple[str, str, float, str, str]]:
        return [
            ("a", "Conv", 8e-3, "stem.0.conv", "name"),
            (f"Reorder_token_{len(self.asked)}", "Reorder", 2e-3, "stage1.0.x", "neighbour"),
            ("lost", "Shape", 1e-4, "", ""),
        ]


@pytest.fixture
def asked(converted: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[wire.Request]]:
    """What the measuring processes were asked."""
    monkeypatch.setattr(FakeHost, "every", [])
    devices.kinds()
    real = devices.DEVICES["host"]
    devices.DEVICES.add("host", FakeHost, replace=True)
    devices.DEVICES.add("elsewhere", FakeHost, replace=True)
    yield FakeHost.every
    devices.DEVICES.add("host", real, replace=True)
    del devices.DEVICES._items["elsewhere"]


def test_operators_of_several_processes_are_one_although_they_are_numbered_anew(
    asked: list[Any], bblab: Callable[..., Any]
) -> None:
    done = bblab("bench", "nanotrack", "--per-op", "--json", "-")
    row = json.loads(done.out)["operators"][0]
    assert len(asked) == perop.PLAN.processes
    assert [o["name"] for o in row["operators"]] == ["a", "Reorder_token_1", "lost"]
    assert row["operators"][0]["median_s"] == pytest.approx(8e-3 - 1e-6)
    assert row["sum_as_profiled_s"] == pytest.approx(10.1e-3)
    assert row["sum_over_whole"] == pytest.approx((10.1e-3 - 3e-6) / 11e-3)
    assert (row["unmapped"], row["rows"][-1]["name"]) == (["lost"], NOWHERE)


def test_a_person_reads_rows_operators_the_sum_and_what_was_not_mapped(
    asked: list[Any], bblab: Callable[..., Any]
) -> None:
    done = bblab("bench", "nanotrack", "--per-op")
    assert done.code == 0
    assert "sum of 3 operators 10.097 ms (10.100 as profiled, which adds 1.0 us to each; 91.8% of the whole" in done.out
    assert "not mapped to a row (0.099 ms): lost" in done.out
    assert "1 operators that only move data (19.8%)" in done.out
    assert "stored as run 1" in done.out
    with Store.open(Lab().store_path, read_only=True) as store:
        run = store.runs(kind="operators")[0]
        assert (run.name, run.inputs["runtime"]) == ("nanotrack", "ort")
        # every sample: 3 processes x 10 rounds x 3 calls of 3 operators
        assert len(store.samples(run.id)["operators_s"]) == 270
        assert run.inputs["protocol"] == 2


def test_processes_that_ended_before_they_reported_operators_are_no_table(converted: None) -> None:
    class Mute(Speaking):
        def layers(self) -> list[tuple[str, str, float, str, str]]:
            return []

    plan = Plan(processes=2, rounds=3)
    found, problem = perop.measure(candidate(), PLACES, device=Mute(), runtime="ort", plan=plan)
    assert found is None and problem is not None
    assert "net: measuring ended before the worker had reported the times of its operators" in problem.message


def test_operators_are_measured_wherever_bench_runs(asked: list[Any], bblab: Callable[..., Any]) -> None:
    done = bblab("bench", "nanotrack", "--per-op", "--device", "elsewhere")
    assert (done.code, done.err, len(asked)) == (0, "", perop.PLAN.processes)


def test_ctrl_c_keeps_the_finished_processes(
    asked: list[Any], bblab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeHost.layers

    def layers(self: FakeHost) -> Any:
        if len(self.asked) == 3:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(FakeHost, "layers", layers)
    done = bblab("bench", "nanotrack", "mobileone_s0@s16", "--per-op", "--json", "-")
    assert done.code == 1
    (row,) = json.loads(done.out)["operators"]  # and the second net is not begun
    assert (row["processes"], row["notes"]) == (2, ["stopped by hand after 2 process(es)"])


def test_parts_that_do_not_add_up_are_said_so() -> None:
    row = {
        "label": "x deploy", "device": "host", "runtime": "ort", "runtime_version": "1", "precision": "float32",
        "threads": 1, "input": [3, 9, 9], "processes": 1, "calls": 3, "profile_adds_s_an_operator": 0.0,
        "sum_as_profiled_s": 1.0, "sum_over_whole": 0.5, "whole_s": 2.0, "whole_cpu_p50_s": 1.9, "wall_over_cpu": 1.0,
        "notes": [], **tabulate([Layer("a", 1.0, "Conv", "s2.0")], PLACES).to_json(),
    }  # fmt: skip
    page = reports.find("per_op", Lab().rooms)([row])
    assert any("DO NOT ADD UP" in note for note in page.notes)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--per-op"], "of which net?"),
        (["nanotrack", "--per-op", "--runtime", "torch"], "torch does not tell the times of its operators"),
        (["nanotrack", "--per-op", "--fps", "30"], "--fps has no meaning with --per-op"),
        (["nanotrack", "--per-op", "--budget", "-1"], "--budget must be seconds above 0"),
        ([], "no spec is named"),
    ],
)
def test_wrong_questions_are_refused_before_anything_runs(
    asked: list[Any], bblab: Callable[..., Any], words: list[str], said: str
) -> None:
    done = bblab("bench", *words)
    assert (done.code, asked) == (2, [])
    assert said in done.err


# For real -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["ort", "openvino"])
def test_a_real_net_is_mapped_whole(lab: Path, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(runtime, runtime))
    monkeypatch.setattr(perop, "PLAN", Plan(processes=1, rounds=2))
    done = Lab().per_op(["nanotrack"], size=63, runtimes=[runtime])
    (row,) = done.rows
    assert row["unmapped"] == []
    # stem, one unit of stage 1, two of stage 2, five of stage 3: every one of them took time
    assert [r["name"] for r in row["rows"]] == [
        "stem.0", "stage1.0", "stage2.0", "stage2.1", *(f"stage3.{i}" for i in range(5))
    ]  # fmt: skip
    assert all(r["seconds"] > 0 and r["macs"] for r in row["rows"])
    convolutions = [o for o in row["operators"] if "Conv" in o["op"]]
    assert len(convolutions) == 1 + 2 + 3 + 3 + 5 * 3  # the first unit does not widen
    assert {o["stage"] for o in convolutions} == {"stem", "stage1", "stage2", "stage3"}


@pytest.mark.slow
def test_a_librarys_net_is_divided_by_its_own_modules(lab: Path) -> None:
    pytest.importorskip("timm")
    opened = Lab()
    found = benching.places(opened, opened.spec("timm:mobilenetv3_small_050@s16"), "deploy", (3, 255, 255))
    assert found[0].stage == "s2"
    assert {"blocks.1.0", "blocks.3.1"} <= {p.row for p in found}
    assert all(p.module.startswith("net.") for p in found)
    assert sum(p.macs for p in found) == pytest.approx(
        opened.analyst.cost(opened.spec("timm:mobilenetv3_small_050@s16"), "deploy", (255, 255)).macs_backbone
    )


def test_an_unknown_spec_is_refused(lab: Path) -> None:
    with pytest.raises(BblabError):
        Lab().per_op(["no_such_net"])
