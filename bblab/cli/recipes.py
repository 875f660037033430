"""bblab recipes: the training recipes that can be named, what they cost and what they have reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from bblab.cli import common
from bblab.errors import BblabError

RateOption = Annotated[
    str | None,
    typer.Option("--rate", metavar="N[@PX]", help="Images/s that your machine trains, for the hours: 3000@160."),
]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab recipes --rate 3000@160 · bblab recipes rank16")(recipes)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this one whole; or a .yaml path.")] = None,
    rate: RateOption = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """List the pretraining recipes with their cost and published results, or show one whole.

    Hours assume that a training image's time grows with its pixels, a validation image takes a third of it, one
    validation an epoch, and that the data keeps up.
    """
    opened = common.open_lab(lab)
    images_per_s, at_px = _rate(rate)
    found = opened.recipes(name, rate=images_per_s, at_px=at_px)
    if json:
        common.write_json(json, found[0] if name else found)
    if json == "-":
        return
    if name:
        _print_whole(found[0])
        after = f"bblab pretrain SPEC --recipe {name}"
    else:
        _print_list(found)
        after = "bblab recipes rank16"
    _print_assumption(found)
    common.console().print(f"next: {after}", style="dim", markup=False)


def _rate(text: str | None) -> tuple[float | None, int]:
    if text is None:
        return None, 224
    number, at, px = text.partition("@")
    try:
        rate, size = float(number.replace(",", "")), int(px) if at else 224
    except ValueError:
        rate, size = -1.0, 0
    if not (0 < rate < 1e9 and 8 <= size <= 4096):
        raise BblabError(f"--rate {text!r}", hint="images a second, and the size if it is not 224 px: 3000@160")
    return rate, size


def _print_assumption(found: Sequence[Mapping[str, Any]]) -> None:
    out = common.console()
    out.print("of 224 px: as many pixels as that many epochs of 224 px have", style="dim", soft_wrap=True)
    assumed = found[0]["cost"]["hours_assume"]
    if assumed is None:
        said = "hours: with --rate IMAGES_PER_S@PX, or once a training is in the lab"
    else:
        source = f" ({assumed['source']})" if assumed["source"] else ""
        said = f"hours at {assumed['images_per_s']:,.4g} images/s of {assumed['at_px']:.0f} px{source}, on ImageNet-1k "
        said += "(digits: on digits); time by pixels, a validation each epoch at a third of it, the data keeping up"
    out.print(said, style="dim", soft_wrap=True, markup=False)


def _print_list(found: Sequence[Mapping[str, Any]]) -> None:
    """Two lines each, the cheapest first: the numbers, and what it is for."""
    from rich.text import Text

    out = common.console()
    has_hours = any(r["cost"]["hours"] is not None for r in found)
    title = f"{'recipe':<18}{'epochs':>6}  {'px':<9}{'of 224 px':>9}" + (f"{'hours':>10}" if has_hours else "")
    out.print(Text(f"{title}  published", style="dim"))
    for r in sorted(found, key=lambda r: r["cost"]["epochs_at_224px"]):
        cost = r["cost"]
        line = f"{r['name']:<18}{r['epochs']:>6}  {_sizes(r):<9}{cost['epochs_at_224px']:>9.3g}"
        if has_hours:
            line += f"{'' if cost['hours'] is None else _hours(cost['hours']):>10}"
        out.print(Text(f"{line}  {_best(r)}".rstrip()), soft_wrap=True)
        out.print(Text(f"  {r['about']}", style="dim"), soft_wrap=True)


def _hours(hours: float) -> str:
    return f"{hours * 60:.2g} min" if hours < 1 else f"{hours:.3g} h"


def _sizes(r: Mapping[str, Any]) -> str:
    return "→".join(str(px) for px in [r["resolution_px"], *(px for _, px in r["resolution_ramp"])])


def _best(r: Mapping[str, Any]) -> str:
    if not r["published"]:
        return ""
    first = r["published"][0]
    top1 = "" if first["top1_percent"] is None else f"{first['top1_percent']:g} % "
    minutes = f", {first['minutes']:g} min on {first['device']}" if first["minutes"] else ""
    return f"{top1}{first['net']}{minutes}"


_TITLES = {
    "steps": ("epochs", "optimizer", "lr", "base_batch", "momentum", "nesterov", "rms_alpha", "betas", "eps",
              "clip_grad_norm"),
    "schedule": ("schedule", "final_lr_ratio", "gamma", "step_epochs", "milestones", "warmup", "warmup_epochs",
                 "warmup_start_factor"),
    "decay": ("weight_decay", "final_weight_decay", "decays_norms", "decays_biases"),
    "loss": ("loss", "label_smoothing", "dropout", "drop_path", "ema_momentum"),
    "pictures": ("resolution_px", "resolution_ramp", "val_resolution_px", "val_crop_ratio", "interpolation", "augment",
                 "mixup", "cutmix", "repeated_augment"),
}  # fmt: skip
_ONLY = {
    "momentum": ("sgd", "rmsprop"), "nesterov": ("sgd",), "rms_alpha": ("rmsprop",), "betas": ("adamw", "lamb"),
    "eps": ("rmsprop", "adamw", "lamb"), "gamma": ("exponential", "step"), "step_epochs": ("exponential",),
    "milestones": ("step",), "final_lr_ratio": ("cosine", "linear"),
}  # fmt: skip


def _print_whole(r: Mapping[str, Any]) -> None:
    """Every number that has an effect, in groups; published results; what does not carry over."""
    from bblab.cli import tables

    out = common.console()
    out.print(f"{r['name']}  {r['about']}", markup=False, soft_wrap=True)
    out.print(f"source: {r['source']}\n", markup=False, soft_wrap=True)
    drawn = tables.plain([("", "left"), ("", "left"), ("", "left")])
    drawn.show_header = False
    for title, keys in _TITLES.items():
        shown = title
        for key in keys:
            if key in _ONLY and r["optimizer"] not in _ONLY[key] and r["schedule"] not in _ONLY[key]:
                continue
            if not r["warmup_epochs"] and key.startswith("warmup"):
                continue
            if r[key] is None or (key in ("milestones", "resolution_ramp") and not r[key]):
                continue
            drawn.add_row(shown, key, _value(key, r[key]))
            shown = ""
    out.print(drawn)
    cost = r["cost"]
    hours = "" if cost["hours"] is None else f", {_hours(cost['hours'])}"
    out.print(f"\ncost: {r['epochs']} epochs, as many pixels as {cost['epochs_at_224px']:.3g} of 224 px{hours}")
    for p in r["published"]:
        top1 = "" if p["top1_percent"] is None else f"{p['top1_percent']:g} % top-1"
        took = f"{p['minutes']:g} min on {p['device']}" if p["minutes"] else ""
        out.print(
            f"published: {', '.join(x for x in (p['net'], top1, took, p['note']) if x)}", markup=False, soft_wrap=True
        )
    for line in r["omitted"]:
        out.print(f"not carried over: {line}", markup=False, soft_wrap=True)


def _value(key: str, value: Any) -> str:
    if key == "augment":
        return "\n".join(_step(step) for step in value) or "none"
    if key == "resolution_ramp":
        return ", ".join(f"{px} from epoch {epoch}" for epoch, px in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _step(step: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{k} {_number(v)}" for k, v in step.items() if k != "step")
    return f"{step['step']} ({numbers})" if numbers else str(step["step"])


def _number(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "–".join(f"{n:.3g}" for n in value)
    return value if isinstance(value, str) else f"{value:.3g}"
