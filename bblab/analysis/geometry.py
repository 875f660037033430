"""The tracker geometry card: map sizes, correlation, receptive field against the template, padding, trainer's keys.

Sizes follow from the recorded maps, never from a formula on strides. What each trainer asks for is data (`TRAINERS`),
with the place it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bblab.analysis.net import MapCost, NetCost
from bblab.spec import ArchSpec


@dataclass(frozen=True, slots=True)
class TrainerNeeds:
    """What a trainer's head and labels expect of the maps at its own template and search size."""

    stride: int
    template_map: int
    search_map: int
    output_size: int
    base_size: int
    correlation: str
    crops_template_to: int | None
    advice: str
    source: str


TRAINERS: dict[str, TrainerNeeds] = {
    # neck/AdjustLayer crops the template's 15x15 to 7x7; the 3x3 head convolutions make 5 on 29: 25.
    # datasets/dataset.py: (SEARCH_SIZE - EXEMPLAR_SIZE) / STRIDE + 1 + BASE_SIZE must equal OUTPUT_SIZE.
    "pysot": TrainerNeeds(
        8, 15, 31, 25, 8, "depthwise", 7,
        "leave the stride-2 convolutions unpadded: defaults: {pad: same_unless_strided}", "pysot d04028f, config.py",
    ),
    # The pixel-wise correlation keeps the search map; its 8x8 template gives 64 channels.
    "nanotrack": TrainerNeeds(
        16, 8, 16, 16, 7, "pixelwise", None,
        "pad every stride-2 convolution by half its kernel: defaults: {pad: same}", "SiamTrackers 248663f, configs",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TapGeometry:
    """One tap at one input size. `offset_px`: the map's centre against the image's centre."""

    stage: str
    channels: int
    height: int
    width: int
    stride: int | float | None
    receptive_field: int | None
    offset_px: float | None
    padded_units: int


@dataclass(frozen=True, slots=True)
class SizeGeometry:
    """The backbone at one input size in pixels; the last tap's map is the one that is correlated."""

    size_px: int
    macs_backbone: int
    macs_backbone_train: int | None
    taps: tuple[TapGeometry, ...]

    @property
    def last(self) -> TapGeometry:
        return self.taps[-1]

    @property
    def map(self) -> tuple[int, int, int]:
        return (self.last.channels, self.last.height, self.last.width)


@dataclass(frozen=True, slots=True)
class TrainerFit:
    """Whether the maps fit a trainer, and the keys its config needs."""

    trainer: str
    fits: bool
    problems: tuple[str, ...]
    keys: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """The whole card. `is_assumed`: the spec names no sizes, the field's usual 127 and 255 px were taken."""

    template: SizeGeometry
    search: SizeGeometry
    is_assumed: bool
    trainer: TrainerFit | None

    @property
    def xcorr_map(self) -> tuple[int, int] | None:
        """Score map of plain and depthwise correlation, uncropped; None where the template is the larger map."""
        (_, zh, zw), (_, xh, xw) = self.template.map, self.search.map
        return (xh - zh + 1, xw - zw + 1) if xh >= zh and xw >= zw else None

    @property
    def pixelwise_channels(self) -> int:
        """Channels after pixel-wise correlation: one for each unit of the template's map."""
        return self.template.last.height * self.template.last.width

    @property
    def rf_over_template(self) -> float | None:
        rf = self.search.last.receptive_field
        return None if rf is None else rf / self.template.size_px

    @property
    def is_padded(self) -> bool:
        """Whether any unit of the template's map sees padding."""
        return self.template.last.padded_units > 0

    def to_json(self) -> dict[str, Any]:
        def size(s: SizeGeometry) -> dict[str, Any]:
            return {
                "size": s.size_px,
                "map": list(s.map),
                "macs_backbone": s.macs_backbone,
                "macs_backbone_train": s.macs_backbone_train,
                "offset": s.last.offset_px,
                "padded_units": s.last.padded_units,
                "taps": [
                    {
                        "stage": t.stage,
                        "map": [t.channels, t.height, t.width],
                        "stride": t.stride,
                        "offset": t.offset_px,
                    }
                    for t in s.taps
                ],
            }

        fit = self.trainer
        return {
            "template": size(self.template),
            "search": size(self.search),
            "xcorr_map": list(self.xcorr_map) if self.xcorr_map else None,
            "xcorr": {
                "depthwise": list(self.xcorr_map) if self.xcorr_map else None,
                "plain": list(self.xcorr_map) if self.xcorr_map else None,
                "pixelwise": {
                    "map": [self.search.last.height, self.search.last.width],
                    "channels": self.pixelwise_channels,
                },
            },
            "rf_over_template": None if self.rf_over_template is None else round(self.rf_over_template, 4),
            "offset": self.search.last.offset_px,
            "is_padded": self.is_padded,
            "assumed": self.is_assumed,
            "trainer": None
            if fit is None
            else {
                "name": fit.trainer,
                "fits": fit.fits,
                "problems": list(fit.problems),
                "keys": dict(fit.keys),
                "notes": list(fit.notes),
            },
        }


def geometry(
    spec: ArchSpec,
    template: NetCost,
    search: NetCost,
    *,
    template_train: NetCost | None = None,
    search_train: NetCost | None = None,
) -> Geometry:
    """The card from the costs at template and search size (deploy form first, the train form's MACs beside)."""
    sizes = spec.sizes_px
    small = _size(sizes.template, template, template_train)
    large = _size(sizes.search, search, search_train)
    fit = None
    if spec.tracker and spec.tracker.trainer:
        fit = trainer_fit(spec.tracker.trainer, small, large)
    return Geometry(small, large, spec.tracker is None, fit)


def _size(size_px: int, cost: NetCost, train: NetCost | None) -> SizeGeometry:
    taps = tuple(_tap(m, size_px) for m in cost.taps)
    return SizeGeometry(size_px, cost.macs_backbone, train.macs_backbone if train else None, taps)


def _tap(m: MapCost, size_px: int) -> TapGeometry:
    return TapGeometry(
        m.stage, m.channels, m.height, m.width, m.stride, m.receptive_field, m.offset_px(size_px), m.padded_units
    )


def trainer_fit(name: str, template: SizeGeometry, search: SizeGeometry) -> TrainerFit:
    """Whether the maps fit, each problem with its numbers, and the config keys that follow from the net."""
    need = TRAINERS[name]
    problems: list[str] = []
    notes: list[str] = []
    (_, z, _), (_, x, _) = template.map, search.map
    if search.last.stride != need.stride:
        problems.append(f"total stride {search.last.stride}, {name} works at {need.stride}")
    strides = {t.stride for t in search.taps}
    if len(strides) > 1:
        problems.append(f"taps at different strides {sorted(strides, key=str)}: {name} correlates maps of one size")
    if search.last.height != search.last.width or template.last.height != template.last.width:
        problems.append("maps are not square")
    reach = (search.size_px - template.size_px) / need.stride + 1
    if name == "pysot":
        kept = need.crops_template_to if need.crops_template_to and z >= 11 else z
        output = x - kept + 1
        wanted = reach + need.base_size
        if output != wanted:
            said = f"template {z}x{z}, search {x}x{x} give a {output}x{output} score map, its labels want {wanted:g}"
            problems.append(f"{said}; {need.advice}")
        channels: Any = [t.channels for t in search.taps]
        channels = channels[0] if len(channels) == 1 else channels
    else:
        output, channels = x, search.last.channels
        if (z, x) != (need.template_map, need.search_map):
            wanted_maps = f"{need.template_map}x{need.template_map} and {need.search_map}x{need.search_map}"
            problems.append(f"maps {z}x{z} and {x}x{x}, its head wants {wanted_maps}; {need.advice}")
        if channels != 48:
            notes.append(f"head V2 has 48 channels written in; with {channels} use V1 or V3")
    keys = {
        "STRIDE": need.stride,
        "OUTPUT_SIZE": output,
        "BASE_SIZE": need.base_size,
        "EXEMPLAR_SIZE": template.size_px,
        "SEARCH_SIZE": search.size_px,
        "channels": channels,
    }
    return TrainerFit(name, not problems, tuple(problems), keys, tuple(notes))
