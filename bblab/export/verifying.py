"""A hand-over module is run before its folder is put in place: its keys are its weights', its features are bblab's."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError
from bblab.export import codegen, folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bblab.export.carrying import Carried

TOLERANCE = 1e-4
"""Of a map's largest value, float32: what `check.py` asks for too."""
_SHOWN = 6


def verify(files: Mapping[str, bytes], manifest: Mapping[str, Any], carried: Carried, name: str) -> None:
    """Run the module as its files have it, with its weights, at template and search size, beside bblab's own net.

    `carried`: the train form that was exported, with its weights. Raises BblabError with what differs: it does not run,
    keys or shapes, features by more than `TOLERANCE` of a map's largest value.
    """
    import torch

    module_name = str(manifest["module"])
    try:
        module = codegen.load(files[f"{module_name}.py"].decode(), module_name).Backbone()
    except Exception as error:
        raise _refused(name, f"it does not run: {type(error).__name__}: {error}") from error
    prefix = str(manifest["weights"]["prefix"])
    saved = torch.load(io.BytesIO(files[str(manifest["weights"]["file"])]), weights_only=True)
    state = {key.removeprefix(prefix): value for key, value in saved.items()}
    wrong = _keys(module.state_dict(), state)
    if wrong:
        more = f"\n  ... and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise _refused(name, "its keys are not those of its weights:\n  " + "\n  ".join(wrong[:_SHOWN]) + more)
    module.load_state_dict(state)
    data = torch.load(io.BytesIO(files["check_data.pth"]), weights_only=True)
    for size in ("template", "search"):
        fed = data[size]["input"]
        normalised = folder.normalised(fed, carried) if manifest["input"]["feeds"] == "bgr255" else fed
        wrong = _features(module, carried.module, fed, normalised, manifest, size)
        if wrong:
            raise _refused(name, "its features are not those of bblab's own net:\n  " + "\n  ".join(wrong))


def _refused(name: str, why: str) -> BblabError:
    return BblabError(
        f"the module written for {name} was tried, and {why}",
        hint="nothing was put in place. A block's code is copied by name; what it takes from elsewhere (globals that "
        "change, randomness, state outside of the state dict) cannot be: change the block",
    )


def _keys(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    wrong = [f"{key}: in the module, not among the weights" for key in wanted if key not in given]
    wrong += [f"{key}: among the weights, not in the module" for key in given if key not in wanted]
    for key in wanted:
        if key in given and wanted[key].shape != given[key].shape:
            shapes = ["x".join(map(str, t.shape)) or "a number" for t in (wanted[key], given[key])]
            wrong.append(f"{key}: {shapes[0]} in the module, {shapes[1]} in the weights")
    return wrong


def _features(
    module: nn.Module, net: nn.Module, fed: Tensor, normalised: Tensor, manifest: Mapping[str, Any], size: str
) -> list[str]:
    import torch

    from bblab.latency.models import flat_outputs

    stages = [tap["stage"] for tap in manifest["geometry"][size]["taps"]]
    with torch.no_grad():
        try:
            maps = module.eval()(fed)
        except Exception as error:
            return [f"{size}, {tuple(fed.shape[2:])} px: {type(error).__name__}: {error}"]
        maps = list(maps) if isinstance(maps, Sequence) else [maps]
        expected = flat_outputs(net.eval(), normalised)
    wrong = []
    if len(maps) != len(expected):
        return [f"{size}: {len(maps)} maps, wanted {len(expected)}"]
    for stage, mine, theirs in zip(stages, maps, expected, strict=True):
        if mine.shape != theirs.shape:
            wrong.append(f"{size}, {stage}: {_shape(mine)}, wanted {_shape(theirs)}")
            continue
        apart = float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))
        if not apart <= TOLERANCE:
            wrong.append(f"{size}, {stage}: off by {apart:.2g} of the largest value, allowed {TOLERANCE:g}")
    return wrong


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[1:]))
