"""Recipe: all numbers of a pretraining run, as data: the YAML files of `pretrain/`, each with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bblab.errors import BblabError, Complaint, SpecError, near
from bblab.rooms import Rooms
from bblab.spec import Node, check_type, read_text, read_yaml


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training run needs besides the network and the data.

    `lr` belongs to `base_batch` images a step; `warmup_epochs` rise linearly to it. `resolution_px` is the training
    size, `final_resolution_px` what it has been ramped to at the end. `weight_decay` spares norms and biases where
    `decays_norms` is false. `published` holds results of the source, as text.
    """

    name: str
    about: str
    source: str
    epochs: int
    optimizer: str
    lr: float
    base_batch: int
    schedule: str
    warmup_epochs: float = 0
    momentum: float = 0.9
    weight_decay: float = 0.0
    final_weight_decay: float | None = None
    decays_norms: bool = True
    label_smoothing: float = 0.0
    resolution_px: int = 224
    final_resolution_px: int | None = None
    val_resolution_px: int = 224
    augment: str = "crop_flip"
    ema_momentum: float | None = None
    published: str = ""


def read(path: Path) -> Recipe:
    """The recipe of a file. Raises SpecError with every mistake and its place."""
    root = read_yaml(read_text(path), str(path))
    complaints: list[Complaint] = []
    if root.kind != "map":
        raise SpecError([Complaint(root.mark, f"a recipe must be a map, read {root.shown()}")])
    known = {f.name: f for f in fields(Recipe)}
    values: dict[str, Any] = {"name": path.stem}
    for key, (mark, node) in root.value.items():
        if key not in known:
            complaints.append(Complaint(mark, f"a recipe has no {key!r}", near(key, known)))
            continue
        wanted = check_type(str(known[key].type), node.plain())
        if wanted:
            complaints.append(Complaint(node.mark, f"{key} must be {wanted}, read {node.shown()}"))
        values[key] = node.plain()
    complaints.extend(_impossible(root.value))
    required = ("about", "source", "epochs", "optimizer", "lr", "base_batch", "schedule")
    complaints.extend(Complaint(root.mark, f"{key!r} is missing") for key in required if key not in values)
    if complaints:
        raise SpecError(complaints)
    return Recipe(**values)


def _impossible(entries: Mapping[str, tuple[Any, Node]]) -> list[Complaint]:
    positive = ("epochs", "lr", "base_batch", "resolution_px", "final_resolution_px", "val_resolution_px")
    return [
        Complaint(node.mark, f"{key} must be above 0, read {node.value}")
        for key, (_, node) in entries.items()
        if key in positive and isinstance(node.value, (int, float)) and node.value <= 0
    ]


def read_all(rooms: Rooms) -> list[Recipe]:
    """Every recipe of the rooms, by name. Raises SpecError for a broken one."""
    return [read(path) for _, path in sorted(rooms.files("pretrain", ".yaml").items())]


def find(name: str, rooms: Rooms) -> Recipe:
    """The recipe of this name. Raises BblabError listing the near ones."""
    known = rooms.files("pretrain", ".yaml")
    if name not in known:
        raise BblabError(f"no recipe {name!r}", hint=near(name, known))
    return read(known[name])
