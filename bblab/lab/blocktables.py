"""Tables of single blocks from a grid of their arguments, and whole nets as the sum of their blocks.

    kind=mobileone,kernel=3|5,width=64|128,size=32,stride=1

is four blocks: every choice after a `|` with every other one. `width` are the channels that come out, `in` those that
go in (the same unless given), `size` the side of the map that goes in; every other key is an argument of the block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bblab import spec as language
from bblab.errors import BblabError, RunError, SpecError
from bblab.lab.benching import Measured, stored
from bblab.ops import Form
from bblab.spec import ArchSpec, Stage

if TYPE_CHECKING:
    from bblab.lab import Lab, Progress
    from bblab.latency import Candidate, Timing
    from bblab.latency.blocktable import BlockTime, Seat, Sum

EXAMPLE = "kind=mobileone,kernel=3|5,width=64|128,size=32,stride=1"
MAX_BLOCKS = 64
IMAGE_CHANNELS = 4  # a block that takes so few stands first in its net: nothing comes before it
PROCESSES, ROUNDS = 8, 12
ASKED = (
    "spec", "device", "runtime", "runtime_version", "form", "precision", "threads", "kind", "args", "in", "out",
    "stride", "has_before", "has_after", "reference", "reference_input",
)  # fmt: skip


# The grid ---------------------------------------------------------------------------------------------------------


def choices(text: str) -> dict[str, list[Any]]:
    """Each key's values, read as a spec's are. Raises BblabError for what is not such a list."""
    found: dict[str, list[Any]] = {}
    for part in _split(text, ","):
        key, equals, listed = part.partition("=")
        key = {"block": "kind", "out": "width"}.get(key.strip(), key.strip())
        if not equals or not key or not listed.strip():
            raise BblabError(f"--blocks: {part.strip()!r} is no key=value", hint=f"for example '{EXAMPLE}'")
        if key in found:
            raise BblabError(f"--blocks: {key} is given twice", hint=f"choices stand together: {key}=A|B")
        try:
            found[key] = [language.read_yaml(v.strip() or "null", key).plain() for v in _split(listed, "|")]
        except SpecError as error:
            shown = listed if len(listed) <= 60 else listed[:57] + "..."
            why = error.complaints[0].message
            raise BblabError(f"--blocks: {shown!r} cannot be read: {why}", hint=f"for example '{EXAMPLE}'") from None
    for key in ("kind", "width", "size"):
        if key not in found:
            raise BblabError(f"--blocks: {key} is missing", hint=f"for example '{EXAMPLE}'")
    for key in ("width", "size", "in", "stride"):
        for value in found.get(key, ()):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BblabError(f"--blocks: {key}={value!r}", hint="a whole number from 1")
    count = 1
    for values in found.values():
        count *= len(values)
    if count > MAX_BLOCKS:
        raise BblabError(f"--blocks: {count} blocks", hint=f"at most {MAX_BLOCKS} in one table")
    return found


def _split(text: str, mark: str) -> list[str]:
    """At the marks outside brackets."""
    parts, depth, at = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "{[(") - (letter in "}])")
        if letter == mark and depth == 0:
            parts.append(text[at:i])
            at = i + 1
    return [*parts, text[at:]]


def grid(lab: Lab, text: str) -> list[tuple[dict[str, Any], ArchSpec]]:
    """Every block of the grid as a one-block spec, with its choices. Raises SpecError for what cannot be built."""
    chosen = choices(text)
    found, mistakes = [], []
    for picked in itertools.product(*chosen.values()):
        cell = dict(zip(chosen, picked, strict=True))
        try:
            found.append((cell, one_block(lab, cell)))
        except BblabError as error:
            mistakes.append(error.message)
    if mistakes:
        raise BblabError("--blocks: " + "\n".join(dict.fromkeys(mistakes)), hint=f"for example '{EXAMPLE}'")
    return found


def one_block(lab: Lab, cell: Mapping[str, Any]) -> ArchSpec:
    kind, width, size = str(cell["kind"]), cell["width"], cell["size"]
    given = cell.get("in", width)
    args = {k: v for k, v in cell.items() if k not in ("kind", "width", "size", "in", "stride")}
    row = {"block": kind, "out": width, "stride": cell.get("stride", 1), **args}
    info = lab.kinds.get(kind)
    if info is not None and info.keeps_channels:
        row.pop("out")
    text = _yaml({"name": _name(cell), "input": [given, size, size], "stages": {"block": row}})
    try:
        return language.parse(text, lab.kinds, file="--blocks")
    except SpecError as error:
        said = "; ".join(dict.fromkeys(c.message + (f" ({c.hint})" if c.hint else "") for c in error.complaints))
        raise BblabError(f"{_name(cell)}: {said}") from None


def _yaml(value: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(value), sort_keys=False, default_flow_style=True, width=10_000)


def _name(cell: Mapping[str, Any]) -> str:
    """mobileone kernel=5 64 s1 32px"""
    special = ("kind", "width", "size", "in", "stride")
    args = " ".join(f"{k}={_short(v)}" for k, v in cell.items() if k not in special)
    given = cell.get("in", cell["width"])
    channels = f"{cell['width']}" if given == cell["width"] else f"{given}>{cell['width']}"
    return " ".join(
        p for p in (str(cell["kind"]), args, channels, f"s{cell.get('stride', 1)}", f"{cell['size']}px") if p
    )


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + " ".join(f"{k}:{_short(v)}" for k, v in value.items()) + "}"
    return str(value).replace("/", "_")


# Measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Session:
    """What one session measured: blocks by their seats' keys, nets by their candidates' keys."""

    blocks: Mapping[str, BlockTime]
    timings: Mapping[str, Timing]
    reference: Timing


def _measured(
    lab: Lab,
    seats: Sequence[Seat],
    nets: Sequence[Candidate],
    reference: Candidate,
    runtime: str,
    threads: int,
    budget: float | None,
    on_progress: Progress | None,
    problems: list[BblabError],
) -> Session | None:
    """Every seat, the copies at its borders, whole nets and the reference, in the same shuffled rounds."""
    from bblab.latency import Plan, Race, run_races
    from bblab.latency import blocktable as table

    own = {seat.key: seat.candidate() for seat in seats}
    copies = {c.key: c for seat in seats for shape in seat.borders() for c in [table.copier(shape, seat.block.form)]}
    candidates = {c.key: c for c in (*nets, *own.values(), *copies.values())}
    against = candidates.get(reference.key, reference)
    plan = Plan(processes=PROCESSES, rounds=ROUNDS, budget_s=budget)
    race = Race(tuple(candidates.values()), against, runtime, threads)
    (outcome,) = run_races([race], plan=plan, on_progress=on_progress)
    if outcome.problem is not None:
        problems.append(outcome.problem)
    problems += [RunError(f"left out: {text}") for text in outcome.left_out]
    if not outcome.timings:
        return None
    by_key = {t.key: t for t in outcome.timings}
    return Session(table.block_times(seats, by_key, by_key[against.key]), by_key, by_key[against.key])


def _reference(lab: Lab, shape: tuple[int, int, int] | None = None) -> Candidate:
    from bblab.lab import REFERENCE

    base = lab._built_in(REFERENCE)
    side = lab._bench_input(base, "search")[1:] if shape is None else shape[1:]
    return lab.candidate(replace(base, head=None, input=(3, *side)), "deploy", side)


def _row(spec: ArchSpec, cell: Mapping[str, Any], found: BlockTime, session: Session) -> dict[str, Any]:
    t, seat = session.timings[found.seat.key], found.seat
    seconds, ratio = found.value_s, found.ratio
    block = spec.stages[0].rows[0]
    net = t.to_json()
    kept = ("device", "runtime", "runtime_version", "form", "precision", "threads", "processes", "rounds", "reference")
    return {
        "label": spec.name,
        "spec": spec.name,
        **{k: net[k] for k in kept},
        "reference_input": net["reference_input"],
        "kind": block.kind,
        "args": block.kwargs,
        "in": list(seat.block.input),
        "out": list(seat.out),
        "stride": block.stride,
        "choice": dict(cell),
        "has_before": seat.has_before,
        "has_after": seat.has_after,
        "block_s": seconds.value,
        "block_low_s": _end(seconds.low),
        "block_high_s": _end(seconds.high),
        "ratio": ratio.value,
        "ratio_low": _end(ratio.low),
        "ratio_high": _end(ratio.high),
        "is_lost": found.is_lost,
        "with_neighbours_s": net["cpu_p10_s"] if t.is_one_cpu_thread else t.wall_p50_s,
        "wall_over_cpu": net["wall_over_cpu"],
        "is_busy": net["is_busy"],
        "drift": net["drift"],
        "notes": net["notes"],
        "conversion_rel_error": net["conversion_rel_error"],
        "session": net["session"],
    }


def _end(value: float) -> float | None:
    """An end of an interval; None where there is no interval (one process)."""
    return value if math.isfinite(value) else None


def _raw(found: BlockTime, session: Session) -> dict[str, Any]:
    from bblab.latency.blocktable import copier

    t = session.timings[found.seat.key]
    raw: dict[str, Any] = {"wall_s": t.samples.wall_s, "cpu_s": t.samples.cpu_s, "block_s": (found.seconds,)}
    for number, shape in enumerate(found.seat.borders()):
        copy = session.timings[copier(shape, found.seat.block.form).key]
        raw |= {f"copy{number}_wall_s": copy.samples.wall_s, f"copy{number}_cpu_s": copy.samples.cpu_s}
    reference = session.reference.samples
    return {**raw, "reference_wall_s": reference.wall_s, "reference_cpu_s": reference.cpu_s}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two blocks that differ in one choice. `ratio` is second / first; None where one cannot be told from nothing.

    `low` and `high` are None where there is no interval: one of them is lost, or one process measured them.
    """

    key: str
    first: Any
    second: Any
    rest: str
    ratio: float | None
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "too small to measure"
        if self.low is None or self.high is None:
            return "too few processes"
        return "slower" if self.low > 1 else "faster" if self.high < 1 else "cannot tell"

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key, "first": self.first, "second": self.second, "rest": self.rest, "ratio": self.ratio,
            "ratio_low": self.low, "ratio_high": self.high, "verdict": self.verdict,
        }  # fmt: skip


def comparisons(cells: Sequence[tuple[Mapping[str, Any], BlockTime]]) -> list[Comparison]:
    """Every two neighbouring choices of a key with everything else the same."""
    from bblab.latency.blocktable import ratio_of

    keys = [k for k in cells[0][0] if len({str(c[k]) for c, _ in cells}) > 1] if cells else []
    found = []
    for key in keys:
        groups: dict[str, list[tuple[Mapping[str, Any], BlockTime]]] = {}
        for cell, block in cells:
            rest = ", ".join(f"{k} {_short(v)}" for k, v in cell.items() if k != key)
            groups.setdefault(rest, []).append((cell, block))
        for rest, members in groups.items():
            for (one, a), (two, b) in itertools.pairwise(members):
                ratio = ratio_of(b, a)
                values: tuple[float | None, float | None, float | None] = (None, None, None)
                if ratio is not None:
                    is_known = math.isfinite(ratio.high)
                    values = (ratio.value, ratio.low if is_known else None, ratio.high if is_known else None)
                found.append(Comparison(key, one[key], two[key], rest, *values))
    return found


def blocks(
    lab: Lab,
    text: str,
    *,
    runtimes: Sequence[str] = ("ort",),
    threads: Sequence[int] = (1,),
    form: Form = "deploy",
    budget: float | None = None,
    store: bool = True,
    on_progress: Progress | None = None,
) -> tuple[Measured, list[dict[str, Any]]]:
    """The table of a grid: one row a block and session, and the comparisons of neighbouring choices."""
    from bblab.latency import blocktable as table
    from bblab.latency import runtimes as engines

    for name in runtimes:
        engines.find(name).version()
    cells = grid(lab, text)
    seats: list[Seat] = []
    for _, spec in cells:
        summary = lab.analyst.summary(spec.stages[0].rows[0], (spec.input,), form)
        if len(summary.outputs) != 1:
            raise BblabError(f"{spec.name} gives several maps", hint="a block in this table gives one map")
        block = lab.candidate(spec, form, spec.input[1:])
        seats.append(table.Seat(block, _three(summary.outputs[0]), spec.input[0] > IMAGE_CHANNELS, True))
    if len({seat.key for seat in seats}) < len(seats):
        raise BblabError("--blocks: two of the choices are the same block", hint="an argument's default, or a repeat")
    rows: list[Mapping[str, Any]] = []
    problems: list[BblabError] = []
    compared: list[dict[str, Any]] = []
    for runtime in runtimes:
        for count in threads:
            session = _measured(lab, seats, (), _reference(lab), runtime, count, budget, on_progress, problems)
            if session is None:
                continue
            known = []
            for (cell, spec), seat in zip(cells, seats, strict=True):
                found = session.blocks.get(seat.key)
                if found is None:
                    continue
                known.append((cell, found))
                row = _row(spec, cell, found, session)
                rows.append(_kept(lab, "block", spec, row, ASKED, _raw(found, session), store, problems))
            compared += [{"runtime": runtime, "threads": count, **c.to_json()} for c in comparisons(known)]
    return Measured(tuple(rows), tuple(problems)), compared


def _kept(
    lab: Lab,
    kind: str,
    spec: ArchSpec,
    row: dict[str, Any],
    asked: Sequence[str],
    raw: Mapping[str, Any],
    store: bool,
    problems: list[BblabError],
) -> Mapping[str, Any]:
    if not store:
        return row
    try:
        return stored(lab, kind, spec, row, asked, raw)
    except RunError as error:
        if not any(str(error) == str(p) for p in problems):
            problems.append(error)
        return row


def _three(shape: Sequence[int]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


# Whole nets -------------------------------------------------------------------------------------------------------


def seats_of(lab: Lab, spec: ArchSpec, form: Form, shape: tuple[int, int, int]) -> list[tuple[ArchSpec, Seat]]:
    """Each row of a net as a one-block spec in its seat. Raises BblabError for nets that are no chain of blocks."""
    from bblab.latency.blocktable import Seat

    if spec.library:
        raise BblabError(f"{spec.name} has no blocks of ours to add up", hint="estimates are of specs with stages")
    rows = [(stage.name, i, row) for stage in spec.backbone_stages for i, row in enumerate(stage.rows)]
    shapes: tuple[tuple[int, ...], ...] = (shape,)
    found = []
    for place, (stage, position, row) in enumerate(rows):
        summary = lab.analyst.summary(row, shapes, form)
        if len(shapes) > 1 or len(summary.outputs) > 1:
            raise BblabError(
                f"{spec.name}: {stage}.{position} works on several maps at once",
                hint="only nets of one path can be added up",
            )
        given, out = _three(shapes[0]), _three(summary.outputs[0])
        args = ",".join(f"{k}={_short(v)}" for k, v in row.kwargs.items())
        name = f"{row.kind}{'(' + args + ')' if args else ''} {given[0]}>{out[0]} s{row.stride} {given[1]}px"
        one = ArchSpec(name[:200], (Stage("block", (row,)),), given, ("block",))
        seat = Seat(lab.candidate(one, form, given[1:]), out, place > 0, place < len(rows) - 1)
        found.append((one, seat))
        shapes = summary.outputs
    return found


def estimate(
    lab: Lab,
    references: Sequence[str | ArchSpec],
    *,
    edits: Sequence[str] = (),
    runtimes: Sequence[str] = ("ort",),
    threads: Sequence[int] = (1,),
    form: Form = "deploy",
    size: str | int = "search",
    budget: float | None = None,
    store: bool = True,
    on_progress: Progress | None = None,
) -> tuple[Measured, list[dict[str, Any]]]:
    """Each net measured whole and as the sum of its blocks, in the same rounds; how the sums err, a line a session."""
    from bblab.latency import blocktable as table
    from bblab.latency import runtimes as engines

    for name in runtimes:
        engines.find(name).version()
    specs = list({s.spec_id: s for s in lab.every(references, edits)}.values())
    parts: dict[str, list[tuple[ArchSpec, Seat]]] = {}
    nets: dict[str, Candidate] = {}
    known: dict[str, tuple[ArchSpec, Seat]] = {}
    places: dict[str, list[str]] = {}
    for spec in specs:
        shape = lab._bench_input(spec, size)
        parts[spec.spec_id] = seats_of(lab, spec, form, shape)
        nets[spec.spec_id] = lab.candidate(spec, form, shape[1:])
        rows_of = [(stage, i) for stage in spec.backbone_stages for i in range(len(stage.rows))]
        places[spec.spec_id] = [f"{stage.name}.{i} {stage.rows[i].kind}" for stage, i in rows_of]
        known |= {seat.key: (one, seat) for one, seat in parts[spec.spec_id]}
    sides = {c.input for c in nets.values()}
    if len(sides) > 1:
        raise BblabError("the nets have different input sizes", hint="give all the same with --size N")
    # One label for two blocks that print alike would be refused.
    seen: dict[str, int] = {}
    for key, (one, seat) in known.items():
        number = seen.setdefault(seat.candidate().label, 0)
        seen[seat.candidate().label] = number + 1
        if number:
            known[key] = (one, replace(seat, block=replace(seat.block, label=f"{seat.block.label} #{number + 1}")))
    rows: list[Mapping[str, Any]] = []
    problems: list[BblabError] = []
    summary: list[dict[str, Any]] = []
    reference = _reference(lab, next(iter(sides)))
    for runtime in runtimes:
        for count in threads:
            session = _measured(
                lab, [s for _, s in known.values()], list(nets.values()), reference, runtime, count, budget,
                on_progress, problems,
            )  # fmt: skip
            if session is None:
                continue
            ids = {}
            for key, (one, _) in known.items():
                if key in session.blocks:
                    row = _row(one, {}, session.blocks[key], session)
                    kept = _kept(lab, "block", one, row, ASKED, _raw(session.blocks[key], session), store, problems)
                    ids[key] = kept.get("run_id")
            sums: list[Sum] = []
            for spec in specs:
                keys = [seat.key for _, seat in parts[spec.spec_id]]
                net = session.timings.get(nets[spec.spec_id].key)
                if net is None or any(k not in session.blocks for k in keys):
                    problems.append(RunError(f"{spec.name}: not all of its blocks could be measured on {runtime}"))
                    continue
                found = table.summed(spec.name, [session.blocks[k] for k in keys], net, session.reference)
                sums.append(found)
                blocks_of = list(zip(places[spec.spec_id], (known[k][0] for k in keys), strict=True))
                row = _sum_row(spec, found, net, blocks_of, [ids.get(k) for k in keys])
                raw = {"cpu_s": net.samples.cpu_s, "wall_s": net.samples.wall_s}
                rows.append(_kept(lab, "latency_estimate", spec, row, ASKED, raw, store, problems))
            if sums:
                summary.append({"runtime": runtime, "threads": count, **table.accuracy(sums).to_json()})
    return Measured(tuple(rows), tuple(problems)), summary


def _sum_row(
    spec: ArchSpec, found: Sum, net: Timing, blocks: Sequence[tuple[str, ArchSpec]], ids: Sequence[int | None]
) -> dict[str, Any]:
    own = net.to_json()
    kept = ("device", "runtime", "runtime_version", "form", "precision", "threads", "input", "processes", "rounds",
            "reference", "reference_input", "wall_over_cpu", "is_busy", "drift", "notes", "session")  # fmt: skip
    span: Callable[[str, Any], dict[str, float | None]] = lambda name, e: {  # noqa: E731
        name: e.value, f"{name}_low": _end(e.low), f"{name}_high": _end(e.high)
    }  # fmt: skip
    return {
        "label": spec.name,
        "spec": spec.name,
        **{k: own[k] for k in kept},
        "cpu_p10_s": own["cpu_p10_s"],
        "added_s": found.added_s,
        **span("measured_ratio", found.measured),
        **span("added_ratio", found.added),
        **span("error", found.error),
        "blocks": [
            {"row": row, "block": one.name, "seconds": b.value_s.value, "ratio": b.ratio.value, "run_id": run_id}
            for (row, one), b, run_id in zip(blocks, found.blocks, ids, strict=True)
        ],
    }
