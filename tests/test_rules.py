"""Every design rule: a spec that breaks it, one that does not, and the number it tells. No noise on known nets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bblab.analysis import rules
from bblab.analysis.rules import RULES, Finding
from bblab.errors import BblabError
from bblab.lab import Lab

OWN_BLOCKS = '''
import torch
from torch import nn


class Caffe(nn.Module):
    """A unit whose two paths both stride in a 1x1, as the first ResNets did."""

    def __init__(self, in_ch, out_ch, stride=1):
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(in_ch, out_ch, 1, stride), nn.Conv2d(out_ch, out_ch, 3, 1, 1))
        self.shortcut = nn.Conv2d(in_ch, out_ch, 1, stride)

    def forward(self, x):
        return self.main(x) + self.shortcut(x)


class Spectral(nn.Module):
    """An op that no rule counts."""

    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.mix = nn.Conv2d(in_ch, out_ch, 1)

    def forward(self, x):
        return torch.fft.fft2(self.mix(x)).abs()


class Inception(nn.Module):
    def __init__(self, in_ch, out_ch, paths=4):
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv2d(in_ch, out_ch // paths, 3, 1, 1) for _ in range(paths))

    def forward(self, x):
        return torch.cat([p(x) for p in self.paths], 1)


class Chatty(nn.Module):
    """Much elementwise work."""

    def __init__(self, in_ch, out_ch, times=3):
        super().__init__()
        self.conv, self.times = nn.Conv2d(in_ch, out_ch, 3, 1, 1), times

    def forward(self, x):
        x = self.conv(x)
        for _ in range(self.times):
            x = x * 2
        return x


class Fuses(nn.Module):
    """Two branches and a norm; `fuse` is right, forgets the second bias, is a slight bit off, or fails."""

    def __init__(self, in_ch, out_ch, how="right"):
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(in_ch, out_ch, 3, 1, 1), nn.Conv2d(in_ch, out_ch, 1), how
        nn.init.constant_(self.b.bias, 1.0)

    def forward(self, x):
        return self.a(x) + self.b(x)

    def fuse(self):
        if self.how == "fails":
            raise RuntimeError("shapes do not match")
        a, b = self.a, self.b
        c = nn.Conv2d(a.in_channels, a.out_channels, 3, 1, 1)
        c.weight = nn.Parameter(a.weight + nn.functional.pad(b.weight, [1, 1, 1, 1]))
        c.bias = nn.Parameter(a.bias + b.bias * {"right": 1, "forgets": 0, "slight": 0.999}[self.how])
        return c


class Cross(nn.Module):
    """1x3 and 3x1 beside each other: six weights a pair of channels become nine."""

    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.a, self.b = nn.Conv2d(in_ch, out_ch, (1, 3), 1, (0, 1)), nn.Conv2d(in_ch, out_ch, (3, 1), 1, (1, 0))

    def forward(self, x):
        return self.a(x) + self.b(x)

    def fuse(self):
        c = nn.Conv2d(self.a.in_channels, self.a.out_channels, 3, 1, 1)
        pad = nn.functional.pad
        c.weight = nn.Parameter(pad(self.a.weight, [0, 0, 1, 1]) + pad(self.b.weight, [1, 1, 0, 0]))
        c.bias = nn.Parameter(self.a.bias + self.b.bias)
        return c


class NormOfSum(nn.Module):
    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.c, self.norm = nn.Conv2d(in_ch, out_ch, 3, 1, 1), nn.BatchNorm2d(out_ch)

    def forward(self, x):
        return self.norm(self.c(x) + x.mean())


class Delicate(nn.Module):
    """Large numbers that cancel: what is left is of the size of their rounding."""

    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.c, self.norm = nn.Conv2d(in_ch, out_ch, 1), nn.BatchNorm2d(out_ch)
        nn.init.constant_(self.c.bias, 3e4)

    def forward(self, x):
        y = self.norm(self.c(x))
        return y - y.mean((2, 3), keepdim=True)
'''


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "blocks").mkdir()
    (folder / "blocks" / "own.py").write_text(OWN_BLOCKS)
    return Lab(folder)


Check = Callable[..., list[Finding]]


@pytest.fixture
def check(lab: Lab, tmp_path: Path) -> Check:
    def run(stages: str, *edits: str, head: str = "") -> list[Finding]:
        if "{" not in stages:
            return list(lab.check(stages, edits).findings)
        path = tmp_path / "net.yaml"
        path.write_text(f"name: net\n{head}\nstages: {stages}\n")
        return list(lab.check(str(path), edits).findings)

    return run


TRACKER = "tracker: {template: 127, search: 255}"
STEM = "stem: {block: conv, out: 16, stride: 2}"
# A decent net at stride 8, padded, with a field of view above the template's 127 px.
WIDE = (
    f"{STEM}, a: {{block: conv, out: 32, stride: 2, kernel: 7}}, b: {{block: conv, stride: 2, kernel: 7}}, "
    "c: {block: basic, repeat: 6}"
)

# rule: (stages, head) that break it; (stages, head) that do not; the place; what the message must say
CASES: dict[str, tuple[tuple[str, str], tuple[str, str], str, tuple[str, ...]]] = {
    "forms-differ": (
        (f"{{{STEM}, a: {{block: own.Fuses, out: 16, how: forgets}}}}", ""),
        (f"{{{STEM}, a: {{block: own.Fuses, out: 16}}}}", ""),
        "a", ("another function", "in float32", "in float64")),
    "fuse-failed": (
        (f"{{{STEM}, a: {{block: own.Fuses, out: 16, how: fails}}}}", ""),
        (f"{{{STEM}, a: {{block: own.Fuses, out: 16}}}}", ""),
        "a", ("fuse() failed: RuntimeError: shapes do not match", "train form is taken")),
    "unfused-norm": (
        (f"{{{STEM}, a: {{block: own.NormOfSum, out: 16}}}}", ""),
        (f"{{{STEM}, a: {{block: conv, out: 16}}}}", ""),
        "a.norm", ("not folded", "follows add")),
    "deploy-larger": (
        (f"{{{STEM}, a: {{block: own.Cross, out: 16}}}}", ""),
        (f"{{{STEM}, a: {{block: own.Fuses, out: 16}}}}", ""),
        # stem 3*16*9 + 16 (train: + 16 of the norm); 2 * (3*256 + 16) against 9*256 + 16
        "backbone", ("2,768 parameters instead of 2,032",)),
    "stride-1x1": (
        (f"{{{STEM}, down: {{block: conv, out: 32, kernel: 1, stride: 2}}}}", ""),
        (f"{{{STEM}, down: {{block: basic, out: 32, stride: 2}}}}", ""),  # only the projection strides in a 1x1
        "down", ("stride 2", "25 %")),
    "se-gate": (
        (f"{{{STEM}, a: {{block: mbconv, se: {{gate: sigmoid}}}}}}", ""),
        (f"{{{STEM}, a: {{block: mbconv, se: {{gate: hsigmoid}}, act: silu}}, b: {{block: conv, act: sigmoid}}}}", ""),
        "a", ("hsigmoid",)),
    "no-identity-path": (
        (f"{{{STEM}, a: {{block: mobileone, identity: false, repeat: 9}}}}", ""),
        (f"{{{STEM}, a: {{block: mobileone, repeat: 9}}}}", ""),
        "stem to a.8", ("19 convolutions",)),  # 1 + 9 * 2
    "branches": (
        (f"{{{STEM}, a: {{block: own.Inception, out: 16, paths: 4}}}}", ""),
        (f"{{{STEM}, a: {{block: own.Inception, out: 15, paths: 3}}}}", ""),
        "a", ("4 parallel",)),
    "groups": (
        (f"{{{STEM}, a: {{block: conv, groups: 4}}}}", ""),
        (f"{{{STEM}, a: {{block: conv, groups: 16}}}}", ""),  # depthwise
        "a", ("4 groups of 4",)),
    "kernel-size": (
        (f"{{{STEM}, a: {{block: conv, kernel: 5}}}}", ""),
        (f"{{{STEM}, a: {{block: conv, repeat: 3}}, b: {{block: conv, kernel: 5}}}}", ""),
        "backbone", ("%", "larger than 3x3")),
    "equal-channels": (
        (f"{{{STEM}, a: {{block: conv, out: 48, kernel: 1}}}}", ""),
        (f"{{{STEM}, a: {{block: conv, out: 32, kernel: 1}}}}", ""),
        "backbone", ("100 %",)),
    "fragmentation": (
        (f"{{{STEM}, a: {{block: mobileone, repeat: 16}}}}", "input: [3, 64, 64]"),
        (f"{{{STEM}, a: {{block: mobileone, repeat: 14}}}}", "input: [3, 64, 64]"),
        "backbone", ("66 ops",)),  # deploy: stem 2, each unit 2 convolutions and 2 activations; 14 units are 58
    "elementwise-share": (
        (f"{{{STEM}, a: {{block: own.Chatty, out: 16, times: 4}}}}", ""),
        (f"{{{STEM}, a: {{block: own.Chatty, out: 16, times: 1}}}}", ""),
        "backbone", ("2.5 to 1",)),  # 2 convolutions; ReLU and 4 products
    "activation-everywhere": (
        ("{stem: {block: mobileone_dense, out: 64}, a: {block: mobileone, repeat: 4}}", "input: [3, 64, 64]"),
        ("{stem: {block: mobileone_dense, out: 64, act: none}, a: {block: mobileone, act: none, repeat: 4}}",
         "input: [3, 64, 64]"),
        "backbone", ("9 activations after 9 fused layers", "mobilenetv3_small")),
    "elementwise-work": (
        (f"{{{STEM}, a: {{block: own.Chatty, out: 16, times: 40}}}}", ""),
        (f"{{{STEM}, a: {{block: own.Chatty, out: 16, times: 4}}}}", ""),
        # At 255 px: ReLU and 40 products on 16 x 128 x 128
        "backbone", ("10.75 M", "255 px", "mobilenetv3_small")),
    "depth-against-width": (
        (f"{{{STEM}, a: {{block: conv, repeat: 11}}}}", ""),
        ("{stem: {block: conv, out: 64}, a: {block: conv, repeat: 11}}", ""),
        "backbone", ("12 spatial", "16 channels", "0.75")),
    "channels-of-8": (
        (f"{{{STEM}, a: {{block: conv, out: 36}}}}", ""),
        (f"{{{STEM}, a: {{block: conv, out: 40}}}}", ""),
        "a 36", ("multiple of 8",)),
    "heavy-last-stage": (
        (f"{{{STEM}, a: {{block: conv}}, b: {{block: conv, out: 256}}}}", ""),
        (f"{{{STEM}, a: {{block: conv, repeat: 2}}, b: {{block: conv}}}}", ""),
        "b", ("parameters",)),
    "total-stride": (
        (f"{{{STEM}, a: {{block: conv, stride: 16}}}}", TRACKER),
        (f"{{{WIDE}}}", TRACKER),
        "a", ("32", "8 or 16")),
    "receptive-field": (
        (f"{{{STEM}, a: {{block: conv, stride: 4}}, b: {{block: conv, repeat: 2}}}}", TRACKER),
        (f"{{{WIDE}}}", TRACKER),
        "b", ("39 px", "0.31", "127 px")),  # stem 3; 3x3 at stride 2: + 4; two 3x3 at stride 8: + 32
    "maps-do-not-fit": (
        (f"{{{WIDE}}}", "tracker: {for: pysot}"),
        (f"{{{WIDE}, d: {{block: conv, stride: 2}}}}", "tracker: {for: nanotrack}"),
        "pysot", ("26x26", "25", "same_unless_strided")),
    "even-map": (
        (f"{{{WIDE}}}", TRACKER),
        (f"{{{WIDE}}}", "tracker: {template: 129, search: 257}"),  # 129 -> 65 -> 33 -> 17
        "c", ("16x16", "32x32", "4 px")),
    "padding-shift": (
        (f"{{{WIDE}}}", TRACKER),
        (f"{{{STEM.replace('stride: 2', 'stride: 2, pad: 0')}, a: {{block: conv, stride: 4, pad: 0}}}}", TRACKER),
        "c", ("32x32", "32 px")),
    "uncounted-ops": (
        (f"{{{STEM}, a: {{block: own.Spectral, out: 16}}}}", ""),
        (f"{{{STEM}, a: {{block: own.Chatty, out: 16}}}}", ""),
        "fft", ("MACs",)),
}  # fmt: skip
TRIED_ELSEWHERE = {"unfused-latency", "counters-disagree", "most-behind-the-tap"}


def named(found: list[Finding], rule: str) -> list[Finding]:
    return [f for f in found if f.rule == rule]


def test_every_rule_is_tried() -> None:
    assert set(RULES) - TRIED_ELSEWHERE == set(CASES)


@pytest.mark.parametrize("rule", CASES)
def test_a_broken_rule_is_a_finding_with_its_number(rule: str, check: Check) -> None:
    (stages, head), _, where, said = CASES[rule]
    found = named(check(stages, head=head), rule)
    assert found, rule
    first = found[0]
    assert where in first.where, first
    assert all(s in first.message for s in said), first.message
    assert first.source and first.severity in rules.SEVERITIES


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_kept_is_silent(rule: str, check: Check) -> None:
    _, (stages, head), _, _ = CASES[rule]
    assert named(check(stages, head=head), rule) == []


def test_rounding_is_a_note_and_a_small_difference_that_stays_a_warning(check: Check) -> None:
    of = "{" + STEM + ", a: {block: own.NAME, out: 16}}"
    (note,) = [f for f in check(of.replace("NAME", "Delicate")) if f.rule == "forms-differ"]
    assert note.severity == "note" and "rounding alone" in note.message
    (warning,) = [
        f for f in check(of.replace("NAME, out: 16", "Fuses, out: 16, how: slight")) if f.rule == "forms-differ"
    ]
    assert warning.severity == "warning" and warning.where == "a" and "not by rounding" in warning.message


def test_a_count_that_torchs_own_counter_does_not_see_is_a_finding(
    lab: Lab, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bblab.analysis import cost

    stages = "{stem: {block: conv, out: 16}, a: {block: own.Caffe, out: 16}}"
    assert named(check(stages), "counters-disagree") == []
    right = cost.MAC_RULES["conv2d"]
    monkeypatch.setitem(cost.MAC_RULES, "conv2d", lambda op, graph: 2 * right(op, graph))
    lab.analyst._summaries.clear()
    found = named(check(stages), "counters-disagree")
    lab.analyst._summaries.clear()
    # at 224 px: 1x1 and 3x3, 16 to 16 channels, and the shortcut's 1x1, on 224 x 224 units
    macs = 224 * 224 * 16 * 16 * (1 + 9 + 1)
    assert {f.where for f in found} == {"a"} and found[0].severity == "warning"
    assert f"{2 * macs:,}" in found[0].message and f"{macs:,}" in found[0].message
    assert "conv2d (main.0)" in found[0].message


def test_a_cut_that_leaves_most_parameters_behind_says_so(check: Check) -> None:
    pytest.importorskip("timm")
    (found,) = named(check("timm:resnet18@s16"), "most-behind-the-tap")
    # layer4: a basic block of 256 to 512 with its projection and one of 512 to 512; the classifier
    behind = (256 * 512 * 9 + 512 * 512 * 9 + 256 * 512 + 3 * 1024) + (2 * 512 * 512 * 9 + 2 * 1024) + 513_000
    assert behind == 11_689_512 - 2_782_784
    assert found.where == "s16" and found.severity == "note" and f"{behind / 11_689_512:.0%}"[:-1] in found.message
    assert named(check("timm:resnet18"), "most-behind-the-tap") == []


def test_tracker_rules_need_a_tracker(check: Check) -> None:
    tracker_rules = {"total-stride", "receptive-field", "maps-do-not-fit", "even-map", "padding-shift"}
    assert not {f.rule for f in check("resnet18")} & tracker_rules


@pytest.mark.parametrize(("stride", "severity"), [(1, "warning"), (2, "warning"), (4, None), (8, None), (16, "error")])
def test_total_stride_is_an_error_at_32_and_a_warning_at_4(stride: int, severity: str | None, check: Check) -> None:
    found = named(check(f"{{{STEM}, a: {{block: conv, kernel: 3, stride: {stride}}}}}", head=TRACKER), "total-stride")
    assert [f.severity for f in found] == ([severity] if severity else [])


def test_the_receptive_field_of_unpadded_nets_has_both_limits(check: Check) -> None:
    """0.6 to 0.8 of 127 px is 76.2 to 101.6."""
    deep = "{a: {block: conv, out: 8, stride: 8, kernel: 15}, b: {block: conv, repeat: %d}}"
    for repeat, is_fine in ((3, False), (4, True), (5, True), (6, False)):  # 15 + 2 * 8 * n: 63, 79, 95, 111
        found = named(check(deep % repeat, head=f"{TRACKER}\ndefaults: {{pad: valid}}"), "receptive-field")
        assert (not found) == is_fine, (repeat, found)
        if found:
            assert found[0].severity == "warning"
            assert f"{15 + 16 * repeat} px" in found[0].message and "0.6 to 0.8" in found[0].message


def test_padded_nets_that_see_everything_through_a_gate_are_not_blamed_for_their_kernels(check: Check) -> None:
    narrow = f"{{{STEM}, a: {{block: mbconv, out: 16, stride: 4%s}}}}"
    assert named(check(narrow % "", head=TRACKER), "receptive-field")
    assert not named(check(narrow % ", se: {ratio: 0.25}", head=TRACKER), "receptive-field")


def test_both_paths_striding_in_a_1x1_is_found(check: Check) -> None:
    found = named(check(f"{{{STEM}, a: {{block: own.Caffe, out: 32, stride: 2}}}}"), "stride-1x1")
    assert len(found) == 2 and {f.where for f in found} == {"a"}


@pytest.mark.parametrize(
    ("name", "length"),
    [
        # every unit has a shortcut; the projections' units and the stem leave a convolution beside it
        ("resnet18", 1),
        # no identity where width or stride changes: stem, then both layers of the first unit of a stage
        ("mobileone_s0", 2),
        # stem, the two-branch unit: its shorter branch has two of the three
        ("shufflenetv2_x1_0", 3),
        # stem, then two stride-2 units (2 and 3 convolutions) before the first residual one
        ("mobilenetv3_small", 6),
        ("nanotrack", 6),
    ],
)
def test_chains_without_a_shortcut(name: str, length: int, lab: Lab) -> None:
    pieces = [rules.Piece(*p) for p in lab.analyst.graphs(lab.spec(name), "train")]
    assert rules.longest_plain_chain(pieces)[0] == length


PLAIN_V3 = """{stem: {block: conv, out: 16, stride: 2},
  s4: {block: mobileone, out: 16, stride: 2, identity: %(identity)s},
  s8: [{block: mobileone, out: 24, stride: 2, identity: %(identity)s}, {block: mobileone, identity: %(identity)s}],
  s16: [{block: mobileone, out: 40, stride: 2, identity: %(identity)s},
        {block: mobileone, repeat: 2, identity: %(identity)s},
        {block: mobileone, out: 48, identity: %(identity)s}, {block: mobileone, identity: %(identity)s}]}"""


def test_a_mobilenetv3_layout_of_plain_mobileone_rows_loses_its_identity_path(check: Check) -> None:
    # 1 + 8 units of 2; a 1x1 scale beside the depthwise convolution is no identity
    (found,) = named(check(PLAIN_V3 % {"identity": "false"}), "no-identity-path")
    assert "17 convolutions" in found.message and found.severity == "note"
    assert named(check(PLAIN_V3 % {"identity": "true"}), "no-identity-path") == []
    longer = PLAIN_V3.replace("repeat: 2", "repeat: 4") % {"identity": "false"}
    (found,) = named(check(longer), "no-identity-path")
    assert "21 convolutions" in found.message and found.severity == "warning"


def test_a_gate_is_no_identity_path(check: Check) -> None:
    row = "{block: mobileone, identity: false, repeat: 9, se: {ratio: 0.25}}"
    (found,) = named(check(f"{{{STEM}, a: {row}}}"), "no-identity-path")
    assert "19 convolutions" in found.message  # SE's own 1x1 convolutions are no part of the path


def test_a_linear_gate_is_found_too(check: Check) -> None:
    row = "{block: mbconv, se: {gate: sigmoid, layers: linear}}"
    assert len(named(check(f"{{{STEM}, a: {row}}}"), "se-gate")) == 1


# ---------------------------------------------------------------------------------------------- waivers


def test_a_waived_finding_stays_with_its_reason_and_goes_last(check: Check) -> None:
    waive = 'waive: {total-stride: "a classifier first"}'
    found = check(f"{{{STEM}, a: {{block: conv, stride: 16}}}}", head=f"{TRACKER}\n{waive}")
    (one,) = named(found, "total-stride")
    assert (one.waived, one.severity) == ("a classifier first", "error")
    assert found[-1] is one
    assert one.to_json()["waived"] is True


def test_a_waiver_of_no_rule_is_told(check: Check) -> None:
    (one,) = named(check(f"{{{STEM}}}", head='waive: {total-strid: "x"}'), "unknown-waiver")
    assert "total-stride" in one.message and one.severity == "warning"


def test_findings_come_worst_first(check: Check) -> None:
    found = check(f"{{{STEM}, a: {{block: conv, out: 36, kernel: 1, stride: 16}}}}", head=TRACKER)
    ranks = [rules.SEVERITIES.index(f.severity) for f in found]
    assert ranks == sorted(ranks) and ranks[0] == 0


def test_a_latency_of_the_train_form_alone_is_marked(lab: Lab) -> None:
    one = lab.spec("mobileone_s0")
    train, deploy = (lab.analyst.cost(one, form) for form in ("train", "deploy"))
    subject = lab._subject(one, train, deploy, None)
    for timed, is_marked in (((), False), (("train",), True), (("train", "deploy"), False)):
        found = rules.findings(replace(subject, timed_forms=timed))
        assert bool(named(found, "unfused-latency")) == is_marked


# ---------------------------------------------------------------------------------------------- no noise


@pytest.mark.parametrize("name", ["nanotrack", "lighttrack_mobile", "ciresnet22", "pysot_resnet50"])
def test_published_trackers_break_no_rule_seriously(name: str, check: Check) -> None:
    try:
        found = check(name)
    except BblabError as error:  # pragma: no cover - a spec that a checkout may lack
        pytest.skip(str(error))
    assert [f for f in found if f.severity != "note"] == []


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small", "mobilenetv2", "shufflenetv2_x1_0", "mobileone_s0"])
def test_published_classifiers_break_no_rule_seriously(name: str, check: Check) -> None:
    assert [f for f in check(name) if f.severity != "note"] == []
