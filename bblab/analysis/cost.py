"""What the ops of one block cost: MACs, written elements, bytes moved, memory held.

MACs are the multiply-adds of convolutions, linear layers and matrix products, nothing else; elementwise work is
counted apart, because it is cheap in MACs and dear in time (ShuffleNetV2's guideline G4, arXiv:1807.11164).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bblab.ops import Op, OpGraph, Shape

ITEM_BYTES = 4  # float32: what every byte count of an analysis is stated in


def numel(shape: Shape) -> int:
    return math.prod(shape)


# ---------------------------------------------------------------------------------------------- MACs by op


def _conv(op: Op, graph: OpGraph) -> int:
    return numel(graph.tensors[op.outputs[0]]) * math.prod(op.attrs["weight_shape"][1:])


def _conv_transpose(op: Op, graph: OpGraph) -> int:
    return numel(graph.tensors[op.inputs[0]]) * math.prod(op.attrs["weight_shape"][1:])


def _linear(op: Op, graph: OpGraph) -> int:
    return numel(graph.tensors[op.outputs[0]]) * op.attrs["weight_shape"][-1]


def _product(op: Op, graph: OpGraph) -> int:
    return numel(graph.tensors[op.outputs[0]]) * op.attrs["contracted"]


def _attention(op: Op, graph: OpGraph) -> int:
    query, key, value = (graph.tensors[i] for i in op.inputs[:3])
    rows = numel(query[:-1])  # batch x heads x queries
    return rows * key[-2] * query[-1] + rows * key[-2] * value[-1]


def _multi_head(op: Op, graph: OpGraph) -> int:
    # In-projections of query, key and value, the two products, the out-projection; (length, batch, width).
    length, batch, width = graph.tensors[op.inputs[0]]
    source = graph.tensors[op.inputs[min(1, len(op.inputs) - 1)]][0]
    project = batch * width * width * (2 * length + 2 * source)
    return project + 2 * batch * length * source * width


def _einsum(op: Op, graph: OpGraph) -> int | None:
    equation = str(op.attrs["equation"]).replace(" ", "")
    terms, shapes = equation.partition("->")[0].split(","), op.attrs["shapes"]
    if len(terms) != 2 or "." in equation:
        return None
    # The product runs over every letter once: summed letters are the contracted lengths.
    sizes = {
        letter: n for term, shape in zip(terms, shapes, strict=True) for letter, n in zip(term, shape, strict=True)
    }
    return math.prod(sizes.values())


MAC_RULES: dict[str, Callable[[Op, OpGraph], int | None]] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "linear": _linear,
    "matmul": _product,
    "rmatmul": _product,
    "mm": _product,
    "bmm": _product,
    "addmm": _product,
    "baddbmm": _product,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
}

# Ops known to multiply-accumulate nothing. A name that stands in neither table is listed in `uncounted`.
ELEMENTWISE = frozenset(
    """
    abs add addcmul addcdiv bitwise_and ceil celu clamp clamp_min clamp_max clip clone contiguous cos cosh div
    dropout alpha_dropout dropout2d dropout1d elu eq erf exp expm1 feature_dropout floor floor_divide ge gelu glu gt
    hardshrink hardsigmoid hardswish hardtanh le leaky_relu log log1p log2 logical_and logical_not logsigmoid lt
    masked_fill maximum minimum mish mul ne neg nan_to_num pow prelu reciprocal relu relu6 remainder round rrelu rsqrt
    selu sigmoid sign silu sin softplus softsign sqrt square sub tan tanh tanhshrink threshold to type type_as float
    half double bfloat16 true_divide where lerp copy rms_norm bool int long cpu
    batch_norm layer_norm group_norm instance_norm local_response_norm normalize softmax log_softmax
    max_pool2d avg_pool2d lp_pool2d max_pool1d avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d adaptive_avg_pool1d
    adaptive_max_pool2d_with_indices adaptive_max_pool1d
    mean sum amax amin max min std var norm argmax cumsum prod logsumexp
    cat stack pad interpolate upsample pixel_shuffle pixel_unshuffle channel_shuffle roll flip repeat
    repeat_interleave tile unfold fold gather index_select take_along_dim meshgrid tril triu
    view reshape flatten unflatten permute transpose swapaxes movedim t T mT squeeze unsqueeze expand expand_as
    chunk split split_with_sizes tensor_split unbind narrow select getitem view_as reshape_as ravel detach data real
    broadcast_to as_strided alias diagonal numpy_T fill zero setitem zeros_like ones_like full_like empty_like
    rand_like randn_like new_zeros new_ones new_full new_empty bernoulli invert bitwise_not bitwise_or logical_or
    logical_xor
    """.split()
)


# ---------------------------------------------------------------------------------------------- one op, one block


@dataclass(frozen=True, slots=True)
class OpCost:
    """One op. `macs` is None where no rule knows it. Elements and bytes at batch 1, float32."""

    name: str
    layer: str
    out: Shape
    macs: int | None
    params: int
    written: int
    traffic_bytes: int
    is_mac_op: bool


def op_costs(graph: OpGraph) -> list[OpCost]:
    """The cost of every op that does work; views are left out."""
    found = []
    for op in graph.ops:
        if op.is_view:
            continue
        rule = MAC_RULES.get(op.name)
        macs: int | None
        if rule is not None:
            try:
                macs = rule(op, graph)
            except (IndexError, KeyError, ValueError):
                macs = None
        else:
            macs = 0 if op.name in ELEMENTWISE else None
        written = sum(numel(graph.tensors[i]) for i in op.outputs)
        read = sum(numel(graph.tensors[i]) for i in dict.fromkeys(op.inputs))
        if op.name == "setitem":  # a part of its first input is written, none of it read
            written = op.attrs["written"]
            read -= numel(graph.tensors[op.inputs[0]])
        weights = sum(graph.params[i].numel * graph.params[i].itemsize for i in op.params)
        traffic = (written + read) * ITEM_BYTES + weights
        params = sum(graph.params[i].numel for i in op.params if graph.params[i].is_learnable)
        shape = graph.tensors[op.outputs[0]]
        found.append(OpCost(op.name, op.layer, shape, macs, params, written, traffic, rule is not None))
    return found


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over ops; they add up over blocks."""

    params: int = 0
    weight_bytes: int = 0
    macs: int = 0
    activations: int = 0
    elementwise_ops: int = 0
    memory_traffic_bytes: int = 0
    num_ops: int = 0

    def astuple(self) -> tuple[int, ...]:
        return (
            self.params,
            self.weight_bytes,
            self.macs,
            self.activations,
            self.elementwise_ops,
            self.memory_traffic_bytes,
            self.num_ops,
        )


def totals(graph: OpGraph, costs: Sequence[OpCost]) -> Totals:
    learnable = sum(w.numel for w in graph.params if w.is_learnable)
    # num_batches_tracked is bookkeeping: no deployed file carries it.
    stored = sum(w.numel * w.itemsize for w in graph.params if not w.name.endswith("num_batches_tracked"))
    return Totals(
        params=learnable,
        weight_bytes=stored,
        macs=sum(c.macs or 0 for c in costs),
        activations=sum(c.written for c in costs if c.is_mac_op),
        elementwise_ops=sum(c.written for c in costs if not c.is_mac_op),
        memory_traffic_bytes=sum(c.traffic_bytes for c in costs),
        num_ops=len(costs),
    )


def peak_bytes(graph: OpGraph, *, keeps_input: bool = False) -> int:
    """The largest sum of live tensors when the ops run in recorded order, float32.

    `keeps_input`: the input stays alive to the end (it is a tap that somebody else reads later).
    """
    last_use: dict[int, int] = {}
    end = len(graph.ops)
    for position, op in enumerate(graph.ops):
        for i in (*op.inputs, *op.outputs):
            last_use[graph.roots[i]] = position
    for i in graph.outputs:
        last_use[graph.roots[i]] = end
    if keeps_input:
        for i in graph.inputs:
            last_use[graph.roots[i]] = end
    # The root's own shape is the allocation; a view may show less of it.
    live = {graph.roots[i] for i in graph.inputs}
    held = sum(numel(graph.tensors[r]) for r in live)
    peak = held
    free_at: dict[int, list[int]] = {}
    for root, position in last_use.items():
        free_at.setdefault(position, []).append(root)
    for position, op in enumerate(graph.ops):
        for i in (*op.inputs, *op.outputs):
            root = graph.roots[i]
            if root not in live:
                live.add(root)
                held += numel(graph.tensors[root])
        peak = max(peak, held)
        for root in free_at.get(position, ()):
            if root in live:
                live.remove(root)
                held -= numel(graph.tensors[root])
    return peak * ITEM_BYTES
