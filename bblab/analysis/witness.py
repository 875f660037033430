"""Second opinions: what fvcore, thop and torch count for a net, and why that differs from bblab's figures.

Each witness counts in its own definition. What it counts beyond multiply-adds, and what it overlooks, is worked out
op by op from the recorded op list and the witness's own rules; whatever is then left over is shown as unexplained,
so that a mistake in either counter comes to light.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from bblab import ops
from bblab.analysis.cost import numel, op_costs
from bblab.analysis.net import Analyst
from bblab.errors import BblabError, near
from bblab.installing import how_to_install
from bblab.ops import Form, Op, OpGraph
from bblab.spec import ArchSpec, BlockInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

NAMES = ("fvcore", "thop", "torch")


class Gap(NamedTuple):
    """Where a witness counts otherwise than bblab: how, in which op or layer, and by how much (theirs - ours)."""

    what: str
    where: str
    macs: int = 0
    params: int = 0


def compare(spec: ArchSpec, kinds: Mapping[str, BlockInfo], form: Form, name: str) -> dict[str, Any]:
    """One witness's figures for the whole net (with its head) at the spec's own input, batch 1, beside ours.

    `macs` and `params` are the witness's, in its own definition; `difference` is theirs minus ours, of which
    `explained` lists the reasons and `unexplained` is the rest (0 when all is understood); the same for parameters
    under `*_params`. All of them are None where the witness fails on this net; `notes` then says how.
    Raises BblabError for an unknown or missing witness and for a net that cannot be built.
    """
    version = _version(name)
    notes = []
    if spec.library and spec.cut:
        notes.append(f"counted whole: the cut at {spec.cut} is left out of account here")
        spec = replace(spec, cut=None)
    cost = Analyst(kinds).cost(spec, form)
    if cost.uncounted:
        notes.append("bblab has no MAC rule for: " + ", ".join(cost.uncounted))
    row: dict[str, Any] = {
        "witness": name,
        "version": version,
        "form": form,
        "params": None,
        "macs": None,
        "ours": {"params": cost.params, "macs": cost.macs},
        "difference": None,
        "difference_params": None,
        "explained": [],
        "unexplained": None,
        "unexplained_params": None,
        "notes": notes,
    }
    try:
        with _quiet():
            net, graph, device = _recorded(spec, kinds, form)
            if name == "fvcore" and device == "meta":  # its tracer needs real tensors
                net, device = _net(spec, kinds, form, "cpu"), "cpu"
            found = {"fvcore": _fvcore_gaps, "thop": _thop_gaps, "torch": _torch_gaps}[name](net, graph)
            count = {"fvcore": _fvcore, "thop": _thop, "torch": _torch}[name]
            macs, params = count(net, _example(spec, device))
    except BblabError:
        raise
    except Exception as error:  # a witness that breaks on a net is a finding about the witness
        said = (str(error).strip().splitlines() or [""])[0]
        notes.append(f"{name} does not run on this net: {type(error).__name__}: {said}")
        return row
    explained = _grouped(found)
    row.update(macs=macs, params=params, difference=macs - cost.macs, difference_params=params - cost.params)
    row["explained"] = explained
    row["unexplained"] = row["difference"] - sum(e["macs"] for e in explained)
    row["unexplained_params"] = row["difference_params"] - sum(e["params"] for e in explained)
    if name == "torch":
        notes.append("FlopCounterMode counts a multiply-add as two: halved here")
    return row


def _version(name: str) -> str:
    """The witness's version. Raises BblabError where it is unknown or cannot be imported."""
    import importlib.metadata

    if name not in NAMES:
        raise BblabError(f"no witness {name!r}", hint=near(name, NAMES))
    try:
        with _quiet():
            importlib.import_module(name)
        return importlib.metadata.version(name)
    except ImportError as error:
        hint = how_to_install(name)
        raise BblabError(f"{name} cannot be imported: {error}", hint=hint) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings, logging and prints of the counters, and keep torch on one thread.

    One thread, because small layers on a busy machine wait for each other: tracing mobileone_k5_se took 5 s on two
    threads and 0.8 s on one (two shared cores, torch 2.13).
    """
    import torch

    threads, level = torch.get_num_threads(), logging.root.manager.disable
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        logging.disable(level)


# ---------------------------------------------------------------------------------------------- the net


def _net(spec: ArchSpec, kinds: Mapping[str, BlockInfo], form: Form, device: str) -> nn.Module:
    """The whole net in eval mode: every stage and the head where there is one; another library's net as it is."""
    from torch import nn

    from bblab import build, library

    example = _example(spec, device)
    if spec.library:
        net = library.make_net(spec.library, device=device, size=spec.input[1:])
        if form == "deploy":
            net = library.reparameterize(net, spec.library)
            ops.fold_norms(net, [example], is_ours=True)
        return net.eval()

    class Whole(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Any) -> Any:
            for stage in self.body.stages.values():  # type: ignore[operator]
                x = stage(x)
            return x if self.body.head is None else self.body.head(x)  # type: ignore[operator]

    body: nn.Module = build.Backbone(spec, kinds, device=device)
    return Whole(build.to_deploy(body, spec, kinds) if form == "deploy" else body).eval()


def _example(spec: ArchSpec, device: str) -> Tensor:
    import torch

    return torch.zeros((1, *spec.input), device=device)


def _recorded(spec: ArchSpec, kinds: Mapping[str, BlockInfo], form: Form) -> tuple[nn.Module, OpGraph, str]:
    """The net, its ops, and the device it runs on: meta where it can, else the CPU."""
    try:
        net = _net(spec, kinds, form, "meta")
        return net, ops.record(net, [_example(spec, "meta")]), "meta"
    except (RuntimeError, NotImplementedError):
        net = _net(spec, kinds, form, "cpu")
        return net, ops.record(net, [_example(spec, "cpu")]), "cpu"


def _grouped(gaps: list[Gap]) -> list[dict[str, Any]]:
    """Gaps of the same kind added up, the largest first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for gap in gaps:
        if not (gap.macs or gap.params):
            continue
        new = {"what": gap.what, "where": gap.where, "count": 0, "macs": 0, "params": 0}
        entry = found.setdefault((gap.what, gap.where), new)
        entry["count"] += 1
        entry["macs"] += gap.macs
        entry["params"] += gap.params
    return sorted(found.values(), key=lambda e: (-abs(e["macs"]), -abs(e["params"]), e["where"]))


def _working_ops(graph: OpGraph) -> Iterator[tuple[Op, int]]:
    """Every op that does work, with our MACs (0 where no rule knows it)."""
    working = [op for op in graph.ops if not op.is_view]
    for op, cost in zip(working, op_costs(graph), strict=True):
        yield op, cost.macs or 0


def _read(op: Op, graph: OpGraph) -> int:
    """Elements of the op's first input; 0 where it reads weights only."""
    return numel(graph.tensors[op.inputs[0]]) if op.inputs else 0


def _written(op: Op, graph: OpGraph) -> int:
    return numel(graph.tensors[op.outputs[0]])


def _is_affine(op: Op, graph: OpGraph) -> bool:
    return any(graph.params[i].is_learnable for i in op.params)


# ---------------------------------------------------------------------------------------------- torch


def _torch(net: nn.Module, x: Tensor) -> tuple[int, int]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The fused attention kernel of the CPU has no formula there (torch 2.13); the plain one is matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x)
    return counter.get_total_flops() // 2, sum(p.numel() for p in net.parameters())


def _torch_gaps(net: nn.Module, graph: OpGraph) -> list[Gap]:
    return []  # the same definition: convolutions, linear layers, matrix products


# ---------------------------------------------------------------------------------------------- fvcore


def _fvcore(net: nn.Module, x: Tensor) -> tuple[int, int]:
    from fvcore.nn import FlopCountAnalysis, parameter_count

    counter = FlopCountAnalysis(net, (x,)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(counter.tracer_warnings("none").total()), int(parameter_count(net)[""])


# fvcore.nn.flop_count._DEFAULT_SUPPORTED_OPS and jit_handles, fvcore 0.1.5: what an element counts.
_FVCORE_NORMS = {"batch_norm": (2, 1), "layer_norm": (5, 4), "group_norm": (5, 4), "instance_norm": (5, 4)}
_FVCORE_UPSAMPLES = {"nearest": 1, "bilinear": 4}
_FVCORE_UNKNOWN = {"scaled_dot_product_attention": "fused attention", "baddbmm": "batched product with a sum"}


def _fvcore_gaps(net: nn.Module, graph: OpGraph) -> list[Gap]:
    gaps = []
    for op, macs in _working_ops(graph):
        if op.name in _FVCORE_NORMS:
            each = _FVCORE_NORMS[op.name][0 if _is_affine(op, graph) else 1]
            words = op.name.replace("_", " ")
            gaps.append(Gap(f"{words} counted, {each} an element", op.name, each * _read(op, graph)))
        elif op.name == "adaptive_avg_pool2d":
            gaps.append(Gap("adaptive pooling counted, 1 an input element", op.name, _read(op, graph)))
        elif op.name in ("interpolate", "upsample") and len(graph.tensors[op.outputs[0]]) == 4:
            mode = op.attrs.get("mode") or "nearest"
            each = _FVCORE_UPSAMPLES.get(mode, 0)
            gaps.append(Gap(f"{mode} upsampling counted, {each} an element", op.name, each * _written(op, graph)))
        elif op.name in _FVCORE_UNKNOWN:
            gaps.append(Gap(f"{_FVCORE_UNKNOWN[op.name]} not known to fvcore", op.name, -macs))
    return gaps


# ---------------------------------------------------------------------------------------------- thop


def _thop(net: nn.Module, x: Tensor) -> tuple[int, int]:
    import thop

    macs, params = thop.profile(net, (x,), verbose=False)
    return round(macs), round(params)


def _thop_gaps(net: nn.Module, graph: OpGraph) -> list[Gap]:
    """thop hooks modules whose type is, exactly, one of its table: subclasses and functional calls stay unseen."""
    from thop.profile import register_hooks

    modules = dict(net.named_modules())
    gaps: list[Gap] = []
    ran: set[str] = set()
    unseen: dict[str, list[int]] = {}  # layer -> MACs, parameters
    for op, macs in _working_ops(graph):
        layer = modules[op.layer]
        hook = register_hooks.get(type(layer))
        ran.add(op.layer)
        if hook is not None:
            gaps.extend(_thop_extra(hook.__name__, op, layer, graph))
        if macs and (hook is None or hook.__name__ not in ("count_convNd", "count_linear")):
            unseen.setdefault(op.layer, [0, 0])[0] -= macs
    for weight in graph.params:
        owner = weight.name.rpartition(".")[0]
        if weight.is_learnable and not (owner in ran and type(modules[owner]) in register_hooks):
            unseen.setdefault(owner, [0, 0])[1] -= weight.numel
    for name, (macs, params) in unseen.items():
        kind = type(modules[name])
        words = f"{kind.__module__.partition('.')[0]}'s {kind.__name__}"
        gaps.append(Gap(f"{words} overlooked: no exact torch.nn type", kind.__name__, macs, params))
    return gaps


def _thop_extra(hook: str, op: Op, layer: nn.Module, graph: OpGraph) -> Iterator[Gap]:
    """What a hook of thop.vision.basic_hooks (thop 0.1.1) counts for its layer beside multiply-adds."""
    kind = type(layer).__name__
    read, written = _read(op, graph), _written(op, graph)
    if hook == "count_normalization":
        is_affine = getattr(layer, "affine", False) or getattr(layer, "elementwise_affine", False)
        each = 4 if is_affine else 2
        yield Gap(f"{op.name.replace('_', ' ')} counted, {each} an element", kind, each * read)
    elif hook == "count_prelu":
        yield Gap("PReLU counted, 1 an element", kind, read)
    elif hook == "count_softmax":
        features = graph.tensors[op.inputs[0]][op.attrs["dim"]]
        yield Gap("softmax counted, 3 an element less 1 a row", kind, read // features * (3 * features - 1))
    elif hook == "count_avgpool":
        yield Gap("average pooling counted, 1 an output element", kind, written)
    elif hook == "count_adap_avgpool":
        sides = zip(graph.tensors[op.inputs[0]][2:], graph.tensors[op.outputs[0]][2:], strict=True)
        window = math.prod(i / o for i, o in sides)
        why = f"adaptive pooling counted, {window + 1:g} an output element"
        yield Gap(why, kind, int((window + 1) * written))
    elif hook == "count_upsample":
        mode = str(getattr(layer, "mode", ""))
        each = {"nearest": 1, "linear": 5, "bilinear": 11, "bicubic": 259}.get(mode, 0)
        yield Gap(f"{mode} upsampling counted, {each} an element", kind, each * written)
    elif op.name.startswith("conv_transpose"):
        weight = op.attrs["weight_shape"]  # input channels, output channels of a group, kernel
        in_ch = graph.tensors[op.inputs[0]][1]
        groups = graph.tensors[op.outputs[0]][1] // weight[1]
        theirs = written * (in_ch // groups) * math.prod(weight[2:])
        ours = read * math.prod(weight[1:])
        yield Gap("transposed convolution counted on its output map", kind, theirs - ours)
