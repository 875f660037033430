"""bblab export: a spec and its weights to a tracker trainer, or to the device."""

from __future__ import annotations

from collections.abc import Mapping
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
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="FORMAT", help="For the device, fused: onnx, ncnn or torchscript."),
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
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="--to: one model with open sizes, not one each for template and search.")
    ] = False,
    normalise: Annotated[
        str, typer.Option("--normalise", metavar="WHERE", help="--to: outside; or inside: it takes BGR, 0 to 255.")
    ] = "outside",
    int8: Annotated[bool, typer.Option("--int8", help="--to onnx: also in int8, with the error per tap.")] = False,
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", metavar="DIR", help="--int8: your own images, else shipped photos.")
    ] = None,
    edits: common.SetOption = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Write a folder with which a tracker trainer trains this backbone, without edits; or the fused net for the device.

    --for: the network as one readable module, its unfused weights, the trainer's whole configuration, launch.py, and
    check.py, which tests all of it on the CPU against the trainer's own code. --to: ONNX, ncnn or TorchScript files
    for template and search size, checked against torch on photos.
    """
    if (for_ is None) == (to is None):
        from bblab.export.target import names

        raise BblabError(
            "where to?" if for_ is None else "--for is a trainer, --to the device: give one of them",
            hint=f"--for TRAINER: {', '.join(names())}\n  --to FORMAT: onnx, ncnn, torchscript",
        )
    _check_options(to, fit=fit, dynamic=dynamic, normalise=normalise, int8=int8, calibrate=calibrate)
    if out is None:
        raise BblabError("where is the folder to be written?", hint="--out DIR")
    opened = common.open_lab(lab)
    err = common.console(stderr=True)
    doing = "fitting maps, writing the folder" if for_ else "converting, comparing with torch"
    busy = err.status(doing) if err.is_terminal and json != "-" else nullcontext()
    weighed: dict[str, Any] = {"edits": edits or (), "run": run, "weights": weights, "force": force}
    with busy:
        if for_ is not None:
            done = opened.hand_over(spec, for_, out, fit=fit, **weighed)
        else:
            assert to is not None
            options: dict[str, Any] = {"dynamic": dynamic, "normalise": normalise, "int8": int8, "calibrate": calibrate}
            done = opened.deploy(spec, to, out, **weighed, **options)
    if json:
        common.write_json(json, done.to_json())
    for notice in [*opened.notices, *done.export.warnings]:
        common.warn(notice)
    if json == "-":
        return
    (_draw if for_ is not None else _draw_device)(done)
    where = f"written {common.short(done.export.folder)}/ as export {done.export.export_id}"
    if done.run_id is not None:
        where += f"; stored as run {done.run_id} in {common.short(opened.store_path)}"
    common.console().print(f"{where} · next: {_next(done)}", style="dim", markup=False, soft_wrap=True)


def _check_options(to: str | None, *, fit: bool, **device: Any) -> None:
    """Options of one way out given with the other."""
    if to is not None and fit:
        raise BblabError("--fit makes a spec fit a trainer", hint="give it with --for, or leave it away")
    usual = {"dynamic": False, "normalise": "outside", "int8": False, "calibrate": None}
    given = [f"--{name}" for name, value in device.items() if value != usual[name]]
    if to is None and given:
        raise BblabError(f"{', '.join(given)}: for --to, not for a trainer", hint="give --to onnx, or leave it away")


def _next(done: HandOver) -> str:
    manifest, folder = done.export.manifest, common.short(done.export.folder)
    if "trainer" not in manifest:
        return f"bblab bench {done.spec.name}"
    has_trainer = bool(manifest["trainer"]["script"])
    checkout = manifest["trainer"]["repository"].rpartition("/")[2]
    return f"python {folder}/check.py" + (f" --trainer {checkout}" if has_trainer else "")


def _draw(done: HandOver) -> None:
    from bblab.export.folder import frozen_words

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
    out.print(f"{'':<9} {score}stride {geometry['stride'] or 'unknown'}", markup=False)
    held = manifest["weights"]
    kind = manifest["provenance"]["source"] + _left_and_fed(manifest)
    out.print(
        f"weights   {held['tensors']} tensors, {common.si(held['parameters'])} parameters, unfused; {kind}",
        markup=False,
        soft_wrap=True,
    )
    out.print(f"frozen    {frozen_words(manifest['freeze'])}", markup=False, soft_wrap=True)


def _draw_device(done: HandOver) -> None:
    from rich.table import Table

    out = common.console()
    manifest = done.export.manifest
    feeds = manifest["input"]["feeds"]
    out.print(f"[bold]{done.spec.name}[/] {manifest['target']}, deploy form; takes {feeds}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("file", "for", "tap", "map", "off train", "size"):
        table.add_column(name, justify="right" if name in ("off train", "size") else "left", overflow="fold")
    for row in manifest["models"]:
        roles = [f"{s['role']} {s['px']}" for s in row["for"]]
        for tap, error in row["max_rel_error"].items():
            maps = " ".join(common.shape(row["outputs"][s["role"]][tap]) for s in row["for"])
            percent = f"{error:.1%}" if row.get("precision") == "int8" else f"{error:.1g}"
            size = common.megabytes(row["bytes"]) if tap == next(iter(row["max_rel_error"])) else ""
            table.add_row(row["file"] if size else "", ", ".join(roles) if size else "", tap, maps, percent, size)
    out.print(table)
    if told := _left_and_fed(manifest):
        out.print(told.strip("\n"), markup=False, soft_wrap=True)
    checked = manifest["checked"]
    are = "photos" if checked["are_photos"] else "made-up images"
    out.print(
        f"off the train form in torch with these weights, on {len(checked['images'])} {are}: largest difference over "
        "the largest value",
        markup=False,
        style="dim",
        soft_wrap=True,
    )
    if manifest["int8"]:
        how = manifest["int8"][0]["calibration"]
        out.print(f"int8: root of the mean square over that of the map; calibrated on {how}", markup=False, style="dim")
    for row in manifest["latency"][:3]:
        where = f"{row['device']}, {row['runtime']}, {common.shape(row['input'])}"
        told = f"latency {common.milliseconds(row['cpu_p10_s'])} CPU p10 ({where}; run {row['run']})"
        out.print(told, markup=False, soft_wrap=True)


def _left_and_fed(manifest: Mapping[str, Any]) -> str:
    """What became of the weights' head, and the images that they were trained on: a line each, or none."""
    told, lines = manifest["provenance"], ""
    if told.get("head_left_out"):
        lines += f"\n{'':<10}the file's head is left out ({told['head_left_out']}): a tracker takes maps"
    if told.get("trained_on"):
        lines += f"\n{'':<10}trained on images as {told['trained_on']}: mean and deviation are set to that"
    return lines


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
