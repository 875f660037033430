"""bblab devices: where latency can be measured, what each can run, and names for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bblab.cli import common

if TYPE_CHECKING:
    from bblab.lab.devices import Seen

# What no test here can show: see also README.md.
UNVERIFIED = (
    "Nothing of this has been verified on a real phone yet: it was tried under emulation, through Debian's adb. "
    "Unverified are starting programs from /data/local/tmp under SELinux, a phone's own float16, i8mm, bf16 and SVE "
    "kernels, telling big from little cores, holding to them under Android's cpusets, the thermal services of makers, "
    "and the speed beside a build with Android's NDK."
)


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="List the devices that latency can be measured on and what each can run, or name one.",
        epilog="Example: bblab devices add pixel adb:28251FDH200 --cores big",
        rich_markup_mode=None,
    )
    group.callback(invoke_without_command=True)(devices)
    group.command(epilog="Example: bblab devices add pi ssh:pi@raspberry --python /home/pi/venv/bin/python")(add)
    group.command(epilog="Example: bblab devices remove pi")(remove)
    group.command(name="time", epilog="Example: bblab devices time pixel --tool benchncnn nanotrack")(time_)
    app.add_typer(group, name="devices")


def devices(ctx: typer.Context, json: common.JsonOption = None, lab: common.LabOption = None) -> None:
    """List the devices that latency can be measured on and what each can run, or name one (add, remove).

    The host, those that lab.toml names, and the phones that adb sees. Each is asked, all at once.
    """
    if ctx.invoked_subcommand is not None:
        return
    opened = common.open_lab(lab)
    with common.progress_bar(quiet=json == "-") as tell:
        if tell is not None:
            tell(0, 0, None, "asking the devices")
        found = opened.devices()
    if json:
        common.write_json(json, {"devices": [seen.to_json() for seen in found], "unverified": UNVERIFIED})
    if json == "-":
        return
    out = common.console()
    for seen in found:
        for place, line in enumerate(describe(seen)):
            style = "bold" if place == 0 else "yellow" if line.startswith("! ") else ""
            out.print(line if place == 0 else f"  {line.removeprefix('! ')}", style=style, markup=False, soft_wrap=True)
    out.print()
    out.print(UNVERIFIED, style="dim", markup=False)
    written = f"written {json} · " if json else ""
    out.print(f"{written}next: {_next(found)}", style="dim", markup=False, soft_wrap=True)


def describe(seen: Seen) -> list[str]:
    """A device in lines; those that begin with "! " want something done."""
    name = seen.name if seen.name == seen.address else f"{seen.name} ({seen.address})"
    if seen.state != "ready":
        return [f"{name} · not ready", f"! {seen.state}", *([f"! {seen.remedy}"] if seen.remedy else [])]
    lines = [f"{name} · ready", seen.about, f"cores: {seen.cores}" if seen.cores else ""]
    if seen.runtimes:
        lines.append(f"runs {', '.join(seen.runtimes)}")
    else:
        lines.append(f"! runs nothing yet: {seen.remedy}")
    return [line for line in lines if line] + [f"! {note}" for note in seen.notes]


def _next(found: list[Seen]) -> str:
    ready = [seen for seen in found[1:] if seen.state == "ready"]
    loose = [seen for seen in ready if not seen.is_saved]
    if empty := [seen for seen in ready if not seen.runtimes and seen.remedy.startswith("bblab ")]:
        return empty[0].remedy
    if loose:
        return f"bblab devices add NAME {loose[0].address}"
    if ready and ready[0].runtimes:
        return f"bblab bench mobileone_s0@s16 --device {ready[0].name} --runtime {ready[0].runtimes[0]}"
    return "bblab devices add NAME ssh:USER@HOST, or connect a phone with USB debugging"


def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What --device will take.")],
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="ssh:USER@HOST[:PORT] or adb:SERIAL.")],
    cores: Annotated[
        str | None, typer.Option("--cores", metavar="big|little|all|MASK", help="Cores to measure on; big.")
    ] = None,
    folder: Annotated[
        str | None, typer.Option("--folder", metavar="DIR", help="On the device; /tmp, /data/local/tmp.")
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", metavar="PATH", help="ssh: the board's Python; python3.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="FILE", help="ssh: the private key, here.")] = None,
    known_hosts: Annotated[
        str | None, typer.Option("--known-hosts", metavar="FILE", help="ssh: instead of ~/.ssh/known_hosts.")
    ] = None,
    cooldown: Annotated[
        float | None, typer.Option("--cooldown", metavar="SECONDS", help="adb: longest wait for a warm phone; 300.")
    ] = None,
    benchncnn: Annotated[
        str | None, typer.Option("--benchncnn", metavar="FILE", help="Yours, built for it; see bblab devices time.")
    ] = None,
    benchmark_model: Annotated[
        str | None, typer.Option("--benchmark-model", metavar="FILE", help="LiteRT's, built for it.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of a device of that name.")] = False,
    lab: common.LabOption = None,
) -> None:
    """Keep a device in the lab's lab.toml under a name. Nothing is connected yet."""
    opened = common.open_lab(lab)
    given: Mapping[str, Any] = {
        "cores": cores,
        "folder": folder,
        "python": python,
        "key": key,
        "known_hosts": known_hosts,
        "cooldown_s": cooldown,
        "benchncnn": benchncnn,
        "benchmark_model": benchmark_model,
    }
    entry = opened.add_device(name, address, {k: v for k, v in given.items() if v is not None}, replace=replace)
    _done(f"{entry.name} is {entry.address} now, in", opened, "bblab devices")


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As bblab devices lists it.")],
    lab: common.LabOption = None,
) -> None:
    """Take a device out of the lab's lab.toml; what was measured on it stays."""
    opened = common.open_lab(lab)
    entry = opened.remove_device(name)
    _done(f"{entry.name} ({entry.address}) is out of", opened, "bblab devices")


def time_(
    device: Annotated[str, typer.Argument(metavar="NAME", help="A device that names the tool.")],
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Specs for benchncnn, .tflite files for benchmark_model.")
    ],
    tool: Annotated[str, typer.Option("--tool", metavar="TOOL", help="benchncnn or benchmark_model.")] = "benchncnn",
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, max=64)] = 1,
    calls: Annotated[int, typer.Option("--calls", metavar="N", min=1, max=10000, help="A turn's calls a model.")] = 10,
    turns: Annotated[int, typer.Option("--turns", metavar="N", min=1, max=1000, help="Each in shuffled order.")] = 3,
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="search, template or pixels.")] = "search",
    json: common.JsonOption = None,
    lab: common.LabOption = None,
) -> None:
    """Time models by a benchmark program of your own on a device. It follows its own protocol: prefer bblab bench."""
    from bblab.cli.bench import pixels

    opened = common.open_lab(lab)
    with common.progress_bar(quiet=json == "-") as tell:
        rows = opened.time_with_tool(
            device, tool, models, threads=threads, calls=calls, turns=turns, size=pixels(size), on_progress=tell
        )
    if json:
        common.write_json(json, {"tool_latency": rows})
    if json == "-":
        return
    from bblab.cli import tables

    drawn = tables.plain(
        [("model", "left"), ("wall avg", "right"), ("wall min", "right"), ("turns", "right"), ("apart", "right")]
    )
    for row in rows:
        apart = f"{row['turns_max_over_min']:.2f} ×"
        average, least = (common.milliseconds(row[k]) for k in ("wall_avg_s", "wall_min_s"))
        drawn.add_row(row["model"], average, least, f"{row['turns']} × {row['calls'] // row['turns']}", apart)
    out = common.console()
    out.print(drawn)
    plural = "s" * (threads > 1)
    out.print(f"{rows[0]['device']}, {threads} thread{plural}; {rows[0]['caveat']}", style="yellow", markup=False)
    ids = [row["run_id"] for row in rows]
    text = f"stored as run{'s' * (len(ids) > 1)} {', '.join(map(str, ids))} in {common.short(opened.store_path)}"
    specs = [m for m in models if not m.endswith(".tflite")] or ["SPEC"]
    out.print(
        f"{text} · next: bblab bench {' '.join(specs)} --device {device}", style="dim", markup=False, soft_wrap=True
    )


def _done(text: str, opened: Any, after: str) -> None:
    file = common.short(opened.folder / "lab.toml")
    common.console().print(f"{text} {file} · next: {after}", markup=False, soft_wrap=True)
