"""The command that installs a missing package where this bblab runs.

`pip install 'bblab[...]'` must never be that command: the package index has another project of that name, and ours is
not published under any. So the packages themselves are named, with the versions that our metadata asks for, and the
environment is the one that this Python runs in, however it was made.

Also runs on boards (`bblab.latency.onboard`), whose Python may be 3.9.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

DISTRIBUTION = "backbone-lab"
_RECEIPT = "uv-receipt.toml"  # uv writes it into the environment of a tool


def how_to_install(*packages: str) -> str:
    """A command line that brings `packages` into this environment, with all that stand in the same extra of ours.

    `uv sync` in a checkout's own environment, `uv tool install --with` or `pipx inject` in a tool's, and pip, or uv
    where there is no pip, in any other.
    """
    prefix = Path(sys.prefix)
    extra, listed = _extra(packages[0])
    wanted = listed or list(packages)
    checkout = _checkout()
    if extra and checkout and prefix == checkout / ".venv":
        where = "" if Path.cwd() == checkout else f" --project {shlex.quote(str(checkout))}"
        return f"{_uv()} sync{where} --extra {extra}"
    if (prefix / _RECEIPT).is_file():
        return _tool(prefix / _RECEIPT, wanted)
    words = " ".join(shlex.quote(p) for p in wanted)
    if (prefix / "pipx_metadata.json").is_file():
        return f"pipx inject {shlex.quote(prefix.name)} {words}"
    python = sys.executable or "python3"
    if importlib.util.find_spec("pip") is None:
        return f"{_uv()} pip install {words} --python {shlex.quote(python)}"
    nearest = shutil.which("pip")
    if nearest and os.environ.get("VIRTUAL_ENV") and Path(nearest).parent == Path(python).parent:
        return f"pip install {words}"
    return f"{shlex.quote(python)} -m pip install {words}"


def _extra(package: str) -> tuple[str, list[str]]:
    """The extra that has this package and what it asks for, as ("peers", ["timm>=1.0.15", "torchvision>=0.21"]).

    ("", []) where none has it, or nothing is known of ours: on a board, or beside sources that are not installed.
    """
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return "", []
    extras: dict[str, list[str]] = {}
    for line in lines:
        requirement, _, marker = line.partition(";")
        if found := re.match(r"\s*extra\s*==\s*['\"]([\w-]+)['\"]\s*\Z", marker):
            extras.setdefault(found[1], []).append(requirement.strip())
    name = re.compile(re.escape(package) + r"(?![\w.-])", re.IGNORECASE)
    with_it = [(extra, asked) for extra, asked in extras.items() if any(map(name.match, asked))]
    return min(with_it, key=lambda one: len(one[1]), default=("", []))  # not `all`, which has it too


def _checkout() -> Path | None:
    """The folder that this bblab is an editable install of."""
    try:
        text = importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
        origin: Any = json.loads(text or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlparse(origin["url"]).path))


def _tool(receipt: Path, packages: list[str]) -> str:
    """`uv tool install` for all that the tool has and these packages: what is not named again is uninstalled."""
    import tomllib

    kept, source = [], f"{DISTRIBUTION.replace('-', '_')}-VERSION-py3-none-any.whl"
    for asked in tomllib.loads(receipt.read_text(encoding="utf-8"))["tool"]["requirements"]:
        place = asked.get("path") or asked.get("directory") or asked.get("editable") or asked.get("url")
        if "git" in asked:
            place = f"git+{asked['git']}"
        extras = f"[{','.join(asked['extras'])}]" if asked.get("extras") else ""
        if asked["name"] == DISTRIBUTION:
            source = f"{place or source}{extras}"
        else:
            kept.append(place or f"{asked['name']}{extras}{asked.get('specifier', '')}")
    withs = "".join(f" --with {shlex.quote(p)}" for p in [*kept, *packages])
    return f"{_uv()} tool install{_torch_backend()}{withs} {shlex.quote(source)}"


def _torch_backend() -> str:
    """The option that keeps a torch without CUDA, or of another CUDA, beside what is installed with it."""
    try:
        build = importlib.metadata.version("torch").partition("+")[2]
    except importlib.metadata.PackageNotFoundError:
        return ""
    return f" --torch-backend {build}" if build.startswith(("cpu", "cu", "rocm", "xpu")) else ""


def _uv() -> str:
    return "uv" if shutil.which("uv") else "python3 -m uv"
