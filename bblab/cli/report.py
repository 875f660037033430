"""bblab report: charts and tables of what is stored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from bblab.cli import common
from bblab.errors import BblabError


def register(app: typer.Typer) -> None:
    app.command(
        epilog='Example: bblab report --budget 10ms --select "device=host runtime=ort size=255" --open; '
        "bblab report spec_card mobileone_k5_se"
    )(report)


def report(
    name: Annotated[
        str, typer.Argument(metavar="[REPORT]", help="pareto, comparison, spec_card, runs, device, or your lab's own.")
    ] = "pareto",
    specs: Annotated[
        list[str] | None, typer.Argument(metavar="[SPEC...]", help="Only these: stored names, also with *.")
    ] = None,
    against: Annotated[
        str, typer.Option("--against", metavar="COST", help="latency, macs, params or activations.")
    ] = "latency",
    accuracy: Annotated[
        str, typer.Option("--accuracy", metavar="METRIC", help="top1, or a recorded score such as vot2018_eao.")
    ] = "",
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="TIME", help="Shade what is over it: 10ms, 0.5s.")
    ] = None,
    with_published: Annotated[
        bool, typer.Option("--with-published", help="Add published figures, each with its source.")
    ] = False,
    select: Annotated[
        str, typer.Option("--select", metavar='"KEY=VALUE ..."', help="device=host runtime=ort,ncnn size=255 name=k5*")
    ] = "",
    since: Annotated[str | None, typer.Option("--since", metavar="DATE", help="Only runs from then on, UTC.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write there; else into the lab.")] = None,
    is_opened: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
    lang: Annotated[str, typer.Option("--lang", metavar="en|zh", help="en or zh.")] = "en",
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Draw what is stored: one interactive page, figures for print, and tables with intervals and sources.

    Without a name: accuracy against latency, with the front and how sure it is.
    """
    from bblab.reports.kit.words import Words

    opened = common.open_lab(lab)
    page, written = opened.report(
        name,
        specs or (),
        against=against,
        accuracy=accuracy,
        budget_s=None if budget is None else seconds(budget),
        with_published=with_published,
        select=select,
        since=since,
        out=out,
        lang=lang,
        files=json != "-",
    )
    if json:
        common.write_json(json, as_json(page))
    if json != "-":
        _print(page, lang)
    for notice in opened.notices:
        common.warn(notice)
    if json != "-":
        html = next(path for path in written if path.suffix == ".html")
        others = sorted({p.suffix[1:] for p in written if p.suffix != ".html"})
        say = Words(lang)
        after = say.t("next: {command}", command=_next(page, lang))
        text = "written {page} and beside it {others}"
        last = say.t(text, page=common.short(html), others=", ".join(others))
        common.console().print(f"{last} · {after}", style="dim", markup=False, soft_wrap=True)
        if is_opened:
            import webbrowser

            if not webbrowser.open(html.resolve().as_uri()):
                common.warn(f"no browser could be started: open {html} yourself")


MOST_PRINTED = 40


def _print(page: Any, lang: str) -> None:
    from dataclasses import replace

    from bblab.cli import tables
    from bblab.reports.kit.charts import ParetoChart
    from bblab.reports.kit.verdict import conclusions
    from bblab.reports.kit.words import Words

    say = Words(lang)
    out = common.console()
    main = [c for c in page.charts if isinstance(c, ParetoChart) and c.is_main]
    for number, chart in enumerate(main[:6], 1):
        which = say.t("chart {number}: ", number=number) if len(main) > 1 else ""
        out.print(which + chart.caption, markup=False, soft_wrap=True)
    if len(main) > 6:
        text = say.t("… {count} more charts in the page; --select shows fewer", count=len(main) - 6)
        out.print(text, style="dim", markup=False)
    if page.table.cells:
        shown = replace(page.table, cells=page.table.cells[:MOST_PRINTED])
        out.print()
        tables.print_whole(tables.rich_table(shown), out)
        if len(page.table.cells) > MOST_PRINTED:
            out.print(_more(len(page.table.cells), say, "CSV"), style="dim", markup=False)
    for mark, source in page.sources:
        out.print(f"[{mark}] {source}", style="dim", markup=False, soft_wrap=True)
    for title, table in page.sections:
        out.print(f"\n{title}", style="bold", markup=False)
        tables.print_whole(tables.rich_table(replace(table, cells=table.cells[:MOST_PRINTED])), out)
        if len(table.cells) > MOST_PRINTED:
            out.print(_more(len(table.cells), say, "Markdown"), style="dim", markup=False)
    for note in page.notes:
        out.print(note, style="dim", markup=False, soft_wrap=True)
    for number, chart in enumerate(main[:6], 1):
        for sentence in conclusions(chart, say):
            which = say.t("chart {number}: ", number=number) if len(main) > 1 else ""
            command = f" ({sentence.command})" if sentence.command else ""
            out.print(f"{which}{sentence.text}{command}", markup=False, soft_wrap=True)
    out.print()


def _more(rows: int, say: Any, file: str) -> str:  # Words, imported where it is needed
    left = rows - MOST_PRINTED
    return "... " + str(say.t(f"{{count}} more row{'s' * (left != 1)} in the {file} file", count=left))


def _next(page: Any, lang: str) -> str:
    """What would change the front most; else a closer look at its best."""
    from bblab.reports.kit.charts import ParetoChart
    from bblab.reports.kit.verdict import conclusions
    from bblab.reports.kit.words import Words

    say = Words(lang)
    main = [c for c in page.charts if isinstance(c, ParetoChart) and c.is_main]
    command = next((s.command for c in main for s in conclusions(c, say) if s.command), "")
    if command:
        return command
    best = next((m for c in main for m in c.marks if m.is_on_front), None)
    if best is not None:
        return f"bblab report spec_card {best.name}"
    if page.title == "pareto":
        return say.t("bblab pretrain SPEC or bblab record SPEC, for an accuracy")
    return "bblab report"


_TIME = re.compile(r"(?P<value>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>s|ms|us|µs)?")


def seconds(text: str) -> float:
    """10ms, 0.01s, 500us; a plain number is milliseconds."""
    match = _TIME.fullmatch(text.strip())
    value = (
        float(match["value"]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}[match["unit"] or "ms"] if match else 0
    )
    if not match or not 0 < value < 1e6:
        raise BblabError(f"--budget {text!r} is not a time", hint="for example --budget 10ms or --budget 0.5s")
    return value


def as_json(page: Any) -> dict[str, Any]:
    """The page as plain data: charts with every point, tables as raw values, notes and sources."""
    from dataclasses import asdict

    def rows(table: Any) -> list[dict[str, Any]]:
        return [dict(zip([c.key for c in table.columns], row, strict=True)) for row in table.values]

    return {
        "report": page.title,
        "heading": page.heading,
        "about": list(page.about),
        "charts": [{"sort": type(c).__name__, **asdict(c)} for c in page.charts],
        "rows": rows(page.table),
        "sections": {title: rows(table) for title, table in page.sections},
        "notes": list(page.notes),
        "sources": [{"mark": mark, "source": text} for mark, text in page.sources],
        "details": {key: dict(value) for key, value in page.details.items()},
    }
