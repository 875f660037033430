"""One self-contained page: Altair's charts with Vega inlined by vl-convert, tables, and where each number is from.

The page asks nothing of any network: its own policy forbids it. Names and texts are escaped, in the markup and as data.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bblab.errors import RunError
from bblab.installing import how_to_install
from bblab.reports import Page, Table
from bblab.reports.kit import draw_print, tables, ticks
from bblab.reports.kit.charts import Axis, Chart, LineChart, ParetoChart
from bblab.reports.kit.verdict import conclusions
from bblab.reports.kit.words import Words
from bblab.rooms import cache_dir

# Vega makes functions of its expressions, hence 'unsafe-eval'; no source may be loaded from anywhere.
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"
LONG_CELL = 80  # letters; a longer text is broken into lines
MOST_TABLE_ROWS = 400
FAILED = "This page could not be drawn: {error}. A browser from 2023 or later is needed."
_EXPOSED = "window.vegaEmbed = vegaEmbed;"
FONT = 'system-ui, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif'


def page(page: Page, lang: str = "en", print_lang: str = "") -> str:
    """The page as one HTML text. Raises RunError with the install command where altair or vl-convert is missing."""
    say = Words(lang)
    explored = [c for c in page.charts if isinstance(c, ParetoChart)]
    others = [c for c in page.charts if not isinstance(c, ParetoChart)]
    plots = [(f"plot-{n}", line_spec(c, say)) for n, c in enumerate(others) if isinstance(c, LineChart)]
    data = {
        "charts": [_chart_data(c, say) for c in explored],
        "details": dict(page.details),
        "plots": plots,
        "words": _ui_words(say),
    }
    heading = explored[0].title if explored else page.heading or page.title
    parts = [
        "<!doctype html>",
        f'<html lang="{"zh-CN" if lang == "zh" else "en"}"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(say.t(page.title))}: {_text(heading)}</title>",
        f"<style>{_asset('page.css')}</style></head><body><main>",
        f'<h1 id="title">{_text(heading)}</h1>',
        f'<div class="about">{_text(" · ".join(page.about))}</div>',
        f'<div id="failed" class="warn" data-text="{_text(say.t(FAILED))}"></div><noscript>'
        f"{_text(say.t('The charts need JavaScript; the tables below do not.'))}</noscript>",
    ]
    if explored:
        parts.append(
            '<div class="controls" id="controls"></div><div class="chips" id="chips"></div><div class="stage"><div>'
            '<div id="chart"></div><div id="legend" class="legend"></div>'
            '<div id="count" class="caption"></div><p id="caption" class="caption"></p>'
            f'<div id="advice" class="advice"></div></div><aside id="details">{_text(say("click"))}</aside></div>'
        )
    parts += [_figure(c, n, print_lang or lang, heading) for n, c in enumerate(others)]
    if page.table.columns:
        parts.append(_table(page.table, say, say.t(page.title) if not explored else ""))
    if page.sources:
        lines = "".join(f"<p><sup>{_text(mark)}</sup> {_text(text)}</p>" for mark, text in page.sources)
        parts.append(f'<div class="sources">{lines}</div>')
    for title, table in page.sections:
        parts.append(f"<h2>{_text(title)}</h2>{_table(table, say, file='Markdown')}")
    if page.notes:
        lines = "".join(f"<li>{_text(note)}</li>" for note in page.notes)
        parts.append(f'<h2>{_text(say("notes"))}</h2><ul class="notes">{lines}</ul>')
    parts.append('</main><div id="tip" role="tooltip"></div>')
    if explored or plots:
        packed = base64.b64encode(gzip.compress(json.dumps(_finite(data), separators=(",", ":")).encode(), mtime=0))
        parts.append(f'<script id="data" type="application/octet-stream">{packed.decode()}</script>')
        parts += [f'<script type="module">{text}</script>' for text in (_bundle(), _asset("page.js"))]
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    try:
        import vl_convert
    except ImportError:
        raise RunError("the interactive page needs vl-convert", hint=how_to_install("vl-convert-python")) from None
    # Bundling takes seconds: kept for each version, like converted models.
    kept = cache_dir() / f"vega-{version('vl-convert-python')}-{hashlib.sha256(_EXPOSED.encode()).hexdigest()[:8]}.js"
    try:
        return kept.read_text(encoding="utf-8")
    except (OSError, ValueError):
        pass
    # Inside a script element nothing may look like its end, or like the start of a comment.
    text = vl_convert.javascript_bundle(_EXPOSED).replace("</script", "<\\/script").replace("<!--", "<\\!--")
    with suppress(OSError):
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(kept)
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return float(f"{value:.7g}") if abs(value) < 1e6 else float(round(value))  # seven digits of a time are hours
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _ui_words(say: Words) -> dict[str, Any]:
    keys = (
        "axis", "scale", "device", "machine", "runtime", "precision", "threads", "input", "state", "pace", "search",
        "family", "form", "kind", "shown", "probability", "unfused", "params", "receptive_field", "template",
        "findings", "no_findings", "waived", "spec", "front", "level", "measure_next", "probability_short", "area_word",
        "own", "recorded", "published", "deploy", "train",
    )  # fmt: skip
    words = {key: say(f"ui_{key}") if say.has(f"ui_{key}") else say(key) for key in keys}
    named = {key: say.t(key) for key in ("other", "error", "warning", "note")} | {"spec_id": say.t("spec")}
    actions = {f"{key}_ACTION": say.t(f"Save as {key}") for key in ("SVG", "PNG")}
    actions["CLICK_TO_VIEW_ACTIONS"] = say.t("Click to view actions")
    return {**words, **named, "train_form": say("train"), "colon": say.t(": "), "actions": actions}


# Pareto ---------------------------------------------------------------------------------------------------------


def _chart_data(chart: ParetoChart, say: Words) -> dict[str, Any]:
    spec, right = pareto_spec(chart, say)
    advice = chart.advice
    told = [{"text": s.text, "command": s.command} for s in conclusions(chart, say)]
    return {
        "key": chart.key,
        "title": chart.title,
        "caption": chart.caption,
        "axis_title": chart.x.title,
        "scale": chart.scale,
        "place": dict(chart.place),
        "x": _axis_data(chart.x),
        "y": _axis_data(chart.y),
        "sign": -1 if chart.is_loss else 1,
        "right": right,
        "advice": told,
        "spec": spec,
        "marks": [
            {
                "key": m.key, "spec_id": m.spec_id, "name": m.name, "form": m.form, "family": m.family, "x": m.x,
                "x_low": m.x_low, "x_high": m.x_high, "y": m.y, "y_low": m.y_low, "y_high": m.y_high, "kind": m.kind,
                "protocol": m.protocol, "probability": m.probability if chart.has_intervals else None,
                "params": m.params, "is_level": m.is_level,
                "is_reference": m.is_reference, "provenance": m.provenance,
                "is_advised": bool(advice and advice.name == m.name and m.form == "deploy"),
            }
            for m in chart.marks
        ],
    }  # fmt: skip


def _axis_data(axis: Axis) -> dict[str, Any]:
    return {"title": axis.title, "unit": axis.unit, "factor": axis.factor}


def pareto_spec(chart: ParetoChart, say: Words, *, check: bool = False) -> tuple[dict[str, Any], float]:
    """The Vega-Lite chart with empty data sets `marks` and `front`, which the page fills; the right end of its axis.

    `check` has Altair hold every part against Vega-Lite's schema, which takes most of the time.
    """
    alt = _altair()
    with alt.utils.schemapi.debug_mode(check):
        return _pareto_spec(alt, chart, say, check)


def _pareto_spec(alt: Any, chart: ParetoChart, say: Words, check: bool) -> tuple[dict[str, Any], float]:
    fx, fy = chart.x.factor, chart.y.factor
    xs = [v * fx for m in chart.marks for v in (m.x, m.x_low, m.x_high) if v is not None and v > 0]
    ys = [v * fy for m in chart.marks for v in (m.y, m.y_low, m.y_high) if v is not None]
    ys += [level.value * fy for level in chart.levels]
    if chart.budget is not None and min(xs) / 4 < chart.budget * fx < max(xs) * 4:
        xs.append(chart.budget * fx)
    xs += [line.value * fx for line in chart.lines if line.value * fx < max(xs) * 4]
    pad = max(0.06 * math.log(max(xs) / min(xs)), 0.08)
    left, right = min(xs) * math.exp(-2 * pad), max(xs) * math.exp(pad)
    least, most = (None if v is None else v * fy for v in (chart.y.least, chart.y.most))
    bottom, top = ticks.bounded(min(ys), max(ys), least, most, margin=0.08)
    x_scale = alt.Scale(type="log", domain=[left, right], nice=False)
    y_scale = alt.Scale(domain=[bottom, top], nice=False, zero=False)
    # Each axis has its own ticks: round milliseconds below, round frames a second above.
    below = alt.Axis(title=chart.x.label, values=ticks.nice(left, right, is_log=True), format="~r", grid=True)
    x = alt.X("x:Q", scale=x_scale, axis=None)
    y = alt.Y("y:Q", scale=y_scale, axis=alt.Axis(title=chart.y.label, grid=True, values=ticks.nice(bottom, top)))
    base = alt.Chart(alt.NamedData("marks"))
    # Two unseen marks carry the two axes of x.
    layers = [base.mark_point(opacity=0).encode(x=alt.X("x:Q", scale=x_scale, axis=below))]
    if chart.budget is not None and chart.budget * fx < right:
        edge = max(chart.budget * fx, left)
        region = alt.Chart(alt.InlineData([{"x": edge, "end": right}]))
        layers.append(region.mark_rect(color="#f1f2f4").encode(x=x, x2="end:Q"))
        layers.append(region.mark_rule(color="#5c6670", strokeDash=[6, 4]).encode(x=x))
        told = say("budget", budget=f"{chart.budget * fx:g} {chart.x.unit}")
        layers.append(
            region.mark_text(align="left", dx=4, dy=-4, baseline="bottom", color="#5c6670", fontSize=11).encode(
                x=x, y=alt.value(alt.expr("height")), text=alt.value(told)
            )
        )
    for line in chart.lines:
        if left < line.value * fx < right:
            fixed = alt.Chart(alt.InlineData([{"x": line.value * fx}]))
            layers.append(fixed.mark_rule(color="#c3c9d0", strokeDash=[2, 3]).encode(x=x))
            layers.append(
                fixed.mark_text(align="left", angle=270, dx=6, dy=-5, color="#5c6670", fontSize=10.5).encode(
                    x=x, y=alt.value(alt.expr("height")), text=alt.value(line.label)
                )
            )
    if chart.levels:
        rows = [{"y": v.value * fy, "label": v.label, "source": v.source} for v in chart.levels]
        levels = alt.Chart(alt.InlineData(rows))
        layers.append(levels.mark_rule(color="#c3c9d0", strokeDash=[3, 3]).encode(y=alt.Y("y:Q", scale=y_scale)))
        layers.append(
            levels.mark_text(align="right", dx=-4, dy=-5, color="#5c6670", fontSize=10.5).encode(
                x=alt.value(alt.expr("width")), y=alt.Y("y:Q", scale=y_scale), text="label:N"
            )
        )
    if chart.axis == "latency":
        # The second axis: the same positions, read as frames a second.
        fps = [1e3 / v for v in ticks.nice(1e3 / right, 1e3 / left, is_log=True)]
        above = alt.Axis(
            orient="top", title=say("fps"), values=fps, labelExpr="format(1000 / datum.value, '~r')", grid=False,
            labelColor="#5c6670", titleColor="#5c6670", domainColor="#c3c9d0", tickColor="#c3c9d0",
        )  # fmt: skip
        layers.append(base.mark_point(opacity=0).encode(x=alt.X("x:Q", scale=x_scale, axis=above)))
    layers.append(
        alt.Chart(alt.NamedData("front"))
        .mark_line(interpolate="step-after", color="#1b1f24", strokeWidth=1.5)
        .encode(x=x, y=y, order="order:Q", strokeDash=alt.StrokeDash("protocol:N", legend=None))
    )
    if not chart.has_intervals:
        base = base.transform_calculate(probability="0.6")  # one colour for all
    few = 1.0 if len(chart.marks) <= 200 else 0.35
    ramp = alt.Scale(domain=[0, 0.333, 0.667, 1], range=list(draw_print.RAMP))
    colour = alt.Color("probability:Q", scale=ramp, legend=None)
    bars = base.mark_rule(strokeWidth=1.2, opacity=few)
    layers.append(
        bars.transform_filter("datum.x_low !== null").encode(
            x=alt.X("x_low:Q", scale=x_scale, axis=None), x2="x_high:Q", y=y, color=colour
        )
    )
    layers.append(
        bars.transform_filter("datum.y_low !== null").encode(
            x=x, y=alt.Y("y_low:Q", scale=y_scale), y2="y_high:Q", color=colour
        )
    )
    if chart.advice is not None:
        ring = base.transform_filter("datum.is_advised")
        layers.append(ring.mark_point(filled=False, size=700, color="#b8430a", strokeWidth=1.6).encode(x=x, y=y))
    largest = max((m.params or 0 for m in chart.marks), default=0) or 1
    is_fused = alt.datum.form == "deploy"
    edge_of = "datum.is_corner || datum.is_level"
    layers.append(
        base.mark_point(filled=False, opacity=1, cursor="pointer")
        .encode(
            x=x,
            y=y,
            shape=alt.Shape(
                "kind:N",
                scale=alt.Scale(domain=["own", "recorded", "published"], range=["circle", "triangle-up", "diamond"]),
                legend=None,
            ),
            size=alt.Size("params:Q", scale=alt.Scale(domain=[0, largest], range=[24, 420]), legend=None),
            fill=alt.condition(
                is_fused,
                alt.Fill("probability:Q", scale=ramp, legend=None),
                alt.value("white"),
            ),
            stroke=alt.condition(edge_of, alt.value("#1b1f24"), alt.value("#8b949e")),
            strokeWidth=alt.condition(edge_of, alt.value(1.4), alt.value(0.7)),
            strokeDash=alt.condition("datum.is_level && !datum.is_corner", alt.value([2, 1.5]), alt.value([1, 0])),
            tooltip="name:N",
        )
        .properties(name="points")
    )
    made = (
        alt.layer(*layers)
        .resolve_axis(x="independent")
        .properties(width=800, height=470, autosize=alt.AutoSizeParams(type="fit", contains="padding"))
        .configure(font=FONT)
        .configure_axis(labelFontSize=12, titleFontSize=12.5, titleFontWeight="normal", gridColor="#eceef1")
        .configure_view(stroke=None)
    )
    return made.to_dict(validate=check), right


def _altair() -> Any:
    try:
        import altair
    except ImportError:
        raise RunError("the interactive page needs altair", hint=how_to_install("altair")) from None
    return altair


# Other charts -----------------------------------------------------------------------------------------------------


def line_spec(chart: LineChart, say: Words) -> dict[str, Any]:
    """Curves with where each is from on hover; earlier runs faint."""
    alt = _altair()
    is_time = chart.x.key == "time"
    rows = []
    for n, curve in enumerate(chart.curves):
        told = dict(curve.provenance)
        for k, (x, y) in enumerate(curve.points):
            row: dict[str, Any] = {
                "x": x * 1e3 if is_time else x * chart.x.factor, "y": y * chart.y.factor, "curve": curve.label,
                "faint": curve.is_faint, "n": n, **told,
            }  # fmt: skip
            if curve.low and curve.high:
                row |= {"low": curve.low[k] * chart.y.factor, "high": curve.high[k] * chart.y.factor}
            rows.append(row)
    names = [c.label for c in chart.curves]
    hues, rounds = draw_print.HUES, [i // len(draw_print.HUES) for i in range(len(names))]
    shades = [draw_print.FAINT if c.is_faint else hues[i % len(hues)] for i, c in enumerate(chart.curves)]
    keys = list(dict.fromkeys(key for c in chart.curves for key, _ in c.provenance))
    x_field = "x:N" if chart.x_names else "x:T" if is_time else "x:Q"
    if chart.x_names:
        for row in rows:
            row["x"] = chart.x_names[int(row["x"])]
        x = alt.X(x_field, title=chart.x.label, sort=list(chart.x_names), axis=alt.Axis(labelAngle=0))
    elif is_time:
        times = [x * 1e3 for c in chart.curves for x, _ in c.points]
        room = max(1_800_000.0, 0.04 * (max(times) - min(times)))
        ends = [min(times) - room, max(times) + room]
        is_long = ends[1] - ends[0] > 4 * 86_400_000
        dates = alt.Axis(
            format="%m-%d" if is_long else "%m-%d %H:%M", tickCount="day" if is_long else 6, labelOverlap=True
        )
        x = alt.X(x_field, title=chart.x.label, scale=alt.Scale(type="utc", domain=ends, nice=False), axis=dates)
        for row in rows:
            row["when"] = datetime.fromtimestamp(row["x"] / 1e3, UTC).strftime("%Y-%m-%d %H:%M")
    else:
        every = [x * chart.x.factor for c in chart.curves for x, _ in c.points]
        whole = [v for v in ticks.nice(min(every), max(every)) if v == int(v)] or sorted(set(every))[:1]
        x = alt.X(x_field, title=chart.x.label, axis=alt.Axis(format="~r", values=whole))
    scale, values = _y_axis(alt, chart)
    y_axis = alt.Axis(values=values, format="~r") if values else alt.Undefined
    y = alt.Y("y:Q", title=chart.y.label, scale=scale, axis=y_axis)
    named = [c.label for c in chart.curves if not c.is_faint][: 2 * draw_print.MOST_CURVES]
    legend = alt.Legend(title=None, labelLimit=300, values=named) if draw_print.needs_key(chart) else None
    colour = alt.Color("curve:N", scale=alt.Scale(domain=names, range=shades), legend=legend)
    # A second round of the hues is told by its shape and its dashes.
    shapes = [("circle", "square", "triangle-up", "diamond")[n % 4] for n in rounds]
    dashes = [
        [1, 0] if c.is_faint else [5, 3] if c.dashed else ([1, 0], [5, 2], [1, 1.5], [6, 2, 1, 2])[n % 4]
        for n, c in zip(rounds, chart.curves, strict=True)
    ]
    shape = alt.Shape("curve:N", scale=alt.Scale(domain=names, range=shapes), legend=legend)
    dash = alt.StrokeDash("curve:N", scale=alt.Scale(domain=names, range=dashes), legend=legend)
    at_x = alt.Tooltip("when:N" if is_time else x_field, title=chart.x.title)
    tip = [alt.Tooltip("curve:N", title=say.t("net")), at_x,
           alt.Tooltip("y:Q", title=chart.y.title, format=".4g"), *(alt.Tooltip(f"{k}:N") for k in keys)]  # fmt: skip
    base = alt.Chart(alt.InlineData(rows)).encode(x=x, y=y, color=colour, detail="n:N")
    layers = []
    if any(c.low for c in chart.curves):
        layers.append(base.mark_rule().encode(y=alt.Y("low:Q", scale=scale, title=chart.y.label), y2="high:Q"))
    dots = any(c.dots for c in chart.curves)
    for which in ("datum.faint", "!datum.faint"):  # earlier runs lie below
        part = base.transform_filter(which)
        if not dots:
            layers.append(part.mark_line(strokeWidth=1.8).encode(strokeDash=dash))
        points = part.mark_point(filled=True, size=60 if dots else 26, opacity=1)
        layers.append(points.encode(tooltip=tip, shape=shape) if dots else points.encode(tooltip=tip))
    if chart.level is not None:
        level = alt.Chart(alt.InlineData([{"y": chart.level.value * chart.y.factor}]))
        layers.append(level.mark_rule(strokeDash=[3, 3], color="#5c6670").encode(y=alt.Y("y:Q", scale=scale)))
        told = level.mark_text(align="right", dx=-4, dy=-4, baseline="bottom", color="#5c6670", fontSize=11)
        layers.append(
            told.encode(x=alt.value(alt.expr("width")), y=alt.Y("y:Q", scale=scale), text=alt.value(chart.level.label))
        )
    made = (
        alt.layer(*layers)
        .properties(width="container", height=320)
        .configure(font=FONT)
        .configure_axis(gridColor="#eceef1", titleFontWeight="normal")
        .configure_view(stroke=None)
    )
    return made.to_dict()


def _y_axis(alt: Any, chart: LineChart) -> tuple[Any, list[float]]:
    """The scale of y and its round ticks, as in print."""
    found = draw_print.line_range(chart)
    if found is None:
        return alt.Scale(zero=False), []
    kind = {"type": "log"} if chart.y.is_log else {}
    return alt.Scale(domain=list(found), nice=False, zero=False, **kind), ticks.nice(*found, is_log=chart.y.is_log)


def _figure(chart: Chart, number: int, lang: str, heading: str) -> str:
    title = "" if chart.title == heading else f"<h2>{_text(chart.title)}</h2>"  # said above already
    caption = f"<figcaption class=caption>{_text(chart.caption)}</figcaption>" if chart.caption else ""
    if isinstance(chart, LineChart):
        return f'<figure>{title}<div id="plot-{number}" style="width:100%"></div>{caption}</figure>'
    svg = draw_print.svg(chart, lang)
    data = base64.b64encode(svg).decode()
    return f'<figure><img alt="{_text(chart.title)}" src="data:image/svg+xml;base64,{data}">{caption}</figure>'


def _table(table: Table, say: Words, title: str = "", file: str = "CSV") -> str:
    shown = [i for i, c in enumerate(table.columns) if c.title]
    keys = [c.key for c in table.columns]
    spec_at = keys.index("spec_id") if "spec_id" in keys else None
    head = "".join(
        f'<th class="{table.columns[i].align}">{_text(table.columns[i].title)}'
        f"<small>{_text(table.columns[i].unit)}</small></th>"
        for i in shown
    )
    body = []
    for cells, values in list(zip(table.cells, table.values, strict=True))[:MOST_TABLE_ROWS]:
        pick = "" if spec_at is None else f' class="pick" data-spec="{_text(str(values[spec_at]))}"'
        row = "".join(
            f'<td class="{table.columns[i].align}{" long" * (len(cells[i]) > LONG_CELL)}">{_cell(cells[i])}</td>'
            for i in shown
        )
        body.append(f"<tr{pick}>{row}</tr>")
    more = len(table.cells) - MOST_TABLE_ROWS
    told = say.t(f"{{count}} more row{'s' * (more != 1)} in the {file} file", count=more)
    note = f'<p class="caption">{_text(told)}</p>' if more > 0 else ""
    heading = f"<h2>{_text(title)}</h2>" if title else ""
    inside = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'{heading}<div class="scroll">{inside}</div>{note}'


def _cell(text: str) -> str:
    base, mark = tables.unmarked(text)
    return f"{_text(base)}<sup>{_text(mark)}</sup>" if mark else _text(text)
