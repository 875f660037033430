"""bblab demo: the whole chain on three small candidates, as the commands that one would type."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bblab.cli import common
from bblab.errors import RunError

if TYPE_CHECKING:
    from bblab.lab import Lab

CANDIDATES = ("nanotrack", "shufflenetv2_x0_5@s16", "mobilenetv2@s16")
"""Small enough to learn the digits in a minute each on two cores, and of three families."""
EPOCHS = 5
BENCH_S = 45


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: bblab demo --out demo")(demo)


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Everything goes there: a lab of its own, and the report.")
    ] = Path("out/demo"),
    is_opened: Annotated[bool, typer.Option("--open", help="Show the report in a browser at the end.")] = False,
) -> None:
    """Run the whole chain on three small candidates: profile, bench, pretrain on digits, report.

    Takes some minutes on two cores and needs no data: the images are scikit-learn's digits. Each step is printed as
    the command that does it. Run again after it was stopped, it keeps what is trained.
    """
    from bblab.cli import main

    folder = out.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made: {error.strerror}", hint="--out DIR names another folder") from None
    lab = folder / "lab"
    page = folder / "report"
    console = common.console()
    began = time.monotonic()
    trained = finished(common.open_lab(lab))
    steps = [
        ["profile", *CANDIDATES, "--no-latency"],
        ["bench", *CANDIDATES, "--budget", str(BENCH_S)],
        *(["pretrain", name, "--epochs", str(EPOCHS)] for name in CANDIDATES),
        ["report", "--out", str(page), *(["--open"] if is_opened else [])],
    ]
    for number, step in enumerate(steps, 1):
        if step[0] == "pretrain" and step[1] in trained:
            console.print(f"{step[1]} is trained: run {trained[step[1]]}", style="dim", markup=False)
            continue
        command = [*step, "--lab", str(lab)]
        console.print(f"\n$ bblab {shlex.join(command)}", style="bold", markup=False, soft_wrap=True)
        code = main(command)
        if code:
            again = shlex.join(["bblab", "demo", "--out", str(out)])
            what = f"step {number} of {len(steps)} failed: {step[0]}"
            raise RunError(what, hint=f"what is done is kept; then: {again}")
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    where = common.short((page / "pareto.html").resolve())
    console.print(f"\n{where} · the whole chain in {minutes} min {seconds} s", markup=False, soft_wrap=True)
    after = shlex.join(["bblab", "runs", "--lab", str(lab)])
    console.print(
        f"next: {after}, then your own: bblab new mine --like nanotrack", style="dim", markup=False, soft_wrap=True
    )


def finished(lab: Lab) -> dict[str, int]:
    """The candidates that an earlier demo has trained to the end, by name, with their runs."""
    if not lab.store_path.exists():
        return {}
    with lab.notebook(read_only=True) as store:
        return {
            run.name: run.id
            for run in store.runs(kind="pretrain")
            if run.result.get("status") == "done" and run.result.get("epochs_trained") == EPOCHS
        }
