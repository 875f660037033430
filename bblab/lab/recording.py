"""Results from outside into the notebook: a trainer's log, tables of scores, single scores.

Rows of kind "tracker_training" hold one training's curve, rows of kind "tracker_score" one score each. What is known
already is recognised (a log by its hash, a score by its value and place) and not written a second time.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab import manifests
from bblab.errors import BblabError, near
from bblab.spec import ArchSpec
from bblab.store import NewRun, Run, Store

if TYPE_CHECKING:
    from bblab.lab import Lab, Progress
    from bblab.tracking.gates import Gate, Verdict
    from bblab.tracking.logs import Log
    from bblab.tracking.metrics import Metric

TRAINING = "tracker_training"
SCORE = "tracker_score"
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Handed:
    """The hand-over in whose folder a log lies: what was trained, by its manifest."""

    folder: Path
    export_id: str
    name: str
    spec_id: str
    canonical: str
    target: str


@dataclass(frozen=True, slots=True)
class Score:
    """One score to store. `tracker` is its name in a table; `of` says from how many rows of a table it is."""

    metric: Metric
    value: float
    epoch: int | None = None
    tracker: str = ""
    of: int = 1


@dataclass(frozen=True, slots=True)
class Recorded:
    """What `record` did. Ids are those of new rows, or, in `known_*`, of rows that said the same before."""

    spec: ArchSpec
    log: Log | None
    training_id: int | None
    known_training_id: int | None
    continued_id: int | None
    new_epochs: tuple[int, ...]
    scores: tuple[Score, ...]
    score_ids: tuple[int, ...]
    known_score_ids: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]

    @property
    def must_stop(self) -> bool:
        """True where one of the rules says to stop."""
        return any(v.answer == "stop" for v in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        return {
            "spec": self.spec.name,
            "spec_id": self.spec.spec_id,
            "training_id": self.training_id,
            "known_training_id": self.known_training_id,
            "continued_id": self.continued_id,
            "new_epochs": list(self.new_epochs),
            "training": None if self.log is None or not self.log.epochs else _training(self.log),
            "scores": [_score(s) for s in self.scores],
            "score_ids": list(self.score_ids),
            "known_score_ids": list(self.known_score_ids),
            "gates": [_verdict(v) for v in self.verdicts],
            "notes": list(self.notes),
        }


def record(
    lab: Lab,
    reference: str | ArchSpec | None = None,
    *,
    edits: Sequence[str] = (),
    logs: Sequence[Path | str] = (),
    scores: Sequence[str] = (),
    epoch: int | None = None,
    benchmark: str | None = None,
    tracker: str | None = None,
    export: str | None = None,
    stop_if: Sequence[str] = (),
    note: str = "",
    force: bool = False,
    on_progress: Progress | None = None,
) -> Recorded:
    """Store the results of a tracker that was trained elsewhere on this backbone.

    `logs`: files of one training, in order of time, and of its evaluation. `scores`: NAME=VALUE, NAME@EPOCH=VALUE, or
    NAME:higher=VALUE for a metric of one's own. `benchmark` names the data of tables that do not say theirs, `tracker`
    (a name or pattern) the rows of a table that are this net's. `export`: the hand-over that was trained. `stop_if`:
    rules such as "total_loss > 0.25 at epoch 30". Spec and export are those of the manifest beside or above the logs
    where there is one; another spec is refused. `force`: record a log although it is recorded of another net. Every
    mistake is told before anything is written. Raises BblabError.
    """
    from bblab.tracking import gates

    handed = _handed(logs)
    spec = _spec(lab, reference, edits, handed)
    if not logs and not scores:
        raise BblabError("nothing to record", hint="give a log (--log train.log), a score (--metric vot2018_eao=0.265)")
    rules = [gates.parse(text) for text in stop_if]
    if rules and not logs:
        raise BblabError(f"{str(rules[0])!r} asks for a log", hint="give the training's log: --log train.log")
    notes: list[str] = []
    stated = [_stated(text, epoch, notes) for text in scores]
    exported: int | None = None
    trainings: list[Run] = []
    known_scores: list[Run] = []
    if lab.store_path.exists():
        with lab.notebook(read_only=True) as store:
            exported = _exported(store, spec, export, handed, notes)
            trainings = store.runs(kind=TRAINING)
            known_scores = store.runs(kind=SCORE, spec_id=spec.spec_id)
    elif export is not None:
        raise BblabError(f"no export {export!r}: this lab has no notebook yet", hint="bblab export SPEC writes one")
    elif handed is not None:
        notes.append(_not_here(handed))
    log = _read(logs, trainings, on_progress) if logs else None
    earlier = [run for run in trainings if run.spec_id == spec.spec_id and _is_of(run, exported, handed)]
    found = stated + (_of_tables(log, benchmark, tracker, epoch, notes) if log is not None else [])
    verdicts = tuple(_judged(rule, log, notes) for rule in rules) if log is not None else ()
    if log is not None:
        if log.began_anew and len({h.folder for h in map(manifest_above, logs) if h is not None}) > 1:
            raise BblabError("the logs are two trainings, in two folders", hint="record each training by itself")
        notes += log.notes
        _refuse_others(log, spec, [run for run in trainings if run not in earlier], handed, force, notes)

    same, continued, new_epochs = _compared(log, earlier)
    rows: list[NewRun] = []
    is_new = log is not None and bool(log.epochs) and same is None
    if is_new:
        assert log is not None
        inputs = _inputs(spec, log, exported, handed, note)
        if continued is not None:
            inputs["continues"] = continued.id
        gates_said = [_verdict(v) for v in verdicts]
        rows.append(_new(TRAINING, spec, inputs, {**_training(log), "gates": gates_said, "notes": notes}))
    told: list[int] = []
    fresh: list[Score] = []
    for score in found:
        twin = next((r for r in known_scores if _is_told(score, r, exported) and _is_of(r, exported, handed)), None)
        if twin is None:
            fresh.append(score)
        else:
            told.append(twin.id)
    from_log = None if log is None else [_file(f) for f in log.files]
    for score in fresh:
        of_training = {"training": same.id} if same is not None else {}
        inputs = {"spec": spec.name, "tracker": score.tracker, "logs": from_log or [], "export": exported, "note": note}
        inputs |= _of_manifest(handed)
        rows.append(_new(SCORE, spec, {**inputs, **of_training}, _score(score)))
    ids: list[int] = []
    if rows:
        with lab.notebook() as store:
            ids = store.add_many(rows)
    return Recorded(
        spec,
        log,
        training_id=ids[0] if is_new else None,
        known_training_id=same.id if same is not None else None,
        continued_id=continued.id if continued is not None else None,
        new_epochs=new_epochs,
        scores=tuple(found),
        score_ids=tuple(ids[1:] if is_new else ids),
        known_score_ids=tuple(told),
        verdicts=verdicts,
        notes=tuple(dict.fromkeys(notes)),
    )


def _new(kind: str, spec: ArchSpec, inputs: Mapping[str, Any], result: Mapping[str, Any]) -> NewRun:
    from bblab.lab import code_version

    return NewRun(kind, spec.spec_id, spec.name, code_version(), inputs, result, spec_text=spec.canonical)


# ---- scores


def _stated(text: str, epoch: int | None, notes: list[str]) -> Score:
    from bblab.tracking import metrics

    name, equals, said = text.partition("=")
    if not equals or not name.strip() or not said.strip():
        raise BblabError(f"--metric {text!r} is not NAME=VALUE", hint="--metric vot2018_eao=0.265")
    name, _, way = name.strip().partition(":")
    name, at, number = name.partition("@")
    if at:
        if not number.strip().isdigit():
            raise BblabError(f"--metric {text!r}: {number!r} is no epoch", hint="--metric vot2018_eao@37=0.265")
        epoch = int(number)
    ways = {"": None, "higher": True, "lower": False}
    if way.strip() not in ways:
        hint = f"write {name}:higher={said} or {name}:lower={said}"
        raise BblabError(f"--metric {text!r}: {way!r} says no direction", hint=hint)
    metric = metrics.find(name, ways[way.strip()])
    if metric.higher_is_better is None:
        notes.append(
            f"{metric.name} is not known here, so no report can tell which way is better: "
            f"{name}:higher={said} or {name}:lower={said} says it"
        )
    return Score(metric, metrics.value(metric, said), epoch)


def _of_tables(
    log: Log, benchmark: str | None, tracker: str | None, epoch: int | None, notes: list[str]
) -> list[Score]:
    """The scores of a log's tables that are this net's."""
    from bblab.tracking import metrics

    rows = list(log.rows)
    if tracker is not None:
        rows = [r for r in rows if fnmatch.fnmatchcase(r.tracker, tracker)]
        if not rows:
            names = sorted({r.tracker for r in log.rows})
            hint = near(tracker, names) if names else "the file has no table of scores"
            raise BblabError(f"no tracker {tracker!r} in the tables", hint=hint)
    if not rows:
        return []
    trackers = list(dict.fromkeys(r.tracker for r in rows))
    if len(trackers) > 1 and any(r.epoch is None for r in rows):
        shown = ", ".join(trackers[:8]) + (" ..." if len(trackers) > 8 else "")
        raise BblabError(f"the table has {len(trackers)} trackers: {shown}", hint="which is this net's? --tracker NAME")
    asked = None
    if benchmark is not None:
        asked = metrics.benchmark(benchmark)
        if asked is None:
            known = sorted({m.benchmark for m in metrics.METRICS.values() if m.benchmark})
            raise BblabError(f"no benchmark {benchmark!r}", hint=near(benchmark, known))
    found = []
    for row in rows:
        bench = row.benchmark or asked or _in_the_path(log)
        if bench is None:
            of = " and ".join(sorted(row.quantities))
            raise BblabError(f"the table with {of} does not say of which data", hint="say it: --benchmark vot2018")
        at = row.epoch if row.epoch is not None else epoch
        for name, value in row.quantities.items():
            metric = metrics.METRICS.get(f"{bench}_{name}") or metrics.find(f"{bench}_{name}", True)
            found.append(Score(metric, metrics.value(metric, repr(value)), at, row.tracker, len(trackers)))
    if len(trackers) > 1:
        notes.append(
            f"{len(trackers)} rows of one table: the best of them was chosen on the data that it is measured on"
        )
    return found


def _in_the_path(log: Log) -> str | None:
    """The benchmark that the file's name says: vot2018_eval.txt, results/OTB100.log."""
    import re

    from bblab.tracking import metrics

    said = set()
    for file in log.files:
        for word in re.split(r"[^A-Za-z0-9-]+|_", Path(file.path).stem):
            if len(word) > 3 and (bench := metrics.benchmark(word)):
                said.add(bench)
    return said.pop() if len(said) == 1 else None


def _score(score: Score) -> dict[str, Any]:
    return {
        "metric": score.metric.name,
        "value": score.value,
        "epoch": score.epoch,
        "higher_is_better": score.metric.higher_is_better,
        "benchmark": score.metric.benchmark,
        "split": score.metric.split,
        "tracker": score.tracker,
        "rows_in_table": score.of,
    }


def _is_told(score: Score, run: Run, export: Any) -> bool:
    keys = ("metric", "value", "epoch", "tracker")
    ours = _score(score)
    return all(run.result.get(k) == ours[k] for k in keys) and run.inputs.get("export") == export


# ---- the training


def _read(paths: Sequence[Path | str], earlier: Sequence[Run], on_progress: Progress | None) -> Log:
    from bblab.tracking import logs

    marks = [f["size_bytes"] for run in earlier for f in run.inputs.get("logs") or [] if isinstance(f, dict)]

    def tell(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(done, total, None, "reading logs")

    return logs.read(paths, marks=[m for m in marks if isinstance(m, int)], on_progress=tell)


def _compared(log: Log | None, earlier: Sequence[Run]) -> tuple[Run | None, Run | None, tuple[int, ...]]:
    """(row with the same content, row that this log continues, epochs that are new); newest row first."""
    if log is None or not log.epochs:
        return None, None, ()
    complete = [e.epoch for e in log.epochs if log.last_complete is not None and e.epoch <= log.last_complete]
    hashes = {f.sha256 for f in log.files} | {h for f in log.files for h in f.prefixes.values()}
    for run in earlier:
        before = _hashes(run)
        if not before or not before <= hashes:
            continue
        if log.began_anew and any(f.sha256 not in before for f in log.files):
            continue  # behind that run's training the file holds another
        known = {p.get("epoch") for p in run.result.get("curve") or [] if p.get("is_complete")}
        fresh = tuple(e for e in complete if e not in known)
        changed = not fresh and any(f.sha256 not in before for f in log.files) and _differs(log, run)
        return (None, run, fresh) if fresh or changed else (run, None, ())
    return None, None, tuple(e.epoch for e in log.epochs)


def _hashes(run: Run) -> set[str]:
    return {str(f.get("sha256")) for f in run.inputs.get("logs") or [] if isinstance(f, dict)}


def _differs(log: Log, run: Run) -> bool:
    """Whether complete epochs have other means than the stored ones: a resumed training that repeats them."""
    stored = {p["epoch"]: p for p in run.result.get("curve") or [] if p.get("is_complete")}
    return any(_point(e, log)[k] != v for e in log.epochs if e.epoch in stored for k, v in stored[e.epoch].items())


def _inputs(spec: ArchSpec, log: Log, export: Any, handed: Handed | None, note: str) -> dict[str, Any]:
    return {
        "spec": spec.name,
        "trainer": log.trainer,
        "logs": [_file(f) for f in log.files],
        "export": export,
        "note": note,
        **_of_manifest(handed),
    }


def _of_manifest(handed: Handed | None) -> dict[str, str]:
    return {} if handed is None else {"export_id": handed.export_id, "handed_over_in": str(handed.folder)}


def _file(file: Any) -> dict[str, Any]:
    return {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}


def _training(log: Log) -> dict[str, Any]:
    """A training as the notebook holds it: `curve` has one object an epoch."""
    points = [_point(e, log) for e in log.epochs]
    return {
        "trainer": log.trainer,
        "total": log.total,
        "names": list(log.names),
        "num_epochs": len(points),
        "first_epoch": points[0]["epoch"],
        "last_epoch": points[-1]["epoch"],
        "last_complete_epoch": log.last_complete,
        "iterations_per_epoch": log.epochs[-1].iterations,
        "unfrozen_after_epoch": log.unfrozen_at,
        "started": log.started,
        "ended": log.ended,
        "curve": points,
    }


def _point(e: Any, log: Log) -> dict[str, Any]:
    """An epoch: its mean of each value, and of the total also what was printed last."""
    point: dict[str, Any] = {"epoch": e.epoch, "lr": e.lr}
    for name in log.names:
        value = e.means.get(name, math.nan)
        point[name] = _rounded(value)
    if log.total is not None and log.total in e.lasts:
        point[f"{log.total} last"] = _rounded(e.lasts[log.total])
    point["batch_time_s"] = None if e.batch_time_s is None else _rounded(e.batch_time_s)
    point["iteration"] = e.iteration
    is_past = log.last_complete is not None and e.epoch <= log.last_complete
    point["is_complete"] = is_past
    return point


def _rounded(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


# ---- gates


def _judged(rule: Gate, log: Log, notes: list[str]) -> Verdict:
    from bblab.tracking import gates

    if not log.epochs:
        raise BblabError("the files hold no training, only tables of scores", hint="give the training's log, too")
    name = gates.column(rule.what, log.names, log.total)
    verdict = gates.judge(rule, log.curve(name), log.last_complete)
    at = next((e for e in log.epochs if e.epoch == verdict.epoch), None)
    if at is not None and verdict.value is not None and verdict.answer in ("stop", "go_on"):
        last = at.lasts.get(name, verdict.value)
        if rule.is_met(last) != (verdict.answer == "stop"):
            notes.append(
                f"a close call: {name} was {last:.4g} as printed last in epoch {at.epoch}, the rule takes the mean"
            )
    return verdict


def _verdict(v: Verdict) -> dict[str, Any]:
    return {
        "rule": str(v.gate),
        "answer": v.answer,
        "epoch": v.epoch,
        "value": None if v.value is None else _rounded(v.value),
        "because": v.because,
    }


# ---- the hand-over that was trained


def manifest_above(path: Path | str) -> Handed | None:
    """The hand-over in whose folder, or below it, a file lies; None where it lies in none."""
    found = manifests.above(path)
    if found is None:
        return None
    folder, value = found
    try:
        spec = value["spec"]
        told = (value["export_id"], spec["name"], spec["spec_id"], spec["canonical"], value["target"])
    except (KeyError, TypeError):
        raise BblabError(
            f"{folder / manifests.NAME} does not say what was trained",
            hint="it was changed: put back the one that bblab export wrote, or keep the log elsewhere",
        ) from None
    if (folder.parent.name, folder.name) == ("runs", "smoke"):
        raise BblabError(
            f"{path} is the log of a smoke run: some iterations on made-up crops, no training",
            hint="record the log of a training: runs/1, runs/2, ... in the hand-over's folder",
        )
    return Handed(folder, *map(str, told))


def _handed(logs: Sequence[Path | str]) -> Handed | None:
    """The one hand-over that the logs lie in. Raises BblabError where they are of several."""
    found = {path: manifest_above(path) for path in logs}
    there = [handed for handed in found.values() if handed is not None]
    for handed in there[1:]:
        first = there[0]
        if handed.export_id != first.export_id:
            raise BblabError(
                f"the logs are of two hand-overs: {first.folder} trains {first.name} (export {first.export_id}), "
                f"{handed.folder} trains {handed.name} (export {handed.export_id})",
                hint="record each training by itself",
            )
    return there[0] if there else None


def _spec(lab: Lab, reference: str | ArchSpec | None, edits: Sequence[str], handed: Handed | None) -> ArchSpec:
    """What was trained: as the manifest holds it, or as the user says where there is none. Both must agree."""
    if reference is None:
        if handed is None:
            raise BblabError(
                "which net was trained?",
                hint="bblab record SPEC ...; a log in the folder that bblab export --for wrote needs no SPEC",
            )
        if edits:
            raise BblabError("--set edits a SPEC, and none is given", hint="the log's manifest holds what was trained")
        return _as_handed(lab, handed)
    spec = reference if isinstance(reference, ArchSpec) else lab.spec(reference, edits)
    if handed is None or spec.spec_id == handed.spec_id:
        return spec
    is_edited = spec.name == handed.name
    what = f"{spec.name} as it is now ({spec.spec_id})" if is_edited else f"{spec.name} ({spec.spec_id})"
    raise BblabError(
        f"the log is not of {what}: {handed.folder / manifests.NAME} says that {handed.name} ({handed.spec_id}) "
        "was trained there",
        hint="leave SPEC away, and the log is recorded under the spec that was trained",
    )


def _as_handed(lab: Lab, handed: Handed) -> ArchSpec:
    """The spec that was exported: the lab's, where it is still the same, else that of the manifest."""
    from bblab.weights.sources import spec_from

    with suppress(BblabError):
        spec = lab.spec(handed.name)
        if spec.spec_id == handed.spec_id:
            return spec
    spec = spec_from(handed.canonical, handed.name, lab.kinds)
    if spec.spec_id != handed.spec_id:
        raise BblabError(
            f"{handed.folder / manifests.NAME}: the spec in it is {spec.spec_id}, not {handed.spec_id} as it says",
            hint="the manifest was changed: name the SPEC that was trained, and keep the log elsewhere",
        )
    return spec


def _exported(store: Store, spec: ArchSpec, export: str | None, handed: Handed | None, notes: list[str]) -> int | None:
    """The row of the export that was trained, by --export or by the manifest; None where neither names one here."""
    if handed is None:
        return None if export is None else _export(store, spec, export)
    rows = store.runs(kind="export")
    row = next((r for r in rows if str(r.result.get("export_id", "")) == handed.export_id), None)
    if export is not None:
        asked = _export(store, spec, export)
        if row is None or asked not in {r.id for r in rows if r.result.get("export_id") == handed.export_id}:
            raise BblabError(
                f"--export {export} was not trained: {handed.folder / manifests.NAME} is of export {handed.export_id}",
                hint="leave --export away: it is taken from the manifest",
            )
        return asked
    if row is None:
        notes.append(_not_here(handed))
    return None if row is None else row.id


def _not_here(handed: Handed) -> str:
    return f"export {handed.export_id}, which was trained, is not in this notebook: its ID is kept"


def _is_of(run: Run, exported: int | None, handed: Handed | None) -> bool:
    """Whether a recorded training may be of the same hand-over: one that names none may be of any."""
    theirs = run.inputs.get("export_id")
    if handed is not None and theirs is not None:
        return bool(theirs == handed.export_id)
    row = run.inputs.get("export")
    return row is None or exported is None or row == exported


def _refuse_others(
    log: Log, spec: ArchSpec, others: Sequence[Run], handed: Handed | None, force: bool, notes: list[str]
) -> None:
    """Say, or refuse, that the log is or begins with what is recorded of another net or another hand-over."""
    whole = {f.sha256 for f in log.files}
    begins = {h for f in log.files for h in f.prefixes.values()}
    for run in others:
        before = _hashes(run)
        if not before or not before & (whole | begins):
            continue
        of = f"run {run.id}, of {run.name} ({run.spec_id}"
        of += f", export {run.inputs['export_id']})" if run.inputs.get("export_id") else ")"
        if not before & whole and log.began_anew:
            notes.append(f"the file begins with what is recorded as {of}: that part is left out")
            continue
        what = "this log is recorded as" if before & whole else "the log begins with what is recorded as"
        if force or (handed is not None and handed.export_id == run.inputs.get("export_id")):
            notes.append(f"{what} {of}, too")
            continue
        raise BblabError(
            f"{what} {of}, and cannot be of {spec.name} ({spec.spec_id}) as well",
            hint=f"bblab record {run.name} --log ... if that was trained; --force where run {run.id} is the mistake",
        )


def _export(store: Store, spec: ArchSpec, export: str) -> int:
    """The row of the export of this id: the id of its manifest, or the beginning of it, or the row's number."""
    known = store.runs(kind="export")
    wanted = export.strip()
    found = next((r for r in known if wanted and str(r.result.get("export_id", "")) == wanted), None)
    found = found or next((r for r in known if str(r.id) == wanted), None)
    if found is None and len(wanted) >= 4:
        found = next((r for r in known if str(r.result.get("export_id", "")).startswith(wanted)), None)
    if found is None:
        if wanted.isdigit() and len(wanted) < 12 and (other := _kind(store, int(wanted))):
            raise BblabError(f"run {wanted} is a {other}, not an export", hint=_known_exports(known))
        raise BblabError(f"no export {export!r} in the notebook", hint=_known_exports(known))
    if found.spec_id != spec.spec_id:
        raise BblabError(
            f"export {export} is of {found.name} ({found.spec_id}), not of {spec.name} ({spec.spec_id})",
            hint=f"bblab record {found.name} ... if that was trained",
        )
    return found.id


def _kind(store: Store, run_id: int) -> str:
    try:
        return store.get(run_id).kind
    except BblabError:
        return ""


def _known_exports(known: Sequence[Run]) -> str:
    if not known:
        return "bblab export SPEC --for nanotrack --out DIR writes one and says its id"
    return "known: " + ", ".join(f"{r.result.get('export_id') or r.id} ({r.name})" for r in known[:8])
