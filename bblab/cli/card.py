"""The card of one spec: findings first, both forms side by side, stages, tracker geometry, latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bblab.cli.common import digits, megabytes, milliseconds, shape, si

if TYPE_CHECKING:
    from bblab.lab import Profile

MARKS = {"error": ("✗", "bold red"), "warning": ("▲", "yellow"), "note": ("·", "dim")}


def draw(profile: Profile, out: Console, *, layers: bool = False) -> None:
    """Print the card."""
    row = profile.to_json()
    parts: list[RenderableType] = [_title(row), _findings(row), _forms(row), _stages(row)]
    tracker = _tracker(row, profile.no_geometry_because)
    parts.append(tracker)
    out.print(Group(*[Group(part, Text("")) for part in parts]))


def draw_latency(rows: list[Mapping[str, Any]], out: Console) -> None:
    """Print the latency of both forms."""
    out.print(Group(_latency(rows), Text("")))


def _title(row: Mapping[str, Any]) -> RenderableType:
    head = Text(row["name"], style="bold")
    if row["about"]:
        head.append("  " + row["about"], style="dim")
    taps = ", ".join(row["taps"])
    return Group(head, Text(f"input {shape(row['input'])} · tap {taps} · spec {row['spec_id']}", style="dim"))


def _findings(row: Mapping[str, Any]) -> RenderableType:
    open_ones = [f for f in row["findings"] if not f["waived"]]
    waived = len(row["findings"]) - len(open_ones)
    if not open_ones:
        text = Text("✓ no design rule is broken", style="green")
        if waived:
            text.append(f" ({waived} waived)", style="dim")
        return text
    table = Table.grid(padding=(0, 1))
    folded = _folded(open_ones)
    loud = [(f, places) for f, places in folded if f["severity"] != "note"]
    quiet = [(f, places) for f, places in folded if f["severity"] == "note"]
    room = max(0, 4 - len(loud))
    for f, places in [*loud, *quiet[:room]]:
        mark, style = MARKS[f["severity"]]
        message = f"{_places(places, 3)}: {f['message']}"
        table.add_row(Text(mark, style=style), Text(f["rule"], style=style), Text(message))
    hidden = sum(len(places) for _, places in quiet[room:])
    rest = [f"{hidden} more note{'s' * (hidden > 1)}"] if hidden else []
    rest += [f"{waived} waived"] if waived else []
    if rest:
        table.add_row("", "", Text(f"{', '.join(rest)}: bblab check {row['name']}", style="dim"))
    return table


Folded = list[tuple[Mapping[str, Any], list[str]]]


def _folded(findings: list[Mapping[str, Any]]) -> Folded:
    """Findings that say the same of several places, as one with its places; in the order of the first of each."""
    found: dict[tuple[Any, ...], tuple[Mapping[str, Any], list[str]]] = {}
    for f in findings:
        key = tuple(str(value) for name, value in sorted(f.items()) if name != "where")
        found.setdefault(key, (f, []))[1].append(f["where"])
    return list(found.values())


def _places(places: list[str], most: int) -> str:
    if len(places) <= most + 1:
        return ", ".join(places)
    return f"{', '.join(places[:most])} and {len(places) - most} more"


def finding_lines(findings: list[Mapping[str, Any]]) -> Table:
    """Every finding with its source, for `bblab check`. What is said of several places is said once."""
    table = Table.grid(padding=(0, 1))
    for f, places in _folded(findings):
        mark, style = MARKS[f["severity"]]
        said = f"{_places(places, 40)}: {f['message']}"
        message = Text(said)
        if f["waived"]:
            mark, style = "~", "dim"
            message = Text(f"{said} — waived: {f['waived_because']}", style="dim")
        message.append(f"  [{f['source']}]", style="dim")
        table.add_row(Text(mark, style=style), Text(f["rule"], style=style), message)
    return table


def _forms(row: Mapping[str, Any]) -> RenderableType:
    train, deploy = row["forms"]["train"], row["forms"]["deploy"]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(f"at {shape(row['input'])}, batch 1")
    for title in ("train", "deploy", "deploy/train"):
        table.add_column(title, justify="right")
    has_head = train["params"] != train["params_backbone"]
    for key, name in (("params", "parameters"), ("macs", "MACs")):
        suffix = " (with head)" if has_head else ""
        table.add_row(f"{name}{suffix}", si(train[key]), si(deploy[key]), _ratio(deploy[key], train[key]))
        if has_head:
            b = f"{key}_backbone"
            table.add_row(f"{name}, backbone", si(train[b]), si(deploy[b]), _ratio(deploy[b], train[b]))
    for key, name, show in (
        ("activations", "conv/linear elements written", si),
        ("elementwise_ops", "elementwise elements written", si),
        ("num_ops", "operations", si),
        ("weight_bytes", "weights", megabytes),
        ("memory_traffic_bytes", "memory traffic", megabytes),
        ("peak_activation_bytes", "peak activations", megabytes),
    ):
        table.add_row(name, show(train[key]), show(deploy[key]), _ratio(deploy[key], train[key]))
    difference = row["deploy_max_rel_diff"]
    if difference is None:
        said = Text("the forms' outputs were not compared", style="dim")
    else:
        exact = row["deploy_max_rel_diff_float64"]
        style = "green" if difference < 1e-5 else "yellow" if exact is not None and exact < 1e-6 else "bold red"
        more = "" if exact is None else f", by {exact:.1e} in float64" + (": rounding" if exact < 1e-6 else "")
        said = Text(f"the forms' outputs differ by {difference:.1e} of the largest value (measured){more}", style=style)
    parts: list[RenderableType] = [table, said]
    by_reason: dict[str, list[str]] = {}
    for left in row["unfused"]:
        by_reason.setdefault(left["why"], []).append(left["where"])
    for why, where in by_reason.items():
        parts.append(Text(f"not fused: {_places(where, 3)}: {why}", style="yellow"))
    uncounted = sorted({*train["uncounted"], *deploy["uncounted"]})
    if uncounted:
        parts.append(Text("not counted: " + ", ".join(uncounted), style="yellow"))
    if second := _second(train["second_count"]):
        parts.append(second)
    return Group(*parts)


def _second(blocks: list[Mapping[str, Any]]) -> Text | None:
    """What torch's own counter says of the lab's blocks, in the train form."""
    if not blocks:
        return None
    ours, theirs, omitted, uncounted = (
        sum(b[key] for b in blocks) for key in ("macs", "torch_macs", "omitted_by_torch", "uncounted_here")
    )
    of = f"{len(blocks)} block{'s' * (len(blocks) > 1)} of the lab (train)"
    if any(b["differs_in"] for b in blocks):
        return Text(f"torch's own counter disagrees: {of} {ours:,} MACs here, {theirs:,} there", style="yellow")
    more = [f"{omitted:,} in ops that it does not know"] if omitted else []
    more += [f"{uncounted:,} of its own in ops not counted here"] if uncounted else []
    rest = f"; it counts {theirs:,}: {', '.join(more)}" if more else ""
    return Text(f"torch's own counter agrees: {ours:,} MACs in {of}{rest}", style="dim")


def _ratio(a: float, b: float) -> str:
    return "–" if not b else ("=" if a == b else digits(a / b))


def _stages(row: Mapping[str, Any]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage (deploy)")
    for title in ("map", "stride", "RF px", "parameters", "MACs", ""):
        table.add_column(title, justify="left" if not title else "right")
    total = max(1, sum(m["forms"]["deploy"]["macs"] for m in row["feature_maps"]))
    for m in row["feature_maps"]:
        own = m["forms"]["deploy"]
        share = own["macs"] / total
        rf = "–" if m["receptive_field"] is None else str(m["receptive_field"])
        rf += "+" if m["is_receptive_field_global"] else ""
        name = Text(m["stage"], style="bold" if m["is_tap"] else "")
        name.append(" ◂ tap" if m["is_tap"] else "", style="dim")
        bar = "█" * round(20 * share) or "▏"
        table.add_row(
            name, shape((m["channels"], m["height"], m["width"])), f"{m['stride'] or '–'}", rf,
            si(own["params"]), si(own["macs"]), Text(f"{bar} {100 * share:.0f} %", style="cyan"),
        )  # fmt: skip
    notes = []
    if row["receptive_field_unknown"]:
        notes.append(f"the receptive field is unknown from {row['receptive_field_unknown']} on")
    if row["is_receptive_field_global"]:
        notes.append("+ squeeze-excitation or attention also sees the whole map")
    return Group(table, *[Text(n, style="dim") for n in notes])


def _tracker(row: Mapping[str, Any], why_not: str) -> RenderableType:
    t = row["tracker"]
    if t is None:
        return Text(f"tracker: not at 127/255 px ({why_not})", style="dim")
    z, x = t["template"], t["search"]
    lines = Table.grid(padding=(0, 2))
    assumed = " (assumed: the spec names no sizes)" if t["assumed"] else ""
    maps = f"template {z['size']} → {shape(z['map'])}, search {x['size']} → {shape(x['map'])}{assumed}"
    lines.add_row(Text("tracker", style="dim"), maps)
    score = f"{shape(t['xcorr_map'])} plain or depthwise" if t["xcorr_map"] else "template map larger than search map"
    pixel = t["xcorr"]["pixelwise"]
    lines.add_row("", f"correlation {score}; pixel-wise {shape((pixel['channels'], *pixel['map']))}")
    rf = t["rf_over_template"]
    said = "unknown" if rf is None else f"{digits(rf)} of the template"
    if row["is_receptive_field_global"]:
        said += " along convolutions"
    reach = x["padded_units"]
    h = x["map"][1]
    pad = "no unit" if not t["is_padded"] else ("every unit" if reach >= h / 2 else f"{reach} units from each border")
    if t["rf_over_template"] is None:
        pad = "an unknown part"
    off = "unknown" if t["offset"] is None else f"{t['offset']:+g} px"
    lines.add_row("", f"receptive field {said}; padding reaches {pad}; search map's centre {off} off the image's")
    lines.add_row("", f"MACs, backbone, deploy: template {si(z['macs_backbone'])}, search {si(x['macs_backbone'])}")
    fit = t["trainer"]
    if fit:
        keys = ", ".join(f"{k} {v}" for k, v in fit["keys"].items())
        mark = Text("✓ fits ", style="green") if fit["fits"] else Text("✗ does not fit ", style="bold red")
        lines.add_row(Text(fit["name"], style="dim"), mark.append(keys, style="default"))
        for line in [*fit["problems"], *fit["notes"]]:
            lines.add_row("", Text(line, style="yellow"))
    return lines


def _latency(rows: list[Mapping[str, Any]]) -> RenderableType:
    from bblab.latency.words import busy_words, count_of, interval_of
    from bblab.reports.kit import tables

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    first = rows[0]
    table.add_column("latency")
    for title in ("warm CPU p10", f"× {first['reference']}, 95 %", "cold CPU p10", "warm wall p50", "p90", ""):
        table.add_column(title, justify="right" if title else "left")
    for r in rows:
        doubt = "" if r["steady"] else "not steady: " + "; ".join(r["doubts"])
        if r["form"] == "train":
            doubt = "unfused; " + doubt if doubt else "unfused: not what the device runs"
        if r.get("form_doubt"):
            doubt = f"{r['form_doubt']}; {doubt}".rstrip("; ")
        table.add_row(
            r["form"], milliseconds(r["cpu_p10_s"]), tables.span(r["ratio"], *interval_of(r), 3),
            milliseconds(r["cold"]["cpu_p10_s"]),
            milliseconds(r["wall_p50_s"]) if r["wall_p50_s"] else "not shown",
            milliseconds(r["wall_p90_s"]) if r["wall_p90_s"] else "not shown", Text(doubt, style="yellow"),
        )  # fmt: skip
    how = (
        f"{first['device']}, {first['runtime']} {first['runtime_version']}, {first['precision']}, "
        f"{first['threads']} thread{'s' * (first['threads'] > 1)}, batch 1, {shape(first['input'])}; "
        f"{count_of(first['processes'], 'process', 'processes')} × {count_of(first['rounds'], 'round')} beside "
        f"{first['reference']}"
    )
    parts: list[RenderableType] = [table, Text(how, style="dim")]
    if words := busy_words(max(r["waiting"] for r in rows)):  # the reason for each wall time that is not shown
        parts.append(Text(words, style="yellow"))
    if first["drift"] not in (None, "none"):
        parts.append(
            Text(
                "the clock drifted while measuring: the ratios are of paired rounds, ms is not comparable",
                style="yellow",
            )
        )
    return Group(*parts)
