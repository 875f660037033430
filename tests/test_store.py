"""The lab notebook: nothing is lost, nothing is overwritten, and a number is found again."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bblab import store as store_module
from bblab.errors import BblabError, RunError
from bblab.store import NewRun, Store, parse_quantity

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "lab.sqlite") as store:
        yield store


def put(store: Store, result: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, **changed: Any) -> int:
    own: dict[str, Any] = {"spec_id": "ab12", "name": "tiny", "code_version": "0.1.0", **changed}
    return store.add(own.pop("kind", "timing"), inputs=inputs or {}, result=result, **own)


def python(code: str, *argv: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)],
        cwd=REPO,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@contextmanager
def folder_of_someone_else() -> Iterator[Path]:
    """A folder in which this process may read but not write, also when the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    if not hasattr(os, "geteuid"):
        pytest.skip("needs POSIX users")
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("cannot become an ordinary user here")
    try:
        yield
    finally:
        os.seteuid(0)


# ---- rows


def test_a_run_reads_back_as_it_was_written(notebook: Store) -> None:
    run_id = notebook.add(
        "timing",
        spec_id="ab12",
        name="tiny",
        code_version="0.1.0+dirty",
        inputs={"threads": 1, "form": "deploy", "input": [3, 255, 255]},
        result={"median_s": 0.0223, "is_steady": True, "note": None},
        samples={"wall_s": [0.1, 0.2, 1 / 3], "cpu_s": []},
        spec_text="stages: ...",
    )
    run = notebook.get(run_id)
    assert (run.kind, run.spec_id, run.name, run.code_version) == ("timing", "ab12", "tiny", "0.1.0+dirty")
    assert run.inputs == {"threads": 1, "form": "deploy", "input": [3, 255, 255]}
    assert run.result == {"median_s": 0.0223, "is_steady": True, "note": None}
    assert notebook.samples(run_id) == {"wall_s": (0.1, 0.2, 1 / 3), "cpu_s": ()}
    assert notebook.spec_text("ab12") == "stages: ..."
    age = datetime.now(UTC) - datetime.fromisoformat(run.created_utc)
    assert timedelta(0) <= age < timedelta(minutes=1)


def test_what_was_written_is_there_after_closing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "deep" / "lab" / "lab.sqlite") as store:
        run_id = put(store, {"x": 1}, samples={"wall_s": [1.5]})
    with Store.open(tmp_path / "deep" / "lab" / "lab.sqlite", read_only=True) as store:
        assert store.get(run_id).result == {"x": 1}
        assert store.samples(run_id) == {"wall_s": (1.5,)}
        assert store.notices == []


def test_nan_and_infinity_become_null_and_the_rest_stays(notebook: Store) -> None:
    result = {"loss": math.nan, "curve": [0.3, math.inf, -math.inf, 0.15], "deep": {"a": math.nan, "b": 2}}
    run_id = put(notebook, result, samples={"wall_s": [1.0, math.nan, math.inf]})
    assert notebook.get(run_id).result == {"loss": None, "curve": [0.3, None, None, 0.15], "deep": {"a": None, "b": 2}}
    one, nan, inf = notebook.samples(run_id)["wall_s"]
    assert (one, inf) == (1.0, math.inf) and math.isnan(nan)
    assert [hit.path for hit in notebook.find("0.15")] == ["result.curve[3]"]


def test_numpy_values_tuples_and_paths_are_stored_as_plain_json(notebook: Store) -> None:
    np = pytest.importorskip("numpy")
    result = {
        "f32": np.float32(0.5),
        "i64": np.int64(7),
        "nan": np.float32("nan"),
        "array": np.array([1.0, 2.0]),
        "tuple": (1, "b"),
        "path": Path("a/b"),
        "big": 2**70,
    }
    run_id = put(notebook, result, samples={"wall_s": np.array([0.25, 0.5])})
    assert notebook.get(run_id).result == {
        "f32": 0.5,
        "i64": 7,
        "nan": None,
        "array": [1.0, 2.0],
        "tuple": [1, "b"],
        "path": str(Path("a/b")),
        "big": 2**70,
    }
    assert notebook.samples(run_id) == {"wall_s": (0.25, 0.5)}


def test_what_json_cannot_hold_is_our_own_mistake_and_writes_nothing(notebook: Store) -> None:
    with pytest.raises(TypeError, match="object"):
        notebook.add_many([new(1), NewRun("k", "s", "n", "v", {"model": object()}, {})])
    assert notebook.runs() == []


def test_file_names_that_are_not_utf8_are_stored(notebook: Store) -> None:
    run_id = put(notebook, {"path": "caf\udce9"}, name="caf\udce9")
    assert notebook.get(run_id).name == "caf\\udce9"
    assert notebook.get(run_id).result["path"] == "caf\udce9"


def test_a_spec_text_is_kept_as_first_seen(notebook: Store) -> None:
    put(notebook, {}, spec_text="first")
    put(notebook, {}, spec_text="second")
    put(notebook, {}, spec_id="cd34")
    assert notebook.spec_text("ab12") == "first"
    assert notebook.spec_text("cd34") is None


def test_runs_are_listed_newest_first_and_filtered(notebook: Store) -> None:
    a = put(notebook, {}, kind="profile", name="one", spec_id="s1")
    b = put(notebook, {}, kind="timing", name="one", spec_id="s1")
    c = put(notebook, {}, kind="timing", name="two", spec_id="s2")
    assert [run.id for run in notebook.runs()] == [c, b, a]
    assert [run.id for run in notebook.runs(kind="timing")] == [c, b]
    assert [run.id for run in notebook.runs(name="one")] == [b, a]
    assert [run.id for run in notebook.runs(spec_id="s2")] == [c]
    assert [run.id for run in notebook.runs(kind="timing", name="one")] == [b]
    assert [run.id for run in notebook.runs(limit=2)] == [c, b]


def test_since_takes_dates_and_times_in_any_zone(notebook: Store) -> None:
    run_id = put(notebook, {})
    made = datetime.fromisoformat(notebook.get(run_id).created_utc)
    just_before, just_after = made - timedelta(seconds=1), made + timedelta(seconds=1)
    for since in (just_before, just_before.isoformat(), made.date().isoformat(), just_before.replace(tzinfo=None)):
        assert [run.id for run in notebook.runs(since=since)] == [run_id]
    # The same moment told at +09:00 sorts by time, not by the letters of its clock.
    tokyo = just_before.astimezone(UTC) + timedelta(hours=9)
    assert notebook.runs(since=tokyo.replace(tzinfo=None).isoformat() + "+09:00")
    assert notebook.runs(since=just_after) == []
    with pytest.raises(BblabError, match="yesterday"):
        notebook.runs(since="yesterday")


def test_an_unknown_id_names_the_newest(notebook: Store) -> None:
    with pytest.raises(BblabError, match=r"no run 1 .*\n.*no runs yet"):
        notebook.get(1)
    newest = put(notebook, {})
    for wrong in (newest + 1, 0, -1, 2**80):
        with pytest.raises(BblabError, match=f"newest run is {newest}"):
            notebook.samples(wrong)


def test_importing_the_notebook_loads_no_heavy_library() -> None:
    code = (
        "import sys, bblab.store; print([m for m in ('numpy', 'pandas', 'torch', 'platformdirs') if m in sys.modules])"
    )
    assert finish(python(code)).strip() == "[]"


# ---- finding


@pytest.mark.parametrize(
    ("asked", "key", "stored", "is_found"),
    [
        ("0.15", "loss", 0.1496, True),
        ("0.15", "loss", 0.1523, True),
        ("0.15", "loss", 0.145, True),  # a binary float just below 0.145
        ("0.15", "loss", 0.1551, False),
        ("0.150", "loss", 0.1523, False),  # written more exactly
        ("-0.15", "loss", 0.15, False),
        ("-0.15", "loss", -0.1523, True),
        ("22", "latency_ms", 21.7, True),
        ("22", "score", 22, True),
        ("22", "score", 22.6, False),
        ("1.5e-3", "lr", 0.00152, True),
        ("1e-3", "lr", 0.0016, False),
        ("5,300,000", "params", 5_300_000, True),
        ("5300000", "params", 5_300_001, False),
        # seconds, remembered as ms and us
        ("22", "median_s", 0.0217, True),
        ("22ms", "median_s", 0.0217, True),
        ("22 ms", "latency_ms", 21.7, True),
        ("22ms", "median_s", 21.7, False),  # 21.7 s
        ("22s", "wall_s", 21.7, True),
        ("22us", "median_s", 0.0000217, True),
        ("22µs", "median_s", 0.0000217, True),
        ("22", "median_s", 0.0000217, True),
        ("22ms", "macs", 22, False),
        ("0.0217", "median_s", 0.0217, True),
        ("22", "share", 0.0217, False),  # not a time
        # counts
        ("0.3G", "macs", 312_000_000, True),
        ("0.3", "macs_backbone", 312_000_000, True),
        ("0.3GMACs", "macs", 312_000_000, True),
        ("5.3M", "params", 5_288_548, True),
        ("5.3", "params_backbone", 5_288_548, True),
        ("5.3M", "median_s", 5_288_548, False),
        ("312k", "activations", 311_700, True),
        ("5.3M", "macs", 5_400_000, False),
        ("5.3", "width", 5_288_548, False),  # no count
        # bytes: people say MB for either power
        ("21.2MB", "weight_bytes", 21_180_000, True),
        ("20.2MB", "weight_bytes", 21_180_000, True),  # 20.199 MiB
        ("20.2MiB", "weight_bytes", 21_180_000, True),
        ("21.2MiB", "weight_bytes", 21_180_000, False),
        ("21.2", "weight_bytes", 21_180_000, True),
        ("21.2MB", "params", 21_180_000, False),
        # shares
        ("71.4%", "top1", 71.38, True),
        ("71.4%", "kept_share", 0.7138, True),
        ("71.4%", "median_s", 0.7138, False),
        ("71.4%", "top1", 71.5, False),
    ],
)
def test_a_number_is_found_as_people_remember_it(
    notebook: Store, asked: str, key: str, stored: float, is_found: bool
) -> None:
    put(notebook, {"runs": [{key: stored}]})
    assert [(hit.path, hit.value) for hit in notebook.find(asked)] == ([(f"result.runs[0].{key}", stored)] * is_found)


def test_a_hit_says_in_which_unit_it_was_read(notebook: Store) -> None:
    put(notebook, {"median_s": 0.0217, "score": 22, "macs": 22_300_000})
    assert {hit.path: hit.read_as for hit in notebook.find("22")} == {
        "result.median_s": "ms",
        "result.score": "",
        "result.macs": "M",
    }


def test_the_unit_may_stand_in_an_outer_name(notebook: Store) -> None:
    put(notebook, {"wall_s": {"median": 0.0217, "spread_ratio": 0.022}})
    assert [hit.path for hit in notebook.find("22ms")] == ["result.wall_s.median"]


def test_yes_and_no_are_not_numbers(notebook: Store) -> None:
    put(notebook, {"is_steady": True, "n": 1})
    assert [hit.path for hit in notebook.find("1")] == ["result.n"]


def test_hits_come_newest_first_with_inputs_before_results(notebook: Store) -> None:
    old = put(notebook, {"loss": 0.152}, {"lr": 0.15})
    new_ = put(notebook, {"loss": 0.149})
    found = [(hit.run.id, hit.path) for hit in notebook.find("0.15")]
    assert found == [(new_, "result.loss"), (old, "inputs.lr"), (old, "result.loss")]
    assert [hit.run.id for hit in notebook.find("0.15", limit=1)] == [new_]


def test_keys_that_are_no_plain_words_are_quoted_in_the_path(notebook: Store) -> None:
    put(notebook, {"layer1.0.conv": {"loss": 0.15}})
    assert [hit.path for hit in notebook.find("0.15")] == ['result["layer1.0.conv"].loss']


def test_text_is_searched_in_names_ids_and_strings(notebook: Store) -> None:
    run_id = put(
        notebook, {"device": "Pixel 6a", "n": 6}, {"form": "deploy"}, name="MobileOne_k5", spec_id="12e45678ff"
    )
    assert [(h.path, h.value) for h in notebook.find("pixel")] == [("result.device", "Pixel 6a")]
    assert [(h.run.id, h.path) for h in notebook.find("mobileone")] == [(run_id, "name")]
    assert [h.path for h in notebook.find("12e45678ff")] == ["spec_id"]
    assert [h.path for h in notebook.find("12e45678")] == ["spec_id"]  # also looks like a number
    digits = put(notebook, {}, spec_id="48213377aa")
    assert [(h.run.id, h.path) for h in notebook.find("48213377")] == [(digits, "spec_id")]
    assert [h.path for h in notebook.find("DEPLOY")] == ["inputs.form"]
    assert notebook.find("iphone") == []
    with pytest.raises(BblabError):
        notebook.find("  ")


def test_finding_agrees_with_rounding() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        digits = draw.randrange(0, 5)
        stored = draw.uniform(-50, 50)
        written = f"{stored:.{digits}f}"
        quantity = parse_quantity(written)
        assert quantity is not None and quantity.matches(stored)
        off = stored + draw.choice((-1, 1)) * 1.01 * 10.0**-digits
        assert not quantity.matches(off)


@pytest.mark.parametrize("text", ["nan", "inf", "tiny", "1.2.3", "22 apples", "", "12e99999", "1e999", "--3", "0x10"])
def test_these_are_not_numbers(text: str) -> None:
    assert parse_quantity(text) is None


# ---- differences


def test_diff_shows_only_what_differs_and_inputs_before_results(notebook: Store) -> None:
    same = {"runtime": "ort", "conditions": {"freq_hz": 2_000_000_000, "governor": "performance"}}
    a = put(notebook, {"median_s": 0.020, **same, "steady": True}, {"threads": 1, "form": "deploy"})
    other = {"runtime": "ort", "conditions": {"freq_hz": 1_000_000_000, "governor": "performance"}}
    b = put(notebook, {"median_s": 0.010, **other, "note": "hot"}, {"threads": 4, "form": "deploy"}, spec_id="cd34")
    assert [(c.path, c.a, c.b, c.ratio, c.missing) for c in notebook.diff(a, b)] == [
        ("spec_id", "ab12", "cd34", None, ""),
        ("inputs.threads", 1, 4, 4.0, ""),
        ("result.conditions.freq_hz", 2_000_000_000, 1_000_000_000, 0.5, ""),
        # in the order of run a, then what only b has
        ("result.median_s", 0.020, 0.010, 0.5, ""),
        ("result.steady", True, None, None, "b"),
        ("result.note", None, "hot", None, "a"),
    ]


def test_diff_knows_null_empty_and_absent_apart(notebook: Store) -> None:
    a = put(notebook, {"x": None, "list": [], "yes": True, "zero": 0})
    b = put(notebook, {"list": [1], "yes": 1, "zero": 5})
    assert {(c.path, c.missing) for c in notebook.diff(a, b)} == {
        ("result.x", "b"),
        ("result.list", "b"),
        ("result.list[0]", "a"),
        ("result.yes", ""),
        ("result.zero", ""),
    }
    assert all(change.ratio is None for change in notebook.diff(a, b))  # 5 / 0 is no ratio


def test_numbers_that_only_name_something_have_no_ratio(notebook: Store) -> None:
    a = put(notebook, {"conditions_id": 16, "rank": 2, "detail": {"process": 4, "processes": 8}, "width": 3.0})
    b = put(notebook, {"conditions_id": 6, "rank": 1, "detail": {"process": 1, "processes": 4}, "width": 6.0})
    assert {c.path: c.ratio for c in notebook.diff(a, b)} == {
        "result.conditions_id": None, "result.rank": None, "result.detail.process": None,
        "result.detail.processes": 0.5, "result.width": 2.0,
    }  # fmt: skip


def test_a_run_does_not_differ_from_its_repetition(notebook: Store) -> None:
    assert notebook.diff(put(notebook, {"x": [1, {"y": None}]}), put(notebook, {"x": [1.0, {"y": None}]})) == []


# ---- nothing is overwritten


@pytest.mark.parametrize("table", ["runs", "samples", "specs"])
@pytest.mark.parametrize("change", ["update", "delete", "replace"])
def test_the_file_refuses_changes_by_anyone(notebook: Store, table: str, change: str) -> None:
    put(notebook, {"x": 1}, samples={"wall_s": [1.0]}, spec_text="text")
    db = sqlite3.connect(notebook.path)
    before = db.execute(f"SELECT * FROM {table}").fetchall()
    column = {"runs": "result", "samples": "float64_le", "specs": "text"}[table]
    sql = {
        "update": f"UPDATE {table} SET {column} = 'x'",
        "delete": f"DELETE FROM {table}",
        "replace": f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}",
    }[change]
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute(sql)
    db.rollback()
    assert db.execute(f"SELECT * FROM {table}").fetchall() == before != []
    db.close()


def new(n: int) -> NewRun:
    return NewRun("timing", "ab12", f"n{n}", "0.1.0", {}, {"n": n}, {"wall_s": [float(n)]})


def test_add_many_writes_all_or_nothing(notebook: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert notebook.add_many([new(1), new(2)]) == [1, 2]
    write_one, seen = Store._insert, []

    def power_cut_at_the_second(self: Store, *row: Any) -> int:
        seen.append(row)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return write_one(self, *row)

    monkeypatch.setattr(Store, "_insert", power_cut_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        notebook.add_many([new(3), new(4), new(5)])
    monkeypatch.undo()
    assert [run.name for run in notebook.runs()] == ["n2", "n1"]
    assert put(notebook, {}) > 2  # goes on


# ---- several processes

# Arguments: who, rows per notebook, a migration step or "", the notebooks. Waits for the word to start, so that all
# writers meet at the same moment.
ADD_ROWS = """
import sys
from bblab.store import Store, MIGRATIONS
who, count, step, *paths = sys.argv[1:]
MIGRATIONS += [(step,)] if step else []
print("ready", flush=True)
sys.stdin.readline()
for path in paths:
    for n in range(int(count)):
        with Store.open(path) as store:
            store.add("timing", spec_id=who, name=f"{who}-{n}", code_version="1", inputs={}, result={"n": n},
                      samples={"wall_s": [float(n)] * 50}, spec_text="text")
            print(*store.notices, sep="\\n")
"""


def write_at_once(count: int, paths: list[Path], step: str = "") -> list[str]:
    """Four processes write `count` rows each into each notebook; their notices."""
    writers = [python(ADD_ROWS, f"p{i}", count, step, *paths) for i in range(4)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    return [line for writer in writers for line in finish(writer).splitlines() if line]


def names(path: Path) -> list[str]:
    with Store.open(path) as store:
        assert store.notices == []
        return sorted(run.name for run in store.runs())


def test_processes_that_make_the_file_at_once_lose_nothing(tmp_path: Path) -> None:
    paths = [tmp_path / str(n) / "lab.sqlite" for n in range(100)]
    assert write_at_once(2, paths) == []
    for path in paths:
        assert names(path) == sorted(f"p{i}-{n}" for i in range(4) for n in range(2))
        assert [p.name for p in path.parent.iterdir()] == ["lab.sqlite"]


def test_a_notebook_made_between_two_looks_is_not_taken_for_a_foreign_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, look = tmp_path / "lab.sqlite", store_module._pragma

    def look_and_let_another_make_it(db: sqlite3.Connection, name: str) -> int:
        monkeypatch.setattr(store_module, "_pragma", look)
        value = look(db, name)
        with suppress(RunError):  # it may have to wait for us
            Store.open(path, timeout_s=0.05).close()
        return value

    monkeypatch.setattr(store_module, "_pragma", look_and_let_another_make_it)
    with Store.open(path) as store:
        assert put(store, {}) == 1


def test_making_the_file_waits_for_one_who_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM sqlite_master").fetchall()
    leaving = threading.Timer(0.2, lambda: reader.execute("COMMIT"))
    leaving.start()
    with Store.open(path) as store:
        assert put(store, {}) == 1
    leaving.join()
    reader.close()


def test_processes_that_migrate_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    with Store.open(path) as store:
        old = put(store, {"x": 1})
    step = "CREATE TABLE notes (run_id INTEGER, text TEXT)"  # would fail if it ran twice
    assert write_at_once(6, [path], step) == []
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM runs").fetchone() == (25,)
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    assert db.execute("SELECT result FROM runs WHERE id = ?", (old,)).fetchone() == ('{"x":1}',)
    db.close()


def test_a_killed_writer_loses_no_committed_row(tmp_path: Path) -> None:
    code = """
import sys
from bblab.store import Store
store = Store.open(sys.argv[1])
for n in range(100_000):
    run_id = store.add("timing", spec_id="s", name=f"n{n}", code_version="1", inputs={}, result={"n": n},
                       samples={"wall_s": [float(n)] * 2000})
    print(run_id, flush=True)
"""
    path = tmp_path / "lab.sqlite"
    told: list[int] = []
    for kill_after in (1, 17, 40):
        writer = python(code, path)
        assert writer.stdout is not None
        for _ in range(kill_after):
            told.append(int(writer.stdout.readline()))
        os.kill(writer.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        told += [int(line) for line in writer.communicate()[0].splitlines()]
    assert len(told) >= 58
    with Store.open(path) as store:
        assert store.notices == []
        assert set(told) <= {run.id for run in store.runs()}
        for run in store.runs():  # no half-written run either
            assert store.samples(run.id) == {"wall_s": (float(run.result["n"]),) * 2000}


def test_readers_read_while_a_writer_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    with Store.open(path) as store:
        run_id = put(store, {"x": 1})
        writing = sqlite3.connect(path, isolation_level=None)
        writing.execute("BEGIN IMMEDIATE")
        with Store.open(path, read_only=True, timeout_s=0.1) as reader:
            assert reader.get(run_id).result == {"x": 1}
        writing.close()


# ---- files that cannot be used as they are


def test_locked_is_not_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    with Store.open(path, timeout_s=0.1) as store:
        put(store, {"x": 1})
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunError, match=r"locked by another process(.|\n)*--lab DIR"):
            put(store, {"x": 2})
        with pytest.raises(RunError, match="locked by another process"):
            Store.open(path, timeout_s=0.1)
        other.execute("ROLLBACK")
        other.close()
        put(store, {"x": 3})
        assert [run.result["x"] for run in store.runs()] == [3, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["lab.sqlite"]


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lab.sqlite").mkdir()
    for read_only in (False, True):
        with pytest.raises(RunError, match=r"is a folder(.|\n)*--lab DIR"):
            Store.open(tmp_path / "lab.sqlite", read_only=read_only)
    assert (tmp_path / "lab.sqlite").is_dir()


def test_a_lab_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lab").write_text("I am a file")
    with pytest.raises(RunError, match=r"cannot be used(.|\n)*--lab DIR"):
        Store.open(tmp_path / "lab" / "lab.sqlite")
    assert (tmp_path / "lab").read_text() == "I am a file"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where nobody can make a folder")
def test_a_place_where_nobody_can_write_is_refused() -> None:
    with pytest.raises(RunError, match="--lab DIR"):
        Store.open("/proc/lab.sqlite")
    with pytest.raises(RunError, match="--lab DIR"):
        Store.open("/proc/bblab-lab/lab.sqlite")


def test_a_read_only_lab_can_be_read_and_refuses_to_record_before_the_work() -> None:
    with folder_of_someone_else() as folder:
        path = folder / "lab.sqlite"
        with Store.open(path) as store:
            run_id = put(store, {"x": 1})
        path.chmod(0o444)
        folder.chmod(0o555)
        with as_ordinary_user():
            with Store.open(path, read_only=True) as store:
                assert store.get(run_id).result == {"x": 1}
                with pytest.raises(RunError, match="read only"):
                    put(store, {})
            with pytest.raises(RunError, match="--lab DIR"):
                Store.open(path)
        assert [p.name for p in folder.iterdir()] == ["lab.sqlite"]


def test_a_read_only_lab_left_by_a_killed_writer_shows_its_last_rows() -> None:
    with folder_of_someone_else() as folder:
        path = folder / "lab.sqlite"
        code = """
import os, sys
from bblab.store import Store
store = Store.open(sys.argv[1])
store.add("timing", spec_id="s", name="last", code_version="1", inputs={}, result={"x": 1})
os._exit(0)  # leaves the row in the -wal
"""
        finish(python(code, path))
        (folder / "lab.sqlite-shm").unlink()
        assert (folder / "lab.sqlite-wal").stat().st_size > 0
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
        with as_ordinary_user(), Store.open(path, read_only=True) as store:
            assert [run.name for run in store.runs()] == ["last"]


def test_an_unreadable_file_is_refused() -> None:
    with folder_of_someone_else() as folder:
        with Store.open(folder / "lab.sqlite") as store:
            put(store, {})
        (folder / "lab.sqlite").chmod(0)
        with as_ordinary_user(), pytest.raises(RunError, match="--lab DIR"):
            Store.open(folder / "lab.sqlite", read_only=True)


def test_a_full_disk_loses_nothing_and_says_so(notebook: Store) -> None:
    kept = put(notebook, {"x": 1})
    pages = notebook._db.execute("PRAGMA page_count").fetchone()[0]
    notebook._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(RunError, match=r"disk is full(.|\n)*free some space"):
        put(notebook, {"y": 2}, samples={"wall_s": [0.0] * 100_000})
    notebook._db.execute("PRAGMA max_page_count = 1000000")  # space was freed
    after = put(notebook, {"z": 3})
    assert [run.id for run in notebook.runs()] == [after, kept]


def test_a_file_that_may_not_grow_loses_nothing_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    code = """
import resource, sys
from bblab.errors import RunError
from bblab.store import Store
store = Store.open(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
for n in range(1000):
    try:
        store.add("timing", spec_id="s", name=f"n{n}", code_version="1", inputs={}, result={"n": n},
                  samples={"wall_s": [0.5] * 3000})
    except RunError as error:
        assert "--lab DIR" in str(error), error
        print(n)
        break
"""
    path = tmp_path / "lab.sqlite"
    written = int(finish(python(code, path)))
    assert written > 3
    with Store.open(path) as store:
        assert [run.result["n"] for run in reversed(store.runs())] == list(range(written))
        assert store.notices == []


def test_a_notebook_of_a_newer_bblab_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    Store.open(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(RunError, match=r"newer bblab .*version 99(.|\n)*upgrade bblab"):
            Store.open(path, read_only=read_only)
    assert path.read_bytes() == before


def test_an_older_notebook_is_migrated_and_can_be_read_without_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lab.sqlite"
    with Store.open(path) as store:
        run_id = put(store, {"x": 1})
    before = path.read_bytes()
    step = ("CREATE TABLE notes (text TEXT)", "INSERT INTO notes VALUES ('hello')")
    monkeypatch.setattr(store_module, "MIGRATIONS", [*store_module.MIGRATIONS, step])
    with Store.open(path, read_only=True) as store:
        assert store.get(run_id).result == {"x": 1}
        assert store._read("SELECT text FROM notes") == [("hello",)]
    assert path.read_bytes() == before
    for _ in range(2):
        with Store.open(path) as store:
            assert store.get(run_id).result == {"x": 1}
            assert store._read("SELECT text FROM notes") == [("hello",)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lab.sqlite"
    with Store.open(path) as store:
        run_id = put(store, {"x": 1})
    sound = store_module.MIGRATIONS
    monkeypatch.setattr(store_module, "MIGRATIONS", [*sound, ("CREATE TABLE notes (text TEXT)", "not SQL")])
    with pytest.raises(sqlite3.OperationalError):
        Store.open(path)
    monkeypatch.setattr(store_module, "MIGRATIONS", sound)
    with Store.open(path) as store:
        assert store.get(run_id).result == {"x": 1}
        assert store._read("SELECT count(*) FROM sqlite_master WHERE name = 'notes'") == [(0,)]


def test_the_file_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE photos (id)")
    db.commit()
    db.close()
    before = path.read_bytes()
    for read_only in (False, True):
        with pytest.raises(RunError, match="another program"):
            Store.open(path, read_only=read_only)
    assert path.read_bytes() == before


def test_reading_creates_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "lab" / "lab.sqlite", read_only=True) as store:
        assert store.runs() == store.find("22") == []
        assert "no notebook" in store.notices[0]
        with pytest.raises(RunError):
            put(store, {})
    assert list(tmp_path.iterdir()) == []


# ---- damage


def damage(path: Path, how: str) -> bytes:
    content = bytearray(path.read_bytes())
    if how == "text":
        content[:] = b"this is not a notebook" * 100
    elif how == "header":
        content[:100] = b"\xff" * 100
    elif how == "page":
        content[8192:16384] = b"\xa5" * 8192
    elif how == "rest":
        content[4096:] = b"\xa5" * (len(content) - 4096)
    elif how == "cut":
        del content[len(content) // 2 :]
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("how", ["text", "header", "page", "rest", "cut"])
def test_a_damaged_notebook_is_moved_aside_and_a_new_one_begun(tmp_path: Path, how: str) -> None:
    path = tmp_path / "lab.sqlite"
    with Store.open(path) as store:
        for n in range(50):
            put(store, {"n": n}, samples={"wall_s": [0.5] * 500})
    content = damage(path, how)
    with Store.open(path) as store:
        assert len(store.notices) == 1 and "damaged" in store.notices[0] and ".corrupt-" in store.notices[0]
        assert store.runs() == []
        run_id = put(store, {"x": 1})
    (aside,) = tmp_path.glob("lab.sqlite.corrupt-*Z")
    assert aside.read_bytes() == content
    with Store.open(path) as store:
        assert store.get(run_id).result == {"x": 1}
        assert store.notices == []


def test_a_second_damaged_notebook_does_not_overwrite_the_first(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    for text in ("first" * 100, "second" * 100, "third" * 100):
        path.write_text(text)
        Store.open(path).close()
    kept = [p.read_text() for p in tmp_path.glob("lab.sqlite.corrupt-*")]
    assert sorted(kept) == ["first" * 100, "second" * 100, "third" * 100]


def test_the_side_files_move_with_a_damaged_notebook(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    path.write_text("no notebook" * 100)
    (tmp_path / "lab.sqlite-wal").write_bytes(b"wal" * 100)
    (tmp_path / "lab.sqlite-shm").write_bytes(b"shm" * 100)
    with Store.open(path) as store:
        put(store, {})
    (wal,), (shm,) = tmp_path.glob("*.corrupt-*-wal"), tmp_path.glob("*.corrupt-*-shm")
    assert (wal.read_bytes(), shm.read_bytes()) == (b"wal" * 100, b"shm" * 100)


def test_damage_is_not_moved_by_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    path.write_text("no notebook" * 100)
    with pytest.raises(RunError, match=r"damaged(.|\n)*moves it aside"):
        Store.open(path, read_only=True)
    assert [p.name for p in tmp_path.iterdir()] == ["lab.sqlite"]


def test_damage_met_while_writing_does_not_lose_the_run(tmp_path: Path) -> None:
    path = tmp_path / "lab.sqlite"
    with Store.open(path) as store:
        put(store, {"n": 0})
    with Store.open(path) as store:
        content = damage(path, "rest")  # after the check at opening
        run_id = put(store, {"x": 1})
        assert store.get(run_id).result == {"x": 1}
        assert "damaged" in store.notices[0]
    (aside,) = tmp_path.glob("lab.sqlite.corrupt-*Z")
    assert aside.read_bytes() == content


def test_processes_that_meet_a_damaged_file_at_once_lose_nothing(tmp_path: Path) -> None:
    paths = [tmp_path / str(n) / "lab.sqlite" for n in range(20)]
    for path in paths:
        path.parent.mkdir()
        path.write_text("no notebook" * 100)
    notices = write_at_once(2, paths)
    assert all("damaged" in notice for notice in notices) and len(notices) == len(paths)
    for path in paths:
        assert names(path) == sorted(f"p{i}-{n}" for i in range(4) for n in range(2))
        (aside,) = path.parent.glob("lab.sqlite.corrupt-*Z")
        assert aside.read_text() == "no notebook" * 100


def test_a_notebook_deleted_under_us_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "lab" / "lab.sqlite"
    with Store.open(path) as store:
        put(store, {"x": 1})
        shutil.rmtree(path.parent)
        run_id = put(store, {"x": 2})
        assert "moved away" in store.notices[0]
    with Store.open(path) as store:
        assert store.get(run_id).result == {"x": 2}


def test_the_two_sorts_of_old_estimates_are_read_by_their_own_names(tmp_path: Path) -> None:
    # Older versions wrote sums of blocks and rates of a recipe under one kind. The rows stay as they are.
    path = tmp_path / "lab.sqlite"
    ours = {"spec_id": "a", "name": "net", "code_version": "0", "inputs": {}}
    with Store.open(path) as store:
        old_sum = store.add("estimate", result={"measured_ratio": 0.1, "error": 0.05}, **ours)
        old_rate = store.add("estimate", result={"net_images_per_s": 9.0, "hours": 2.0}, **ours)
        new_sum = store.add("latency_estimate", result={"measured_ratio": None, "error": 0.05}, **ours)
        odd = store.add("estimate", result={"else": 1}, **ours)
        assert [r.id for r in store.runs(kind="latency_estimate")] == [new_sum, old_sum]
        assert [r.id for r in store.runs(kind="pretrain_estimate")] == [old_rate]
        assert [r.id for r in store.runs(kind="estimate")] == [odd, new_sum, old_rate, old_sum]
        assert {r.id: r.kind for r in store.runs()} == {
            old_sum: "latency_estimate", old_rate: "pretrain_estimate", new_sum: "latency_estimate", odd: "estimate",
        }  # fmt: skip
        assert store.get(old_rate).kind == "pretrain_estimate"
        assert {h.run.kind for h in store.find("9")} == {"pretrain_estimate"}
        assert [r.id for r in store.runs(kind="latency_estimate", limit=1)] == [new_sum]
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM runs WHERE kind = 'estimate'").fetchone() == (3,)
