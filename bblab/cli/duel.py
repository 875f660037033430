"""bblab duel: which of two specs is faster, and by how much?"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Annotated, Any

import typer

from bblab.cli import common
from bblab.cli.bench import (
    BudgetOption,
    DeviceOption,
    FormOption,
    FpsOption,
    RuntimesOption,
    SizeOption,
    ThreadsOption,
    WaitOption,
    counts,
    finish,
    forms,
    names,
    pixels,
)
from bblab.cli.bench_parts import check_budget


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab duel mobileone_k5 mobileone_k5_se --budget 60")(duel)


def duel(
    a: Annotated[str, typer.Argument(metavar="A", help="A spec.")],
    b: Annotated[str | None, typer.Argument(metavar="[B]", help="Another spec; left out, A with its --set.")] = None,
    edits: common.SetOption = None,
    device: DeviceOption = "host",
    runtime: RuntimesOption = None,
    threads: ThreadsOption = "1",
    form: FormOption = "deploy",
    size: SizeOption = "search",
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="SPEC", help="A third net between them; else A is B's reference."),
    ] = None,
    budget: BudgetOption = None,
    fps: FpsOption = None,
    wait: WaitOption = False,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Two specs in turn until it is clear which is faster, or the budget ends (120 s unless --budget says otherwise).

    `bblab duel A --set ...` compares A with its edit; with two specs --set changes both. The interval allows for having
    looked after 6, 8, 11, 15, 20, ... processes: a net beats itself in less than 5 % of duels.
    """
    from bblab.latency import DUEL, verdict_words

    machine = json == "-"
    check_budget(budget)
    opened = common.open_lab(lab)
    runtime = opened.usual_runtime(device) if runtime is None else runtime
    plan = DUEL if budget is None else replace(DUEL, budget_s=budget)
    with common.progress_bar(quiet=machine) as tell:
        verdicts, done = opened.duel(
            a,
            b,
            edits=edits or (),
            device=device,
            runtimes=names(runtime),
            threads=counts(threads),
            forms=forms(form),
            size=pixels(size),
            reference=reference,
            fps=fps,
            plan=plan,
            waits=wait,
            on_progress=tell,
        )
    if json:
        common.write_json(
            json,
            {
                "verdicts": [_as_json(v) for v in verdicts],
                "latency": list(done.rows),
                "problems": [str(p) for p in done.problems],
            },
        )
    if not machine:
        out = common.console()
        for v in verdicts:
            style = "bold" if v.faster else "yellow"
            out.print(verdict_words(v), style=style, markup=False, soft_wrap=True)
            for line in _details(v):
                out.print(f"  {line}", style="dim", markup=False, soft_wrap=True)
        if verdicts:
            out.print()
    where = "" if device == "host" else f" --device {device}"
    both = " ".join([a, *([] if b is None else [b]), *(f"--set {shlex.quote(edit)}" for edit in edits or ())])
    after = f"bblab duel {both}{where} --budget {2 * (plan.budget_s or 60):g}"
    if verdicts and all(v.faster for v in verdicts):
        after = f"bblab {'duel' if b is None else 'bench'} {both}{where} --runtime ort,ncnn"
    finish(opened, done, machine, [json] if json else [], after)


def _details(v: Any) -> list[str]:  # a latency.Verdict, which would import the room
    """How it was measured, each net's own time, what not to believe."""
    from bblab.latency import machine_words
    from bblab.latency.words import how_words, ratio_span, time_words, wall_words

    found = [f"B/A: A is {v.a.label}, B is {v.b.label}; {how_words(v.a)}"]
    for mark, t in (("A", v.a), ("B", v.b)):
        found.append(f"{mark}: {time_words(t)} · {wall_words(t)} · error against torch {t.conversion_rel_error:.0e}")
    if v.a.key == v.b.key:
        found.append("A and B are one and the same net: whatever is claimed here is chance")
    drift = v.a.drift
    if drift is None:
        found.append("too few rounds to see the clock drift")
    elif drift.verdict == "drift":
        found.append(f"the clock drifted: the {drift.series} changed {drift.change_ratio:.2f}-fold")
    found += [f"{state}: B/A {ratio_span(ratio, digits=4)}" for state, ratio in v.others.items()]
    found += [f"{state} turns the order" for state in v.turned]
    found.append(machine_words(v.a.conditions_before, v.a.conditions_after))
    return found + list(v.a.notes)


def _as_json(v: Any) -> dict[str, Any]:
    from bblab.latency.wire import PROTOCOL

    low, high = v.ratio.to_json()
    return {
        "a": v.a.label,
        "b": v.b.label,
        "runtime": v.a.runtime,
        "threads": v.a.threads,
        "pace_fps": v.a.pace_fps,
        "faster": v.faster,
        "ratio": v.ratio.value,
        "ratio_low": low,
        "ratio_high": high,
        "protocol": PROTOCOL,
        "others": {state: [r.value, *r.to_json()] for state, r in v.others.items()},
        "difference_below": v.bound if v.ratio.is_known else None,
        "processes": v.a.processes,
        "drift": v.a.drift.verdict if v.a.drift else None,
        "session": v.a.session,
    }
