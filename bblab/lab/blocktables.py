"""Tables of single blocks from a grid of their arguments, and whole nets as the sum of their blocks.

    kind=mobileone,kernel=3|5,width=64|128,size=32,stride=1

is four blocks: every choice after a `|` with every other one. `width` are the channels that come out, `in` those that
go in (the same unless given), `size` the side of the map that goes in; every other key is an argument of the block.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bblab import spec as language
from bblab.errors import BblabError, RunError, SpecError
from bblab.lab.benching import Budget, Kept, Measured
from bblab.ops import Form
from bblab.spec import ArchSpec, Stage

if TYPE_CHECKING:
    from bblab.lab import Lab, Progress
    from bblab.latency import Candidate, Timing
    from bblab.latency.blocktable import BlockTime, Seat, Sum
    from bblab.latency.devices import Device
    from bblab.latency.stats import Estimate

EXAMPLE = "kind=mobileone,kernel=3|5,width=64|128,size=32,stride=1"
MAX_BLOCKS = 64
IMAGE_CHANNELS = 4  # a block that takes so few stands first in its net: nothing comes before it
PROCESSES, ROUNDS = 8, 12
ASKED = (
    "spec", "device", "runtime", "runtime_version", "form", "precision", "threads", "protocol", "kind", "args", "in",
    "out", "stride", "has_before", "has_after", "reference", "reference_input",
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
    device: Device,
    budget: float | None,
    on_progress: Progress | None,
    kept: Kept,
) -> Session | None:
    """Every seat, the copies at its borders, whole nets and the reference, in the same shuffled rounds."""
    from bblab.latency import Plan, Race, run_races
    from bblab.latency import blocktable as table

    if budget is not None and budget <= 0:
        kept.not_reached(f"{runtime}, {threads} thread{'s' * (threads > 1)}")
        return None
    own = {seat.key: seat.candidate() for seat in seats}
    copies = {c.key: c for seat in seats for shape in seat.borders() for c in [table.copier(shape, seat.block.form)]}
    candidates = {c.key: c for c in (*nets, *own.values(), *copies.values())}
    against = candidates.get(reference.key, reference)
    plan = Plan(processes=PROCESSES, rounds=ROUNDS, budget_s=budget)
    race = Race(tuple(candidates.values()), (against,), runtime, threads)
    (outcome,) = run_races([race], device=device, plan=plan, on_progress=on_progress)
    if outcome.problem is not None:
        kept.problems.append(outcome.problem)
    kept.problems += [RunError(f"left out: {text}") for text in outcome.left_out]
    if outcome.not_reached:
        kept.not_reached(f"{runtime}: {', '.join(outcome.not_reached)}")
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
    own = ("device", "runtime", "runtime_version", "form", "precision", "threads", "protocol", "processes", "rounds",
           "reference")  # fmt: skip
    return {
        "label": spec.name,
        "spec": spec.name,
        **{k: net[k] for k in own},
        "state": "warm",
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
        **_ends("block", seconds, "_s"),
        "ratio": ratio.value,
        **_ends("ratio", ratio),
        "is_lost": found.is_lost,
        "with_neighbours_s": net["cpu_p10_s"] if t.is_one_cpu_thread else t.wall_p50_s,
        "wall_over_cpu": net["wall_over_cpu"],
        "is_busy": net["is_busy"],
        "drift": net["drift"],
        "notes": net["notes"],
        "conversion_rel_error": net["conversion_rel_error"],
        "session": net["session"],
    }


def _ends(name: str, estimate: Estimate, unit: str = "") -> dict[str, float | None]:
    """The two ends of an interval; null where one process gives none."""
    low, high = estimate.to_json()
    return {f"{name}_low{unit}": low, f"{name}_high{unit}": high}


def _raw(found: BlockTime, session: Session) -> dict[str, Any]:
    from bblab.latency.blocktable import copier

    t = session.timings[found.seat.key]
    raw: dict[str, Any] = {"wall_s": t.warm.wall_s, "cpu_s": t.warm.cpu_s, "block_s": (found.seconds,)}
    for number, shape in enumerate(found.seat.borders()):
        copy = session.timings[copier(shape, found.seat.block.form).key]
        raw |= {f"copy{number}_wall_s": copy.warm.wall_s, f"copy{number}_cpu_s": copy.warm.cpu_s}
    reference = session.reference.warm
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
                    values = (ratio.value, *ratio.to_json())
                found.append(Comparison(key, one[key], two[key], rest, *values))
    return found


def blocks(
    lab: Lab,
    text: str,
    *,
    runtimes: Sequence[str] = ("ort",),
    threads: Sequence[int] = (1,),
    form: Form = "deploy",
    device: str = "host",
    budget: float | None = None,
    waits: bool = False,
    store: bool = True,
    on_progress: Progress | None = None,
) -> tuple[Measured, list[dict[str, Any]]]:
    """The table of a grid: one row a block and session, and the comparisons of neighbouring choices."""
    from bblab.latency import blocktable as table
    from bblab.latency import runtimes as engines

    clock = Budget(budget)
    opened = lab.device(device, waits=waits)
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
    kept = Kept(lab, store)
    compared: list[dict[str, Any]] = []
    sessions = [(runtime, count) for runtime in runtimes for count in threads]
    for done, (runtime, count) in enumerate(sessions):
        share = clock.share(len(sessions) - done)
        session = _measured(lab, seats, (), _reference(lab), runtime, count, opened, share, on_progress, kept)
        if session is None:
            continue
        known = []
        for (cell, spec), seat in zip(cells, seats, strict=True):
            found = session.blocks.get(seat.key)
            if found is None:
                continue
            known.append((cell, found))
            kept.keep("block", spec, _row(spec, cell, found, session), ASKED, _raw(found, session))
        compared += [{"runtime": runtime, "threads": count, **c.to_json()} for c in comparisons(known)]
    return kept.measured(), compared


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
    device: str = "host",
    size: str | int = "search",
    budget: float | None = None,
    waits: bool = False,
    store: bool = True,
    on_progress: Progress | None = None,
) -> tuple[Measured, list[dict[str, Any]]]:
    """Each net measured whole and as the sum of its blocks, in the same rounds; how the sums err, a line a session."""
    from bblab.latency import blocktable as table
    from bblab.latency import runtimes as engines

    clock = Budget(budget)
    opened = lab.device(device, waits=waits)
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
    kept = Kept(lab, store)
    sum_rows: list[Mapping[str, Any]] = []
    summary: list[dict[str, Any]] = []
    reference = _reference(lab, next(iter(sides)))
    seats = [s for _, s in known.values()]
    sessions = [(runtime, count) for runtime in runtimes for count in threads]
    for done, (runtime, count) in enumerate(sessions):
        share = clock.share(len(sessions) - done)
        session = _measured(
            lab, seats, list(nets.values()), reference, runtime, count, opened, share, on_progress, kept
        )  # fmt: skip
        if session is None:
            continue
        ids = {}
        for key, (one, _) in known.items():
            if key in session.blocks:
                found = session.blocks[key]
                ids[key] = kept.keep("block", one, _row(one, {}, found, session), ASKED, _raw(found, session)).get(
                    "run_id"
                )
        sums: list[Sum] = []
        for spec in specs:
            keys = [seat.key for _, seat in parts[spec.spec_id]]
            net = session.timings.get(nets[spec.spec_id].key)
            if net is None or any(k not in session.blocks for k in keys):
                kept.problems.append(RunError(f"{spec.name}: not all of its blocks could be measured on {runtime}"))
                continue
            added = table.summed(spec.name, [session.blocks[k] for k in keys], net, session.reference)
            sums.append(added)
            blocks_of = list(zip(places[spec.spec_id], (known[k][0] for k in keys), strict=True))
            row = _sum_row(spec, added, net, blocks_of, [ids.get(k) for k in keys])
            raw = {"cpu_s": net.warm.cpu_s, "wall_s": net.warm.wall_s}
            sum_rows.append(kept.keep("latency_estimate", spec, row, ASKED, raw))
        if sums:
            summary.append({"runtime": runtime, "threads": count, **table.accuracy(sums).to_json()})
    return Measured(tuple(sum_rows), tuple(kept.problems)), summary


def _sum_row(
    spec: ArchSpec, found: Sum, net: Timing, blocks: Sequence[tuple[str, ArchSpec]], ids: Sequence[int | None]
) -> dict[str, Any]:
    own = net.to_json()
    kept = ("device", "runtime", "runtime_version", "form", "precision", "threads", "protocol", "input", "processes",
            "rounds", "reference", "reference_input", "wall_over_cpu", "is_busy", "drift", "notes",
            "session")  # fmt: skip
    return {
        "label": spec.name,
        "spec": spec.name,
        **{k: own[k] for k in kept},
        "cpu_p10_s": own["cpu_p10_s"],
        "added_s": found.added_s,
        "state": "warm",
        **{
            key: value
            for name, e in (("measured_ratio", found.measured), ("added_ratio", found.added), ("error", found.error))
            for key, value in {name: e.value, **_ends(name, e)}.items()
        },
        "blocks": [
            {"row": row, "block": one.name, "seconds": b.value_s.value, "ratio": b.ratio.value, "run_id": run_id}
            for (row, one), b, run_id in zip(blocks, found.blocks, ids, strict=True)
        ],
    }
