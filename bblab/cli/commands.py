"""The commands by name. A command's file is imported when it is asked for, so that each start pays for one only."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

ABOUT = {
    "profile": "Cost, receptive field, tracker geometry and latency of specs.",
    "check": "Check specs against the design rules.",
    "bench": "Rank specs by latency beside a reference.",
    "duel": "Run two specs in turn until it is clear which is faster.",
    "specs": "List every spec with its cost, and what is published of it.",
    "blocks": "List the blocks that a spec may name.",
    "new": "Begin a spec of your own as a copy of another.",
    "recipes": "List the pretraining recipes with cost and published results, or show one whole.",
    "data": "Check a data set before training, or write a copy of it that loads fast.",
    "pretrain": "Train a spec on images with mmpretrain, at any batch size, and never lose a run.",
    "export": "Hand a backbone to a tracker trainer, or to the device.",
    "devices": "List the devices that latency can be measured on, or name one.",
    "runner": "Build or list the program that times nets on a phone or board.",
    "record": "Record the training and the scores of a tracker that was trained elsewhere.",
    "report": "Charts and tables of what is stored: accuracy against latency, and more.",
    "runs": "List stored runs, newest first.",
    "show": "Print a stored run whole.",
    "find": "Find the run that gave a number.",
    "diff": "Why two stored runs differ.",
    "import": "Load weights into a spec and write them as safetensors.",
    "demo": "Run the whole chain on three small candidates, in minutes.",
}
"""What `bblab --help` says of each, in this order. A command NAME is `register` in NAME.py, or in NAME_.py."""

_KEYWORDS = {"import"}


class Commands(TyperGroup):
    """The group of all commands, none of them imported yet."""

    def __init__(self, **attrs: Any) -> None:
        super().__init__(**attrs)
        self.commands = dict.fromkeys(ABOUT)  # type: ignore[assignment]  # names for suggestions; see get_command

    def list_commands(self, ctx: Any) -> list[str]:
        return list(ABOUT)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in ABOUT:
            return None
        name = f"{cmd_name}_" if cmd_name in _KEYWORDS else cmd_name
        alone = typer.Typer(rich_markup_mode=None)
        importlib.import_module(f"bblab.cli.{name}").register(alone)
        return get_group(alone).commands[cmd_name]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(ABOUT.items()))
