"""bblab new: begin a spec from a known one."""

from __future__ import annotations

from typing import Annotated

import typer

from bblab.cli import common


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab new mine --like mobileone_k5_se --set s16.0.kernel=3")(new)


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new spec's name and file stem.")],
    like: Annotated[
        str, typer.Option("--like", metavar="SPEC", help="The spec to begin from: a name or a .yaml path.")
    ],
    edits: common.SetOption = None,
    lab: common.LabOption = None,
) -> None:
    """Write arch_specs/NAME.yaml in your lab as a copy of another spec.

    Never overwrites."""
    opened = common.open_lab(lab)
    path = opened.new(name, like, edits or ())
    out = common.console()
    out.print(f"written {common.short(path)}", markup=False, soft_wrap=True)
    out.print(f"next: edit it, then bblab profile {name}", style="dim", markup=False)
