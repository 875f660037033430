"""The lines between a worker and its host: what is said arrives, what is broken is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bblab.latency import wire

MESSAGES = [
    wire.Hello("ort", "1.32.0", "float32", "fake"),
    wire.Ready(3),
    wire.Ready(3, 1, 0.1),
    wire.Speed(0, 0.003125, 0.003),
    wire.Call(0, 2, "cold", 0.012, 0.0119),
    wire.Call(0, 2, "warm", 0.012, 0.0119, 3),
    wire.Layer(0, 2, 1, 7, "conv_12", "Convolution", 0.0004),
    wire.Stage(3, "paced", "backbone", 0.004, 0.0039),
    wire.Note("photo", "astronaut"),
    wire.End(5),
    wire.Failure('no such file: "ä.onnx"\nsecond line'),
    wire.Failure("no such operator", 2),
]
REQUEST = wire.Request("ort", 1, 5, 0, (wire.ModelFile("a", "/a.onnx", (1, 3, 8, 8)),), ((0,), (0,)))


@pytest.mark.parametrize("message", MESSAGES, ids=wire.encode)
def test_round_trip(message: wire.Message) -> None:
    line = wire.encode(message)
    assert "\n" not in line
    assert wire.parse(line + "\n") == message


def test_a_request_makes_the_round_trip() -> None:
    assert wire.parse_request(wire.encode_request(REQUEST) + "\n") == REQUEST


def test_a_whole_request_makes_the_round_trip() -> None:
    asked = wire.Request(
        "ort", 2, 5, 3, REQUEST.models, ((0,),), "stages", 4, 0.01, 0.04, 3, (4, 5), 0.05, {"paces": ["warm"]}
    )
    assert wire.parse_request(wire.encode_request(asked)) == asked


def test_a_visit_has_one_cold_and_three_warm_calls() -> None:
    assert REQUEST.visit == ("cold", "warm", "warm", "warm")
    assert replace(REQUEST, paced_calls=2, probe="layers").visit[4:] == ("paced", "paced", *["profiled"] * 3)


def test_foreign_lines_are_passed_over() -> None:
    for line in ("", "WARNING: linker: unused DT entry", '{"kind": "call"}', "bblab is slow"):
        assert wire.parse(line) is None


def test_a_message_glued_to_foreign_text_is_found() -> None:
    assert wire.parse("no newline here" + wire.encode(wire.Ready(1))) == wire.Ready(1)


def test_a_line_cut_anywhere_is_an_error_not_a_sample() -> None:
    line = wire.encode(wire.Call(3, 1, "warm", 0.0123, 0.0122))
    for end in range(len(wire.TAG), len(line)):
        with pytest.raises(wire.WireError, match="cannot be read"):
            wire.parse(line[:end])


CALL = 'BBLAB {"kind": "call", "round": %s, "model": 0, "state": "warm", '


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('BBLAB {"kind": "cal", "round": 0}', "its kind is none of"),
        (CALL % 0 + '"wall_s": 1.0}', "without 'cpu_s'"),
        (CALL % 0 + '"wall_s": "1", "cpu_s": 1}', "'wall_s' is '1', not float"),
        (CALL % 0 + '"wall_s": NaN, "cpu_s": 1}', "'wall_s' is nan"),
        (CALL % 0 + '"wall_s": -1.0, "cpu_s": 1}', "'wall_s' is -1.0"),
        (CALL % 0.5 + '"wall_s": 1, "cpu_s": 1}', "'round' is 0.5"),
        (
            'BBLAB {"kind": "call", "round": 0, "model": 0, "state": 1, "wall_s": 1, "cpu_s": 1}',
            "'state' is 1, not str",
        ),
        (wire.encode(wire.Hello("ort", "1", "float32", "f", wire=99)), "wire 99"),
        (wire.encode(wire.Hello("ort", "1", "float32", "f", protocol=3)), "measures by protocol 3"),
        # a runner or worker of the first protocol knows no such key
        (
            'BBLAB {"kind": "hello", "wire": 1, "runtime": "ncnn", "runtime_version": "1", "precision": "float32", '
            '"speedometer": "x"}',
            "measures by protocol 1 .wire 1., this bblab by protocol 2",
        ),
    ],
)
def test_broken_lines_say_why(line: str, why: str) -> None:
    with pytest.raises(wire.WireError, match=why):
        wire.parse(line)


def test_broken_requests_say_why() -> None:
    whole = wire.encode_request(REQUEST)
    for line in ("", whole[:-5], "{}"):
        with pytest.raises(wire.WireError, match="not a request"):
            wire.parse_request(line)
    with pytest.raises(wire.WireError, match="version 7"):
        wire.parse_request(whole.replace('"wire": 2', '"wire": 7'))
    with pytest.raises(wire.WireError, match="every model once"):
        wire.parse_request(whole.replace("[[0], [0]]", "[[0], [0, 0]]"))
