"""Pictures as a picky reader sees them: nothing overlaps, nothing is cut, ticks are round, a share ends at 100 %."""

from __future__ import annotations

import itertools
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bblab.reports import Page
from bblab.reports.kit import ticks
from bblab.reports.kit.charts import Axis, Curve, Front, Level, LineChart, Mark, ParetoChart
from bblab.reports.kit.words import Words

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
matplotlib = pytest.importorskip("matplotlib")

# Made-up charts ---------------------------------------------------------------------------------------------------

NAMES = ("nanotrack", "shufflenetv2_x0_5@s16", "timm:mobilenetv3_small_100@s16", "mobileone_s0", "k5_se_hsigmoid")


def marks(count: int, *, near_top: bool = False) -> list[Mark]:
    """Nets along a rising cloud, every fifth also unfused; `near_top`: accuracies from 94 to 99.7 %."""
    from bblab.reports.kit import front

    rng = np.random.default_rng(count)
    found = []
    for i in range(count):
        ms = float(np.exp(rng.uniform(math.log(0.8), math.log(25 if count > 3 else 2))))
        y = (95.5 + 1.5 * math.log(ms)) if near_top else 55 + 9 * math.log(ms)
        y = min((y + float(rng.normal(0, 0.7))) / 100, 0.997)
        name = NAMES[i] if i < len(NAMES) else f"cand_{i:02d}"
        found.append((name, "deploy", ms / 1e3, y))
        if i % 5 == 1:
            found.append((name, "train", 1.7 * ms / 1e3, y))
    deploy = [m for m in found if m[1] == "deploy"]
    on = dict(zip((m[0] for m in deploy), front.on_front([m[2] for m in deploy], [m[3] for m in deploy]), strict=True))
    return [
        Mark(
            f"{name} {form}", name, name, form, "other", x, 0.97 * x, 1.05 * x, y, y - 0.012, min(1.0, y + 0.012),
            "own", "digits, 10 epochs at 48 px", form == "deploy" and on[name], False,
            0.9 if on[name] else 0.05, x * 2e8,
        )
        for name, form, x, y in found
    ]  # fmt: skip


def chart(count: int, *, near_top: bool = False, lang: str = "en", **more: Any) -> ParetoChart:
    say = Words(lang)
    every = marks(count, near_top=near_top)
    corners = tuple(sorted((m.x, m.y) for m in every if m.is_on_front))
    return ParetoChart(
        "made-up", say("pareto_title", scale="top-1, digits", x=say("latency_cpu")), "latency",
        (("device", "host"), ("runtime", "ort 1.32.0"), ("threads", "1"), ("precision", "float32"),
         ("input", "3×255×255"), ("state", "warm"),
         ("machine", "Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz with a long name")),
        "top-1, digits", Axis("latency", say("latency_cpu"), "ms", 1e3, True),
        Axis("top-1", "top-1, digits", "%", 100.0, least=0.0, most=1.0), tuple(every),
        (Front(every[0].protocol, "own", corners),), (), None, "caption", True, 0.010,
        lines=(Level("resnet18 (reference)", 0.040),), **more,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    """The style of print for as long as a test lasts: fonts are looked up when a box is asked for."""
    from bblab.reports.kit import draw_print

    with matplotlib.rc_context(draw_print._style(["DejaVu Sans"])):
        yield


def drawn(value: Any, lang: str = "en") -> Any:
    from bblab.reports.kit import draw_print

    if lang == "zh":
        chinese = draw_print._cjk_font()
        if chinese is None:
            pytest.skip("no font with Chinese characters on this machine")
        matplotlib.rcParams["font.sans-serif"] = [chinese, "DejaVu Sans"]
    return draw_print.draw(value, lang)


def texts(figure: Any) -> list[tuple[str, Any]]:
    """Every text that is drawn, with its box in pixels; tick labels without a tick in the axis are not drawn."""
    from matplotlib.text import Text

    renderer = figure.canvas.get_renderer()
    figure.canvas.draw()
    found = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            found.append((text.get_text(), text.get_window_extent(renderer)))
    shown = {(words, tuple(np.round(box.extents, 1))): (words, box) for words, box in found}  # an object is found twice
    return list(shown.values())


def overlaps(boxes: list[tuple[str, Any]], slack: float = 1.0) -> list[tuple[str, str]]:
    def inner(a: Any, b: Any) -> bool:
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        return bool(wide > slack and high > slack)

    return [(a, b) for (a, box), (b, other) in itertools.combinations(boxes, 2) if inner(box, other)]


def cut(figure: Any, boxes: list[tuple[str, Any]]) -> list[str]:
    edge = figure.bbox
    return [t for t, b in boxes if b.x0 < -0.5 or b.y0 < -0.5 or b.x1 > edge.x1 + 0.5 or b.y1 > edge.y1 + 0.5]


def bars(figure: Any, value: ParetoChart) -> list[tuple[str, tuple[float, float], tuple[float, float]]]:
    """Each 95 % bar in pixels, with its net."""
    at = figure.axes[0].transData.transform
    fx, fy = value.x.factor, value.y.factor
    found = []
    for m in value.marks:
        assert m.x_low is not None and m.x_high is not None and m.y_low is not None and m.y_high is not None
        found.append((m.name, tuple(at((m.x_low * fx, m.y * fy))), tuple(at((m.x_high * fx, m.y * fy)))))
        found.append((m.name, tuple(at((m.x * fx, m.y_low * fy))), tuple(at((m.x * fx, m.y_high * fy)))))
    return found  # type: ignore[return-value]


def is_crossed(box: Any, a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether an upright or level line runs through the box."""
    low_x, high_x, low_y, high_y = min(a[0], b[0]), max(a[0], b[0]), min(a[1], b[1]), max(a[1], b[1])
    return bool(low_x < box.x1 and high_x > box.x0 and low_y < box.y1 and high_y > box.y0)


# Print ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("near_top", [False, True], ids=["middling", "near 100 %"])
@pytest.mark.parametrize("count", [1, 2, 3, 14, 60])
def test_no_text_of_a_front_lies_on_another_or_is_cut(count: int, near_top: bool, lang: str) -> None:
    figure = drawn(chart(count, near_top=near_top, lang=lang), lang)
    boxes = texts(figure)
    assert len(boxes) > 10
    assert overlaps(boxes) == []
    assert cut(figure, boxes) == []


def test_names_stay_at_their_points_at_any_resolution() -> None:
    figure = drawn(chart(14))
    labels = [t for t in figure.axes[0].texts if t.get_gid() == "label"]
    offsets = [t.get_position() for t in labels]
    figure.set_dpi(72)  # as SVG and PDF are saved
    renderer = figure.canvas.get_renderer()
    for text, (x, y) in zip(labels, offsets, strict=True):
        box, at = text.get_window_extent(renderer), figure.axes[0].transData.transform(text.xy)
        assert (box.x0 - at[0], box.y0 - at[1]) == pytest.approx((x, y), abs=1.5)


@pytest.mark.parametrize("near_top", [False, True], ids=["middling", "near 100 %"])
@pytest.mark.parametrize("count", [1, 2, 3, 14, 60])
def test_no_name_is_crossed_by_its_own_bar_and_none_by_any_where_there_is_room(count: int, near_top: bool) -> None:
    value = chart(count, near_top=near_top)
    figure = drawn(value)
    labels = {t.get_text(): t for t in figure.axes[0].texts if t.get_gid() == "label"}
    assert set(labels) == {m.name for m in value.marks if m.is_on_front and m.form == "deploy"}
    renderer = figure.canvas.get_renderer()
    crossed = {
        (name, of)
        for name, text in labels.items()
        for of, a, b in bars(figure, value)
        if is_crossed(text.get_window_extent(renderer), a, b)
    }
    assert not {(name, of) for name, of in crossed if name == of}
    assert count > 14 or not crossed


@pytest.mark.parametrize("near_top", [False, True], ids=["middling", "near 100 %"])
@pytest.mark.parametrize("count", [1, 2, 3, 14, 60])
def test_a_share_ends_at_a_hundred_percent_in_print_and_on_the_page(count: int, near_top: bool) -> None:
    pytest.importorskip("altair")
    from bblab.reports.kit import draw_html

    value = chart(count, near_top=near_top)
    low, high = drawn(value).axes[0].get_ylim()
    assert low >= 0 and high <= 100
    assert high > max(m.y for m in value.marks) * 100
    spec, _ = draw_html.pareto_spec(value, Words("en"))
    domains = [tuple(layer["encoding"]["y"]["scale"]["domain"]) for layer in spec["layer"]
               if "domain" in layer.get("encoding", {}).get("y", {}).get("scale", {})]  # fmt: skip
    assert domains and all(a >= 0 and b <= 100 for a, b in domains)


def test_a_wrong_share_is_shown_all_the_same() -> None:
    # 1.2 is stored as a share: an axis that ended at 100 % would hide the fault.
    assert ticks.bounded(20, 120, 0.0, 100.0, margin=0.1) == (10, 120)
    assert ticks.bounded(-5, 50, 0.0, 100.0, margin=0.1)[0] == -5
    assert ticks.bounded(40, 60, None, None, margin=0.1) == (38, 63)


@pytest.mark.parametrize("count", [2, 3, 14, 60])
def test_circles_in_the_key_differ_in_size_and_each_says_the_most_that_it_stands_for(count: int) -> None:
    from bblab.reports.kit import draw_print

    every = chart(count).marks
    area = draw_print._areas(every)
    shown = draw_print._sizes(every, area)
    assert all(area(b) > 1.2 * area(a) for a, b in itertools.pairwise(shown))
    assert shown[-1].params == max(m.params or 0 for m in every)
    assert shown[0].params == max(m.params or 0 for m in every if area(m) == min(map(area, every)))


def is_round(step: float) -> bool:
    return float(f"{step:.6e}".partition("e")[0]) in (1.0, 2.0, 5.0)


@pytest.mark.parametrize("is_log", [False, True], ids=["linear", "log"])
def test_ticks_are_multiples_of_one_two_or_five_and_keep_apart(is_log: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3000):
        low = float(10 ** rng.uniform(-6, 6))
        high = low * float(1 + 10 ** rng.uniform(-2, 1.5 if is_log else 3))
        found = ticks.nice(low, high, is_log=is_log)
        assert 2 <= len(found) <= ticks.MOST, (low, high, found)
        assert found == sorted(found) and low * (1 - 1e-9) <= found[0] and found[-1] <= high * (1 + 1e-9)
        gaps = [b - a for a, b in itertools.pairwise(found)]
        is_even = max(gaps) - min(gaps) < 1e-6 * max(gaps)
        assert is_round(gaps[0]) if is_even else all(is_round(t) for t in found), (low, high, found)
        place = (lambda v: math.log(v)) if is_log else (lambda v: v)
        least = min(place(b) - place(a) for a, b in itertools.pairwise(found))
        assert least / (place(high) - place(low)) > 0.05, (low, high, found)
        assert len({len(t.partition(".")[2]) for t in ticks.texts(found)}) == 1 or not is_even


def test_the_ticks_of_a_narrow_log_axis_are_even() -> None:
    # Before: .82 .86 .9 .94 .98 1.2 1.6, the first five on top of each other.
    assert ticks.texts(ticks.nice(0.81, 1.76, is_log=True)) == ["1.0", "1.2", "1.4", "1.6"]
    assert ticks.texts(ticks.nice(0.7, 12, is_log=True)) == ["1", "2", "5", "10"]
    assert ticks.texts(ticks.nice(410, 510, is_log=True)) == ["420", "440", "460", "480", "500"]
    assert ticks.texts(ticks.nice(95.5, 100)) == ["96", "97", "98", "99", "100"]


def curves(count: int, epochs: int = 30) -> LineChart:
    found = tuple(
        Curve(
            f"{NAMES[i % 5]} (run {100 + i}, seed 0)",
            tuple((float(e), 0.2 + 0.79 * (1 - math.exp(-e / (3 + i % 5)))) for e in range(1, epochs + 1)), i > 5,
        )
        for i in range(count)
    )  # fmt: skip
    axis = Axis("accuracy_top1", "Validation top-1", "%", 100.0, least=0.0, most=1.0)
    return LineChart("runs", "Validation top-1 over epochs: digits", Axis("epoch", "Epoch"), axis, found)


def days(count: int, times: int = 5) -> LineChart:
    begin = 1_790_000_000.0
    found = tuple(
        Curve(
            f"{NAMES[i % 5]} deploy", tuple((begin + 86_400 * d, 0.05 * 1.3**i) for d in range(times)), dots=True,
            low=tuple(0.049 * 1.3**i for _ in range(times)), high=tuple(0.052 * 1.3**i for _ in range(times)),
        )
        for i in range(count)
    )  # fmt: skip
    axis = Axis("ratio", "Time over resnet18", is_log=True)
    return LineChart("device", "host over time: ort 1.32.0", Axis("time", "Date (UTC)"), axis, found)


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("count", [1, 2, 3, 14, 60])
def test_no_text_of_curves_lies_on_another_or_is_cut(count: int, lang: str) -> None:
    for value in (curves(count), curves(count, epochs=1), days(min(count, 12)), days(min(count, 12), times=1)):
        figure = drawn(value, lang)
        boxes = texts(figure)
        assert overlaps(boxes) == [], value.key
        assert cut(figure, boxes) == [], value.key


def test_a_curve_that_the_title_does_not_name_has_a_key_and_shares_end_at_a_hundred_percent() -> None:
    figure = drawn(curves(1))
    assert "nanotrack (run 100, seed" in " ".join(t for t, _ in texts(figure)).replace("\n", " ")
    assert figure.axes[0].get_ylim()[1] <= 100


def test_curves_of_one_colour_differ_in_marker_or_dashes() -> None:
    lines = drawn(days(12)).axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 12


def test_long_names_are_broken_at_their_marks() -> None:
    from bblab.reports.kit.draw_print import _wrapped

    assert _wrapped("timm:mobilenetv3_small_100@s16 (run 34, seed 0)", 26) == (
        "timm:mobilenetv3_small_\n100@s16 (run 34, seed 0)"
    )
    assert _wrapped("own pretraining: digits, 10 epochs at 48 px", 26) == (
        "own pretraining: digits,\n10 epochs at 48 px"
    )
    assert all(len(line) <= 13 for line in _wrapped("本实验室预训练：手写数字，轮次很多很多很多", 26).split("\n"))


def test_one_net_is_one_net() -> None:
    assert "1 net;" in Words("en")(
        "pareto_caption", scale="a", x="b", nets=Words("en").many("net", 1), place="c"
    ).replace("; c.", ";")


# The page ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def browser() -> Any:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("altair")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with sync.sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def opened(browser: Any, folder: Path, value: Page, width: int, lang: str = "en") -> Any:
    from bblab.reports.kit import draw_html

    path = folder / "page.html"
    path.write_text(draw_html.page(value, lang), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 1000})
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-done]", state="attached", timeout=60_000)
    return page


def page_of(value: ParetoChart, *, spec: str = "") -> Page:
    from bblab.reports import Table
    from bblab.reports.kit import tables

    columns = tables.columns_of(("net", "name", "", "left"), ("", "spec_id", "", "left"))
    rows = tuple((m.name, m.spec_id) for m in value.marks)
    details = {m.spec_id: {"spec": spec, "findings": [], "about": ""} for m in value.marks}
    return Page("pareto", Table(columns, rows, rows), charts=(value,), details=details, heading=value.title)


def boxes_of(page: Any, selector: str) -> list[tuple[str, dict[str, float]]]:
    return [
        (e.text_content(), e.bounding_box())
        for e in page.query_selector_all(selector)
        if (e.text_content() or "").strip()
    ]


@pytest.mark.parametrize(("count", "width"), [(1, 1280), (2, 1280), (3, 1280), (14, 1280), (60, 1280), (60, 2560)])
def test_no_text_of_the_pages_chart_lies_on_another(browser: Any, tmp_path: Path, count: int, width: int) -> None:
    value = chart(count, near_top=count > 3)
    page = opened(browser, tmp_path, page_of(value), width)
    names = boxes_of(page, "g.labels text")
    assert {t for t, _ in names} == {m.name for m in value.marks if m.is_on_front}  # none is dropped
    found = [
        *names,
        *boxes_of(page, "#chart svg g.role-axis-label text"),
        *boxes_of(page, "#chart svg g.role-axis-title text"),
    ]
    for (a, one), (b, two) in itertools.combinations(found, 2):
        wide = min(one["x"] + one["width"], two["x"] + two["width"]) - max(one["x"], two["x"])
        high = min(one["y"] + one["height"], two["y"] + two["height"]) - max(one["y"], two["y"])
        assert not (wide > 1.5 and high > 3), (a, b)
    menu = page.query_selector("#chart summary").bounding_box()
    assert all(b["x"] + b["width"] <= menu["x"] + 1 for _, b in found)
    wide = page.query_selector("#chart svg").bounding_box()["width"]
    assert wide > 0.5 * width  # no half of a wide screen stays empty
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_no_name_on_the_page_is_crossed_by_a_bar_where_there_is_room(browser: Any, tmp_path: Path) -> None:
    page = opened(browser, tmp_path, page_of(chart(14)), 1280)
    lines = [e.bounding_box() for e in page.query_selector_all("#chart g.mark-rule:not(.leaders) line")]
    bars = [b for b in lines if b["width"] < 100 and b["height"] < 250]
    assert len(bars) >= 28
    for name, box in boxes_of(page, "g.labels text"):
        for bar in bars:
            wide = min(box["x"] + box["width"], bar["x"] + bar["width"]) - max(box["x"], bar["x"])
            high = min(box["y"] + box["height"], bar["y"] + bar["height"]) - max(box["y"], bar["y"])
            assert not (wide > 0 and high > 3), name


@pytest.mark.parametrize("width", [1280, 2560])
def test_what_a_click_opens_leaves_the_table_where_it_is(browser: Any, tmp_path: Path, width: int) -> None:
    long = "\n".join(f"s{i} mobileone 64 /2 (kernel 5)" for i in range(200))
    page = opened(browser, tmp_path, page_of(chart(14), spec=long), width)
    before = page.query_selector("table").bounding_box()["y"]
    page.locator('path[aria-label*="name: "]').first.click()
    assert "s199 mobileone" in page.text_content("#details")
    assert page.query_selector("table").bounding_box()["y"] == before
    assert not page.locator("#tip").is_visible()  # it would lie over what was opened


# Languages --------------------------------------------------------------------------------------------------------


def test_every_chinese_text_has_the_places_of_its_english_one() -> None:
    from bblab.reports.kit import words

    for english, chinese in words._ZH_TEXTS.items():
        assert set(re.findall(r"{\w+}", chinese)) == set(re.findall(r"{\w+}", english)), english
    assert set(words._EN) == set(words._ZH)
    for key, english in words._EN.items():
        places = set(re.findall(r"{\w+}", words._ZH[key]))
        assert places == set(re.findall(r"{\w+}", english)), key


def test_a_time_on_the_page_is_the_stored_second() -> None:
    from bblab.reports.kit import draw_html

    stored_s = 1_796_061_525.25  # the milliseconds of it have thirteen digits
    assert draw_html._finite({"x": [stored_s * 1e3, 0.123456789, math.inf]}) == {"x": [stored_s * 1e3, 0.1234568, None]}


def test_a_long_finding_is_broken_into_lines_and_no_table_is_wider_than_the_page(browser: Any, tmp_path: Path) -> None:
    from bblab.reports import Table
    from bblab.reports.kit import tables

    columns = tables.columns_of(
        ("rule", "rule", "", "left"), ("finding", "message", "", "left"), ("waived", "waived", "", "left")
    )  # fmt: skip
    rows = (("even-map", "the trainer's points sit 8 px off the map's centre; " * 4, "a reason of its own " * 6),)
    value = page_of(chart(3))
    table = Table(columns, rows, rows)
    page = opened(browser, tmp_path, replace(value, sections=(("findings", table),)), 1280)
    wide = page.evaluate(
        "Math.max(...[...document.querySelectorAll('table')].map((t) => t.getBoundingClientRect().right))"
    )
    assert wide <= 1280
