"""The spec language: what it means, what it hashes to, and that every mistake is told in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bblab import blocks
from bblab.errors import BblabError, SpecError, near
from bblab.rooms import Rooms
from bblab.spec import (
    MAX_DEPTH,
    MAX_REPEAT,
    MAX_ROWS,
    ArchSpec,
    Row,
    check_type,
    cut_at,
    freeze,
    parse,
    read_yaml,
    resolve,
    thaw,
)

ROOMS = Rooms(Path("/nowhere"))
KINDS = blocks.infos(ROOMS)
STEM = "stages: {stem: {block: conv, out: 8, stride: 2}}\n"
K5 = """
name: k5
defaults: {act: relu, branches: 2}
define:
  k5: {block: mobileone, kernel: 5, se: {ratio: 0.25, gate: hsigmoid}}
stages:
  stem: {block: conv, out: 16, stride: 2}
  s8:
    - {block: k5, out: 32, stride: 4, repeat: 3}
    - {block: k5, kernel: 3}
  s16: {block: conv, out: 64, stride: 2}
"""


def read(text: str, *edits: str) -> ArchSpec:
    return parse(text, KINDS, file="net.yaml", name="net", edits=edits)


def mistakes(text: str, *edits: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(text, *edits)
    return [str(c) for c in caught.value.complaints]


def rows(spec: ArchSpec) -> dict[str, Sequence[Row]]:
    return {stage.name: stage.rows for stage in spec.stages}


# ---------------------------------------------------------------------------------------------- what it means


def test_a_row_wins_over_define_over_defaults_over_the_block() -> None:
    text = """
    defaults: {kernel: 7, act: relu6, dilation: 2}
    define: {d: {block: conv, kernel: 5, act: silu}}
    stages: {a: {block: d, out: 8, kernel: 3, act: gelu}, b: {block: d}, c: {block: conv}}
    """
    a, b, c = (stage.rows[0].kwargs for stage in read(text).stages)
    # kernel 3 is the block's own default: a row that says so needs no argument
    assert a == {"act": "gelu", "dilation": 2}
    assert b == {"kernel": 5, "act": "silu", "dilation": 2}
    assert c == {"kernel": 7, "act": "relu6", "dilation": 2}


def test_defaults_reach_only_the_blocks_that_have_the_argument() -> None:
    spec = read(
        "defaults: {branches: 3}\nstages: {a: {block: conv, out: 8}, b: {block: mobileone}, c: {block: maxpool}}"
    )
    assert [stage.rows[0].kwargs for stage in spec.stages] == [{}, {"branches": 3}, {}]


def test_a_default_that_no_block_has_is_a_mistake() -> None:
    assert mistakes("defaults: {krnel: 5}\n" + STEM) == [
        "net.yaml:1:19: defaults: no block here has an argument 'krnel'\n  " + hint("krnel", arguments())
    ]
    (unused,) = mistakes("defaults: {branches: 5}\n" + STEM)
    assert "no block of this spec has it: remove it" in unused


def arguments() -> set[str]:
    return {p.name for info in KINDS.values() for p in info.params}


def hint(name: str, known: set[str]) -> str:
    said = near(name, known)
    assert said.startswith("did you mean 'kernel'?")
    return said


def test_a_misspelled_block_does_not_make_the_defaults_wrong() -> None:
    (only,) = mistakes("defaults: {act: relu}\nstages: {a: {block: covn, out: 8}}")
    assert "no block 'covn'" in only and "did you mean 'conv'?" in only


def test_only_the_first_of_repeated_rows_takes_the_stride() -> None:
    assert [row.stride for row in rows(read(K5))["s8"]] == [4, 1, 1, 1]


def test_out_left_away_keeps_the_channels() -> None:
    assert [row.out for row in rows(read(K5))["s8"]] == [32, 32, 32, 32]


def test_a_define_is_one_level_deep() -> None:
    (only,) = mistakes("define: {a: {block: b}, b: {block: conv}}\nstages: {s: {block: a, out: 8}}")
    assert "net.yaml:1:21: define a: `define` is one level deep" in only


@pytest.mark.parametrize(
    ("define", "said"),
    [
        ("{k: {}}", "1:10: define k: `block` is missing"),
        ("{k: 5}", "1:13: define k must be a map, read 5"),
        ("{k: {block: [conv]}}", '1:21: define k: block must be a word, read ["conv"]'),
        ("{k: {block: covn}}", "1:21: define k: no block 'covn'"),
        ("{k: {block: conv, krnel: 5}}", "1:27: define k: conv has no argument 'krnel'"),
    ],
)
@pytest.mark.parametrize("use", ["conv", "k"])
def test_a_wrong_define_is_told_once_used_or_not(define: str, said: str, use: str) -> None:
    (only,) = mistakes(f"define: {define}\nstages: {{s: [{{block: {use}, out: 8}}, {{block: {use}}}]}}")
    assert said in only


def test_a_define_may_not_hide_a_block() -> None:
    (only,) = mistakes("define: {conv: {block: dwsep}}\n" + STEM)
    assert "1:10: define: 'conv' is already a block" in only


def test_a_wrong_argument_of_a_define_or_default_is_told_once() -> None:
    three = "stages: {s: [{block: k, out: 8}, {block: k}, {block: k}]}"
    (only,) = mistakes("define: {k: {block: conv, kernel: big}}\n" + three)
    assert only.startswith("net.yaml:1:35: define k: kernel must be a whole number or a list")
    (only,) = mistakes("defaults: {act: 5}\ndefine: {k: {block: conv}}\n" + three)
    assert only == "net.yaml:1:17: defaults: act must be a word or nothing (null), read 5"


@pytest.mark.parametrize("pad", ["same", "valid", "same_unless_strided", "tf_same", "2", "[1, 2]"])
def test_every_padding_policy_is_an_argument(pad: str) -> None:
    (row,) = read(f"stages: {{a: {{block: conv, out: 8, pad: {pad}}}}}").stages[0].rows
    assert row.kwargs.get("pad", "same") == read_yaml(pad, "").plain()


def test_taps_default_to_the_last_stage_and_stand_in_the_order_of_the_stages() -> None:
    three = "stages: {a: {block: conv, out: 8}, b: {block: conv}, c: {block: conv}}\n"
    assert read(three).taps == ("c",)
    assert read(three + "taps: b").taps == ("b",)
    assert read(three + "taps: [c, a, c]").taps == ("a", "c")
    assert [s.name for s in read(three + "taps: [b]").backbone_stages] == ["a", "b"]


def test_a_tracker_has_sizes_and_a_trainer() -> None:
    assert read(STEM).tracker is None
    assert read(STEM).sizes_px.template == 127 and read(STEM).sizes_px.search == 255
    tracker = read(STEM + "tracker: {template: 63, search: 127, for: pysot}").tracker
    assert tracker is not None
    assert (tracker.template, tracker.search, tracker.trainer) == (63, 127, "pysot")


def test_waive_needs_a_reason() -> None:
    assert read(STEM + "waive: {even-map: learned}").waive == (("even-map", "learned"),)
    for empty in ("", "''", "5", "[a]"):
        (only,) = mistakes(STEM + f"waive: {{even-map: {empty}}}")
        assert "net.yaml:2:9: waive even-map: give the reason" in only


@pytest.mark.parametrize("key", ["head", "tracker", "taps", "waive", "defaults", "define", "about"])
def test_a_key_with_nothing_behind_it_is_as_if_left_out(key: str) -> None:
    assert read(f"{key}:\n{STEM}").spec_id == read(STEM).spec_id


def test_the_name_is_the_files_stem_unless_given() -> None:
    assert read(STEM).name == "net"
    assert read("name: other\n" + STEM).name == "other"


@pytest.mark.parametrize("name", ["'a/b'", "'a\\b'", '"a\\nb"', '"\\e[31m"', "x" * 101, "5", "", "[a]"])
def test_a_name_that_would_break_a_file_or_a_terminal_is_refused(name: str) -> None:
    (only,) = mistakes(f"name: {name}\n{STEM}")
    assert only.startswith("net.yaml:1:") and "name" in only


@pytest.mark.parametrize("name", ["1a", "a-b", "a.b", "_a", "é é", "keys", "type", "forward", "train", "head", "taps"])
def test_a_stage_name_that_cannot_be_an_attribute_is_refused(name: str) -> None:
    (only,) = mistakes(f"stages: {{{name}: {{block: conv, out: 8}}}}")
    assert "is not usable" in only


def test_the_refused_stage_names_are_those_of_torch() -> None:
    from torch import nn

    from bblab.spec import _MODULE_WORDS

    own = {word for word in dir(nn.ModuleDict()) if not word.startswith("_")}
    assert own <= _MODULE_WORDS, "torch has grown words: add them"


def test_a_head_stands_under_head_only() -> None:
    (only,) = mistakes("stages: {a: {block: classifier, out: 8}}")
    assert "stage a: classifier is a head" in only
    (only,) = mistakes(STEM + "head: {block: conv}")
    assert "head: conv is no head" in only
    assert len(mistakes(STEM + "head: {block: classifier, repeat: 2}")) == 1
    assert len(mistakes(STEM + "head: {block: classifier, out: [3, 4]}")) == 1


# ---------------------------------------------------------------------------------------------- identity

SAME = {
    "name, about and waive": "name: other\nabout: another text\nwaive: {even-map: because}\n"
    + K5.replace("name: k5", ""),
    "define or inline": K5.replace("block: k5", "block: mobileone, se: {gate: hsigmoid, ratio: 0.25}").replace(
        "stride: 4, repeat: 3}", "stride: 4, repeat: 3, kernel: 5}"
    ),
    "defaults or inline": K5.replace("defaults: {act: relu, branches: 2}", "").replace(
        "block: mobileone,", "block: mobileone, branches: 2,"
    ),
    "explicit default": K5.replace("{block: conv, out: 16,", "{block: conv, out: 16, kernel: 3, act: relu, eps: 1e-5,"),
    "repeat or rows": K5.replace(
        "- {block: k5, out: 32, stride: 4, repeat: 3}",
        "- {block: k5, out: 32, stride: 4}\n    - {block: k5, stride: 1, repeat: 2}",
    ),
    "out given": K5.replace("kernel: 3}", "kernel: 3, out: 32}"),
    "taps given": K5 + "taps: [s16]",
    "input given": K5 + "input: [3, 224, 224]",
    "a list of one row": K5.replace(
        "s16: {block: conv, out: 64, stride: 2}", "s16: [{block: conv, out: 64, stride: 2}]"
    ),
    "block style": K5.replace(
        "s16: {block: conv, out: 64, stride: 2}", "s16:\n    block: conv\n    out: 64\n    stride: 2"
    ),
}
OTHER = {
    "channels": K5.replace("out: 64", "out: 72"),
    "kernel": K5.replace("kernel: 3", "kernel: 7"),
    "stride": K5.replace("stride: 4", "stride: 2"),
    "repeat": K5.replace("repeat: 3", "repeat: 2"),
    "activation": K5.replace("act: relu", "act: relu6"),
    "nested argument": K5.replace("0.25", "0.5"),
    "input": K5 + "input: [3, 256, 256]",
    "tap": K5 + "taps: [s8]",
    "head": K5 + "head: {block: classifier}",
    "tracker": K5 + "tracker: {template: 127, search: 255}",
    "stage name": K5.replace("s16:", "last:"),
    "where a stage ends": K5.replace("    - {block: k5, kernel: 3}", "  s8b:\n    - {block: k5, kernel: 3}"),
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_the_spelling_does_not_change_the_spec_id(text: str) -> None:
    assert text != K5
    assert read(text).spec_id == read(K5).spec_id


@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER)
def test_every_real_difference_changes_the_spec_id(text: str) -> None:
    assert text != K5
    assert read(text).spec_id != read(K5).spec_id


def test_all_these_differences_are_different() -> None:
    assert len({read(text).spec_id for text in OTHER.values()}) == len(OTHER)


@pytest.mark.parametrize(
    ("whole", "point"), [("expand: 4", "expand: 4.0"), ("expand: 6", "eps: 1e-5"), ("eps: 1", "eps: 1.0")]
)
def test_a_whole_number_is_a_float_where_a_float_is_meant(whole: str, point: str) -> None:
    # 6 is mbconv's own `expand`, 1e-5 its `eps`
    one, other = (read(f"stages: {{a: {{block: mbconv, out: 8, {text}}}}}") for text in (whole, point))
    assert one.spec_id == other.spec_id


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "a", [1, [2, 3]], {"a": 1, "b": {"c": [1]}}, [], {}])
def test_a_frozen_argument_thaws_to_what_it_was(value: Any) -> None:
    assert thaw(freeze(value)) == value
    hash(freeze(value))


# ---------------------------------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("edit", "stage", "row", "what"),
    [
        ("s8.0.kernel=7", "s8", 0, {"kernel": 7}),
        ("s8.1.act=silu", "s8", 3, {"act": "silu"}),
        ("s16.kernel=5", "s16", 0, {"kernel": 5}),
        ("s16.0.kernel=5", "s16", 0, {"kernel": 5}),
        ("stages.s16.kernel=5", "s16", 0, {"kernel": 5}),
        ("stages.s16.0.kernel=5", "s16", 0, {"kernel": 5}),
        ("s16={block: conv, kernel: 1}", "s16", 0, {"kernel": 1}),
        ("s16.0={block: conv, kernel: 1}", "s16", 0, {"kernel": 1}),
        ("defaults.act=relu6", "s16", 0, {"act": "relu6"}),
        ("define.k5.kernel=9", "s8", 0, {"kernel": 9}),
        # a nested key of what the define says changes that key alone
        ("s8.0.se.ratio=0.5", "s8", 0, {"se": {"ratio": 0.5, "gate": "hsigmoid"}}),
        ("define.k5.se.ratio=0.5", "s8", 0, {"se": {"ratio": 0.5, "gate": "hsigmoid"}}),
        ("s8.0.se=null", "s8", 0, {}),
    ],
)
def test_set_changes_one_argument(edit: str, stage: str, row: int, what: dict[str, Any]) -> None:
    before, after = read(K5), read(K5, edit)
    kwargs = rows(after)[stage][row].kwargs
    assert kwargs.items() >= what.items() if "null" not in edit else "se" not in kwargs
    assert after.spec_id != before.spec_id
    assert after.name == before.name


def test_set_reaches_the_top_of_a_spec() -> None:
    spec = read(K5, "input=[3, 64, 64]", "taps=[s8]", "tracker.search=303", "tracker.for=pysot", "name=mine")
    assert (spec.input, spec.taps, spec.name) == ((3, 64, 64), ("s8",), "mine")
    assert spec.tracker is not None and (spec.tracker.search, spec.tracker.trainer) == (303, "pysot")


def test_set_adds_a_stage_and_takes_a_head_away() -> None:
    assert [s.name for s in read(K5, "stages.s32={block: conv, out: 96, stride: 2}").stages][-1] == "s32"
    assert read(K5 + "head: {block: classifier}", "head=").spec_id == read(K5).spec_id


def test_set_keeps_what_the_defaults_said_of_a_nested_argument() -> None:
    text = "defaults: {se: {ratio: 0.25, gate: sigmoid}}\nstages: {a: {block: mbconv, out: 8}}"
    assert rows(read(text, "a.se.ratio=0.5"))["a"][0].kwargs["se"] == {"ratio": 0.5, "gate": "sigmoid"}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ("s9.kernel=3", "no stage or top-level key 's9'\n  did you mean 's8'?"),
        ("s8.9.kernel=3", "'9' is no number of one\n  rows are 0 to 1"),
        ("s8.kernel=3", "'kernel' is no number of one\n  rows are 0 to 1"),
        ("s16.1.kernel=3", "stage s16 has one row, numbered 0"),
        ("s16.krnel=3", ":1:11: stage s16: conv has no argument 'krnel'\n  did you mean 'kernel'?"),
        ("s16.kernel.x=3", "kernel must be a whole number"),
        ("s8.0.kernel", "expected PATH=VALUE"),
        ("=3", "expected PATH=VALUE"),
        ("s16.kernel=[", "not YAML"),
        ("s16.kernel=", "kernel must be a whole number"),
        ("s16.kernel=*x", "the alias *x is not part of the spec language"),
        ("s8=3", "stage s8: a row must be a map, read 3"),
        ("stages=5", "stages must be a map, read 5"),
        ("taps=s9", "taps: no stage \"s9\"\n  did you mean 's8'?"),
        ("s16.out=\udcff", "not YAML"),
    ],
)
def test_a_wrong_set_is_told_with_its_text(edit: str, said: str) -> None:
    (only,) = mistakes(K5, edit)
    assert only.startswith(f"--set {edit}:1:") and said in only


# ---------------------------------------------------------------------------------------------- references


def find(reference: str, rooms: Rooms = ROOMS, *edits: str) -> ArchSpec:
    return resolve(reference, rooms, blocks.infos(rooms), edits=edits)


def test_a_cut_ends_at_a_stride_or_a_stage_and_has_no_head() -> None:
    whole = find("mobileone_s0")
    assert whole.head is not None
    at_stride, at_stage = find("mobileone_s0@s16"), find("mobileone_s0@stage3")
    assert at_stride.spec_id == at_stage.spec_id != whole.spec_id
    assert at_stride.head is None and at_stride.taps == ("stage3",) and at_stride.name == "mobileone_s0@s16"


def test_a_stage_called_like_a_stride_is_the_stage() -> None:
    spec = read("stages: {s16: {block: conv, out: 8, stride: 2}, b: {block: conv, stride: 8}}")
    assert [s.name for s in cut_at(spec, "s16").stages] == ["s16"]


def test_a_stride_is_cut_after_its_last_stage() -> None:
    spec = read("stages: {a: {block: conv, out: 8, stride: 4}, b: {block: conv}, c: {block: conv, stride: 2}}")
    assert [s.name for s in cut_at(spec, "s4").stages] == ["a", "b"]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("mobileone_s0@s7", "no stage at stride 7"),
        ("mobileone_s0@stage9", "cannot cut mobileone_s0 at 'stage9'"),
        ("mobileone_s0@", "ends with @"),
        ("timm:resnet18@", "ends with @"),
        ("mobileone_so", "no spec 'mobileone_so'"),
        ("", "no spec ''"),
        ("@s16", "no spec ''"),
        ("timm:", "names no network"),
        ("tim:resnet18", "no library 'tim'"),
        ("./none.yaml", "no file"),
        ("/proc", "is a folder"),
        ("/dev/zero", "endless"),
        ("a\0b.yaml", "null byte"),
        ("/" + "x" * 5000, "too long"),
        ("~nobody_here/x.yaml", "home"),
    ],
)
def test_a_reference_to_nothing_is_told(reference: str, said: str) -> None:
    with pytest.raises(BblabError) as caught:
        find(reference)
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_near_names_are_offered() -> None:
    with pytest.raises(BblabError) as caught:
        find("mobileone_so")
    assert "did you mean 'mobileone_s" in caught.value.hint and "timm:NAME" in caught.value.hint


def test_a_library_net_takes_no_set() -> None:
    with pytest.raises(BblabError, match="--set cannot change timm:resnet18"):
        find("timm:resnet18", ROOMS, "s8.0.kernel=5")
    assert find("timm:resnet18@s16").spec_id != find("timm:resnet18").spec_id


def test_a_path_may_have_an_at_sign(tmp_path: Path) -> None:
    (tmp_path / "a@b").mkdir()
    for path in (tmp_path / "a@b" / "net.yaml", tmp_path / "net@2.yaml"):
        path.write_text(STEM)
        assert find(str(path)).name == path.stem
        assert find(f"{path}@s2").taps == ("stem",)


def test_a_labs_spec_may_use_the_labs_block(lab: Path) -> None:
    (lab / "blocks").mkdir()
    (lab / "arch_specs").mkdir()
    (lab / "blocks" / "own.py").write_text(
        "from torch import nn\nclass Own(nn.Module):\n    def __init__(self, in_ch, out_ch, stride=1, width=3): ...\n"
    )
    (lab / "arch_specs" / "mine.yaml").write_text("stages: {a: {block: own.Own, out: 8, stride: 2, width: 5}}")
    spec = find("mine", Rooms(lab))
    assert spec.stages[0].rows[0].kwargs == {"width": 5}
    assert find("mine@s2", Rooms(lab), "a.width=7").stages[0].rows[0].kwargs == {"width": 7}


# ---------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("no", False),
        ("on", True),
        ("none", "none"),
        ("~", None),
        ("010", 10),
        ("1e-3", 0.001),
        ("2024-01-02", "2024-01-02"),
        ("1:30", "1:30"),
        ("'5'", "5"),
        ("0x10", "0x10"),
        (".nan", ".nan"),
        ("y", "y"),
    ],
)
def test_plain_values_mean_what_they_look_like(written: str, meant: object) -> None:
    value = read_yaml(written, "").plain()
    assert value == meant and type(value) is type(meant)


def test_words_that_yaml_takes_for_switches_are_names() -> None:
    assert [s.name for s in read("stages: {on: {block: conv, out: 8}, yes: {block: conv}}").stages] == ["on", "yes"]


@pytest.mark.parametrize(
    "text",
    [
        STEM.replace("\n", "\r\n"),
        "\ufeff" + STEM,
        "---\n" + STEM + "...\n",
        "%YAML 1.1\n---\n" + STEM,
        "# a comment\n\n" + STEM,
        "? stages\n: {stem: {block: conv, out: 8, stride: 2}}\n",
        '{"stages": {"stem": {"block": "conv", "out": 8, "stride": 2}}}',
    ],
    ids=["crlf", "bom", "markers", "directive", "comment", "explicit key", "json"],
)
def test_every_spelling_of_yaml_is_read(text: str) -> None:
    assert read(text).spec_id == read(STEM).spec_id


HOSTILE = {
    "alias": ("a: &x [1]\nb: *x", "1:4: the anchor &x"),
    "merge": ("<<: {a: 1}\n" + STEM, "1:1: no key '<<'"),
    "python tag": ("!!python/object/apply:os.system ['true']", "1:1: the tag"),
    "omap": ("stages: !!omap [a: 1]", "1:9: the tag"),
    "two documents": ("---\n" + STEM + "---\n" + STEM, "3:1: a second document"),
    "doubled key": ("stages: {a: {block: conv, out: 8},\n a: {block: conv}}", "2:2: the key 'a' stands twice"),
    "doubled top key": (STEM + STEM, "2:1: the key 'stages' stands twice"),
    "empty": ("", "1:1: the file is empty"),
    "only a comment": ("# nothing\n", "1:1: the file is empty"),
    "a list": ("[]", "1:1: a spec must be a map"),
    "a word": ("hello", "1:1: a spec must be a map"),
    "a list as a key": ("? [a]\n: 1", "1:3: a key must be a plain word"),
    "tab": ("stages:\n\ta: {block: conv}", "2:1: not YAML"),
    "open bracket": ("stages: {a: {block: conv\n", "not YAML"),
    "nul": ("\0", "1:1: not YAML"),
    "deep": ("[" * 10_000, f"nested deeper than {MAX_DEPTH} levels"),
    "wide": ("a: [" + "1," * 30_000 + "]", "more than 20,000 values"),
    "long": ("a" * 300_000, "300,000 characters"),
}


# libyaml refuses 1,000 levels by itself since 0.2.6, at a place of its own, before it reports what it has read.
DEEP = {
    "flow lists": ("[" * 10_000, MAX_DEPTH + 1),
    "closed flow lists": ("[" * 5_000 + "]" * 5_000, MAX_DEPTH + 1),
    "flow maps": ("{a: " * 10_000, 4 * MAX_DEPTH + 1),
    "a flow list a line": ("[\n" * 10_000, 1),
    "block lists": ("- " * 10_000 + "1", 2 * MAX_DEPTH + 1),
    "keys": ("? " * 10_000 + "1", 2 * MAX_DEPTH + 1),
    "block maps": ("".join(f"{' ' * i}a:\n" for i in range(700)), MAX_DEPTH + 1),
    # Three maps are open where the first bracket stands, in column 25.
    "under a stage": ("stages:\n  a: {block: conv, out: " + "[" * 10_000, 25 + MAX_DEPTH - 3),
}


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize(("text", "column"), DEEP.values(), ids=DEEP)
def test_depth_is_refused_by_our_limit_at_its_place(
    text: str, column: int, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = pytest.importorskip("yaml")
    if not hasattr(yaml, loader):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(yaml, "CSafeLoader", getattr(yaml, loader), raising=False)
    (only,) = mistakes(text)
    place, said = only.split(": ", 1)
    assert said == f"nested deeper than {MAX_DEPTH} levels"
    assert int(place.rsplit(":", 1)[1]) == column


def test_what_libyaml_stops_at_never_hides_an_earlier_refusal() -> None:
    (only,) = mistakes("a: !!python/object/apply:os.system [" + "[" * 2_000)
    assert "1:4: the tag" in only


@pytest.mark.parametrize(("text", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_refused_in_its_place(text: str, said: str) -> None:
    (only,) = mistakes(text)
    assert said in only


def test_a_tab_gets_its_own_hint() -> None:
    assert "no tabs: indent with spaces" in mistakes("stages:\n\ta: {block: conv}")[0]


def test_a_million_repeats_cost_nothing() -> None:
    (only,) = mistakes("stages: {a: {block: conv, out: 8, repeat: 1000000}}")
    assert f"repeat must be from 1 to {MAX_REPEAT}, read 1000000" in only
    many = ", ".join(f"s{i}: {{block: conv, out: 8, repeat: {MAX_REPEAT}}}" for i in range(40))
    (only,) = mistakes(f"stages: {{{many}}}")
    assert f"more than {MAX_ROWS:,} blocks" in only


# ---------------------------------------------------------------------------------------------- mistakes


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
nam: x
input: [3, 224]
tracker: {template: 255, search: 127, for: pysott}
defaults: {krnel: 3}
stages:
  stem: {block: covn, out: 8}
  a:
    - {block: conv, out: 0, stride: -1, groups: two}
    - {block: maxpool, out: 5, kernl: 2}
  1b: {block: conv}
head: {block: classifer}
taps: [b]
waive: {even-map: }
"""
    found = mistakes(text)
    places = [tuple(map(int, m.split(": ")[0].split(":")[1:])) for m in found]
    assert places == sorted(places)
    assert [line for line, _ in places] == [1, 2, 3, 3, 4, 6, 8, 8, 8, 9, 9, 10, 11, 12, 13]
    said = "\n".join(found)
    for words in (
        "1:1: no key 'nam' at the top of a spec\n  did you mean 'name'?",
        "2:8: input must be [channels, height, width], read [3, 224]",
        "3:10: tracker: search 127 px is smaller than template 255 px",
        "3:44: tracker: no trainer 'pysott'\n  did you mean 'pysot'?",
        "4:19: defaults: no block here has an argument 'krnel'",
        "6:17: stage stem: no block 'covn'\n  did you mean 'conv'?",
        "8:26: stage a: out must be from 1 to 16,384, read 0",
        "8:37: stage a: stride must be from 1 to 32, read -1",
        '8:49: stage a: groups must be a whole number, read "two"',
        "9:32: stage a: maxpool has no argument 'kernl'\n  did you mean 'kernel'?",
        "10:3: stage name '1b' is not usable",
        "11:15: head: no block 'classifer'\n  did you mean 'classifier'?",
        '12:8: taps: no stage "b"',
        "13:9: waive even-map: give the reason",
    ):
        assert words in said, words


WRONG = {
    "stages: 5": "1:9: stages must be a map, read 5",
    "stages: {}": "1:9: stages is empty",
    "name: x": "1:1: `stages` is missing",
    "stages: {a: }": "1:13: stage a: a row must be a map, read null",
    "stages: {a: []}": "1:10: stage a has no rows",
    "stages: {a: {}}": "1:13: stage a: the row is empty",
    "stages: {a: {out: 8}}": "1:13: stage a: `block` is missing",
    "stages: {a: {block: }}": "1:21: stage a: block must be a word, read null",
    "stages: {a: {block: 5}}": "1:21: stage a: block must be a word, read 5",
    "stages: {a: {block: {conv: 1}}}": "1:21: stage a: block must be a word",
    "stages: {a: {block: conv, out: [8, x]}}": "whole number",
    "stages: {a: {block: conv, out: []}}": "out is an empty list",
    "stages: {a: {block: conv, out: 99999}}": "from 1 to 16,384, read 99999",
    "stages: {a: {block: conv, out: 8.0}}": "1:32: stage a: out must be a whole number, read 8.0",
    "stages: {a: {block: conv, out: true}}": "out must be a whole number, read true",
    "stages: {a: {block: conv, out: 8, pad: no}}": "1:40: stage a: pad must be a word or a whole number",
    "stages: {a: {block: conv, out: 8, kernel: 9999}}": "1:43: stage a: kernel is out of all bounds: 9999",
    "stages: {a: {block: conv, out: 8, kernel: [3, 999]}}": "kernel is out of all bounds: 999",
    "stages: {a: {block: conv, out: 8, dilation: 9999}}": "dilation is out of all bounds",
    "stages: {a: {block: conv, out: 8, eps: 1e400}}": "eps is out of all bounds: inf",
    "stages: {a: {block: conv, out: 8, groups: 99999999999999999999}}": "groups is out of all bounds",
    "stages: {a: {block: mbconv, out: 8, se: {ratio: 1e9}}}": "se is out of all bounds",
    "stages: {a: {block: maxpool, out: 8}}": "1:35: stage a: maxpool keeps its 3 channels, out says 8",
    "stages: {a: {block: crop, stride: 2}}": "1:35: stage a: crop has no stride",
    "input: [0, 224, 224]\n" + STEM: "1:9: input channels must be from 1 to",
    "input: [3, 99999, 224]\n" + STEM: "1:12: input height must be from 1 to",
    "input: [3, 224.0, 224]\n" + STEM: "1:12: input height must be a whole number, read 224.0",
    "input:\n" + STEM: "input must be [channels, height, width], read null",
    "taps: []\n" + STEM: "1:7: taps is empty",
    "taps: [[a]]\n" + STEM: "1:8: taps must be names of stages",
    "tracker: 5\n" + STEM: "1:10: tracker must be a map, read 5",
    "tracker: {template: x}\n" + STEM: "1:21: tracker: template must be a whole number",
    "tracker: {fro: pysot}\n" + STEM: "did you mean 'for'?",
    "waive: [even-map]\n" + STEM: "1:8: waive must be a map",
    "defaults: [1]\n" + STEM: "1:11: defaults must be a map",
    "define: 5\n" + STEM: "1:9: define must be a map",
    "head: conv\n" + STEM: '1:7: head: a row must be a map, read "conv"',
}


@pytest.mark.parametrize(("text", "said"), WRONG.items())
def test_one_mistake_is_one_complaint(text: str, said: str) -> None:
    (only,) = mistakes(text)
    assert only.startswith("net.yaml:") and said in only


@pytest.mark.parametrize(
    ("annotation", "fits", "misfits"),
    [
        ("int", [1], [1.0, True, "1", None, [1]]),
        ("float", [1, 1.5], [True, "1", None]),
        ("bool", [True], [1, "true"]),
        ("str | None", ["a", None], [1, True]),
        ("int | list[int]", [1, [1, 2]], ["a", [1, "b"]]),
        ("Literal['a', 'b']", ["a"], ["c", True, None]),
        ("dict[str, Any] | None", [{"a": 1}, None], [1, "a"]),
        ("Anything[else]", [1, "a"], []),
        ("", [1, "a"], []),
        ("not python (", [1], []),
    ],
)
def test_an_argument_is_held_against_its_annotation(annotation: str, fits: list[Any], misfits: list[Any]) -> None:
    assert [check_type(annotation, v) for v in fits] == [""] * len(fits)
    assert all(check_type(annotation, v) for v in misfits)
