"""Build the runner, once for each architecture, ncnn and recipe; remember it in the cache.

    <cache>/runner/sdist/ncnn-VERSION.tar.gz           as the index has it
    <cache>/runner/src/HASH/                           unpacked
    <cache>/runner/build/KEY/                          where the compiler works; a killed build goes on from here
    <cache>/runner/ARCH-KEY/{runner,build.json}    whole, or not there: renamed into place at the end

The keys are hashes of the sdist, of CMakeLists.txt, of the architecture and the compiler, and for the finished runner
of runner.cpp too. The folder of a build is kept (12 MB for aarch64, 41 MB for x86-64): after a change of runner.cpp
only that is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bblab.errors import BblabError, RunError, near
from bblab.installing import how_to_install
from bblab.latency.runner import source
from bblab.rooms import cache_dir

# done and total, seconds left (None: not known), what is going on
Progress = Callable[[int, int, float | None, str], None]

HERE = Path(__file__).parent
RECIPE = ("runner.cpp", "CMakeLists.txt")
MACHINES = {"aarch64": 183, "x86_64": 62}  # ELF e_machine
ARCHES = tuple(MACHINES)
NEEDED = ("CMakeLists.txt", "LICENSE.txt", "cmake/", "src/")  # of the sdist; glslang is for Vulkan
MAX_SOURCE_BYTES = 500_000_000
LAST_LINES = 12


@dataclass(frozen=True, slots=True)
class Build:
    """One runner in the cache, or one of the user's own (`sha256` of the file as it is)."""

    path: Path
    arch: str
    ncnn: str
    compiler: str
    bytes: int
    sha256: str
    is_current: bool  # made by this bblab's recipe


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The commands that compile for one architecture."""

    cc: str
    cxx: str
    cmake: str
    ninja: str  # empty: make
    compiler: str  # its version line
    options: tuple[str, ...]  # for CMake


def host_arch() -> str:
    """This machine's architecture, in the runner's words."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _folder() -> Path:
    return cache_dir() / "runner"


# What is there ---------------------------------------------------------------------------------------------------


def built(arch: str) -> Path | None:
    """The runner of an architecture, made by this bblab's recipe; None where there is none yet.

    `BBLAB_RUNNER_AARCH64` (or _X86_64) names one of the user's own, built with an NDK for example. Raises BblabError
    for an unknown architecture and for a file of the user's that is no such program.
    """
    arch = _known(arch)
    if own := os.environ.get(f"BBLAB_RUNNER_{arch.upper()}"):
        path = Path(own).expanduser()
        check_program(path, arch)
        return path
    fits = [b for b in builds() if b.arch == arch and b.is_current]
    return fits[-1].path if fits else None


def builds() -> list[Build]:
    """Every whole runner in the cache, those of older recipes too; of one architecture, the newest ncnn last."""
    found = []
    recipe = _hash(_recipe())
    for file in sorted(_folder().glob("*/build.json")):
        path = file.with_name("runner")
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["sha256"] != source.sha256(path):
                continue
            found.append(
                Build(
                    path,
                    record["arch"],
                    record["ncnn"],
                    record["compiler"],
                    record["bytes"],
                    record["sha256"],
                    record["recipe"] == recipe,
                )
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue  # cut off, or of another bblab
    return sorted(found, key=lambda b: (b.arch, [int(n) for n in re.findall(r"\d+", b.ncnn)]))


def engine(path: Path) -> str:
    """The ncnn version of a runner; of the user's own that cannot be run here, the beginning of its hash."""
    for b in builds():
        if b.path == path:
            return b.ncnn
    try:
        return str(about(path)["ncnn"])
    except RunError:
        return f"own {source.sha256(path)[:8]}"


def about(path: Path, *, prefix: Sequence[str] = ()) -> dict[str, Any]:
    """What a runner says of itself (`--about`), on this machine or by a `prefix` such as qemu. Raises RunError."""
    try:
        done = subprocess.run(
            [*prefix, str(path), "--about"], capture_output=True, text=True, errors="replace", timeout=60
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("BBLAB {"))
        record = json.loads(line.removeprefix("BBLAB "))
        if record["kind"] == "about":
            return dict(record)
    except (OSError, StopIteration, ValueError, KeyError, subprocess.TimeoutExpired):
        pass
    raise RunError(f"{path} does not say what it is", hint="it is no runner of bblab's, or not for this machine")


def check_program(path: Path, arch: str) -> None:
    """Raises BblabError unless the file is a static Linux program of that architecture."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if len(head) < 64 or head[:4] != b"\x7fELF" or head[4:6] != b"\x02\x01":
                raise _no_program(path, "it is no 64-bit ELF file")
            (machine,) = struct.unpack_from("<H", head, 18)
            if machine != MACHINES[arch]:
                known = {number: name for name, number in MACHINES.items()}
                raise _no_program(path, f"it is for {known.get(machine, f'machine {machine}')}, not for {arch}")
            (table,) = struct.unpack_from("<Q", head, 32)
            size, count = struct.unpack_from("<HH", head, 54)
            file.seek(table)
            entries = file.read(size * count)
            kinds = {struct.unpack_from("<I", entries, i * size)[0] for i in range(len(entries) // size)}
    except OSError as error:
        raise _no_program(path, error.strerror or str(error)) from None
    except (struct.error, ZeroDivisionError):
        raise _no_program(path, "it is cut off") from None
    if 3 in kinds:  # PT_INTERP: it wants a loader and libraries that a phone does not have
        raise _no_program(path, "it is linked dynamically")


def _no_program(path: Path, why: str) -> BblabError:
    return BblabError(f"{path} is no runner: {why}", hint="bblab runner build makes one", exit_code=1)


def _known(arch: str) -> str:
    if arch not in MACHINES:
        raise BblabError(f"no runner for {arch!r}", hint=near(arch, MACHINES))
    return arch


# Make it ---------------------------------------------------------------------------------------------------------


def build(
    arch: str,
    *,
    version: str | None = None,
    sdist: Path | None = None,
    jobs: int | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """The runner of an architecture, built now (2 to 4 minutes on 2 cores) or remembered.

    `version` is ncnn's; left out, that of the installed ncnn, so that both are the same engine, else the newest on
    the index. `sdist` names an archive that is here already.

    A build that was stopped goes on where it was. Raises BblabError, with the command that installs what is missing,
    before anything is downloaded, and RunError with the compiler's last words.
    """
    tell = on_progress or (lambda done, total, seconds_left, text: None)
    tools = toolchain(arch)
    archive = source.named(sdist) if sdist else None
    tell(0, 0, None, "looking for ncnn's source")
    archive = archive or _remembered_sdist(version or _installed_ncnn()) or _listed(version)
    folder = _folder()
    # An archive of which the index gives no hash is known by its own, once it is here.
    digest = archive.sha256
    path = source.fetch(archive, folder / "sdist", lambda done, all_: tell(done, all_, None, "fetching ncnn's source"))
    digest = digest or source.sha256(path)
    recipe = _recipe()  # as it is now: an update of bblab meanwhile makes another runner
    about_build = [digest, arch, tools.compiler]
    library = _hash([*about_build, recipe["CMakeLists.txt"]])
    key = _hash([*about_build, recipe])
    target = folder / f"{arch}-{key}"
    with _alone(folder / "build" / f"{library}.lock", tell):
        if not _is_whole(target):
            unpacked = _unpack(path, folder / "src" / digest[:20], tell)
            work = folder / "build" / library
            _lay_out(recipe, work / "recipe")
            program = _compile(unpacked, work, archive.version, tools, jobs, tell)
            check_program(program, arch)
            if arch == host_arch():
                _check_about(program, archive.version)
            record = {
                "arch": arch,
                "ncnn": archive.version,
                "compiler": tools.compiler,
                "sdist_sha256": digest,
                "recipe": _hash(recipe),
            }
            _publish(program, target, record)
    return target / "runner"


def toolchain(arch: str) -> Toolchain:
    """The compiler and CMake for an architecture. Raises BblabError with the command that installs what is missing."""
    _known(arch)
    if sys.platform != "linux":
        raise BblabError(
            f"the runner is built on Linux, this is {sys.platform}",
            hint="build it on a Linux machine and name it with BBLAB_RUNNER_AARCH64=PATH",
            exit_code=1,
        )
    native = arch == host_arch()
    cxx = _command(os.environ.get("CXX", "g++") if native else f"{arch}-linux-gnu-g++")
    cc = _command(os.environ.get("CC", "gcc") if native else f"{arch}-linux-gnu-gcc")
    cmake, ninja = _command("cmake"), _command("ninja") or _command("ninja-build")
    missing = []
    if not cxx or not cc:
        missing.append("g++" if native else f"g++-{arch.replace('_', '-')}-linux-gnu")
    if not cmake:
        missing.append("cmake")
    if not ninja and not _command("make"):
        missing.append("ninja-build")
    if missing:
        by_pip = f" (cmake and ninja also: {how_to_install('cmake', 'ninja')})"
        also = by_pip if {"cmake", "ninja-build"} & set(missing) else ""
        raise BblabError(
            f"the runner for {arch} needs {', '.join(missing)}, which is not installed",
            hint=f"apt install {' '.join(missing)}{also}",
            exit_code=1,
        )
    said = subprocess.run([cxx, "--version"], capture_output=True, text=True, errors="replace").stdout
    options = [f"-DCMAKE_C_COMPILER={cc}", f"-DCMAKE_CXX_COMPILER={cxx}"]
    if not native:
        options += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={arch}"]
    return Toolchain(cc, cxx, cmake, ninja, (said.splitlines() or [cxx])[0].strip(), tuple(options))


def _command(name: str) -> str:
    """Where a command is: on the path, or beside this Python, where pip puts it. Empty where it is not."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent)) or ""


def _installed_ncnn() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ncnn")
    except PackageNotFoundError:
        return None


def _remembered_sdist(version: str | None) -> source.Sdist | None:
    """An archive fetched before, so that a second architecture needs no network."""
    if version is None:
        return None
    note = _folder() / "sdist" / f"ncnn-{version}.json"
    try:
        found = source.Sdist(**json.loads(note.read_text(encoding="utf-8")))
        path = note.with_name(found.filename)
        return found if found.sha256 and source.sha256(path) == found.sha256 else None
    except (OSError, ValueError, TypeError):
        return None


def _listed(version: str | None) -> source.Sdist:
    """As the index lists it: the version asked for, else the installed one where it has a source, else the newest."""
    installed = _installed_ncnn()
    if version is None and installed is not None:
        with suppress(RunError):
            return _noted(source.find(installed))
    return _noted(source.find(version))


def _noted(found: source.Sdist) -> source.Sdist:
    if found.sha256:
        folder = _folder() / "sdist"
        folder.mkdir(parents=True, exist_ok=True)
        # Without the address: it may hold a password, and is of no use where the archive is.
        _write(folder / f"ncnn-{found.version}.json", json.dumps(asdict(found) | {"url": ""}))
    return found


def _recipe() -> dict[str, str]:
    return {name: (HERE / name).read_text(encoding="utf-8") for name in RECIPE}


def _hash(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


@contextmanager
def _alone(lock: Path, tell: Progress) -> Iterator[None]:
    """Hold a lock that a killed process lets go of."""
    import fcntl  # Windows has none; it does not come so far

    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(0, 0, None, "waiting for another build of the same runner")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_whole(target: Path) -> bool:
    try:
        record = json.loads((target / "build.json").read_text(encoding="utf-8"))
        return bool(record["sha256"] == source.sha256(target / "runner"))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _unpack(archive: Path, target: Path, tell: Progress) -> Path:
    """What the build needs of the archive, whole or not there."""
    if target.is_dir():
        return target
    tell(0, 0, None, "unpacking ncnn's source")
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    written = 0
    try:
        with tarfile.open(archive) as packed:
            for member in packed:
                inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                if not member.isfile() or not str(inside).startswith(NEEDED):
                    continue
                if inside.is_absolute() or ".." in inside.parts:
                    raise RunError(f"{archive.name} holds {member.name}, which would lie outside")
                written += member.size
                if written > MAX_SOURCE_BYTES:
                    raise RunError(f"{archive.name} unpacks to over {MAX_SOURCE_BYTES / 1e6:.0f} MB")
                content = packed.extractfile(member)
                assert content is not None
                path = partial / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    shutil.copyfileobj(content, file)
        if not (partial / "src" / "net.cpp").is_file():
            raise RunError(f"{archive.name} holds no source of ncnn")
        partial.replace(target)
    except (tarfile.TarError, EOFError) as error:
        raise RunError(f"{archive.name} cannot be unpacked: {error}", hint=f"delete {archive} and try again") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def configure_command(unpacked: Path, work: Path, version: str, tools: Toolchain) -> list[str]:
    """The CMake command that prepares a build."""
    return [
        tools.cmake,
        *("-G", "Ninja" if tools.ninja else "Unix Makefiles"),
        *([f"-DCMAKE_MAKE_PROGRAM={tools.ninja}"] if tools.ninja else []),
        *("-S", str(work / "recipe"), "-B", str(work / "tree")),
        *tools.options,
        f"-DNCNN_SOURCE={unpacked}",
        f"-DNCNN_VERSION={version.rpartition('.')[2]}",
    ]


def _lay_out(recipe: Mapping[str, str], folder: Path) -> None:
    """The recipe's files, of which only those are written that differ: their times decide what is compiled again."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in recipe.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            _write(path, text)


def _compile(unpacked: Path, work: Path, version: str, tools: Toolchain, jobs: int | None, tell: Progress) -> Path:
    tell(0, 0, None, "configuring")
    _run(configure_command(unpacked, work, version, tools), lambda line: None)
    began = time.monotonic()
    first: list[int] = []

    def heard(line: str) -> None:
        found = re.match(r"\[(\d+)/(\d+)\]|\[ *(\d+)%\]", line)
        if not found:
            return
        done, total = (int(found[1]), int(found[2])) if found[1] else (int(found[3]), 100)
        first.append(done)
        fresh, seconds = done - first[0], time.monotonic() - began
        left = seconds / fresh * (total - done) if fresh >= 20 else None
        tell(done, total, left, f"compiling ncnn {version}")

    at_once = str(jobs or os.cpu_count() or 1)
    _run([tools.cmake, "--build", str(work / "tree"), "--target", "runner", "-j", at_once], heard)
    return work / "tree" / "runner"


def _run(command: Sequence[str], heard: Callable[[str], None]) -> None:
    """Run a step to its end. Ends it and all it started if we are stopped. Raises RunError with its last words."""
    # Flags of the user's shell would make another program under the same key.
    env: Mapping[str, str] = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "NINJA_STATUS", "MAKEFLAGS", "CMAKE_GENERATOR")
    }
    last: deque[str] = deque(maxlen=LAST_LINES)
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.rstrip("\n")[:300])
            heard(line)
        code = process.wait()
    except BaseException:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)  # ninja removes what is half written
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if code != 0:
        raise RunError(
            f"the build ended with code {code}:" + "".join(f"\n  | {line}" for line in last),
            hint="what was compiled is kept: run it again; with little memory, --jobs 1",
        )


def _check_about(program: Path, version: str) -> None:
    said = about(program)["ncnn"]
    if said != version:
        raise RunError(f"the built runner says it is ncnn {said}, not {version}")


def _publish(program: Path, target: Path, record: Mapping[str, Any]) -> None:
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        shutil.copy(program, partial / "runner")
        (partial / "runner").chmod(0o755)
        file = {"bytes": program.stat().st_size, "sha256": source.sha256(partial / "runner")}
        _write(partial / "build.json", json.dumps({**record, **file}, indent=1))
        if target.exists():  # damaged since
            shutil.rmtree(target)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
