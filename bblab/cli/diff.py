"""bblab diff: why is this number another one?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bblab.cli import common

if TYPE_CHECKING:
    from bblab.store import Run


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab diff 12 31")(diff)


def diff(
    a: Annotated[int, typer.Argument(metavar="ID", help="A run's id.")],
    b: Annotated[int, typer.Argument(metavar="ID", help="Another run's id.")],
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """What differs between two stored runs: of two timings first in words why, most likely cause first.

    Then everything that differs, inputs and conditions before results.
    """
    opened = common.open_lab(lab)
    with opened.notebook(read_only=True) as store:
        first, second = store.get(a), store.get(b)
        found = store.diff(a, b)
    why = _why(first, second)
    if json:
        changes = [{"path": c.path, "a": c.a, "b": c.b, "ratio": c.ratio, "missing": c.missing or None} for c in found]
        none = dict.fromkeys(("a", "b", "ratio", "missing"))
        words = [{"path": f"explanation[{i}]", **none, "why": text} for i, text in enumerate(why)]
        common.write_json(json, [*words, *changes])
    if json == "-":
        return
    from bblab.cli import tables

    out = common.console()
    for run in (first, second):
        out.print(f"run {run.id}  {run.kind} of {run.name or '–'}, {run.created_utc}{_headline(run)}", markup=False)
    if not found:
        out.print("nothing differs")
        return
    for i, text in enumerate(why):
        out.print(
            f"{'why:' if i == 0 else '    '} {text}", style="bold" if i == 0 else "", markup=False, soft_wrap=True
        )
    if why:
        out.print()
    drawn = tables.plain([("what", "left"), (str(a), "right"), (str(b), "right"), ("ratio", "right")])
    drawn.columns[0].no_wrap = True  # a path that is cut inside a word cannot be read
    for c in found:
        ratio = "" if c.ratio is None else f"× {common.digits(c.ratio)}"
        cells = [
            "absent" if c.missing == side else "–" if value is None else str(value)
            for side, value in (("a", c.a), ("b", c.b))
        ]
        drawn.add_row(c.path, *cells, ratio)
    out.print(drawn)
    out.print(_next(first, second), style="dim", markup=False, soft_wrap=True)


def _why(first: Run, second: Run) -> list[str]:
    kinds = ("timing", "operators", "block", "pipeline", "latency_estimate")
    if first.kind != second.kind or first.kind not in kinds or first.id == second.id:
        return []
    from bblab.cli.runs import as_row
    from bblab.lab.racing import protocol_of
    from bblab.latency import explain
    from bblab.latency.explain import protocol_words

    if first.kind == "timing":
        return explain(as_row(first), as_row(second))
    words = protocol_words(protocol_of(first), protocol_of(second))
    return [words] if words else []


def _headline(run: Run) -> str:
    from bblab.cli.runs import headline

    return f": {headline(run)}" if run.kind == "timing" else ""


def _next(first: Run, second: Run) -> str:
    """Two profiles hold timings of their own; two timings are settled by a duel."""
    timings = [ids[0] for run in (first, second) if (ids := run.inputs.get("timings"))]
    if len(timings) == 2:
        return f"next: why the latency differs, bblab diff {timings[0]} {timings[1]}"
    if (first.kind, second.kind) == ("timing", "timing") and first.name != second.name:
        return f"next: bblab duel {first.name} {second.name}"
    return f"next: bblab show {first.id}"
