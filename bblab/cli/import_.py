"""bblab import: another library's, a file's or an older edit's weights in a spec, proved by equal outputs."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bblab.cli import common

if TYPE_CHECKING:
    from bblab.weights import Imported


def register(app: typer.Typer) -> None:
    app.command("import", epilog="Example: bblab import mobileone_s0 --from timm:mobileone_s0")(import_)


def import_(
    spec: common.SpecArgument,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="timm:NAME, torchvision:NAME, mmpretrain:NAME (pretrained), a .safetensors file or a checkpoint.",
        ),
    ],
    keys_of: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NET",
            help="Whose keys the file has: timm:NAME or a spec; nanotrack: its tracker's.",
        ),
    ] = None,
    inherit: Annotated[
        bool, typer.Option("--inherit", help="After an edit: take what fits of a file written for an older spec.")
    ] = False,
    random: Annotated[
        bool, typer.Option("--random", help="Random weights of the other library's net, for trying without a network.")
    ] = False,
    edits: common.SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to; else weights/NAME-HASH.safetensors in the lab."),
    ] = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Load weights into a spec and write them as safetensors.

    A match means equal outputs: layers are paired by structure, and both nets run on the same random images. Nothing
    is written where something does not fit; --inherit takes what does.
    """
    from bblab.weights import NoMatch

    opened = common.open_lab(lab)
    err = common.console(stderr=True)
    busy = err.status("pairing layers, comparing outputs") if err.is_terminal and json != "-" else nullcontext()
    try:
        with busy:
            result = opened.import_weights(
                spec, source, edits=edits or (), keys_of=keys_of, inherit=inherit, random=random, out=out
            )
    except NoMatch as error:
        if json:
            common.write_json(json, {"verdict": "no_match", "misfits": [m.to_json() for m in error.misfits]})
        raise
    if json:
        common.write_json(json, result.to_json())
    for notice in opened.notices:
        common.warn(notice)
    if json == "-":
        return
    _draw(result)
    where = f"written {common.short(result.path)}" if result.path else "not written"
    if result.run_id is not None:
        where += f"; stored as run {result.run_id} in {common.short(opened.store_path)}"
    common.console().print(f"{where} · next: bblab profile {spec}", style="dim", markup=False, soft_wrap=True)


def _draw(result: Imported) -> None:
    out = common.console()
    version = f" ({result.source_version})" if result.source_version else ""
    out.print(f"[bold]{result.name}[/]  weights of {result.source}{version}", soft_wrap=True)
    for line in lines(result):
        out.print(line, markup=False, soft_wrap=True)
    for note in result.notes[:12]:
        out.print(f"· {note}", markup=False, style="dim", soft_wrap=True)
    if len(result.notes) > 12:
        out.print(f"· and {len(result.notes) - 12} more such notes (--json -)", style="dim", markup=False)
    for here, there, count in result.eps:
        common.warn(
            f"norm eps {there:g} there, {here:g} here ({count} norms): outputs differ by {result.max_rel_diff:.2g}; "
            f"equal when eps is equalised ({result.max_rel_diff_equal_eps:.2g}): "
            f"--set defaults.eps={there:g} gives the same net"
        )


def lines(result: Imported) -> list[str]:
    """What a person reads of an import, without its notes."""
    if result.verdict == "same_spec":
        if result.tracker:
            return [f"backbone of {result.tracker}: loaded by name, {len(result.state)} tensors"]
        return ["the file was written for this very spec: loaded by name"]
    if result.verdict != "inherited":
        head = "with the head" if result.has_head else "without a head"
        said = f"{result.num_layers} layers paired by structure, {head}"
        places = ", ".join(here for here, _ in result.compared_at)
        apart = result.max_rel_diff
        verdict = "outputs are equal" if result.verdict == "equal" else "outputs are equal but for the norms' epsilon"
        rows = [
            *([f"backbone of {result.tracker}"] if result.tracker else []),
            said,
            f"{verdict}: they differ by {apart:.2g} of the largest value (float64, random weights; at {places})",
        ]
        if result.weights_rel_diff is not None:
            rows.append(f"with these weights they differ by {result.weights_rel_diff:.2g}")
        return rows
    params, macs = result.params_inherited_ratio, result.macs_inherited_ratio
    rows = [f"inherited: {_share(params)} of the parameters, {_share(macs)} of the MACs"]
    if result.params_set_ratio:
        rows[0] += f"; {_share(result.params_set_ratio)} of the parameters set so that the function is kept"
    if result.max_rel_diff is not None:
        rows.append(
            f"against the old net, the last tap differs by {result.max_rel_diff:.2g} of its largest value (float64)"
        )
    if result.leftovers:
        rows.append(f"random, wholly or in part: {len(result.leftovers)} tensors")
        for item in result.leftovers[:20]:
            size = common.shape(item.shape)
            rows.append(f"  {item.name} {size}: {item.random} of its numbers ({item.why})")
        if len(result.leftovers) > 20:
            rows.append(f"  and {len(result.leftovers) - 20} more (--json -)")
    return rows


def _share(ratio: float) -> str:
    """A share in percent; neither 0 nor 100 % where it is not."""
    if 0 < ratio < 0.001:
        return "< 0.1 %"
    if 0.999 < ratio < 1:
        return "> 99.9 %"
    return f"{100 * ratio:.3g} %"
