"""The runner's making: its source found and checked, builds that are whole or not there, what it says understood.

No compiler runs here and no network is asked: an index on the loopback and a CMake that is a script stand for them.
tests/test_runner_built.py builds and runs the real one.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bblab.errors import BblabError, RunError
from bblab.installing import how_to_install
from bblab.latency import runner, runtimes, wire, worker
from bblab.latency.devices.host import Host
from bblab.latency.runner import making, source

ROOM = Path(runner.__file__).parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("BBLAB_CACHE", str(folder))
    for arch in runner.ARCHES:
        monkeypatch.delenv(f"BBLAB_RUNNER_{arch.upper()}", raising=False)
    return folder / "runner"


def tarball(version: str, members: dict[str, str] | None = None) -> bytes:
    """A source archive as small as can be."""
    files = {"CMakeLists.txt": "# ncnn", "src/net.cpp": "// net", "glslang/big.cpp": "// Vulkan", "setup.py": "raise"}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as packed:
        for name, text in (members if members is not None else files).items():
            member = tarfile.TarInfo(f"ncnn-{version}/{name}")
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


# An index on the loopback ---------------------------------------------------------------------------------------


class Index:
    """A package index: `files` by name, `pages` by package; what it was asked for is kept."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.page: tuple[str, bytes] = ("text/html", b"")
        self.asked: list[tuple[str, str]] = []
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append((self.path, self.headers.get("Authorization") or ""))
                name = self.path.rpartition("/")[2]
                if self.path == "/simple/ncnn/":
                    kind, body = index.page
                elif name in index.files:
                    kind, body = "application/gzip", index.files[name]
                else:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, name: str, body: bytes, **more: Any) -> None:
        """List a file on a JSON page; `sha256` and `yanked` may be given."""
        self.files[name] = body
        kind, page = self.page
        listed = json.loads(page)["files"] if "json" in kind else []
        digest = more.pop("sha256", hashlib.sha256(body).hexdigest())
        listed.append({"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": digest}, **more})
        self.page = ("application/vnd.pypi.simple.v1+json", json.dumps({"files": listed}).encode())


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index()
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    monkeypatch.setattr(source, "_ask_pip", lambda *words: "")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    served.close()


def test_the_newest_final_source_archive_is_found(index: Index) -> None:
    for name in ("ncnn-1.0.20240101.tar.gz", "ncnn-1.0.20250101.tar.gz", "ncnn-1.0.9.tar.gz"):
        index.add(name, name.encode())
    index.add("ncnn-1.0.20260101.tar.gz", b"", yanked="broken")
    index.add("ncnn-1.0.20270101rc1.tar.gz", b"")
    index.add("ncnn-1.0.20280101-cp311-cp311-win32.whl", b"")
    assert source.find().version == "1.0.20250101"
    assert source.find("1.0.9").filename == "ncnn-1.0.9.tar.gz"


def test_a_page_of_html_is_read_as_well(index: Index, tmp_path: Path) -> None:
    body = tarball("1.0.5")
    digest = hashlib.sha256(body).hexdigest()
    index.files["ncnn-1.0.5.tar.gz"] = body
    index.page = (
        "text/html; charset=utf-8",
        f"""<!DOCTYPE html><body><a href="../../p/ncnn-1.0.5.tar.gz#sha256={digest}" data-requires-python="&gt;=3.5">
        ncnn-1.0.5.tar.gz</a><br/><a href="/p/ncnn-1.0.6.tar.gz#sha256=00" data-yanked="">x</a></body>""".encode(),
    )
    found = source.find()
    assert (found.version, found.sha256) == ("1.0.5", digest)
    assert source.fetch(found, tmp_path).read_bytes() == body


def test_an_archive_is_fetched_once(index: Index, tmp_path: Path) -> None:
    index.add("ncnn-1.0.1.tar.gz", b"x" * 700_000)
    told: list[tuple[int, int]] = []
    found = source.find()
    first = source.fetch(found, tmp_path, lambda done, total: told.append((done, total)))
    assert told[-1] == (700_000, 700_000)
    assert source.fetch(found, tmp_path) == first
    assert [path for path, _ in index.asked].count("/files/ncnn-1.0.1.tar.gz") == 1


def test_an_archive_with_another_hash_is_refused_and_not_kept(index: Index, tmp_path: Path) -> None:
    index.add("ncnn-1.0.1.tar.gz", b"changed on the way", sha256="ab" * 32)
    with pytest.raises(RunError, match=r"the index says abababababababab") as refused:
        source.fetch(source.find(), tmp_path)
    assert "do not use that index" in refused.value.hint
    assert list(tmp_path.glob("ncnn*")) == []


def test_an_archive_that_was_changed_in_the_cache_is_fetched_again(index: Index, tmp_path: Path) -> None:
    index.add("ncnn-1.0.1.tar.gz", b"good")
    path = source.fetch(source.find(), tmp_path)
    path.write_bytes(b"bad")
    assert source.fetch(source.find(), tmp_path).read_bytes() == b"good"


def test_a_version_that_is_not_there_names_those_that_are(index: Index) -> None:
    for date in (1, 2, 3):
        index.add(f"ncnn-1.0.{date}.tar.gz", b"")
    with pytest.raises(RunError) as refused:
        source.find("1.0.99")
    assert str(refused.value) == "no source archive of ncnn 1.0.99\n  there is, newest last: 1.0.1, 1.0.2, 1.0.3"


def test_a_second_index_is_asked_where_the_first_has_none(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("ncnn-1.0.1.tar.gz", b"")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", index.url)
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("simple", "elsewhere"))
    assert source.find().version == "1.0.1"


@pytest.mark.parametrize("page", [b"<html>please log in</html>", b"{", b"[]", b'{"files": [1]}', b"\xff\xfe"])
def test_a_page_that_is_no_index_is_one_line(index: Index, page: bytes) -> None:
    for kind in ("application/json", "text/html"):
        index.page = (kind, page)
        with pytest.raises(RunError, match="no source archive of ncnn") as refused:
            source.find()
        assert "--sdist FILE" in refused.value.hint


def test_an_index_that_is_away_is_named_without_the_password(monkeypatch: pytest.MonkeyPatch, index: Index) -> None:
    where = index.url.replace("http://", "http://me:secret@").replace("simple", "nowhere")
    with pytest.raises(RunError, match="answers 404") as refused:
        source.find(at=[where])
    assert "secret" not in str(refused.value)
    assert "127.0.0.1" in str(refused.value)
    with pytest.raises(RunError, match="cannot be reached"):
        source.find(at=["http://127.0.0.1:1/simple"])
    with pytest.raises(RunError, match="an index has an address with https"):
        source.find(at=["ftp://127.0.0.1/simple"])


def test_name_and_password_of_an_index_go_into_a_header(index: Index) -> None:
    index.add("ncnn-1.0.1.tar.gz", b"")
    source.find(at=[index.url.replace("http://", "http://me:pass%40word@")])
    assert index.asked == [("/simple/ncnn/", "Basic bWU6cGFzc0B3b3Jk")]  # me:pass@word


def test_the_environment_goes_before_pips_settings_and_these_before_its_default(
    monkeypatch: pytest.MonkeyPatch, index: Index
) -> None:
    said = {
        ("config", "list"): ":env:.cert='/c'\nglobal.index-url='https://one/simple/'\n"
        "install.index-url='https://not/this'\nglobal.extra-index-url='https://a/s\\nhttps://b/s'\nnonsense\n",
        ("download", "--help"): "  -i, --index-url <url>  Base URL of the Python\n"
        "              Package Index (default\n              https://default/simple). This should\n",
    }
    monkeypatch.setattr(source, "_ask_pip", lambda *words: said.get(words, ""))
    monkeypatch.delenv("PIP_INDEX_URL")
    assert source.indexes() == ["https://one/simple", "https://a/s", "https://b/s"]
    monkeypatch.setenv("UV_INDEX", "lab=https://uv/simple")
    monkeypatch.setenv("PIP_INDEX_URL", "https://env/simple")
    assert source.indexes()[0] == "https://env/simple" and source.indexes()[-1] == "https://uv/simple"
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.delenv("UV_INDEX")
    del said["config", "list"]
    assert source.indexes() == ["https://default/simple"]
    said.clear()
    with pytest.raises(RunError, match="no package index is known") as refused:
        source.indexes()
    assert "PIP_INDEX_URL" in refused.value.hint


def test_no_address_of_an_index_is_written_here() -> None:
    for path in ROOM.iterdir():
        if path.is_file():
            assert not re.search(r"\w+\.(org|com|net|io|cn)\b", path.read_text("utf-8")), path


@pytest.mark.parametrize("name", ["ncnn.tar.gz", "ncnn-1.0.1.zip", "other-1.0.1.tar.gz"])
def test_a_named_archive_has_ncnns_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BblabError, match="is not a source archive of ncnn"):
        source.named(tmp_path / name)
    with pytest.raises(BblabError, match="there is no file"):
        source.named(tmp_path / "ncnn-1.0.1.tar.gz")


# Builds ---------------------------------------------------------------------------------------------------------


def elf(
    machine: int = making.MACHINES["aarch64"], segments: tuple[int, ...] = (1, 0x6474E551), tail: bytes = b""
) -> bytes:
    """The head of a 64-bit little-endian ELF file and its table of segments."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400000, 64, 0, 0, 64, 56, len(segments), 64, 0, 0)
    return head + b"".join(struct.pack("<I", kind) + bytes(52) for kind in segments) + tail


CMAKE = """#!{python}
import json, os, sys, time
from pathlib import Path
here = Path({folder!r})
words = sys.argv[1:]
with (here / "log").open("a") as log:
    log.write(json.dumps([words, os.environ.get("CXXFLAGS")]) + "\\n")
if "-B" in words:
    Path(words[words.index("-B") + 1]).mkdir(exist_ok=True)
    sys.exit(0)
tree = Path(words[1])
for at in range(1, 31):
    print(f"[{{at}}/30] Building CXX object", flush=True)
mode = (here / "mode").read_text()
if mode == "fail":
    print("net.cpp:1: error: expected ';'")
    sys.exit(2)
if mode == "hang":
    (tree / "object").write_text("compiled")
    (here / "pid").write_text(str(os.getpid()))
    time.sleep(600)
(tree / "runner").write_bytes((here / "program").read_bytes())
"""


class Kitchen:
    """A fake CMake with its log, and an archive to build from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mode("good")
        self.program(elf())
        self.cmake = folder / "cmake"
        self.cmake.write_text(CMAKE.format(python=sys.executable, folder=str(folder)))
        self.cmake.chmod(0o755)
        self.sdist = folder / "ncnn-1.0.20250101.tar.gz"
        self.sdist.write_bytes(tarball("1.0.20250101"))
        self.compiler = "g++ 12"

    def mode(self, text: str) -> None:
        (self.folder / "mode").write_text(text)

    def program(self, content: bytes) -> None:
        (self.folder / "program").write_bytes(content)

    def tools(self, arch: str) -> making.Toolchain:
        return making.Toolchain("gcc", "g++", str(self.cmake), "/bin/ninja", self.compiler, ("-DFOR=" + arch,))

    def log(self) -> list[Any]:
        path = self.folder / "log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def build(self, arch: str = "aarch64", **more: Any) -> Path:
        return runner.build(arch, sdist=self.sdist, **more)


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    made = Kitchen(tmp_path)
    monkeypatch.setattr(making, "toolchain", made.tools)
    return made


def test_a_build_is_made_once_and_then_remembered(kitchen: Kitchen, own_cache: Path) -> None:
    assert runner.built("aarch64") is None
    told: list[tuple[int, int, float | None, str]] = []
    path = kitchen.build(jobs=3, on_progress=lambda *what: told.append(what))
    assert path.read_bytes() == elf() and os.access(path, os.X_OK)
    assert runner.built("aarch64") == path and runner.built("x86_64") is None
    assert [what[:2] for what in told if what[1] == 30] == [(at, 30) for at in range(1, 31)]
    assert told[-1][2] is not None and told[-1][3] == "compiling ncnn 1.0.20250101"
    configure, make = (words for words, _ in kitchen.log())
    assert {"-DNCNN_VERSION=20250101", "-DFOR=aarch64", "Ninja"} <= set(configure)
    assert make[-4:] == ["--target", "runner", "-j", "3"]
    assert kitchen.build() == path and len(kitchen.log()) == 2
    (listed,) = runner.builds()
    assert (listed.arch, listed.ncnn, listed.compiler, listed.bytes) == (
        "aarch64",
        "1.0.20250101",
        "g++ 12",
        len(elf()),
    )
    assert runner.engine(path) == "1.0.20250101"


def test_only_what_is_needed_is_unpacked(kitchen: Kitchen, own_cache: Path) -> None:
    kitchen.build()
    (unpacked,) = (own_cache / "src").iterdir()
    assert {p.name for p in unpacked.rglob("*") if p.is_file()} == {"CMakeLists.txt", "net.cpp"}


def test_another_source_compiler_or_recipe_is_another_build(
    kitchen: Kitchen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kitchen.build()
    kitchen.compiler = "g++ 13"
    second = kitchen.build()
    kitchen.sdist = tmp_path / "ncnn-1.0.20250102.tar.gz"
    kitchen.sdist.write_bytes(tarball("1.0.20250102"))
    third = kitchen.build()
    assert len({first, second, third}) == 3
    assert runner.built("aarch64") == third  # the newest ncnn
    recipe = making._recipe()
    monkeypatch.setattr(making, "_recipe", lambda: {**recipe, "runner.cpp": "// newer"})
    assert runner.built("aarch64") is None  # made by an older bblab
    assert [b.is_current for b in runner.builds()] == [False] * 3
    fourth = kitchen.build()
    assert runner.built("aarch64") == fourth
    # Only runner.cpp is another, so the library is compiled where it was.
    assert kitchen.log()[-1] == kitchen.log()[-3]


def test_a_build_that_fails_shows_the_compilers_words_and_leaves_nothing(kitchen: Kitchen, own_cache: Path) -> None:
    kitchen.mode("fail")
    with pytest.raises(RunError, match="the build ended with code 2") as failed:
        kitchen.build()
    assert "| net.cpp:1: error: expected ';'" in failed.value.message
    assert runner.builds() == [] and runner.built("aarch64") is None
    kitchen.mode("good")
    assert kitchen.build().is_file()


BUILDING = """
import sys
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("test_runner", {file!r})
module = importlib.util.module_from_spec(spec)
sys.modules["test_runner"] = module
spec.loader.exec_module(module)
kitchen = module.Kitchen(Path({folder!r}))
kitchen.mode("hang")
module.making.toolchain = kitchen.tools
kitchen.build()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_build_is_not_there_and_goes_on_where_it_was(kitchen: Kitchen, own_cache: Path, how: int) -> None:
    code = BUILDING.format(file=__file__, folder=str(kitchen.folder))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    pid = kitchen.folder / "pid"
    end = time.monotonic() + 30
    while not (pid.is_file() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(how)
    process.wait(20)
    if how == signal.SIGKILL:
        os.kill(int(pid.read_text()), signal.SIGKILL)  # its own group: nobody was left to end it
    assert runner.built("aarch64") is None and runner.builds() == []
    kitchen.mode("good")
    path = kitchen.build()
    assert path.is_file()
    assert (next((own_cache / "build").glob("*/tree")) / "object").read_text() == "compiled"
    assert list(own_cache.glob("*.partial")) == []


def test_a_damaged_runner_counts_as_not_built(kitchen: Kitchen) -> None:
    path = kitchen.build()
    path.write_bytes(path.read_bytes()[:-1])
    assert runner.built("aarch64") is None
    assert kitchen.build() == path and path.read_bytes() == elf()
    (path.parent / "build.json").write_text("{")
    assert runner.built("aarch64") is None


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (b"#!/bin/sh\n", "no 64-bit ELF file"),
        (elf(machine=62), "it is for x86_64, not for aarch64"),
        (elf(machine=40), "it is for machine 40"),
        (elf(segments=(1, 3)), "it is linked dynamically"),
        (elf()[:70], "it is linked|cut off"),
    ],
)
def test_what_is_no_static_program_is_refused(kitchen: Kitchen, program: bytes, why: str) -> None:
    kitchen.program(program)
    if len(program) == 70:  # a table of segments that is cut off holds none
        kitchen.build()
        return
    with pytest.raises(BblabError, match=why):
        kitchen.build()
    assert runner.builds() == []


def test_a_program_for_this_machine_must_say_what_it_is(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "host_arch", lambda: "aarch64")
    with pytest.raises(RunError, match="does not say what it is"):
        kitchen.build()
    monkeypatch.setattr(making, "about", lambda path: {"ncnn": "1.0.1"})
    with pytest.raises(RunError, match=r"says it is ncnn 1\.0\.1, not 1\.0\.20250101"):
        kitchen.build()
    assert runner.builds() == []


def test_flags_of_the_shell_do_not_reach_the_compiler(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXXFLAGS", "-O0")
    kitchen.build()
    assert [flags for _, flags in kitchen.log()] == [None, None]


def test_a_runner_of_ones_own_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "mine"
    monkeypatch.setenv("BBLAB_RUNNER_AARCH64", str(own))
    with pytest.raises(BblabError, match="mine is no runner"):
        runner.built("aarch64")
    own.write_bytes(elf())
    assert runner.built("aarch64") == own
    assert runner.engine(own) == f"own {hashlib.sha256(elf()).hexdigest()[:8]}"
    assert runtimes.find("ncnn-static").version().startswith("own ")


@pytest.mark.parametrize("name", ["../../evil", "src/../../evil"])
def test_an_archive_that_reaches_outside_writes_nothing_there(kitchen: Kitchen, own_cache: Path, name: str) -> None:
    kitchen.sdist.write_bytes(tarball("1.0.20250101", {name: "x", "src/net.cpp": ""}))
    if name.startswith("src"):
        with pytest.raises(RunError, match="would lie outside"):
            kitchen.build()
    else:
        kitchen.build()  # not of the kind that is unpacked at all
    assert not list(own_cache.rglob("evil")) and not list(own_cache.rglob("*.partial"))


@pytest.mark.parametrize("content", [b"", b"no archive", tarball("1.0.20250101")[:150]])
def test_a_broken_archive_is_one_line(kitchen: Kitchen, own_cache: Path, content: bytes) -> None:
    kitchen.sdist.write_bytes(content)
    with pytest.raises(RunError, match=r"ncnn-1.0.20250101.tar.gz (cannot be unpacked|holds no source)"):
        kitchen.build()
    assert not list(own_cache.rglob("*.partial"))


def test_the_installed_ncnns_version_is_built_where_it_has_a_source(
    index: Index, kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0.1", "1.0.2", "1.0.3"):
        index.add(f"ncnn-{version}.tar.gz", tarball(version))
    monkeypatch.setattr(making, "_installed_ncnn", lambda: "1.0.2")
    assert runner.engine(runner.build("aarch64")) == "1.0.2"
    asked = len(index.asked)
    kitchen.compiler = "g++ 13"
    runner.build("aarch64")  # the archive is here: nobody is asked
    assert len(index.asked) == asked
    assert runner.engine(runner.build("aarch64", version="1.0.1")) == "1.0.1"
    monkeypatch.setattr(making, "_installed_ncnn", lambda: "1.0.99")
    assert runner.engine(runner.build("aarch64")) == "1.0.3"


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "_command", lambda name: "")
    monkeypatch.setattr(making, "host_arch", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    for arch, package in (("aarch64", "g++-aarch64-linux-gnu"), ("x86_64", "g++")):
        with pytest.raises(BblabError) as refused:
            runner.toolchain(arch)
        assert str(refused.value) == (
            f"the runner for {arch} needs {package}, cmake, ninja-build, which is not installed\n"
            f"  apt install {package} cmake ninja-build (cmake and ninja also: {how_to_install('cmake', 'ninja')})"
        )
        assert refused.value.exit_code == 1
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BblabError, match="is built on Linux, this is darwin"):
        runner.toolchain("aarch64")


def test_without_ninja_make_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(making, "_command", lambda name: "" if name.startswith("ninja") else f"/bin/{name}")
    monkeypatch.setattr(making, "host_arch", lambda: "x86_64")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, "g++ 12\nmore", ""))
    tools = runner.toolchain("aarch64")
    assert tools.compiler == "g++ 12"
    command = making.configure_command(tmp_path / "src", tmp_path, "1.0.20250101", tools)
    assert command[:3] == ["/bin/cmake", "-G", "Unix Makefiles"]
    assert {"-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"} <= set(command)
    assert "-DCMAKE_SYSTEM_NAME=Linux" not in making.configure_command(
        tmp_path, tmp_path, "1.0.1", runner.toolchain("x86_64")
    )


# What it says ---------------------------------------------------------------------------------------------------

# The x86-64 runner, a net of two convolutions, one round with one warm call, the probe layers; 2026-11.
RECORDED = """\
BBLAB {"kind": "hello", "wire": 2, "protocol": 2, "runtime": "ncnn-static", "runtime_version": "1.0.20261020", "precision": "float32", "speedometer": "xorshift64-2000000", "arch": "x86_64", "cpus": [0, 1]}
BBLAB {"kind": "ready", "models": 1, "cpu": 1, "slice_s": 0.100000000}
BBLAB {"kind": "speed", "round": 0, "wall_s": 0.007825490, "cpu_s": 0.002844380}
BBLAB {"kind": "call", "round": 0, "model": 0, "state": "cold", "wall_s": 0.000159930, "cpu_s": 0.000065399, "preempted": 1}
BBLAB {"kind": "call", "round": 0, "model": 0, "state": "warm", "wall_s": 0.000011868, "cpu_s": 0.000011227, "preempted": 0}
BBLAB {"kind": "call", "round": 0, "model": 0, "state": "profiled", "wall_s": 0.000011097, "cpu_s": 0.000010516, "preempted": 0}
BBLAB {"kind": "layer", "round": 0, "model": 0, "call": 0, "place": 0, "name": "conv_0", "type": "Convolution", "output": [8, 16, 16], "wall_s": 0.000002694}
BBLAB {"kind": "layer", "round": 0, "model": 0, "call": 0, "place": 1, "name": "convdw_1", "type": "ConvolutionDepthWise", "output": [8, 16, 16], "wall_s": 0.000001583}
BBLAB {"kind": "speed", "round": 1, "wall_s": 0.002982549, "cpu_s": 0.002879152}
BBLAB {"kind": "end", "rounds": 1, "peak_memory_bytes": 558174208}
"""  # noqa: E501  as it came


def test_what_the_runner_says_is_understood() -> None:
    heard = [wire.parse(line) for line in RECORDED.splitlines()]
    assert heard[0] == wire.Hello("ncnn-static", "1.0.20261020", "float32", "xorshift64-2000000")
    assert [m.state for m in heard if isinstance(m, wire.Call)] == ["cold", "warm", "profiled"]
    layers = [m for m in heard if isinstance(m, wire.Layer)]
    assert [(m.place, m.name, m.type) for m in layers] == [
        (0, "conv_0", "Convolution"),
        (1, "convdw_1", "ConvolutionDepthWise"),
    ]
    assert heard[-1] == wire.End(1)


def test_a_host_hears_the_layers_and_garbage_breaks_it() -> None:
    net = wire.ModelFile("a", "/a", (1, 3, 8, 8))
    request = wire.Request("ncnn-static", 1, 0, 0, (net,), ((0,),), probe="layers", warm_calls=1)
    speak = f"import sys; sys.stdin.readline(); print({RECORDED!r}, end='')"
    heard = list(Host(command=(sys.executable, "-c", speak)).run(request, silence_s=20))
    assert [m.kind for m in heard] == [
        "hello", "ready", "speed", "call", "call", "call", "layer", "layer", "speed", "end"
    ]  # fmt: skip
    cut = RECORDED.replace('"type": "ConvolutionDepthWise", ', "")
    with pytest.raises(wire.WireError, match="'layer' without 'type'"):
        list(Host(command=(sys.executable, "-c", f"print({cut!r})")).run(request, silence_s=20))


def test_a_worker_says_which_probes_it_has() -> None:
    request = wire.Request("ort", 1, 0, 0, (), (), probe="smell")
    with pytest.raises(RuntimeError, match="does not know the probe 'smell'; it has rounds, layers, stages"):
        worker.main(io.StringIO(wire.encode_request(request)), io.StringIO())


def test_the_worker_in_python_does_not_pretend_to_time_layers() -> None:
    request = wire.Request("torch", 1, 0, 0, (wire.ModelFile("a", "/a", (1, 3, 8, 8)),), ((0,),), probe="layers")
    with pytest.raises(BblabError, match="torch does not tell the times of its operators"):
        worker.refuse(request)


def test_arguments_are_those_the_program_knows() -> None:
    assert runner.arguments() == ()
    given = runner.arguments(precision="float16", cpus=(4, 5), limit_s=30)
    assert given == ("--cpus", "4,5", "--precision", "float16", "--limit", "30")
    known = set(re.findall(r'option == "(--[a-z]+)"', (ROOM / "runner.cpp").read_text("utf-8")))
    assert set(given[::2]) <= known


# As a runtime, as a command -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ncnn-static", "ncnn-static-fp16"])
def test_without_a_runner_the_runtime_names_the_command(name: str) -> None:
    with pytest.raises(BblabError, match="needs bblab's runner, which is not built yet") as refused:
        runtimes.find(name).version()
    assert refused.value.hint == "bblab runner build"
    with pytest.raises(BblabError, match="needs bblab's runner for aarch64") as refused:
        runtimes.program(name, "aarch64")
    assert refused.value.hint == "bblab runner build aarch64"


def test_the_host_runs_the_program_that_is_the_runtime(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kitchen.build()
    assert runtimes.program("ncnn-static", "aarch64") == (str(path),)
    assert runtimes.program("ncnn-static-fp16", "aarch64") == (str(path), "--precision", "float16")
    assert runtimes.program("ort", "aarch64") == () == runtimes.program("no such runtime")
    monkeypatch.setattr(making, "host_arch", lambda: "aarch64")
    monkeypatch.setattr(runner, "host_arch", lambda: "aarch64")
    speak = f"#!{sys.executable}\nimport sys; sys.stdin.readline(); print({RECORDED!r}, end='')"
    path.write_text(speak)
    monkeypatch.setattr(runner, "built", lambda arch: path)
    request = wire.Request("ncnn-static", 1, 0, 0, (), ((),))
    assert list(Host().run(request, silence_s=20))[-1] == wire.End(1)


def test_listing_says_what_there_is_and_what_to_do(bblab: Callable[..., Any], kitchen: Kitchen) -> None:
    ran = bblab("runner", "list")
    assert ran.code == 0 and "no runner has been built here · next: bblab runner build aarch64" in ran.out
    path = kitchen.build()
    ran = bblab("runner", "list")
    assert re.search(r"aarch64 +1\.0\.20250101 +\S+ MB +g\+\+ 12", ran.out)
    ran = bblab("runner", "list", "--json", "-")
    (row,) = json.loads(ran.out)
    assert (row["arch"], row["path"], row["is_current"]) == ("aarch64", str(path), True)


def test_the_command_builds_and_says_where(bblab: Callable[..., Any], kitchen: Kitchen, monkeypatch: Any) -> None:
    monkeypatch.setattr(runner, "toolchain", kitchen.tools)
    ran = bblab("runner", "build", "aarch64", "--sdist", kitchen.sdist)
    assert ran.code == 0, ran.err
    assert "aarch64" in ran.out and "kept in" in ran.out and "next: bblab devices" in ran.out
    ran = bblab("runner", "build", "--arch", "aarch64", "--sdist", kitchen.sdist, "--json", "-")
    assert [row["ncnn"] for row in json.loads(ran.out)] == ["1.0.20250101"]


def test_wrong_requests_are_refused_before_anything_is_done(bblab: Callable[..., Any], tmp_path: Path) -> None:
    ran = bblab("runner", "build", "aarch46")
    assert ran.code == 2 and "did you mean 'aarch64'?" in ran.err
    ran = bblab("runner", "build", "--ncnn", "1", "--sdist", tmp_path / "x")
    assert ran.code == 2 and "both name a version" in ran.err
    ran = bblab("runner", "build", "--jobs", "0")
    assert ran.code == 2


def test_stopped_by_hand_says_how_to_go_on(bblab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "toolchain", lambda arch: None)
    monkeypatch.setattr(runner, "build", stop)
    ran = bblab("runner", "build", "aarch64")
    assert ran.code == 1 and "it goes on where it stopped" in ran.err
