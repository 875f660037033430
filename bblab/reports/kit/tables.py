"""Numbers as their interval justifies them, and tables as CSV, Markdown and LaTeX (booktabs)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from bblab.reports import Column, Table

# A footnote mark at the end of a cell: "71.4 [a]". Made by the report, set by each format in its own way.
_MARK = re.compile(r"^(?P<text>.*?)\s?\[(?P<mark>[a-z]{1,2})\]$", re.DOTALL)


def decimals(low: float, high: float) -> int:
    """Decimals that an interval justifies: half its width is written with two digits where it begins with 1, else one.

    So 5.741 in [5.69, 5.80] (half width .055) is 5.74, in [5.2, 6.3] (.55) it is 5.7. Negative: tens, hundreds.
    """
    half = (high - low) / 2
    if not half > 0 or not math.isfinite(half):
        return 12
    exponent = math.floor(math.log10(half))
    if round(half / 10**exponent, 9) < 2:
        exponent -= 1
    return -exponent


def rounded(value: float, places: int) -> str:
    """A number with so many decimals; negative ones round tens, hundreds."""
    return f"{value:.{places}f}" if places >= 0 else f"{round(value, places):.0f}"


def significant(value: float, count: int = 3) -> str:
    """A number with `count` significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = count - 1 - math.floor(math.log10(abs(float(f"{value:.{count - 1}e}"))))
    return rounded(value, max(0, places))


def with_interval(value: float | None, low: float | None, high: float | None, factor: float = 1.0) -> str:
    """ "5.74 [5.69, 5.80]": the digits that the interval justifies; three significant ones where none is known."""
    if value is None or not math.isfinite(value):
        return "–"
    value *= factor
    if not has_interval(low, high):
        return significant(value)
    assert low is not None and high is not None
    low, high = low * factor, high * factor
    places = min(decimals(low, high), 12)
    return f"{rounded(value, places)} [{rounded(low, places)}, {rounded(high, places)}]"


NO_INTERVAL = "(no interval)"


def has_interval(low: float | None, high: float | None) -> bool:
    """Whether both ends are numbers and apart: one process, or one call, has no spread that could be known."""
    return low is not None and high is not None and math.isfinite(low) and math.isfinite(high) and low < high


def span(
    value: float | None, low: float | None, high: float | None, places: int, factor: float = 1.0, end: str = NO_INTERVAL
) -> str:
    """ "0.078 [0.071, 0.085]" with so many decimals; "0.078 (no interval)" where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if not has_interval(low, high):
        return f"{value * factor:.{places}f} {end}".rstrip()
    assert low is not None and high is not None
    return f"{value * factor:.{places}f} [{low * factor:.{places}f}, {high * factor:.{places}f}]"


def plain_number(value: float | None, form: str = ".2f") -> str:
    """A number in Python's format, "–" where there is none."""
    return "–" if value is None or not math.isfinite(value) else format(value, form)


def marked(text: str, mark: str) -> str:
    """A cell with a footnote mark."""
    return f"{text} [{mark}]" if mark else text


def unmarked(text: str) -> tuple[str, str]:
    """A cell's text and its footnote mark ("" where it has none)."""
    match = _MARK.match(text)
    return (match["text"], match["mark"]) if match else (text, "")


def letter(index: int) -> str:
    """a, b, ... z, aa, ab ...: footnote marks."""
    return chr(97 + index) if index < 26 else letter(index // 26 - 1) + chr(97 + index % 26)


def _shown(table: Table) -> list[int]:
    return [i for i, c in enumerate(table.columns) if c.title]


# Markdown -------------------------------------------------------------------------------------------------------


def markdown(table: Table, footnotes: Sequence[tuple[str, str]] = ()) -> str:
    """A pipe table; units in the header, footnotes below."""
    shown = _shown(table)
    columns = [table.columns[i] for i in shown]
    lines = [
        _md_row([plain_md(c.title) + (f" ({plain_md(c.unit)})" if c.unit else "") for c in columns]),
        _md_row(["---:" if c.align == "right" else ":---" for c in columns]),
        *(_md_row([_md_cell(row[i]) for i in shown]) for row in table.cells),
    ]
    text = "\n".join(lines) + "\n"
    if footnotes:
        text += "\n" + "\n".join(f"<sup>{mark}</sup> {plain_md(note)}  " for mark, note in footnotes) + "\n"
    return text


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md_cell(text: str) -> str:
    match = _MARK.match(text)
    return f"{plain_md(match['text'])}<sup>{match['mark']}</sup>" if match else plain_md(text)


def plain_md(text: str) -> str:
    """Text as Markdown prints it literally."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))


# LaTeX ----------------------------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "–": "--", "—": "---", "×": r"$\times$", "±": r"$\pm$",
    "µ": r"\textmu{}", "≥": r"$\geq$", "≤": r"$\leq$", "→": r"$\rightarrow$", "·": r"$\cdot$", "≈": r"$\approx$",
    "✗": r"$\times$", "▲": r"$\triangle$", "⋆": r"$\star$", "†": r"\dag{}", "…": r"\ldots{}",
    "²": r"\textsuperscript{2}", "●": r"$\bullet$", "○": r"$\circ$", "’": "'", "“": "``", "”": "''", "\u00a0": "~",
}  # fmt: skip


def latex(table: Table, caption: str, label: str, footnotes: Sequence[tuple[str, str]] = ()) -> str:
    """A table with booktabs rules (needs that package); names in any script need XeLaTeX or LuaLaTeX."""
    shown = _shown(table)
    columns = [table.columns[i] for i in shown]
    out = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{tex(caption)}}}",
        rf"  \label{{tab:{re.sub(r'[^A-Za-z0-9:-]+', '-', label)}}}",
        rf"  \begin{{tabular}}{{{''.join('r' if c.align == 'right' else 'l' for c in columns)}}}",
        r"    \toprule",
        f"    {_tex_row([tex(c.title) for c in columns])}",
    ]
    if any(c.unit for c in columns):
        out.append(f"    {_tex_row([tex(c.unit) for c in columns])}")
    out.append(r"    \midrule")
    out += [f"    {_tex_row([_tex_cell(row[i]) for i in shown])}" for row in table.cells]
    out += [r"    \bottomrule", r"  \end{tabular}"]
    if footnotes:
        notes = r"\\ ".join(rf"\textsuperscript{{{mark}}} {tex(note)}" for mark, note in footnotes)
        out.append(rf"  \par\smallskip{{\footnotesize\raggedright {notes}\par}}")
    out.append(r"\end{table}")
    return "\n".join(out) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    # A row that begins with [ would be read as the argument of the line break before it.
    return " & ".join(f"{{{c}}}" if c.startswith("[") else c for c in cells) + r" \\"


def _tex_cell(text: str) -> str:
    match = _MARK.match(text)
    return rf"{tex(match['text'])}\textsuperscript{{{match['mark']}}}" if match else tex(text)


def tex(text: str) -> str:
    """Text as LaTeX prints it literally."""
    return "".join(_TEX.get(c, c if c.isprintable() else " ") for c in text)


def columns_of(*titles: tuple[str, str, str, str]) -> tuple[Column, ...]:
    """Columns from (title, key, unit, "left" or "right")."""
    return tuple(Column(title, key, unit, "left" if side == "left" else "right") for title, key, unit, side in titles)
