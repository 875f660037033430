"""The lab notebook: one SQLite file that only grows.

A row is a run: what it was of (`spec_id`, `name`), what made it (`code_version`, `inputs`), what came out (`result`),
and its raw samples. Nothing is overwritten: triggers refuse UPDATE and DELETE, writers queue for the file, a damaged
file is moved aside instead of being written over. The notebook knows no room above `errors`; `Lab` converts to and
from these rows.
"""

from __future__ import annotations

import enum
import json
import math
import os
import re
import sqlite3
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from bblab.errors import BblabError, RunError

Json: TypeAlias = Any  # what json.loads returns; the notebook does not look inside
Scalar: TypeAlias = str | int | float | bool | None

APPLICATION_ID = 0x62626C62  # "bblb" in the SQLite header: tells our file from another program's
OTHER_LAB = "name a lab that can be written with --lab DIR (or BBLAB_LAB)"


def _append_only(table: str, key: str) -> tuple[str, ...]:
    """Triggers that refuse UPDATE and DELETE, also the hidden delete inside INSERT OR REPLACE."""
    refuse = f"SELECT RAISE(ABORT, 'the notebook is append-only: {table}')"
    return (
        f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} BEGIN {refuse}; END",
        f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} BEGIN {refuse}; END",
        f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} "
        f"WHEN EXISTS (SELECT 1 FROM {table} WHERE {key}) BEGIN {refuse}; END",
    )


# Entry n brings a file from version n to n + 1. Entries are never edited once released, only appended.
MIGRATIONS: list[tuple[str, ...]] = [
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        """CREATE TABLE runs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            created_utc TEXT NOT NULL,
            kind TEXT NOT NULL,
            spec_id TEXT NOT NULL,
            name TEXT NOT NULL,
            code_version TEXT NOT NULL,
            inputs TEXT NOT NULL,
            result TEXT NOT NULL
        )""",
        "CREATE INDEX runs_by_spec ON runs (spec_id)",
        "CREATE INDEX runs_by_name ON runs (name)",
        """CREATE TABLE samples (
            run_id INTEGER NOT NULL REFERENCES runs (id),
            series TEXT NOT NULL,
            float64_le BLOB NOT NULL,
            PRIMARY KEY (run_id, series)
        )""",
        "CREATE TABLE specs (spec_id TEXT PRIMARY KEY, text TEXT NOT NULL, first_seen_utc TEXT NOT NULL)",
        *_append_only("runs", "id = NEW.id"),
        *_append_only("samples", "run_id = NEW.run_id AND series = NEW.series"),
        *_append_only("specs", "spec_id = NEW.spec_id"),
    ),
]


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run about to be written. Series names carry the unit (`wall_s`); `spec_text` is the canonical spec."""

    kind: str
    spec_id: str
    name: str
    code_version: str
    inputs: Mapping[str, Json]
    result: Mapping[str, Json]
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    spec_text: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """A row of the notebook. NaN and infinities of inputs and result read back as None (JSON has neither)."""

    id: int
    created_utc: str
    kind: str
    spec_id: str
    name: str
    code_version: str
    inputs: dict[str, Json]
    result: dict[str, Json]


@dataclass(frozen=True, slots=True)
class Hit:
    """A value of a run that `find` took for the one asked. `read_as` is the unit it was read in ("" = as stored)."""

    run: Run
    path: str
    value: str | int | float
    read_as: str = ""


NO_AMOUNT = re.compile(r"(?:^|[._])(?:id|seed|rank|process|round|pid|port)(?:\[\d+\])?$")
"""Numbers that only name something: a ratio of two of them says nothing."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two runs. `missing` names the run ("a" or "b") that has no such path."""

    path: str
    a: Scalar
    b: Scalar
    missing: Literal["", "a", "b"] = ""

    @property
    def ratio(self) -> float | None:
        """b / a of two amounts; None where there is no such thing, as of ids, places in an order and seeds."""
        if NO_AMOUNT.search(self.path) or not _is_number(self.a) or not _is_number(self.b) or not self.a:
            return None
        return float(self.b) / float(self.a)  # type: ignore[arg-type]


class Store:
    """One open notebook. `notices` holds what the caller should tell the user (a damaged file moved aside)."""

    def __init__(self, path: Path, *, read_only: bool, timeout_s: float) -> None:
        self.path = path
        self.read_only = read_only
        self.notices: list[str] = []
        self._timeout_s = timeout_s
        self._lock = threading.RLock()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._inode: tuple[int, int] = (0, 0)
        self._db = self._open_to_read() if read_only else self._open_to_write()

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False, timeout_s: float = 30.0) -> Store:
        """Open the notebook, making it (and its folder) unless `read_only`.

        Reading creates nothing: a notebook that is not there yet reads as empty, with a notice. `timeout_s` is how
        long to wait for another writer. Raises RunError where the file cannot be used as it is (locked, read-only,
        full disk, written by a newer bblab, another program's) with what to do.
        """
        return cls(Path(path).expanduser().absolute(), read_only=read_only, timeout_s=timeout_s)

    def close(self) -> None:
        with self._lock:
            self._db.close()
            if self._scratch:
                self._scratch.cleanup()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- writing

    def add(
        self,
        kind: str,
        *,
        spec_id: str,
        name: str,
        code_version: str,
        inputs: Mapping[str, Json],
        result: Mapping[str, Json],
        samples: Mapping[str, Sequence[float]] | None = None,
        spec_text: str = "",
    ) -> int:
        """Write one run and its samples in one transaction; its id. Raises RunError where it cannot be written."""
        run = NewRun(kind, spec_id, name, code_version, inputs, result, samples or {}, spec_text)
        return self.add_many([run])[0]

    def add_many(self, runs: Iterable[NewRun]) -> list[int]:
        """Write all of these runs or none of them; their ids in order."""
        if self.read_only:
            raise RunError(f"{self.path} was opened to be read only", hint=OTHER_LAB)
        packed = [(run, _dump(run.inputs), _dump(run.result), _pack_all(run.samples)) for run in runs]
        with self._lock:
            self._follow_the_file()
            try:
                with self._explained(), _transaction(self._db):
                    return [self._insert(*row) for row in packed]
            except _Damaged:
                # Found only now (an open file is checked in full up to a size): begin anew rather than lose the run.
                self._db.close()
                self._db = self._open_to_write(damaged=True)
                with self._explained(), _transaction(self._db):
                    return [self._insert(*row) for row in packed]

    def _insert(self, run: NewRun, inputs: str, result: str, samples: dict[str, bytes]) -> int:
        now = _now()
        spec_id = _text(run.spec_id)
        row = (now, _text(run.kind), spec_id, _text(run.name), _text(run.code_version), inputs, result)
        cursor = self._db.execute(
            "INSERT INTO runs (created_utc, kind, spec_id, name, code_version, inputs, result) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        run_id = cursor.lastrowid
        assert run_id is not None
        self._db.executemany("INSERT INTO samples VALUES (?, ?, ?)", [(run_id, s, b) for s, b in samples.items()])
        if run.spec_text:
            self._db.execute(
                "INSERT INTO specs SELECT ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM specs WHERE spec_id = ?)",
                (spec_id, _text(run.spec_text), now, spec_id),
            )
        return run_id

    # ---- reading

    def runs(
        self,
        kind: str | None = None,
        name: str | None = None,
        spec_id: str | None = None,
        since: str | datetime | None = None,
        limit: int | None = None,
    ) -> list[Run]:
        """Runs, newest first. `since` is a date or time, UTC unless it says otherwise; a wrong one is a BblabError."""
        asked = [("name = ?", name), ("spec_id = ?", spec_id)]
        asked.append((_of_kind(kind), kind))
        asked.append(("created_utc >= ?", None if since is None else _utc(since)))
        given = [(clause, value) for clause, value in asked if value is not None]
        where = " WHERE " + " AND ".join(clause for clause, _ in given) if given else ""
        rows = self._read(
            f"SELECT {_COLUMNS} FROM runs{where} ORDER BY id DESC LIMIT ?",
            (*(value for _, value in given), -1 if limit is None else limit),
        )
        return [_run(row) for row in rows]

    def get(self, run_id: int) -> Run:
        """The run of this id. Raises BblabError if there is none."""
        # Ids beyond 64 bits cannot be asked of SQLite and cannot exist.
        rows = self._read(f"SELECT {_COLUMNS} FROM runs WHERE id = ?", (run_id,)) if 0 < run_id < 2**63 else []
        if not rows:
            newest = self._read("SELECT max(id) FROM runs")[0][0]
            known = f"its newest run is {newest}" if newest else "it has no runs yet"
            raise BblabError(
                f"no run {run_id} in {self.path}", hint=f"{known}; another notebook is read with --lab DIR"
            )
        return _run(rows[0])

    def samples(self, run_id: int) -> dict[str, tuple[float, ...]]:
        """The raw samples of a run, by series, in the unit of the series' name. Raises BblabError if no such run."""
        self.get(run_id)
        rows = self._read("SELECT series, float64_le FROM samples WHERE run_id = ? ORDER BY rowid", (run_id,))
        return {series: _unpack(blob) for series, blob in rows}

    def spec_text(self, spec_id: str) -> str | None:
        """The canonical text of a spec as first stored; None if it never was."""
        rows = self._read("SELECT text FROM specs WHERE spec_id = ?", (spec_id,))
        return rows[0][0] if rows else None

    def find(self, text: str, limit: int | None = None) -> list[Hit]:
        """Which run gave this? Newest run first.

        A number ("0.15", "22ms", "0.3G", "5.3M", "71.4%") finds every stored number that rounds to it as written,
        also in the units that people remember: seconds as ms and us, counts and bytes as K, M and G. Anything else
        is looked for in names, spec ids, versions and string values, in any case of letters.
        """
        text = text.strip()
        if not text:
            raise BblabError("nothing to find", hint="give a value such as 0.15, 22ms, 5.3M, or a part of a name")
        wanted = parse_quantity(text)
        hits: list[Hit] = []
        for row in self._read(f"SELECT {_COLUMNS} FROM runs ORDER BY id DESC"):
            run = _run(row)
            hits += _hits_of_text(run, text) if wanted is None else _hits_of_number(run, wanted)
            if wanted and len(text) >= 6 and run.spec_id.startswith(text):
                hits.append(Hit(run, "spec_id", run.spec_id))  # a hash may have digits only
            if limit is not None and len(hits) >= limit:
                return hits[:limit]
        return hits

    def diff(self, a: int, b: int) -> list[Change]:
        """What differs between two runs: their identity, inputs and conditions before results."""
        return changes(self.get(a), self.get(b))

    def _read(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:  # SQLite's own types
        with self._lock:
            try:
                with self._explained():
                    return self._db.execute(sql, values).fetchall()
            except _Damaged as damaged:
                raise RunError(
                    f"the notebook {self.path} is damaged ({damaged})",
                    hint="the next command that records moves it aside and begins a new one; "
                    f"`sqlite3 {self.path} .recover` prints what can still be read",
                ) from None

    # ---- opening

    def _open_to_read(self) -> sqlite3.Connection:
        with self._explained():
            is_there = self._is_there()
        if not is_there:
            self.notices.append(f"there is no notebook at {self.path} yet")
            return self._upgraded_in_memory(None)
        try:
            with self._explained():
                db = self._connect_to_read()
                version = self._known_version(db)
                return db if version == len(MIGRATIONS) else self._upgraded_in_memory(db)
        except _Damaged as damaged:
            raise RunError(
                f"the notebook {self.path} is damaged ({damaged})",
                hint="the next command that records moves it aside and begins a new one",
            ) from None

    def _connect_to_read(self) -> sqlite3.Connection:
        try:
            return self._connect(self.path, "mode=ro")
        except sqlite3.OperationalError as error:
            if _code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR):
                raise
        # A WAL file wants a -shm beside it; in a folder that cannot be written there may be none.
        wal = _beside(self.path, "-wal")
        if not wal.exists() or not wal.stat().st_size:
            return self._connect(self.path, "mode=ro&immutable=1")
        # A killed writer left rows in the -wal, which `immutable` would not see: read a copy of both.
        self._scratch = tempfile.TemporaryDirectory(prefix="bblab-notebook-")
        copy = Path(self._scratch.name) / self.path.name
        copy.write_bytes(self.path.read_bytes())
        _beside(copy, "-wal").write_bytes(wal.read_bytes())
        return self._connect(copy, "mode=rw")

    def _upgraded_in_memory(self, db: sqlite3.Connection | None) -> sqlite3.Connection:
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        if db is not None:
            db.backup(memory)
            db.close()
        self._migrate(memory)
        return memory

    def _open_to_write(self, *, damaged: bool = False) -> sqlite3.Connection:
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._is_there()
        try:
            if damaged:
                raise _Damaged("database disk image is malformed")
            return self._try_to_write()
        except _Damaged as damage:
            return self._begin_anew(str(damage), sure=damaged)

    def _try_to_write(self) -> sqlite3.Connection:
        with self._explained():
            self._refuse_damage()
            db = self._connect(self.path, "mode=rwc")
            try:
                self._known_version(db)
                self._use_wal(db)
                self._keep_a_copy(db)
                self._migrate(db)
            except BaseException:
                db.close()
                raise
            found = self.path.stat()
            self._inode = (found.st_dev, found.st_ino)
            return db

    def _refuse_damage(self) -> None:
        # Looked at by a reader: a writer that closes would tidy away the -wal of a file it cannot read.
        size = self.path.stat().st_size if self.path.exists() else 0
        if not size:
            return
        with self.path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                raise _Damaged("file is not a database")
        try:
            with closing(self._connect(self.path, "mode=ro")) as db:
                verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0] if size <= _CHECK_BYTES else "ok"
        except sqlite3.OperationalError:
            return  # locked, or a journal to roll back first: the writer will see to it
        if verdict != "ok":
            raise _Damaged(verdict)

    def _begin_anew(self, damage: str, *, sure: bool) -> sqlite3.Connection:
        """Move a damaged notebook aside and begin a new one; never touches a sound one."""
        with self._explained(), _alone(_beside(self.path, "-moving"), self._timeout_s):
            # Another process may have done it while this one waited; then its new notebook is sound.
            found = self.path.stat() if self.path.exists() else None
            if not sure or (found and (found.st_dev, found.st_ino) != self._inode):
                with suppress(_Damaged):
                    return self._try_to_write()
            aside = self._move_aside()
            self.notices.append(
                f"the notebook {self.path} was damaged ({damage}); it is kept as {aside.name} and a new one was begun. "
                f"`sqlite3 {aside} .recover` prints what can still be read"
            )
            return self._try_to_write()

    def _move_aside(self) -> Path:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside, n = self.path.with_name(f"{self.path.name}.corrupt-{stamp}"), 1
        while aside.exists():
            aside, n = self.path.with_name(f"{self.path.name}.corrupt-{stamp}-{n}"), n + 1
        # The side files first: a stale -wal must never meet the new notebook.
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                _beside(self.path, suffix).rename(_beside(aside, suffix))
        return aside

    def _connect(self, path: Path, mode: str) -> sqlite3.Connection:
        db = sqlite3.connect(
            f"{path.as_uri()}?{mode}", uri=True, timeout=self._timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("SELECT count(*) FROM sqlite_master")  # reads the header: finds what is no notebook
        except BaseException:
            db.close()
            raise
        return db

    def _use_wal(self, db: sqlite3.Connection) -> None:
        # Two processes that make the file at once: the switch to WAL does not wait by itself.
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _migrate(self, db: sqlite3.Connection) -> None:
        # The lock is taken even where there is nothing to do: a notebook that cannot be written is refused now, not
        # after the measurement.
        with _transaction(db):
            version = self._known_version(db)
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    db.execute(statement)
            if version < len(MIGRATIONS):
                db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _keep_a_copy(self, db: sqlite3.Connection) -> None:
        """Before an older notebook is brought to this version: a copy beside it, made once, by rename."""
        version = self._known_version(db)
        if not 0 < version < len(MIGRATIONS):
            return
        kept = _beside(self.path, f".version-{version}")
        if kept.exists():
            return
        partial = _beside(kept, f".{os.getpid()}.partial")
        try:
            with closing(sqlite3.connect(partial)) as copy:
                db.backup(copy)
                is_older = _pragma(copy, "user_version") == version  # another process may have been faster
            if is_older:
                partial.replace(kept)
        finally:
            partial.unlink(missing_ok=True)

    def _known_version(self, db: sqlite3.Connection) -> int:
        """The file's version, 0 for an empty file. Raises RunError for a foreign file or one of a newer bblab."""
        # One snapshot: another process may be making the tables between two looks.
        with nullcontext() if db.in_transaction else _transaction(db, "DEFERRED"):
            application, version = (_pragma(db, name) for name in ("application_id", "user_version"))
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and application != APPLICATION_ID:
            raise RunError(f"{self.path} is the SQLite file of another program, not a notebook", hint=OTHER_LAB)
        if version > len(MIGRATIONS):
            raise RunError(
                f"{self.path} was written by a newer bblab (notebook version {version}; this one knows "
                f"{len(MIGRATIONS)})",
                hint="upgrade bblab, or name another lab with --lab DIR",
            )
        return version

    def _is_there(self) -> bool:
        if self.path.is_dir():
            raise RunError(f"{self.path} is a folder, not a notebook file", hint=f"move it away, or {OTHER_LAB}")
        return self.path.exists()

    def _follow_the_file(self) -> None:
        """Someone moved or deleted the notebook under us: write to the path, not to a file that nobody will find."""
        with suppress(FileNotFoundError):
            found = self.path.stat()
            if (found.st_dev, found.st_ino) == self._inode:
                return
        self._db.close()
        self._db = self._open_to_write()
        self.notices.append(f"the notebook was moved away while open; going on in {self.path}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's and the system's refusals, as a RunError that says what to do; damage as `_Damaged`."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = _code(error)
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise _Damaged(str(error)) from error
            if code not in _ADVICE:
                raise  # our own mistake
            what, advice = _ADVICE[code]
            raise RunError(f"the notebook {self.path} {what} ({error})", hint=advice) from error
        except OSError as error:
            raise RunError(
                f"the notebook {self.path} cannot be used ({error.strerror or error})", hint=OTHER_LAB
            ) from error


# ---- a number as a person writes it


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as written: `value` with `half` a unit of its last digit, and the unit, "" if none was written."""

    value: float
    half: float
    unit: str

    def matches(self, x: float) -> bool:
        """True if x rounds to the value as written. The slack lets 0.145, which binary floats cannot hold, match."""
        return abs(x - self.value) <= self.half * (1 + 1e-9) + 1e-12 * abs(self.value)


_QUANTITY = re.compile(
    r"(?P<sign>[+-]?)(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE](?P<exp>[+-]?\d{1,3}))?\s*"
    r"(?P<unit>s|ms|us|µs|μs|%|[KkMG](?:i?B|MACs?|FLOPs?|params?)?|B)?"
)
_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_COUNT = {"K": 1e3, "M": 1e6, "G": 1e9}
_BYTES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}


def parse_quantity(text: str) -> Quantity | None:
    """ "22ms" -> 22 +- 0.5 in ms; None if the text is not a number."""
    match = _QUANTITY.fullmatch(text.strip())
    if not match:
        return None
    digits = match["digits"].replace(",", "").replace("_", "")
    exponent = int(match["exp"] or 0)
    value = float(f"{match['sign']}{digits}e{exponent}")
    half = float(f"0.5e{exponent - len(digits.partition('.')[2])}")
    if not math.isfinite(value):
        return None  # 12e99999: more likely a piece of a hash
    unit = (match["unit"] or "").replace("µ", "u").replace("μ", "u")
    if unit[:1] == "k":
        unit = "K" + unit[1:]
    return Quantity(value, half, unit if unit in _TIME or unit in _BYTES or unit == "%" else unit[:1])


def _scales(dimension: str, unit: str) -> Iterator[tuple[str, float]]:
    """The units (name, size) in which a stored number of this dimension is compared with one written in `unit`."""
    if dimension == "s":
        yield from ((u, size) for u, size in _TIME.items() if unit in ("", u) and (u != "s" or unit))
    elif dimension == "ms" and unit == "ms":
        yield "ms", 1.0
    elif (dimension == "count" and not unit) or (dimension in ("count", "") and unit in _COUNT):
        yield from ((u, size) for u, size in _COUNT.items() if unit in ("", u))
    elif dimension == "bytes" and (not unit or unit in _COUNT or unit in _BYTES):
        # People say MB for either power.
        yield from ((u, s) for u, s in _BYTES.items() if unit in ("", u, u[0]) or unit == u.replace("i", ""))
    elif unit == "%":
        yield "%", 0.01  # a share: 0.714
        if dimension in ("", "percent"):
            yield "", 1.0  # trainers log accuracies as 71.4


@lru_cache(maxsize=4096)
def _dimension(key: str) -> str | None:
    """What the name of a value says of its unit; None where it says nothing."""
    key = key.lower()
    if key.endswith("_s"):
        return "s"
    if key.endswith("_ms"):
        return "ms"
    if key.endswith("_bytes") or key == "bytes":
        return "bytes"
    if key.endswith(("_ratio", "_share", "_rel_diff", "_hz", "_px", "_c")):
        return "other"
    if key.endswith(("_percent", "_pct")):
        return "percent"
    if any(word in key for word in ("macs", "params", "parameters", "activations", "elementwise")):
        return "count"
    return None


def _hits_of_number(run: Run, wanted: Quantity) -> Iterator[Hit]:
    for keys, value in (*_leaves(run.inputs, ("inputs",)), *_leaves(run.result, ("result",))):
        if not _is_number(value):
            continue
        if not wanted.unit and wanted.matches(float(value)):  # type: ignore[arg-type]
            yield Hit(run, _path(keys), value)  # type: ignore[arg-type]
            continue
        # The unit stands in the nearest name that has one: `median_s`, or `wall_s.median`.
        named = (_dimension(key) for key in reversed(keys) if isinstance(key, str))
        dimension = next((found for found in named if found), "")
        for unit, size in _scales(dimension, wanted.unit):
            if wanted.matches(float(value) / size):  # type: ignore[arg-type]
                yield Hit(run, _path(keys), value, unit)  # type: ignore[arg-type]
                break


def _hits_of_text(run: Run, text: str) -> Iterator[Hit]:
    low = text.lower()
    for path, value in (("name", run.name), ("spec_id", run.spec_id), ("code_version", run.code_version)):
        if low in value.lower():
            yield Hit(run, path, value)
    for keys, leaf in (*_leaves(run.inputs, ("inputs",)), *_leaves(run.result, ("result",))):
        if isinstance(leaf, str) and low in leaf.lower():
            yield Hit(run, _path(keys), leaf)


# ---- two runs side by side

_CONDITION_WORDS = ("condition", "device", "environment", "host", "machine", "runtime", "thread")


def changes(a: Run, b: Run) -> list[Change]:
    """What differs, in the order of asking: who, under which inputs, under which conditions, with what result."""
    left, right = _all_leaves(a), _all_leaves(b)
    found: list[tuple[int, Change]] = []
    for keys in {**left, **right}:
        x, y = left.get(keys), right.get(keys)
        missing: Literal["", "a", "b"] = "a" if keys not in left else "b" if keys not in right else ""
        if missing or x != y or isinstance(x, bool) != isinstance(y, bool):
            found.append((_rank(keys), Change(_path(keys), x, y, missing)))
    return [change for _, change in sorted(found, key=lambda pair: pair[0])]


def _all_leaves(run: Run) -> dict[tuple[str | int, ...], Scalar]:
    own = {"kind": run.kind, "name": run.name, "spec_id": run.spec_id, "code_version": run.code_version}
    return {
        **{(key,): value for key, value in own.items()},
        **dict(_leaves(run.inputs, ("inputs",))),
        **dict(_leaves(run.result, ("result",))),
    }


def _rank(keys: tuple[str | int, ...]) -> int:
    if keys[0] not in ("inputs", "result"):
        return 0
    if keys[0] == "inputs":
        return 1
    words = " ".join(str(key) for key in keys[1:]).lower()
    return 2 if any(word in words for word in _CONDITION_WORDS) else 3


# ---- JSON and samples


def _leaves(value: Json, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Scalar]]:
    """Every scalar with the keys that lead to it; an empty object or list is a leaf of its own."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*keys, key))
    elif isinstance(value, list) and value:
        for i, item in enumerate(value):
            yield from _leaves(item, (*keys, i))
    else:
        yield keys, "{}" if value == {} else "[]" if value == [] else value


def _path(keys: tuple[str | int, ...]) -> str:
    """`result.latency[0].median_s`; a key that is no plain word stands in brackets: `result["layer1.0.conv"]`."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        elif re.fullmatch(r"[\w-]+", key):
            text += f".{key}" if text else key
        else:
            text += f"[{json.dumps(key, ensure_ascii=False)}]"
    return text


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: object) -> Json:
    """The value as JSON can hold it: NaN and infinities become null, NumPy's scalars and arrays plain numbers."""
    if value is None or isinstance(value, str | bool):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=repr)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    to_list = getattr(value, "tolist", None)  # NumPy arrays and scalars, torch tensors
    if callable(to_list):
        return _plain(to_list())
    raise TypeError(f"the notebook cannot hold a {type(value).__name__}: {value!r:.80}")


def _dump(value: Mapping[str, Json]) -> str:
    return json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))


def _pack_all(samples: Mapping[str, Sequence[float]]) -> dict[str, bytes]:
    return {_text(series): _pack(values) for series, values in samples.items()}


def _pack(values: Iterable[float]) -> bytes:
    packed = array("d", values)  # keeps NaN and infinities
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _unpack(blob: bytes) -> tuple[float, ...]:
    values = array("d")
    values.frombytes(blob)
    if sys.byteorder == "big":
        values.byteswap()
    return tuple(values)


def _text(value: str) -> str:
    """A file name that is no valid UTF-8 reaches us with surrogates, which SQLite refuses: show them escaped."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


# ---- time, files, SQLite


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _utc(since: str | datetime) -> str:
    """The moment in the notation of `created_utc`, so that text order is time order."""
    try:
        moment = datetime.fromisoformat(since.strip()) if isinstance(since, str) else since
    except ValueError:
        raise BblabError(f"{since!r} is not a time", hint="write 2026-03-01 or 2026-03-01T14:30, in UTC") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


_COLUMNS = "id, created_utc, kind, spec_id, name, code_version, inputs, result"


# Older versions wrote two sorts of row under one kind. They are read by the names that new rows bear, each told by a
# key of its result; rows stay as they were written.
OLD_KINDS = {"estimate": {"measured_ratio": "latency_estimate", "net_images_per_s": "pretrain_estimate"}}


def _of_kind(kind: str | None) -> str:
    """The clause for one kind: also rows that an older version wrote under another name, and by that name both."""
    if kind in OLD_KINDS:
        names = ", ".join(f"'{name}'" for name in OLD_KINDS[kind].values())
        return f"(kind = ? OR kind IN ({names}))"
    for old, kinds in OLD_KINDS.items():
        for key, name in kinds.items():
            if name == kind:
                return f"(kind = ? OR (kind = '{old}' AND json_type(result, '$.{key}') IS NOT NULL))"
    return "kind = ?"


def _kind_now(kind: str, result: Mapping[str, Any]) -> str:
    return next((name for key, name in OLD_KINDS.get(kind, {}).items() if key in result), kind)


def _run(row: tuple[Any, ...]) -> Run:
    run_id, created_utc, kind, spec_id, name, code_version, inputs, result = row
    found = json.loads(result)
    return Run(run_id, created_utc, _kind_now(kind, found), spec_id, name, code_version, json.loads(inputs), found)


# A notebook up to this size is checked page by page when it is opened to be written. 62 MB (5,000 runs) took 30 to
# 70 ms from a warm cache on two cores of a cloud machine.
_CHECK_BYTES = 256 * 2**20

_ADVICE: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_BUSY: ("is locked by another process", "wait for the other bblab to end, or use another --lab DIR"),
    sqlite3.SQLITE_LOCKED: ("is locked", "wait for the other bblab to end, or use another --lab DIR"),
    sqlite3.SQLITE_READONLY: ("cannot be written", OTHER_LAB),
    sqlite3.SQLITE_PERM: ("may not be opened", OTHER_LAB),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", f"is its folder there, readable and writable? else {OTHER_LAB}"),
    sqlite3.SQLITE_FULL: ("cannot grow: the disk is full", f"free some space and run again, or {OTHER_LAB}"),
    sqlite3.SQLITE_IOERR: (
        "cannot be read or written",
        f"the disk is full, over a quota or failing, or the folder is a network share; free some space, or {OTHER_LAB}",
    ),
    sqlite3.SQLITE_PROTOCOL: ("is locked by another process", "wait for the other bblab to end, or another --lab DIR"),
}


class _Damaged(Exception):
    """The bytes are not a sound notebook. Locked, read-only and full are not damage."""


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code (the low byte); 0 for an error of the Python layer."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _pragma(db: sqlite3.Connection, name: str) -> int:
    value: int = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


@contextmanager
def _transaction(db: sqlite3.Connection, mode: str = "IMMEDIATE") -> Iterator[None]:
    """All or nothing; the write lock is taken first, so that two writers queue instead of failing half-way."""
    try:
        db.execute(f"BEGIN {mode}")
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # never begun, or a full disk has already rolled back
            db.execute("ROLLBACK")
        raise


@contextmanager
def _alone(path: Path, timeout_s: float) -> Iterator[None]:
    """One process at a time. An empty SQLite file serves as the lock: it works everywhere and dies with its holder."""
    guard = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
    try:
        guard.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        guard.close()
