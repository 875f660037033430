"""The lab's settings file, lab.toml: tables are added and taken out as text, so that comments and all else stay.

Each change is read back by the TOML parser before it is written: what comes out must be what went in, and the change.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bblab.errors import BblabError, RunError

FILE = "lab.toml"


def read(path: Path) -> dict[str, Any]:
    """The settings; none where there is no file. Raises BblabError, with the line, for what is no TOML."""
    try:
        return parse(_text(path), path)
    except FileNotFoundError:
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise BblabError(f"{path} cannot be read: {error}", hint="it should be a text file in TOML") from None


def parse(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BblabError(f"{path}: {error}", hint="mend that line: the file is TOML (https://toml.io)") from None


def write(path: Path, text: str) -> None:
    """In the place of the file, never half of it. Raises RunError where it cannot be written."""
    target = path.resolve()  # a link keeps pointing at its file
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}", hint="choose another lab with --lab DIR"
        ) from None


# Text ---------------------------------------------------------------------------------------------------------------


def with_table(text: str, group: str, name: str, values: Mapping[str, Any], path: Path) -> str:
    """The text with `[group.name]` at its end. Raises BblabError where the file is written in a way that forbids it."""
    before = parse(text, path)
    table = table_text(group, name, values)
    gap = "" if not text.strip() else "\n" if text.endswith("\n") else "\n\n"
    made = (text if text.strip() else "") + gap + table
    wanted = {**before, group: {**_group(before, group, path), name: dict(values)}}
    return _checked(made, wanted, path, f"add these lines by hand:\n{table}")


def without_table(text: str, group: str, name: str, path: Path) -> str:
    """The text without `[group.name]`. Raises BblabError where that stands in another form."""
    before = parse(text, path)
    rest = {key: value for key, value in _group(before, group, path).items() if key != name}
    wanted = {**before, group: rest}
    lines = text.splitlines(keepends=True)
    header = re.compile(rf"\s*\[\s*{_key(group)}\s*\.\s*{_key(name)}\s*\]\s*(#.*)?$")
    starts = [i for i, line in enumerate(lines) if header.match(line.rstrip("\r\n"))]
    advice = f"take the device {name} out by hand"
    if len(starts) != 1:
        raise BblabError(f"{path}: {name} is not written as [{group}.{name}]", hint=advice)
    start = end = starts[0]
    end += 1
    while end < len(lines) and not lines[end].lstrip().startswith("["):
        end += 1
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1  # a comment above the next table is that one's
    while end < len(lines) and not lines[end].strip():
        end += 1
    made = "".join(lines[:start] + lines[end:])
    if end == len(lines):
        made = made.rstrip("\n") + "\n" if made.strip() else ""
    return _checked(made, wanted, path, advice)


def table_text(group: str, name: str, values: Mapping[str, Any]) -> str:
    lines = [f"[{group}.{name}]", *(f"{key} = {_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return rf"[\"']?{re.escape(name)}[\"']?"


def _group(settings: Mapping[str, Any], group: str, path: Path) -> dict[str, Any]:
    found = settings.get(group, {})
    if not isinstance(found, dict):
        raise BblabError(f"{path}: {group} is {found!r}", hint=f"it should hold tables: [{group}.NAME]")
    return found


def _checked(made: str, wanted: Mapping[str, Any], path: Path, advice: str) -> str:
    """The text, if it says what it should."""

    def without_empty(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if value != {}}

    try:
        is_right = without_empty(tomllib.loads(made)) == without_empty(wanted)
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:
        raise BblabError(f"{path} is written in a way that bblab does not change", hint=advice)
    return made
