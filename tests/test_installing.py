"""The command for a missing package fits how bblab was installed, and never names a stranger's package."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bblab import installing
from bblab.installing import how_to_install

REPO = Path(__file__).resolve().parent.parent
REQUIRES = [
    "numpy>=1.26",
    "timm>=1.0.15; extra == 'all'",
    "torchvision>=0.21; extra == 'all'",
    "matplotlib>=3.9; extra == 'all'",
    'timm>=1.0.15; extra == "peers"',
    "torchvision>=0.21 ; extra=='peers'",
    "timm-like>=3; extra == 'other'",
    "matplotlib>=3.9; extra == 'reports'",
]


class Installed:
    """A stand-in of an installed distribution: metadata, where it came from, the environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, prefix: Path) -> None:
        self.origin: dict[str, Any] = {"url": "file:///wheels/backbone_lab-1-py3-none-any.whl", "archive_info": {}}
        self.prefix, self.has_pip, self.torch = prefix, True, "2.13.0"
        (prefix / "bin").mkdir(parents=True)
        self.python = prefix / "bin" / "python"
        monkeypatch.setattr(sys, "prefix", str(prefix))
        monkeypatch.setattr(sys, "executable", str(self.python))
        monkeypatch.delenv("VIRTUAL_ENV", raising=False)
        monkeypatch.setattr(installing.importlib.metadata, "requires", lambda name: REQUIRES)
        monkeypatch.setattr(installing.importlib.metadata, "version", lambda name: self.torch)
        monkeypatch.setattr(installing.importlib.metadata, "distribution", lambda name: self)
        monkeypatch.setattr(installing.importlib.util, "find_spec", lambda name: self.has_pip or None)
        monkeypatch.setattr(installing.shutil, "which", lambda name: f"/usr/bin/{name}")

    def read_text(self, name: str) -> str | None:
        return json.dumps(self.origin) if name == "direct_url.json" else None


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Installed:
    return Installed(monkeypatch, tmp_path / "env")


def test_a_wheel_in_an_environment_takes_the_packages_of_the_extra_by_its_own_pip(there: Installed) -> None:
    assert how_to_install("timm") == f"{there.python} -m pip install 'timm>=1.0.15' 'torchvision>=0.21'"
    assert how_to_install("matplotlib") == f"{there.python} -m pip install 'matplotlib>=3.9'"


def test_a_package_of_no_extra_stands_as_it_is(there: Installed) -> None:
    assert how_to_install("cmake", "ninja") == f"{there.python} -m pip install cmake ninja"


def test_an_active_environments_pip_needs_no_path(there: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", str(there.prefix))
    monkeypatch.setattr(installing.shutil, "which", lambda name: str(there.prefix / "bin" / name))
    assert how_to_install("matplotlib") == "pip install 'matplotlib>=3.9'"


def test_without_pip_there_uv_installs_into_that_environment(there: Installed) -> None:
    there.has_pip = False
    assert how_to_install("matplotlib") == f"uv pip install 'matplotlib>=3.9' --python {there.python}"


def test_without_a_uv_command_it_is_pythons_module(there: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    there.has_pip = False
    monkeypatch.setattr(installing.shutil, "which", lambda name: None)
    assert how_to_install("x") == f"python3 -m uv pip install x --python {there.python}"


def test_a_checkout_in_its_own_environment_is_synced_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = Installed(monkeypatch, tmp_path / "check out" / ".venv")
    there.origin = {"url": f"file://{tmp_path}/check%20out", "dir_info": {"editable": True}}
    monkeypatch.chdir(tmp_path / "check out")
    assert how_to_install("timm") == "uv sync --extra peers"
    monkeypatch.chdir(tmp_path)
    assert how_to_install("timm") == f"uv sync --project '{tmp_path}/check out' --extra peers"


def test_a_checkout_in_another_environment_is_a_wheel_like_any_other(there: Installed, tmp_path: Path) -> None:
    there.origin = {"url": f"file://{tmp_path}/checkout", "dir_info": {"editable": True}}
    assert how_to_install("matplotlib") == f"{there.python} -m pip install 'matplotlib>=3.9'"


def receipt(there: Installed, *requirements: str) -> None:
    text = f"[tool]\nrequirements = [{', '.join(requirements)}]\n"
    (there.prefix / "uv-receipt.toml").write_text(text, encoding="utf-8")


OWN = '{ name = "backbone-lab", path = "/my wheels/backbone_lab-1-py3-none-any.whl" }'


def test_a_tool_is_installed_again_with_the_packages_from_where_it_came(there: Installed) -> None:
    receipt(there, OWN)
    assert how_to_install("matplotlib") == (
        "uv tool install --with 'matplotlib>=3.9' '/my wheels/backbone_lab-1-py3-none-any.whl'"
    )


def test_a_tool_keeps_what_it_was_given_before(there: Installed) -> None:
    own = OWN.replace("path", 'extras = ["reports"], path').replace("/my wheels", "/w")
    receipt(there, own, '{ name = "asyncssh", specifier = ">=2.18,<3" }', '{ name = "mine", directory = "/mine" }')
    assert shlex.split(how_to_install("timm")) == [
        "uv", "tool", "install", "--with", "asyncssh>=2.18,<3", "--with", "/mine", "--with", "timm>=1.0.15",
        "--with", "torchvision>=0.21", "/w/backbone_lab-1-py3-none-any.whl[reports]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("torch", "option"),
    [("2.13.0", ""), ("2.13.0+cpu", " --torch-backend cpu"), ("2.13.0+cu128", " --torch-backend cu128"),
     ("2.13.0a0+git1234", "")],
)  # fmt: skip
def test_a_tools_torch_stays_the_build_that_it_is(there: Installed, torch: str, option: str) -> None:
    receipt(there, OWN.replace("my wheels", "w"))
    there.torch = torch
    assert how_to_install("timm").startswith(f"uv tool install{option} --with 'timm>=1.0.15'")


def test_a_pipx_tool_gets_them_injected(there: Installed) -> None:
    (there.prefix / "pipx_metadata.json").write_text("{}")
    assert how_to_install("timm") == "pipx inject env 'timm>=1.0.15' 'torchvision>=0.21'"


def test_where_nothing_is_known_of_the_extra_the_package_itself_is_named(
    there: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    for function in ("requires", "distribution", "version"):
        monkeypatch.setattr(installing.importlib.metadata, function, absent)
    assert how_to_install("timm") == f"{there.python} -m pip install timm"


def test_every_extra_is_known_by_each_of_its_packages() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == installing.DISTRIBUTION
    if importlib.metadata.version(installing.DISTRIBUTION) != project["version"]:
        pytest.skip("another version is installed")
    for extra, asked in project["optional-dependencies"].items():
        for requirement in asked if extra != "all" else ():
            name = re.match(r"[\w.-]+", requirement)
            assert name and requirement in installing._extra(name[0])[1], extra


def test_nothing_tells_a_user_to_install_us_from_an_index() -> None:
    """Neither the name that is a stranger's nor the one that is free until somebody takes it."""
    files = [p for room in ("bblab", "blocks", "reports", "pretrain", "arch_specs", "docs", "tests", "benchmarks")
             for p in (REPO / room).rglob("*") if p.suffix in (".py", ".md", ".yaml", ".toml", ".cpp")]  # fmt: skip
    files = [p for p in files if p != Path(__file__) and p.name != "installing.py"] + [
        REPO / "README.md",
        REPO / "CONTRIBUTING.md",
    ]
    wrong = re.compile(r"bblab\[|backbone-lab\[|pip3? install[^\n]*\b(bblab|backbone-lab)\b", re.IGNORECASE)
    found = [f"{p.relative_to(REPO)}: {m[0]}" for p in files for m in wrong.finditer(p.read_text("utf-8"))]
    assert [line for line in found if "uv run bblab" not in line] == []  # README's first command
