"""Reports: pure functions from stored rows to a `Page`; drawing is apart. Finds the report files of the rooms.

A report is a file in `reports/`. A function under `@report("name")` takes profiles (or other rows) as the plain data of
`--json`: what a command has just measured. One under `@notebook_report("name")` takes `Stored` rows and `Options`: what
the lab's notebook holds, for `bblab report NAME`. Both return a Page; the command line and files draw the same Page.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bblab.catalogue import Catalogue
from bblab.errors import BblabError
from bblab.reports.kit.charts import Chart
from bblab.reports.kit.stored import Stored
from bblab.rooms import Rooms, room

# In a checkout the report files lie in the room; in a wheel they lie beside this file.
__path__ = [str(Path(__file__).parent), str(room("reports"))]

Cell = str | int | float | None
Align = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Options:
    """What `bblab report` was asked for; each report takes what concerns it.

    `against` is the cost axis, `accuracy` a metric ("" takes the best that is there), `names` the specs asked for.
    """

    against: str = "latency"
    accuracy: str = ""
    budget_s: float | None = None
    with_published: bool = False
    lang: str = "en"
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column. `unit` is printed under the title; `key` names it in CSV. No title: in CSV only."""

    title: str
    key: str
    unit: str = ""
    align: Align = "right"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells as a person reads them, and the same rows as raw values for CSV."""

    columns: tuple[Column, ...]
    cells: tuple[tuple[str, ...], ...]
    values: tuple[tuple[Cell, ...], ...]

    def to_csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([c.key for c in self.columns])
        writer.writerows([_csv_cell(v) for v in row] for row in self.values)
        return out.getvalue()


def _csv_cell(value: Cell) -> Cell:
    """Empty where a number is not one: NaN and infinities are what no reader of CSV agrees about."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Page:
    """What a report says: a title, a table, notes under it; of the notebook's reports also charts and further tables.

    `sources` are the footnotes of the tables: (mark, text). `details` are texts by spec_id that a click may open.
    """

    title: str
    table: Table
    notes: tuple[str, ...] = field(default=())
    charts: tuple[Chart, ...] = field(default=())
    sections: tuple[tuple[str, Table], ...] = field(default=())
    sources: tuple[tuple[str, str], ...] = field(default=())
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    heading: str = ""
    about: tuple[str, ...] = field(default=())


Report = Callable[[Sequence[Mapping[str, Any]]], Page]
REPORTS: Catalogue[Report] = Catalogue("report")
report = REPORTS

NotebookReport = Callable[[Stored, Options], Page]
NOTEBOOK_REPORTS: Catalogue[NotebookReport] = Catalogue("report")
notebook_report = NOTEBOOK_REPORTS


def find(name: str, rooms: Rooms) -> Report:
    """The report of this name, from the built-in room or the lab's. Raises BblabError listing the near ones."""
    _load(name, rooms, REPORTS)
    return REPORTS[name]


def find_for_notebook(name: str, rooms: Rooms) -> NotebookReport:
    """The report that `bblab report NAME` makes of what is stored. Raises BblabError listing the near ones."""
    _load(name, rooms, NOTEBOOK_REPORTS)
    return NOTEBOOK_REPORTS[name]


def _load(name: str, rooms: Rooms, wanted: Catalogue[Any]) -> None:
    """Import the built-in file of that name alone where it will do: the others draw with libraries of their own."""
    files = {(origin, p.stem) for origin, folder in rooms.folders("reports") for p in folder.glob("*.py")}
    if ("built-in", name) in files and all(origin == "built-in" for origin, _ in files):
        importlib.import_module(f"bblab.reports.{name}")
    if name not in wanted:  # all, so that the error lists them
        load_all(rooms)


def load_all(rooms: Rooms) -> list[str]:
    """Import every report file; the names they registered."""
    for origin, folder in rooms.folders("reports"):
        for path in sorted(folder.glob("*.py")):
            if path.name.startswith(("_", ".")):
                continue
            if origin == "built-in":
                importlib.import_module(f"bblab.reports.{path.stem}")
            else:
                _load_file(path)
    return list(REPORTS)


def _load_file(path: Path) -> None:
    name = f"bblab_lab_reports_{abs(hash(str(path.resolve())))}_{path.stem}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BblabError:
        del sys.modules[name]
        raise
    except Exception as error:
        del sys.modules[name]
        raise BblabError(
            f"{path}: cannot be imported: {type(error).__name__}: {error}", hint="mend the file"
        ) from error
