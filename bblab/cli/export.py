"""bblab export: a spec and its weights to a tracker trainer, or to the device."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bblab.cli import common
from bblab.errors import BblabError

if TYPE_CHECKING:
    from bblab.export.fitting import Change, Maps
    from bblab.lab.exporting import HandOver


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab export mobileone_k5_se --run 12 --for nanotrack --out handover/")(export)


def export(
    spec: common.SpecArgument,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="TRAINER",
            help="nanotrack[:v1|v2|v3], pysot[:siamban], ocean, stark, siamfcpp or generic[:bgr255].",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The folder to write.")] = None,
    run: Annotated[
        int | None, typer.Option("--run", metavar="ID", help="Weights of a stored run: bblab pretrain or bblab import.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="FILE", help="Weights of a .safetensors file or a checkpoint.")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Change the spec so that its maps fit the trainer; says what that costs.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what bblab wrote into DIR before, and nothing else.")
    ] = False,
    edits: common.SetOption = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Write a folder with which a tracker trainer trains this backbone, without edits.

    It holds the network as one readable module, its unfused weights, the trainer's whole configuration, launch.py, and
    check.py, which tests all of it on the CPU against the trainer's own code.
    """
    if for_ is None:
        from bblab.export.target import names

        raise BblabError("where to?", hint=f"--for TRAINER: {', '.join(names())}")
    if out is None:
        raise BblabError("where to is the folder to be written?", hint="--out DIR")
    opened = common.open_lab(lab)
    err = common.console(stderr=True)
    busy = err.status("fitting maps, writing the folder") if err.is_terminal and json != "-" else nullcontext()
    with busy:
        done = opened.hand_over(spec, for_, out, edits=edits or (), run=run, weights=weights, fit=fit, force=force)
    if json:
        common.write_json(json, done.to_json())
    for notice in [*opened.notices, *done.export.warnings]:
        common.warn(notice)
    if json == "-":
        return
    _draw(done)
    where = f"written {common.short(done.export.folder)}/ as export {done.export.export_id}"
    if done.run_id is not None:
        where += f"; stored as run {done.run_id} in {common.short(opened.store_path)}"
    common.console().print(f"{where} · next: {_next(done)}", style="dim", markup=False, soft_wrap=True)


def _next(done: HandOver) -> str:
    manifest, folder = done.export.manifest, common.short(done.export.folder)
    has_trainer = bool(manifest["trainer"]["script"])
    return f"python {folder}/check.py" + (f" --trainer {manifest['trainer']['name']}-CHECKOUT" if has_trainer else "")


def _draw(done: HandOver) -> None:
    out = common.console()
    manifest = done.export.manifest
    geometry, trainer = manifest["geometry"], manifest["trainer"]
    variant = f" ({manifest['variant']})" if manifest["variant"] else ""
    read = f"  {trainer['repository']} {trainer['commit']}" if trainer["repository"] else ""
    out.print(f"[bold]{done.spec.name}[/] for {trainer['name']}{variant}{read}", soft_wrap=True)
    if done.change is not None:
        for line in change_lines(done.change):
            out.print(line, markup=False, soft_wrap=True, style="yellow")
    for size in ("template", "search"):
        taps = ", ".join(f"{t['stage']} {common.shape(t['map'])}" for t in geometry[size]["taps"])
        out.print(f"{size:<9} {geometry[size]['px']} px → {taps}", markup=False, soft_wrap=True)
    score = f"score map {geometry['score_map']}×{geometry['score_map']}, " if geometry["score_map"] else ""
    out.print(f"{'':<9} {score}stride {geometry['stride']}", markup=False)
    held = manifest["weights"]
    kind = manifest["provenance"]["source"]
    out.print(
        f"weights   {held['tensors']} tensors, {common.si(held['parameters'])} parameters, unfused; {kind}",
        markup=False,
        soft_wrap=True,
    )
    frozen = manifest["freeze"]
    if frozen["epochs"]:
        out.print(f"frozen    until epoch {frozen['epochs']}, then {', '.join(frozen['layers'])} learn", markup=False)


def change_lines(change: Change) -> list[str]:
    """What `--fit` did, and its cost."""
    lines = [f"fitted    {change.command}"]
    if change.before is not None:
        lines += [f"          {text}" for text in _compared(change.before, change.after)]
    if change.misfits:
        lines.append(f"          weights of the old spec do not load: {len(change.misfits)} tensors differ")
        lines += [f"            {text}" for text in change.misfits[:4]]
    else:
        lines.append("          weights of the old spec load (same names and shapes), but the features change")
    return lines


def _compared(before: Maps, after: Maps) -> list[str]:
    def times(a: float, b: float) -> str:
        return "=" if a == b else f"{common.digits(b / a)}×" if a else "–"

    pairs: list[tuple[str, Any, Any, str]] = [
        ("template", before.z, after.z, "map"),
        ("search", before.x, after.x, "map"),
        ("parameters, fused", before.search.params_backbone, after.search.params_backbone, "count"),
        ("MACs at search size", before.search.macs_backbone, after.search.macs_backbone, "count"),
        ("receptive field, px", before.receptive_field, after.receptive_field, "px"),
    ]
    found = []
    for name, old, new, sort in pairs:
        if sort == "map":
            text = f"{common.shape(old)} → {common.shape(new)}"
        elif sort == "count":
            text = f"{common.si(old)} → {common.si(new)}  {times(old, new)}"
        else:
            text = f"{old or 'unknown'} → {new or 'unknown'}"
        found.append(f"{name:<20} {text}")
    return found
