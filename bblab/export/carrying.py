"""Weights on their way out: taken from a file, fitted to a spec's train form, refused where fused or another's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError
from bblab.spec import ArchSpec, BlockInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Carried:
    """A spec's train form with weights, and where they come from. `provenance` is plain data for the manifest."""

    module: nn.Module
    provenance: Mapping[str, Any]
    warnings: tuple[str, ...] = ()

    @property
    def state(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())


def random(spec: ArchSpec, kinds: Mapping[str, BlockInfo], seed: int = 0) -> Carried:
    """Random weights with calibrated norms."""
    from bblab import build

    return Carried(build.build(spec, kinds, seed=seed), {"source": f"random weights, seed {seed}", "is_random": True})


def from_file(
    path: Path | str, spec: ArchSpec, kinds: Mapping[str, BlockInfo], extra: Mapping[str, Any] | None = None
) -> Carried:
    """A weight file in the spec's train form. A tracker takes maps: a head of another size is left out and said.

    Raises BblabError for a file that cannot be read, is fused, or is of another spec, with keys and shapes.
    """
    from bblab import build
    from bblab.weights import files, sources

    found = files.read(path)
    module = build.build(spec, kinds)
    wanted = files.shapes_of(module)
    backbone = {k: v for k, v in wanted.items() if not k.startswith(files.HEAD)}
    _refuse_fused(found, backbone, spec)
    fit = sources.named(found.state, spec, wanted, optional=_later_stages(spec))
    if fit.wrong:
        raise BblabError(_other_spec(list(fit.wrong), found, path, spec), hint=_how_to_import(spec, path))
    state, notes = files.clean(fit.state, str(path))
    warnings = list(notes)
    ours = found.metadata if found.is_ours else {}
    images = sources.images_of(found, fit)
    pixels: dict[str, Any] = {}
    if images is not None:
        state = _in_rgb(state, spec) if images.is_bgr else state
        mean, std = (list(reversed(v)) if images.is_bgr else list(v) for v in (images.mean, images.std))
        pixels = {"mean": mean, "std": std, "trained_on": str(images)}
    module.load_state_dict(state, strict=False)
    written_for = ours.get("spec_id", "")
    if written_for and written_for != spec.spec_id:
        warnings += differences(ours.get("spec", ""), spec)
    provenance = {
        "source": str(path),
        "file": Path(path).name,
        "sha256": found.sha256,
        "content_sha256": ours.get("content_sha256"),
        "wrapper": found.wrapper or None,
        "prefix": fit.prefix or None,
        "written_for_spec": written_for or None,
        "is_random": False,
        "imported_from": ours.get("source") or None,
        "head_left_out": fit.other_head or None,
        **pixels,
        **(extra or {}),
    }
    return Carried(module.eval(), provenance, tuple(warnings))


def _in_rgb(state: Mapping[str, Tensor], spec: ArchSpec) -> dict[str, Tensor]:
    """Weights that were trained on BGR, for a net that is fed RGB: the layers that read the image, their inputs turned.

    Raises BblabError where no such layer is found.
    """
    first = f"stages.{spec.stages[0].name}.0." if spec.stages else ""
    turned = {
        k: t.flip(1).contiguous() for k, t in state.items() if k.startswith(first) and t.dim() == 4 and t.shape[1] == 3
    }
    if not first or not turned:
        raise BblabError(
            f"the weights were trained on BGR images, and no convolution of {spec.name} is seen that reads the image",
            hint="give weights that were trained on RGB",
        )
    return {**state, **turned}


def _later_stages(spec: ArchSpec) -> tuple[str, ...]:
    """Keys that no tap needs: a file may leave them out."""
    if spec.library:
        return ()
    kept = {s.name for s in spec.backbone_stages}
    return tuple(f"stages.{s.name}." for s in spec.stages if s.name not in kept) or ("\0",)


def _refuse_fused(found: Any, wanted: Mapping[str, Any], spec: ArchSpec) -> None:
    has_norms = any(k.endswith("running_mean") for k in wanted)
    is_bare = not any(k.endswith("running_mean") for k in found.state)
    if found.metadata.get("form") == "deploy" or (has_norms and is_bare):
        raise BblabError(
            f"{found.path} is fused: it has no batch norm, {spec.name} in train form has "
            f"{sum(k.endswith('running_mean') for k in wanted)}",
            hint="trainers freeze and train norms and branches: give the unfused weights of the training run "
            "(--run ID), and fuse after training (`deploy` in the exported module)",
        )


def _other_spec(wrong: list[str], found: Any, path: Path | str, spec: ArchSpec) -> str:
    whose = found.metadata.get("name", "")
    whose = f", written for {whose} ({found.metadata.get('spec_id', '?')})" if whose else ""
    more = f"\n  ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    lines = "\n".join(f"  {w}" for w in wrong[:_SHOWN])
    return f"{path} does not fit {spec.name}{whose}: {len(wrong)} tensors\n{lines}{more}"


def _how_to_import(spec: ArchSpec, path: Path | str) -> str:
    return (
        f"give the spec they were trained for, or bring them into this one first: "
        f"bblab import {spec.name} --from {path} --inherit"
    )


def differences(canonical: str, spec: ArchSpec) -> list[str]:
    """How the blocks a file was written for differ from the spec's, where only arguments differ that shapes hide."""
    try:
        old = dict(json.loads(canonical)["stages"])
    except (ValueError, KeyError, TypeError):
        return []
    said = []
    new = dict(json.loads(spec.canonical)["stages"])
    for stage in (s.name for s in spec.backbone_stages):
        for place, (a, b) in enumerate(zip(old.get(stage, ()), new[stage], strict=False)):
            if a != b:
                before = dict(map(_pair, a[3])) | {"kind": a[0], "out": a[1], "stride": a[2]}
                after = dict(map(_pair, b[3])) | {"kind": b[0], "out": b[1], "stride": b[2]}
                keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
                words = ", ".join(f"{k} {before.get(k, 'as usual')} -> {after.get(k, 'as usual')}" for k in keys)
                said.append(f"{stage}.{place}: {words}")
    if not said:
        return []
    shown = "; ".join(said[:4]) + (f"; and {len(said) - 4} more rows" if len(said) > 4 else "")
    return [f"the weights load, but were trained with other arguments, so the features differ: {shown}"]


def _pair(item: Any) -> tuple[str, Any]:
    return str(item[0]), json.dumps(item[1])
