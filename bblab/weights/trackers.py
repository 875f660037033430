"""Key layouts of trackers' backbones: which tensor of a trained tracker is which tensor of a spec here.

A layout is read from the tracker's own code at the commit that it names. Only names are translated; the test of this
module compares maps with those that the trackers' own backbones gave for the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bblab.spec import ArchSpec


@dataclass(frozen=True, slots=True)
class Images:
    """What a net was trained on: pixels from 0 to 255 less `mean`, over `std`, both in the order of the channels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_bgr: bool = False

    def __str__(self) -> str:
        order = "BGR" if self.is_bgr else "RGB"
        if self.mean == (0.0,) * 3 and self.std == (1.0,) * 3:
            return f"{order}, 0 to 255"
        return f"{order}, (pixel - {_shown(self.mean)}) / {_shown(self.std)}"

    def to_json(self) -> dict[str, Any]:
        return {"mean": list(self.mean), "std": list(self.std), "is_bgr": self.is_bgr}

    @classmethod
    def from_json(cls, text: str) -> Images | None:
        """The images that a weight file names; None where it names none that can be read."""
        try:
            value = json.loads(text)
            mean, std = (tuple(float(v) for v in value[k]) for k in ("mean", "std"))
        except (ValueError, TypeError, KeyError):
            return None
        if len(mean) != 3 or len(std) != 3 or not all(v > 0 for v in std):
            return None
        return cls(mean, std, bool(value.get("is_bgr")))


RAW_BGR = Images((0.0,) * 3, (1.0,) * 3, is_bgr=True)
"""Pixels as OpenCV reads them."""
RAW_RGB = Images((0.0,) * 3, (1.0,) * 3)
IMAGENET = Images((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""What bblab's own recipes feed, too."""
HALF = Images((127.5,) * 3, (127.5,) * 3)


class Place(NamedTuple):
    """Where a module of ours is: stage, row in it, row in the net (from 0), and whether that row has an expansion."""

    stage: str
    row: int
    number: int
    is_expanded: bool


Names = Callable[[Place, str], str | None]
"""(row, module inside it) -> the tracker's name of that module; None where it has none."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The keys of a tracker's backbone. name, source: the tracker, and the code that was read."""

    name: str
    source: str
    names: Names
    images: Images = RAW_BGR

    def keys(self, spec: ArchSpec, ours: Iterable[str]) -> dict[str, str]:
        """Our key -> the tracker's, for all of `ours` that the tracker has."""
        known = dict.fromkeys(ours)
        rows = [(stage.name, i) for stage in spec.stages for i in range(len(stage.rows))]
        numbers = {row: n for n, row in enumerate(rows)}
        found: dict[str, str] = {}
        for key in known:
            room, _, rest = key.partition(".")
            stage, _, rest = rest.partition(".")
            row, _, rest = rest.partition(".")
            module, _, tensor = rest.rpartition(".")
            if room != "stages" or not row.isdigit():
                continue
            expanded = any(k.startswith(f"stages.{stage}.{row}.expand.") for k in known)
            place = Place(stage, int(row), numbers[stage, int(row)], expanded)
            theirs = self.names(place, module)
            if theirs is not None:
                found[key] = f"{theirs}.{tensor}"
        return found


def _shown(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{v:g}" for v in values)


# ---------------------------------------------------------------------------------------------- names


def _mobilenet(table: Mapping[str, str], first: Mapping[str, str] | None = None) -> Callable[[Place, str], str | None]:
    """Inverted residuals whose layers are numbered; `first` for those without an expansion."""

    def names(place: Place, module: str) -> str | None:
        return (first if first is not None and not place.is_expanded else table).get(module)

    return names


_NANOTRACK = _mobilenet(
    {
        "expand.conv": "0", "expand.norm": "1", "depth.conv": "3", "depth.norm": "4",
        "se.reduce": "5.fc.0", "se.expand": "5.fc.2", "project.conv": "7", "project.norm": "8",
    },
    {
        "depth.conv": "0", "depth.norm": "1", "se.reduce": "3.fc.0", "se.expand": "3.fc.2",
        "project.conv": "4", "project.norm": "5",
    },
)  # fmt: skip
_MOBILENETV2 = _mobilenet(
    {
        "expand.conv": "0", "expand.norm": "1", "depth.conv": "3", "depth.norm": "4",
        "project.conv": "6", "project.norm": "7",
    }
)  # fmt: skip
_PAIR = {"conv": "0", "norm": "1"}


def _nanotrack(place: Place, module: str) -> str | None:
    if place.number == 0:
        return f"features.0.{_PAIR[module]}"
    inner = _NANOTRACK(place, module)
    return inner and f"features.{place.number}.conv.{inner}"


def _pysot_mobilenetv2(place: Place, module: str) -> str | None:
    if place.number == 0:
        return f"layer0.{_PAIR[module]}"
    inner = _MOBILENETV2(place, module)
    return inner and f"{place.stage}.{place.row}.conv.{inner}"


def _resnet(place: Place, module: str) -> str | None:
    """torchvision's names, which pysot, siamban, TracKit, SiamDW and STARK keep."""
    if place.number == 0:
        return {"conv": "conv1", "norm": "bn1"}[module]
    part, _, kind = module.rpartition(".")
    if part == "shortcut":
        return f"{place.stage}.{place.row}.downsample.{_PAIR[kind]}"
    number = part.removeprefix("main.")
    if not number.isdigit():
        return None
    return f"{place.stage}.{place.row}.{'conv' if kind == 'conv' else 'bn'}{int(number) + 1}"


def _layers(place: Place, module: str) -> str | None:
    """A plain net with a Sequential for each convolution: conv3 is layer3.0, its norm layer3.1."""
    return f"layer{place.stage.removeprefix('conv')}.{_PAIR[module]}" if module in _PAIR else None


def _conv_sequential(place: Place, module: str) -> str | None:
    return f"{place.stage}.{_PAIR[module]}" if module in _PAIR else None


def _conv_bn(place: Place, module: str) -> str | None:
    names = {"conv": "conv", "norm": "bn"}
    return f"{place.stage}.{names[module]}" if module in names else None


def _numbered(*convs: int) -> Names:
    """A plain net in one Sequential: `convs` are the numbers of its convolutions, each norm comes next."""

    def names(place: Place, module: str) -> str | None:
        if module not in _PAIR:
            return None
        return f"features.{convs[int(place.stage.removeprefix('conv')) - 1] + int(_PAIR[module])}"

    return names


def _repvgg(place: Place, module: str) -> str | None:
    stage = "stage0" if place.stage == "stem" else f"{place.stage}.{place.row}"
    names = {
        "convs.0.conv": "rbr_dense.conv", "convs.0.norm": "rbr_dense.bn",
        "scale.conv": "rbr_1x1.conv", "scale.norm": "rbr_1x1.bn", "identity": "rbr_identity",
    }  # fmt: skip
    return f"{stage}.{names[module]}" if module in names else None


_STEM = {0: "Conv2d_1a_3x3", 1: "Conv2d_2a_3x3", 2: "Conv2d_2b_3x3", 4: "Conv2d_3b_1x1", 5: "Conv2d_4a_3x3"}
_BRANCHES_A = {
    "0": "branch1x1", "1.0": "branch5x5_1", "1.1": "branch5x5_2", "2.0": "branch3x3dbl_1", "2.1": "branch3x3dbl_2",
    "2.2": "branch3x3dbl_3", "3.1": "branch_pool",
}  # fmt: skip
_BRANCHES_B = {"0": "branch3x3", "1.0": "branch3x3dbl_1", "1.1": "branch3x3dbl_2", "1.2": "branch3x3dbl_3"}
_BRANCHES_C = {
    "0": "branch1x1", "3.1": "branch_pool",
    **{f"1.{i}": f"branch7x7_{i + 1}" for i in range(3)}, **{f"2.{i}": f"branch7x7dbl_{i + 1}" for i in range(5)},
}  # fmt: skip


def _inception(place: Place, module: str) -> str | None:
    """torchvision's Inception3 to Mixed_6e, and SiamFC++'s reduction behind it."""
    kind = {"conv": "conv", "norm": "bn"}.get(module.rpartition(".")[2])
    if kind is None:
        return None
    if place.stage == "stem":
        return f"{_STEM[place.row]}.{kind}" if place.row in _STEM else None
    if place.stage == "reduce":
        return f"channel_reduce.{_PAIR[module]}"
    is_five = place.stage == "mixed5"
    unit = f"Mixed_5{'bcd'[place.row]}" if is_five else f"Mixed_6{'abcde'[place.row]}"
    table = _BRANCHES_A if is_five else _BRANCHES_B if place.row == 0 else _BRANCHES_C
    branch = table.get(module.removeprefix("branches.").rpartition(".")[0])
    return branch and f"{unit}.{branch}.{kind}"


# ---------------------------------------------------------------------------------------------- trackers

_PYSOT = "github.com/STVIR/pysot d04028f"
_SIAMTRACKERS = "github.com/HonglinChu/SiamTrackers 248663f"
_TRACKIT = "github.com/researchmm/TracKit e351e5b"
_STARK = "github.com/researchmm/Stark 162e1d3"
_ANALYST = "github.com/MegviiDetection/video_analyst f4d1bcc"
_NANO = Layout("NanoTrack", f"{_SIAMTRACKERS}, mobile_v3.py", _nanotrack)
_SIAMFC = (
    Layout("SiamFC", "github.com/huanglianghua/siamfc-pytorch, backbones.py", _conv_sequential, RAW_RGB),
    Layout("SiamFC", f"{_SIAMTRACKERS}, SiamFC/siamfc/backbones.py", _numbered(0, 4, 8, 11, 14), RAW_RGB),
)
_SIAMDW = Layout("SiamDW", f"{_TRACKIT}, modules.py", _resnet)

LAYOUTS: Mapping[str, tuple[Layout, ...]] = {
    "nanotrack": (_NANO,),
    "nanotrack_v3": (_NANO,),
    "pysot_mobilenetv2": (Layout("SiamRPN++", f"{_PYSOT}, mobile_v2.py", _pysot_mobilenetv2),),
    "pysot_mobilenetv2_x1_0": (Layout("SiamRPN++", f"{_PYSOT}, mobile_v2.py", _pysot_mobilenetv2),),
    "pysot_resnet50": (Layout("SiamRPN++", f"{_PYSOT}, resnet_atrous.py", _resnet),),
    "pysot_alexnet": (
        Layout("SiamRPN++", f"{_PYSOT}, alexnet.py, AlexNet", _layers),
        Layout("SiamRPN++", f"{_PYSOT}, alexnet.py, AlexNetLegacy", _numbered(0, 4, 8, 11, 14)),
    ),
    "siamban_resnet50": (Layout("SiamBAN", "github.com/hqucv/siamban 714dffb, resnet_atrous.py", _resnet),),
    "ocean_resnet50": (Layout("Ocean", f"{_TRACKIT}, modules.py, ResNet_plus2", _resnet),),
    "ciresnet22": (_SIAMDW,),
    "ciresnet22w": (_SIAMDW,),
    "siamfcpp_alexnet": (Layout("SiamFC++", f"{_ANALYST}, alexnet_bn.py", _conv_bn),),
    "siamfcpp_inception3": (Layout("SiamFC++", f"{_ANALYST}, googlenet.py", _inception, HALF),),
    "stark_s50": (Layout("STARK", f"{_STARK}, resnet.py", _resnet, IMAGENET),),
    "stark_lightning": (Layout("STARK-Lightning", f"{_STARK}, repvgg.py", _repvgg, IMAGENET),),
    "siamfc_alexnet_v1": _SIAMFC,
    "siamfc_alexnet_v2": _SIAMFC,
    "siamfc_alexnet_v3": _SIAMFC,
}
"""Layouts by the spec that they belong to; where a tracker had two, the newer is first."""
