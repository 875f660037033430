"""bblab diff: why is this number another one?"""

from __future__ import annotations

from typing import Annotated

import typer

from bblab.cli import common


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab diff 12 31")(diff)


def diff(
    a: Annotated[int, typer.Argument(metavar="ID", help="A run's id.")],
    b: Annotated[int, typer.Argument(metavar="ID", help="Another run's id.")],
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """What differs between two stored runs: inputs and conditions before results."""
    opened = common.open_lab(lab)
    with opened.notebook(read_only=True) as store:
        first, second = store.get(a), store.get(b)
        found = store.diff(a, b)
    if json:
        common.write_json(
            json,
            [{"path": c.path, "a": c.a, "b": c.b, "ratio": c.ratio, "missing": c.missing or None} for c in found],
        )
    if json == "-":
        return
    from bblab.cli import tables

    out = common.console()
    for run in (first, second):
        out.print(f"run {run.id}  {run.kind} of {run.name or '–'}, {run.created_utc}", markup=False)
    if not found:
        out.print("nothing differs")
        return
    drawn = tables.plain([("what", "left"), (str(a), "right"), (str(b), "right"), ("ratio", "right")])
    for c in found:
        ratio = "" if c.ratio is None else f"× {common.digits(c.ratio)}"
        cells = ["absent" if c.missing == side else str(value) for side, value in (("a", c.a), ("b", c.b))]
        drawn.add_row(c.path, *cells, ratio)
    out.print(drawn)
