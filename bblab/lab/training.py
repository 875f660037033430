"""Pretraining from the lab: plans a run, starts it, and puts what its folder records into the notebook.

A run is a folder. The training knows nothing of the notebook: it appends JSON lines, which are read here when it has
ended, also by the next command after a crash.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab import rooms as places
from bblab.errors import BblabError, RunError
from bblab.installing import how_to_install
from bblab.pretraining import card, gates, launch, record
from bblab.pretraining import recipe as recipes
from bblab.pretraining.config import Plan, Precision, Settings, plain_spec, with_head
from bblab.pretraining.launch import Machines
from bblab.pretraining.record import History
from bblab.pretraining.schedule import RULES, Rule, keeps_last_batch
from bblab.spec import ArchSpec

if TYPE_CHECKING:
    from bblab.lab import Lab
    from bblab.pretraining.estimate import Estimate

KIND = "pretrain"
ELSEWHERE = "elsewhere.txt"
DIGITS = "digits"
Tell = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the designer asked for, where it is not the default."""

    data: Path | str | None = None
    ann_train: Path | str | None = None
    ann_val: Path | str | None = None
    recipe: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr_rule: Rule = "none"
    accumulation: int = 1
    processes: int = 1
    machines: Machines = field(default_factory=Machines)
    seed: int = 0
    precision: Precision = "auto"
    workers: int | None = None
    compile: bool = False
    freeze: str | None = None
    weights: str | None = None
    stop_if: tuple[str, ...] = ()
    save_minutes: float = 10.0
    run: Path | str | None = None


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A training as its record tells it. `status` as in `bblab.pretraining.record`; `run_id` None where not stored."""

    folder: Path
    plan: Plan
    history: History
    status: str
    message: str = ""
    hint: str = ""
    run_id: int | None = None
    notices: tuple[str, ...] = ()

    @property
    def top1_percent(self) -> float | None:
        """Of the weights that were written; else of the last validation."""
        if "result" in self.history.last:
            value: float | None = self.history.last["result"]["top1_percent"]
            return value
        known = [v.get("top1_percent") for v in self.history.validations.values()]
        return known[-1] if known else None

    @property
    def best(self) -> tuple[int, float] | None:
        """(epoch, top-1 in percent) of the best validation."""
        known = [(v["top1_percent"], -e) for e, v in self.history.validations.items() if "top1_percent" in v]
        return (-max(known)[1], max(known)[0]) if known else None

    def to_json(self) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "folder": str(self.folder),
            **summary(self.plan, self.history, self.status, self.message),
            "inputs": inputs(self.plan),
            "epochs": list(self.history.epochs.values()),
            "validations": list(self.history.validations.values()),
        }


# ---------------------------------------------------------------------------------------------- planning


def chosen_spec(lab: Lab, reference: str | ArchSpec | None, edits: Sequence[str] = ()) -> ArchSpec:
    """The spec asked for, else the one that was profiled last in this lab, as it was then."""
    if isinstance(reference, ArchSpec):
        return reference
    if reference is not None:
        return lab.spec(reference, edits)
    with lab.notebook(read_only=True) as store:
        rows = store.runs(kind="profile", limit=1)
        text = store.spec_text(rows[0].spec_id) if rows else None
    if not rows:
        raise BblabError(
            "which spec? None was profiled in this lab yet", hint="bblab pretrain SPEC, for example mobilenetv3_small"
        )
    if edits:
        return lab.spec(rows[0].name, edits)
    with suppress(BblabError):
        found = lab.spec(rows[0].name)
        if found.spec_id == rows[0].spec_id or text is None:
            return found
    if text is None:
        raise BblabError(f"{rows[0].name}, profiled last, is no longer there", hint="bblab pretrain SPEC")
    from bblab.weights.sources import spec_from

    return spec_from(text, rows[0].name, lab.kinds)


def plan(lab: Lab, spec: ArchSpec, wanted: Wanted) -> Plan:
    """A run, with everything that can be known to be wrong before it: spec, recipe, data, batch, gates, weights.

    Raises BblabError.
    """
    from bblab.lab import code_version

    for package in ("mmengine", "mmcv", "mmpretrain"):
        if importlib.util.find_spec(package) is None:
            raise BblabError(f"training needs {package}", hint=how_to_install("mmpretrain"))
    from bblab.pretraining import config, data, nets

    is_digits, cut = wanted.data is None, []
    recipe = recipes.find(wanted.recipe or (DIGITS if is_digits else "rank16"), lab.rooms)
    if wanted.epochs is not None:
        if wanted.epochs < 1:
            raise BblabError(f"--epochs {wanted.epochs}", hint="a whole number from 1")
        full, recipe = recipe, shortened(recipe, wanted.epochs)
        cut = lost(full, recipe)
    cache = places.cache_dir()
    source = data.digits(cache) if wanted.data is None else wanted.data
    info = data.fingerprint(source, wanted.ann_train, wanted.ann_val, cache)
    info.require_sound()
    notes = [*cut, *(str(p).replace("\n", " ") for p in info.problems if p.severity == "warning")]
    if spec.input[0] not in config.CHANNELS:
        raise BblabError(
            f"{spec.name} takes {spec.input[0]} channels (input: {list(spec.input)}); pictures have three, grey ones "
            "one",
            hint="input: [3, height, width] for colours, [1, height, width] for grey",
        )
    trained, changed = with_head(spec, len(info.classes), recipe.dropout)
    if changed:
        notes.append(changed)
    if recipe.drop_path:
        notes.append(f"drop-path {recipe.drop_path:g} is left out: no block here drops its path")
    if wanted.weights is not None:
        notes += nets.beginnings(Path(wanted.weights).expanduser(), trained, lab.kinds)
    if wanted.processes < 1:
        raise BblabError(f"--gpus {wanted.processes}", hint="a whole number from 1")
    processes = wanted.processes * wanted.machines.nodes
    settings = Settings(
        batch_size=_batch(wanted, recipe, processes, info.train_count),
        processes=processes,
        accumulation=wanted.accumulation,
        lr_rule=wanted.lr_rule,
        seed=wanted.seed,
        precision=wanted.precision,
        workers=wanted.workers,
        compile=wanted.compile,
        freeze=wanted.freeze,
        weights=None if wanted.weights is None else str(Path(wanted.weights).expanduser().absolute()),
        save_minutes=wanted.save_minutes,
    )
    _whole(settings)
    settings = replace(settings, keeps_last=keeps_last_batch(info.train_count, settings.batch_size, processes))
    found = tuple(gates.parse(text, recipe.epochs) for text in wanted.stop_if)
    has_lab_block = any(lab.kinds[r.kind].origin == "lab" for s in trained.stages for r in s.rows)
    made = Plan(
        name=spec.name,
        spec=plain_spec(trained),
        spec_id=spec.spec_id,
        recipe=recipe,
        data=info.to_json(),
        settings=settings,
        gates=tuple(gates.against(g, curves(lab, recipe, info.hash)) if g.which else g for g in found),
        lab=str(lab.folder.absolute()) if has_lab_block else None,
        code_version=code_version(),
        notes=tuple(notes),
        extra={"spec_text": spec.canonical},
    )
    config.build(made, Path("run"))  # its own complaints: a batch larger than the data
    for px in sorted({*(px for _, px in recipe.resolutions_px), recipe.val_resolution_px}):
        if not spec.library:
            lab.analyst.cost(trained, "train", (px, px))  # whether the net takes this size
    net, frozen = nets.make(trained, lab.kinds, len(info.classes), weights=settings.weights, freeze=settings.freeze)
    if spec.library:
        _takes_sizes(net, spec, sorted({*(px for _, px in recipe.resolutions_px), recipe.val_resolution_px}))
    settling = nets.settling_steps(net, frozen)
    if made.iterations < settling:
        images = min(nets.PRECISE_IMAGES, info.train_count)
        batch = settings.batch_size * settings.processes
        made = replace(made, settings=replace(settings, precise_images=max(1, images // batch) * batch))
    return replace(made, extra={**made.extra, "settling_steps": settling})


def _takes_sizes(net: Any, spec: ArchSpec, sizes: Sequence[int]) -> None:
    """Another library's net may take one size only: run it at each. Raises BblabError."""
    import torch

    from bblab.pretraining import nets

    net.eval()
    for px in sizes:
        try:
            with torch.no_grad():
                nets.scores(net, torch.zeros(1, spec.input[0], px, px))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise BblabError(
                f"{spec.name} cannot be trained at {px} px: {(str(error) or type(error).__name__).splitlines()[0]}",
                hint="a recipe whose resolution_px, resolution_ramp and val_resolution_px it takes",
            ) from None


def shortened(recipe: recipes.Recipe, epochs: int) -> recipes.Recipe:
    """The recipe over another number of epochs: warm-up, ramp and steps keep their share of it."""
    ratio = epochs / recipe.epochs
    ramp: dict[int, int] = {}
    for epoch, px in recipe.resolution_ramp:
        if epochs > 1:
            ramp[min(epochs - 1, max(1, round(epoch * ratio)))] = px
    return replace(
        recipe,
        epochs=epochs,
        warmup_epochs=recipe.warmup_epochs * ratio,
        step_epochs=recipe.step_epochs * ratio,
        milestones=tuple(sorted({at for m in recipe.milestones if (at := max(1, round(m * ratio))) < epochs})),
        resolution_ramp=tuple(sorted(ramp.items())),
    )


def lost(full: recipes.Recipe, short: recipes.Recipe) -> list[str]:
    """What a recipe over fewer epochs does not have any more, in words."""
    epochs = f"{short.epochs} epoch{'s' if short.epochs > 1 else ''}"
    notes = []
    sizes = {px for _, px in short.resolutions_px}
    if gone := [px for _, px in full.resolutions_px if px not in sizes]:
        listing = ", ".join(map(str, gone))
        notes.append(f"in {epochs} there is no room for training at {listing} px, which {full.name} has")
    if len(short.milestones) < len(full.milestones):
        kept = f"{len(short.milestones)} of the {len(full.milestones)}"
        notes.append(f"in {epochs} {kept} steps of {full.name}'s learning rate remain")
    return notes


def _batch(wanted: Wanted, recipe: recipes.Recipe, processes: int, images: int) -> int:
    if wanted.batch_size is not None:
        return wanted.batch_size
    return max(1, min(recipe.base_batch // (processes * max(1, wanted.accumulation)), images // processes))


def _whole(s: Settings) -> None:
    for name, value, low, high in (
        ("--batch-size", s.batch_size, 2, 1_000_000),
        ("--accumulate", s.accumulation, 1, 100_000),
        ("--gpus", s.processes, 1, 100_000),
        ("--workers", s.workers or 0, 0, 1024),
        ("--seed", s.seed, 0, 2**32 - 1),
    ):
        if not low <= value <= high:
            why = " (batch norm needs two images)" if name == "--batch-size" and value == 1 else ""
            raise BblabError(f"{name} {value}{why}", hint=f"a whole number from {low} to {high}")
    if s.lr_rule not in RULES:
        raise BblabError(f"--lr-rule {s.lr_rule!r}", hint="linear or sqrt")
    if s.precision not in ("auto", "fp32", "bf16"):
        raise BblabError(f"--precision {s.precision!r}", hint="auto, fp32 or bf16")


def curves(lab: Lab, recipe: recipes.Recipe, data_hash: str) -> list[dict[str, list[float]]]:
    """Loss and accuracy by epoch of the stored runs of a recipe on this data, newest first, each run once.

    Of any spec; a recipe over another number of epochs is another recipe.
    """
    with lab.notebook(read_only=True) as store:
        rows = store.runs(kind=KIND)
        found, seen = [], set()
        for row in rows:
            used = row.inputs.get("recipe", {})
            is_same = (used.get("name"), used.get("epochs")) == (recipe.name, recipe.epochs)
            if not is_same or row.inputs.get("data", {}).get("hash") != data_hash:
                continue
            if row.result.get("folder_name") in seen:
                continue
            seen.add(row.result.get("folder_name"))
            samples = store.samples(row.id)
            found.append(
                {"loss": list(samples.get("train_loss", ())), "accuracy": list(samples.get("top1_percent", ()))}
            )
    return found


# ---------------------------------------------------------------------------------------------- running


def pretrain(
    lab: Lab, spec: ArchSpec, wanted: Wanted, *, made: Plan | None = None, on_progress: Tell | None = None
) -> Pretrained:
    """Train a spec from the beginning. What it did is stored however it ends."""
    from bblab.pretraining.run import write_plan

    sweep(lab)
    made = made or plan(lab, spec, wanted)
    folder = _new_folder(lab, made, wanted.run)
    try:
        write_plan(folder, made)
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written: {error.strerror}", hint="name another place with --run DIR"
        ) from None
    return _carried_out(lab, folder, made, wanted.machines, on_progress)


def join(lab: Lab, wanted: Wanted, *, on_progress: Tell | None = None, patience_s: float = 600) -> Pretrained:
    """Another machine's part of a run: its plan is in the shared folder `wanted.run`, written by the first machine."""
    import time

    from bblab.pretraining.run import read_plan

    if wanted.run is None:
        raise BblabError(
            "a further machine reads the plan from the run's folder",
            hint="name a folder on a shared disk with --run DIR, the same on every machine",
        )
    folder = Path(wanted.run).expanduser().absolute()
    until = time.monotonic() + patience_s
    while not (folder / record.PLAN).exists() and time.monotonic() < until:
        time.sleep(0.5)
    made = read_plan(folder)
    per_machine = made.settings.processes // wanted.machines.nodes
    history = launch.train(folder, processes=per_machine, machines=wanted.machines, on_progress=on_progress)
    end = history.end or {}
    return Pretrained(folder, made, history, end.get("status", record.DONE), end.get("message", ""))


def resume(
    lab: Lab,
    run: Path | str | None,
    name: str | None = None,
    *,
    wanted: Wanted,
    on_progress: Tell | None = None,
    on_start: Callable[[Plan, Sequence[str]], None] | None = None,
) -> Pretrained:
    """Go on with a run from its newest checkpoint that is as it was written: the folder given, or the number that it is
    stored under, else the newest that is unfinished.

    The folder may have been moved. Gates and the number of processes are those of the plan. `on_start` gets the plan
    and, in words, from where it goes on. Raises BblabError where there is nothing to go on with, it is running, or the
    data is not what the run began with.
    """
    from bblab.pretraining.run import read_plan, write_plan

    folder = _folder(lab, run) if run is not None else _unfinished(lab, name)
    sweep(lab, going_on=folder)
    made = read_plan(folder)
    if record.is_running(folder):
        raise BblabError(f"{folder} is being trained now", hint="wait for it, or stop it first")
    if wanted.data is None:
        made = replace(made, data={**made.data, "root": str(_where_data_is(made))})
    before, made = made.data["hash"], _with_data(made, wanted)
    lines = goes_on_from(folder, made)
    if made.data["hash"] != before:
        lines.append(f"some images in {made.data['root']} are not what they were: from here on the run is another")
    write_plan(folder, made)
    if on_start is not None:
        on_start(made, lines)
    return _carried_out(lab, folder, made, wanted.machines, on_progress)


def goes_on_from(folder: Path, made: Plan) -> list[str]:
    """Where a run goes on, and what is wrong with newer checkpoints. Raises RunError where all of them are damaged."""
    from bblab.pretraining import checkpoints

    path, wrong = checkpoints.start(folder)
    lines = list(wrong)
    if path is None:
        return [f"{folder.name} has no checkpoint yet: begins with epoch 1"]
    epoch, batches = checkpoints.order(path) or (0, 0)
    where = f"after step {batches} of epoch {epoch + 1}" if batches else f"after epoch {epoch}"
    verb = "the one before is taken: goes" if wrong else "goes"
    return [*lines, f"{verb} on from {path.name}, {where} of {made.recipe.epochs}"]


def _with_data(made: Plan, wanted: Wanted) -> Plan:
    """The plan with the data as it is now: as many images of the same classes as when the run began, or BblabError.

    In another folder they must be the very same.
    """
    from bblab.pretraining import data

    root, lists = Path(wanted.data or made.data["root"]), (wanted.ann_train, wanted.ann_val)
    if wanted.data is None and made.data["layout"] == "annotations":
        lists = (root / made.data["ann_train"], root / made.data["ann_val"])
    info = data.fingerprint(root, lists[0], lists[1], places.cache_dir())
    counts, before = ((d.train_count, d.val_count, d.classes) for d in (info, data.DataInfo.from_json(made.data)))
    if info.hash != made.data["hash"] and (wanted.data is not None or counts != before):
        raise BblabError(
            f"{info.root} is not the data that this run began with: {counts[0]:,} + {counts[1]:,} images in "
            f"{len(counts[2])} classes, fingerprint {info.hash[:12]}; it began with {before[0]:,} + {before[1]:,} in "
            f"{len(before[2])}, {made.data['hash'][:12]}",
            hint="put the images back; or begin a new run for other data (--weights FILE begins from this one's)",
        )
    info.require_sound()
    return replace(made, data=info.to_json())


def _where_data_is(made: Plan) -> Path:
    """Where it was; the digits are in this cache too, written again where that was emptied or is another's."""
    from bblab.pretraining import data

    root = Path(made.data["root"])
    if root.is_dir():
        return root
    if root.name == data.DIGITS:
        return data.digits(places.cache_dir())
    raise BblabError(f"the data {root} is not there", hint="say where it is now with --data DIR")


def _carried_out(lab: Lab, folder: Path, made: Plan, machines: Machines, on_progress: Tell | None) -> Pretrained:
    problem: BblabError | None = None
    try:
        per_machine = made.settings.processes // machines.nodes
        launch.train(folder, processes=per_machine, machines=machines, on_progress=on_progress)
    except BblabError as error:
        problem = error
    found = ingest(lab, folder)
    if problem is not None:
        found = replace(found, status=record.KILLED, message=problem.message, hint=problem.hint)
    return found


def _new_folder(lab: Lab, made: Plan, wanted: Path | str | None) -> Path:
    try:
        if wanted is not None:
            folder = Path(wanted).expanduser().absolute()
            if (folder / record.PLAN).exists():
                raise BblabError(
                    f"{folder} holds a run already", hint="go on with it: --resume, or name another folder"
                )
            folder.mkdir(parents=True, exist_ok=True)
            (lab.folder / "runs").mkdir(parents=True, exist_ok=True)
            with (lab.folder / "runs" / ELSEWHERE).open("a", encoding="utf-8") as file:
                file.write(f"{folder}\n")
            return folder
        stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{Path(made.name).name}-{made.recipe.name}")
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        for count in range(1000):
            folder = lab.folder / "runs" / (f"{stamp}-{stem}" + (f"-{count}" if count else ""))
            with suppress(FileExistsError):
                folder.mkdir(parents=True)
                return folder
    except OSError as error:
        raise RunError(f"no folder for the run: {error}", hint="name another place with --run DIR") from None
    raise RunError(f"no free name for a run in {lab.folder / 'runs'}", hint="name a folder with --run DIR")


def folders(lab: Lab) -> list[Path]:
    """Every run that this lab knows, newest first."""
    room = lab.folder / "runs"
    found = [p.parent for p in room.glob(f"*/{record.PLAN}")]
    with suppress(OSError):
        lines = (room / ELSEWHERE).read_text(encoding="utf-8").splitlines()
        found += [Path(line) for line in dict.fromkeys(lines) if (Path(line) / record.PLAN).is_file()]
    return sorted(found, key=lambda p: (p / record.PLAN).stat().st_mtime, reverse=True)


def _folder(lab: Lab, run: Path | str) -> Path:
    """A run's folder: as given, or of the stored run of that number, in this lab where it was moved."""
    given = Path(run).expanduser().absolute()
    if not str(run).isdecimal() or given.exists():
        return given
    with lab.notebook(read_only=True) as store:
        row = store.get(int(str(run)))
    if row.kind != KIND:
        raise BblabError(f"run {run} is no training but: {row.kind}, {row.name}", hint=f"bblab runs --kind {KIND}")
    folders_of_it = [lab.folder / "runs" / str(row.result.get("folder_name")), Path(str(row.result.get("folder")))]
    return next((folder for folder in folders_of_it if (folder / record.PLAN).is_file()), folders_of_it[-1])


def _unfinished(lab: Lab, name: str | None) -> Path:
    from bblab.pretraining.run import read_plan

    for folder in folders(lab):
        end = History.of(folder).end
        if end is not None and end["status"] in (record.DONE, record.GATED):
            continue
        with suppress(BblabError):
            if name is None or read_plan(folder).name == name:
                return folder
    what = f"of {name} " if name else ""
    raise BblabError(f"no run {what}in {lab.folder} is unfinished", hint="name its folder: --resume --run DIR")


def estimate(lab: Lab, made: Plan, *, budget_s: float | None = None) -> tuple[Estimate, int]:
    """What a plan would take on this machine, measured on a few steps; with the row it is stored in."""
    import tempfile

    from bblab.pretraining import estimate as measuring
    from bblab.pretraining.run import settle

    with tempfile.TemporaryDirectory(prefix="bblab-estimate-") as folder:
        found = measuring.estimate(settle(made), Path(folder), budget_s=budget_s or measuring.BUDGET_S)
    result = found.to_json()
    samples = {key: list(result.pop(key)) for key in ("net_samples_s", "loader_samples_s")}
    with lab.notebook() as store:
        run_id = store.add(
            "pretrain_estimate",
            spec_id=made.spec_id,
            name=made.name,
            code_version=made.code_version,
            inputs=inputs(made),
            result=result,
            samples=samples,
            spec_text=made.extra.get("spec_text", ""),
        )
    return found, run_id


# ---------------------------------------------------------------------------------------------- the notebook


def sweep(lab: Lab, going_on: Path | None = None) -> list[int]:
    """Store the runs that ended without a command to see it (a crash, a power cut); the rows' ids.

    going_on: the run that this command goes on with.
    """
    stored: list[int] = []
    known = {(name, lines) for _, name, lines in _rows(lab)}
    for folder in folders(lab):
        lines = record.read(folder)
        if record.is_running(folder) or not lines or (_identity(lines), len(lines)) in known:
            continue
        with suppress(BblabError):
            found = ingest(lab, folder)
            if found.run_id is not None:
                stored.append(found.run_id)
                lab.notices.append(
                    f"{folder.name} had ended unseen ({found.status}): stored as run {found.run_id}"
                    + (
                        ""
                        if found.status in (record.DONE, record.GATED) or folder == going_on
                        else f"; go on: bblab pretrain --resume --run {folder}"
                    )
                )
    return stored


def _identity(lines: Sequence[Mapping[str, Any]]) -> str:
    """What a record is known by, wherever its folder lies: its first line."""
    return hashlib.sha256(json.dumps(lines[0], sort_keys=True).encode()).hexdigest()[:16] if lines else ""


def _rows(lab: Lab) -> list[tuple[int, str, int]]:
    """(row, record, its number of lines) of the stored runs, newest first."""
    if not lab.store_path.exists():
        return []
    with lab.notebook(read_only=True) as store:
        rows = store.runs(kind=KIND)
    return [(r.id, r.result.get("record", ""), r.result.get("record_lines", 0)) for r in rows]


def ingest(lab: Lab, folder: Path) -> Pretrained:
    """A row for a run as its folder records it now, once; its curves are drawn. Raises BblabError for no run."""
    from bblab.pretraining.run import read_plan

    made, history = read_plan(folder), History.of(folder)
    end = history.end or {}
    status = end.get("status", record.KILLED)
    found = Pretrained(folder, made, history, status, end.get("message", ""), end.get("hint", ""))
    notices = []
    try:
        from bblab.pretraining.curves import draw

        draw(made, history, folder)
    except (BblabError, OSError) as error:
        notices.append(f"no curves: {error}")
    name = _identity(history.lines)
    before = [(row, lines) for row, known, lines in _rows(lab) if known == name and name]
    run_id = next((row for row, lines in before if lines == len(history.lines)), None)
    if run_id is None:
        with lab.notebook() as store:
            run_id = store.add(
                KIND,
                spec_id=made.spec_id,
                name=made.name,
                code_version=made.code_version,
                inputs=inputs(made),
                result={
                    **summary(made, history, status, found.message),
                    "folder": str(folder),
                    "folder_name": folder.name,
                    "goes_on_from_run": before[0][0] if before else None,
                    "record": name,
                    "record_lines": len(history.lines),
                },
                samples=series(history),
                spec_text=made.extra.get("spec_text", ""),
            )
    return replace(found, run_id=run_id, notices=tuple(notices))


def inputs(made: Plan) -> dict[str, Any]:
    """What made the run: recipe as merged, settings, learning rate with its arithmetic, the data's fingerprint."""
    data = {k: v for k, v in made.data.items() if k not in ("classes", "problems")}
    recipe = {f.name: getattr(made.recipe, f.name) for f in fields(made.recipe) if f.name not in ("about", "published")}
    return {
        "spec": made.name,
        "recipe": recipe,
        "settings": asdict(made.settings),
        "scaling": made.scaling.to_json(),
        "data": {**data, "num_classes": made.num_classes},
        "gates": [asdict(g) for g in made.gates],
    }


def summary(made: Plan, history: History, status: str, message: str) -> dict[str, Any]:
    """What came out, in figures that can be found again."""
    last, epochs = history.last, history.epochs
    result: Mapping[str, Any] = last.get("result", {})
    start: Mapping[str, Any] = last.get("start", {})
    end: Mapping[str, Any] = history.end or {}
    known = [(v["top1_percent"], -e) for e, v in history.validations.items() if v.get("top1_percent") is not None]
    top1 = result.get(
        "top1_percent", history.validations[-min(known, key=lambda k: k[1])[1]]["top1_percent"] if known else None
    )
    count = scored_images(made, history)
    low, high = card.interval(top1, count) if top1 is not None and count else (None, None)
    images = sum(e["images"] for e in epochs.values())
    train_s = sum(e["epoch_s"] for e in epochs.values())
    return {
        "status": status,
        "message": message,
        "epochs_trained": len(epochs),
        "epochs_planned": made.recipe.epochs,
        "top1_percent": top1,
        "top1_low_percent": low,
        "top1_high_percent": high,
        "best_top1_percent": max(known)[0] if known else None,
        "best_epoch": -max(known)[1] if known else None,
        "train_loss": list(epochs.values())[-1]["train_loss"] if epochs else None,
        "total_s": history.train_s,
        "images_per_s": images / train_s if train_s else None,
        "wait_share": sum(e["wait_share"] * e["epoch_s"] for e in epochs.values()) / train_s if train_s else None,
        "bad_images": max((e.get("bad_images", 0) for e in epochs.values()), default=0),
        "scored_images": count,
        "bad_val_images": max((v.get("bad_images", 0) for v in history.validations.values()), default=0),
        "saved_s": end.get("saved_s"),
        "weights": {k: v for k, v in result.items() if k not in ("kind", "time_utc")},
        "checkpoints": [
            {k: line[k] for k in ("epoch", "batches", "file", "bytes", "sha256")}
            for line in history.lines
            if line["kind"] == "checkpoint"
        ],
        "starts": sum(line["kind"] == "start" for line in history.lines),
        "versions": start.get("versions"),
        "device": start.get("device"),
        "host": start.get("host"),
        "settled": start.get("settings"),
        "notes": list(made.notes),
    }


def scored_images(made: Plan, history: History) -> int:
    """Validation images behind the accuracy that a run reached: those that could be read."""
    epoch = history.last.get("result", {}).get("epoch") or max(history.validations, default=0)
    return history.scored(int(epoch), made.data["val_count"])


def series(history: History) -> dict[str, list[float]]:
    """The curves as raw samples, one value an epoch."""
    nan = float("nan")

    def values(kind: str, key: str) -> list[float]:
        return [nan if v is None else float(v) for v in history.curve(kind, key)]

    found = {key: values("epoch", key) for key in ("train_loss", "lr", "epoch_s", "images_per_s", "wait_share")}
    found |= {key: values("val", key) for key in ("top1_percent", "val_s")}
    return {key: value for key, value in found.items() if value}
