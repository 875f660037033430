"""bblab recipes: the training recipes that can be named."""

from __future__ import annotations

import typer

from bblab.cli import common


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab recipes --json -")(recipes)


def recipes(json: common.JsonOption = None, lab: common.LabOption = None) -> None:
    """List the pretraining recipes, each with its source."""
    opened = common.open_lab(lab)
    found = opened.recipes()
    if json:
        common.write_json(json, found)
    if json == "-":
        return
    from bblab.cli import tables

    drawn = tables.plain(
        [("recipe", "left"), ("epochs", "right"), ("px", "right"), ("optimizer", "left"), ("about", "left")]
    )
    for r in found:
        drawn.add_row(r["name"], str(r["epochs"]), str(r["resolution_px"]), r["optimizer"], r["about"])
    common.console().print(drawn)
