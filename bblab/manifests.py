"""The manifest of a hand-over, found from a file that the trainer wrote into its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "manifest.json"
FORMAT = "bblab-export"
_UP = 8
"""Folders above a file in which a manifest is looked for: trainers write a few levels deep."""


def above(path: Path | str) -> tuple[Path, Mapping[str, Any]] | None:
    """Folder and content of the manifest beside a file or above it; None where there is none, or somebody else's."""
    place = Path(path).expanduser().absolute()
    for folder in dict.fromkeys((*place.parents[:_UP], *place.resolve().parents[:_UP])):
        try:
            value = json.loads((folder / NAME).read_text(encoding="utf-8"))
            if str(value["format"]).startswith(FORMAT) and isinstance(value["trainer"], dict):
                return folder, value
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None
