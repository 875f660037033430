"""Weights from elsewhere: another library's net, a file, an older edit of the spec.

A match means equal outputs, not equal key counts: layers are paired by structure and both nets are compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bblab
from bblab.errors import BblabError, RunError
from bblab.spec import ArchSpec
from bblab.weights import inheriting, sources
from bblab.weights.files import content_hash, load, save
from bblab.weights.inheriting import Leftover
from bblab.weights.matching import Match, Misfit, Net, NoMatch, match
from bblab.weights.sources import Kinds, Source, is_peer, net_of
from bblab.weights.trackers import IMAGENET, Images

__all__ = [
    "Imported",
    "Leftover",
    "Match",
    "Misfit",
    "Net",
    "NoMatch",
    "Source",
    "bring",
    "content_hash",
    "fill",
    "is_peer",
    "load",
    "match",
    "metadata",
    "net_of",
    "save",
]


@dataclass(frozen=True, slots=True)
class Imported:
    """Weights in a spec, and how they got there.

    verdict: `equal` (outputs equal within rounding), `equal_but_eps` (equal once the norms' epsilon is),
    `same_spec` (the file was written for this very spec), `inherited` (as much as fits after an edit).
    max_rel_diff: of the outputs with random weights; for `inherited`, new against old with these weights; null where
    it could not be taken (`notes` say why). tracker: the trained tracker that the file holds, and the code whose names
    its keys are. images: what the weights were trained on, where that is known.
    """

    name: str
    spec_id: str
    source: str
    source_version: str
    source_sha256: str
    verdict: str
    max_rel_diff: float | None
    max_rel_diff_equal_eps: float | None = None
    weights_rel_diff: float | None = None
    eps: tuple[tuple[float, float, int], ...] = ()
    num_layers: int | None = None
    has_head: bool = False
    compared_at: tuple[tuple[str, str], ...] = ()
    tracker: str = ""
    images: Images | None = None
    params_inherited_ratio: float = 1.0
    params_set_ratio: float = 0.0
    macs_inherited_ratio: float = 1.0
    leftovers: tuple[Leftover, ...] = ()
    notes: tuple[str, ...] = ()
    path: Path | None = None
    content_sha256: str = ""
    run_id: int | None = None
    state: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "spec_id": self.spec_id,
            "source": self.source,
            "source_version": self.source_version,
            "source_sha256": self.source_sha256 or None,
            "verdict": self.verdict,
            "max_rel_diff": self.max_rel_diff,
            "max_rel_diff_equal_eps": self.max_rel_diff_equal_eps,
            "weights_rel_diff": self.weights_rel_diff,
            "eps": [{"here": a, "there": b, "norms": n} for a, b, n in self.eps],
            "num_layers": self.num_layers,
            "has_head": self.has_head,
            "compared_at": [{"here": a, "there": b} for a, b in self.compared_at],
            "tracker": self.tracker or None,
            "images": None if self.images is None else self.images.to_json(),
            "params_inherited_ratio": self.params_inherited_ratio,
            "params_set_ratio": self.params_set_ratio,
            "macs_inherited_ratio": self.macs_inherited_ratio,
            "random": [item.to_json() for item in self.leftovers],
            "notes": list(self.notes),
            "path": None if self.path is None else str(self.path),
            "content_sha256": self.content_sha256,
            "run_id": self.run_id,
        }


def bring(
    spec: ArchSpec,
    kinds: Kinds,
    source: str,
    *,
    keys_of: ArchSpec | str | None = None,
    inherit: bool = False,
    random: bool = False,
    seed: int = 0,
) -> Imported:
    """The weights of `source` (a peer such as "timm:NAME", or a file) in `spec`; nothing is written.

    keys_of: whose keys a file has, where it does not say so itself. inherit: take what fits after an edit.
    random: random weights instead of a peer's pretrained ones. Raises NoMatch where outputs are not equal.
    """
    if is_peer(source):
        if keys_of is not None:
            raise BblabError("--as says whose keys a file has", hint=f"{source} is no file: leave --as away")
        if inherit:
            raise BblabError(
                "--inherit takes the weights of a spec, from a file",
                hint=f"first import {source} into the spec that matches it, then inherit from that file",
            )
        taken = sources.peer(source, pretrained=not random, seed=seed)
    else:
        if random:
            raise BblabError("--random is for another library's net", hint="a file has its own weights")
        taken = sources.from_file(source, spec, kinds, keys_of=keys_of)
    if taken.images not in (None, IMAGENET):
        said = f"trained on images as {taken.images}: bblab export keeps that, bblab's recipes feed {IMAGENET}"
        taken = replace(taken, notes=(*taken.notes, said))
    if inherit:
        return replace(_inherited(spec, kinds, taken, seed), tracker=taken.tracker, images=taken.images)
    if taken.form == "deploy":
        raise BblabError(
            f"{taken.label} holds the deploy form of {taken.net.label}: its branches are fused",
            hint="--inherit puts each fused kernel into one branch and silences the others",
        )
    return replace(_matched(spec, kinds, taken, seed), tracker=taken.tracker, images=taken.images)


def _matched(spec: ArchSpec, kinds: Kinds, taken: Source, seed: int) -> Imported:
    from_spec = taken.net.spec
    about = (spec.name, spec.spec_id, taken.label, taken.version, taken.sha256)
    if from_spec is not None and from_spec.spec_id == spec.spec_id:
        state = dict(taken.net.module.state_dict())
        has_head = spec.head is not None and taken.has_head
        if not has_head and not spec.library:
            state = {k: v for k, v in state.items() if not k.startswith("head.")}
        return Imported(*about, "same_spec", 0.0, has_head=has_head, notes=taken.notes, state=_keyed(spec, state))
    ours = net_of(spec, kinds, seed=seed)
    try:
        found = match(ours, taken.net, seed=seed)
    except NoMatch as error:
        asked = [note for note in taken.notes if note.endswith("?")]  # what the file seems to be instead
        raise NoMatch(error.message, hint="\n  ".join([*asked, error.hint]), misfits=error.misfits) from error
    if not taken.has_head:  # theirs was made up to fill the net
        kept = {k: v for k, v in found.keys.items() if not ours.is_head(k)}
        found = replace(found, keys=kept, has_head=False)
    notes = [*taken.notes, *found.notes]
    if spec.head is not None and taken.has_head and not found.has_head:
        counts = [s.head.out for s in (from_spec, spec) if s is not None and s.head is not None]
        differ = f" ({counts[0]} classes there, {counts[1]} here)" if len(set(counts)) == 2 else ""
        notes.append(f"the heads differ{differ}: the head's weights are left out")
    return Imported(
        *about,
        found.verdict,
        found.max_rel_diff,
        found.with_equal_eps,
        found.weights_rel_diff,
        found.eps,
        found.num_layers,
        found.has_head,
        found.compared_at,
        notes=tuple(notes),
        state=_keyed(spec, found.take(taken.net.module, ours.module)),
    )


def _inherited(spec: ArchSpec, kinds: Kinds, taken: Source, seed: int) -> Imported:
    old_spec = taken.net.spec
    if old_spec is None or old_spec.library or spec.library:
        raise BblabError(
            f"--inherit takes the weights of a spec, {taken.label} has another library's net",
            hint="import it into the spec that matches it, then inherit from that file",
        )
    old = taken.net
    train = old if taken.form == "train" else net_of(old_spec, kinds)
    heads = [s.head and s.head.out for s in (old_spec, spec)]
    has_head = taken.has_head and (None in heads or heads[0] == heads[1])
    result = inheriting.inherit(net_of(spec, kinds, seed=seed), old, train.module, has_head=has_head)
    notes = [*taken.notes, *result.notes]
    if has_head != taken.has_head:
        notes.append(f"the file's head is left out: {heads[0]} classes in the file, {heads[1]} here")
    if result.max_rel_diff is None:
        notes.append(f"outputs not compared: {result.no_difference_because}")
    return Imported(
        spec.name,
        spec.spec_id,
        taken.label,
        taken.version,
        taken.sha256,
        "inherited",
        result.max_rel_diff,
        has_head=spec.head is not None and old_spec.head is not None and has_head,
        params_inherited_ratio=result.params_inherited_ratio,
        params_set_ratio=result.params_set_ratio,
        macs_inherited_ratio=result.macs_inherited_ratio,
        leftovers=result.leftovers,
        notes=tuple(notes),
        state=dict(result.state),
    )


def _keyed(spec: ArchSpec, state: Mapping[str, Any]) -> dict[str, Any]:
    """Keys as the built module has them: another library's net stands under `net.`."""
    return {f"net.{k}": v for k, v in state.items()} if spec.library else dict(state)


def metadata(spec: ArchSpec, imported: Imported) -> dict[str, str]:
    """What a weight file says about itself."""
    result = {k: v for k, v in imported.to_json().items() if k not in ("path", "run_id", "random", "content_sha256")}
    known = {} if imported.images is None else {"images": json.dumps(imported.images.to_json())}
    if imported.tracker:
        known["tracker"] = imported.tracker
    return {
        **known,
        "name": spec.name,
        "spec_id": spec.spec_id,
        "spec": spec.canonical,
        "form": "train",
        "bblab": bblab.__version__,
        "source": imported.source,
        "source_version": imported.source_version,
        "source_sha256": imported.source_sha256,
        "import": json.dumps(result),
    }


def fill(module: Any, state: Mapping[str, Any], where: str = "the weights") -> tuple[str, ...]:
    """Load weights into a built module; the names of head tensors that stay random.

    A file may have no head, and a head of another size is left out. Raises RunError, and changes nothing, where
    anything else is absent, has another shape, or is too many.
    """
    from bblab.weights import files

    wanted = files.shapes_of(module)
    if files.other_head(state, wanted):
        state = files.without_head(state)
    head = () if any(k.startswith(files.HEAD) for k in state) else (files.HEAD,)
    wrong = files.problems(state, wanted, optional=head)
    wrong += [f"{k}: the net has no such tensor" for k in state if k not in wanted]
    if wrong:
        more = f"\n  ... and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise RunError(
            f"{where} do not fit: {len(wrong)} tensors\n" + "\n".join(f"  {w}" for w in wrong[:12]) + more,
            hint="import them into this spec first: bblab import SPEC --from FILE --inherit",
        )
    module.load_state_dict(dict(state), strict=False)
    return tuple(k for k in wanted if k not in state and not k.endswith("num_batches_tracked"))
