"""A phone on loopback: an adbd that Debian's real `adb` talks to. It knows nothing of bblab.

    python tests/fake_adbd.py --root DIR [--port 0] [--no-shell-v2] [--unauthorised] [--quota BYTES]

Prints `port N` when it listens. Protocol: Android's packages/modules/adb/{protocol.txt, SERVICES.TXT, SYNC.TXT} and
shell_protocol.h: CNXN, AUTH (never satisfied), OPEN, OKAY, WRTE, CLSE; services `shell:`, `shell,v2,raw:`, `exec:` and
`sync:` (STAT, LIST, SEND, RECV). Whatever arrives runs in a real shell. DIR is the phone's disk: /data, /sys and
/proc/cpuinfo in commands and in what they print are those under DIR, and DIR/system/bin comes first on the PATH, where
`furnish` puts getprop, dumpsys, settings, uname and taskset as small scripts that print files of DIR/state.
Programs for another processor than ours are started with qemu (a script in their place does that).

The port should lie outside 5555 to 5585, where adb looks for emulators.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (
    struct.unpack("<I", n)[0] for n in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE")
)
VERSION, MAX_DATA = 0x01000001, 256 * 1024
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
MAPPED = ("/data/", "/sys/", "/proc/cpuinfo")
AARCH64 = 183  # e_machine


class Disk:
    """The phone's files under a folder, with a quota."""

    def __init__(self, root: Path, quota: int | None) -> None:
        self.root, self.quota = root, quota

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def used(self) -> int:
        return sum(p.stat().st_size for p in self.at("/data").rglob("*") if p.is_file())

    def into(self, command: str) -> str:
        """A command's paths as ours."""
        return re.sub(
            rf"(?<![\w/.])({'|'.join(map(re.escape, MAPPED))})", lambda m: f"{self.root}{m.group(1)}", command
        )

    def out_of(self, data: bytes) -> bytes:
        """Our paths in an output as the phone's."""
        return data.replace(str(self.root).encode() + b"/", b"/")

    async def lines(self, source: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """An output in whole lines, as one of our paths may be cut in two where a pipe's block ends."""
        rest = b""
        while data := await source.read(32 * 1024):
            whole, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                yield self.out_of(whole + newline)
        if rest:
            yield self.out_of(rest)

    def write(self, path: str, data: bytes, mode: int) -> None:
        target = self.at(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for old in (target, foreign(target)):
            old.unlink(missing_ok=True)
        if data[:4] == b"\x7fELF" and data[18] == AARCH64 and os.uname().machine != "aarch64":
            foreign(target).write_bytes(data)
            foreign(target).chmod(0o700)  # qemu refuses others; whether it may start is the script's own mode
            qemu = shutil.which("qemu-aarch64-static") or "qemu-aarch64"
            data = f'#!/bin/sh\nexec {qemu} "{foreign(target)}" "$@"\n'.encode()
        target.write_bytes(data)
        target.chmod(mode | 0o600)

    def read(self, path: str) -> bytes:
        target = self.at(path)
        return (foreign(target) if foreign(target).exists() else target).read_bytes()


def foreign(path: Path) -> Path:
    return path.with_name(path.name + ".aarch64")


class Stream:
    """One service that the other side has opened."""

    def __init__(self, phone: Connection, ours: int, theirs: int) -> None:
        self.phone, self.ours, self.theirs = phone, ours, theirs
        self.incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.acknowledged = asyncio.Event()
        self.buffer = b""
        self.task: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        for at in range(0, len(data), 64 * 1024):
            self.acknowledged.clear()
            self.phone.send(WRTE, self.ours, self.theirs, data[at : at + 64 * 1024])
            await self.acknowledged.wait()

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes; EOFError where the other side has closed."""
        while len(self.buffer) < count:
            data = await self.incoming.get()
            if data is None:
                raise EOFError
            self.buffer += data
        found, self.buffer = self.buffer[:count], self.buffer[count:]
        return found


class Connection:
    """The link to one adb server."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, disk: Disk, options: argparse.Namespace
    ) -> None:
        self.reader, self.writer, self.disk, self.options = reader, writer, disk, options
        self.streams: dict[int, Stream] = {}
        self.next_id = 1

    def send(self, command: int, arg0: int, arg1: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, arg0, arg1, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        self.writer.write(head + data)

    async def serve(self) -> None:
        try:
            while True:
                command, arg0, arg1, length, _, _ = struct.unpack("<6I", await self.reader.readexactly(24))
                data = await self.reader.readexactly(length)
                if command in (CNXN, AUTH) and self.options.unauthorised:
                    self.send(AUTH, 1, 0, os.urandom(20))
                elif command == CNXN:
                    features = "cmd" if self.options.no_shell_v2 else "shell_v2,cmd"
                    known = "ro.product.name=loopback;ro.product.model=Loopback;ro.product.device=lo"
                    self.send(CNXN, VERSION, MAX_DATA, f"device::{known};features={features}".encode())
                elif command == OPEN:
                    self.open(arg0, data.rstrip(b"\0").decode())
                elif (stream := self.streams.get(arg1)) is not None:
                    if command == WRTE:
                        stream.incoming.put_nowait(data)
                        self.send(OKAY, stream.ours, stream.theirs)
                    elif command == OKAY:
                        stream.acknowledged.set()
                    elif command == CLSE:
                        self.forget(stream)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for stream in list(self.streams.values()):
                self.forget(stream)
            self.writer.close()

    def forget(self, stream: Stream) -> None:
        self.streams.pop(stream.ours, None)
        stream.incoming.put_nowait(None)
        stream.acknowledged.set()
        if stream.task is not None:
            stream.task.cancel()

    def open(self, theirs: int, service: str) -> None:
        name, _, rest = service.partition(":")
        serve = {"sync": self.sync, "exec": self.exec, "shell": self.shell}.get(name.partition(",")[0])
        if serve is None:
            self.send(CLSE, 0, theirs)
            return
        stream = Stream(self, self.next_id, theirs)
        self.next_id += 1
        self.streams[stream.ours] = stream
        self.send(OKAY, stream.ours, theirs)

        async def run() -> None:
            with contextlib.suppress(EOFError, ConnectionError):
                await serve(stream, name, rest)
            if stream.ours in self.streams:
                self.streams.pop(stream.ours)
                self.send(CLSE, stream.ours, theirs)

        stream.task = asyncio.get_running_loop().create_task(run())

    # Services -----------------------------------------------------------------------------------------------

    async def start(self, command: str, *, merged: bool) -> asyncio.subprocess.Process:
        disk = self.disk
        path = f"{disk.at('/system/bin')}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        return await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            disk.into(command),
            cwd=disk.root,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if merged else asyncio.subprocess.PIPE,
            env={"PATH": path, "HOME": str(disk.root), "ANDROID_ROOT": str(disk.root), "LANG": "C"},
            start_new_session=True,
        )

    async def exec(self, stream: Stream, name: str, command: str) -> None:
        """Standard output and error together, no exit code, as of old."""
        process = await self.start(command, merged=True)
        assert process.stdout and process.stdin
        try:
            process.stdin.close()
            async for data in self.disk.lines(process.stdout):
                await stream.write(data)
            await process.wait()
        finally:
            hang_up(process)

    async def shell(self, stream: Stream, name: str, command: str) -> None:
        if "v2" not in name.split(","):
            await self.exec(stream, name, command)
            return
        process = await self.start(command, merged=False)
        assert process.stdout and process.stderr and process.stdin
        feeding = asyncio.get_running_loop().create_task(self.feed(stream, process.stdin))
        lock = asyncio.Lock()

        async def pass_on(kind: int, source: asyncio.StreamReader) -> None:
            async for data in self.disk.lines(source):
                async with lock:
                    await stream.write(struct.pack("<BI", kind, len(data)) + data)

        try:
            await asyncio.gather(pass_on(STDOUT, process.stdout), pass_on(STDERR, process.stderr))
            code = await process.wait()
            await stream.write(struct.pack("<BIB", EXIT, 1, code if code >= 0 else 128 - code))
        finally:
            feeding.cancel()
            hang_up(process)

    async def feed(self, stream: Stream, stdin: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                kind, length = struct.unpack("<BI", await stream.read(5))
                data = await stream.read(length)
                if kind == CLOSE_STDIN:
                    stdin.close()
                elif kind == STDIN:
                    stdin.write(data)
                    await stdin.drain()

    async def sync(self, stream: Stream, name: str, rest: str) -> None:
        while True:
            request, length = struct.unpack("<4sI", await stream.read(8))
            if request == b"QUIT":
                return
            path = (await stream.read(length)).decode()
            if request == b"STAT":
                await stream.write(b"STAT" + self.stat(path))
            elif request == b"LIST":
                folder = self.disk.at(path)
                for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
                    named = entry.name.encode()
                    await stream.write(
                        b"DENT" + self.stat(f"{path}/{entry.name}") + struct.pack("<I", len(named)) + named
                    )
                await stream.write(b"DONE" + bytes(16))
            elif request == b"RECV":
                await self.receive(stream, path)
            elif request == b"SEND":
                await self.sent(stream, path)
            else:
                await fail(stream, f"unknown request {request!r}")
                return

    def stat(self, path: str) -> bytes:
        try:
            found = self.disk.at(path).stat()
        except OSError:
            return bytes(12)
        return struct.pack("<3I", found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))

    async def receive(self, stream: Stream, path: str) -> None:
        try:
            data = self.disk.read(path)
        except OSError as error:
            await fail(stream, f"open failed: {error.strerror}")
            return
        for at in range(0, len(data), 64 * 1024):
            chunk = data[at : at + 64 * 1024]
            await stream.write(b"DATA" + struct.pack("<I", len(chunk)) + chunk)
        await stream.write(b"DONE" + bytes(4))

    async def sent(self, stream: Stream, target: str) -> None:
        path, _, mode = target.rpartition(",")
        data = bytearray()
        while True:
            request, length = struct.unpack("<4sI", await stream.read(8))
            if request != b"DATA":
                break
            data += await stream.read(length)
        quota = self.disk.quota
        if quota is not None and self.disk.used() + len(data) > quota:
            await fail(stream, "couldn't write: No space left on device")
            return
        try:
            self.disk.write(path, bytes(data), int(mode) & 0o777)
        except OSError as error:
            await fail(stream, f"couldn't create file: {error.strerror}")
            return
        await stream.write(b"OKAY" + bytes(4))


async def fail(stream: Stream, text: str) -> None:
    await stream.write(b"FAIL" + struct.pack("<I", len(text.encode())) + text.encode())


def hang_up(process: asyncio.subprocess.Process) -> None:
    """What adbd does when the other side goes away; a program that does not care goes on."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGHUP)


# A phone's programs and files -----------------------------------------------------------------------------------

PROPERTIES = {
    "ro.product.manufacturer": "Loopback",
    "ro.product.model": "Loop 8",
    "ro.soc.manufacturer": "Nobody",
    "ro.soc.model": "NB8000",
    "ro.board.platform": "loop",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.build.fingerprint": "loopback/lo/lo:14/TEST/1:user/release-keys",
}
# Of a Pixel, shortened: cached and current temperatures, and what is no temperature.
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
	callbacks: 2
Thermal Status: {status}
Cached temperatures:
	Temperature{{mValue=99.0, mType=3, mName=VIRTUAL-SKIN, mStatus=0}}
HAL Ready: true
HAL connection:
	ThermalHAL AIDL 1  connected: yes
Current temperatures from HAL:
	Temperature{{mValue=31.25, mType=3, mName=VIRTUAL-SKIN, mStatus={status}}}
	Temperature{{mValue=38.1, mType=0, mName=BIG, mStatus=0}}
	Temperature{{mValue=0.0, mType=1, mName=GPU, mStatus=0}}
Current cooling devices from HAL:
	CoolingDevice{{mValue=0, mType=0, mName=fan}}
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  Max charging current: 500000
  status: 2
  health: 2
  present: true
  level: 76
  scale: 100
  voltage: 4123
  temperature: 287
  technology: Li-ion
"""
CPUINFO = "Processor\t: AArch64 Processor rev 0 (aarch64)\nprocessor\t: 0\nCPU part\t: 0xd05\n"
SCRIPTS = {
    "getprop": 'cat "{root}/state/getprop"',
    "settings": 'cat "{root}/state/low_power"',
    "dumpsys": '[ -f "{root}/state/$1" ] || {{ echo "Can\'t find service: $1"; exit 0; }}\ncat "{root}/state/$1"',
    "uname": 'case "$1" in -m) echo aarch64;; *) echo "Linux 5.10.149-android13 aarch64";; esac',
    # Masks of the phone's eight cores; ours may have two, so nothing is really pinned.
    "taskset": 'echo "$*" >> "{root}/state/taskset"\n[ "$(printf %d "0x$1")" -le 255 ] || '
    '{{ echo "taskset: bad mask $1" >&2; exit 1; }}\nshift\nexec "$@"',
}


def furnish(root: Path, *, status: int = 0) -> None:
    """An eight-core phone, four little and four big, with the programs that Android would have."""
    for folder in ("data/local/tmp", "state", "system/bin"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "state/getprop").write_text("".join(f"[{k}]: [{v}]\n" for k, v in PROPERTIES.items()))
    (root / "state/thermalservice").write_text(THERMAL.format(status=status))
    (root / "state/battery").write_text(BATTERY)
    (root / "state/low_power").write_text("0\n")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text(CPUINFO)
    for cpu in range(8):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
        folder.mkdir(parents=True, exist_ok=True)
        top = "1800000" if cpu < 4 else "2850000"
        for name in ("cpuinfo_max_freq", "scaling_max_freq", "scaling_cur_freq"):
            (folder / name).write_text(top + "\n")
        (folder / "scaling_governor").write_text("sched_pixel\n")
    (root / "sys/devices/system/cpu/online").write_text("0-7\n")
    for name, script in SCRIPTS.items():
        path = root / "system/bin" / name
        path.write_text("#!/bin/sh\n" + script.format(root=root) + "\n")
        path.chmod(0o755)


async def main(options: argparse.Namespace) -> None:
    disk = Disk(options.root.resolve(), options.quota)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(reader, writer, disk, options).serve()

    server = await asyncio.start_server(connected, "127.0.0.1", options.port)
    print("port", server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--no-shell-v2", action="store_true")
    parser.add_argument("--unauthorised", action="store_true")
    parser.add_argument("--quota", type=int)
    parser.add_argument("--furnish", action="store_true", help="put a phone's files and programs into DIR first")
    chosen = parser.parse_args()
    if chosen.furnish:
        furnish(chosen.root.resolve())
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(chosen))
    sys.exit(0)
