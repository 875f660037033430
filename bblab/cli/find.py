"""bblab find: which run gave this number?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bblab.cli import common

if TYPE_CHECKING:
    from bblab.store import Hit

MOST = 3
"""Lines of one run."""


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab find 22ms, bblab find 0.15, bblab find 5.29M, bblab find k5_se")(find)


def find(
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="A number as you remember it (0.15, 22ms, 5.3M) or a word.")
    ],
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="How many, newest first.")] = 40,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Find the run that gave a number.

    Every stored value that rounds to what you remember, also in ms, K, M and G; a word is looked for in names."""
    opened = common.open_lab(lab)
    with opened.notebook(read_only=True) as store:
        every = store.find(value)
    hits = every[:limit]
    if json:
        common.write_json(
            json,
            [
                {
                    "id": h.run.id, "created_utc": h.run.created_utc, "kind": h.run.kind, "name": h.run.name,
                    "path": h.path, "value": h.value, "read_as": h.read_as,
                }
                for h in hits
            ],
        )  # fmt: skip
    if json != "-":
        from bblab.cli import tables

        out = common.console()
        drawn = tables.plain(
            [
                ("id", "right"),
                ("when (UTC)", "left"),
                ("kind", "left"),
                ("spec", "left"),
                ("where", "left"),
                ("value", "right"),
            ]
        )
        shown, more = _folded(every)
        for h in shown[:limit]:
            unit = f" (read as {h.read_as})" if h.read_as else ""
            when = h.run.created_utc[:16].replace("T", " ")
            drawn.add_row(str(h.run.id), when, h.run.kind, h.run.name, h.path, f"{h.value}{unit}")
        if hits:
            out.print(drawn)
            for run_id, count in list(more.items())[:limit]:
                out.print(f"and {count} more such values in run {run_id}", style="dim", markup=False)
            if len(shown) > limit:
                out.print(f"and {len(shown) - limit} more (--limit)", style="dim", markup=False)
            out.print(f"next: bblab show {hits[0].run.id}", style="dim", markup=False)
        else:
            out.print(f"no stored value is {value}; bblab runs lists everything", markup=False)
    for notice in opened.notices:
        common.warn(notice)


def _folded(hits: list[Hit]) -> tuple[list[Hit], dict[int, int]]:
    """At most three hits of one run, and how many more each has: a curve of 300 epochs must not hide other runs."""
    shown: list[Hit] = []
    count: dict[int, int] = {}
    for hit in hits:
        count[hit.run.id] = count.get(hit.run.id, 0) + 1
        if count[hit.run.id] <= MOST:
            shown.append(hit)
    return shown, {run_id: n - MOST for run_id, n in count.items() if n > MOST}
