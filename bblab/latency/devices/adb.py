"""An Android phone behind adb: bblab's static runner is pushed to it and held to its big or little cores.

No root and no app: /data/local/tmp, the shell user, `taskset`, `getprop`, `dumpsys`. Talks to the adb server (Debian's
`adb` or another) through adbutils; ANDROID_ADB_SERVER_PORT names another server, as for adb itself.
Protocols: SERVICES.TXT, SYNC.TXT and shell_protocol.h of Android's packages/modules/adb.
"""

from __future__ import annotations

import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, RunError, near
from bblab.installing import how_to_install
from bblab.latency.devices import DEVICES, remote, state, talk
from bblab.latency.devices.cooling import Cooling, too_warm
from bblab.latency.devices.cores import check, to_json
from bblab.latency.devices.remote import About, Engine, Lost, Remote, Said

if TYPE_CHECKING:
    import adbutils

CONNECT_S = 15.0
CHUNK = 64 * 1024  # the most that the sync protocol allows
LOW_BATTERY_PERCENT = 15
EXIT_CODE = "#bblab-exit "
SECTIONS = {
    "getprop": "getprop",
    "thermal": "dumpsys thermalservice",
    "battery": "dumpsys battery",
    "saver": "settings get global low_power",
}


@DEVICES("adb")
def adb(
    address: str = "",
    *,
    cores: str = "big",
    folder: str = "/data/local/tmp",
    cooldown_s: float = 300.0,
    benchncnn: str = "",
    benchmark_model: str = "",
    label: str = "",
) -> Remote:
    """`address` is a serial of `adb devices`, or HOST:PORT of a phone on the network; empty: the only phone there is.

    `cores`: big, little, all, or a mask such as f0. `cooldown_s` bounds the waiting for a warm phone; 0 never waits.
    `benchncnn` and `benchmark_model` are programs of the user's here, built for the phone.
    """
    _import()
    if re.search(r"[\s'\"]", address):
        raise BblabError(f"no device 'adb:{address}'", hint="a serial as `adb devices` lists it")
    try:
        limit_s = float(cooldown_s)
    except (TypeError, ValueError):
        limit_s = -1.0
    if not 0 <= limit_s <= 24 * 3600:
        raise BblabError(f"cooldown_s is {cooldown_s!r}", hint="seconds, 0 for never")
    name = label or f"adb:{address}"
    if check(cores) != "big":
        name += f", {cores} cores"
    link = AdbLink(address)
    return Remote(
        name=name,
        link=link,
        base=folder.rstrip("/"),
        tools={"benchncnn": benchncnn, "benchmark_model": benchmark_model},
        lock_name=f"adb:{address}",
        cores=cores,
        is_phone=True,
        engine_for=_engine,
        read_state=_state,
        describe=_describe,
        cool=Cooling(f"adb:{address}, {cores} cores", limit_s, thermal_status),
    )


def _engine(phone: Remote, runtime: str) -> Engine:
    return remote.static_runner(phone, runtime)


def thermal_status(phone: Remote) -> int | None:
    """0 to 6; None where the phone tells none (before Android 10, or its service is silent)."""
    found = state.thermal(phone.link.sh(SECTIONS["thermal"]).out).get("status")
    return found if isinstance(found, int) else None


def _state(phone: Remote) -> dict[str, Any]:
    """All that can be read without root, in one command."""
    asked = "; ".join(f"echo '#bblab-{name}'; {command} 2>/dev/null" for name, command in SECTIONS.items())
    told, *parts = re.split(r"^#bblab-(\w+)\r?$", phone.link.sh(f"{state.COMMAND}; {asked}").out, flags=re.M)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    found = state.record(told)
    extras: dict[str, Any] = {
        "clusters": to_json(state.topology(state.parse_files(told))),
        "android": state.properties(sections.get("getprop", "")),
        "thermal": state.thermal(sections.get("thermal", "")),
        "battery": state.battery(sections.get("battery", "")),
    }
    saver = sections.get("saver", "").strip()
    if saver in ("0", "1"):
        extras["battery_saver"] = saver == "1"
    soc = extras["android"].get("soc_model") or extras["android"].get("platform")
    if soc:
        found["cpu_model"] = soc
    if "thermal_c" not in found and extras["thermal"].get("temperatures_c"):  # SELinux hides the files of many phones
        found["thermal_c"] = extras["thermal"]["temperatures_c"]
    for name, value in extras.items():
        if value != {} and value != []:
            found[name] = value
    missing = [name for name in (*extras, "battery_saver") if name not in found]
    found["absent"] = sorted({n for n in found["absent"] if n not in found} | set(missing))
    for warning in warnings(found):
        phone.remark(warning)
    return found


def _describe(phone: Remote) -> About:
    machine = phone.conditions()
    named = machine.get("android", {})
    parts = [" ".join(named[k] for k in ("manufacturer", "model") if k in named)]
    parts += [f"Android {named['android']}"] if "android" in named else []
    parts += [machine["cpu_model"]] if "cpu_model" in machine else []
    status = machine.get("thermal", {}).get("status")
    if status is not None:
        parts.append(too_warm(status, None, None) or "thermal status 0 (cool)")
    charge = machine.get("battery", {})
    if "level_percent" in charge:
        heat = f", {charge['temperature_c']:.0f} °C" if "temperature_c" in charge else ""
        parts.append(f"battery {charge['level_percent']} %{heat}")
    able, remedy = remote.programs(phone.arch)
    return About(", ".join(p for p in parts if p), remote.cores_words(phone), tuple(able), remedy)


def warnings(record: dict[str, Any]) -> list[str]:
    """What in a phone's state makes its numbers another phone's."""
    found = []
    if record.get("battery_saver"):
        found.append("battery saver is on: it holds the clocks down")
    level = record.get("battery", {}).get("level_percent")
    if level is not None and level < LOW_BATTERY_PERCENT:
        found.append(f"the battery is at {level} %: some phones hold the clocks down below {LOW_BATTERY_PERCENT} %")
    clocks = record.get("frequencies_hz", {})
    allowed, top = clocks.get("max_allowed"), clocks.get("max")
    if allowed and top and len(allowed) == len(top):
        held = [cpu for cpu, (a, t) in enumerate(zip(allowed, top, strict=True)) if a < t]
        if held:
            found.append(f"the clock of core(s) {', '.join(map(str, held))} was held below its maximum")
    return found


# Which phones there are -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Phone:
    """A line of `adb devices`."""

    serial: str
    state: str  # device, offline, unauthorized, no permissions ...
    words: str = ""  # model, as the server knows it


PASSING, SETTLING_S = ("authorizing", "connecting"), 3.0  # states that soon become another
REMEDIES = {
    "unauthorized": "unlock the phone and allow USB debugging for this computer; if it does not ask, reconnect it",
    "authorizing": "unlock the phone and allow USB debugging for this computer",
    "offline": "reconnect its cable, or: adb reconnect offline",
    "no permissions": "this user may not open the phone's USB: install the udev rules (package "
    "android-sdk-platform-tools-common) and reconnect it",
    "recovery": "start Android on it: adb reboot",
    "sideload": "start Android on it: adb reboot",
    "bootloader": "start Android on it: fastboot reboot",
}


def phones() -> list[Phone]:
    """What `adb devices` lists. Raises BblabError where adb itself is missing or does not start."""
    listed = _server_answer("host:devices-l")
    found = []
    for line in listed.splitlines():
        matched = re.match(r"(\S+)\s+(no permissions|\S+)(.*)", line)
        if matched:
            model = re.search(r"\bmodel:(\S+)", matched.group(3))
            found.append(Phone(matched.group(1), matched.group(2), model.group(1) if model else ""))
    return found


def _chosen(address: str) -> Phone:
    """The phone of that serial, connected and ours. Raises RunError, saying what to do, otherwise."""
    there = phones()
    if not address:
        usable = [p for p in there if p.state == "device"]
        if len(usable) == 1:
            return usable[0]
        if len(usable) > 1:
            listed = ", ".join(f"adb:{p.serial}" for p in usable)
            raise BblabError(f"{len(usable)} phones are connected", hint=f"say which one: {listed}")
        if len(there) == 1:
            raise _not_usable(there[0])
        raise RunError(
            "no phone is connected",
            hint="enable USB debugging in its developer options and connect it; `adb devices` must list it",
        )
    named = {p.serial: p for p in there}
    if _is_network(address) and named.get(address, Phone("", "offline")).state == "offline":
        if address in named:  # the server holds on to a connection that is dead
            _server_answer(f"host:disconnect:{address}")
        said = _server_answer(f"host:connect:{address}")
        named = {p.serial: p for p in phones()}
        if address not in named:
            raise RunError(
                f"the phone adb:{address} cannot be reached: {said.strip()}", hint="is it on, and in this net?"
            )
    if address not in named:
        hint = near(address, named) if named else "no phone is connected; `adb devices` must list it"
        raise RunError(f"no phone adb:{address}", hint=hint)
    phone = named[address]
    patience = time.monotonic() + SETTLING_S
    while phone.state in PASSING and time.monotonic() < patience:
        time.sleep(0.2)
        phone = next((p for p in phones() if p.serial == address), phone)
    if phone.state != "device":
        raise _not_usable(phone)
    return phone


def _not_usable(phone: Phone) -> RunError:
    hint = REMEDIES.get(phone.state, "`adb devices` must say `device` beside it")
    return RunError(f"the phone adb:{phone.serial} is {phone.state}", hint=hint)


def _is_network(address: str) -> bool:
    return re.fullmatch(r"[\w.\-\[\]:]+:\d{1,5}", address) is not None


def _server_answer(request: str) -> str:
    with _connected() as connection:
        try:
            connection.send_command(request)
            connection.check_okay()
            return str(connection.read_string_block())
        except (_errors(), OSError, ValueError) as error:
            raise RunError(f"the adb server refused {request!r}: {error}", hint="try: adb kill-server") from None


def _connected(timeout_s: float = CONNECT_S) -> adbutils.AdbConnection:
    """A connection to the adb server, started where there is none."""
    adbutils = _import()
    client = adbutils.AdbClient()
    with suppress(OSError), socket.create_connection((client.host, client.port), timeout=1.0):
        return client.make_connection(timeout=timeout_s)
    program = shutil.which("adb")
    if program is None:
        raise BblabError(
            "phones need adb, which is not installed",
            hint="apt-get install adb, or Android's platform-tools",
            exit_code=1,
        )
    try:
        # A session of its own: Ctrl-C ends us, not the server that others use too.
        subprocess.run(
            [program, "start-server"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=20,
            start_new_session=True,
        )
        return client.make_connection(timeout=timeout_s)
    except (subprocess.SubprocessError, OSError, _errors()) as error:
        raise RunError(f"the adb server does not start: {error}", hint=f"try: {program} start-server") from None


def _import() -> Any:
    try:
        import adbutils
    except ImportError:
        raise BblabError(
            "phones need adbutils, which is not installed",
            hint=how_to_install("adbutils"),
            exit_code=1,
        ) from None
    return adbutils


def _errors() -> type[Exception]:
    found: type[Exception] = _import().AdbError
    return found


# The connection -------------------------------------------------------------------------------------------------


class AdbLink:
    """A phone by its serial. Every command is a connection of its own to the adb server, as adb's own are."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._serial = ""
        self._has_v2 = True

    @property
    def serial(self) -> str:
        return self._serial

    def open(self) -> None:
        self._serial = _chosen(self._address).serial
        features = self._ask(f"host-serial:{self._serial}:features")
        self._has_v2 = "shell_v2" in features.split(",")

    def close(self) -> None:
        self._serial = ""

    def sh(self, command: str, timeout_s: float = remote.SHORT_S) -> Said:
        with _Shell(self, command, timeout_s) as shell:
            out, err = bytearray(), bytearray()
            for kind, data in shell.packets():
                (err if kind == _STDERR else out).extend(data)
        if shell.code is None:
            raise self._lost()
        return Said(shell.code, _text(bytes(out)), _text(bytes(err)))

    def put(self, data: bytes, path: str) -> None:
        """By the sync protocol, whose refusal says why."""
        connection = self._transport(60 + len(data) / 200_000)
        answer, why = b"", ""
        try:
            with connection:
                named = f"{path},{0o100600}".encode()
                with suppress(ConnectionError):  # refused half-way: the answer says why
                    self._say(connection, "sync:")
                    connection.conn.sendall(b"SEND" + struct.pack("<I", len(named)) + named)
                    for at in range(0, len(data), CHUNK):
                        chunk = data[at : at + CHUNK]
                        connection.conn.sendall(b"DATA" + struct.pack("<I", len(chunk)) + chunk)
                    connection.conn.sendall(b"DONE" + struct.pack("<I", int(time.time())))
                answer = connection.read(4)
                length = struct.unpack("<I", connection.read(4))[0] if len(answer) == 4 else 0
                if answer == b"FAIL":
                    why = _text(connection.read(min(length, 4096)))
        except (OSError, struct.error, _errors()) as error:
            raise self._lost(error) from None
        if answer == b"OKAY":
            return
        if not answer:
            raise self._lost()
        raise RunError(
            f"adb:{self._serial}: {path.rpartition('/')[2]} ({len(data)} bytes) could not be written: "
            f"{why.strip() or 'the phone refused it'}",
            hint="free some space on the phone, or name another folder with --folder",
        )

    def start(self, command: str) -> AdbProcess:
        return AdbProcess(self, command)

    # The server ---------------------------------------------------------------------------------------------

    def _transport(self, timeout_s: float) -> adbutils.AdbConnection:
        """A connection that the server has handed on to the phone."""
        if not self._serial:
            raise self._lost()
        connection = _connected(timeout_s)
        try:
            self._say(connection, f"host:transport:{self._serial}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _say(self, connection: adbutils.AdbConnection, request: str) -> None:
        try:
            connection.send_command(request)
            connection.check_okay()
        except (OSError, ValueError, _errors()) as error:
            raise self._lost(error) from None

    def _ask(self, request: str) -> str:
        with _connected() as connection:
            self._say(connection, request)
            try:
                return str(connection.read_string_block())
            except (OSError, ValueError, _errors()) as error:
                raise self._lost(error) from None

    def _lost(self, error: Exception | None = None) -> Lost:
        why = f": {error}" if error is not None and str(error).strip() else ""
        return Lost(
            f"the connection to adb:{self._serial or self._address} broke{why}",
            hint="reconnect it; what is left on the phone is cleared at the next connection",
        )


_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)


class _Shell:
    """One command on the phone: (stream, bytes) as they come, and the exit code, None where the connection broke.

    By the shell v2 protocol. A phone without it (before Android 7) mixes both streams and tells no exit code, so the
    command prints that itself.
    """

    def __init__(self, link: AdbLink, command: str, timeout_s: float | None) -> None:
        self._link, self._has_v2 = link, link._has_v2
        self._timeout_s = timeout_s
        self._connection = link._transport(timeout_s or remote.SHORT_S)
        self.code: int | None = None
        try:
            if self._has_v2:
                link._say(self._connection, f"shell,v2,raw:{command}")
                self._connection.conn.sendall(struct.pack("<BI", _CLOSE_STDIN, 0))
            else:
                wrapped = f"( {command}\n) </dev/null; c=$?; echo; echo '{EXIT_CODE}'$c"
                link._say(self._connection, f"exec:{wrapped}")
            self._connection.conn.settimeout(timeout_s)
        except OSError as error:
            self.close()
            raise link._lost(error) from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> _Shell:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError, _errors()):  # wakes a thread that waits for more
            self._connection.conn.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._connection.close()

    def packets(self) -> Any:  # an iterator of (stream, bytes)
        try:
            yield from self._v2() if self._has_v2 else self._plain()
        except TimeoutError:
            raise Lost(
                f"adb:{self._link.serial} did not answer within {self._timeout_s:g} s",
                hint="see whether it is still on",
            ) from None
        except (OSError, _errors()) as error:
            raise self._link._lost(error) from None

    def _v2(self) -> Any:
        while True:
            head = self._exactly(5)
            if head is None:
                return
            kind, length = struct.unpack("<BI", head)
            data = self._exactly(length)
            if data is None:
                return
            if kind == _EXIT:
                self.code = data[0] if data else 0
                return
            if kind in (_STDOUT, _STDERR):
                yield kind, data

    def _plain(self) -> Any:
        """Holds back the last bytes, which may be the exit code that the command prints at its very end."""
        kept = b""
        mark = f"\n{EXIT_CODE}".encode()
        while data := self._connection.conn.recv(CHUNK):
            kept += data
            if len(kept) > 4096:
                yield _STDOUT, kept[:-64]
                kept = kept[-64:]
            elif b"\n" in kept and mark not in kept:
                whole, _, rest = kept.rpartition(b"\n")
                # The newline before the mark is ours: it must not leave before we know.
                if whole:
                    yield _STDOUT, whole
                    kept = b"\n" + rest
        text, found, code = kept.rpartition(mark)
        if found and code.strip().isdigit():
            self.code = int(code)
            yield _STDOUT, text
        else:
            yield _STDOUT, kept

    def _exactly(self, count: int) -> bytes | None:
        found = b""
        while len(found) < count:
            data = self._connection.conn.recv(count - len(found))
            if not data:
                return None
            found += data
        return found


class AdbProcess:
    """A running command; a thread reads its output."""

    def __init__(self, link: AdbLink, command: str) -> None:
        self.lines = talk.Lines()
        self._shell = _Shell(link, command, None)
        self._thread = threading.Thread(target=self._listen, daemon=True, name=f"bblab {link.serial}")
        self._thread.start()

    def _listen(self) -> None:
        rest = {_STDOUT: b"", _STDERR: b""}
        put = {_STDOUT: self.lines.stdout.put, _STDERR: self.lines.stderr.append}
        try:
            with suppress(BblabError, ValueError, struct.error):  # a broken connection: the code stays None
                for kind, data in self._shell.packets():
                    *whole, rest[kind] = (rest[kind] + data).split(b"\n")
                    for line in whole:
                        put[kind](_text(line).rstrip("\r"))
            # A last line cut off by a broken connection is no broken line of the worker's.
            if self._shell.code is not None:
                for kind, line in rest.items():
                    if line:
                        put[kind](_text(line))
        finally:
            self.lines.stdout.put(None)

    def wait(self, timeout_s: float) -> int | None:
        self._thread.join(timeout_s)
        return self._shell.code

    def close(self) -> None:
        self._shell.close()
        self._thread.join(5.0)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
