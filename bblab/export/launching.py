"""What every `launch.py` shares. Copied into it; nothing here knows bblab, and the trainer's code is not changed."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
NOTES = HERE / "manifest.json"
MANIFEST = json.loads(NOTES.read_text(encoding="utf-8") if NOTES.is_file() else "{}")
WEIGHTS = HERE / MANIFEST.get("weights", {}).get("file", "")
CONFIG = HERE / "config.yaml"


def own_module() -> Any:
    """The backbone's module in this folder, without putting this folder on the import path."""
    name = MANIFEST["module"]
    if name not in sys.modules:
        found = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        assert found is not None and found.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(found)
        found.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def backbone(**kwargs: Any) -> torch.nn.Module:
    """What the trainer calls to build the backbone."""
    return own_module().Backbone(**kwargs)


def trainer_folder(given: str) -> Path:
    """The checkout's folder that holds the trainer's script."""
    root, script = MANIFEST["trainer"]["root"], MANIFEST["trainer"]["script"]
    folder = Path(given).expanduser().resolve()
    for candidate in (folder, folder / root):
        if (candidate / script).is_file():
            return candidate
    sys.exit(f"{folder} has no {script}: give --trainer a checkout of {MANIFEST['trainer']['repository']}")


def enter(trainer: Path, *more: str) -> None:
    """Stand in the trainer's folder, with its packages first on the import path and names that newer numpy dropped."""
    os.chdir(trainer)
    for folder in (*more, "."):
        sys.path.insert(0, str((trainer / folder).resolve()))
    for name, kind in (("float", float), ("int", int), ("bool", bool)):
        if name not in np.__dict__:
            setattr(np, name, kind)


def one_process() -> None:
    """Without torchrun: a group of one."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")


def run(script: Path, arguments: Sequence[str]) -> None:
    """The trainer's own script, as if called by hand."""
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def on_cpu() -> None:
    """Where there is no CUDA, what the trainer sends to the GPU stays on the CPU: for check.py only."""
    if torch.cuda.is_available():
        return

    def stay(self: Any, *_: Any, **__: Any) -> Any:
        return self

    for kind in (torch.Tensor, torch.nn.Module):
        setattr(kind, "cuda", stay)  # noqa: B010
    torch.cuda.current_device = lambda: 0
    if "map_location" not in torch.load.__dict__:
        loads = torch.load

        def load(*args: Any, **kwargs: Any) -> Any:
            return loads(*args, **{**kwargs, "map_location": "cpu"})

        load.__dict__["map_location"] = "cpu"
        torch.load = load


def function_of(script: Path, name: str, names: Mapping[str, Any]) -> Callable[..., Any]:
    """One function out of a script that would start training if it were imported; `names` is what it finds there."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    space = dict(names)
    exec(compile(ast.Module([node], []), str(script), "exec"), space)
    return space[name]


def main(register: Callable[[Path], None], start: Callable[[Path, list[str]], None]) -> None:
    parser = argparse.ArgumentParser(description=f"Train {MANIFEST['module']} with {MANIFEST['trainer']['name']}.")
    parser.add_argument("--trainer", required=True, metavar="DIR", help=f"a checkout: {MANIFEST['trainer']['root']}")
    given, rest = parser.parse_known_args()
    trainer = trainer_folder(given.trainer)
    register(trainer)
    start(trainer, [argument for argument in rest if argument != "--"])
