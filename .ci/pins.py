"""The versions that a checkout installs: written in pyproject.toml, renewed and checked here.

    python3 .ci/pins.py renew                    the newest versions that the held ones allow; .ci/renew tests them
    python3 .ci/pins.py check                    are the pins all that uv would install, on every system?
    python3 .ci/pins.py installed PYTHON [FILE]  has this environment nothing but pinned versions?
    python3 .ci/pins.py constraints              the pins, one a line, for `uv pip install -c`
    python3 .ci/pins.py uv                       the version of uv that README.md installs

uv.lock names the package index that it was made with, so it is not committed. The same versions, names and nothing
else, are in `[tool.uv]`: `constraint-dependencies` for what is installed and `build-constraint-dependencies` for what
builds the wheel and the packages that have none. uv obeys both in `uv run` and `uv sync`; the wheel knows nothing of
them. Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
BY_HAND = "    # Written by .ci/renew, here and below: change the lines above, or nothing."
TEACHES_UV = ("README.md", "CONTRIBUTING.md")  # files with a line `pip install -q uv==VERSION`
# What builds packages that have no wheel for a system that we know of. A package that is not named here is a complaint.
FROM_SOURCE = {
    "fvcore": ("setuptools",),
    "iopath": ("setuptools",),
    "adbutils": ("setuptools", "pbr"),  # has wheels for Linux on x86-64 and for Windows only
    "regex": (),  # asked for on Windows only, where it has a wheel
}
EDITABLE = ("editables",)  # hatchling asks for it when it builds an editable install
SYSTEMS = {
    "Linux, x86-64": ("manylinux", "x86_64"),
    "Linux, aarch64": ("manylinux", "aarch64"),
    "macOS, arm64": ("macosx", "arm64|universal2"),
    "Windows, x86-64": ("win_amd64", ""),
}
MINORS = ("3.11", "3.12")
FORK = REPO / ".ci" / "fork.txt"
_PIN = re.compile(r"([\w.-]+)==([^\s;*]+)(?:\s*;\s*python_full_version (<|>=) '(3\.\d+)')?\Z")
_LIMIT = re.compile(r"python_full_version (<|>=) '(3\.\d+)'")


@dataclass(frozen=True, order=True, slots=True)
class Pin:
    """A package's one version. `below` and `since`: the minor versions of Python that it is limited to, or ""."""

    name: str
    version: str
    below: str = ""
    since: str = ""

    def __str__(self) -> str:
        limit = f" ; python_full_version < '{self.below}'" if self.below else ""
        limit = f" ; python_full_version >= '{self.since}'" if self.since else limit
        return f"{self.name}=={self.version}{limit}"

    def holds_for(self, minor: str) -> bool:
        """Whether it is meant for this minor version of Python, such as "3.11"."""
        number = _minor(minor)
        return (not self.below or number < _minor(self.below)) and (not self.since or number >= _minor(self.since))


def _minor(text: str) -> int:
    return int(text.partition(".")[2])


def canonical(name: str) -> str:
    """The one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(lines: Iterable[str]) -> list[Pin]:
    """The pins among these requirements; a range (`typer==0.28.*`) is not one."""
    pins = []
    for line in lines:
        if found := _PIN.match(line.strip()):
            name, version, sign, minor = found.groups()
            pins.append(Pin(canonical(name), version, minor if sign == "<" else "", minor if sign == ">=" else ""))
    return sorted(set(pins))


def declared(project: Mapping[str, Any]) -> tuple[list[Pin], list[Pin]]:
    """The pins of a parsed pyproject.toml: of what is installed, of what builds."""
    uv = project["tool"]["uv"]
    return read(uv["constraint-dependencies"]), read(uv["build-constraint-dependencies"])


def of_lock(lock: Mapping[str, Any], project: str) -> list[Pin]:
    """Every package of a parsed uv.lock but the project's own, as pins.

    Raises ValueError where one has two versions that Python's version does not tell apart.
    """
    pins = []
    for package in lock["package"]:
        name, version = canonical(package["name"]), package.get("version", "")
        if name == canonical(project):
            continue
        markers = package.get("resolution-markers", ())
        if not markers:
            pins.append(Pin(name, version))
            continue
        limits = {m.groups() for m in map(_LIMIT.search, markers) if m}
        others = [p for p in lock["package"] if canonical(p["name"]) == name and p is not package]
        if len(limits) != 1 or not all(map(_LIMIT.search, markers)):
            versions = ", ".join(sorted(p["version"] for p in [package, *others]))
            raise ValueError(f"{name} has the versions {versions} by system, which pins by Python's version cannot say")
        ((sign, minor),) = limits
        pins.append(Pin(name, version, minor if sign == "<" else "", minor if sign == ">=" else ""))
    return sorted(pins)


def differences(pins: Iterable[Pin], needed: Iterable[Pin], what: str) -> list[str]:
    """What is not pinned, pinned as another version, or pinned and not needed; one line each."""
    pins, needed = set(pins), set(needed)
    names = {p.name for p in pins}
    lines = []
    for pin in sorted(needed - pins):
        there = ", ".join(str(p) for p in sorted(pins) if p.name == pin.name)
        lines.append(f"{what} {pin}, pinned is {there}" if pin.name in names else f"{what} {pin}, which is not pinned")
    lines += [f"pinned but not needed: {p}" for p in sorted(pins - needed) if p.name not in {n.name for n in needed}]
    return lines


def unpinned(installed: Mapping[str, str], pins: Iterable[Pin], minor: str) -> list[str]:
    """What in an environment (name: version) of that Python is not pinned, or is another version; one line each."""
    versions = {pin.name: pin.version for pin in pins if pin.holds_for(minor)}
    lines = []
    for name, version in sorted(installed.items()):
        pinned = versions.get(canonical(name))
        if pinned is None:
            lines.append(f"{name} {version} is installed, which is not pinned")
        elif pinned != version:
            lines.append(f"{name} {version} is installed, pinned is {pinned}")
    return lines


def from_source(lock: Mapping[str, Any]) -> dict[str, list[str]]:
    """Packages of a parsed uv.lock that some system builds itself, with those systems.

    What has wheels and no source at all is made for the systems that have wheels (CUDA's libraries).
    """
    found: dict[str, list[str]] = {}
    for package in lock["package"]:
        if "registry" not in package["source"] or "sdist" not in package:
            continue
        wheels = [wheel["url"].rsplit("/", 1)[1] for wheel in package.get("wheels", ())]
        if any(name.endswith("-any.whl") for name in wheels):
            continue
        fits = [n for n in wheels if re.search(r"-(cp311|cp312|cp3\d+-abi3|py3)-", n)]
        without = [
            system
            for system, (kind, machine) in SYSTEMS.items()
            if not any(kind in name and re.search(machine, name) for name in fits)
        ]
        if without:
            found[canonical(package["name"])] = without
    return found


def rewritten(text: str, pins: Iterable[Pin], build: Iterable[Pin]) -> str:
    """pyproject.toml with these pins below the lines that are kept by hand."""
    for key, listed in (("constraint-dependencies", pins), ("build-constraint-dependencies", build)):
        before, opening, after = text.partition(f"\n{key} = [\n")
        inside, closing, rest = after.partition("\n]\n")
        assert opening and closing, f"pyproject.toml has no list {key}"
        held = [line for line in inside.partition(BY_HAND)[0].splitlines() if line.strip()]
        lines = [*held, BY_HAND, *(f'    "{pin}",' for pin in sorted(listed))]
        text = before + opening + "\n".join(lines) + closing + rest
    return text


def with_uv(text: str, version: str) -> str:
    """A page that teaches this version of uv."""
    return re.sub(r"(pip install -q uv==)[\w.]+", rf"\g<1>{version}", text)


def uv_version() -> str:
    """The version of uv that README.md installs."""
    found = set(re.findall(r"pip install -q uv==([\w.]+)", (REPO / "README.md").read_text("utf-8")))
    assert len(found) == 1, f"README.md must install one version of uv, and names {sorted(found) or 'none'}"
    return found.pop()


# ---- with uv and the package index


def _uv(*arguments: str, cwd: Path = REPO, text: str | None = None) -> str:
    command = [sys.executable, "-m", "uv", *arguments]
    run = subprocess.run(command, cwd=cwd, input=text, text=True, stdout=subprocess.PIPE, check=False)
    if run.returncode:
        raise SystemExit(f"pins.py: uv {' '.join(arguments)} ended with {run.returncode}")
    return run.stdout


def _compile(requirements: Iterable[str], pins: Iterable[Pin] = ()) -> list[Pin]:
    """What these requirements install, at their newest (within pins), for every system."""
    with tempfile.TemporaryDirectory(prefix="bblab-pins-") as folder:  # away from our own [tool.uv]
        limits = Path(folder) / "pins.txt"
        limits.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        options = (
            "--universal",
            "--python-version",
            MINORS[0],
            "--no-header",
            "--no-annotate",
            "-q",
            "-c",
            str(limits),
        )
        said = _uv("pip", "compile", *options, "-", cwd=Path(folder), text="\n".join(requirements))
    return [Pin(pin.name, pin.version) for pin in read(line.partition(" ;")[0] for line in said.splitlines())]


def _builders(project: Mapping[str, Any]) -> list[str]:
    return sorted({*project["build-system"]["requires"], *EDITABLE, *(b for bs in FROM_SOURCE.values() for b in bs)})


def _project() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))


def renew() -> list[str]:
    """Write the newest versions into pyproject.toml and the pages that name uv's. Returns what changed."""
    path = REPO / "pyproject.toml"
    old, project = path.read_text("utf-8"), _project()
    (uv,) = _compile(["uv"])
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", f"uv=={uv.version}"], check=True)
    for page in TEACHES_UV:
        text = (REPO / page).read_text("utf-8")
        (REPO / page).write_text(with_uv(text, uv.version), encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="bblab-pins-") as name:
        folder = Path(name)
        for needed in ("README.md", "LICENSE"):
            shutil.copy(REPO / needed, folder)
        (folder / "pyproject.toml").write_text(rewritten(old, (), ()), encoding="utf-8")
        _uv("lock", "-q", "--upgrade", cwd=folder)
        pins = of_lock(tomllib.loads((folder / "uv.lock").read_text("utf-8")), project["project"]["name"])
    build = _compile(_builders(project))
    path.write_text(rewritten(old, pins, build), encoding="utf-8")
    changed = []
    for was, now in zip(declared(project), (pins, build), strict=True):
        changed += [(pin.name, 0, f"old: {pin}") for pin in set(was) - set(now)]
        changed += [(pin.name, 1, f"new: {pin}") for pin in set(now) - set(was)]
    held = pins_held(rewritten(old, (), ()))
    newest = {pin.name: pin.version for pin in _compile(held)}
    ours = {pin.name: pin.version for pin in pins}
    behind = [name for name in held if ours[name] != newest[name]]
    lines = [f"held back by hand: {name} {ours[name]}, newest {newest[name]}" for name in behind]
    return [line for *_, line in sorted(changed)] + lines + _renew_fork(pins)


def pins_held(text: str) -> list[str]:
    """Names of what is held by hand in a pyproject.toml without its written pins."""
    lines = tomllib.loads(text)["tool"]["uv"]["constraint-dependencies"]
    return [canonical(found[0]) for line in lines if (found := re.match(r"[\w.-]+", line))]


def _renew_fork(pins: list[Pin]) -> list[str]:
    """Write mmpretrain's fork at its newest, with whatever it needs besides these pins. Returns what changed."""
    text = FORK.read_text("utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    names = [line.partition("==")[0] for line in text.splitlines() if line.startswith("onedl-")]
    ours = {pin.name for pin in pins}
    more = [pin for pin in _compile(names, pins) if pin.name not in ours]
    FORK.write_text("\n".join([*comments, *map(str, more)]) + "\n", encoding="utf-8")
    return [f"new: {pin}" for pin in more if str(pin) not in text.splitlines()]


def check() -> list[str]:
    """Complaints about the pins: what uv would install without one, on any system, and what is pinned for nothing."""
    project = _project()
    pins, build = declared(project)
    _uv("lock", "-q")
    lock = tomllib.loads((REPO / "uv.lock").read_text("utf-8"))
    lines = differences(pins, of_lock(lock, project["project"]["name"]), "a checkout installs")
    lines += differences(build, _compile(_builders(project), build), "a build takes")
    for name, systems in from_source(lock).items():
        if name not in FROM_SOURCE:
            lines.append(f"{name} is built on {', '.join(systems)}: say in .ci/pins.py (FROM_SOURCE) what builds it")
    return lines


def installed(python: str, more: str = "") -> list[str]:
    """Complaints about an environment: what it has that is pinned neither in pyproject.toml nor in the file `more`."""
    project = _project()
    pins = declared(project)[0]
    if more:
        pins = [*pins, *read(Path(more).read_text("utf-8").splitlines())]
    there = json.loads(_uv("pip", "list", "-q", "--format", "json", "--python", python))
    versions = {p["name"]: p["version"] for p in there if canonical(p["name"]) != canonical(project["project"]["name"])}
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    minor = subprocess.run([python, "-I", "-c", code], text=True, stdout=subprocess.PIPE, check=True).stdout.strip()
    return unpinned(versions, pins, minor) if versions else ["nothing is installed there"]


def main(arguments: list[str]) -> int:
    match arguments:
        case ["renew"]:
            changed = renew()
            print("\n".join(changed) or "nothing is newer")
            return 0
        case ["constraints"]:
            print(*declared(_project())[0], sep="\n")
            return 0
        case ["uv"]:
            print(uv_version())
            return 0
        case ["check"]:
            complaints, remedy = check(), "bash .ci/renew"
        case ["installed", python, *more] if len(more) < 2:
            complaints, remedy = installed(python, *more), "python3 -m uv sync, for .venv; else bash .ci/renew"
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    print("\n".join([*complaints, f"  mend it with: {remedy}"]) if complaints else "pinned, all of it")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
