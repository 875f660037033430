"""Lab.export: a spec and its weights to a trainer's folder or to files for the device, with their provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bblab.errors import BblabError, near
from bblab.spec import ArchSpec

if TYPE_CHECKING:
    from bblab.export.carrying import Carried
    from bblab.export.fitting import Change
    from bblab.export.folder import Export
    from bblab.export.target import Target
    from bblab.lab import Lab
    from bblab.store import Run

RUNTIMES = {"onnx": ("ort",), "ncnn": ("ncnn",), "torchscript": ("torch",)}
"""The formats for the device, and whose stored latencies belong to each."""
WITH_WEIGHTS = ("pretrain", "import")
"""Kinds of rows that have weights, and where in their result the file's path stands."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """An export, what `--fit` changed for it, and its row."""

    export: Export
    spec: ArchSpec
    change: Change | None = None
    run_id: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **self.export.to_json(),
            "fit": None if self.change is None else self.change.to_json(),
            "run_id": self.run_id,
        }


def hand_over(
    lab: Lab,
    reference: str,
    for_: str,
    out: Path | str,
    *,
    edits: Sequence[str] = (),
    run: int | None = None,
    weights: Path | str | None = None,
    fit: bool = False,
    force: bool = False,
    store: bool = True,
) -> HandOver:
    """Write the folder with which the trainer `for_` trains this spec. See `Lab.hand_over`."""
    from bblab.export import codegen, fitting, folder, target, verifying
    from bblab.export import deploy as deploying
    from bblab.export.pythons import OLDEST, oldest
    from bblab.lab import code_version

    chosen, variant = target.find(for_)
    spec = lab.spec(reference, edits)
    place = Path(out).expanduser()
    folder.check_place(place, force=force)
    codegen.check_names(spec)
    change: Change | None = None
    found = fitting.maps(lab.analyst, spec, chosen)
    match, wrong = fitting.problems(chosen, variant, found)
    if wrong:
        change = _change(lab, reference, edits, for_, spec, found, wrong)
        if not fit:
            remedy = _remedy(change, chosen, variant)
            raise BblabError(f"{spec.name} does not fit {for_}:\n" + "\n".join(f"  {w}" for w in wrong), hint=remedy)
        if change is None:
            raise BblabError(
                f"{spec.name} does not fit {for_}, and no small edit makes it fit:\n"
                + "\n".join(f"  {w}" for w in wrong),
                hint=_remedy(None, chosen, variant),
            )
        spec = lab.spec(change.reference, [*edits, *change.edits])
        found = change.after
        match, wrong = fitting.problems(chosen, variant, found)
        assert not wrong, wrong
    carried = _fed(_carried(lab, spec, run, weights, change), chosen, variant)
    notes = deploying.form_notes(spec, lab.kinds, carried, found)
    with_name = replace(spec, name=Path(spec.name).name)
    files, manifest = folder.contents(
        chosen, variant, with_name, lab.kinds, found, match, carried, code_version=code_version()
    )
    verifying.verify(files, manifest, carried, with_name.name)
    left = folder.place(files, place, force=force)
    warnings = [*carried.warnings, *notes]
    minor, why = oldest(files[f"{manifest['module']}.py"].decode())
    if minor > OLDEST:
        warnings.append(f"the module needs Python 3.{minor} ({why}); trainers often have 3.{OLDEST}")
    if carried.provenance.get("is_random"):
        warnings.append(_no_weights(lab, spec))
    if left:
        warnings.append(f"left alone in {place}: {', '.join(left[:6])}")
    made = folder.Export(place, manifest, tuple(warnings))
    run_id = _stored(lab, spec, made, change) if store else None
    return HandOver(made, spec, change, run_id)


def _change(
    lab: Lab, reference: str, edits: Sequence[str], for_: str, spec: ArchSpec, found: Any, wrong: Sequence[str]
) -> Change | None:
    """The smallest edit that makes the spec fit, with its cost."""
    from bblab.build import Backbone
    from bblab.export import fitting, target
    from bblab.weights import files

    chosen, variant = target.find(for_)
    advice = fitting.suggestion(chosen, variant, lab.analyst, reference, edits, lab.spec)
    if advice is None:
        return None
    name, more = advice
    new = lab.spec(name, [*edits, *more])
    shapes = []
    for one in (spec, new):
        kept = {f"stages.{s.name}" for s in new.backbone_stages}
        every = files.shapes_of(Backbone(one, lab.kinds, device="meta"))
        shapes.append({k: v for k, v in every.items() if ".".join(k.split(".")[:2]) in kept})
    after = fitting.maps(lab.analyst, new, chosen)
    return fitting.Change(name, more, found, after, fitting.misfits(*shapes))


def _remedy(change: Change | None, chosen: Any, variant: str) -> str:
    if change is not None:
        return f"this spec fits: {change.command}\n  --fit applies it, and says what it costs"
    rule = {
        "same": "stride-2 convolutions padded by half their kernel (defaults: {pad: same})",
        "same_unless_strided": "unpadded stride-2 convolutions (defaults: {pad: same_unless_strided})",
        "valid": "no padding at all (defaults: {pad: valid})",
    }.get(chosen.padding, "other maps")
    at = f" at total stride {chosen.stride}" if chosen.stride else ""
    return f"{chosen.name} wants {rule}{at}; change the spec (bblab new), and look with: bblab profile"


def deploy(
    lab: Lab,
    reference: str,
    to: str,
    out: Path | str,
    *,
    edits: Sequence[str] = (),
    run: int | None = None,
    weights: Path | str | None = None,
    dynamic: bool = False,
    normalise: str = "outside",
    int8: bool = False,
    calibrate: Path | str | None = None,
    force: bool = False,
    store: bool = True,
) -> HandOver:
    """Write the fused form of this spec for the device. See `Lab.deploy`."""
    from bblab.export import fitting, folder, photos
    from bblab.lab import code_version

    if to not in RUNTIMES:
        raise BblabError(f"no format {to!r}", hint=near(to, RUNTIMES))
    if normalise not in ("inside", "outside"):
        raise BblabError(f"--normalise {normalise!r}", hint="inside (the model takes BGR, 0 to 255) or outside")
    if int8 and to != "onnx":
        raise BblabError(f"--int8 is ONNX Runtime's quantisation, --to says {to}", hint="--to onnx --int8")
    if calibrate is not None and not int8:
        raise BblabError("--calibrate is for --int8", hint="add --int8, or leave --calibrate away")
    if to == "ncnn":
        from bblab.latency import runtimes

        runtimes.find("ncnn").version()
    spec = lab.spec(reference, edits)
    if spec.input[0] != 3:
        raise BblabError(f"{spec.name} takes {spec.input[0]} channels", hint="trackers feed three")
    place = Path(out).expanduser()
    folder.check_place(place, force=force)
    images = photos.of_folder(Path(calibrate).expanduser()) if calibrate is not None else []
    found = fitting.maps(lab.analyst, spec)
    carried = _carried(lab, spec, run, weights)
    from bblab.export import deploy as deploying

    made = deploying.deploy(
        spec,
        lab.kinds,
        carried,
        found,
        to=to,
        dynamic=dynamic,
        normalise="inside" if normalise == "inside" else "outside",
        int8=int8,
        calibration=images,
        latency=_latencies(lab, spec, to),
        code_version=code_version(),
    )
    left = folder.place(made.files, place, force=force)
    warnings = [*carried.warnings, *made.warnings]
    if left:
        warnings.append(f"left alone in {place}: {', '.join(left[:6])}")
    export = folder.Export(place, made.manifest, tuple(warnings))
    return HandOver(export, spec, None, _stored(lab, spec, export, None) if store else None)


def _latencies(lab: Lab, spec: ArchSpec, to: str) -> list[dict[str, Any]]:
    """The newest stored timing of the deploy form on each device, by a runtime that runs this format."""
    if not lab.store_path.is_file():
        return []
    with lab.notebook(read_only=True) as store:
        rows = store.runs(kind="timing", spec_id=spec.spec_id, limit=200)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        told = {**row.inputs, **row.result}
        runtime = str(told.get("runtime", ""))
        if told.get("form") != "deploy" or runtime.partition("-")[0] not in RUNTIMES[to]:
            continue
        keys = ("device", "runtime", "input", "threads")
        kept = (*keys, "cpu_p10_s", "ratio", "ratio_low", "ratio_high", "measured_wall_p50_s")
        found.setdefault(tuple(str(told.get(k)) for k in keys), {"run": row.id, **{k: told.get(k) for k in kept}})
    return [row for row in found.values() if row["cpu_p10_s"] is not None]


# ---------------------------------------------------------------------------------------------- weights


def _carried(
    lab: Lab, spec: ArchSpec, run: int | None, weights: Path | str | None, change: Change | None = None
) -> Carried:
    from bblab.export import carrying

    if run is not None and weights is not None:
        raise BblabError("--run and --weights both name weights", hint="give one of them")
    if run is None and weights is None:
        return carrying.random(spec, lab.kinds)
    path, extra = (weights, {}) if run is None else _of_run(lab, run)
    assert path is not None
    try:
        return carrying.from_file(path, spec, lab.kinds, extra)
    except BblabError as error:
        if change is not None and change.misfits:
            edits = " ".join(f"--set {e}" for e in change.edits)
            raise BblabError(f"after {edits} the weights no longer load: {error.message}", hint=error.hint) from None
        raise


def _fed(carried: Carried, chosen: Target, variant: str) -> Carried:
    """The weights for a trainer that normalises its images itself: what it takes out stays, a difference is said."""
    from bblab.weights.trackers import IMAGENET

    own = chosen.variants[variant].values if variant else {}
    trained_on = carried.provenance.get("trained_on")
    if trained_on is None or dict(own).get("input", chosen.input) == "bgr255":
        return carried
    kept = {k: v for k, v in carried.provenance.items() if k not in ("mean", "std", "trained_on")}
    if trained_on == str(IMAGENET):
        return replace(carried, provenance={**kept, "trained_on": trained_on})
    said = (
        f"the weights were trained on images as {trained_on}, {chosen.name} feeds {IMAGENET}: "
        "their first layer sees other numbers than it learned"
    )
    return replace(carried, provenance=kept, warnings=(*carried.warnings, said))


def _of_run(lab: Lab, run_id: int) -> tuple[Path, dict[str, Any]]:
    """The weight file of a stored run, and what the manifest says of the run."""
    with lab.notebook(read_only=True) as store:
        row = store.get(run_id)
        near = [r for kind in WITH_WEIGHTS for r in store.runs(kind=kind, limit=5)]
    places = _weight_files(lab, row)
    if not places:
        have = ", ".join(f"{r.id} ({r.kind} of {r.name})" for r in near[:6])
        what = f"run {run_id} is a {row.kind} of {row.name}: it has no weights"
        raise BblabError(
            what if row.kind not in WITH_WEIGHTS else f"run {run_id} ({row.kind} of {row.name}) stored no weights",
            hint=f"runs with weights: {have}" if have else "train it (bblab pretrain) or bring weights (bblab import)",
        )
    there = [place for place in places if place.is_file()]
    path = next((place for place in there if _are_of(place, row)), None)
    if there and path is None:
        raise BblabError(
            f"{there[0]} does not hold the weights that run {run_id} wrote: the sha256 of their content is another",
            hint="where the training went on, export its later run (bblab runs --kind pretrain); else --weights FILE",
        )
    if path is None:
        raise BblabError(
            f"run {run_id}: its weights {places[-1]} are gone", hint="give the file's new place with --weights FILE"
        )
    told = {"run": row.id, "run_kind": row.kind, "run_spec_id": row.spec_id, "run_created_utc": row.created_utc}
    if row.kind == "pretrain":
        recipe, data, top1 = (
            row.inputs.get("recipe") or {},
            row.inputs.get("data") or {},
            row.result.get("top1_percent"),
        )
        told |= {
            "accuracy_top1": None if top1 is None else top1 / 100,
            "recipe": f"{recipe.get('name')}, {row.result.get('epochs_trained')} epochs",
            "data": Path(str(data.get("root") or "")).name,
            "data_hash": data.get("hash"),
        }
    if row.kind == "import":
        told["imported_from"] = row.inputs.get("source")
    return path, told


def _weight_files(lab: Lab, row: Run) -> list[Path]:
    """Where the weights of a run may lie: in the lab where it is now, and where they were written."""
    result = row.result
    if row.kind == "import" and result.get("path"):
        path = Path(str(result["path"])).expanduser()
        return [path if path.is_absolute() else lab.folder / path]
    file = (result.get("weights") or {}).get("file") if row.kind == "pretrain" else None
    if not file:
        return []
    return [lab.folder / "runs" / str(result.get("folder_name")) / file, Path(str(result["folder"])) / file]


def _are_of(path: Path, row: Run) -> bool:
    """Whether a file holds the tensors that a run recorded; one without a record is taken.

    Raises BblabError for a file that cannot be read, or is damaged.
    """
    from bblab.weights import load

    result = row.result.get("weights") or {} if row.kind == "pretrain" else row.result
    recorded = result.get("content_sha256")
    return not recorded or load(path)[1].get("content_sha256") == recorded


def _no_weights(lab: Lab, spec: ArchSpec) -> str:
    said = "random weights: neither --run nor --weights was given"
    if not lab.store_path.is_file():
        return said
    with lab.notebook(read_only=True) as store:
        rows = [r for kind in WITH_WEIGHTS for r in store.runs(kind=kind, spec_id=spec.spec_id, limit=1)]
    return f"{said} (this spec has weights: --run {rows[0].id})" if rows else said


# ---------------------------------------------------------------------------------------------- the notebook


def _stored(lab: Lab, spec: ArchSpec, made: Export, change: Change | None) -> int:
    from bblab.lab import code_version

    told: Mapping[str, Any] = made.manifest
    result = {k: v for k, v in told.items() if k not in ("spec", "trainer", "code_version")}
    result |= {
        "folder": str(made.folder.resolve()),
        "warnings": list(made.warnings),
        "fit": None if change is None else change.to_json(),
    }
    inputs = {
        "spec": spec.name,
        "target": told.get("target"),
        "variant": told.get("variant"),
        "weights": dict(told["provenance"]),
    }
    with lab.notebook() as store:
        return store.add(
            "export",
            spec_id=spec.spec_id,
            name=spec.name,
            code_version=code_version(),
            inputs=inputs,
            result=result,
            spec_text=spec.canonical,
        )


def find_export(lab: Lab, export_id: str) -> Any:
    """The newest row of an export, by its export ID or its row's number. Raises BblabError if there is none."""
    with lab.notebook(read_only=True) as store:
        rows = store.runs(kind="export")
    wanted = export_id.strip()
    for row in rows:
        if wanted in (str(row.result.get("export_id")), str(row.id)):
            return row
    known = ", ".join(f"{r.result.get('export_id')} ({r.name} for {r.inputs.get('target')})" for r in rows[:6])
    raise BblabError(
        f"no export {export_id!r} in {lab.store_path}",
        hint=f"known: {known}" if known else "bblab export SPEC --for TRAINER --out DIR makes one",
    )
