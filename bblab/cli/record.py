"""bblab record: results of a tracker that was trained elsewhere, into the notebook."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bblab.cli import common

if TYPE_CHECKING:
    from rich.console import Console

    from bblab.lab.recording import Recorded, Score

_BARS = "▁▂▃▄▅▆▇█"


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Example: bblab record mine --log train.log --metric vot2018_eao@37=0.265 "
        '--stop-if "total_loss > 0.25 at epoch 30"'
    )(record)


def record(
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="[SPEC]", help="What was trained; a log in the folder of bblab export --for needs none."
        ),
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(
            "--log",
            metavar="FILE",
            help="A trainer's log or printed result table; again for a resumed training, in order of time.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME=VALUE",
            help="A score: vot2018_eao=0.265, got10k_val_ao@37=60.4% (of epoch 37), my_score:higher=3.",
        ),
    ] = None,
    epoch: Annotated[
        int | None, typer.Option("--epoch", metavar="N", min=0, help="The epoch that the scores belong to.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", metavar="NAME", help="The data of a table that does not say: vot2018.")
    ] = None,
    tracker: Annotated[
        str | None, typer.Option("--tracker", metavar="NAME", help="Whose rows of a table: a name, or checkpoint_*.")
    ] = None,
    export: Annotated[
        str | None, typer.Option("--export", metavar="ID", help="The export that was trained, from bblab export.")
    ] = None,
    stop_if: Annotated[
        list[str] | None,
        typer.Option("--stop-if", metavar="RULE", help='"total_loss > 0.25 at epoch 30": exit code 1 where it holds.'),
    ] = None,
    note: Annotated[
        str, typer.Option("--note", metavar="TEXT", help="A word for yourself, found again by bblab find.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Record a log under SPEC that is recorded of another net already.")
    ] = False,
    edits: common.SetOption = None,
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Record the training and the scores of a tracker that was trained elsewhere.

    Reads logs of pysot, NanoTrack, siamban, TracKit, SiamDW, STARK, OSTrack, pytracking, video_analyst, siamfc and
    mmtracking, and the tables of pysot-toolkit, pytracking and got10k. Recording a log again adds what is new. A log
    in the folder that `bblab export --for` wrote is recorded under the spec and the export of its manifest.
    """
    opened = common.open_lab(lab)
    with common.progress_bar(quiet=json == "-") as on_progress:
        done = opened.record(
            spec,
            edits=edits or (),
            logs=log or (),
            scores=metric or (),
            epoch=epoch,
            benchmark=benchmark,
            tracker=tracker,
            export=export,
            stop_if=stop_if or (),
            note=note,
            force=force,
            on_progress=on_progress,
        )
    if json:
        common.write_json(json, done.to_json())
    if json != "-":
        out = common.console()
        _draw(done, out)
        new = [i for i in (done.training_id, *done.score_ids) if i is not None]
        where = f"stored as run{'s' * (len(new) > 1)} {', '.join(map(str, new[:6]))}{' ...' if len(new) > 6 else ''}"
        last = f"{where} in {common.short(opened.store_path)}" if new else "nothing new, nothing stored"
        shown = next((i for i in (*new, done.known_training_id, *done.known_score_ids) if i is not None), None)
        out.print(f"{last} · next: bblab show {shown}", style="dim", markup=False, soft_wrap=True)
    for notice in opened.notices:
        common.warn(notice)
    if done.must_stop:
        raise typer.Exit(1)


def _draw(done: Recorded, out: Console) -> None:
    from rich.text import Text

    out.print(Text.assemble((done.spec.name, "bold"), f"  trained elsewhere · spec {done.spec.spec_id}"))
    if done.log is not None and done.log.epochs:
        _draw_training(done, out)
    if done.scores:
        _draw_scores(done, out)
    for verdict in done.verdicts:
        word = {"stop": "STOP", "go_on": "go on", "not_yet": "not yet", "unknown": "cannot tell"}[verdict.answer]
        style = {"stop": "bold red", "go_on": "green"}.get(verdict.answer, "yellow")
        out.print(Text.assemble((word, style), f": {verdict.because} (stop if {verdict.gate})"), soft_wrap=True)
    for note in done.notes:
        out.print(f"· {note}", style="dim", markup=False, soft_wrap=True)


def _draw_training(done: Recorded, out: Console) -> None:
    from bblab.tracking import logs

    log = done.log
    assert log is not None
    first, last = log.epochs[0], log.epochs[-1]
    partly = "" if last.is_complete else f", the last as far as iteration {last.iteration} of {last.iterations}"
    out.print(
        f"log of {logs.trainer_name(log.trainer)}: epochs {first.epoch} to {last.epoch}{partly}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    end = next(
        (e for e in reversed(log.epochs) if log.last_complete is not None and e.epoch <= log.last_complete), last
    )
    from bblab.cli import tables

    drawn = tables.plain(
        [("mean over the epoch", "left"), (f"epoch {first.epoch}", "right"), ("lowest", "right"), ("", "left"),
         (f"epoch {end.epoch}", "right"), ("last printed", "right"), ("", "left")]
    )  # fmt: skip
    for name in log.names:
        # Six digits, as stored: what differs behind them is the order of adding.
        curve = {e: float(f"{v:.6g}") for e, v in log.curve(name).items() if v is not None}
        if not curve:
            drawn.add_row(name, "no number", "", "", "", "", "")
            continue
        low = min(curve, key=lambda e: curve[e])
        drawn.add_row(
            name, _value(first.means.get(name)), _value(curve[low]), f"at {low}", _value(end.means.get(name)),
            _value(end.lasts.get(name)), _spark(list(curve.values())),
        )  # fmt: skip
    out.print(drawn)
    if done.known_training_id is not None:
        out.print(f"this log is run {done.known_training_id} already: no epoch is new", markup=False)
    elif done.continued_id is not None:
        new = done.new_epochs
        of = f"epoch {new[0]}" if len(new) == 1 else f"{len(new)} epochs, {new[0]} to {new[-1]}" if new else ""
        what = f"new since then: {of}" if new else "its last epochs were trained again"
        out.print(f"goes on where run {done.continued_id} ended; {what}", markup=False)


def _value(value: float | None) -> str:
    if value is None:
        return "–"
    return "no number" if value != value else common.digits(value, 4)


def _spark(values: list[float], width: int = 25) -> str:
    """A curve in one line of bars, from its lowest value to its highest."""
    if len(values) > width:
        edges = [i * len(values) / width for i in range(width + 1)]
        parts = [values[int(a) : max(int(b), int(a) + 1)] for a, b in pairwise(edges)]
        values = [sum(part) / len(part) for part in parts]
    low, high = min(values), max(values)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0
    return "".join(_BARS[round((v - low) * scale)] for v in values)


def _draw_scores(done: Recorded, out: Console) -> None:
    from bblab.cli import tables

    drawn = tables.plain([("score", "left"), ("value", "right"), ("", "left"), ("epoch", "right"), ("tracker", "left")])
    shown = _best_first(done.scores)
    for score in shown[:20]:
        better = {True: "higher is better", False: "lower is better", None: "direction unknown"}
        at = "" if score.epoch is None else str(score.epoch)
        value = f"{score.value:g}"
        drawn.add_row(score.metric.name, value, better[score.metric.higher_is_better], at, score.tracker)
    out.print(drawn)
    if len(shown) > 20:
        out.print(f"and {len(shown) - 20} more (--json -)", style="dim")
    if done.known_score_ids:
        ids = ", ".join(map(str, done.known_score_ids[:6])) + (" ..." if len(done.known_score_ids) > 6 else "")
        out.print(f"known already, not stored again: run {ids}", markup=False)


def _best_first(scores: tuple[Score, ...]) -> list[Score]:
    """By metric, the score that a benchmark ranks by before its others; of one metric the best first."""
    names = dict.fromkeys(s.metric.name for s in scores)
    order = {n: i - len(names) * n.endswith(("_eao", "_ao", "_auc", "_f1")) for i, n in enumerate(names)}

    def key(score: Score) -> tuple[int, float]:
        sign = -1 if score.metric.higher_is_better else 1
        return order[score.metric.name], sign * score.value

    return sorted(scores, key=key)
