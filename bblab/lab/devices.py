"""The devices of a lab: those that lab.toml keeps by name, and those that are simply there."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, near
from bblab.lab import settings

if TYPE_CHECKING:
    from bblab.lab import Lab, Progress
    from bblab.latency.devices import Device

GROUP = "devices"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Saved:
    """A device of lab.toml: `[devices.NAME]` with its address and the options of its kind."""

    name: str
    address: str
    options: Mapping[str, Any] = field(default_factory=dict)


def saved(lab: Lab) -> dict[str, Saved]:
    """Raises BblabError where lab.toml says something else than devices."""
    path = lab.folder / settings.FILE
    group = settings.read(path).get(GROUP, {})
    if not isinstance(group, dict):
        raise BblabError(f"{path}: {GROUP} is {group!r}", hint=f"it should hold tables: [{GROUP}.NAME]")
    found = {}
    for name, table in group.items():
        address = table.get("address") if isinstance(table, dict) else None
        if not isinstance(address, str):
            raise BblabError(f"{path}: the device {name} has no address", hint='give it one: address = "ssh:pi@board"')
        found[name] = Saved(name, address, {k: v for k, v in table.items() if k != "address"})
    return found


def find(lab: Lab, name: str) -> Device:
    """A device by the lab's name for it or by its address, not yet opened. Raises BblabError with the near names."""
    from bblab.latency import devices

    known = saved(lab)
    if name in known:
        return _made(known[name])
    return devices.find(name, known=list(known))


def usual_runtime(lab: Lab, name: str) -> str:
    """What is measured with where no runtime is named: ONNX Runtime; ncnn on a phone, which has no Python."""
    known = saved(lab)
    address = known[name].address if name in known else name
    return "ncnn" if address.partition(":")[0] == "adb" else "ort"


def _made(entry: Saved) -> Device:
    from bblab.latency import devices

    try:
        return devices.find(entry.address, {**entry.options, "label": entry.name})
    except BblabError as error:
        raise BblabError(
            f"device {entry.name} of {settings.FILE}: {error.message}", hint=error.hint, exit_code=error.exit_code
        ) from None


def add(lab: Lab, name: str, address: str, options: Mapping[str, Any], *, replace: bool = False) -> Saved:
    """Keep a device in lab.toml under a name. Nothing is connected. Raises BblabError for a wrong or taken name."""
    from bblab.latency import devices

    if not NAME.fullmatch(name) or name in devices.kinds():
        kinds = ", ".join(devices.kinds())
        raise BblabError(
            f"a device cannot be called {name!r}", hint=f"letters, digits, - and _; {kinds} are kinds of device"
        )
    if ":" not in address:
        raise BblabError(f"{address!r} is no address", hint="ssh:USER@HOST[:PORT], or adb:SERIAL as `adb devices` says")
    entry = Saved(name, address, dict(options))
    made = _made(entry)
    del made
    path = lab.folder / settings.FILE
    text = settings._text(path) if path.exists() else ""
    known = saved(lab)
    if name in known:
        if not replace:
            raise BblabError(
                f"there is a device {name!r} already: {known[name].address}",
                hint=f"--replace it, or: bblab devices remove {name}",
            )
        text = settings.without_table(text, GROUP, name, path)
    settings.write(path, settings.with_table(text, GROUP, name, {"address": address, **options}, path))
    return entry


def remove(lab: Lab, name: str) -> Saved:
    """Take a device out of lab.toml. Raises BblabError, naming the near ones, where it is not there."""
    known = saved(lab)
    if name not in known:
        raise BblabError(f"no device {name!r} in {lab.folder / settings.FILE}", hint=near(name, known))
    path = lab.folder / settings.FILE
    settings.write(path, settings.without_table(settings._text(path), GROUP, name, path))
    return known[name]


# Programs of others -------------------------------------------------------------------------------------------------


def time_with_tool(
    lab: Lab,
    name: str,
    tool: str,
    models: Sequence[str],
    *,
    threads: int = 1,
    calls: int = 10,
    turns: int = 3,
    size: str | int = "search",
    on_progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Time models by a benchmark program of the user's that lab.toml names, in turns of shuffled order; stored.

    `models` are specs for benchncnn (deploy form), .tflite files for benchmark_model. Rows say that they do not follow
    bblab's protocol. Raises BblabError for wrong names, RunError where the program or the device fails.
    """
    import random

    from bblab.lab import code_version
    from bblab.latency.devices import tools
    from bblab.latency.devices.remote import Remote
    from bblab.store import NewRun

    kind = tools.find(tool)
    device = find(lab, name)
    if not isinstance(device, Remote):
        raise BblabError(f"{name} is no device behind ssh or adb", hint="a tool runs on a device of bblab devices")
    program = Path(device.tools.get(tool) or "").expanduser()
    option = "--" + tool.replace("_", "-")
    if not device.tools.get(tool) or not program.is_file():
        has = f"its {tool} {program} is not there" if device.tools.get(tool) else f"{name} has no {tool}"
        raise BblabError(has, hint=f"name yours: bblab devices add NAME ADDRESS {option} FILE --replace", exit_code=1)
    with tempfile.TemporaryDirectory(prefix="bblab-tool-") as folder:
        files = [_tool_model(lab, model, kind.suffix, size, Path(folder), on_progress) for model in models]
        found: list[list[tools.Turn]] = [[] for _ in files]
        with device:
            for turn in range(turns):
                order = list(range(len(files)))
                random.Random(turn).shuffle(order)
                for place in order:
                    if on_progress is not None:
                        done = sum(map(len, found))
                        on_progress(done, turns * len(files), None, f"{tool}, turn {turn + 1}: {files[place][0]}")
                    _, path, shape, _ = files[place]
                    found[place].append(tools.run(device, tool, program, path, shape, threads=threads, calls=calls))
            state = device.conditions()
    rows, runs = [], []
    for (label, _, shape, spec_id), given in zip(files, found, strict=True):
        times = tools.ToolTimes(label, tool, device.name, threads, tuple(given))
        row = {**times.to_json(), "input": list(shape) if shape else None, "caveat": tools.CAVEAT.format(tool=tool)}
        inputs = {k: row[k] for k in ("model", "tool", "device", "threads", "input")}
        result = {k: v for k, v in row.items() if k not in inputs} | {"conditions": {"after": state}}
        samples = {"turn_avg_wall_s": [t.avg_s for t in given], "turn_min_wall_s": [t.min_s for t in given]}
        runs.append(NewRun("tool_latency", spec_id, label, code_version(), inputs, result, samples))
        rows.append(row)
    with lab.notebook() as store:
        ids = store.add_many(runs)
    return [{**row, "run_id": run_id} for row, run_id in zip(rows, ids, strict=True)]


def _tool_model(
    lab: Lab, model: str, suffix: str, size: str | int, folder: Path, on_progress: Progress | None
) -> tuple[str, Path, tuple[int, int, int] | None, str]:
    """Label, file, input shape and spec_id of what a tool is to time."""
    if suffix == ".tflite":
        path = Path(model).expanduser()
        if path.suffix != suffix or not path.is_file():
            raise BblabError(f"{model} is no {suffix} file", hint="benchmark_model times files: name one that is there")
        return path.name, path, None, ""
    import zipfile

    from bblab.latency import models as converted
    from bblab.latency import runtimes

    spec = lab.spec(model)
    shape = lab._bench_input(spec, size)
    engine = runtimes.find("ncnn")
    candidate = lab.candidate(spec, "deploy", (shape[1], shape[2]))
    if on_progress is not None and not converted.is_remembered(candidate, engine):
        on_progress(0, 0, None, f"converting {spec.name} for ncnn")
    with zipfile.ZipFile(converted.converted(candidate, engine).path) as packed:
        inside = next(n for n in packed.namelist() if n.endswith(suffix))
        path = folder / f"{len(list(folder.iterdir()))}{suffix}"
        path.write_bytes(packed.read(inside))
    return spec.name, path, shape, spec.spec_id


# What is there ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """One device of the list: whether it answers, what it is, what it can run."""

    name: str  # what --device takes
    address: str
    state: str  # "ready", or why not
    about: str = ""
    cores: str = ""
    runtimes: tuple[str, ...] = ()
    remedy: str = ""
    is_saved: bool = False
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "address": self.address,
            "state": self.state,
            "about": self.about,
            "cores": self.cores,
            "runtimes": list(self.runtimes),
            "remedy": self.remedy,
            "is_saved": self.is_saved,
            "notes": list(self.notes),
        }


def survey(lab: Lab) -> list[Seen]:
    """The host, the lab's devices and the phones that adb sees; each is asked, all at once, none for long."""
    entries = list(saved(lab).values())
    connected, trouble = _connected_phones()
    taken = {entry.address for entry in entries}
    loose = [Saved(address, address) for address in connected if address not in taken]
    with ThreadPoolExecutor(max_workers=8) as pool:
        seen = list(pool.map(_look, [*entries, *loose], [True] * len(entries) + [False] * len(loose)))
    found = [_host(), *seen]
    return found if trouble is None else [*found, trouble]


def _connected_phones() -> tuple[list[str], Seen | None]:
    """Addresses that adb lists, also of phones that are not ready; nothing is said where adb is not installed."""
    try:
        import adbutils  # noqa: F401
    except ImportError:
        return [], None
    if shutil.which("adb") is None:
        return [], None
    from bblab.latency.devices.adb import phones

    try:
        return [f"adb:{phone.serial}" for phone in phones()], None
    except BblabError as error:
        return [], Seen("adb", "adb", error.message, remedy=error.hint)


def _look(entry: Saved, is_saved: bool) -> Seen:
    from bblab.latency.devices.remote import Remote

    try:
        device = _made(entry) if is_saved else _unsaved(entry)
        if not isinstance(device, Remote):
            return Seen(entry.name, entry.address, "ready", is_saved=is_saved)
        with device:
            about = device.about()
            return Seen(
                entry.name, entry.address, "ready", about.words, about.cores, about.runtimes, about.remedy, is_saved,
                tuple(device.notes),
            )  # fmt: skip
    except BblabError as error:
        return Seen(entry.name, entry.address, error.message, remedy=error.hint, is_saved=is_saved)


def _unsaved(entry: Saved) -> Device:
    from bblab.latency import devices

    return devices.find(entry.address)


def _host() -> Seen:
    from bblab.latency import conditions

    state = conditions.read()
    cores = f"{state.get('cores', '?')}"
    about = ", ".join(str(state[k]) for k in ("cpu_model", "os") if k in state)
    return Seen("host", "host", "ready", about, cores, tuple(_host_runtimes()))


def _host_runtimes() -> Sequence[str]:
    """Those that are installed. A GPU's are not asked where no driver is: the answer would load torch."""
    from bblab.latency import onboard, runtimes

    has_gpu = onboard.may_have_gpu()
    found = []
    for name in runtimes.names():
        engine = runtimes.find(name)
        if runtimes.processor(engine) == "cuda" and not has_gpu:
            continue
        try:
            engine.version()
            runtimes.program(name)
        except BblabError:
            continue
        found.append(name)
    return found
