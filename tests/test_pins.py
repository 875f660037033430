"""What a checkout installs is pinned by name and version alone, and the check of it sees every way to be wrong."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("bblab_ci_pins", REPO / ".ci" / "pins.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses looks its module up
    spec.loader.exec_module(module)
    return module


pins = _load()
Pin = pins.Pin
INDEX = {"registry": "somewhere"}


def project() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))


def wheel(*names: str) -> list[dict[str, str]]:
    return [{"url": f"x/{name}.whl"} for name in names]


LOCK = {
    "package": [
        {"name": "ours", "version": "1", "source": {"editable": "."}},
        {"name": "numpy", "version": "2.4", "source": INDEX, "resolution-markers": [
            "python_full_version < '3.12' and sys_platform == 'win32'",
            "python_full_version < '3.12' and sys_platform != 'win32'",
        ]},
        {"name": "numpy", "version": "2.5", "source": INDEX, "resolution-markers": ["python_full_version >= '3.12'"]},
        {"name": "Rich_Text", "version": "15", "source": INDEX},
    ]
}  # fmt: skip
PINS = [Pin("numpy", "2.4", below="3.12"), Pin("numpy", "2.5", since="3.12"), Pin("rich-text", "15")]


def test_a_lock_becomes_one_pin_a_version_with_the_pythons_that_it_is_for() -> None:
    assert pins.of_lock(LOCK, "ours") == PINS
    assert [str(p) for p in PINS] == [
        "numpy==2.4 ; python_full_version < '3.12'",
        "numpy==2.5 ; python_full_version >= '3.12'",
        "rich-text==15",
    ]


def test_what_is_written_is_read_again() -> None:
    assert pins.read(str(pin) for pin in PINS) == PINS
    assert pins.read(["typer==0.28.*", "torch>=2", "# a comment", ""]) == []


def test_versions_by_system_cannot_be_said_and_are_refused() -> None:
    lock = {"package": [
        {"name": "a", "version": "1", "source": INDEX, "resolution-markers": ["sys_platform == 'win32'"]},
        {"name": "a", "version": "2", "source": INDEX, "resolution-markers": ["sys_platform != 'win32'"]},
    ]}  # fmt: skip
    with pytest.raises(ValueError, match="a has the versions 1, 2 by system"):
        pins.of_lock(lock, "ours")


@pytest.mark.parametrize(
    ("pinned", "complaints"),
    [
        (PINS, []),
        (PINS[:2], ["it installs rich-text==15, which is not pinned"]),
        ([*PINS[:2], Pin("rich-text", "14")], ["it installs rich-text==15, pinned is rich-text==14"]),
        ([*PINS, Pin("old", "1")], ["pinned but not needed: old==1"]),
        (PINS[1:], ["it installs numpy==2.4 ; python_full_version < '3.12', pinned is numpy==2.5 ; "
                    "python_full_version >= '3.12'"]),
    ],
)  # fmt: skip
def test_every_difference_between_pins_and_lock_is_a_line(pinned: list[Any], complaints: list[str]) -> None:
    assert pins.differences(pinned, PINS, "it installs") == complaints


@pytest.mark.parametrize(
    ("installed", "minor", "complaints"),
    [
        ({"numpy": "2.4", "Rich.Text": "15"}, "3.11", []),
        ({"numpy": "2.5", "rich_text": "15"}, "3.12", []),
        ({"numpy": "2.5"}, "3.11", ["numpy 2.5 is installed, pinned is 2.4"]),
        ({"numpy": "2.4", "stray": "1"}, "3.11", ["stray 1 is installed, which is not pinned"]),
    ],
)
def test_an_environment_has_the_versions_for_its_python_and_nothing_else(
    installed: dict[str, str], minor: str, complaints: list[str]
) -> None:
    assert pins.unpinned(installed, PINS, minor) == complaints


def test_what_some_system_must_build_is_found_with_the_systems() -> None:
    sdist = {"url": "x/a.tar.gz"}
    everywhere = ("a-1-cp311-cp311-manylinux_2_28_x86_64", "a-1-cp39-abi3-manylinux_2_28_aarch64",
                  "a-1-cp312-cp312-macosx_11_0_universal2", "a-1-py3-none-win_amd64")  # fmt: skip
    old = "a-1-cp310-cp310-manylinux_2_28_x86_64"
    lock = {"package": [
        {"name": "pure", "source": INDEX, "sdist": sdist, "wheels": wheel("pure-1-py3-none-any")},
        {"name": "all", "source": INDEX, "sdist": sdist, "wheels": wheel(*everywhere)},
        {"name": "some", "source": INDEX, "sdist": sdist, "wheels": wheel(*everywhere[:1])},
        {"name": "none", "source": INDEX, "sdist": sdist},
        {"name": "cuda", "source": INDEX, "wheels": wheel(*everywhere[:1])},
        {"name": "old", "source": INDEX, "sdist": sdist, "wheels": wheel(*everywhere[1:], old)},
        {"name": "ours", "source": {"editable": "."}, "sdist": sdist},
    ]}  # fmt: skip
    assert pins.from_source(lock) == {
        "some": ["Linux, aarch64", "macOS, arm64", "Windows, x86-64"],
        "none": list(pins.SYSTEMS),
        "old": ["Linux, x86-64"],
    }


TOML = f"""[tool.uv]
constraint-dependencies = [
    # Why it is held.
    "typer==0.28.*",
{pins.BY_HAND}
    "gone==1",
]
build-constraint-dependencies = [
{pins.BY_HAND}
]

[tool.other]
key = ["]"]
"""


def test_renewing_writes_the_pins_below_what_is_held_and_touches_nothing_else() -> None:
    new = pins.rewritten(TOML, PINS, [Pin("hatchling", "1")])
    uv = tomllib.loads(new)["tool"]["uv"]
    assert uv["constraint-dependencies"] == ["typer==0.28.*", *map(str, PINS)]
    assert uv["build-constraint-dependencies"] == ["hatchling==1"]
    assert "    # Why it is held.\n" in new
    assert new.endswith('[tool.other]\nkey = ["]"]\n')
    assert pins.rewritten(new, PINS, [Pin("hatchling", "1")]) == new


def test_the_pins_here_are_as_the_renewal_writes_them() -> None:
    text = (REPO / "pyproject.toml").read_text("utf-8")
    assert pins.rewritten(text, *pins.declared(project())) == text


def test_everything_declared_is_pinned_within_its_range() -> None:
    """Direct requirements of the package, its extras, the tests and the build; the rest is `.ci/pins.py check`."""
    packaging = pytest.importorskip("packaging.requirements")
    table = project()
    installed, build = ({(p.name, minor): p.version for minor in pins.MINORS for p in ps if p.holds_for(minor)}
                        for ps in pins.declared(table))  # fmt: skip
    extras = [r for asked in table["project"]["optional-dependencies"].values() for r in asked]
    asked = [(r, installed) for r in [*table["project"]["dependencies"], *extras, *table["dependency-groups"]["dev"]]]
    asked += [(r, build) for r in table["build-system"]["requires"]]
    for text, pinned in asked:
        wanted = packaging.Requirement(text)
        name = pins.canonical(wanted.name)
        if name == table["project"]["name"]:
            continue
        for minor in pins.MINORS:
            assert (name, minor) in pinned, f"{text} has no pin for Python {minor}"
            assert wanted.specifier.contains(pinned[name, minor], prereleases=True), f"{text}: {pinned[name, minor]}"


def test_no_file_of_pins_names_an_index() -> None:
    for name in ("pyproject.toml", ".ci/fork.txt", ".ci/pins.py", ".ci/renew"):
        text = (REPO / name).read_text("utf-8")
        assert not re.search(r"https?:|index-url|\[\[tool\.uv\.index|find-links", text), name
    assert "uv.lock" in (REPO / ".gitignore").read_text("utf-8").split()


def test_every_page_that_installs_uv_installs_the_version_that_ci_takes() -> None:
    pages = [REPO / name for name in pins.TEACHES_UV]
    lines = [line for page in pages for line in page.read_text("utf-8").splitlines() if re.search("install.* uv", line)]
    assert len(lines) >= 3
    assert {m for line in lines for m in re.findall(r"install -q (uv\S*)", line)} == {f"uv=={pins.uv_version()}"}
    assert pins.with_uv("pip install -q uv==0.1.2 && x", "9.9.9") == "pip install -q uv==9.9.9 && x"


def test_a_wrong_command_is_answered_with_the_right_ones() -> None:
    run = subprocess.run([sys.executable, REPO / ".ci" / "pins.py", "chekc"], capture_output=True, text=True)
    assert run.returncode == 2 and "pins.py check" in run.stderr
