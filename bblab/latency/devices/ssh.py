"""A board that is reached by ssh: a worker of our own is pushed, nothing of bblab is installed there.

Keys only, no passwords; `~/.ssh/config`, the agent and `~/.ssh/known_hosts` are used as OpenSSH does. A host whose
key is unknown or has changed is refused. The worker runs on the board's Python with the runtime's package; for ncnn,
where there is none, bblab's static runner takes its place.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import shlex
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bblab.errors import BblabError, RunError
from bblab.installing import how_to_install
from bblab.latency.devices import DEVICES, remote, state, talk
from bblab.latency.devices.cores import check, to_json
from bblab.latency.devices.remote import About, Engine, Lost, Remote, Said

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")

CONNECT_S = 15.0
KEEPALIVE_S, KEEPALIVES = 5.0, 3  # a connection that answers none of three is broken


@dataclass(frozen=True, slots=True)
class Address:
    """USER@HOST:PORT; what is not given, ~/.ssh/config or the default decides."""

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        return f"ssh:{user}{self.host}" + (f":{self.port}" if self.port else "")


def parse_address(text: str) -> Address:
    """`[USER@]HOST[:PORT]`, an IPv6 address in brackets. Raises BblabError otherwise."""
    found = re.fullmatch(r"(?:([^@\s:]+)@)?(\[[0-9a-fA-F:%.\w]+\]|[A-Za-z0-9_][A-Za-z0-9_.-]*)(?::(\d{1,5}))?", text)
    port = int(found.group(3)) if found and found.group(3) else None
    if found is None or (port is not None and not 0 < port < 65536):
        raise BblabError(f"no device 'ssh:{text}'", hint="an address is ssh:USER@HOST or ssh:USER@HOST:PORT")
    return Address(found.group(2).strip("[]"), found.group(1), port)


@DEVICES("ssh")
def ssh(
    address: str,
    *,
    python: str = "python3",
    key: str = "",
    known_hosts: str = "",
    folder: str = "/tmp",
    cores: str = "big",
    benchncnn: str = "",
    benchmark_model: str = "",
    label: str = "",
) -> Remote:
    """`python` is the command on the board, `key` and `known_hosts` are files here, `folder` is on the board.

    `benchncnn` and `benchmark_model` are programs of the user's here, built for the board.
    `cores` pins the worker on a processor with several kinds of core: big, little, all, or a mask.
    """
    _import()
    where = parse_address(address)
    link = SshLink(where, key, known_hosts)
    return Remote(
        name=label or str(where),
        link=link,
        base=folder.rstrip("/") or "/",
        tools={"benchncnn": benchncnn, "benchmark_model": benchmark_model},
        lock_name=str(where),
        cores=check(cores),
        engine_for=lambda board, runtime: _engine(board, runtime, python),
        read_state=_state,
        describe=lambda board: _describe(board, python),
    )


def _import() -> Any:
    try:
        import asyncssh
    except ImportError:
        raise BblabError(
            "devices behind ssh need asyncssh, which is not installed",
            hint=how_to_install("asyncssh"),
            exit_code=1,
        ) from None
    return asyncssh


def _state(board: Remote) -> dict[str, Any]:
    text = board.link.sh(state.COMMAND).out
    found = state.record(text)
    groups = state.topology(state.parse_files(text))
    if groups:
        found["clusters"] = to_json(groups)
    return found


def _describe(board: Remote, python: str) -> About:
    there = remote.look_at_python(board, python)
    able, remedy = remote.programs(board.arch)
    if there.problem or not there.numpy:
        words = there.problem or f"Python {there.python} without numpy"
    else:
        words = f"Python {there.python}"
        able = list(dict.fromkeys([*dict(there.runtimes), *able]))
        missing = dict(there.missing).get("ort")
        remedy = missing if missing and not able else ""
    machine = board.conditions()
    described = ", ".join(str(machine[k]) for k in ("cpu_model", "os") if k in machine)
    return About(f"{described}; {words}", remote.cores_words(board), tuple(able), "" if able else remedy)


def _engine(board: Remote, runtime: str, python: str) -> Engine:
    """The board's Python where it can run that runtime, else, where it is one, a program of its own."""
    if runtime not in remote.STAND_IN and remote.is_program(runtime):
        return remote.static_runner(board, runtime)
    there = remote.look_at_python(board, python)
    if not there.problem and there.numpy and runtime in dict(there.runtimes):
        return Engine(f"{shlex.quote(python)} {shlex.quote(board.folder + '/worker.zip')}")
    why = there.problem or dict(there.missing).get(runtime) or "numpy is not installed there (pip install numpy)"
    if not remote.is_program(runtime):
        raise RunError(
            f"{board.name}: {why}", hint=f"install it on {board.name}, or name another Python of its with --python"
        )
    try:
        engine = remote.static_runner(board, runtime)
    except BblabError as error:
        if runtime not in remote.STAND_IN:
            raise
        raise RunError(f"{board.name}: {why}", hint=f"install it there; or bblab's own: {error.hint}") from None
    return Engine(engine.command, note=f"by bblab's own runner: {why}" if runtime in remote.STAND_IN else "")


# The connection -------------------------------------------------------------------------------------------------


class SshLink:
    """asyncssh on a thread of its own, so that measuring stays plain sequential code."""

    def __init__(self, address: Address, key: str = "", known_hosts: str = "") -> None:
        self._address, self._key, self._known_hosts = address, key, known_hosts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._connection: asyncssh.SSHClientConnection | None = None

    def open(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name=f"bblab {self._address}")
        self._thread.start()
        self._connection = self._wait(self._connect(), CONNECT_S + 5)

    def close(self) -> None:
        if self._loop is None:
            return
        try:
            if self._connection is not None:
                connection, self._connection = self._connection, None
                with suppress(BblabError):
                    self._wait(_closed(connection), 5.0)
        finally:
            loop, self._loop = self._loop, None
            loop.call_soon_threadsafe(loop.stop)
            if self._thread is not None:
                self._thread.join(5.0)
            if not loop.is_running():
                loop.close()

    async def _connect(self) -> asyncssh.SSHClientConnection:
        asyncssh = _import()
        seen: list[Any] = []  # the host's key where known_hosts does not have it

        class Client(asyncssh.SSHClient):  # type: ignore[name-defined]
            def validate_host_public_key(self, host: str, addr: str, port: int, key: Any) -> bool:
                seen.append(key)
                return False

        where = self._address
        options: dict[str, Any] = {
            "client_factory": Client,
            "preferred_auth": "publickey",
            "connect_timeout": CONNECT_S,
            "login_timeout": CONNECT_S,
            "keepalive_interval": KEEPALIVE_S,
            "keepalive_count_max": KEEPALIVES,
            "agent_forwarding": False,
        }
        if where.user:
            options["username"] = where.user
        if where.port:
            options["port"] = where.port
        if self._key:
            options["client_keys"] = [str(_existing(self._key, "key"))]
        if self._known_hosts:
            options["known_hosts"] = str(_existing(self._known_hosts, "known_hosts file"))
        try:
            return await asyncssh.connect(where.host, **options)
        except asyncssh.HostKeyNotVerifiable as error:
            raise self._unknown_host(seen, error) from None
        except asyncssh.PermissionDenied:
            raise RunError(
                f"{where} does not let us in: it accepts none of our keys",
                hint=f"put your public key there once (ssh-copy-id {_target(where)}), load it into the agent (ssh-add) "
                "or name it with --key; passwords are not used",
            ) from None
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise RunError(
                f"the key {self._key or 'in ~/.ssh'} cannot be used: {error}",
                hint="a key with a passphrase is unlocked by the agent: ssh-add",
            ) from None
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise RunError(
                f"{where} cannot be reached: {_reason(error)}", hint=f"try: ssh {_target(where)} true"
            ) from None

    def _unknown_host(self, seen: list[Any], error: Exception) -> RunError:
        where = self._address
        file = self._known_hosts or "~/.ssh/known_hosts"
        scan = "ssh-keyscan" + (f" -p {where.port}" if where.port else "") + f" {where.host} >> {file}"
        if not seen:
            return RunError(
                f"{where}: its host key is not the one in {file}: {_reason(error)}",
                hint="if the board was set up anew, remove the old key: "
                + f"ssh-keygen -f {file} -R {_bracketed(where)}",
            )
        key = seen[-1]
        shown = f"{key.get_algorithm()} {key.get_fingerprint()}"
        if self._has_other_key():
            return RunError(
                f"{where} shows another host key than {file} has: {shown}",
                hint="somebody may be in between. If the board was set up anew, remove the old key: "
                f"ssh-keygen -f {file} -R {_bracketed(where)}",
            )
        return RunError(
            f"{where} is not in {file}; its host key is {shown}",
            hint=f"compare it on the board (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: {scan}",
        )

    def _has_other_key(self) -> bool:
        asyncssh = _import()
        path = Path(self._known_hosts or "~/.ssh/known_hosts").expanduser()
        try:
            known = asyncssh.match_known_hosts(str(path), self._address.host, "", self._address.port)
        except (OSError, ValueError):
            return False
        return any(known[:3])

    # Commands -----------------------------------------------------------------------------------------------

    def sh(self, command: str, timeout_s: float = remote.SHORT_S) -> Said:
        return self._wait(self._sh(command, None, timeout_s), timeout_s + 5)

    def put(self, data: bytes, path: str) -> None:
        quoted = shlex.quote(path)
        limit_s = 60 + len(data) / 50_000  # 50 kB a second is slow for any network
        said = self._wait(self._sh(f"cat > {quoted} && wc -c < {quoted}", data, limit_s), limit_s + 5)
        if said.code != 0 or said.out.strip() != str(len(data)):
            raise RunError(
                f"{self._address}: {Path(path).name} ({len(data)} bytes) could not be written: {said.reason()}",
                hint="free some space there, or name another folder with --folder",
            )

    def start(self, command: str) -> SshProcess:
        return self._wait(self._start(command), remote.SHORT_S)

    async def _sh(self, command: str, data: bytes | None, timeout_s: float) -> Said:
        asyncssh = _import()
        try:
            done = await self._open().run(
                f"sh -c {shlex.quote(command)}",
                input=data if data is not None else b"",
                encoding=None,
                timeout=timeout_s,
            )
        except asyncssh.TimeoutError:
            raise Lost(
                f"{self._address} did not answer within {timeout_s:g} s",
                hint="see whether it is still on, and not busy",
            ) from None
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from None
        if done.exit_status is None and done.exit_signal is None:
            raise self._lost(None)
        code = done.exit_status if done.exit_status is not None else -1
        return Said(code, _text(done.stdout), _text(done.stderr))

    async def _start(self, command: str) -> SshProcess:
        asyncssh = _import()
        try:
            process = await self._open().create_process(
                f"sh -c {shlex.quote(command)}",
                stdin=asyncssh.DEVNULL,
                encoding="utf-8",
                errors="replace",
            )
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from None
        return SshProcess(process, self)

    def _open(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            raise self._lost(None)
        return self._connection

    def _lost(self, error: Exception | None) -> Lost:
        why = f": {_reason(error)}" if error is not None else ""
        return Lost(
            f"the connection to {self._address} broke{why}",
            hint="what is left on the device is cleared at the next connection",
        )

    def _wait(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        if self._loop is None:
            work.close()
            raise self._lost(None)
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            raise Lost(f"{self._address} did not answer within {timeout_s:g} s") from None
        finally:
            future.cancel()


class SshProcess:
    """A running command; its output is read by tasks on the link's thread."""

    def __init__(self, process: asyncssh.SSHClientProcess[str], link: SshLink) -> None:
        self.lines = talk.Lines()
        self._process, self._link = process, link
        self._done = threading.Event()
        self._code: int | None = None
        self._task = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        try:
            await asyncio.gather(
                _drain(self._process.stdout, self.lines.stdout.put),
                _drain(self._process.stderr, self.lines.stderr.append),
            )
            with suppress(Exception):
                await self._process.wait_closed()
            self._code = self._process.returncode
        finally:
            self._done.set()
            self.lines.stdout.put(None)

    def wait(self, timeout_s: float) -> int | None:
        self._done.wait(timeout_s)
        return self._code

    def close(self) -> None:
        with suppress(BblabError):
            self._link._wait(self._close(), 5.0)

    async def _close(self) -> None:
        self._process.close()
        self._task.cancel()


async def _drain(stream: Any, put: Any) -> None:  # an asyncssh.SSHReader, and a bound method
    import asyncssh

    with suppress(asyncssh.Error, OSError):
        while line := await stream.readline():
            put(line.rstrip("\n"))


async def _closed(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    try:
        await asyncio.wait_for(connection.wait_closed(), 3.0)
    except TimeoutError:
        connection.abort()


def _existing(text: str, what: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise BblabError(f"there is no {what} {path}", hint="name a file that is there", exit_code=1)
    return path


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", "") or str(error) or type(error).__name__
    return text.splitlines()[0][:300]


def _text(data: bytes | str | None) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else data or ""


def _target(where: Address) -> str:
    port = f"-p {where.port} " if where.port else ""
    return port + (f"{where.user}@{where.host}" if where.user else where.host)


def _bracketed(where: Address) -> str:
    return f"'[{where.host}]:{where.port}'" if where.port and where.port != 22 else where.host
