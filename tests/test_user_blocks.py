"""Code pasted from a paper runs as it is: found, profiled, cut, fused, timed, and read anew when it is edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bblab.rooms import Rooms

PAPER = '''
import torch
import torch.nn as nn
import torch.nn.functional as F
from .helper import hswish, Base

print("a line that the author left in")


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Unit(nn.Module):
    """A unit as papers have them: positional stride, plain Conv and BN, functional ops."""

    def __init__(self, inp, oup, stride, k=3):
        super().__init__()
        self.conv = nn.Conv2d(inp, oup, k, stride, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(oup)

    def forward(self, x):
        print("and one here")
        return hswish(self.bn(self.conv(x)))


class Flat(nn.Module):
    def __init__(self, inp, oup):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inp, oup, 1, bias=False), nn.BatchNorm2d(oup), nn.ReLU())

    def forward(self, x):
        y = self.body(x)
        return F.relu(y) + F.avg_pool2d(y, 3, 1, 1)


class Derived(Base):
    pass


class Rep(nn.Module):
    def __init__(self, inp, oup, stride=1):
        super().__init__()
        self.a = nn.Conv2d(inp, oup, 3, stride, 1)
        self.b = nn.Conv2d(inp, oup, 1, stride)
        self.fused = None

    def forward(self, x):
        return self.a(x) + self.b(x) if self.fused is None else self.fused(x)

    def FUSE(self):
        a, b = self.a, self.b
        c = nn.Conv2d(a.in_channels, a.out_channels, 3, a.stride, 1, device=a.weight.device)
        c.weight.data = a.weight.data + F.pad(b.weight.data, [1, 1, 1, 1])
        c.bias.data = a.bias.data + b.bias.data
        self.fused = c
        del self.a, self.b


class Looks(nn.Module):
    """Reads values: cannot run on meta."""

    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.c = nn.Conv2d(in_ch, out_ch, 1)

    def forward(self, x):
        y = self.c(x)
        if y.sum() > 1e9 or y.mean().item() > 1e9:
            y = y * 2
        return y


class MakesTensors(nn.Module):
    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.c = nn.Conv2d(in_ch, out_ch, 1)

    def forward(self, x):
        return self.c(x) * torch.ones(1) + torch.arange(x.shape[-1])
'''
HELPER = """
import torch.nn as nn
import torch.nn.functional as F


def hswish(x):
    return F.hardswish(x)


class Base(nn.Module):
    def __init__(self, inp, oup, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inp, oup, SIDE, stride, SIDE // 2)

    def forward(self, x):
        return self.conv(x)
""".replace("SIDE", "3")
NET = "stages: {{stem: {{block: conv, out: 8, stride: 2}}, a: {{block: paper.{}, out: 16}}}}"


@pytest.fixture
def pasted(lab: Path) -> Path:
    """A lab with a pasted file and its helper."""
    (lab / "blocks").mkdir()
    (lab / "blocks" / "paper.py").write_text(PAPER.replace("FUSE", "switch_to_deploy"))
    (lab / "blocks" / "helper.py").write_text(HELPER)
    return lab


@pytest.fixture
def profile(pasted: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    def run(row: str, *more: str) -> dict[str, Any]:
        ran = bblab("profile", spec_file(NET.format(row)), "--no-latency", "--json", "-", *more)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)[0]

    return run


def test_a_pasted_file_is_listed_without_what_takes_no_channels(pasted: Path, bblab: Callable[..., Any]) -> None:
    names = {row["name"]: row for row in json.loads(bblab("blocks", "--json", "-").out)}
    mine = {name for name in names if name.startswith("paper.")}
    assert mine == {"paper.Unit", "paper.Flat", "paper.Derived", "paper.Rep", "paper.Looks", "paper.MakesTensors"}
    assert names["paper.Unit"]["arguments"] == [{"name": "k", "type": "", "default": 3, "required": False}]
    assert names["paper.Unit"]["has_stride"] and not names["paper.Flat"]["has_stride"]
    assert names["paper.Derived"]["has_stride"]
    assert "paper.Unit" in bblab("blocks", "paper.Unit").out


def test_plain_conv_and_norm_are_folded_in_the_deploy_form(profile: Callable[..., Any]) -> None:
    row = profile("Unit, stride: 2")
    # conv 3x3: 3*8*9 + norm 2*8; unit: 8*16*9 + norm 2*16. Folded: a bias instead of each norm
    assert row["forms"]["train"]["params"] == 216 + 16 + 1152 + 32
    assert row["forms"]["deploy"]["params"] == 216 + 8 + 1152 + 16
    assert row["deploy_max_rel_diff"] < 1e-5
    assert row["receptive_field"] == 3 + 2 * 2 and row["stride"] == 4
    assert row["feature_maps"][-1]["height"] == 56


@pytest.mark.parametrize(
    "name", ["deploy", "reparameterize", "switch_to_deploy", "merge_kernel", "merge_dilated_branches", "fuse_convs"]
)
def test_the_authors_own_fuse_method_is_called(name: str, pasted: Path, profile: Callable[..., Any]) -> None:
    (pasted / "blocks" / "paper.py").write_text(PAPER.replace("FUSE", name))
    row = profile("Rep, stride: 2")
    assert row["forms"]["train"]["params"] == 216 + 16 + (1152 + 16) + (128 + 16)
    assert row["forms"]["deploy"]["params"] == 216 + 8 + (1152 + 16)
    assert row["deploy_max_rel_diff"] < 1e-5


@pytest.mark.parametrize("row", ["Flat", "Derived, stride: 2", "Looks", "MakesTensors"])
def test_every_pasted_module_is_profiled(row: str, profile: Callable[..., Any]) -> None:
    found = profile(row)
    assert found["feature_maps"][-1]["channels"] == 16
    assert found["forms"]["deploy"]["uncounted"] == [] and found["deploy_max_rel_diff"] < 1e-5


WRONG = """
import torch.nn as nn


class Wrong(nn.Module):
    def __init__(self, in_ch, out_ch, stride=1, how="raises"):
        super().__init__()
        self.c, self.n, self.how = nn.Conv2d(in_ch, out_ch, 3, stride, 1), nn.BatchNorm2d(out_ch), how

    def forward(self, x):
        return self.n(self.c(x))

    def fuse(self):
        if self.how == "raises":
            raise KeyError("no such branch")
        return self.c  # forgets the norm
"""


@pytest.fixture
def wrong(pasted: Path) -> Callable[[str], str]:
    (pasted / "blocks" / "wrong.py").write_text(WRONG)
    return lambda how: NET.format(f"X, stride: 2, how: {how}").replace("paper.X", "wrong.Wrong")


def test_a_fuse_method_that_raises_never_fails_a_profile(
    wrong: Callable[[str], str], bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    path = spec_file(wrong("raises"))
    ran = bblab("profile", path, "--no-latency", "--json", "-")
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)
    why = "its fuse() failed: KeyError: 'no such branch'"
    assert row["unfused"] == [{"where": "a", "why": why, "has_failed": True}]
    assert [f["where"] for f in row["findings"] if f["rule"] == "fuse-failed"] == ["a"]
    # conv 3x3, 3 to 8, its norm folded; then the train form: 8*16*9 + 16 and the norm's 32
    assert row["forms"]["deploy"]["params"] == 216 + 8 + 1152 + 16 + 32
    for command in (["profile", path, "--no-latency"], ["check", path]):
        ran = bblab(*command)
        assert ran.code == 0 and "its fuse() failed" in ran.out


def test_a_deploy_form_that_is_another_function_is_an_error_of_profile_and_check_and_said_by_bench(
    wrong: Callable[[str], str], bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    path = spec_file("tracker: {template: 31, search: 63}\n" + wrong("forgets"))
    ran = bblab("check", path)
    assert ran.code == 1 and "another function" in ran.out
    (row,) = json.loads(bblab("profile", path, "--json", "-").out)
    (finding,) = [f for f in row["findings"] if f["rule"] == "forms-differ"]
    assert finding["severity"] == "error" and finding["where"] == "a"
    assert row["deploy_max_rel_diff"] > 1e-3 and row["deploy_max_rel_diff_float64"] > 1e-3
    doubts = {t["form"]: t["form_doubt"] for t in row["latency"]}
    assert "another function" in doubts["deploy"] and doubts["train"] is None
    ran = bblab("bench", path)
    assert "its deploy form computes another function" in ran.out + ran.err


def test_what_a_block_prints_goes_to_stderr(
    pasted: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    ran = bblab("profile", spec_file(NET.format("Unit, stride: 1")), "--no-latency", "--json", "-")
    json.loads(ran.out)
    assert "a line that the author left in" in ran.err and "and one here" in ran.err


def test_an_edited_file_or_helper_is_read_anew(pasted: Path, profile: Callable[..., Any]) -> None:
    paper, helper = pasted / "blocks" / "paper.py", pasted / "blocks" / "helper.py"
    assert profile("Unit, stride: 1")["receptive_field"] == 7
    assert profile("Derived, stride: 1")["receptive_field"] == 7
    # at once and of the same length: a time stamp in seconds and a size would not tell
    paper.write_text(paper.read_text().replace("k=3", "k=5"))
    assert profile("Unit, stride: 1")["receptive_field"] == 3 + 4 * 2
    helper.write_text(helper.read_text().replace("oup, 3, stride, 3 //", "oup, 7, stride, 7 //"))
    assert profile("Derived, stride: 1")["receptive_field"] == 3 + 6 * 2
    assert not list((pasted / "blocks").glob("__pycache__"))


def test_a_pasted_block_works_in_every_command(
    pasted: Path, bblab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (pasted / "arch_specs").mkdir()
    (pasted / "arch_specs" / "mine.yaml").write_text(
        "stages:\n  stem: {block: conv, out: 8, stride: 2}\n  a: {block: paper.Unit, out: 16, stride: 2, k: 5}\n"
        "  b: [{block: paper.Flat}, {block: paper.Rep, stride: 2}]\nhead: {block: classifier, out: 10}\n"
    )
    assert bblab("check", "mine").code == 0
    with monkeypatch.context() as patch:  # the built-in specs are listed elsewhere
        patch.setattr(Rooms, "files", lambda self, name, suffix: {p.stem: p for p in (self.lab / name).glob("*.yaml")})
        (row,) = json.loads(bblab("specs", "--json", "-").out)
    assert row["origin"] == "lab" and row["stride"] == 8 and not row["error"]
    (cut,) = json.loads(bblab("profile", "mine@s4", "--no-latency", "--layers", "--json", "-").out)
    assert cut["stride"] == 4 and {layer["op"] for layer in cut["layers"]} >= {"conv2d", "batch_norm", "hardswish"}
    assert bblab("new", "next", "--like", "mine", "--set", "a.k=3").code == 0
    assert bblab("profile", "next", "mine", "--no-latency").code == 0


def test_a_pasted_block_is_timed(pasted: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path]) -> None:
    text = "tracker: {template: 31, search: 63}\n" + NET.format("Unit, stride: 2")
    ran = bblab("profile", spec_file(text), "--json", "-")
    assert ran.code == 0, ran.err
    (row,) = json.loads(ran.out)
    assert {t["form"] for t in row["latency"]} == {"train", "deploy"}
    assert all(t["cpu_p10_s"] > 0 and t["reference"] == "resnet18" for t in row["latency"])


def test_a_labs_file_with_a_built_in_name_loads_beside_it(lab: Path, bblab: Callable[..., Any]) -> None:
    (lab / "blocks").mkdir()
    (lab / "blocks" / "conv.py").write_text(
        "from torch import nn\n\n\nclass Mine(nn.Conv2d):\n    def __init__(self, in_ch, out_ch, stride=1):\n"
        "        super().__init__(in_ch, out_ch, 5, stride, 2)\n"
    )
    names = [row["name"] for row in json.loads(bblab("blocks", "--json", "-").out)]
    assert "conv" in names and "conv.Mine" in names
    spec = lab / "net.yaml"
    spec.write_text("stages: {a: {block: conv, out: 8, stride: 2}, b: {block: conv.Mine, out: 8, stride: 2}}")
    (row,) = json.loads(bblab("profile", spec, "--no-latency", "--json", "-").out)
    assert row["receptive_field"] == 3 + 4 * 2


CLAIMS_CONV = (
    "from torch import nn\nfrom bblab.blockkit import block\n\n\n@block('conv'{})\nclass Mine(nn.Conv2d):\n"
    "    def __init__(self, in_ch, out_ch, stride=1):\n        super().__init__(in_ch, out_ch, 9, stride, 4)\n"
)


def test_a_built_in_kind_is_replaced_only_on_request(
    lab: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    (lab / "blocks").mkdir()
    file = lab / "blocks" / "mine.py"
    file.write_text(CLAIMS_CONV.format(""))
    spec = spec_file("stages: {a: {block: conv, out: 8, stride: 2}}")
    ran = bblab("check", spec)
    assert ran.code == 2 and "'conv' is already defined in" in ran.err and "replace=True" in ran.err
    file.write_text(CLAIMS_CONV.format(", replace=True"))
    (row,) = json.loads(bblab("profile", spec, "--no-latency", "--json", "-").out)
    assert row["receptive_field"] == 9


# ---------------------------------------------------------------------------------------------- what goes where

CONSTRUCTORS = """
import torch
from torch import nn


class Conv(nn.Module):
    def forward(self, x):
        return self.c(x)


class Meta(Conv):
    def __init__(self, dim, mlp_ratio=3):
        super().__init__()
        self.c = nn.Sequential(nn.Conv2d(dim, dim * mlp_ratio, 1), nn.Conv2d(dim * mlp_ratio, dim, 1))


class Pool(nn.Module):
    def __init__(self, dim, pool_size):
        super().__init__()
        self.p = nn.AvgPool2d(pool_size, 1, pool_size // 2)

    def forward(self, x):
        return self.p(x) - x


class Yolo(Conv):
    def __init__(self, c1, c2, k=3, s=1):
        super().__init__()
        self.c = nn.Conv2d(c1, c2, k, s, k // 2)


class Mobile3(Conv):
    def __init__(self, inp, hidden_dim, oup, kernel_size, stride):
        super().__init__()
        self.c = nn.Sequential(nn.Conv2d(inp, hidden_dim, 1), nn.Conv2d(hidden_dim, oup, kernel_size, stride, 1))


class Down(Conv):
    def __init__(self, dim_in, dim_out, downsample=False):
        super().__init__()
        self.c = nn.Conv2d(dim_in, dim_out, 3, 2 if downsample else 1, 1)


class ResNets(Conv):
    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__()
        assert downsample is None
        self.c = nn.Conv2d(inplanes, planes, 3, stride, 1)


class Handed(Yolo):
    def __init__(self, extra=1, **kwargs):
        super().__init__(**kwargs)


class Residual(nn.Module):
    def __init__(self, in_ch, out_ch, stride=1):
        super().__init__()
        self.c = nn.Conv2d(in_ch, out_ch, 3, stride, 1)

    def forward(self, x):
        return x + self.c(x)


class Asserts(Conv):
    def __init__(self, in_ch, out_ch, stride):
        super().__init__()
        assert stride == 1
        self.c = nn.Conv2d(in_ch, out_ch, 3, stride, 1)


class Odd(Conv):
    def __init__(self, x, y):
        super().__init__()
        self.c = nn.Conv2d(x, y, 3, 1, 1)


def changed(cls):
    class Other(nn.Module):
        def __init__(self, one, two):
            super().__init__()

    return Other


class Lazy(nn.Module):
    def __init__(self, in_ch, out_ch):
        super().__init__()
        self.c = nn.LazyConv2d(out_ch, 1)
    def forward(self, x):
        return self.c(x)


@changed
class Lies(Conv):
    def __init__(self, in_ch, out_ch):
        super().__init__()
"""


@pytest.fixture
def constructors(lab: Path) -> Path:
    (lab / "blocks").mkdir()
    (lab / "blocks" / "own.py").write_text(CONSTRUCTORS)
    return lab


@pytest.mark.parametrize(
    ("row", "params", "stride"),
    [
        # the second argument is no channel: 8 to 24 and back, not 8 to 8 * 16
        ("Meta", (8 * 24 + 24) + (24 * 8 + 8), 1),
        ("Meta, mlp_ratio: 2", (8 * 16 + 16) + (16 * 8 + 8), 1),
        ("Pool, pool_size: 3", 0, 1),
        ("Yolo, out: 16, stride: 2", 8 * 16 * 9 + 16, 2),
        ("Yolo, k: 1", 8 * 8 + 8, 1),
        # the second argument lies between the two that are channels
        ("Mobile3, out: 16, hidden_dim: 24, kernel_size: 3, stride: 2", (8 * 24 + 24) + (24 * 16 * 9 + 16), 2),
        ("Down, out: 16, stride: 2", 8 * 16 * 9 + 16, 2),
        ("Down", 8 * 8 * 9 + 8, 1),
        ("ResNets, out: 16, stride: 2", 8 * 16 * 9 + 16, 2),
        ("Handed, out: 16, k: 1", 8 * 16 + 16, 1),
    ],
)
def test_arguments_are_fed_by_their_names(
    row: str, params: int, stride: int, constructors: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    spec = spec_file(f"input: [3, 32, 32]\nstages: {{stem: {{block: conv, out: 8}}, a: {{block: own.{row}}}}}")
    ran = bblab("profile", spec, "--no-latency", "--no-verify", "--json", "-")
    assert ran.code == 0, ran.err
    (found,) = json.loads(ran.out)
    assert found["forms"]["train"]["params"] == 3 * 8 * 9 + 16 + params
    assert found["stride"] == stride


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("Meta, out: 16", "own.Meta keeps its 8 channels, out says 16"),
        ("Meta, stride: 2", "own.Meta has no stride"),
        ("Pool", "own.Pool needs 'pool_size'"),
        ("Pool", "{block: own.Pool, pool_size: ...}"),
        ("Odd", "own.Odd takes (x, y): none of these is named like channels"),
        ("Odd", "def __init__(self, in_ch, out_ch, stride=1):"),
        ("Odd", "self.body = Odd(x=..., y=...)"),
        ("Conv", "own.Conv takes no channels, so a row cannot feed it"),
        ("Residual, stride: 2", "it runs at stride 1 only, the row says 2"),
        ("Residual, out: 16", "it runs only where out equals its 8 input channels, the row says 16"),
        ("Asserts, stride: 2", "it runs at stride 1 only, the row says 2; AssertionError"),
        ("Lazy", "Lazy: c is a LazyConv2d, which has no size before it has run"),
        ("Lazy", "write nn.Conv2d with its input channels"),
        ("Lies", "Lies takes (one, two) once its file has run, but its text says it takes in_ch, out_ch"),
    ],
)
def test_what_cannot_be_fed_is_an_error_that_says_what_to_write(
    row: str, said: str, constructors: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    spec = spec_file(f"input: [3, 32, 32]\nstages: {{stem: {{block: conv, out: 8}}, a: {{block: own.{row}}}}}")
    ran = bblab("check", spec)
    assert ran.code == 2 and said in ran.err, ran.err


def test_the_adapter_that_the_error_shows_works(
    constructors: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    spec = spec_file("input: [3, 32, 32]\nstages: {stem: {block: conv, out: 8}, a: {block: own.Odd, out: 16}}")
    lines = bblab("check", spec).err.splitlines()
    first = next(i for i, line in enumerate(lines) if line.strip().startswith("class OddBlock"))
    shown = "\n".join(line[4:] for line in lines[first : first + 4])
    file = constructors / "blocks" / "own.py"
    file.write_text(file.read_text() + "\n" + shown.replace("x=..., y=...", "x=in_ch, y=out_ch") + "\n")
    spec.write_text(spec.read_text().replace("own.Odd", "own.OddBlock"))
    (found,) = json.loads(bblab("profile", spec, "--no-latency", "--no-verify", "--json", "-").out)
    assert found["forms"]["train"]["params"] == 3 * 8 * 9 + 16 + 8 * 16 * 9 + 16


def test_only_what_can_be_fed_is_listed(constructors: Path, bblab: Callable[..., Any]) -> None:
    names = {row["name"] for row in json.loads(bblab("blocks", "--json", "-").out)}
    assert {n for n in names if n.startswith("own.")} == {
        "own.Meta", "own.Pool", "own.Yolo", "own.Mobile3", "own.Down", "own.ResNets", "own.Handed", "own.Residual",
        "own.Asserts", "own.Lies", "own.Lazy",
    }  # fmt: skip
    ran = bblab("blocks", "own.Odd")
    assert ran.code == 2 and "class OddBlock(nn.Module):" in ran.err


# ---------------------------------------------------------------------------------------------- what goes wrong

BROKEN = {
    "raises in init": (
        "def __init__(self, in_ch, out_ch): super().__init__(); raise KeyError('boom')",
        "KeyError: 'boom'",
    ),
    "raises in forward": ("def forward(self, x): raise RuntimeError('out [of] tune')", "RuntimeError: out [of] tune"),
    "exits": ("def __init__(self, in_ch, out_ch): super().__init__(); raise SystemExit(0)", "it called exit(0)"),
    "exits in forward": ("def forward(self, x): raise SystemExit(3)", "SystemExit: 3"),
    "other channels": (
        "def forward(self, x): return x",
        "returned 1x8x112x112 for a map of 8x112x112, but out promises",
    ),
    "a tuple": ("def forward(self, x): return x, x", "forward returned a tuple of Tensor, Tensor, expected a tensor"),
    "a tuple of one": ("def forward(self, x): return (self.c(x),)", "forward returned a tuple of Tensor"),
    "a dict": ("def forward(self, x): return {'out': self.c(x)}", "forward returned dict, expected a tensor"),
    "nothing": ("def forward(self, x): self.c(x)", "forward returned NoneType, expected a tensor"),
    "a number": ("def forward(self, x): return 5", "forward returned int, expected a tensor"),
    "a flat map": ("def forward(self, x): return self.c(x).flatten(2)", "expected 1 x channels x height x width"),
    "no forward": ("", "it has no forward()"),
    "another stride": ("def forward(self, x): return self.c(x)[:, :, ::2, ::2]", "but the row says stride 1"),
    "missing attribute": ("def forward(self, x): return self.missing(x)", "has no attribute 'missing'"),
    "unequal add": ("def forward(self, x): return self.c(x) + x[:, :, 1:]", "RuntimeError"),
    "unequal concat": ("def forward(self, x): return torch.cat([self.c(x), x[:, :, 1:]], 1)", "RuntimeError"),
    "endless": ("def forward(self, x): return self.forward(x)", "RecursionError"),
    "too many layers": (
        "def __init__(self, in_ch, out_ch):\n"
        "        super().__init__(); self.c = nn.ModuleList(nn.ReLU() for _ in range(20_000))",
        "has more than 16,384 layers",
    ),
    "below one pixel": ("def forward(self, x): return self.c(x)[:, :, 200:]", "shrinks a map of 8x112x112 below 1x1"),
}


@pytest.mark.parametrize(("body", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_block_is_told_at_its_row(
    body: str, said: str, lab: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    init = (
        ""
        if "__init__" in body
        else "def __init__(self, in_ch, out_ch): super().__init__(); self.c = nn.Conv2d(in_ch, out_ch, 1)\n    "
    )
    (lab / "blocks").mkdir()
    (lab / "blocks" / "own.py").write_text(
        f"import torch\nfrom torch import nn\nclass Own(nn.Module):\n    {init}{body}\n"
    )
    spec = spec_file("stages:\n  stem: {block: conv, out: 8, stride: 2}\n  a: {block: own.Own, out: 16}\n")
    ran = bblab("check", spec)
    assert ran.code == 2 and ran.out == ""
    assert f"{spec}:3:6: stage a: own.Own" in ran.err.replace("\n", "") and said in ran.err


def test_all_failing_rows_are_told_together(
    lab: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    (lab / "blocks").mkdir()
    (lab / "blocks" / "own.py").write_text(
        "from torch import nn\nclass Own(nn.Module):\n    def __init__(self, in_ch, out_ch): raise ValueError('no')\n"
    )
    ran = bblab(
        "check",
        spec_file(
            "stages:\n  stem: {block: conv, out: 9, stride: 2, groups: 2}\n  a: {block: own.Own, out: 16}\n"
            "  b:\n    - {block: conv, out: 5}\n    - {block: conv, groups: 3}\n"
            "  c: {block: maxpool, kernel: 200, pad: valid}\nhead: {block: classifier, hidden: 8, hidden_act: nope}\n"
        ),
    )
    assert ran.code == 2
    for place in (":2:9: stage stem", ":3:6: stage a", ":6:7: stage b row 1", ":7:6: stage c", ":8:7: head"):
        assert place in ran.err
    assert "groups 2 does not divide 3 input and 9 output channels" in ran.err
    assert f"the block is Own in {lab}/blocks/own.py:3" in ran.err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class Own(nn.Module\n", "own.py:1: not Python"),
        ("\0", "own.py: not Python: source code string cannot contain null bytes"),
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("import no_such_package\n", "no_such_package is not installed: add the package that its project names ("),
        ("from helper import x\n", "files of a lab import each other relatively: from .helper import"),
        ("1 / 0\n", "own.py:1: cannot be imported: ZeroDivisionError"),
        ("raise SystemExit(0)\n", "own.py:1: cannot be imported: SystemExit"),
        ("from .helper import nothing\n", "cannot be imported: ImportError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_with_its_line(
    source: str, said: str, lab: Path, bblab: Callable[..., Any], spec_file: Callable[..., Path]
) -> None:
    (lab / "blocks").mkdir()
    (lab / "blocks" / "helper.py").write_text("x = 1\n")
    body = "from torch import nn\nclass Own(nn.Module):\n    def __init__(self, in_ch, out_ch): ...\n"
    (lab / "blocks" / "own.py").write_text(source + body)
    ran = bblab("check", spec_file("stages: {a: {block: own.Own, out: 16}}"))
    assert ran.code == 2 and said in ran.err


def test_an_edited_built_in_block_is_not_recorded_with_the_old_class(tmp_path: Path) -> None:
    # a copy of a checkout's room, as a designer edits it while a notebook is open
    from bblab import blocks
    from bblab.spec import Row

    info = blocks.infos(Rooms(tmp_path))["crop"]
    first = blocks.load(info)
    module = __import__("sys").modules[first.__module__]
    module.__bblab_stamps__ = ((0, 0),)  # as if the file had changed since
    assert blocks.load(info) is not first
    assert blocks.make(Row("crop", 8), 8, info).__class__ is blocks.load(info)
