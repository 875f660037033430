"""Lab: what the commands, notebooks, search and tests all use. Wires the rooms together and keeps the notebook.

A Lab is a folder (`--lab`, else `BBLAB_LAB`, else the platform's user-data folder); nothing in it is needed to start.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import bblab
from bblab import blocks, ops
from bblab import rooms as places
from bblab import spec as language
from bblab.analysis import geometry as geo
from bblab.analysis import rules
from bblab.analysis.cost import op_costs
from bblab.analysis.net import SUMS, Analyst, NetCost
from bblab.errors import BblabError, RunError, SpecError
from bblab.ops import Form
from bblab.spec import ArchSpec, BlockInfo
from bblab.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bblab.build import Difference
    from bblab.lab import exporting, training
    from bblab.lab.benching import Budget, Measured
    from bblab.lab.devices import Saved, Seen
    from bblab.lab.recording import Recorded
    from bblab.latency import Candidate, Outcome, Plan, Timing, Verdict
    from bblab.latency.devices import Device
    from bblab.reports import Page
    from bblab.weights import Imported

REFERENCE = "resnet18"
"""The fixed reference of every latency ratio: its deploy form at the same input size."""
PEER = "mobilenetv3_small@s16"
"""The net that elementwise work is compared with: what the re-parameterised designs should replace."""

Progress = Callable[[int, int, float | None, str], None]


@dataclass(frozen=True, slots=True)
class Profile:
    """Everything known about one spec. `deploy_max_rel_diff` is None where it was not verified.

    `deploy_max_rel_diff_float64` is None where float32 agrees to 1e-5 already. `unfused`: what stays in the deploy form
    as it is in training, and why.
    """

    spec: ArchSpec
    train: NetCost
    deploy: NetCost
    geometry: geo.Geometry | None
    no_geometry_because: str
    findings: tuple[rules.Finding, ...]
    deploy_max_rel_diff: float | None
    deploy_max_rel_diff_float64: float | None = None
    unfused: tuple[rules.Unfused, ...] = ()
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
            "deploy_max_rel_diff_float64": self.deploy_max_rel_diff_float64,
            "unfused": [asdict(left) for left in self.unfused],
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


def _form_facts(difference: Difference) -> rules.Forms:
    """The measured difference as the rules read it."""
    return rules.Forms(
        in_float32=difference.in_float32,
        in_float64=difference.in_float64,
        words=difference.words(),
        is_rounding=difference.is_rounding,
        is_another_function=difference.is_another_function,
        where=difference.where,
        unfused=difference.unfused,
    )


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
        "second_count": [
            {
                "where": where,
                "macs": both.macs,
                "torch_macs": both.torch_macs,
                "omitted_by_torch": both.omitted,
                "uncounted_here": both.uncounted,
                "differs_in": list(both.unexplained),
            }
            for where, both in cost.second
        ],
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
class Bench:
    """What `bench` and `duel` measured: sessions, their stored rows (a `latency` element each), and what went wrong."""

    outcomes: tuple[Outcome, ...]
    rows: tuple[Mapping[str, Any], ...]
    problems: tuple[BblabError, ...]

    @property
    def run_ids(self) -> list[int]:
        return [row["samples_id"] for row in self.rows if "samples_id" in row]


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
    published: Published | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """What others say of a net: its family, whose code it follows, figures as printed with their device and source.

    `top1_percent`: ImageNet-1k validation. `speed` is as the source prints it; "(tracker)" marks whole trackers.
    """

    family: str
    code: str
    top1_percent: float | None
    top1_note: str
    speed: str
    speed_device: str
    figures_source: str


P = ParamSpec("P")
R = TypeVar("R")


def _to_stderr(method: Callable[P, R]) -> Callable[P, R]:
    """What a user's block prints goes to stderr: stdout belongs to the command, and to JSON alone with `--json -`."""

    @wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with redirect_stdout(sys.stderr):
            return method(*args, **kwargs)

    return wrapped


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
        self.folder = language.expanded(folder) if folder is not None else places.default_lab_dir()
        try:
            is_wrong = self.folder.exists() and not self.folder.is_dir()
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise BblabError(f"the lab {self.folder}: {said}", hint="name a folder with --lab DIR") from None
        if is_wrong:
            raise BblabError(f"the lab {self.folder} is a file", hint="name a folder with --lab DIR")
        self.rooms = places.Rooms(self.folder)
        self.notices: list[str] = []
        self._analyst: Analyst | None = None
        self._versions: dict[str, str] = {}
        self._differences: dict[str, rules.Forms | None] = {}

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

    def _built_in(self, reference: str) -> ArchSpec:
        """A spec of ours, also where the lab has a file of its name: ratios are against the same net in every lab."""
        base, at, cut = reference.partition("@")
        return language.resolve(f"{places.room('arch_specs') / base}.yaml{at}{cut}", self.rooms, self.kinds)

    def every(self, references: Sequence[str | ArchSpec], edits: Sequence[str]) -> list[ArchSpec]:
        """All of these specs. Raises SpecError with the mistakes of all of them."""
        found: list[ArchSpec] = []
        mistakes: list[BblabError] = []
        for reference in references:
            try:
                found.append(reference if isinstance(reference, ArchSpec) else self.spec(reference, edits))
            except SpecError as error:
                # What cannot be built before the first mistake is told in the same round.
                more = self._cannot_build(error.sound)
                mistakes.append(SpecError([*more.complaints, *error.complaints]) if more else error)
            except BblabError as error:
                mistakes.append(error)
        if mistakes:
            mistakes += [unbuilt for spec in found if (unbuilt := self._cannot_build(spec))]
        if len(mistakes) > 1:
            raise BblabError("\n".join(str(m) for m in mistakes))
        if mistakes:
            raise mistakes[0]
        return found

    def _cannot_build(self, spec: object) -> SpecError | None:
        """The blocks of a spec that cannot be built or run at its own input."""
        if isinstance(spec, ArchSpec) and not spec.library:
            try:
                self.analyst.cost(spec, "train")
            except SpecError as error:
                return error
            except BblabError:
                pass
        return None

    @_to_stderr
    def specs(self, *, with_costs: bool = True, on_progress: Progress | None = None) -> list[SpecEntry]:
        """Every spec of the rooms, by family; a broken one is listed with its error."""
        found = []
        analyst = self.analyst
        own = self.folder / "arch_specs"
        published = self.published()
        files = sorted(self.rooms.files("arch_specs", ".yaml").items(), key=lambda item: _by_family(item[0], published))
        for done, (name, path) in enumerate(files):
            if on_progress is not None:
                on_progress(done, len(files), None, name)
            about = published.get(name)
            origin = "lab" if path.parent == own else "built-in"
            try:
                spec = language.parse(language.read_text(path), analyst.kinds, file=str(path), name=name)
                cost = analyst.cost(spec, "deploy") if with_costs else None
                train = analyst.cost(spec, "train") if with_costs else None
                found.append(SpecEntry(name, origin, path, spec.about, "", cost, train, spec, about))
            except BblabError as error:
                found.append(SpecEntry(name, origin, path, "", str(error), published=about))
        return found

    def published(self) -> dict[str, Published]:
        """Published figures by spec, from `published.csv` of the built-in room, then of the lab."""
        found: dict[str, Published] = {}
        for _, folder in self.rooms.folders("arch_specs"):
            path = folder / "published.csv"
            if not path.is_file():
                continue
            try:
                with path.open(encoding="utf-8", newline="") as file:
                    for row in csv.DictReader(file):
                        name, top1 = row.pop("spec"), row.pop("top1_percent")
                        found[name] = Published(top1_percent=float(top1) if top1 else None, **row)
            except (OSError, KeyError, TypeError, ValueError) as error:
                columns = ", ".join(["spec", *(f.name for f in fields(Published))])
                raise BblabError(f"{path} cannot be read: {error}", hint=f"its columns are {columns}") from None
        return found

    def recipes(self, name: str | None = None, rate: float | None = None, at_px: int = 224) -> list[dict[str, Any]]:
        """Every pretraining recipe of the rooms, or the named one, as plain data with its cost.

        `rate`: images/s that are trained at `at_px`, for the hours; else that of the newest training in the lab.
        """
        from bblab.lab import datasets
        from bblab.pretraining import recipe

        found = [recipe.find(name, self.rooms)] if name else recipe.read_all(self.rooms)
        known = datasets.measured_rate(self) if rate is None else (rate, at_px, "")
        return [{**asdict(r), "cost": datasets.costs(r, *known)} for r in found]

    def check_data(self, folder: str | Path, **options: Any) -> Any:
        """What is wrong with a data set, and its JSON; `options` as in `bblab.pretraining.data.check`."""
        from bblab.lab import datasets

        return datasets.check(self, folder, **options)

    def prepare_data(self, folder: str | Path, out: str | Path, **options: Any) -> Any:
        """A copy of a data set that loads fast, and its JSON; `options` as in `bblab.pretraining.data.prepare`."""
        from bblab.lab import datasets

        return datasets.prepare(self, folder, out, **options)

    def new(self, name: str, like: str, edits: Sequence[str] = ()) -> Path:
        """Write `arch_specs/NAME.yaml` of this lab as a copy of another spec, or of a cut of it. Never overwrites."""
        if not (name.replace("_", "").replace("-", "").isalnum() and name.isascii()) or len(name) > language.MAX_NAME:
            shown = name if len(name) <= language.MAX_NAME else name[: language.MAX_NAME] + "..."
            hint = f"letters, digits, - and _, at most {language.MAX_NAME}"
            raise BblabError(f"{shown!r} is no name for a spec", hint=hint)
        target = self.folder / "arch_specs" / f"{name}.yaml"
        if target.exists() or target.is_symlink():
            raise BblabError(f"{target} exists already", hint="choose another name, or edit that file")
        if name in self.rooms.files("arch_specs", ".yaml"):
            raise BblabError(f"{name!r} is a built-in spec", hint="choose another name")
        wanted = self.spec(like, edits)
        if wanted.library:
            raise BblabError(f"{like} has no file to copy: its layers are the library's", hint="begin from one of ours")
        text = self._renamed(name, like, edits, wanted)
        partial = target.with_suffix(f".yaml.{os.getpid()}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            try:
                os.link(partial, target)  # never over a file made meanwhile
            finally:
                partial.unlink(missing_ok=True)
        except FileExistsError:
            raise BblabError(f"{target} exists already", hint="choose another name, or edit that file") from None
        except OSError as error:
            raise RunError(
                f"{target} cannot be written: {error.strerror}", hint="choose a lab with --lab DIR"
            ) from None
        return target

    def _renamed(self, name: str, like: str, edits: Sequence[str], wanted: ArchSpec) -> str:
        """The file of `like` under another name, with its comments where nothing else changes."""
        base, _, cut = like.rpartition("@") if wanted.name.endswith("@" + like.rpartition("@")[2]) else (like, "", "")
        path = self.rooms.files("arch_specs", ".yaml").get(base) or language.expanded(base)
        text = language.read_text(path)
        about = f"Made from {wanted.name}; say here what is different and why."
        if not edits and not cut:
            renamed = _with_lines(text, name, about)
            if self._is_same(renamed, name, wanted):
                return renamed
        root = language.read_yaml(text, str(path))
        language.apply_set(root, edits)
        value = {**root.plain(), "name": name, "about": about}
        if cut:
            kept = [stage.name for stage in wanted.stages]
            value["stages"] = {stage: value["stages"][stage] for stage in kept}
            value["taps"] = list(wanted.taps)
            value.pop("head", None)
        text = _dump({key: value[key] for key in ("name", "about", *value) if value[key] is not None})
        assert self._is_same(text, name, wanted), text
        return text

    def _is_same(self, text: str, name: str, wanted: ArchSpec) -> bool:
        try:
            spec = language.parse(text, self.kinds, name=name)
        except BblabError:
            return False
        return spec.name == name and spec.spec_id == wanted.spec_id

    # ------------------------------------------------------------------------------------------ profiling

    @_to_stderr
    def profile(
        self,
        references: Sequence[str | ArchSpec],
        *,
        edits: Sequence[str] = (),
        latency: bool = True,
        verify: bool = True,
        plan: Plan | None = None,
        waits: bool = False,
        store: bool = True,
        on_known: Callable[[Sequence[Profile]], None] | None = None,
        on_progress: Progress | None = None,
    ) -> list[Profile]:
        """Everything about each spec, stored in the notebook.

        `latency` measures both forms on this host; `verify` measures how far the deploy form is from the train form.
        What is known without measuring is stored first and given to `on_known`. Raises SpecError for wrong specs before
        anything is measured. Raises Partial, with the profiles as far as they are known, when measuring was interrupted
        or failed, or the notebook cannot be written.
        """
        from bblab.lab.benching import Budget

        clock = Budget(plan.budget_s if plan else None)
        profiles = [self._analysed(spec, verify) for spec in self.every(references, edits)]
        stopped: BblabError | None = None
        if store:
            try:
                profiles = self._stored(profiles)
            except RunError as error:
                stopped = error
        if on_known is not None:
            on_known(profiles)
        if latency:
            profiles, problem = self._timed(profiles, plan, clock, waits, store and stopped is None, on_progress)
            stopped = stopped or problem
        if stopped is not None:
            raise Partial(profiles, stopped)
        return profiles

    @_to_stderr
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

    @_to_stderr
    def witnesses(self, spec: ArchSpec, names: Sequence[str]) -> list[dict[str, Any]]:
        """Other counters' figures for both forms at the spec's own input, each difference explained op by op."""
        from bblab.analysis import witness

        return [witness.compare(spec, self.kinds, form, name) for form in ("train", "deploy") for name in names]

    @_to_stderr
    def check(self, reference: str | ArchSpec, edits: Sequence[str] = ()) -> Profile:
        """A profile without latency: what `bblab check` looks at. The forms of a lab's own blocks are compared."""
        spec = reference if isinstance(reference, ArchSpec) else self.spec(reference, edits)
        return self._analysed(spec, verify=self._has_own_block(spec))

    def _has_own_block(self, spec: ArchSpec) -> bool:
        """Whether a block of the lab is in the net; the forms of the built-in ones agree in every release's tests."""
        return any(self.kinds[row.kind].origin == "lab" for stage in spec.stages for row in stage.rows)

    def _analysed(self, spec: ArchSpec, verify: bool) -> Profile:
        analyst = self.analyst
        train, deploy = analyst.cost(spec, "train"), analyst.cost(spec, "deploy")
        geometry, why_not = self._geometry(spec)
        difference = self._difference(spec) if verify else self._remembered_difference(spec)
        subject = replace(self._subject(spec, train, deploy, geometry), forms=difference)
        found = rules.findings(subject)
        unfused = tuple(rules.unfused(subject))
        apart = None if difference is None else difference.in_float32
        exact = None if difference is None else difference.in_float64
        return Profile(spec, train, deploy, geometry, why_not, tuple(found), apart, exact, unfused)

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
                peer = analyst.cost(self._built_in(PEER), "deploy", (side, side))
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

    def _remembered_difference(self, spec: ArchSpec) -> rules.Forms | None:
        text = ops.MEMORY.text(self._difference_key(spec))
        if not text:
            return None
        try:
            return rules.Forms.from_json(json.loads(text))
        except (ValueError, TypeError, KeyError):
            return None  # only a cache

    def _difference(self, spec: ArchSpec) -> rules.Forms | None:
        key = self._difference_key(spec)
        if key not in self._differences:
            known = self._remembered_difference(spec)
            self._differences[key] = self._measured_difference(spec) if known is None else known
        return self._differences[key]

    def _measured_difference(self, spec: ArchSpec) -> rules.Forms | None:
        if too_large := _too_large(self.analyst.cost(spec, "train")):
            self.notices.append(f"{spec.name}: the two forms were not compared: {too_large}")
            return None
        from bblab import build

        try:
            measured = _form_facts(build.compared(spec, self.kinds))
        except BblabError as error:
            self.notices.append(error.message)
            return None
        except Exception as error:  # a user's block may fail on real numbers where the meta device passed
            said = (str(error).strip().splitlines() or [""])[0]
            self.notices.append(f"{spec.name}: the two forms were not compared: {type(error).__name__}: {said}")
            return None
        ops.MEMORY.keep_text(self._difference_key(spec), json.dumps(asdict(measured)))
        return measured

    # -- latency

    def form_doubt(self, spec: ArchSpec, form: Form) -> str:
        """What is wrong with taking this form's latency for the net's; empty where nothing is known to be."""
        if form != "deploy" or not self._has_own_block(spec):
            return ""
        difference = self._difference(spec)
        if difference is None:
            return ""
        if difference.is_another_function:
            return f"its deploy form computes another function than its train form: off by {difference.words}"
        failed = [f"{where}: {why}" for where, why, has_failed in difference.unfused if has_failed]
        return f"its train form was taken for the deploy form: {'; '.join(failed)}" if failed else ""

    def candidate(self, spec: ArchSpec, form: Form, side: tuple[int, int]) -> Candidate:
        """A spec as the latency room takes it: cut at its taps, at an input size."""
        from bblab.latency import Candidate

        doubt = self.form_doubt(spec, form)
        if doubt and (notice := f"{spec.name}: {doubt}") not in self.notices:
            self.notices.append(notice)

        def make() -> Any:
            from bblab import build

            # Some of another library's nets are built for one size.
            sized = replace(spec, input=(spec.input[0], *side)) if spec.library else spec
            return build.build(sized, self.kinds, form=form)

        used = sorted({row.kind for stage in spec.stages for row in stage.rows})
        code = "".join(self._versions.get(kind, "") for kind in used)
        key = "|".join((spec.spec_id, code, ops.recorder_version(), form, f"{side[0]}x{side[1]}"))
        return Candidate(f"{spec.name} {form}", spec.name, form, (spec.input[0], *side), key, make)

    def _timed(
        self,
        profiles: list[Profile],
        plan: Plan | None,
        clock: Budget,
        waits: bool,
        store: bool,
        on_progress: Progress | None,
    ) -> tuple[list[Profile], BblabError | None]:
        """With the latency of both forms, each net at its own size, all in one session, and what went wrong."""
        from bblab import latency
        from bblab.lab import racing

        entries: list[racing.Entry] = []
        for p in profiles:
            if too_large := _too_large(p.train):
                self.notices.append(f"{p.spec.name}: its latency was not measured: {too_large}")
                continue
            side = p.geometry.search.size_px if p.geometry else 0
            shape = (side, side) if side else (p.deploy.input[1], p.deploy.input[2])
            entries += [racing.Entry(p.spec, form, shape) for form in ("deploy", "train")]
        if not entries:
            return profiles, None
        runners = racing.field(self, entries, self._built_in(REFERENCE))
        race = latency.Race(runners.candidates, runners.references)
        try:
            done = racing.race(
                self, [race], runners.specs, device="host", plan=plan or latency.Plan(), clock=clock, waits=waits,
                store=store, on_progress=on_progress,
            )  # fmt: skip
        except OSError as error:  # a full disk while a model is converted
            hint = "free some space, or leave the latency out: --no-latency"
            return profiles, RunError(f"the latency was not measured: {error}", hint=hint)
        timings = [t for outcome in done.outcomes for t in outcome.timings]
        found: dict[tuple[str, str], tuple[Timing, Mapping[str, Any]]] = {}
        for t, row in zip(timings, done.rows, strict=True):
            if t.label in {c.label for c in runners.candidates}:
                found[runners.specs[t.label].spec_id, t.form] = (t, row)
        timed = []
        for p in profiles:
            own = [found[p.spec.spec_id, form] for form in ("deploy", "train") if (p.spec.spec_id, form) in found]
            timed.append(replace(p, timings=tuple(t for t, _ in own), timing_rows=tuple(row for _, row in own)))
        return timed, done.problems[0] if done.problems else None

    # -- bench and duel

    @_to_stderr
    def bench(self, references: Sequence[str | ArchSpec], **how: Any) -> Bench:
        """Specs ranked by latency; see `racing.bench`."""
        from bblab.lab import racing

        return racing.bench(self, references, **how)

    @_to_stderr
    def bench_again(self, **how: Any) -> Bench:
        """What an older protocol has timed, measured by this one; see `racing.again`."""
        from bblab.lab import racing

        return racing.again(self, **how)

    @_to_stderr
    def duel(self, a: str | ArchSpec, b: str | ArchSpec | None = None, **how: Any) -> tuple[list[Verdict], Bench]:
        """Which of two specs, or of one and its edit, is faster; see `racing.duel`."""
        from bblab.lab import racing

        return racing.duel(self, a, b, **how)

    def _bench_input(self, spec: ArchSpec, size: str | int) -> tuple[int, int, int]:
        """Channels, height, width. A net that names no tracker and cannot run at 255 px runs at its own input."""
        sizes = {"search": spec.sizes_px.search, "template": spec.sizes_px.template}
        side = sizes[size] if isinstance(size, str) else size
        try:
            self.analyst.cost(spec, "deploy", (side, side))
        except BblabError:
            if spec.tracker is not None or size != "search":
                raise
            self.notices.append(f"{spec.name} does not run at {side} px: timed at {spec.input[1]}x{spec.input[2]}")
            return spec.input
        return spec.input[0], side, side

    @_to_stderr
    def per_op(self, references: Sequence[str | ArchSpec], **how: Any) -> Measured:
        """Where the time of each spec goes, operator by operator; see `benching.per_op`."""
        from bblab.lab import benching

        return benching.per_op(self, references, **how)

    @_to_stderr
    def bench_blocks(self, grid: str, **how: Any) -> tuple[Measured, list[dict[str, Any]]]:
        """A table of single blocks, and which of two neighbouring choices is slower; see `blocktables.blocks`."""
        from bblab.lab import blocktables

        return blocktables.blocks(self, grid, **how)

    @_to_stderr
    def bench_estimate(self, references: Sequence[str | ArchSpec], **how: Any) -> tuple[Measured, list[dict[str, Any]]]:
        """Nets measured whole and as sums of their blocks, and how the sums err; see `blocktables.estimate`."""
        from bblab.lab import blocktables

        return blocktables.estimate(self, references, **how)

    @_to_stderr
    def bench_pipeline(self, references: Sequence[str | ArchSpec], **how: Any) -> Measured:
        """A tracker's frame, stage by stage, with each spec as its backbone; see `benching.pipeline`."""
        from bblab.lab import benching

        return benching.pipeline(self, references, **how)

    # ------------------------------------------------------------------------------------------ devices

    def device(self, name: str, *, waits: bool = False) -> Device:
        """A device by the lab's name for it or by its address, not yet opened; see `devices.find`.

        `waits`: for another measurement on it to end, instead of refusing.
        """
        from bblab.lab import devices

        found = devices.find(self, name)
        found.waits = waits
        return found

    def devices(self) -> list[Seen]:
        """The host, the lab's devices and connected phones, each asked what it can run; see `devices.survey`."""
        from bblab.lab import devices

        return devices.survey(self)

    def usual_runtime(self, device: str) -> str:
        """The runtime for a device where none is named."""
        from bblab.lab import devices

        return devices.usual_runtime(self, device)

    def add_device(self, name: str, address: str, options: Mapping[str, Any], *, replace: bool = False) -> Saved:
        """Keep a device in lab.toml; see `devices.add`."""
        from bblab.lab import devices

        return devices.add(self, name, address, options, replace=replace)

    @_to_stderr
    def time_with_tool(self, device: str, tool: str, models: Sequence[str], **how: Any) -> list[dict[str, Any]]:
        """Time models by a benchmark program of the user's on a device; see `devices.time_with_tool`."""
        from bblab.lab import devices

        return devices.time_with_tool(self, device, tool, models, **how)

    def remove_device(self, name: str) -> Saved:
        """Take a device out of lab.toml; see `devices.remove`."""
        from bblab.lab import devices

        return devices.remove(self, name)

    # ------------------------------------------------------------------------------------------ weights

    def import_weights(
        self,
        reference: str | ArchSpec,
        source: str,
        *,
        edits: Sequence[str] = (),
        keys_of: str | None = None,
        inherit: bool = False,
        random: bool = False,
        out: Path | str | None = None,
        store: bool = True,
    ) -> Imported:
        """Another net's, a file's or an older edit's weights in a spec, as a safetensors file and a row.

        `source`: a library's net ("timm:NAME", pretrained unless `random`) or a file, whose keys are those of `keys_of`
        where it does not say so itself. `inherit` takes what fits after an edit. Raises NoMatch, and writes nothing,
        where the outputs are not equal.
        """
        from bblab import weights

        spec = reference if isinstance(reference, ArchSpec) else self.spec(reference, edits)
        keys: ArchSpec | str | None = keys_of
        if keys_of is not None and not weights.is_peer(keys_of):
            keys = self.spec(keys_of)
        found = weights.bring(spec, self.kinds, source, keys_of=keys, inherit=inherit, random=random)
        content = weights.content_hash(found.state, spec.spec_id)
        stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in Path(spec.name).name)
        path = Path(out) if out is not None else self.folder / "weights" / f"{stem}-{content[:8]}.safetensors"
        path = weights.save(found.state, path, weights.metadata(spec, found))
        found = replace(found, path=path, content_sha256=content)
        if not store:
            return found
        result = {k: v for k, v in found.to_json().items() if k != "run_id"}
        inputs = {k: result.pop(k) for k in ("source", "source_version", "source_sha256")}
        inputs |= {"spec": spec.name, "keys_of": keys_of, "inherit": inherit, "random": random}
        with self.notebook() as notebook:
            run_id = notebook.add(
                "import",
                spec_id=spec.spec_id,
                name=spec.name,
                code_version=code_version(),
                inputs=inputs,
                result=result,
                spec_text=spec.canonical,
            )
        return replace(found, run_id=run_id)

    @_to_stderr
    def record(self, reference: str | ArchSpec | None = None, **what: Any) -> Recorded:
        """Store a training and scores from outside; see `recording.record`."""
        from bblab.lab import recording

        return recording.record(self, reference, **what)

    # ------------------------------------------------------------------------------------------ exports

    @_to_stderr
    def hand_over(self, reference: str, for_: str, out: Path | str, **options: Any) -> exporting.HandOver:
        """A folder with which a tracker trainer trains this spec; `options` as in `exporting.hand_over`."""
        from bblab.lab import exporting

        return exporting.hand_over(self, reference, for_, out, **options)

    @_to_stderr
    def deploy(self, reference: str, to: str, out: Path | str, **options: Any) -> exporting.HandOver:
        """The fused net as ONNX, ncnn or TorchScript files; `options` as in `exporting.deploy`."""
        from bblab.lab import exporting

        return exporting.deploy(self, reference, to, out, **options)

    # ------------------------------------------------------------------------------------------ reports

    @_to_stderr
    def report(
        self,
        name: str = "pareto",
        names: Sequence[str] = (),
        *,
        against: str = "latency",
        accuracy: str = "",
        budget_s: float | None = None,
        with_published: bool = False,
        select: str = "",
        since: str | None = None,
        out: Path | str | None = None,
        lang: str = "en",
        files: bool = True,
    ) -> tuple[Page, list[Path]]:
        """A report of what is stored, and the files it was written to; see `reporting.gather` for the selection."""
        from bblab.lab import reporting

        return reporting.report(
            self,
            name,
            names,
            against=against,
            accuracy=accuracy,
            budget_s=budget_s,
            with_published=with_published,
            select=select,
            since=since,
            out=out,
            lang=lang,
            files=files,
        )

    # ------------------------------------------------------------------------------------------ training

    def pretrain(
        self,
        reference: str | ArchSpec | None = None,
        *,
        edits: Sequence[str] = (),
        on_progress: Callable[[Mapping[str, Any]], None] | None = None,
        **wanted: Any,
    ) -> training.Pretrained:
        """Train a spec (else the one profiled last) with mmpretrain; `wanted` as the fields of `training.Wanted`."""
        from bblab.lab import training

        spec = training.chosen_spec(self, reference, edits)
        return training.pretrain(self, spec, training.Wanted(**wanted), on_progress=on_progress)

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
        """Each profile as a row, with its id."""
        made = []
        with self.notebook() as store:
            for p in profiles:
                run_id = store.add(
                    "profile",
                    spec_id=p.spec.spec_id,
                    name=p.spec.name,
                    code_version=code_version(),
                    inputs={"spec": p.spec.name, "input": list(p.deploy.input)},
                    result={k: v for k, v in p.to_json().items() if k not in ("latency", "run_id")},
                    spec_text=p.spec.canonical,
                )
                made.append(replace(p, run_id=run_id))
        return made

    def last_profiled(self) -> str | None:
        """The name of the spec that was profiled last."""
        with self.notebook(read_only=True) as store:
            rows = store.runs(kind="profile", limit=1)
        return rows[0].name if rows else None


def _with_lines(text: str, name: str, about: str) -> str:
    """The same file with other `name:` and `about:` lines, or with these added on top."""
    lines = text.splitlines(keepends=True)
    for place, (key, value) in enumerate((("name", name), ("about", about))):
        new = f"{key}: {json.dumps(value) if ':' in value or '#' in value else value}\n"
        at = next((i for i, line in enumerate(lines) if line.startswith(f"{key}:")), None)
        if at is None:
            lines.insert(place, new)
            continue
        end = at + 1
        while end < len(lines) and lines[end].startswith((" ", "\t")):  # a folded text
            end += 1
        lines[at:end] = [new]
    return "".join(lines)


def _dump(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=110)


def as_json(value: Any) -> str:
    """JSON as `--json` prints it."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has neither NaN nor infinity: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _too_large(cost: NetCost) -> str:
    """Why a net is not built on this machine; "" if it fits. Checked first: the kernel ends who asks for too much."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return ""
    # Both forms, and the activations of the batch of four that calibrates the norms.
    needed = 3 * cost.sum("weight_bytes") + 4 * cost.peak_activation_bytes
    if needed < memory / 2:
        return ""
    return f"it needs {needed / 1e9:.0f} GB, and this machine has {memory / 1e9:.0f} GB"


def _by_family(name: str, published: Mapping[str, Published]) -> tuple[str, str]:
    known = published.get(name)
    return (known.family if known else "~", name)  # a lab's own stand last
