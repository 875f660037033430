"""What is shipped is what is here: the rooms travel with the package, and nothing else does."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bblab.rooms import ROOMS

REPO = Path(__file__).resolve().parent.parent


def project() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))


def python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    """What the code prints, run in a folder, with one more place to import from."""
    env = {**os.environ, "PYTHONPATH": str(path) if path else ""}
    run = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, text=True, capture_output=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def content() -> set[str]:
    """The files of the rooms, by their path in the checkout."""
    files = {path for name in ROOMS for path in (REPO / name).rglob("*") if path.is_file()}
    return {path.relative_to(REPO).as_posix() for path in files if "__pycache__" not in path.parts}


def test_every_room_is_shipped() -> None:
    targets = project()["tool"]["hatch"]["build"]["targets"]
    assert targets["wheel"]["force-include"] == {name: f"bblab/{name}" for name in ROOMS}
    assert {"bblab", *ROOMS, "README.md", "LICENSE"} <= set(targets["sdist"]["include"])


def test_the_installed_version_is_the_declared_one() -> None:
    assert importlib.metadata.version(project()["project"]["name"]) == project()["project"]["version"]


@pytest.mark.parametrize("module", ["bblab", "bblab.spec", "bblab.store", "bblab.rooms", "bblab.blocks", "bblab.ops"])
def test_listing_and_checking_need_no_torch(module: str, tmp_path: Path) -> None:
    heavy = ("torch", "onnx", "onnxruntime", "matplotlib", "pandas", "timm")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    assert python(code, cwd=tmp_path) == "[]"


def test_a_tracker_repo_with_blocks_of_its_own_breaks_nothing(tmp_path: Path) -> None:
    for name in ROOMS:
        (tmp_path / name).mkdir()
        for file in ("__init__.py", "conv.py"):
            (tmp_path / name / file).write_text("raise ImportError('the tracker repo was imported')")
    (tmp_path / "pyproject.toml").touch()
    code = "import importlib.util as u; print(u.find_spec('bblab.blocks.conv').origin)"
    assert Path(python(code, cwd=tmp_path)) == REPO / "blocks" / "conv.py"


# ---- built archives; they need a package index


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    uv = os.environ.get("UV") or shutil.which("uv")  # `uv run` names itself; it builds with the pinned versions
    if not uv:
        pytest.skip("needs uv, which builds the archives")
    out = tmp_path_factory.mktemp("dist")
    command = [uv, "build", "--out-dir", str(out), str(REPO)]
    run = subprocess.run(command, text=True, capture_output=True, timeout=500)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_wheel_holds_the_engine_and_the_rooms_and_nothing_else(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    engine = {path.relative_to(REPO).as_posix() for path in (REPO / "bblab").rglob("*") if path.is_file()}
    engine = {name for name in engine if "__pycache__" not in name}
    assert names == engine | {f"bblab/{name}" for name in content()}


@pytest.mark.slow
def test_the_sdist_holds_the_rooms_and_the_tests_and_no_leftovers(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert content() <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/test_packaging.py"} <= names
    assert [n for n in names if "__pycache__" in n or n.endswith((".sqlite", ".pyc")) or n.startswith(".venv")] == []


@pytest.mark.slow
def test_the_rooms_of_an_unpacked_wheel_are_its_own(archives: tuple[Path, Path], tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(site)
    elsewhere.mkdir()
    for name in ROOMS:  # beside the package and in the current folder: not ours
        (site / name).mkdir()
        (elsewhere / name).mkdir()
    code = "from bblab.rooms import ROOMS, room; print(*(room(name) for name in ROOMS), sep='\\n')"
    assert python(code, cwd=elsewhere, path=site).splitlines() == [str(site / "bblab" / name) for name in ROOMS]
    # A block of the wheel loads, by the same name as in a checkout.
    code = "from bblab.blocks import conv; print(conv.__file__)"
    assert python(code, cwd=elsewhere, path=site) == str(site / "bblab" / "blocks" / "conv.py")
