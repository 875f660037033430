"""Where weights come from: another library's net, or a file and the net whose keys it has."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bblab import build, library, manifests
from bblab.errors import BblabError, RunError, near
from bblab.installing import how_to_install
from bblab.spec import LIBRARIES, MAX_CHANNELS, MAX_ROWS, ArchSpec, Arg, BlockInfo, Row, Stage, Tracker
from bblab.weights import files, trackers
from bblab.weights.matching import Net

Kinds = Mapping[str, BlockInfo]
Form = Literal["train", "deploy"]
PEERS = (*LIBRARIES, "mmpretrain")


@dataclass(frozen=True, slots=True)
class Source:
    """Weights in a net that can run them. `form`: deploy for a file of a fused net. `tracker`: whose keys it had, and
    the code that says so. `images`: what it was trained on, where that is known."""

    net: Net
    label: str
    version: str
    sha256: str
    form: Form = "train"
    has_head: bool = True
    notes: tuple[str, ...] = ()
    tracker: str = ""
    images: trackers.Images | None = None


# ---------------------------------------------------------------------------------------------- our own nets


def net_of(spec: ArchSpec, kinds: Kinds, *, form: Form = "train", seed: int = 0) -> Net:
    """A spec's net with random weights, running every stage and the head."""
    module = build.build(spec, kinds, form=form, seed=seed)
    if isinstance(module, build.Library):
        return Net(spec.name, module.net, lambda m, x: type(m).forward(m, x), spec.input, spec=spec)
    return Net(spec.name, module, _all_maps, spec.input, "head" if spec.head else "", spec)


def _all_maps(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The map of every stage, then the scores."""
    assert isinstance(module, build.Backbone)
    found: list[Tensor] = []
    maps: Any = x
    for stage in module.stages.values():
        maps = stage(maps)
        found.extend([maps] if isinstance(maps, Tensor) else maps)
    return found if module.head is None else [*found, module.head(maps)]


def shapes(spec: ArchSpec, kinds: Kinds, form: Form) -> dict[str, tuple[int, ...]]:
    """The state dict's shapes, without memory for the weights."""
    module: nn.Module = build.Backbone(spec, kinds, device="meta")
    if form == "deploy":
        try:
            module = build.to_deploy(module, spec, kinds)
        except (RuntimeError, NotImplementedError):  # a lab's block that folds values
            module = build.to_deploy(build.Backbone(spec, kinds), spec, kinds)
    return files.shapes_of(module)


def spec_from(text: str, name: str, kinds: Kinds) -> ArchSpec:
    """The spec behind `ArchSpec.canonical`, as a weight file holds it. Raises BblabError where it cannot be."""

    def frozen(value: Any) -> Arg:
        return tuple(frozen(v) for v in value) if isinstance(value, list) else value

    def row(value: Any) -> Row:
        kind, out, stride, args = value
        if kind not in kinds:
            raise BblabError(f"the file's spec has the block {kind!r}", hint=near(kind, kinds))
        width = tuple(out) if isinstance(out, list) else out
        if max(width if isinstance(width, tuple) else (width,)) > MAX_CHANNELS:
            raise ValueError("channels")
        return Row(str(kind), width, int(stride), tuple((str(k), frozen(v)) for k, v in args))

    try:
        value = json.loads(text)
        stages = tuple(Stage(str(n), tuple(row(r) for r in rows)) for n, rows in value["stages"])
        if sum(len(s.rows) for s in stages) > MAX_ROWS:
            raise ValueError("rows")
        c, h, w = value["input"]
        tracker = value.get("tracker")
        taken, cut = value.get("library") or (None, None)
        return ArchSpec(
            name,
            stages,
            (int(c), int(h), int(w)),
            tuple(value["taps"]),
            None if value["head"] is None else row(value["head"]),
            None if tracker is None else Tracker(*tracker),
            library=taken,
            cut=cut,
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BblabError(
            f"the spec inside the weight file cannot be read ({type(error).__name__})",
            hint="name it with --as SPEC",
        ) from None


# ---------------------------------------------------------------------------------------------- other libraries


def is_peer(reference: str) -> bool:
    return reference.partition(":")[0] in PEERS and ":" in reference


def peer(reference: str, *, pretrained: bool, seed: int = 0) -> Source:
    """Another library's net with its pretrained weights, or with random ones.

    Raises RunError where the weights cannot be had (no network, none exist), BblabError for an unknown net.
    """
    from_library, _, name = reference.partition(":")
    version = _version(from_library)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if from_library == "mmpretrain":
            module = _mmpretrain(name, pretrained=pretrained)
            net = Net(reference, module, lambda m, x: type(m).forward(m, x, mode="tensor"), head="head")
        else:
            module = _pretrained(from_library, name) if pretrained else library.make_net(reference)
            net = Net(reference, module, lambda m, x: type(m).forward(m, x))
    note = () if pretrained else ("random weights: for trying only",)
    return Source(net, reference, version, "", notes=note)


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} (not installed)"


def _pretrained(from_library: str, name: str) -> nn.Module:
    reference = f"{from_library}:{name}"
    library.make_net(reference, device="meta")  # an unknown net is told before the network is asked
    try:
        with _quiet_and_quick():
            if from_library == "timm":
                import timm

                return timm.create_model(name, pretrained=True).eval()
            import torchvision

            return torchvision.models.get_model(name, weights="DEFAULT", progress=False).eval()
    except BblabError:
        raise
    except Exception as error:  # huggingface_hub, urllib and the libraries each have their own
        raise RunError(
            f"the pretrained weights of {reference} could not be had: {_said(error)}",
            hint="where there is no network: give their file (--from FILE --as " + reference + "), or try with random "
            "weights (--random)",
        ) from None


def _said(error: Exception) -> str:
    first = " ".join(str(error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {first[:200]}"


@contextlib.contextmanager
def _quiet_and_quick() -> Iterator[None]:
    """Without the libraries' progress on stderr, and without minutes of retries where names do not resolve."""
    import socket
    from urllib.parse import urlsplit

    hub: Any = None
    was = False
    with contextlib.suppress(ImportError):
        import huggingface_hub.constants as hub

        was = hub.HF_HUB_OFFLINE
        has_proxy = any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
        if not has_proxy:
            try:
                socket.getaddrinfo(urlsplit(hub.ENDPOINT).hostname, 443)
            except OSError:
                hub.HF_HUB_OFFLINE = True  # its cache is still read
    loggers = [logging.getLogger(n) for n in ("huggingface_hub", "timm")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if hub is not None:
            hub.HF_HUB_OFFLINE = was
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _mm_silence() -> Iterator[None]:
    """Without mmcv's warnings about operations that no classifier here uses."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _mmpretrain(name: str, *, pretrained: bool) -> nn.Module:
    try:
        with _mm_silence():
            import mmpretrain
    except ImportError as error:
        raise BblabError(
            f"mmpretrain cannot be imported: {error}",
            hint=how_to_install("mmpretrain"),
        ) from None
    try:
        with _mm_silence():
            return mmpretrain.get_model(name, pretrained=pretrained, device="cpu").eval()
    except ValueError as error:
        known = mmpretrain.list_models()
        raise BblabError(f"mmpretrain has no net {name!r}: {error}", hint=near(name, known)) from None
    except Exception as error:
        if not pretrained:
            raise BblabError(f"mmpretrain:{name} cannot be built: {type(error).__name__}: {error}") from error
        raise RunError(
            f"the pretrained weights of mmpretrain:{name} could not be had: {_said(error)}",
            hint=f"give their file (--from FILE --as mmpretrain:{name}), or try with random weights (--random)",
        ) from None


# ---------------------------------------------------------------------------------------------- files


def from_file(path: Path | str, spec: ArchSpec, kinds: Kinds, *, keys_of: ArchSpec | str | None = None) -> Source:
    """A file's weights in the net whose keys it has: that of its own metadata, `keys_of`, or the spec itself.

    `keys_of` is a spec or another library's net ("timm:NAME"). Raises BblabError where keys or shapes differ.
    """
    found = files.read(path)
    state, notes = files.clean(found.state, str(found.path))
    if found.wrapper:
        beside = f" (left aside: {', '.join(found.others)})" if found.others else ""
        notes.insert(0, f"weights taken from {found.wrapper!r}{beside}")
    label = found.path.name
    if isinstance(keys_of, str):
        given = peer(keys_of, pretrained=False)
        fitted, has_head, more = _in_peer(state, given.net.module, found.path, keys_of)
        given.net.module.load_state_dict(fitted, strict=False)
        as_named = f"{label} as {keys_of}"
        return Source(given.net, as_named, given.version, found.sha256, has_head=has_head, notes=(*notes, *more))
    if keys_of is None and found.is_ours:
        name = found.metadata.get("name", label)
        keys_of = spec_from(files.spec_of(found.metadata, found.path), name, kinds)
        if keys_of.spec_id == spec.spec_id:
            keys_of = spec
    target = keys_of or spec
    version = f"bblab {found.metadata.get('bblab', '')}".strip() if found.is_ours else ""
    if target.library:
        given = peer(target.library, pretrained=False)
        fitted, has_head, more = _in_peer(state, given.net.module, found.path, target.name)
        given.net.module.load_state_dict(fitted, strict=False)
        net = Net(target.name, given.net.module, given.net.run, target.input, spec=target)
        return Source(net, label, version, found.sha256, has_head=has_head, notes=(*notes, *more))
    fit, form = None, "train"
    for form in ("train", "deploy"):
        now = named(state, target, shapes(target, kinds, form))  # type: ignore[arg-type]
        if fit is None or len(now.wrong) < len(fit.wrong):
            fit = now
        if not now.wrong:
            break
    assert fit is not None
    if fit.wrong:
        raise _unfit(found.path, target.name, list(fit.wrong), state, is_guess=keys_of is None)
    net = net_of(target, kinds, form=form)  # type: ignore[arg-type]
    net.module.load_state_dict(fit.state, strict=False)
    has_head = any(k.startswith(files.HEAD) for k in fit.state)
    if fit.other_head:
        notes.append(f"the file's head is left out: {fit.other_head}")
    elif not has_head and target.head is not None:
        notes.append("the file has no head: the head's weights are left out")
    notes += fit.notes
    images = images_of(found, fit)
    tracker = found.metadata.get("tracker", "") if found.is_ours else ""
    if fit.layout is not None:
        tracker = f"{fit.layout.name} ({fit.layout.source})"
    return Source(net, label, version, found.sha256, form, has_head, tuple(notes), tracker, images)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Named:
    """A file's tensors under the keys of a net, and how they were found.

    wrong: what does not fit, in words, without the head. other_head: why the file's head was left out. layout: the
    tracker whose names the keys had.
    """

    state: Mapping[str, Tensor]
    prefix: str
    wrong: tuple[str, ...]
    other_head: str = ""
    layout: trackers.Layout | None = None
    notes: tuple[str, ...] = ()


def named(
    state: Mapping[str, Tensor], spec: ArchSpec, wanted: files.Shapes, *, optional: tuple[str, ...] = ()
) -> Named:
    """`state` under a spec's keys: as bblab writes them, as an exported module has them, or as its tracker names them.

    The first that fits, else the one with the fewest tensors that do not. A head of another size is left out, and
    with it what does not fit of `optional` (beginnings of keys).
    """
    best: Named | None = None
    for layout, keys in _namings(spec, wanted):
        fitted, prefix = files.fit_keys(state, {theirs: wanted[ours] for ours, theirs in keys.items()})
        mine = {ours: fitted[theirs] for ours, theirs in keys.items() if theirs in fitted}
        has_head = any(k.startswith(files.HEAD) for k in mine)
        head = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(f"{prefix}{files.HEAD}")}
        other = files.other_head(head if layout is None else {}, wanted)
        if other:
            mine = files.without_head(mine)
        mine = {k: v for k, v in mine.items() if not k.startswith(optional) or tuple(v.shape) == wanted[k]}
        free = (*optional, files.HEAD) if other or not has_head else optional
        wrong = tuple(files.problems(mine, wanted, optional=free))
        if best is None or len(wrong) < len(best.wrong):
            notes = _spare(state, {keys[ours] for ours in mine}, prefix)
            if layout is not None:
                notes += _more_of_it(state, fitted, prefix, spec, layout)
            best = Named(mine, prefix, wrong, other, layout, tuple(notes))
        if not wrong:
            break
    assert best is not None
    return best


def images_of(found: files.WeightFile, fit: Named) -> trackers.Images | None:
    """What a file's net was trained on; None where that is not known.

    Known from the file itself, from the tracker whose names it has, or from the hand-over in whose folder it lies.
    """
    if fit.layout is not None:
        return fit.layout.images
    if found.is_ours:
        return trackers.Images.from_json(found.metadata.get("images", ""))
    handed = manifests.above(found.path)
    told = {} if handed is None else handed[1].get("provenance") or {}
    return trackers.Images.from_json(json.dumps({k: told.get(k) for k in ("mean", "std")}))


def _namings(spec: ArchSpec, wanted: files.Shapes) -> Iterator[tuple[trackers.Layout | None, dict[str, str]]]:
    """Our key -> the file's, for every way in which a file may name them."""
    yield None, {k: k for k in wanted}
    yield None, {k: k.removeprefix("stages.") for k in wanted if k.startswith("stages.")}
    for layout in trackers.LAYOUTS.get(spec.name, ()):
        yield layout, layout.keys(spec, wanted)


def _more_of_it(
    state: Mapping[str, Tensor], fitted: Mapping[str, Tensor], prefix: str, spec: ArchSpec, layout: trackers.Layout
) -> list[str]:
    """A note where the tracker's backbone goes on behind the spec's last layer."""
    tops = {k.partition(".")[0].rstrip("0123456789") for k in fitted}
    inner = (k.removeprefix(prefix) for k in state if k.startswith(prefix))
    rest = [k for k in inner if k not in fitted and k.partition(".")[0].rstrip("0123456789") in tops]
    if not rest:
        return []
    others = [name for name, known in trackers.LAYOUTS.items() if layout in known and name != spec.name]
    ask = f": is it {' or '.join(others)}?" if others else ""
    return [f"its backbone goes on where {spec.name} ends ({len(rest)} tensors, from {rest[0]}){ask}"]


def _in_peer(
    state: Mapping[str, Tensor], module: nn.Module, path: Path, label: str
) -> tuple[files.State, bool, list[str]]:
    """A file's tensors for another library's net: (state, whether its classifier is among them, notes)."""
    wanted = files.shapes_of(module)
    fitted, prefix = files.fit_keys(state, wanted)
    wrong = files.problems(fitted, wanted)
    last = library.classifier(module)
    others = [k for k in wanted if k not in fitted or tuple(fitted[k].shape) != wanted[k]] if wrong else []
    has_head = True
    notes: list[str] = []
    if others and last and all(k.startswith(last) or k.endswith("num_batches_tracked") for k in others):
        name = next(k for k in others if k.startswith(last))
        there = "not in the file" if name not in fitted else f"{len(fitted[name])} classes in the file"
        notes.append(f"the classifier {name.rpartition('.')[0]} is left out: {there}, {wanted[name][0]} here")
        fitted = {k: v for k, v in fitted.items() if k not in others}
        has_head, wrong = False, []
    if wrong:
        raise _unfit(path, label, wrong, state)
    return fitted, has_head, [*notes, *_spare(state, fitted, prefix)]


def _spare(state: Mapping[str, Tensor], taken: Collection[str], prefix: str) -> list[str]:
    """Where the keys were found, and what of the file was not taken."""
    notes = [f"keys stood under {prefix!r}"] if prefix else []
    rest = [k for k in state if not k.startswith(prefix) or k.removeprefix(prefix) not in taken]
    if rest:
        many = f"{len(rest)} tensor" + "s" * (len(rest) > 1)
        notes.append(f"{many} of the file not taken: {files.groups(rest)}")
    return notes


def _unfit(
    path: Path, target: str, wrong: list[str], state: Mapping[str, Tensor], *, is_guess: bool = False
) -> RunError:
    more = f"\n  ... and {len(wrong) - 12} more" if len(wrong) > 12 else ""
    listing = "\n".join(f"  {w}" for w in wrong[:12])
    has = ", ".join(list(state)[:4])
    many = "1 tensor does" if len(wrong) == 1 else f"{len(wrong)} tensors do"
    hint = "say whose keys they are: --as timm:NAME, --as torchvision:NAME or --as SPEC" if is_guess else ""
    return RunError(
        f"{path} does not hold the weights of {target}: {many} not fit\n{listing}{more}\n"
        f"  the file's keys begin with {has}",
        hint=hint or "is it the same variant, with as many classes?",
    )
