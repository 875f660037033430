"""What a chart's front lets one conclude, in words: what is missing, what to measure again, or that it is settled.

Pure: from a chart to sentences. The page, the terminal and a notebook say the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from bblab.reports.kit.charts import ParetoChart
from bblab.reports.kit.words import Words

OPEN = 0.02  # memberships (variance, in candidates) below which a front is not called open: draws resolve no less
MOST_NAMES = 4


@dataclass(frozen=True, slots=True)
class Sentence:
    """A conclusion, and the command that acts on it ("" where there is none)."""

    text: str
    command: str = ""


def conclusions(chart: ParetoChart, say: Words) -> list[Sentence]:
    """One or two sentences, the most pressing first.

    A candidate that lacks one of its numbers may land anywhere, so a front that lacks one is never called settled. Nor
    is one with points that cannot be told apart, or whose numbers are taken for exact because no spread is known.
    """
    found = []
    if chart.gaps:
        found.append(_gap(chart, say))
    if chart.advice is not None:
        a = chart.advice
        what = say("next_x" if a.what == "x" else "next_y")
        text = say("next", name=a.name, what=what, settled=f"{a.settled:.2f}", open=f"{a.open:.2f}")
        found.append(Sentence(say("again", text=text) if found else text, a.command))
    if found:
        return found
    if not chart.has_intervals:
        return [Sentence(say("no_intervals"))]
    if chart.ties:
        text = say("ties_open", ties=_some([f"{a} = {b}" for a, b in chart.ties], say, "; "))
    elif chart.open >= OPEN:
        text = say("still_open", open=f"{chart.open:.2f}")
    elif chart.exact:
        text = say("settled_but", names=_some(chart.exact, say))
    elif len(chart.fronts) > 1:
        return [Sentence(say("settled_fronts", count=len(chart.fronts)))]
    else:
        text = say("settled_front")
    return [Sentence(text + (say("each_front") if len(chart.fronts) > 1 else ""))]


def _gap(chart: ParetoChart, say: Words) -> Sentence:
    first, *others = chart.gaps
    number = say(f"{chart.axis}_word")
    if first.instead:
        number = say(f"latency_{first.instead}", reference=chart.reference)
    text = say(f"gap_{first.what}", name=first.name, number=number, scale=chart.scale)
    if others:
        text += say("gap_more", names=_some(list(dict.fromkeys(g.name for g in others)), say))
    return Sentence(text, first.command)


def _some(names: list[str] | tuple[str, ...], say: Words, mark: str = ", ") -> str:
    shown = mark.join(names[:MOST_NAMES])
    return shown + say.and_more(len(names) - MOST_NAMES) if len(names) > MOST_NAMES else shown
