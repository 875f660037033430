"""Design rules: each a name, a severity, a number and a source; a broken rule is a finding.

error: cannot work. warning: has cost someone a week. note: worth knowing. Tracker rules apply only where the spec
has `tracker`, trainer rules only where it names one. A spec waives a rule with a reason (`waive:`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bblab.analysis.geometry import Geometry
from bblab.analysis.net import NetCost
from bblab.errors import near
from bblab.ops import Op, OpGraph
from bblab.spec import ArchSpec

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

NOTES = "designer's notes, 2023"
SHUFFLENET = "arXiv:1807.11164"


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule broken somewhere. `waived` holds the spec's reason."""

    rule: str
    severity: Severity
    where: str
    message: str
    source: str
    waived: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "severity": self.severity,
            "where": self.where,
            "message": self.message,
            "source": self.source,
            "waived": self.waived is not None,
            "waived_because": self.waived,
        }


@dataclass(frozen=True, slots=True)
class Piece:
    """One recorded block of a network and where it stands."""

    stage: str
    where: str
    graph: OpGraph


@dataclass(frozen=True, slots=True)
class Forms:
    """What was measured of the two forms, without torch: see `build.Difference`."""

    in_float32: float
    in_float64: float | None
    words: str
    is_rounding: bool
    is_another_function: bool
    where: tuple[str, ...] = ()
    unfused: tuple[tuple[str, str, bool], ...] = ()

    @staticmethod
    def from_json(value: dict[str, Any]) -> Forms:
        """What `dataclasses.asdict` gave. Raises TypeError or ValueError for anything else."""
        unfused = tuple((str(where), str(why), bool(has_failed)) for where, why, has_failed in value["unfused"])
        return Forms(**{**value, "where": tuple(value["where"]), "unfused": unfused})


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything a rule may look at. Costs are at the spec's input; pieces end at the last tap."""

    spec: ArchSpec
    train: NetCost
    deploy: NetCost
    train_pieces: tuple[Piece, ...]
    deploy_pieces: tuple[Piece, ...]
    geometry: Geometry | None
    peer_name: str = ""
    peer: NetCost | None = None
    own_at_peer: NetCost | None = None
    timed_forms: tuple[str, ...] = ()
    forms: Forms | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """A named check. `applies` says in words when it is looked at."""

    name: str
    severity: Severity
    about: str
    source: str
    check: Callable[[Subject, Rule], Iterator[Finding]]

    def finding(self, where: str, message: str, severity: Severity | None = None) -> Finding:
        return Finding(self.name, severity or self.severity, where, message, self.source)


RULES: dict[str, Rule] = {}


def rule(name: str, severity: Severity, source: str) -> Callable[..., Any]:
    """Enter a check under its name; its docstring says what it is about."""

    def enter(check: Callable[[Subject, Rule], Iterator[Finding]]) -> Callable[[Subject, Rule], Iterator[Finding]]:
        assert name not in RULES, name
        RULES[name] = Rule(name, severity, " ".join((check.__doc__ or "").split()), source, check)
        return check

    return enter


def findings(subject: Subject) -> list[Finding]:
    """Every finding, unwaived and worst first."""
    reasons = dict(subject.spec.waive)
    found: list[Finding] = []
    for r in RULES.values():
        for f in r.check(subject, r):
            found.append(replace(f, waived=reasons[f.rule]) if f.rule in reasons else f)
    for name in reasons.keys() - RULES.keys():
        message = f"waive names no rule {name!r}; {near(name, RULES)}"
        found.append(Finding("unknown-waiver", "warning", "waive", message, "bblab check --rules"))
    return sorted(found, key=lambda f: (f.waived is not None, SEVERITIES.index(f.severity)))


# ---------------------------------------------------------------------------------------------- helpers


def _kernel(op: Op) -> tuple[int, int]:
    shape = op.attrs["weight_shape"]
    return int(shape[-2]), int(shape[-1])


def _stride(op: Op) -> int:
    s = op.attrs.get("stride") or 1
    return max(s) if isinstance(s, list) else int(s)


def _convs(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Op]]:
    for piece in pieces:
        for op in piece.graph.ops:
            if op.name == "conv2d":
                yield piece, op


def _macs(graph: OpGraph, op: Op) -> int:
    return math.prod(graph.tensors[op.outputs[0]]) * math.prod(op.attrs["weight_shape"][1:])


def _reaches_output_without(graph: OpGraph, skipped: Sequence[Op]) -> bool:
    """Whether the block's output still depends on its input when these ops are taken out."""
    reached = set(graph.inputs)
    for op in graph.ops:
        if not any(op is s for s in skipped) and any(i in reached for i in op.inputs):
            reached.update(op.outputs)
    return any(i in reached for i in graph.outputs)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _m(count: float) -> str:
    return f"{count / 1e6:.2f} M"


# ---------------------------------------------------------------------------------------------- structure


@rule("stride-1x1", "warning", NOTES)
def _stride_1x1(s: Subject, r: Rule) -> Iterator[Finding]:
    """A stride-2 1x1 convolution in the main path reads 25 % of the pixels; shortcut projections are exempt."""
    for piece in s.deploy_pieces:
        strided = [op for _, op in _convs([piece]) if _kernel(op) == (1, 1) and _stride(op) > 1]
        main = [op for op in strided if not _reaches_output_without(piece.graph, [op])]
        if not main and not _reaches_output_without(piece.graph, strided):
            main = strided  # every path has one: a shortcut's projection is no excuse
        for op in main:
            kept = 1 / _stride(op) ** 2
            yield r.finding(
                piece.where, f"a 1x1 convolution with stride {_stride(op)} reads {_percent(kept)} of the pixels"
            )


@rule("se-gate", "warning", f"{NOTES}; arXiv:1905.02244")
def _se_gate(s: Subject, r: Rule) -> Iterator[Finding]:
    """A squeeze-excitation gate should be a hard-sigmoid: a sigmoid costs an exponential and quantises badly."""
    for piece in s.deploy_pieces:
        for op in piece.graph.ops:
            if op.name == "sigmoid" and math.prod(piece.graph.tensors[op.outputs[0]][2:]) == 1:
                yield r.finding(piece.where, "the SE gate is a sigmoid; write gate: hsigmoid")
                break


@rule("no-identity-path", "warning", f"{NOTES}; arXiv:1512.03385 (plain-18 trains, plain-34 degrades)")
def _no_identity(s: Subject, r: Rule) -> Iterator[Finding]:
    """A long chain of convolutions without any shortcut: a 1x1 that changes width breaks the identity path."""
    length, first, last = longest_plain_chain(s.train_pieces)
    if length >= 9:
        severity: Severity = "warning" if length >= 18 else "note"
        span = first if first == last else f"{first} to {last}"
        yield r.finding(span, f"{length} convolutions in a row without any shortcut (train form)", severity)


def longest_plain_chain(pieces: Sequence[Piece]) -> tuple[int, str, str]:
    """The longest run of convolution levels that no shorter path goes round, and where it starts and ends.

    A level is the number of convolutions on the longest way from the input. Where branches of different length meet,
    the levels between are covered by a shortcut.
    """
    level = 0
    covered: set[int] = set()
    place: dict[int, str] = {}
    for piece in pieces:
        g = piece.graph
        levels = dict.fromkeys(g.inputs, level)
        for op in g.ops:
            given = [levels[i] for i in op.inputs if i in levels]
            if not given:
                continue
            here = max(given)
            if len(given) > 1 and min(given) < here and op.name in ("add", "cat", "sub", "stack", "mul"):
                # A gate that multiplies is no path for the signal's identity.
                if op.name != "mul":
                    covered.update(range(min(given) + 1, here + 1))
                else:
                    here = max(levels[i] for i in op.inputs if i in levels and not _is_pooled(g, i))
            if op.name == "conv2d" and not all(_is_pooled(g, i) for i in op.inputs):
                here += 1
                place.setdefault(here, piece.where)
            levels.update(dict.fromkeys(op.outputs, here))
        level = max(levels.get(i, level) for i in g.outputs)
    best, run = (0, 0), 0
    for n in range(1, level + 1):
        run = 0 if n in covered else run + 1
        if run > best[0]:
            best = (run, n)
    length, end = best
    return length, place.get(end - length + 1, ""), place.get(end, "")


def _is_pooled(graph: OpGraph, index: int) -> bool:
    shape = graph.tensors[index]
    return len(shape) < 4 or (shape[2] == 1 and shape[3] == 1)


@rule("branches", "note", f"{NOTES}; {SHUFFLENET} guideline G3")
def _branches(s: Subject, r: Rule) -> Iterator[Finding]:
    """Parallel branches that remain on the device: each is one more kernel launch and one more wait."""
    for piece in s.deploy_pieces:
        for op in piece.graph.ops:
            width = len(set(op.inputs))
            if op.name in ("cat", "stack") and width >= 4:
                yield r.finding(piece.where, f"{width} parallel branches are concatenated in the deploy form")


@rule("groups", "note", f"{NOTES}; {SHUFFLENET} guideline G2")
def _groups(s: Subject, r: Rule) -> Iterator[Finding]:
    """Grouped (not depthwise) convolutions read memory badly for their MACs."""
    for piece, op in _convs(s.deploy_pieces):
        groups = int(op.attrs.get("groups") or 1)
        if groups > 1 and op.attrs["weight_shape"][1] > 1:
            yield r.finding(piece.where, f"a convolution in {groups} groups of {op.attrs['weight_shape'][1]} channels")


@rule("kernel-size", "note", f"{NOTES}; arXiv:2101.03697")
def _kernel_size(s: Subject, r: Rule) -> Iterator[Finding]:
    """3x3 is the kernel that every runtime is best at; measure before spending MACs in larger dense ones."""
    total = spent = 0
    for piece, op in _convs(s.deploy_pieces):
        macs = _macs(piece.graph, op)
        if max(_kernel(op)) > 1:
            total += macs
            spent += macs if max(_kernel(op)) > 3 else 0
    if total and spent / total > 0.5:
        share = _percent(spent / total)
        yield r.finding("backbone", f"{share} of the spatial convolutions' MACs are in kernels larger than 3x3")


@rule("equal-channels", "note", f"{NOTES}; {SHUFFLENET} guideline G1")
def _equal_channels(s: Subject, r: Rule) -> Iterator[Finding]:
    """A 1x1 convolution moves the least memory for its MACs when input and output channels are equal."""
    total = uneven = 0
    for piece, op in _convs(s.deploy_pieces):
        if _kernel(op) == (1, 1) and not _is_pooled(piece.graph, op.outputs[0]):
            out_ch, in_ch = op.attrs["weight_shape"][:2]
            macs = _macs(piece.graph, op)
            total += macs
            uneven += macs if max(in_ch, out_ch) >= 3 * min(in_ch, out_ch) else 0
    if total and uneven / total > 0.5:
        yield r.finding("backbone", f"{_percent(uneven / total)} of the 1x1 MACs change the width three times or more")


@rule("fragmentation", "note", f"{SHUFFLENET} guideline G3")
def _fragmentation(s: Subject, r: Rule) -> Iterator[Finding]:
    """Many small ops: each costs a launch and a pass through memory whatever its MACs."""
    ops = s.deploy.sum("num_ops", backbone=True)
    macs = s.deploy.macs_backbone
    if ops >= 60 and macs / ops < 0.5e6:
        yield r.finding("backbone", f"{ops} ops of {macs / ops / 1e3:.0f} kMACs on average in the deploy form")


@rule("elementwise-share", "note", f"{SHUFFLENET} guideline G4")
def _elementwise(s: Subject, r: Rule) -> Iterator[Finding]:
    """Elements written by elementwise ops against those written by convolutions (deploy form)."""
    written = s.deploy.sum("elementwise_ops", backbone=True)
    made = s.deploy.sum("activations", backbone=True)
    if made and written > 1.5 * made:
        message = f"elementwise ops write {_m(written)} elements, convolutions {_m(made)}: {written / made:.1f} to 1"
        yield r.finding("backbone", message)


@rule("activation-everywhere", "note", NOTES)
def _activation_everywhere(s: Subject, r: Rule) -> Iterator[Finding]:
    """An activation after every re-parameterised layer: more elementwise work than the net it should replace."""
    if s.peer is None or s.own_at_peer is None or s.train.params_backbone <= 1.02 * s.deploy.params_backbone:
        return
    mine, theirs = (c.sum("elementwise_ops", backbone=True) for c in (s.own_at_peer, s.peer))
    convs = sum(1 for _ in _convs(s.deploy_pieces))
    acts = sum(1 for p in s.deploy_pieces for op in p.graph.ops if op.name in _ACTIVATIONS)
    if acts >= 0.9 * convs and mine > theirs:
        yield r.finding(
            "backbone",
            f"{acts} activations after {convs} fused layers write {_m(mine)} elements at {s.own_at_peer.input[1]} px, "
            f"{mine / theirs:.1f} times those of {s.peer_name}",
        )


@rule("elementwise-work", "note", f"{NOTES} (LightTrack's rows: 30 ms against 22); {SHUFFLENET} guideline G4")
def _elementwise_work(s: Subject, r: Rule) -> Iterator[Finding]:
    """Elementwise work of a light net against the net it should replace: it takes time that MACs do not show."""
    if s.peer is None or s.own_at_peer is None or s.own_at_peer.macs_backbone > 1e9:
        return
    mine, theirs = (c.sum("elementwise_ops", backbone=True) for c in (s.own_at_peer, s.peer))
    # Of the light nets in the zoo only LightTrack and EfficientNet are above 5; FEAR-XS is at 4.0.
    if mine > 5 * theirs:
        macs = s.own_at_peer.macs_backbone / s.peer.macs_backbone
        yield r.finding(
            "backbone",
            f"elementwise ops write {_m(mine)} elements at {s.own_at_peer.input[1]} px, {mine / theirs:.1f} times "
            f"those of {s.peer_name} for {macs:.1f} times its MACs",
        )


@rule("depth-against-width", "warning", f"{NOTES} (31 layers were worse than 20); arXiv:1605.07146")
def _depth_against_width(s: Subject, r: Rule) -> Iterator[Finding]:
    """Many spatial convolutions in a row for few channels: depth that the width cannot use."""
    if any(len(p.graph.outputs) > 1 for p in s.deploy_pieces):
        return  # parallel resolutions are deep by design
    depth = longest_way(s.deploy_pieces)
    widths = [int(op.attrs["weight_shape"][0]) for _, op in _convs(s.deploy_pieces) if max(_kernel(op)) > 1]
    # Published nets cut at stride 16 stay at or below 0.17 (RepViT-M0.9, ShuffleNetV2).
    if depth >= 10 and depth > 0.2 * sum(widths) / len(widths):
        mean = sum(widths) / len(widths)
        yield r.finding(
            "backbone",
            f"{depth} spatial convolutions in a row of {mean:.0f} channels on average: {depth / mean:.2f} layers a "
            "channel, published nets stay below 0.2",
        )


def longest_way(pieces: Sequence[Piece]) -> int:
    """Spatial convolutions on the longest way from input to output."""
    depth = 0
    for piece in pieces:
        g = piece.graph
        depths = dict.fromkeys(g.inputs, depth)
        for op in g.ops:
            here = max((depths[i] for i in op.inputs if i in depths), default=depth)
            is_spatial = op.name == "conv2d" and max(_kernel(op)) > 1
            depths.update(dict.fromkeys(op.outputs, here + is_spatial))
        depth = max(depths.get(i, depth) for i in g.outputs)
    return depth


_ACTIVATIONS = frozenset("relu relu6 hardtanh hardswish silu gelu leaky_relu mish tanh elu prelu".split())


@rule("channels-of-8", "note", NOTES)
def _channels_of_8(s: Subject, r: Rule) -> Iterator[Finding]:
    """Runtimes compute in blocks of 4 to 16 channels; a stage that is no multiple of 8 pays for the remainder."""
    odd = [f"{m.stage} {m.channels}" for m in s.deploy.maps if m.channels % 8]
    if odd:
        yield r.finding(", ".join(odd), "channels are not a multiple of 8")


@rule("heavy-last-stage", "note", NOTES)
def _heavy_last(s: Subject, r: Rule) -> Iterator[Finding]:
    """One last stage that holds most of the backbone's parameters or MACs."""
    stages = [m for m in s.deploy.maps if m.sums[0]]
    if len(stages) < 3 or not s.deploy.taps:
        return
    names = [m.stage for m in stages]
    last = stages[names.index(s.deploy.taps[-1].stage)] if s.deploy.taps[-1].stage in names else stages[-1]
    for what, share in (
        ("parameters", last.params / max(1, s.deploy.params_backbone)),
        ("MACs", last.macs / max(1, s.deploy.macs_backbone)),
    ):
        if share > 0.6:
            stage = last.stage.partition("[")[0]  # of a stage with several maps, all of it
            yield r.finding(stage, f"the last stage holds {_percent(share)} of the backbone's {what}")


# ---------------------------------------------------------------------------------------------- tracker


@rule("total-stride", "error", "every tracker read: SiamFC, SiamDW, pysot, Ocean 8; NanoTrack, LightTrack, STARK 16")
def _total_stride(s: Subject, r: Rule) -> Iterator[Finding]:
    """A Siamese backbone ends at stride 8 or 16: 32 leaves no map to correlate, 4 is too slow."""
    if s.spec.tracker is None or s.geometry is None:
        return
    for tap in s.geometry.search.taps:
        if tap.stride is None or tap.stride in (8, 16):
            continue
        if tap.stride > 16:
            yield r.finding(tap.stage, f"total stride {tap.stride:g}; trackers work at 8 or 16: cut or tap earlier")
        else:
            yield r.finding(tap.stage, f"total stride {tap.stride:g}; trackers work at 8 or 16", "warning")


@rule("receptive-field", "warning", "SiamDW arXiv:1901.01660; measured: AlexNet 0.69, CIResNet22 0.73, NanoTrack 2.5")
def _receptive_field(s: Subject, r: Rule) -> Iterator[Finding]:
    """Receptive field over template: 0.6 to 0.8 for unpadded nets, at least 1.0 for padded ones, no upper limit."""
    if s.spec.tracker is None or s.geometry is None or s.geometry.rf_over_template is None:
        return
    ratio, g = s.geometry.rf_over_template, s.geometry
    said = f"receptive field {g.search.last.receptive_field} px is {ratio:.2f} of the {g.template.size_px} px template"
    if g.is_padded and ratio < 1.0 and not any(m.is_global for m in s.deploy.taps):
        yield r.finding(g.search.last.stage, f"{said}; no padded tracker is known below 1.0")
    elif not g.is_padded and not 0.6 <= ratio <= 0.8:
        yield r.finding(g.search.last.stage, f"{said}; unpadded trackers keep 0.6 to 0.8")


@rule("maps-do-not-fit", "error", "the trainer's own code, see `bblab profile`")
def _maps_fit(s: Subject, r: Rule) -> Iterator[Finding]:
    """Maps that the named trainer's head and labels cannot take."""
    if s.geometry and s.geometry.trainer:
        for problem in s.geometry.trainer.problems:
            yield r.finding(s.geometry.trainer.trainer, problem)


@rule("even-map", "note", "pysot and NanoTrack: points at centre - size // 2 * stride")
def _even_map(s: Subject, r: Rule) -> Iterator[Finding]:
    """An even map has no unit at its centre: the grid sits half a stride off."""
    if s.spec.tracker is None or s.geometry is None:
        return
    even = [size for size in (s.geometry.template, s.geometry.search) if size.last.height % 2 == 0]
    if even and s.geometry.search.last.stride:
        maps = ", ".join(f"{e.size_px} px: {e.last.height}x{e.last.width}" for e in even)
        half = s.geometry.search.last.stride / 2
        message = f"even maps ({maps}) have no middle unit: the trainer's points sit {half:g} px off the map's centre"
        if even[-1].last.offset_px:
            message += f", which itself lies {even[-1].last.offset_px:+g} px from the image's"
        yield r.finding(s.geometry.search.last.stage, message)


@rule("padding-shift", "note", "SiamRPN++ arXiv:1812.11703; pysot config SEARCH.SHIFT 64")
def _padding_shift(s: Subject, r: Rule) -> Iterator[Finding]:
    """A padded Siamese net learns to look at the centre unless training shifts the target."""
    if s.spec.tracker is not None and s.geometry is not None and s.geometry.is_padded:
        reach = s.geometry.search.last.padded_units
        of = s.geometry.search.last.height
        touched = "every unit" if reach >= of / 2 else f"the outer {reach} units of each side"
        yield r.finding(
            s.geometry.search.last.stage,
            f"padding reaches {touched} of the {of}x{of} search map: train with a shift of at least 32 px",
        )


# ---------------------------------------------------------------------------------------------- honesty


@rule("uncounted-ops", "warning", "bblab's op list")
def _uncounted(s: Subject, r: Rule) -> Iterator[Finding]:
    """An op that no counting rule knows: MACs are a lower bound, and the receptive field may be unknown."""
    names = dict.fromkeys((*s.train.uncounted, *s.deploy.uncounted))
    if names:
        yield r.finding(", ".join(names), "no rule counts these ops: the MACs shown leave them out")
    if s.deploy.unknown:
        yield r.finding(s.deploy.unknown, "the receptive field cannot be followed through this op", "note")


FORMS = "the 61 built-in specs differ by at most 1.1e-5 in float32, 2.7e-14 in float64"


@rule("forms-differ", "error", f"limit 1e-3 of the largest value; {FORMS}")
def _forms_differ(s: Subject, r: Rule) -> Iterator[Finding]:
    """A deploy form that computes something else than the train form: what is timed and exported was never trained."""
    if s.forms is None or s.forms.in_float32 <= 1e-5:
        return
    where = ", ".join(s.forms.where) or "backbone"
    if s.forms.is_another_function:
        yield r.finding(where, f"the deploy form computes another function: off by {s.forms.words}")
    elif s.forms.is_rounding and s.forms.in_float32 > 1e-3:
        yield r.finding(where, f"the forms differ by rounding alone: {s.forms.words}", "note")
    elif not s.forms.is_rounding:
        yield r.finding(where, f"the forms differ a little, and not by rounding: {s.forms.words}", "warning")


@rule("fuse-failed", "warning", "the error that the block's own fuse method ended with")
def _fuse_failed(s: Subject, r: Rule) -> Iterator[Finding]:
    """A block whose fuse method failed: its train form is counted, timed and exported as its deploy form."""
    for left in unfused(s):
        if left.has_failed:
            yield r.finding(left.where, f"{left.why}; its train form is taken for the deploy form")


@rule("unfused-norm", "note", "one more pass through memory for nothing; arXiv:1807.11164 guideline G4")
def _unfused_norm(s: Subject, r: Rule) -> Iterator[Finding]:
    """A batch norm that stays in the deploy form, because folding it would not be exact."""
    for left in unfused(s):
        if not left.has_failed:
            yield r.finding(left.where, f"a norm is not folded: {left.why}")


@dataclass(frozen=True, slots=True)
class Unfused:
    """Something that stays in the deploy form as it is in training: a norm, or a block whose fuse method failed."""

    where: str
    why: str
    has_failed: bool


def unfused(s: Subject) -> list[Unfused]:
    """Everything that stays in the deploy form as it is in training, as far as the last tap."""
    # A fuse method may fail on real weights where it passed without values.
    every = [] if s.forms is None else [Unfused(*left) for left in s.forms.unfused if left[2]]
    for piece in s.deploy_pieces:
        named = {layer: Unfused(f"{piece.where}.{layer}".rstrip("."), why, failed) for layer, why, failed in
                 piece.graph.unfused}  # fmt: skip
        every += named.values()
        for op in piece.graph.ops:
            is_in_failed = any(left.has_failed and _is_within(op.layer, layer) for layer, left in named.items())
            if op.name == "batch_norm" and op.layer not in named and not is_in_failed:
                every.append(Unfused(f"{piece.where}.{op.layer}".rstrip("."), _norm_follows(piece.graph, op), False))
    return list({left.where: left for left in reversed(every)}.values())[::-1]


def _is_within(layer: str, outer: str) -> bool:
    return not outer or layer == outer or layer.startswith(f"{outer}.")


def _norm_follows(graph: OpGraph, norm: Op) -> str:
    """What a norm follows, in a block that bblab did not look at norm by norm."""
    maker = next((op for op in graph.ops if norm.inputs[0] in op.outputs), None)
    return "it comes first in its block" if maker is None else f"it follows {maker.name} there"


@rule("deploy-larger", "warning", "fusing takes branches and norms away; the device pays for what it adds")
def _deploy_larger(s: Subject, r: Rule) -> Iterator[Finding]:
    """A deploy form with more parameters, MACs or operations than the train form."""
    more = []
    for key, what in (("params", "parameters"), ("macs", "MACs"), ("num_ops", "operations")):
        train, deploy = (cost.sum(key, backbone=True) for cost in (s.train, s.deploy))
        if deploy > train:
            more.append(f"{deploy:,} {what} instead of {train:,}")
    if more:
        yield r.finding("backbone", f"the deploy form is larger than the train form: {', '.join(more)}")


@rule("counters-disagree", "warning", "torch.utils.flop_counter, on each block of a lab")
def _second_count(s: Subject, r: Rule) -> Iterator[Finding]:
    """bblab's MACs and those of torch's own counter differ on a lab's block, and no known omission explains it."""
    for form, cost in (("train", s.train), ("deploy", s.deploy)):
        for where, both in cost.second:
            if both.unexplained:
                names = ", ".join(both.unexplained)
                yield r.finding(
                    where,
                    f"bblab counts {both.macs:,} MACs ({form} form), torch's own counter {both.torch_macs:,}; they "
                    f"differ in {names}: trust neither before that is understood",
                )


@rule("most-behind-the-tap", "note", "bblab's op list")
def _behind(s: Subject, r: Rule) -> Iterator[Finding]:
    """Another library's net most of whose parameters lie behind its last tap: it is another net than its name says."""
    behind, kept = s.train.params_behind, s.train.params_backbone
    if behind > kept:
        where = s.train.taps[-1].stage if s.train.taps else s.spec.name
        yield r.finding(
            where,
            f"{_percent(behind / (behind + kept))} of the net's {_m(behind + kept)} parameters lie behind the last "
            "tap: the backbone's figures leave them out",
        )


@rule("unfused-latency", "warning", NOTES)
def _unfused(s: Subject, r: Rule) -> Iterator[Finding]:
    """A latency taken from an unfused net says nothing about the deployed one."""
    has_branches = s.train.sum("num_ops", backbone=True) > 1.5 * s.deploy.sum("num_ops", backbone=True)
    if s.timed_forms and "deploy" not in s.timed_forms and has_branches:
        yield r.finding("latency", "only the unfused train form was timed; the device runs the deploy form")
