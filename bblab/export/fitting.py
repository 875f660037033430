"""Do a spec's maps fit a trainer? Sizes come from the recorded maps; where they do not, which edit mends the spec?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from bblab.analysis.net import Analyst, NetCost
from bblab.errors import BblabError
from bblab.export.target import Fit, Target
from bblab.spec import ArchSpec

Resolve = Callable[[str, Sequence[str]], ArchSpec]


@dataclass(frozen=True, slots=True)
class Maps:
    """A spec at a trainer's template and search size (both forms have the same maps; costs are the deploy form's)."""

    template: NetCost
    search: NetCost
    template_px: int
    search_px: int

    @property
    def stage(self) -> str:
        return self.search.taps[-1].stage

    @property
    def z(self) -> tuple[int, int]:
        return self.template.taps[-1].height, self.template.taps[-1].width

    @property
    def x(self) -> tuple[int, int]:
        return self.search.taps[-1].height, self.search.taps[-1].width

    @property
    def stride(self) -> int | float | None:
        return self.search.taps[-1].stride

    @property
    def receptive_field(self) -> int | None:
        return self.search.taps[-1].receptive_field

    @property
    def channels(self) -> list[int]:
        return [tap.channels for tap in self.search.taps]

    def to_json(self) -> dict[str, Any]:
        def side(px: int, cost: NetCost) -> dict[str, Any]:
            return {
                "px": px,
                "macs_deploy": cost.macs_backbone,
                "taps": [{"stage": t.stage, "map": [t.channels, t.height, t.width]} for t in cost.taps],
            }

        return {
            "stride": self.stride,
            "receptive_field": self.receptive_field,
            "receptive_field_over_template": (
                None if self.receptive_field is None else round(self.receptive_field / self.template_px, 3)
            ),
            "padded_units": self.template.taps[-1].padded_units,
            "template": side(self.template_px, self.template),
            "search": side(self.search_px, self.search),
            "params_deploy": self.search.params_backbone,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """What an edit that makes a spec fit costs. `weights_load`: the tensors keep their names and shapes."""

    reference: str
    edits: tuple[str, ...]
    before: Maps | None
    after: Maps
    misfits: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        return " ".join([self.reference, *(f"--set {edit}" for edit in self.edits)])

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.reference,
            "set": list(self.edits),
            "before": None if self.before is None else self.before.to_json(),
            "after": self.after.to_json(),
            "weights_load": not self.misfits,
            "weights_misfits": list(self.misfits),
        }


def maps(analyst: Analyst, spec: ArchSpec, target: Target | None = None) -> Maps:
    """The spec's maps at the target's sizes, else at its own. Raises SpecError where it cannot run there."""
    own = spec.sizes_px
    sides = (target.template_px, target.search_px) if target else (own.template, own.search)
    small, large = (analyst.cost(spec, "deploy", (side, side)) for side in sides)
    return Maps(small, large, *sides)


def fit_of(target: Target, variant: str) -> tuple[Fit, ...]:
    own = target.variants[variant].fits if variant else ()
    return own or target.fits


def problems(target: Target, variant: str, found: Maps) -> tuple[Fit | None, list[str]]:
    """The fit that these maps are, or why there is none. A target without fits takes any map."""
    wrong: list[str] = []
    name = target.name
    taps = len(found.search.taps)
    if target.max_taps is not None and taps > target.max_taps:
        stages = ", ".join(t.stage for t in found.search.taps)
        wrong.append(f"{taps} taps ({stages}), {name} reads {target.max_taps}")
    if target.stride is not None and found.stride != target.stride:
        wrong.append(f"total stride {found.stride} at {found.stage}, {name} works at {target.stride}")
    elif len({(t.height, t.width) for t in found.search.taps}) > 1 and target.fits:
        wrong.append(f"the taps' maps differ in size, {name} correlates maps of one size")
    allowed = target.variants[variant].channels if variant else ()
    if allowed and found.channels[-1] not in allowed:
        wanted = " or ".join(map(str, allowed))
        wrong.append(f"{found.channels[-1]} channels at {found.stage}, {name}:{variant} has {wanted} written in")
    choice = fit_of(target, variant)
    match = next((f for f in choice if found.z == (f.template_map,) * 2 and found.x == (f.search_map,) * 2), None)
    if choice and match is None:
        read = f"{target.template_px} px gives {_side(found.z)}, {target.search_px} px gives {_side(found.x)}"
        wanted = " or ".join(f"{f.template_map}x{f.template_map} and {f.search_map}x{f.search_map}" for f in choice)
        wrong.append(f"{read}; {name} wants {wanted} ({_score(choice)})")
    return (None if wrong else match), wrong


def _side(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _score(choice: Sequence[Fit]) -> str:
    return "score map " + " or ".join(f"{f.score_map}x{f.score_map}" for f in choice)


# ---------------------------------------------------------------------------------------------- the edit that mends it


def suggestion(
    target: Target, variant: str, analyst: Analyst, reference: str, edits: Sequence[str], resolve: Resolve
) -> tuple[str, tuple[str, ...]] | None:
    """The fewest `--set` edits after which the maps fit: a padding rule, another tap, a stride; None if none do."""
    for name, more in _candidates(target, reference, edits, resolve):
        try:
            spec = resolve(name, [*edits, *more])
            if not problems(target, variant, maps(analyst, spec, target))[1]:
                return name, more
        except BblabError:
            continue
    return None


def _candidates(
    target: Target, reference: str, edits: Sequence[str], resolve: Resolve
) -> Iterator[tuple[str, tuple[str, ...]]]:
    base, _, cut = reference.rpartition("@") if "@" in reference else (reference, "", "")
    spec = resolve(reference, edits)
    pads = [p for p in (target.padding, "same_unless_strided", "same") if p != "any"]
    pad_edits: list[tuple[str, ...]] = [(), *((f"defaults.pad={p}",) for p in dict.fromkeys(pads))]
    total, strided, at_stride = 1, [], []
    for stage in spec.stages:
        total *= stage.stride
        if stage.stride > 1:
            strided.append(stage)
        if total == target.stride:
            at_stride.append(stage.name)
    shapes: list[tuple[str, tuple[str, ...]]] = [(reference, ())]
    if at_stride:
        last = at_stride[-1]
        shapes.append((f"{base}@{last}", ()) if cut else (reference, (f"taps=[{last}]",)))
    if target.stride is not None and total > target.stride:
        for stage in reversed(strided):
            if total // stage.stride == target.stride:
                # Rows as the file has them: a repeated one stands for several here.
                shapes += [(reference, (f"{stage.name}.{i}.stride=1",)) for i in range(min(4, len(stage.rows)))]
                break
    choice = [(name, (*pad, *more)) for pad, (name, more) in product(pad_edits, shapes)]
    yield from sorted(choice, key=lambda item: len(item[1]) + (item[0] != reference))


def misfits(before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Tensors whose name or shape an edit changes, in words."""
    said = [f"{key}: new" for key in after if key not in before]
    said += [f"{key}: gone" for key in before if key not in after]
    for key, shape in after.items():
        if key in before and before[key] != shape:
            said.append(f"{key}: {'x'.join(map(str, before[key]))} before, {'x'.join(map(str, shape))} after")
    return tuple(said)
