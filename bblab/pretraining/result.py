"""What a training leaves: weights.safetensors, both forms compared on real images, a model card."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bblab
from bblab import build
from bblab.errors import RunError
from bblab.folding import words
from bblab.pretraining import card, checkpoints, nets, record
from bblab.pretraining.config import Plan
from bblab.spec import ArchSpec, BlockInfo
from bblab.weights import content_hash, save

WEIGHTS = "weights.safetensors"
COMPARED = 512  # validation images on which both forms run


def export(plan: Plan, folder: Path, images: Iterable[Any], model: nn.Module) -> dict[str, Any]:
    """Write the newest epoch's weights (averaged, where the recipe averages) and compare train and deploy form.

    The weights are read from the checkpoint, so that the file holds what was validated. Raises RunError where the
    forms do not agree, or there is no checkpoint.
    """
    path, wrong = checkpoints.newest(folder, is_whole=True)
    if path is None or wrong:
        why = f": {wrong[0]}" if wrong else ""
        raise RunError(f"{folder} has no checkpoint of its last epoch{why}", hint="go on with --resume")
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    prefix = "backbone.net."
    state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    order = checkpoints.order(path)
    assert order is not None
    epoch = order[0]
    history = record.History.of(folder)
    top1 = history.validations.get(epoch, {}).get("top1_percent")
    preprocess: Any = getattr(model, "module", model).data_preprocessor
    metadata = {
        "name": plan.name,
        "spec_id": _trained_id(plan),
        "spec": json.dumps(plan.spec, separators=(",", ":"), sort_keys=True),
        "form": "train",
        "bblab": bblab.__version__,
        "source": f"pretrained with the recipe {plan.recipe.name}",
        "epoch": str(epoch),
        "is_average": str(plan.recipe.ema_momentum is not None).lower(),
        "top1_percent": "" if top1 is None else f"{top1:.4f}",
        "classes": json.dumps(list(plan.data["classes"])),
        "data_hash": str(plan.data.get("hash", "")),
    }
    target = folder / WEIGHTS
    target.unlink(missing_ok=True)  # ours, of an earlier end of this run
    save(state, target, metadata)
    apart, compared = compare_forms(plan, state, images, preprocess)
    found = {
        "epoch": epoch,
        "file": WEIGHTS,
        "bytes": target.stat().st_size,
        "content_sha256": content_hash(state, metadata["spec_id"]),
        "top1_percent": top1,
        "is_average": plan.recipe.ema_momentum is not None,
        **compared,
    }
    record.append(folder, "result", **found)
    write_card(plan, folder)
    if apart is not None and apart.is_another_function:
        raise RunError(
            f"the deploy form's scores differ from the train form's by {apart.words()}",
            hint="the weights are written, but do not deploy them before this is understood",
        )
    return found


def _trained_id(plan: Plan) -> str:
    spec, _ = nets.spec_of(plan.spec, plan.name, plan.lab)
    return spec.spec_id


def compare_forms(
    plan: Plan, state: dict[str, Tensor], images: Iterable[Any], preprocess: nn.Module
) -> tuple[build.Difference | None, dict[str, Any]]:
    """Train and deploy form on validation images, in float32 on the CPU: how far their scores are apart, and a record.

    Of the record `forms_rel_diff` is the largest difference of a score over the largest score, `forms_rel_diff_float64`
    the same in float64 on the batch that differs most (null where float32 stays below 1e-3). Both are null, and there
    is no difference, for another library's net.
    """
    spec, kinds = nets.spec_of(plan.spec, plan.name, plan.lab)
    net, _ = nets.make(spec, kinds, plan.num_classes)
    if not isinstance(net, build.Backbone):
        return None, {"forms_rel_diff": None, "forms_images": 0, "forms_other_answers": 0}
    net.load_state_dict(state)
    _settle_progress(net)
    net.eval()
    fused = build.to_deploy(net, spec, kinds)
    assert isinstance(fused, build.Backbone)
    worst, largest = -1.0, 0.0
    hardest: Tensor | None = None
    seen = other = 0
    preprocess = preprocess.to("cpu")
    with torch.no_grad():
        for batch in images:
            x = preprocess(batch)["inputs"]
            a, b = net.classify(x), fused.classify(x)
            largest = max(largest, float(a.abs().max()))
            off = float((a - b).abs().max())
            if not off <= worst:  # a nan too
                worst, hardest = off, x
            other += int((a.argmax(1) != b.argmax(1)).sum())
            seen += len(x)
            if seen >= COMPARED:
                break
    diff = worst / largest if largest and math.isfinite(worst) else math.inf
    apart = build.Difference(diff)
    if math.isfinite(diff) and apart.is_another_function and hardest is not None:  # or is it rounding?
        try:
            apart = build.Difference(diff, _apart_in_float64(net, spec, kinds, hardest))
        except Exception as error:  # a user's block may hold float32 by force
            apart = build.Difference(diff, no_float64_because=words(error))
    return apart, {
        "forms_rel_diff": diff,
        "forms_rel_diff_float64": apart.in_float64,
        "forms_images": seen,
        "forms_other_answers": other,
    }


def _apart_in_float64(net: build.Backbone, spec: ArchSpec, kinds: Mapping[str, BlockInfo], x: Tensor) -> float:
    """The largest difference of a score over the largest score, both forms made and run in float64."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            train = copy.deepcopy(net).double()
            fused = build.to_deploy(train, spec, kinds)
            assert isinstance(fused, build.Backbone)
            return build.rel_diff([train.classify(x.double())], [fused.classify(x.double())], spec.name)
    finally:
        torch.set_default_dtype(usual)


def _settle_progress(net: nn.Module) -> None:
    for module in net.modules():
        teller = getattr(module, "set_progress", None)
        if callable(teller):
            teller(1.0)


def write_card(plan: Plan, folder: Path) -> Path:
    """The model card from the record."""
    path = folder / card.CARD
    partial = folder / f".{card.CARD}.{os.getpid()}.partial"
    partial.write_text(card.text(plan, record.History.of(folder)), encoding="utf-8")
    partial.replace(path)
    return path
