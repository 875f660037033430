"""Whether a weight file or a checkpoint still is what was written: by the sums that are recorded beside it or in it.

A reader of pickles or tensors takes zeroes in the middle of a file for weights. Sums are looked for in `NAME.sha256`,
lists as `sha256sum` writes them, a training's `record.jsonl` and a hand-over's `manifest.json`, all in the file's own
folder; else a torch checkpoint's own checksums (of the zip archive that it is) must hold.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError

if TYPE_CHECKING:
    from torch import Tensor

LISTS = ("SHA256SUMS", "SHA256SUMS.txt", "sha256sums.txt", "sha256sum.txt", "checksums.txt")
RECORD, MANIFEST = "record.jsonl", "manifest.json"
LINKED = ("best.pth",)
"""Names under which a training keeps one of the files on its record once more."""
MAX_LIST_BYTES = 64 * 1024 * 1024
AGAIN = "copy or download it again, or take an older one"
_SUM = re.compile(r"\b[0-9a-fA-F]{64}\b")


def verify(path: Path, sha256: str | None = None) -> str | None:
    """The place beside the file that has its sum ("record.jsonl"); None where none has, and its own checksums hold.

    `sha256` of the file, where the caller has it already. Raises BblabError for a file that is not what was written.
    """
    sums: dict[str, set[str]] = {}
    for place, value in _recorded(path):
        sums.setdefault(place, set()).add(value.lower())
    if not sums:
        _verify_archive(path)
        return None
    found = sha256 or sha256_of(path)
    for place, known in sums.items():
        if found not in known:
            raise BblabError(
                f"{path} is damaged or another file: its sha256 is {found[:16]}…, {place} has "
                f"{', '.join(sorted(s[:16] + '…' for s in known))}",
                hint=f"{AGAIN}; where it was changed on purpose, put it into another folder or correct {place}",
            )
    return next(iter(sums))


def verify_content(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Compare tensors with the sum of their content that bblab writes into its files' metadata; others have none.

    Raises BblabError for tensors that are not those that were written.
    """
    expected = metadata.get("content_sha256")
    if not expected:
        return
    from bblab.weights.files import content_hash

    if content_hash(state, metadata.get("spec_id", "")) != expected:
        raise BblabError(
            f"{path} is damaged: its tensors are not those that were written (the sha256 of their content, "
            f"{expected[:16]}…, is in the file)",
            hint=AGAIN,
        )


def sha256_of(path: Path) -> str:
    """Of the whole file. Raises BblabError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BblabError(f"{path}: {error.strerror}", hint="check the path and its permissions") from None


# ---------------------------------------------------------------------------------------------- what is recorded


def _recorded(path: Path) -> Iterator[tuple[str, str]]:
    """(place, sha256) of each sum that is beside the file."""
    for beside in (f"{path.name}.sha256", f"{path.name}.sha256sum"):
        if match := _SUM.search(_text(path.with_name(beside))):
            yield beside, match[0]
    for beside in LISTS:
        for line in _text(path.with_name(beside)).splitlines():
            match = _SUM.match(line)
            if match and Path(line[match.end() :].strip().lstrip("*")).name == path.name:
                yield beside, match[0]
    for line in _text(path.with_name(RECORD)).splitlines():
        value = _json(line)
        if path.name == value.get("file") or path.name in LINKED:
            yield from _sum(RECORD, value.get("sha256"))
    files = _json(_text(path.with_name(MANIFEST))).get("files")
    if isinstance(files, dict):
        yield from _sum(MANIFEST, files.get(path.name))


def _sum(place: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, str) and _SUM.fullmatch(value):
        yield place, value


def _text(path: Path) -> str:
    with suppress(OSError):
        if path.is_file() and path.stat().st_size <= MAX_LIST_BYTES:
            return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _json(text: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return {}


def _verify_archive(path: Path) -> None:
    """A torch checkpoint is a zip archive with a checksum for each tensor; torch does not look at them."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, zipfile.BadZipFile):
        return  # not an archive, or cut off: who loads it says so
    with archive:
        try:
            bad = archive.testzip()
        except (OSError, ValueError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile) as error:
            raise BblabError(f"{path} is damaged: {error}", hint=AGAIN) from None
    if bad is not None:
        raise BblabError(
            f"{path} is damaged: the checksum of {bad} inside does not hold",
            hint=f"{AGAIN}; where it was written without checksums (torch.serialization.set_crc32_options(False)), "
            "write it again with them",
        )
