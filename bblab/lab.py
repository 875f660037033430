"""Lab: what the commands, notebooks, search and tests all use. Wires the rooms together and keeps the notebook.

A Lab is a folder (`--lab`, else `BBLAB_LAB`, else the platform's user-data folder); nothing in it is needed to start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bblab
from bblab import blocks, ops
from bblab import rooms as places
from bblab import spec as language
from bblab.analysis import geometry as geo
from bblab.analysis import rules
from bblab.analysis.cost import op_costs
from bblab.analysis.net import SUMS, Analyst, NetCost
from bblab.errors import BblabError, RunError, near
from bblab.ops import Form
from bblab.spec import ArchSpec, BlockInfo
from bblab.store import NewRun, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bblab.latency import Candidate, Plan, Timing

REFERENCE = "resnet18"
"""The fixed reference of every latency ratio: its deploy form at the same input size."""
PEER = "mobilenetv3_small@s16"
"""The net that elementwise work is compared with: what the re-parameterised designs should replace."""

Progress = Callable[[int, int, float | None, str], None]


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything known about one spec. `deploy_max_rel_diff` is None where it was not verified."""

    spec: ArchSpec
    train: NetCost
    deploy: NetCost
    geometry: geo.Geometry | None
    no_geometry_because: str
    findings: tuple[rules.Finding, ...]
    deploy_max_rel_diff: float | None
    timings: tuple[Timing, ...] = ()
    timing_rows: tuple[Mapping[str, Any], ...] = ()
    run_id: int | None = None

    def worst(self) -> str | None:
        """The worst severity of the findings that are not waived."""
        open_ones = [f.severity for f in self.findings if f.waived is None]
        return next((s for s in rules.SEVERITIES if s in open_ones), None)

    def to_json(self) -> dict[str, Any]:
        spec, deploy = self.spec, self.deploy
        last = deploy.taps[-1] if deploy.taps else None
        return {
            "name": spec.name,
            "spec_id": spec.spec_id,
            "about": spec.about,
            "input": list(deploy.input),
            "taps": [m.stage for m in deploy.taps],
            "forms": {"train": _form_json(self.train), "deploy": _form_json(deploy)},
            "deploy_max_rel_diff": self.deploy_max_rel_diff,
            "receptive_field": last.receptive_field if last else None,
            "receptive_field_unknown": deploy.unknown or None,
            "is_receptive_field_global": bool(last and last.is_global),
            "stride": last.stride if last else None,
            "feature_maps": [
                {
                    "stage": m.stage,
                    "channels": m.channels,
                    "height": m.height,
                    "width": m.width,
                    "stride": m.stride,
                    "receptive_field": m.receptive_field,
                    "offset": m.offset_px(deploy.input[1]),
                    "padded_units": m.padded_units,
                    "is_receptive_field_global": m.is_global,
                    "is_tap": any(t.stage == m.stage for t in deploy.taps),
                    "forms": {
                        form: dict(zip(SUMS, cost.maps[i].sums, strict=True))
                        for form, cost in (("train", self.train), ("deploy", deploy))
                        if i < len(cost.maps)
                    },
                }
                for i, m in enumerate(deploy.maps)
            ],
            "tracker": self.geometry.to_json() if self.geometry else None,
            "findings": [f.to_json() for f in self.findings],
            "latency": [dict(row) for row in self.timing_rows],
            "run_id": self.run_id,
        }


def _form_json(cost: NetCost) -> dict[str, Any]:
    whole = dict(zip(SUMS, cost.sums, strict=True))
    backbone = dict(zip(SUMS, cost.backbone_sums, strict=True))
    return {
        "params": whole["params"],
        "params_backbone": backbone["params"],
        "macs": whole["macs"],
        "macs_backbone": backbone["macs"],
        "activations": whole["activations"],
        "elementwise_ops": whole["elementwise_ops"],
        "weight_bytes": whole["weight_bytes"],
        "memory_traffic_bytes": whole["memory_traffic_bytes"],
        "peak_activation_bytes": cost.peak_activation_bytes,
        "num_ops": whole["num_ops"],
        "uncounted": list(cost.uncounted),
        "activations_backbone": backbone["activations"],
        "elementwise_ops_backbone": backbone["elementwise_ops"],
        "weight_bytes_backbone": backbone["weight_bytes"],
        "memory_traffic_bytes_backbone": backbone["memory_traffic_bytes"],
        "peak_activation_bytes_backbone": cost.peak_backbone_bytes,
    }


class Partial(BblabError):
    """Measuring stopped half-way: `profiles` holds what is known and already stored, `because` what happened."""

    exit_code = 1

    def __init__(self, profiles: Sequence[Profile], because: BblabError) -> None:
        super().__init__(because.message, hint=because.hint)
        self.profiles = tuple(profiles)
        self.because = because


@dataclass(frozen=True, slots=True)
class SpecEntry:
    """One line of `bblab specs`."""

    name: str
    origin: str
    path: Path
    about: str
    error: str = ""
    cost: NetCost | None = field(default=None, compare=False)
    train: NetCost | None = field(default=None, compare=False)
    spec: ArchSpec | None = field(default=None, compare=False)


@cache
def code_version() -> str:
    """The version and a hash of the engine's and the built-in blocks' code, stored beside every number."""
    package = Path(bblab.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *places.room("blocks").glob("*.py")]):
        digest.update(path.read_bytes())
    return f"{bblab.__version__}+{digest.hexdigest()[:10]}"


class Lab:
    """The rooms, the analyst and the notebook of one lab folder."""

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder).expanduser() if folder is not None else places.default_lab_dir()
        if self.folder.exists() and not self.folder.is_dir():
            raise BblabError(f"the lab {self.folder} is a file", hint="name a folder with --lab DIR")
        self.rooms = places.Rooms(self.folder)
        self.notices: list[str] = []
        self._analyst: Analyst | None = None
        self._versions: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------ specs and blocks

    @property
    def kinds(self) -> Mapping[str, BlockInfo]:
        """Every block that a spec may name."""
        return self.analyst.kinds

    @property
    def analyst(self) -> Analyst:
        """The costs of specs; begins anew when a block file has changed."""
        kinds = blocks.infos(self.rooms)
        versions = {kind: blocks.code_version(info) for kind, info in kinds.items()}
        if self._analyst is None or versions != self._versions:
            self._analyst, self._versions = Analyst(kinds), versions
        return self._analyst

    def spec(self, reference: str, edits: Sequence[str] = ()) -> ArchSpec:
        """A spec from a name, a path, `timm:NAME`, `torchvision:NAME`, or a cut of one (`NAME@s16`)."""
        return language.resolve(reference, self.rooms, self.kinds, edits=edits)

    def specs(self, *, with_costs: bool = True) -> list[SpecEntry]:
        """Every spec of the rooms; a broken one is listed with its error."""
        found = []
        analyst = self.analyst
        own = self.folder / "arch_specs"
        for name, path in sorted(self.rooms.files("arch_specs", ".yaml").items()):
            origin = "lab" if path.parent == own else "built-in"
            try:
                spec = language.parse(language.read_text(path), analyst.kinds, file=str(path), name=name)
                cost = analyst.cost(spec, "deploy") if with_costs else None
                train = analyst.cost(spec, "train") if with_costs else None
                found.append(SpecEntry(name, origin, path, spec.about, "", cost, train, spec))
            except BblabError as error:
                found.append(SpecEntry(name, origin, path, "", str(error)))
        return found

    def recipes(self) -> list[dict[str, Any]]:
        """Every pretraining recipe of the rooms, as plain data."""
        from bblab.pretraining import recipe

        return [asdict(r) for r in recipe.read_all(self.rooms)]

    def new(self, name: str, like: str, edits: Sequence[str] = ()) -> Path:
        """Write `arch_specs/NAME.yaml` of this lab as a copy of another spec. Never overwrites."""
        if not name.replace("_", "").replace("-", "").isalnum():
            raise BblabError(f"{name!r} is no name for a spec", hint="letters, digits, - and _")
        target = self.folder / "arch_specs" / f"{name}.yaml"
        if target.exists():
            raise BblabError(f"{target} exists already", hint="choose another name, or edit that file")
        if name in self.rooms.files("arch_specs", ".yaml"):
            raise BblabError(f"{name!r} is a built-in spec", hint="choose another name")
        known = self.rooms.files("arch_specs", ".yaml")
        path = known.get(like) or Path(like).expanduser()
        if like not in known and not like.endswith((".yaml", ".yml")):
            raise BblabError(f"no spec {like!r}", hint=near(like, known))
        text = language.read_text(path)
        spec = language.parse(text, self.kinds, file=str(path), name=path.stem, edits=edits)
        if edits:
            root = language.read_yaml(text, str(path))
            language.apply_set(root, edits)
            text = _dump(root.plain())
        text = _renamed(text, name, spec)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(".yaml.partial")
            partial.write_text(text, encoding="utf-8")
            partial.rename(target)
        except OSError as error:
            raise RunError(
                f"{target} cannot be written: {error.strerror}", hint="choose a lab with --lab DIR"
            ) from None
        return target

    # ------------------------------------------------------------------------------------------ profiling

    def profile(
        self,
        references: Sequence[str | ArchSpec],
        *,
        edits: Sequence[str] = (),
        latency: bool = True,
        verify: bool = True,
        plan: Plan | None = None,
        store: bool = True,
        on_progress: Progress | None = None,
    ) -> list[Profile]:
        """Everything about each spec, stored in the notebook.

        `latency` measures both forms on this host; `verify` measures how far the deploy form is from the train form.
        Raises SpecError for wrong specs before anything is measured. Raises Partial, with the profiles as far as
        they are known, when measuring was interrupted or failed, or the notebook cannot be written.
        """
        specs = [r if isinstance(r, ArchSpec) else self.spec(r, edits) for r in references]
        profiles = [self._analysed(spec, verify) for spec in specs]
        stopped: BblabError | None = None
        if latency:
            profiles, stopped = self._timed(profiles, plan, on_progress)
        if store:
            try:
                profiles = self._stored(profiles)
            except RunError as error:
                rows = [replace(p, timing_rows=tuple(t.to_json() for t in p.timings)) for p in profiles]
                raise Partial(rows, error) from error
        else:
            profiles = [replace(p, timing_rows=tuple(t.to_json() for t in p.timings)) for p in profiles]
        if stopped is not None:
            raise Partial(profiles, stopped)
        return profiles

    def layers(self, spec: ArchSpec) -> list[dict[str, Any]]:
        """Every operation as far as the last tap, both forms, at the spec's own input."""
        found = []
        for form in ("train", "deploy"):
            for stage, where, graph in self.analyst.graphs(spec, form):
                for c in op_costs(graph):
                    found.append(
                        {
                            "form": form,
                            "stage": stage,
                            "block": where,
                            "layer": c.layer,
                            "op": c.name,
                            "out": list(c.out[1:]),
                            "macs": c.macs,
                            "params": c.params,
                            "elements_written": c.written,
                            "memory_traffic_bytes": c.traffic_bytes,
                        }
                    )
        return found

    def witnesses(self, spec: ArchSpec, names: Sequence[str]) -> list[dict[str, Any]]:
        """Other counters' figures for both forms at the spec's own input, each difference explained op by op."""
        from bblab.analysis import witness

        return [witness.compare(spec, self.kinds, form, name) for form in ("train", "deploy") for name in names]

    def check(self, reference: str | ArchSpec, edits: Sequence[str] = ()) -> Profile:
        """A profile without latency and without the measured difference: what `bblab check` looks at."""
        spec = reference if isinstance(reference, ArchSpec) else self.spec(reference, edits)
        return self._analysed(spec, verify=False)

    def _analysed(self, spec: ArchSpec, verify: bool) -> Profile:
        analyst = self.analyst
        train, deploy = analyst.cost(spec, "train"), analyst.cost(spec, "deploy")
        geometry, why_not = self._geometry(spec)
        found = rules.findings(self._subject(spec, train, deploy, geometry))
        difference = self._difference(spec) if verify else self._remembered_difference(spec)
        return Profile(spec, train, deploy, geometry, why_not, tuple(found), difference)

    def _geometry(self, spec: ArchSpec) -> tuple[geo.Geometry | None, str]:
        """The tracker card; None, with the reason, for a net that cannot run at tracker sizes."""
        sizes = spec.sizes_px
        costs: dict[tuple[int, Form], NetCost] = {}
        try:
            for side in (sizes.template, sizes.search):
                for form in ("deploy", "train"):
                    costs[side, form] = self.analyst.cost(spec, form, (side, side))
        except BblabError as error:
            if spec.tracker is not None:
                raise
            return None, error.message.splitlines()[0]
        small, large = sizes.template, sizes.search
        card = geo.geometry(
            spec,
            costs[small, "deploy"],
            costs[large, "deploy"],
            template_train=costs[small, "train"],
            search_train=costs[large, "train"],
        )
        return card, ""

    def _subject(self, spec: ArchSpec, train: NetCost, deploy: NetCost, geometry: geo.Geometry | None) -> rules.Subject:
        analyst = self.analyst
        pieces = {
            form: tuple(rules.Piece(*piece) for piece in analyst.graphs(spec, form)) for form in ("train", "deploy")
        }
        peer = own = None
        if geometry is not None and spec.library is None:
            side = geometry.search.size_px
            try:
                peer = analyst.cost(self.spec(PEER), "deploy", (side, side))
                own = analyst.cost(spec, "deploy", (side, side))
            except BblabError:
                peer = own = None
        return rules.Subject(
            spec, train, deploy, pieces["train"], pieces["deploy"], geometry, PEER.partition("@")[0], peer, own
        )

    # -- the two forms

    def _difference_key(self, spec: ArchSpec) -> str:
        used = {row.kind for stage in spec.stages for row in stage.rows}
        code = "".join(self._versions.get(kind, "") for kind in sorted(used))
        measuring = hashlib.sha256((Path(bblab.__file__).parent / "build.py").read_bytes()).hexdigest()[:12]
        return "|".join(("deploy-difference", measuring, ops.recorder_version(), code, spec.spec_id))

    def _remembered_difference(self, spec: ArchSpec) -> float | None:
        text = ops.MEMORY.text(self._difference_key(spec))
        return float(text) if text else None

    def _difference(self, spec: ArchSpec) -> float | None:
        known = self._remembered_difference(spec)
        if known is not None:
            return known
        from bblab import build

        try:
            measured = build.deploy_difference(spec, self.kinds)
        except BblabError as error:
            self.notices.append(f"{spec.name}: the two forms were not compared: {error.message}")
            return None
        except Exception as error:  # a user's block may fail on real numbers where the meta device passed
            said = (str(error).strip().splitlines() or [""])[0]
            self.notices.append(f"{spec.name}: the two forms were not compared: {type(error).__name__}: {said}")
            return None
        ops.MEMORY.keep_text(self._difference_key(spec), repr(measured))
        return measured

    # -- latency

    def candidate(self, spec: ArchSpec, form: Form, side: tuple[int, int]) -> Candidate:
        """A spec as the latency room takes it: cut at its taps, at an input size."""
        from bblab.latency import Candidate

        def make() -> Any:
            from bblab import build

            return build.build(spec, self.kinds, form=form)

        used = sorted({row.kind for stage in spec.stages for row in stage.rows})
        code = "".join(self._versions.get(kind, "") for kind in used)
        key = "|".join((spec.spec_id, code, ops.recorder_version(), form, f"{side[0]}x{side[1]}"))
        return Candidate(f"{spec.name} {form}", spec.name, form, (spec.input[0], *side), key, make)

    def _timed(
        self, profiles: list[Profile], plan: Plan | None, on_progress: Progress | None
    ) -> tuple[list[Profile], BblabError | None]:
        from bblab import latency

        sessions: dict[tuple[int, int, int], list[int]] = {}
        for i, p in enumerate(profiles):
            side = p.geometry.search.size_px if p.geometry else 0
            shape = (p.spec.input[0], side, side) if side else p.deploy.input
            sessions.setdefault((shape[0], shape[1], shape[2]), []).append(i)
        timed = list(profiles)
        stopped: BblabError | None = None
        for (channels, height, width), members in sessions.items():
            candidates: list[Candidate] = []
            for i in members:
                for form in ("deploy", "train"):
                    c = self.candidate(profiles[i].spec, form, (height, width))
                    if c.label not in [known.label for known in candidates]:
                        candidates.append(c)
            base = replace(self.spec(REFERENCE), head=None, input=(channels, height, width))
            reference = self.candidate(base, "deploy", (height, width))
            same = next((c for c in candidates if c.label == reference.label), None)
            try:
                results = latency.measure(
                    candidates, same or reference, plan=plan or latency.Plan(), on_progress=on_progress
                )
            except (latency.Interrupted, latency.Broken) as error:
                results, stopped = list(error.partial), error
            except BblabError as error:
                results, stopped = [], error
            by_label = {t.label: t for t in results}
            for i in members:
                own = [by_label.get(f"{profiles[i].spec.name} {form}") for form in ("deploy", "train")]
                timed[i] = replace(profiles[i], timings=tuple(t for t in own if t is not None))
            if stopped is not None:
                break
        return timed, stopped

    # ------------------------------------------------------------------------------------------ the notebook

    @property
    def store_path(self) -> Path:
        return self.folder / "lab.sqlite"

    @contextmanager
    def notebook(self, *, read_only: bool = False) -> Iterator[Store]:
        """The lab's store. What it has to say (a damaged file moved aside) is added to `notices`."""
        with Store.open(self.store_path, read_only=read_only) as store:
            self.notices.extend(n for n in store.notices if n not in self.notices)
            yield store
            self.notices.extend(n for n in store.notices if n not in self.notices)

    def _stored(self, profiles: Iterable[Profile]) -> list[Profile]:
        """Each profile and each timing as a row; the rows' ids go into the profiles' JSON."""
        made = []
        with self.notebook() as store:
            conditions_ids: dict[str, int] = {}
            for p in profiles:
                rows = []
                for t in p.timings:
                    if t.session not in conditions_ids:
                        found = {"before": dict(t.conditions_before), "after": dict(t.conditions_after)}
                        conditions_ids[t.session] = store.add(
                            "conditions",
                            spec_id="",
                            name=t.device,
                            code_version=code_version(),
                            inputs={"session": t.session},
                            result=found,
                        )
                    rows.append(self._store_timing(store, p.spec, t, conditions_ids[t.session]))
                p = replace(p, timing_rows=tuple(rows))
                result = {k: v for k, v in p.to_json().items() if k not in ("latency", "run_id")}
                run_id = store.add(
                    "profile",
                    spec_id=p.spec.spec_id,
                    name=p.spec.name,
                    code_version=code_version(),
                    inputs={
                        "spec": p.spec.name,
                        "input": list(p.deploy.input),
                        "timings": [r["samples_id"] for r in rows],
                    },
                    result=result,
                    spec_text=p.spec.canonical,
                )
                made.append(replace(p, run_id=run_id))
        return made

    def _store_timing(self, store: Store, spec: ArchSpec, t: Timing, conditions_id: int) -> dict[str, Any]:
        row = t.to_json()
        series: dict[str, list[float]] = {}
        counts: dict[str, list[int]] = {}
        extra: dict[str, Any] = {}
        for name, value in t.raw().items():
            if isinstance(value, str):
                extra[name] = value
            else:
                series[name] = [s for process in value for s in process]
                counts[name] = [len(process) for process in value]
        asked = ("spec", "device", "runtime", "runtime_version", "form", "precision", "threads", "input", "batch")
        inputs = {k: row[k] for k in (*asked, "warmups", "pace_fps", "reference", "model_sha256") if k in row}
        result = {k: v for k, v in row.items() if k not in inputs}
        result.update(extra, conditions_id=conditions_id, samples_per_process=counts)
        result["conditions"] = {"before": dict(t.conditions_before), "after": dict(t.conditions_after)}
        samples_id = store.add_many(
            [
                NewRun(
                    kind="timing",
                    spec_id=spec.spec_id,
                    name=spec.name,
                    code_version=code_version(),
                    inputs=inputs,
                    result=result,
                    samples=series,
                    spec_text=spec.canonical,
                )
            ]
        )[0]
        return {**row, "conditions_id": conditions_id, "samples_id": samples_id}

    def last_profiled(self) -> str | None:
        """The name of the spec that was profiled last."""
        with self.notebook(read_only=True) as store:
            rows = store.runs(kind="profile", limit=1)
        return rows[0].name if rows else None


def _renamed(text: str, name: str, spec: ArchSpec) -> str:
    """The same file under another name: its `name:` line replaced, or added on top."""
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        if line.startswith("name:"):
            lines[i] = f"name: {name}\n"
            break
    else:
        lines.insert(0, f"name: {name}\n")
    about = f"about: Made from {spec.name}; say here what is different and why.\n"
    for i, line in enumerate(lines):
        if line.startswith("about:"):
            end = i + 1
            while end < len(lines) and lines[end].startswith((" ", "\t")):
                end += 1
            lines[i:end] = [about]
            break
    else:
        lines.insert(1, about)
    return "".join(lines)


def _dump(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=110)


def as_json(value: Any) -> str:
    """JSON as `--json` prints it."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
