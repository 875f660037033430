"""A user's mistake, told in three parts: what was read, what was expected, what to do now.

Everything that a person can get wrong ends as a `BblabError`; the command line prints it without a
traceback. Our own mistakes stay ordinary exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class BblabError(Exception):
    """A mistake that the user can mend: `hint` says how, `exit_code` is 2 (wrong usage or spec) or 1 (a failed run)."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class RunError(BblabError):
    """The request was right but could not be carried out (a worker died, a disk is full)."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text file, counted from 1 as editors do."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Complaint:
    """One mistake in a spec."""

    mark: Mark | None
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.mark}: " if self.mark else ""
        return f"{where}{self.message}" + (f"\n  {self.hint}" if self.hint else "")


class SpecError(BblabError):
    """All the mistakes of one spec, in the order of the file. `sound`: the ArchSpec of what stands before them."""

    def __init__(self, complaints: Iterable[Complaint], *, sound: object = None) -> None:
        self.sound = sound
        self.complaints = tuple(sorted(complaints, key=lambda c: (c.mark.line, c.mark.column) if c.mark else (0, 0)))
        super().__init__("\n".join(str(c) for c in self.complaints))


def near(name: object, known: Iterable[str]) -> str:
    """A hint for a wrong name: the nearest right one and the whole choice, or of a long one the nearest."""
    choice = sorted(known)
    if not choice:
        return "nothing is known here"
    by_lower = {c.lower(): c for c in choice}
    found = difflib.get_close_matches(str(name)[:200].lower(), by_lower, n=8, cutoff=0.5)
    close = [by_lower[c] for c in found]
    if len(choice) > 40:
        others = close[1:] or [c for c in choice if str(name)[:3].lower() in c.lower() and name][:8] or choice[:8]
        listing = f"{', '.join(others)}, ... ({len(choice)} in all)"
    else:
        listing = ", ".join(choice)
    return f"did you mean {close[0]!r}? known: {listing}" if close else f"known: {listing}"
