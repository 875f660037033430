"""Where content lives, and which room may import which."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bblab import rooms
from bblab.rooms import ROOMS, Rooms, cache_dir, default_lab_dir, room

REPO = Path(__file__).resolve().parent.parent
CONTRACTS = REPO / ".importlinter"


# ---- where content lives


def test_in_a_checkout_the_rooms_are_top_level_folders() -> None:
    assert {name: room(name) for name in ROOMS} == {name: REPO / name for name in ROOMS}


def test_an_installed_package_does_not_take_its_neighbours_for_rooms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ROOMS:  # another project's folders of the same names
        (tmp_path / name).mkdir()
    monkeypatch.setattr(rooms, "_PACKAGE", tmp_path / "bblab")
    assert room("blocks") == tmp_path / "bblab" / "blocks"
    (tmp_path / "pyproject.toml").touch()
    assert room("blocks") == tmp_path / "blocks"  # with all rooms and this file it is our checkout
    (tmp_path / "pretrain").rmdir()
    assert room("blocks") == tmp_path / "bblab" / "blocks"


def test_a_lab_adds_its_files_and_wins_over_a_built_in_one(tmp_path: Path) -> None:
    built_in = Rooms(tmp_path).files("blocks", ".py")
    assert built_in and all(path.parent == room("blocks") for path in built_in.values())
    taken = min(built_in)
    own = tmp_path / "blocks"
    own.mkdir()
    for name in (f"{taken}.py", "mine.py", "_draft.py", ".hidden.py", "notes.txt"):
        (own / name).touch()
    files = Rooms(tmp_path).files("blocks", ".py")
    assert {stem for stem, path in files.items() if path.parent == own} == {taken, "mine"}
    assert files.keys() == built_in.keys() | {"mine"}
    assert [origin for origin, _ in Rooms(tmp_path).folders("blocks")] == ["built-in", "lab"]
    assert [origin for origin, _ in Rooms(tmp_path).folders("reports")] == ["built-in"]


def test_the_current_folder_is_never_the_lab_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("BBLAB_LAB", "BBLAB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    for folder in (default_lab_dir(), cache_dir()):
        assert folder.is_absolute() and not folder.is_relative_to(tmp_path)
    monkeypatch.setenv("BBLAB_LAB", str(tmp_path / "lab"))
    monkeypatch.setenv("BBLAB_CACHE", str(tmp_path / "cache"))
    assert (default_lab_dir(), cache_dir()) == (tmp_path / "lab", tmp_path / "cache")


def test_rooms_are_no_packages() -> None:
    """Else `import blocks` would find ours or the user's, by luck."""
    assert [str(path) for name in ROOMS for path in (REPO / name).glob("**/__init__.py")] == []


def test_no_content_file_lands_on_an_engine_file_in_the_wheel() -> None:
    """The wheel lays `reports/x.py` into `bblab/reports/`, where the engine's own files are."""
    engine = {path.relative_to(REPO / "bblab") for path in (REPO / "bblab").rglob("*") if path.is_file()}
    content = {path.relative_to(REPO) for name in ROOMS for path in (REPO / name).rglob("*") if path.is_file()}
    assert {path for path in engine & content if "__pycache__" not in path.parts} == set()


# ---- block files


def foreign_imports(source: str) -> set[str]:
    """The modules that a block file imports beyond torch, `bblab.blockkit` and the standard library."""
    found, calls = set[str](), set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {f"bblab.{alias.name}" for alias in node.names} if module == "bblab" else {module}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            calls.add(ast.unparse(node))
    allowed = {"torch", *sys.stdlib_module_names}
    return calls | {name for name in found if name != "bblab.blockkit" and name.partition(".")[0] not in allowed}


@pytest.mark.parametrize(
    ("source", "foreign"),
    [
        ("import torch\nfrom torch.nn import functional as F\nimport math\nfrom __future__ import annotations", set()),
        ("from bblab.blockkit import block\nfrom bblab import blockkit\nimport bblab.blockkit", set()),
        ("from bblab.spec import Row", {"bblab.spec"}),
        ("from bblab import cli, blockkit", {"bblab.cli"}),
        ("import bblab", {"bblab"}),
        ("import timm", {"timm"}),
        ("import torchvision.models", {"torchvision.models"}),
        ("from .conv import Conv", {".conv"}),
        ("from . import conv", {"."}),
        ("def f():\n    import numpy as np", {"numpy"}),
        ("if TYPE_CHECKING:\n    from bblab.build import Backbone", {"bblab.build"}),
        ("importlib.import_module('timm')", {"importlib.import_module('timm')"}),
    ],
)
def test_a_foreign_import_in_a_block_file_is_seen(source: str, foreign: set[str]) -> None:
    assert foreign_imports(source) == foreign


def test_block_files_import_only_torch_and_the_blockkit() -> None:
    files = sorted((REPO / "blocks").glob("*.py"))
    assert files
    assert {path.name: foreign_imports(path.read_text("utf-8")) for path in files} == {
        path.name: set() for path in files
    }


# ---- direction


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package laid out as in the wheel: every room inside it."""
    pytest.importorskip("importlinter")
    if not CONTRACTS.is_file():
        pytest.skip("the contracts are in a checkout only")
    site = tmp_path_factory.mktemp("site")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPO / "bblab", site / "bblab", ignore=ignore)
    for name in ROOMS:
        shutil.copytree(REPO / name, site / "bblab" / name, ignore=ignore, dirs_exist_ok=True)
    return site


@pytest.fixture
def planted(installed: Path) -> Iterator[Path]:
    """The same, to be put right again after a test has spoilt it."""
    spoilt = {path: path.read_bytes() for path in installed.rglob("*.py")}
    yield installed
    for path, content in spoilt.items():
        path.write_bytes(content)


def lint_imports(site: Path) -> tuple[int, str]:
    lint = "from importlinter.cli import lint_imports_command as run; run()"
    run = subprocess.run(
        [sys.executable, "-c", lint, "--config", str(CONTRACTS), "--no-cache", "--no-logo"],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"},
        text=True,
        capture_output=True,
        timeout=120,
    )
    return run.returncode, run.stdout + run.stderr


def test_every_import_goes_downwards(installed: Path) -> None:
    code, output = lint_imports(installed)
    assert code == 0, output


@pytest.mark.parametrize(
    ("file", "line", "seen"),
    [
        ("rooms.py", "import bblab.spec", "bblab.rooms -> bblab.spec"),
        ("spec.py", "from bblab import store", "bblab.spec -> bblab.store"),
        ("latency/session.py", "def f():\n    from bblab.store import Store", "bblab.latency.session -> bblab.store"),
        ("store.py", "from bblab.spec import ArchSpec", "bblab.store -> bblab.spec"),
        ("blocks/conv.py", "from bblab.spec import Row", "bblab.blocks.conv -> bblab.spec"),
        ("blocks/conv.py", "from bblab.blocks import pool", "bblab.blocks.conv -> bblab.blocks.pool"),
        ("blocks/conv.py", "import bblab.store", "bblab.blocks.conv -> bblab.store"),
        ("attic.py", "x = 1", "bblab.attic"),  # a room without a place in the order
    ],
)
def test_a_planted_import_is_seen(planted: Path, file: str, line: str, seen: str) -> None:
    path = planted / "bblab" / file
    before = path.read_text("utf-8") if path.exists() else ""
    path.write_text(f"{before}\n\n{line}\n", "utf-8")
    try:
        code, output = lint_imports(planted)
    finally:
        if not before:
            path.unlink()
    assert code == 1 and seen in output, output
