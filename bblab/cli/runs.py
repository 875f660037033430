"""bblab runs: what the lab's notebook holds."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bblab.cli import common
from bblab.errors import near


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab runs --kind timing --name mobileone_k5_se")(runs)


def runs(
    kind: Annotated[str | None, typer.Option("--kind", metavar="KIND", help="profile, timing, conditions ...")] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="SPEC", help="The spec's name.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DATE", help="2026-11-22, or with a time, UTC.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many, newest first.")] = 30,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """List stored runs, newest first."""
    opened = common.open_lab(lab)
    with opened.notebook(read_only=True) as store:
        found = store.runs(kind=kind, name=name, since=since, limit=limit)
        every = [] if found or not (kind or name) else store.runs()
    if json:
        common.write_json(json, [as_row(r) for r in found])
    if json != "-":
        from bblab.cli import tables

        out = common.console()
        drawn = tables.plain(
            [("id", "right"), ("when (UTC)", "left"), ("kind", "left"), ("spec", "left"), ("", "left")]
        )
        for r in found:
            drawn.add_row(str(r.id), r.created_utc[:16].replace("T", " "), r.kind, r.name, headline(r))
        if found:
            out.print(drawn)
        for what, asked, known in (("kind", kind, {r.kind for r in every}), ("name", name, {r.name for r in every})):
            if asked and known and asked not in known:
                out.print(f"no run of {what} {asked!r}: {near(asked, known)}", markup=False, soft_wrap=True)
        last = f"{len(found)} runs in {common.short(opened.store_path)}"
        after = f" · next: bblab show {found[0].id}" if found else " · next: bblab profile mobileone_s0"
        out.print(last + after, style="dim", markup=False, soft_wrap=True)
    for notice in opened.notices:
        common.warn(notice)


def headline(run: Any) -> str:
    """The one figure that a person looks for in a run."""
    r, i = run.result, run.inputs
    if run.kind == "timing" and r.get("cpu_p10_s"):
        size = common.shape(i.get("input") or [])
        how = f"{i.get('form')}, {i.get('runtime')}, {i.get('threads')} thread, {i.get('device')}, {size}"
        ratio = "" if r.get("ratio") is None else f" = {common.digits(r['ratio'])} × {i.get('reference')}"
        state = "warm" if i.get("protocol") else "by protocol 1"
        return f"{common.milliseconds(r['cpu_p10_s'])} CPU, {state}{ratio} ({how})"
    if run.kind == "profile" and "forms" in r:
        deploy = r["forms"]["deploy"]
        return f"{common.si(deploy['params'])} params, {common.si(deploy['macs'])} MACs (deploy)"
    if run.kind == "pretrain" and "epochs_trained" in r:
        top1 = "no validation" if r.get("top1_percent") is None else f"top-1 {r['top1_percent']:.2f} %"
        images = f" of {i['data']['val_count']}" if i.get("data") else ""
        trained = f"{r['epochs_trained']}/{r['epochs_planned']} epochs of {i['recipe']['name']}"
        rate = f", lr {i['scaling']['arithmetic']}, seed {i['settings']['seed']}"
        return f"{top1}{images} ({trained}{rate}; {r.get('status')})"
    if run.kind == "latency_estimate" and r.get("measured_ratio") and r.get("error") is not None:
        sum_of = f"{common.digits(r['measured_ratio'])} × {i.get('reference')}, sum of its blocks {r['error']:+.1%}"
        return f"{sum_of} ({i.get('form')}, {i.get('runtime')}, {i.get('threads')} thread, {i.get('device')})"
    if run.kind == "pretrain_estimate" and r.get("net_images_per_s"):
        rates = f"net {common.digits(r['net_images_per_s'])}, data {common.digits(r['loader_images_per_s'])} images/s"
        return f"{rates}; {i['recipe']['name']} would take {common.digits(r['hours'])} h"
    if run.kind == "tracker_score" and r.get("value") is not None:
        way = {True: " (higher is better)", False: " (lower is better)"}.get(r.get("higher_is_better"), "")
        at = "" if r.get("epoch") is None else f", epoch {r['epoch']}"
        return f"{r.get('metric')} {r['value']:g}{way}{at}"
    if run.kind == "tracker_training" and r.get("curve"):
        last = next((p for p in reversed(r["curve"]) if p.get("is_complete")), r["curve"][-1])
        name = r.get("total") or next(iter(r.get("names") or []), None)
        value = last.get(name)
        said = "" if name is None else f", {name} {'no number' if value is None else common.digits(value, 4)}"
        return f"{i.get('trainer')} log, epoch {last['epoch']}{said}"
    return ""


def as_row(run: Any) -> dict[str, Any]:
    return {
        "id": run.id,
        "created_utc": run.created_utc,
        "kind": run.kind,
        "spec_id": run.spec_id,
        "name": run.name,
        "code_version": run.code_version,
        "inputs": run.inputs,
        "result": run.result,
    }
