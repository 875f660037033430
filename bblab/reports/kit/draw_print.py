"""Charts at print size with matplotlib: PNG, SVG and PDF of one figure, two columns wide (175 mm), 8 to 9 pt.

Loads matplotlib inside its functions and no window system. Drawing decides nothing: all of it is in the chart value.
"""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from bblab.errors import RunError
from bblab.installing import how_to_install
from bblab.reports import Page
from bblab.reports.kit import placement, tables, ticks
from bblab.reports.kit.charts import Bars, Chart, Diagram, Heat, LineChart, Mark, ParetoChart
from bblab.reports.kit.words import Words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN = 6.9  # two columns
FORMATS = ("png", "svg", "pdf")
DPI = 300
MOST_FIGURES = 12
SMALLEST = 6.0  # pt: what is still read in print
KEY_LETTERS = 26  # of a line in the column at the right
MOST_PROTOCOLS = 4
MOST_LABELS = 40
MOST_CURVES = 12  # in a key
INK, QUIET, FAINT, ACCENT = "#1b1f24", "#5c6670", "#c3c9d0", "#b8430a"
RAMP = ("#bcc3ca", "#93b8da", "#4a8bc2", "#0b3c73")  # P(front) 0 to 1: also tells in grey
MARKERS = {"own": "o", "recorded": "^", "published": "D"}
Segment: TypeAlias = tuple[tuple[float, float], tuple[float, float]]
FRONT_STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
LEVEL = (0, (1.3, 1.0))  # the edge of what cannot be told apart from the front
CJK = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Droid Sans Fallback",
    "Noto Sans CJK JP", "Noto Serif CJK SC", "Arial Unicode MS", "AR PL UMing CN", "SimSun",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawn:
    """The files of a page's figures by `NAME.ext`, the names of the figures, and what the user should know."""

    files: dict[str, bytes] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def can_write(lang: str) -> bool:
    """Whether a font for the language is installed; without one, print in English."""
    if lang != "zh":
        return True
    _matplotlib()
    return _cjk_font() is not None


def figures(page: Page, lang: str = "en") -> Drawn:
    """Every chart that is meant for print. Raises RunError with the install command where matplotlib is missing."""
    charts = [c for c in page.charts if not isinstance(c, ParetoChart) or c.is_main]
    if not charts:
        return Drawn()
    matplotlib = _matplotlib()
    notices: list[str] = []
    if len(charts) > MOST_FIGURES:
        notices.append(f"{len(charts)} charts: the first {MOST_FIGURES} are drawn for print, all are in the HTML page")
        charts = charts[:MOST_FIGURES]
    fonts = ["DejaVu Sans"]
    if any("\u2e80" <= ch <= "\u9fff" for c in charts for ch in _texts(c)):
        found = _cjk_font()
        if found is None:
            notices.append(
                "no font with Chinese characters was found: the print figures show boxes in their place, the HTML page "
                "shows them; install one (Debian: fonts-noto-cjk) and run again"
            )
        else:
            fonts = [found, *fonts]
    files: dict[str, bytes] = {}
    names = []
    with matplotlib.rc_context(_style(fonts)):
        for chart in charts:
            drawn = draw(chart, lang)
            names.append(chart.key)
            for extension in FORMATS:
                files[f"{chart.key}.{extension}"] = _saved(drawn, extension)
    return Drawn(files, tuple(names), tuple(notices))


def svg(chart: Chart, lang: str = "en") -> bytes:
    """One chart as SVG, in the style of the print figures."""
    matplotlib = _matplotlib()
    found = _cjk_font() if lang == "zh" else None
    with matplotlib.rc_context(_style([*([found] if found else []), "DejaVu Sans"])):
        return _saved(draw(chart, lang), "svg")


def draw(chart: Chart, lang: str = "en") -> Figure:
    """One chart as a matplotlib figure, to be changed further in a notebook."""
    if isinstance(chart, ParetoChart):
        return _pareto(chart, Words(lang))
    drawers: dict[type, Callable[[Any, Words], Figure]] = {
        LineChart: _lines, Bars: _bars, Diagram: _diagram, Heat: _heat,
    }  # fmt: skip
    return drawers[type(chart)](chart, Words(lang))


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.font_manager

        # That a Chinese font has no bold face is nothing that a user could mend.
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    except ImportError:
        raise RunError("charts need matplotlib", hint=how_to_install("matplotlib")) from None
    return matplotlib


def _cjk_font() -> str | None:
    from matplotlib import font_manager

    manager = font_manager.fontManager
    if not {f.name for f in manager.ttflist} & set(CJK):  # matplotlib remembers the fonts of its first start
        for path in set(font_manager.findSystemFonts()) - {f.fname for f in manager.ttflist}:
            with suppress(Exception):  # a font that cannot be read is no font
                manager.addfont(path)
    there = {f.name for f in manager.ttflist}
    return next((name for name in CJK if name in there), None)


def _texts(chart: Chart) -> str:
    if isinstance(chart, ParetoChart):
        return chart.title + "".join(m.name for m in chart.marks)
    return chart.title


def _style(fonts: Sequence[str]) -> dict[str, Any]:
    return {
        "font.family": "sans-serif", "font.sans-serif": list(fonts), "font.size": 8.5, "axes.titlesize": 9.5,
        "axes.labelsize": 8.5, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 7.5,
        "axes.edgecolor": QUIET, "axes.labelcolor": INK, "text.color": INK, "xtick.color": QUIET,
        "ytick.color": QUIET, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.linewidth": 0.7,
        "xtick.major.width": 0.7, "ytick.major.width": 0.7, "xtick.minor.width": 0.4, "ytick.minor.width": 0.4,
        "axes.spines.right": False, "axes.spines.top": False, "axes.unicode_minus": False,
        "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "bblab", "figure.dpi": DPI, "savefig.dpi": DPI,
    }  # fmt: skip


def _saved(figure: Figure, extension: str) -> bytes:
    out = io.BytesIO()
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[extension]
    figure.savefig(out, format=extension, metadata=metadata)
    return out.getvalue()


def _figure(height_in: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in))
    FigureCanvasAgg(figure)
    return figure


# Pareto ---------------------------------------------------------------------------------------------------------


def _pareto(chart: ParetoChart, say: Words) -> Figure:
    figure = _figure(4.3)
    has_fps = chart.axis == "latency"
    axes = figure.add_axes((0.085, 0.12, 0.655, 0.70 if has_fps else 0.75))
    fx, fy = chart.x.factor, chart.y.factor
    area = _areas(chart.marks)
    _ranges(axes, chart)
    _fitted(figure, 0.972, chart.title, fontsize=9.5, fontweight="bold")
    _fitted(figure, 0.927, _place_words(chart, say), fontsize=7.5, color=QUIET)
    axes.set_xlabel(chart.x.label)
    axes.set_ylabel(chart.y.label)
    axes.grid(True, which="major", color="#eceef1", linewidth=0.6)
    axes.set_axisbelow(True)
    if has_fps:
        _fps_axis(axes, say)
    low, high = axes.get_xlim()
    if chart.budget is not None:
        at = chart.budget * fx
        if at < high:
            axes.axvspan(max(at, low), high, color="#f1f2f4", zorder=0.1, linewidth=0)
        if low < at < high:
            axes.axvline(at, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
    for level in chart.lines:
        if low < level.value * fx < high:
            axes.axvline(level.value * fx, color=FAINT, linewidth=0.9, linestyle=":", zorder=0.5)
            axes.text(
                level.value * fx, 0.012, f" {level.label}", rotation=90, transform=axes.get_xaxis_transform(),
                fontsize=6.5, color=QUIET, ha="right", va="bottom",
            )  # fmt: skip
    _levels(axes, chart)
    segments = _fronts(axes, chart)
    _train_links(axes, chart, fx, fy)
    _points(axes, chart, area)
    advised = next(
        (m for m in chart.marks if chart.advice and m.name == chart.advice.name and m.form == "deploy"), None
    )
    if advised is not None:
        axes.scatter(
            [advised.x * fx], [advised.y * fy], s=(math.sqrt(area(advised)) + 6) ** 2, marker="o", facecolor="none",
            edgecolor=ACCENT, linewidth=1.1, zorder=5,
        )  # fmt: skip
    _labels(figure, axes, chart, area, segments, advised)
    _key(figure, axes, chart, area, say, advised)
    return figure


def _place_words(chart: ParetoChart, say: Words) -> str:
    told = [say.counted("{count} thread", int(v)) if k == "threads" else v for k, v in chart.place if v]
    return " · ".join(told)


def _areas(marks: Sequence[Mark]) -> Callable[[Mark], float]:
    largest = max((m.params or 0.0 for m in marks), default=0.0)
    few = 1.0 if len(marks) <= 60 else 0.6 if len(marks) <= 300 else 0.3

    def area(m: Mark) -> float:
        if not m.params or not largest:
            return 26.0 * few
        return max(12.0, 160.0 * m.params / largest) * few

    return area


def _ranges(axes: Any, chart: ParetoChart) -> None:
    fx, fy = chart.x.factor, chart.y.factor
    xs = [v * fx for m in chart.marks for v in (m.x, m.x_low, m.x_high) if v is not None and v > 0]
    ys = [v * fy for m in chart.marks for v in (m.y, m.y_low, m.y_high) if v is not None]
    ys += [level.value * fy for level in chart.levels]
    if chart.budget is not None and min(xs) / 4 < chart.budget * fx < max(xs) * 4:
        xs.append(chart.budget * fx)
    xs += [line.value * fx for line in chart.lines if line.value * fx < max(xs) * 4]
    low, high = min(xs), max(xs)
    pad = max(0.07 * math.log(high / low), 0.08)
    axes.set_xscale("log")
    axes.set_xlim(low * math.exp(-1.6 * pad), high * math.exp(1.2 * pad))
    least, most = (None if v is None else v * fy for v in (chart.y.least, chart.y.most))
    axes.set_ylim(*ticks.bounded(min(ys), max(ys), least, most, margin=0.09))
    _ticks(axes.xaxis, *axes.get_xlim(), is_log=True)
    _ticks(axes.yaxis, *axes.get_ylim(), is_log=False)


def _ticks(axis: Any, low: float, high: float, *, is_log: bool) -> None:
    """Round numbers on an axis; on a log axis unlabelled ticks between them."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

    found = ticks.nice(low, high, is_log=is_log)
    axis.set_major_locator(FixedLocator(found))
    axis.set_major_formatter(FixedFormatter(ticks.texts(found)))
    is_wide = is_log and low > 0 and high / low >= 4
    steps = tuple(map(float, range(1, 10)))
    axis.set_minor_locator(FixedLocator(ticks.log_steps(steps, low, high)) if is_wide else NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _fps_axis(axes: Any, say: Words) -> None:
    twin = axes.twiny()
    twin.set_xscale("log")
    low, high = axes.get_xlim()
    twin.set_xlim(1e3 / low, 1e3 / high)
    twin.spines["top"].set_visible(True)
    twin.spines["top"].set_color(FAINT)
    _ticks(twin.xaxis, 1e3 / high, 1e3 / low, is_log=True)
    twin.tick_params(axis="x", labelcolor=QUIET, color=FAINT, which="both", pad=1.5)
    twin.set_xlabel(say("fps"), fontsize=7.5, color=QUIET, labelpad=3)


def _ramp() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("front", RAMP)


def _fronts(axes: Any, chart: ParetoChart) -> list[tuple[float, float, float, float]]:
    """The step lines; their segments in data units, so that labels keep off."""
    fx, fy = chart.x.factor, chart.y.factor
    right, (bottom, top) = axes.get_xlim()[1], axes.get_ylim()
    is_rising = _is_rising(chart)
    segments = []
    for n, f in enumerate(chart.fronts):
        points = [(x * fx, y * fy) for x, y in f.corners]
        xs, ys = [points[0][0]], [bottom if is_rising else top]
        for i, (x, y) in enumerate(points):
            if i:
                xs.append(x)
                ys.append(ys[-1])
            xs.append(x)
            ys.append(y)
        xs.append(right)
        ys.append(ys[-1])
        axes.plot(xs, ys, color=INK if n == 0 else QUIET, linewidth=1.1 if n == 0 else 0.9,
                  linestyle=FRONT_STYLES[n % 4], zorder=2, solid_joinstyle="miter")  # fmt: skip
        segments += list(zip(xs[:-1], ys[:-1], xs[1:], ys[1:], strict=True))
    return segments


def _is_rising(chart: ParetoChart) -> bool:
    corners = chart.fronts[0].corners if chart.fronts else ()
    return len(corners) < 2 or corners[-1][1] >= corners[0][1]


def _levels(axes: Any, chart: ParetoChart) -> None:
    """Published accuracies without a latency here: a line each, labelled at the right, apart from each other."""
    if not chart.levels:
        return
    low, high = axes.get_ylim()
    step = (high - low) / 26
    at = -math.inf
    for level in sorted(chart.levels, key=lambda v: v.value):
        y = level.value * chart.y.factor
        axes.axhline(y, color=FAINT, linewidth=0.7, linestyle=(0, (2, 2)), zorder=0.6)
        at = max(y, at + step)
        axes.annotate(
            level.label, (1.0, y), xycoords=axes.get_yaxis_transform(), xytext=(0.995, at),
            textcoords=axes.get_yaxis_transform(), fontsize=6.5, color=QUIET, ha="right", va="bottom",
        )  # fmt: skip


def _train_links(axes: Any, chart: ParetoChart, fx: float, fy: float) -> None:
    """A thin line from each unfused form to the fused one: the same net."""
    from matplotlib.collections import LineCollection

    found = _links_of(chart, fx, fy)
    axes.add_collection(LineCollection(found, colors=FAINT, linewidths=0.7, zorder=1), autolim=False)


def _links_of(chart: ParetoChart, fx: float, fy: float) -> list[Segment]:
    deploy = {(m.spec_id, m.kind, m.protocol): m for m in chart.marks if m.form == "deploy"}
    return [
        ((m.x * fx, m.y * fy), (other.x * fx, other.y * fy))
        for m in chart.marks
        if m.form != "deploy" and (other := deploy.get((m.spec_id, m.kind, m.protocol))) is not None
    ]


def _bars_of(marks: Sequence[Mark], fx: float, fy: float) -> list[Segment]:
    """The 95 % bars, across and upright."""
    found: list[Segment] = []
    for m in marks:
        if m.x_low is not None and m.x_high is not None:
            found.append(((m.x_low * fx, m.y * fy), (m.x_high * fx, m.y * fy)))
        if m.y_low is not None and m.y_high is not None:
            found.append(((m.x * fx, m.y_low * fy), (m.x * fx, m.y_high * fy)))
    return found


def _points(axes: Any, chart: ParetoChart, area: Callable[[Mark], float]) -> None:
    """Marks with their 95 % bars, as few collections: a thousand points are drawn in a second."""
    from matplotlib.collections import LineCollection

    fx, fy, ramp = chart.x.factor, chart.y.factor, _ramp()
    groups: dict[tuple[int, str, bool], list[Mark]] = {}
    for m in sorted(chart.marks, key=lambda m: -area(m)):
        layer = 2 if m.is_on_front else 1 if m.is_level else 0
        groups.setdefault((layer, m.kind, m.form == "deploy"), []).append(m)
    is_crowd = len(chart.marks) > 200
    for (layer, kind, is_deploy), members in sorted(groups.items()):
        colours = [ramp(m.probability if chart.has_intervals else 0.6) if is_deploy else "#8b949e" for m in members]
        bars: list[Segment] = []
        bar_colours: list[Any] = []
        for m, colour in zip(members, colours, strict=True):
            own = _bars_of([m], fx, fy)
            bars += own
            bar_colours += [colour] * len(own)
        faint = 0.35 if is_crowd and layer == 0 else 1.0
        axes.add_collection(
            LineCollection(bars, colors=bar_colours, linewidths=0.5 if is_crowd else 0.9, alpha=faint,
                           zorder=2.5 + layer / 10),
            autolim=False,
        )  # fmt: skip
        edges = INK if layer else "#7d8790" if is_deploy else colours
        thin = 0.25 if is_crowd else 0.5
        axes.scatter(
            [m.x * fx for m in members], [m.y * fy for m in members], s=[area(m) for m in members],
            marker=MARKERS[kind], facecolor=colours if is_deploy else "white", edgecolor=edges,
            linestyle=LEVEL if layer == 1 else "-", linewidth=(0.6 if is_crowd else 1.0) if layer or not is_deploy
            else thin, zorder=3 + layer / 10, clip_on=False,  # at 100 % a mark is whole all the same
        )  # fmt: skip


def _spread(marks: list[Mark], most: int) -> list[Mark]:
    """At most so many of them, evenly along the axis, the ends always: more cannot be read at print size."""
    if len(marks) <= most:
        return marks
    ordered = sorted(marks, key=lambda m: m.x)
    return [ordered[round(k * (len(ordered) - 1) / (most - 1))] for k in range(most)]


def _labels(
    figure: Figure,
    axes: Any,
    chart: ParetoChart,
    area: Callable[[Mark], float],
    segments: Sequence[tuple[float, float, float, float]],
    advised: Mark | None,
) -> None:
    """Names of the front, of the reference and of what to measure next; a thin line where the name had to move."""
    wanted = [m for m in chart.marks if (m.is_on_front or m.is_reference or m is advised) and m.form == "deploy"]
    wanted = wanted or [m for m in chart.marks if m.is_on_front]
    wanted = list({(m.spec_id, m.kind): m for m in wanted}.values())
    if not wanted:
        return
    size = 7.5 if len(wanted) <= 20 else SMALLEST
    wanted = _spread(wanted, MOST_LABELS)
    fx, fy = chart.x.factor, chart.y.factor
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    to_points = 72.0 / figure.dpi

    def at(x: float, y: float) -> tuple[float, float]:
        px, py = axes.transData.transform((x, y))
        return px * to_points, py * to_points

    def radius(m: Mark) -> float:
        return math.sqrt(area(m) / math.pi) + (3 if m is advised else 0)

    anchors, texts = [], []
    for m in wanted:
        # From its point in points of print, so that it stays there at any resolution.
        text = axes.annotate(
            _short(m.name, 30), (m.x * fx, m.y * fy), xytext=(0, 0), textcoords="offset points", fontsize=size,
            zorder=6, gid="label", ha="left", va="bottom", annotation_clip=False,
            color=INK if m.is_on_front else ACCENT if m is advised else QUIET,
        )  # fmt: skip
        box = text.get_window_extent(renderer)
        x, y = at(m.x * fx, m.y * fy)
        anchors.append(placement.Anchor(x, y, radius(m), box.width * to_points, box.height * to_points))
        texts.append(text)
    frame = axes.get_window_extent(renderer)
    x0, y0, wide, high = (v * to_points for v in (frame.x0, frame.y0, frame.width, frame.height))
    bounds = placement.Rect(x0 + 2, y0 + 2, wide - 4, high - 4)
    marks = [(*at(m.x * fx, m.y * fy), radius(m)) for m in chart.marks]
    lines = [(*at(a, b), *at(c, d)) for a, b, c, d in segments]
    for (a, b), (c, d) in [*_bars_of(chart.marks, fx, fy), *_links_of(chart, fx, fy)]:
        lines.append((*at(a, b), *at(c, d)))
    upright = [line.value * fx for line in chart.lines] + ([chart.budget * fx] if chart.budget is not None else [])
    faint = [(*at(v, axes.get_ylim()[0]), *at(v, axes.get_ylim()[1])) for v in upright]
    faint += [(*at(axes.get_xlim()[0], v.value * fy), *at(axes.get_xlim()[1], v.value * fy)) for v in chart.levels]
    for text, anchor, box in zip(texts, anchors, placement.place(anchors, marks, bounds, lines, faint), strict=True):
        text.set_position((box.x - anchor.x, box.y - anchor.y))
        near_x = min(max(anchor.x, box.x), box.x + box.width)
        near_y = min(max(anchor.y, box.y), box.y + box.height)
        gap = math.hypot(anchor.x - near_x, anchor.y - near_y)
        if gap > anchor.radius + 7:
            share = anchor.radius / gap
            begin = (anchor.x + (near_x - anchor.x) * share, anchor.y + (near_y - anchor.y) * share)
            back = axes.transData.inverted().transform
            ends = [back((x / to_points, y / to_points)) for x, y in (begin, (near_x, near_y))]
            axes.plot(*zip(*ends, strict=True), color=QUIET, linewidth=0.5, zorder=5.5, clip_on=False,
                      scalex=False, scaley=False)  # fmt: skip


def _key(
    figure: Figure, axes: Any, chart: ParetoChart, area: Callable[[Mark], float], say: Words, advised: Mark | None
) -> None:
    """The column at the right: sources, forms, fronts, areas, and the colour scale."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    dark = RAMP[2]
    handles: list[Any] = []
    labels: list[str] = []

    def add(handle: Any, label: str) -> None:
        handles.append(handle)
        labels.append(label)

    def dot(marker: str, face: str, edge: str, size: float = 6.0, width: float = 0.8) -> Any:
        return Line2D([], [], linestyle="", marker=marker, markersize=size, markerfacecolor=face, markeredgecolor=edge,
                      markeredgewidth=width)  # fmt: skip

    protocols = list(dict.fromkeys((m.kind, m.protocol) for m in chart.marks))
    protocols.sort(key=lambda p: list(MARKERS).index(p[0]))
    for kind, protocol in protocols[:MOST_PROTOCOLS]:
        name = say(kind) if protocol in (kind, "") else say(kind) + say.t(": ") + protocol
        add(dot(MARKERS[kind], dark, dark), _wrapped(name, KEY_LETTERS))
    if len(protocols) > MOST_PROTOCOLS:
        add(dot("", dark, dark), say.t("… {count} more", count=len(protocols) - MOST_PROTOCOLS))
    if any(m.form != "deploy" for m in chart.marks):
        add(dot("o", "white", "#8b949e", width=1.0), say("train"))
    for n, f in enumerate(chart.fronts[:MOST_PROTOCOLS]):
        own = "" if len(chart.fronts) == 1 else f" ({say(f.kind)})"
        add(
            Line2D([], [], color=INK if n == 0 else QUIET, linewidth=1.1, linestyle=FRONT_STYLES[n % 4]),
            say("front") + own,
        )
    if any(m.is_level for m in chart.marks):
        # A legend's markers have no dashed edge: a scatter of one point has.
        add(axes.scatter([], [], s=42, facecolor=RAMP[1], edgecolor=INK, linewidth=1.0, linestyle=LEVEL), say("level"))
    if advised is not None:
        add(dot("o", "none", ACCENT, 8, 1.1), say("measure_next"))
    if chart.budget is not None:
        budget = say("budget", budget=f"{chart.budget * chart.x.factor:g} {chart.x.unit}")
        low, high = axes.get_xlim()
        if low < chart.budget * chart.x.factor < high:
            add(Line2D([], [], color=QUIET, linewidth=0.9, linestyle=(0, (4, 3))), budget)
        else:  # no line: all of them are on one side of it
            is_over = chart.budget * chart.x.factor <= low
            mark = Patch(facecolor="#f1f2f4", edgecolor=FAINT, linewidth=0.5) if is_over else dot("", dark, dark)
            add(mark, _wrapped(say("all_over" if is_over else "all_within", budget=budget), KEY_LETTERS))
    needed = (0.34 if chart.has_intervals else 0.12) * figure.bbox.height
    sizes = _sizes(chart.marks, area)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    while True:
        shown = [
            (dot("o", "#e7e9ec", QUIET, math.sqrt(area(m)), 0.6),
             f"{tables.significant((m.params or 0) / 1e6, 2)} M {say('params').lower()}")
            for m in sizes
        ]  # fmt: skip
        legend = figure.legend(
            [*handles, *(h for h, _ in shown)], [*labels, *(text for _, text in shown)], loc="upper left",
            bbox_to_anchor=(0.755, 0.835), frameon=False, handlelength=1.8, labelspacing=0.75, borderaxespad=0,
            handletextpad=0.7,
        )  # fmt: skip
        bottom = legend.get_window_extent(renderer).y0
        if bottom >= needed or not sizes:
            break
        legend.remove()
        sizes = sizes[::2] if len(sizes) > 2 else []  # the ends; then none
    if chart.has_intervals:
        # Bar and title stand between the legend and the axis's foot, however long the legend is.
        free = bottom / figure.bbox.height - 0.12
        height = min(0.2, max(0.06, free - 0.10))
        base = max(0.12, min(0.12 + free - 0.10 - height, 0.42))
        bar_axes = figure.add_axes((0.767, base, 0.017, height))
        bar = figure.colorbar(ScalarMappable(cmap=_ramp()), cax=bar_axes)
        bar.set_ticks([0, 0.5, 1])
        bar.ax.tick_params(labelsize=7, length=2, width=0.5)
        bar.outline.set_visible(False)
        figure.text(0.765, base + height + 0.018, say("probability_short"), fontsize=7.5, va="bottom")


def _sizes(marks: Sequence[Mark], area: Callable[[Mark], float]) -> list[Mark]:
    """The smallest, a middle and the largest, where their areas differ enough to be seen.

    Of those that are drawn as small as a circle gets, the one with the most parameters stands for them.
    """
    sized = sorted((m for m in marks if m.params), key=lambda m: m.params or 0)
    if not sized or (sized[-1].params or 0) <= 1.2 * (sized[0].params or 0):
        return []
    least, most = [m for m in sized if area(m) <= area(sized[0])][-1], sized[-1]
    middle = min(sized, key=lambda m: abs(math.log(area(m) ** 2 / (area(least) * area(most)))))
    chosen = [least]
    for m in (middle, most):
        if area(m) > 1.2 * area(chosen[-1]):
            chosen.append(m)
    return chosen


# Curves, bars, diagrams, maps ------------------------------------------------------------------------------------

HUES = ("#0b3c73", "#b8430a", "#2d7d46", "#7a3b8f", "#8a6d00", "#00737f", "#a3324b", "#4d5b66")


def _titled(figure: Figure, title: str) -> None:
    _fitted(figure, 1 - 0.1 / figure.get_figheight(), title, fontsize=9.5, fontweight="bold")


def _fitted(figure: Figure, y: float, text: str, *, fontsize: float, **style: Any) -> None:
    """A line at the figure's left that ends within it: smaller where it must be, cut where that is not enough."""
    made = figure.text(0.012, y, text, fontsize=fontsize, va="top", **style)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    most = 0.976 * figure.bbox.width
    while made.get_window_extent(renderer).width > most and fontsize > SMALLEST:
        fontsize -= 0.25
        made.set_fontsize(fontsize)
    while made.get_window_extent(renderer).width > most and len(text) > 1:
        text = text[:-2]
        made.set_text(text + "…")


def _wide(text: str) -> int:
    """Its width in Latin letters; a Chinese one is as wide as two."""
    return sum(2 if ch >= "\u2e80" else 1 for ch in text)


def _wrapped(text: str, width: int) -> str:
    """Lines of at most so many Latin letters; broken at spaces, between Chinese letters, before a bracket, and in long
    names behind a mark such as _ or @.
    """
    lines, line = [], ""
    for word in re.findall(r"\([^()]*\)|\d+ ?[\u2e80-\uffef]|[\u2e80-\uffef]|[^\s\u2e80-\uffef]+\s*|\s+", text):
        if line and _wide(line + word.rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        while _wide(word.rstrip()) > width:
            marks = [m.end() for m in re.finditer(r"[\s_@:/-]", word[:width]) if m.end() > width // 2]
            cut = marks[-1] if marks else width
            lines.append(word[:cut].rstrip())
            word = word[cut:]
        line += word
    return "\n".join([*lines, line.rstrip()])


def _lines(chart: LineChart, say: Words) -> Figure:
    """Curves; earlier runs faint; over time as dates with 95 % bars."""
    figure = _figure(3.4)
    # A single curve that the title names needs no key, and leaves its room to the axes.
    has_key = needs_key(chart)
    right = 0.685 if has_key else 0.975
    axes = figure.add_axes((0.085, 0.14, right - 0.085, 0.74))
    _titled(figure, chart.title)
    is_time = chart.x.key == "time"
    for n, curve in enumerate(chart.curves):
        xs: list[Any] = [_day(x) if is_time else x * chart.x.factor for x, _ in curve.points]
        ys = [y * chart.y.factor for _, y in curve.points]
        colour, marker, dash = FAINT if curve.is_faint else HUES[n % len(HUES)], *_ROUNDS[n // len(HUES) % len(_ROUNDS)]
        style: dict[str, Any] = {
            "color": colour, "linewidth": 0.9 if curve.is_faint else 1.4, "zorder": 1 if curve.is_faint else 3,
            "linestyle": "" if curve.dots else "-" if curve.is_faint else "--" if curve.dashed else dash,
            "marker": marker if curve.dots or len(xs) == 1 else "", "markersize": 3.5,
        }  # fmt: skip
        axes.plot(xs, ys, label=curve.label, **style)
        if curve.low and curve.high:
            low, high = ([v * chart.y.factor for v in side] for side in (curve.low, curve.high))
            axes.vlines(xs, low, high, color=colour, linewidth=0.9, zorder=2)
    level = None
    if chart.level is not None:
        axes.axhline(chart.level.value * chart.y.factor, color=QUIET, linewidth=0.9, linestyle=":")
        level = axes.annotate(chart.level.label, (1.0, chart.level.value * chart.y.factor), xytext=(-2, 2),
                              xycoords=axes.get_yaxis_transform(), textcoords="offset points", ha="right", va="bottom",
                              fontsize=7, color=QUIET)  # fmt: skip
    axes.set_xlabel(chart.x.label)
    axes.set_ylabel(chart.y.label)
    axes.grid(True, color="#eceef1", linewidth=0.6)
    axes.set_axisbelow(True)
    _line_ranges(axes, chart)
    if chart.x_names:
        axes.set_xticks(range(len(chart.x_names)), [_short(name, 14) for name in chart.x_names])
    elif is_time:
        _time_axis(axes, chart, say)
    else:
        whole = [v for v in ticks.nice(*axes.get_xlim()) if v == int(v)]
        axes.set_xticks(whole, [f"{v:g}" for v in whole])
    if has_key:
        _line_key(figure, axes, chart, say)
    _make_room(figure, axes, right)
    if level is not None:
        _off_the_curves(axes, level, chart)
    return figure


def needs_key(chart: LineChart) -> bool:
    """Whether there are several curves, or one that neither title nor axis names."""
    return len(chart.curves) > 1 or any(
        c.label not in chart.title and chart.y.title not in c.label for c in chart.curves
    )


# A second round of the hues is told by its marker and its dashes.
_ROUNDS: tuple[tuple[str, Any], ...] = (("o", "-"), ("s", (0, (5, 2))), ("^", (0, (1, 1.2))), ("D", (0, (6, 2, 1, 2))))


def line_range(chart: LineChart) -> tuple[float, float] | None:
    """The ends of the axis of y in its unit, no further than a share goes; None where nothing can be drawn."""
    factor = chart.y.factor
    values = [v * factor for c in chart.curves for v in (*(y for _, y in c.points), *c.low, *c.high)]
    values += [chart.level.value * factor] if chart.level is not None else []
    values = [v for v in values if math.isfinite(v) and (v > 0 or not chart.y.is_log)]
    if not values:
        return None
    bottom, top = min(values), max(values)
    if chart.y.is_log:
        room = max(0.06 * math.log(top / bottom), 0.01)
        return bottom * math.exp(-room), top * math.exp(room)
    least, most = (None if v is None else v * factor for v in (chart.y.least, chart.y.most))
    return ticks.bounded(bottom, top, least, most, margin=0.06)


def _line_ranges(axes: Any, chart: LineChart) -> None:
    """The axis of y with round ticks."""
    found = line_range(chart)
    if found is None:
        return
    if chart.y.is_log:
        axes.set_yscale("log")
    axes.set_ylim(*found)
    _ticks(axes.yaxis, *axes.get_ylim(), is_log=chart.y.is_log)


def _time_axis(axes: Any, chart: LineChart, say: Words) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    # A single session is no reason for an axis of milliseconds, or of years.
    times = [x for curve in chart.curves for x, _ in curve.points]
    room = max(1800.0, 0.05 * (max(times) - min(times)))
    axes.set_xlim(_day(min(times) - room), _day(max(times) + room))
    locator = AutoDateLocator(minticks=3, maxticks=8)
    more = {}
    if say.lang == "zh":  # no English names of months
        formats = ["%Y", "%Y-%m", "%m-%d", "%H:%M", "%H:%M", "%S.%f"]
        offsets = ["", "%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%d", "%Y-%m-%d %H:%M"]
        more = {"formats": formats, "zero_formats": ["", "%Y", "%Y-%m", "%m-%d", "%H:%M", "%H:%M"],
                "offset_formats": offsets}  # fmt: skip
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, **more))


def _line_key(figure: Figure, axes: Any, chart: LineChart, say: Words) -> None:
    """The column at the right: the curves in full colour, and how many faint ones."""
    handles, labels = axes.get_legend_handles_labels()
    every = list(zip(handles, labels, chart.curves, strict=True))
    told = [(h, _wrapped(text, KEY_LETTERS)) for h, text, c in every if not c.is_faint]
    faint = [h for h, _, c in every if c.is_faint]
    more = len(told) - MOST_CURVES
    told = told[:MOST_CURVES]
    if faint:
        told.append((faint[0], say("earlier", count=len(faint))))
    if more > 0:
        told.append((handles[0], say.t("… {count} more", count=more)))
    figure.legend([h for h, _ in told], [text for _, text in told], loc="upper left", bbox_to_anchor=(0.70, 0.89),
                  frameon=False, borderaxespad=0, handlelength=1.6, labelspacing=0.45)  # fmt: skip


def _make_room(figure: Figure, axes: Any, right: float) -> None:
    """Move the axes' left side so that ticks and label are whole."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    box = axes.get_tightbbox(renderer)
    missing = (0.012 * figure.bbox.width - box.x0) / figure.bbox.width
    place = axes.get_position()
    left = place.x0 + missing
    axes.set_position((left, place.y0, right - left, place.height))


def _off_the_curves(axes: Any, label: Any, chart: LineChart) -> None:
    """A level's label stands at the right end, or at the left where a curve ends there."""
    renderer = axes.figure.canvas.get_renderer()
    box = label.get_window_extent(renderer)
    points = [axes.transData.transform((x, y * chart.y.factor)) for c in chart.curves for x, y in c.points]
    if any(box.x0 - 4 < x < box.x1 + 4 and box.y0 - 4 < y < box.y1 + 4 for x, y in points):
        label.set_ha("left")
        label.xy = (0.0, label.xy[1])
        label.set_position((2, 2))


def _day(seconds: float) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC)


def _short(text: str, most: int = 38) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _bars(chart: Bars, say: Words) -> Figure:
    """A panel for each sort of cost, the same names down the side: shares, and what each is written as."""
    rows = len(chart.names)
    height = max(1.5, 0.72 + 0.26 * rows)
    figure = _figure(height)
    _titled(figure, chart.title)
    left, right, gap = 0.13, 0.985, 0.022
    width = (right - left - gap * (len(chart.series) - 1)) / len(chart.series)
    for n, (title, values, written) in enumerate(chart.series):
        axes = figure.add_axes((left + n * (width + gap), 0.06, width, 1 - 0.66 / height - 0.06))
        known = [v or 0.0 for v in values]
        axes.barh(range(rows), known, color="#4a8bc2", height=0.62)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_xlim(0, (2.15 if len(chart.series) > 3 else 1.5) * max([*known, 1e-9]))
        axes.set_yticks(range(rows), [_short(name, 16) for name in chart.names] if n == 0 else [""] * rows)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        axes.spines["bottom"].set_visible(False)
        axes.set_title(title, fontsize=8, loc="left", pad=4, color=QUIET)
        for i, (value, text) in enumerate(zip(known, written, strict=True)):
            axes.text(value, i, f" {text}", va="center", fontsize=7)
    return figure


def _diagram(chart: Diagram, say: Words) -> Figure:
    """Stages from left to right: height follows the map, width the channels, what they are made of below."""
    from matplotlib.patches import Rectangle

    figure = _figure(2.75)
    _titled(figure, chart.title)
    axes = figure.add_axes((0.0, 0.0, 1.0, 0.9))
    axes.set_axis_off()
    boxes = chart.boxes
    axes.set_xlim(0, max(len(boxes), 4))
    axes.set_ylim(0, 1)
    largest = max(b.height for b in boxes)
    widest = max(b.channels for b in boxes)
    for i, b in enumerate(boxes):
        high = 0.12 + 0.36 * math.sqrt(b.height / largest)
        wide = 0.12 + 0.42 * math.sqrt(b.channels / widest)
        middle, centre = i + 0.5, 0.66
        face = "#0b3c73" if b.is_tap else "#a6c3df"
        axes.add_patch(Rectangle((middle - wide / 2, centre - high / 2), wide, high, facecolor=face, edgecolor=INK,
                                 linewidth=0.7))  # fmt: skip
        axes.text(middle, centre + high / 2 + 0.025, b.name, ha="center", va="bottom", fontsize=8, fontweight="bold")
        axes.text(middle, 0.375, f"{b.channels}×{b.height}×{b.width}", ha="center", va="top", fontsize=7.5)
        for k, line in enumerate(b.lines[:4]):
            axes.text(middle, 0.285 - 0.075 * k, _short(line, 22 if len(boxes) <= 5 else 17), ha="center", va="top",
                      fontsize=6.5, color=QUIET)  # fmt: skip
        if i + 1 < len(boxes):
            following = 0.12 + 0.42 * math.sqrt(boxes[i + 1].channels / widest)
            axes.annotate("", (i + 1.5 - following / 2 - 0.02, centre), (middle + wide / 2 + 0.02, centre),
                          arrowprops={"arrowstyle": "-|>", "color": QUIET, "linewidth": 0.8})  # fmt: skip
    return figure


def _heat(chart: Heat, say: Words) -> Figure:
    """A map over the input with squares: the template, the exact extent, what holds most of the gradient."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    figure = _figure(3.7)
    _titled(figure, chart.title)
    axes = figure.add_axes((0.07, 0.11, 0.47, 0.77))
    side = len(chart.rows)
    image = axes.imshow(chart.rows, cmap="magma", vmin=0, vmax=1, extent=(0, side, side, 0), interpolation="nearest")
    handles = []
    for n, (label, square) in enumerate(chart.squares):
        y, x = chart.centre
        colour, line = ("#e8e8e8", "#8fd3ff", "#ffb36b")[n % 3], FRONT_STYLES[n % 4]
        axes.add_patch(Rectangle((x - square / 2, y - square / 2), square, square, fill=False, edgecolor=colour,
                                 linewidth=1.3, linestyle=line))  # fmt: skip
        handles.append(Line2D([], [], color="#9a9fa5" if n % 3 == 0 else colour, linestyle=line, linewidth=1.6,
                              label=label))  # fmt: skip
    axes.set_xlim(0, side)
    axes.set_ylim(side, 0)
    axes.set_xlabel("px")
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.60, 0.88), frameon=False, borderaxespad=0,
                  labelspacing=0.9)  # fmt: skip
    bar = figure.colorbar(image, cax=figure.add_axes((0.605, 0.12, 0.017, 0.35)))
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)
    figure.text(0.603, 0.49, say("gradient"), fontsize=7.5, va="bottom")
    return figure
