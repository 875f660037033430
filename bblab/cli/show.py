"""bblab show: one stored run, whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bblab.cli import common


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab show 12 --samples --json run12.json")(show)


def show(
    run_id: Annotated[int, typer.Argument(metavar="ID", help="A run's id from `bblab runs`.")],
    samples: Annotated[bool, typer.Option("--samples", help="With every raw sample.")] = False,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Print a stored run whole."""
    from bblab.cli.runs import as_row

    opened = common.open_lab(lab)
    with opened.notebook(read_only=True) as store:
        run = store.get(run_id)
        series = store.samples(run_id)
        text = store.spec_text(run.spec_id)
    row = as_row(run)
    row["spec"] = text
    if samples:
        row["samples"] = {name: list(values) for name, values in series.items()}
    if json:
        common.write_json(json, row)
    if json == "-":
        return
    out = common.console()
    from rich.text import Text

    about = f"  {run.kind} of {run.name or '–'}, {run.created_utc}, code {run.code_version}"
    out.print(Text.assemble((f"run {run.id}", "bold"), about), soft_wrap=True)
    from bblab.cli import tables

    for title, value in (("inputs", run.inputs), ("result", run.result)):
        lists = {key: rows for key, rows in value.items() if _is_table(rows)}
        drawn = tables.plain([(title, "left"), ("", "left")])
        for path, leaf in _leaves({key: item for key, item in value.items() if key not in lists}):
            drawn.add_row(path, leaf)
        out.print(drawn)
        for key, rows in lists.items():
            keys = list(rows[0])
            drawn = tables.plain([(key, "right"), *((name, "right") for name in keys)])
            for i, row in enumerate(rows):
                drawn.add_row(f"[{i}]", *("–" if row[name] is None else str(row[name]) for name in keys))
            tables.print_whole(drawn, out)
    if series:
        listing = ", ".join(f"{name} ({len(values)})" for name, values in series.items())
        out.print(
            f"raw samples: {listing}; print them with --samples --json -", style="dim", markup=False, soft_wrap=True
        )
        if samples:
            for name, values in series.items():
                out.print(f"{name}: " + " ".join(f"{v:.6g}" for v in values), markup=False, soft_wrap=True)
    out.print(f"next: bblab diff {run.id} ANOTHER", style="dim", markup=False)


def _is_table(value: Any) -> bool:
    """A list of objects with the same plain values, such as a training's epochs: one line each reads better."""
    if not isinstance(value, list) or len(value) < 3 or not all(isinstance(row, dict) and row for row in value):
        return False
    keys = list(value[0])
    return all(list(row) == keys and not any(isinstance(v, (dict, list)) for v in row.values()) for row in value)


def _leaves(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Paths and values; short lists stay on one line."""
    if isinstance(value, dict) and value:
        return [leaf for k, v in value.items() for leaf in _leaves(v, f"{path}.{k}" if path else k)]
    if isinstance(value, list) and value and isinstance(value[0], (dict, list)):
        return [leaf for i, v in enumerate(value) for leaf in _leaves(v, f"{path}[{i}]")]
    if isinstance(value, list):
        return [(path, ", ".join(map(str, value)) or "–")]
    return [(path, "–" if value is None or value == {} else str(value))]
