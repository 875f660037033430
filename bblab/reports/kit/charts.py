"""What a chart says, before it is drawn: frozen values in SI units. `draw_print` and `draw_html` show the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bblab.reports.kit.stored import SourceKind


@dataclass(frozen=True, slots=True)
class Axis:
    """`factor` turns the SI value into the unit that a person reads (1e3 for ms)."""

    key: str
    title: str
    unit: str = ""
    factor: float = 1.0
    is_log: bool = False
    least: float | None = None  # no value can be below, in SI: a share's 0
    most: float | None = None  # nor above: a share's 1

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True, slots=True)
class Mark:
    """One point: a net in one form with one accuracy. `probability`: of being on the front of its protocol."""

    key: str
    spec_id: str
    name: str
    form: str
    family: str
    x: float
    x_low: float | None
    x_high: float | None
    y: float
    y_low: float | None
    y_high: float | None
    kind: SourceKind
    protocol: str
    is_on_front: bool
    is_level: bool  # cannot be told apart from a point on the front
    probability: float
    params: float | None
    is_reference: bool = False
    provenance: tuple[tuple[str, str], ...] = ()
    source: str = ""  # of the accuracy, in words
    is_x_exact: bool = False  # a measured cost of which no spread is known


@dataclass(frozen=True, slots=True)
class Front:
    """The step front of the points of one protocol, in order of cost."""

    protocol: str
    kind: SourceKind
    corners: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Level:
    """A line for what has one of the two only: a published accuracy, the reference's latency."""

    label: str
    value: float
    source: str = ""


@dataclass(frozen=True, slots=True)
class Advice:
    """The candidate whose re-measurement could change the front most."""

    name: str
    what: str  # "x" or "y": which of the two to measure again
    settled: float  # memberships that knowing it would settle (variance, in candidates)
    open: float  # of so many in all
    command: str


@dataclass(frozen=True, slots=True)
class Gap:
    """A candidate that is not on the chart, because one of its two numbers is missing there."""

    name: str
    what: str  # "x" or "y": the number that is missing
    command: str
    instead: str = ""  # of a latency what there is: "unfused", or "beside" another reference


@dataclass(frozen=True, slots=True)
class ParetoChart:
    """Accuracy against a cost for one setting and one scale: nothing in it is from another device or size."""

    key: str
    title: str
    axis: str  # latency, macs, params or activations
    place: tuple[tuple[str, str], ...]  # ("device", "host"), ("runtime", "ort") ...: what to filter by
    scale: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    fronts: tuple[Front, ...]
    ties: tuple[tuple[str, str], ...]
    advice: Advice | None
    caption: str
    is_main: bool
    budget: float | None = None
    levels: tuple[Level, ...] = ()  # horizontal
    lines: tuple[Level, ...] = ()  # vertical
    left_out: int = 0  # points thinned away
    is_loss: bool = False  # less is better
    gaps: tuple[Gap, ...] = ()  # the most promising first
    open: float = 0.0  # memberships of the front that are not sure (variance, in candidates)
    reference: str = ""  # the latencies' reference
    exact: tuple[str, ...] = ()  # names of points of which a spread is unknown and taken for none

    @property
    def has_intervals(self) -> bool:
        """Whether anything is known of any point's spread: without, a probability would be a pretence."""
        return any(m.x_low is not None or m.y_low is not None for m in self.marks)


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot. `is_faint`: an earlier run, for comparison."""

    label: str
    points: tuple[tuple[float, float], ...]
    is_faint: bool = False
    provenance: tuple[tuple[str, str], ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class LineChart:
    """Curves over a number, or over time where `x.key` is "time" (seconds since 1970)."""

    key: str
    title: str
    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    caption: str = ""
    level: Level | None = None
    x_names: tuple[str, ...] = ()  # of the places 0, 1, 2 ... where x has names instead of numbers


@dataclass(frozen=True, slots=True)
class Bars:
    """Values of several sorts over the same names: the cost of each stage, as shares."""

    key: str
    title: str
    names: tuple[str, ...]
    series: tuple[tuple[str, tuple[float | None, ...], tuple[str, ...]], ...]  # title, values, what is written
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Box:
    """A stage in a diagram: its name, what it is made of, and the map that it gives."""

    name: str
    lines: tuple[str, ...]
    channels: int
    height: int
    width: int
    is_tap: bool


@dataclass(frozen=True, slots=True)
class Diagram:
    """The stages of a net from the image to the last tap."""

    key: str
    title: str
    boxes: tuple[Box, ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Heat:
    """A map of the input: rows of values 0..1, with squares around its centre (label, side in px)."""

    key: str
    title: str
    rows: tuple[tuple[float, ...], ...]
    squares: tuple[tuple[str, float], ...]
    centre: tuple[float, float]
    caption: str = ""


Chart: TypeAlias = ParetoChart | LineChart | Bars | Diagram | Heat
