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
    query, key, value = op.attrs["shapes"]  # grouped queries: fewer heads of keys, each met by several of queries
    rows = math.prod(_broadcast(query[:-2], [1] * (len(query) - 2))) * query[-2]  # batch x heads x queries
    return rows * key[-2] * query[-1] + rows * key[-2] * value[-1]


def _multi_head(op: Op, graph: OpGraph) -> int:
    """In-projections of query, key and value, scores, weighted sum, out-projection; (length, batch, width)."""
    shapes = op.attrs["shapes_of"]
    *length, width = shapes["query"]
    queries = length[0]
    batch = length[1] if len(length) > 1 else 1
    keys = shapes["key"][0]
    macs = 0
    if "q_proj_weight" in shapes:  # keys and values of widths of their own
        weights = [shapes[f"{w}_proj_weight"] for w in "qkv"]
    else:
        weights = [[width, width]] * 3
    for (out_width, in_width), rows in zip(weights, (queries, keys, keys), strict=True):
        macs += batch * rows * out_width * in_width
    keys += ("bias_k" in shapes) + op.attrs["add_zero_attn"]
    macs += 2 * batch * queries * keys * width
    return int(macs + batch * queries * math.prod(shapes["out_proj_weight"]))


def _recurrent(op: Op, graph: OpGraph) -> int:
    """Every matrix of a recurrent layer meets every step once."""
    return int(op.attrs["steps"] * sum(op.attrs["matrices"]))


def _chain(op: Op, graph: OpGraph) -> int:
    """A product of several matrices in its cheapest order, as torch does it (Cormen et al., matrix-chain order)."""
    shapes = [list(s) for s in op.attrs["shapes"]]
    if len(shapes[0]) == 1:
        shapes[0] = [1, *shapes[0]]
    if len(shapes[-1]) == 1:
        shapes[-1] = [*shapes[-1], 1]
    sides = [shapes[0][0], *(s[1] for s in shapes)]
    cheapest = {(i, i): 0 for i in range(len(shapes))}
    for span in range(1, len(shapes)):
        for i in range(len(shapes) - span):
            j = i + span
            cheapest[i, j] = min(
                cheapest[i, k] + cheapest[k + 1, j] + sides[i] * sides[k + 1] * sides[j + 1] for k in range(i, j)
            )
    return cheapest[0, len(shapes) - 1]


def _broadcast(first: Sequence[int], second: Sequence[int]) -> list[int]:
    rank = max(len(first), len(second))
    long, other = ([1] * (rank - len(s)) + list(s) for s in (first, second))
    return [max(a, b) for a, b in zip(long, other, strict=True)]


def einsum_terms(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[list[str]], list[str]]:
    """The letters of every operand and of the result, an ellipsis spelt out ("...0" is the last axis it stands for).

    Raises ValueError for an equation that does not fit the shapes.
    """
    given, arrow, result = equation.replace(" ", "").partition("->")
    terms = []
    longest = 0
    for term, shape in zip(given.split(","), shapes, strict=True):
        head, dots, tail = term.partition("...")
        more = len(shape) - len(head) - len(tail)
        if more < 0 or (more and not dots):
            raise ValueError(equation)
        longest = max(longest, more)
        terms.append([*head, *(f"...{i}" for i in reversed(range(more))), *tail])
    spread = [f"...{i}" for i in reversed(range(longest))]
    if arrow:
        head, dots, tail = result.partition("...")
        return terms, [*head, *(spread if dots else []), *tail]
    letters = [letter for term in terms for letter in term if not letter.startswith("...")]
    return terms, [*spread, *sorted(letter for letter in set(letters) if letters.count(letter) == 1)]


def _einsum(op: Op, graph: OpGraph) -> int | None:
    """Two factors: every letter of the result once, times the summed letters that both have.

    Letters that one factor alone has (or the other has with length 1) are summed before, and without a sum over both
    the factors are multiplied elementwise: no product, as torch does it (2.13). The order of three is torch's choice.
    """
    terms, result = einsum_terms(str(op.attrs["equation"]), op.attrs["shapes"])
    if len(terms) == 1:
        return 0  # a sum, a diagonal, a permutation
    if len(terms) != 2:
        return op.torch_macs
    sizes = [dict(zip(term, shape, strict=True)) for term, shape in zip(terms, op.attrs["shapes"], strict=True)]
    summed = [n for letter, n in sizes[0].items() if letter not in result and min(n, sizes[1].get(letter, 1)) > 1]
    if not summed:
        return 0
    return math.prod(max(s.get(letter, 1) for s in sizes) for letter in result) * math.prod(summed)


MAC_RULES: dict[str, Callable[[Op, OpGraph], int | None]] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "deform_conv2d": _conv,  # its bilinear sampling is elementwise
    "conv_transpose1d": _conv_transpose,
    "conv_transpose2d": _conv_transpose,
    "conv_transpose3d": _conv_transpose,
    "linear": _linear,
    **dict.fromkeys(
        """
        matmul rmatmul mm bmm mv dot vdot inner addmm addbmm baddbmm addmv addr tensordot linalg_matmul linalg_vecdot
        """.split(),
        _product,
    ),
    **dict.fromkeys(("linalg_multi_dot", "multi_dot", "chain_matmul"), _chain),
    **dict.fromkeys("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell".split(), _recurrent),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "flex_attention": _attention,
    "multi_head_attention_forward": _multi_head,
}

# Ops known to multiply-accumulate nothing. A name that stands in neither table is listed in `uncounted`. An outer
# product (outer, ger) sums nothing: it is the elementwise multiplication that it is written as elsewhere.
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
    logical_xor outer ger weight_norm norm_except_dim var_mean std_mean embedding embedding_bag one_hot rot90 hypot
    unsqueeze_copy swapdims moveaxis adjoint vstack hstack dstack column_stack unsafe_chunk block_diag
    linalg_vector_norm linalg_norm cumprod sort topk argmin argsort searchsorted masked_select index index_add
    index_copy index_fill scatter scatter_add put take nonzero deg2rad rad2deg atan atan2 asin acos sinh asinh acosh
    atanh log10 trunc frac fmod sgn isnan isinf isfinite any all count_nonzero bucketize softmin
    max_pool3d avg_pool3d adaptive_avg_pool3d max_unpool2d grid_sample affine_grid pdist cosine_similarity
    adaptive_max_pool3d max_pool2d_with_indices adaptive_max_pool2d
    """.split()
)
# ATen ops inside of a call that no rule knows: with these and ELEMENTWISE alone, torch's counter saw all its products.
_SEEN_BY_TORCH = frozenset("convolution addmm mm bmm baddbmm".split())
_INNER = frozenset(
    """
    unsafe_view to_copy native_batch_norm native_batch_norm_legit_no_training native_layer_norm native_group_norm
    safe_softmax slice arange empty zeros ones full scalar_tensor lift_fresh reshape_alias unsafe_split
    upsample_bilinear2d upsample_nearest2d constant_pad_nd embedding_bag_forward_only local_scalar_dense
    weight_norm_interface split_with_sizes_copy resize set index_put new_empty_strided empty_strided
    """.split()
)
# Products that torch's counter has no formula for (2.13): where a call consists of these, it sees less than there is.
OMITTED_BY_TORCH = frozenset("mv dot vdot addmv addr addbmm deform_conv2d mkldnn_rnn_layer linalg_vecdot".split())


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
        macs = _macs(op, graph)
        written = sum(numel(graph.tensors[i]) for i in op.outputs)
        read = sum(numel(graph.tensors[i]) for i in dict.fromkeys(op.inputs))
        if op.name == "setitem":  # a part of its first input is written, none of it read
            written = op.attrs["written"]
            read -= numel(graph.tensors[op.inputs[0]])
        weights = sum(graph.params[i].numel * graph.params[i].itemsize for i in op.params)
        traffic = (written + read) * ITEM_BYTES + weights
        params = sum(graph.params[i].numel for i in op.params if graph.params[i].is_learnable)
        shape = graph.tensors[op.outputs[0]]
        is_mac_op = op.name in MAC_RULES or bool(macs)
        found.append(OpCost(op.name, op.layer, shape, macs, params, written, traffic, is_mac_op))
    return found


def _macs(op: Op, graph: OpGraph) -> int | None:
    """An op's MACs by its rule; without one by torch's counter, where it knows all that ran inside; else None."""
    rule = MAC_RULES.get(op.name)
    if rule is not None:
        try:
            return rule(op, graph)
        except (IndexError, KeyError, ValueError, TypeError):
            return None
    if op.name in ELEMENTWISE:
        return 0
    if op.inside and all(name in _SEEN_BY_TORCH or name in ELEMENTWISE or name in _INNER for name in op.inside):
        return op.torch_macs
    return None


# ---------------------------------------------------------------------------------------------- a second counter


@dataclass(frozen=True, slots=True)
class SecondCount:
    """A block's MACs by bblab and by torch's own counter; `unexplained` names the ops in which they differ.

    `omitted`: MACs in ops for which torch's counter has no formula. `uncounted`: MACs of torch's in ops that bblab
    lists as uncounted.
    """

    macs: int
    torch_macs: int
    omitted: int
    uncounted: int
    unexplained: tuple[str, ...]

    @property
    def difference(self) -> int:
        """Torch's figure less bblab's, without what is explained."""
        return self.torch_macs - self.macs + self.omitted - self.uncounted


def second_count(graph: OpGraph, costs: Sequence[OpCost]) -> SecondCount | None:
    """What torch's own counter saw of the block beside our count; None where it did not run."""
    if graph.torch_macs is None:
        return None
    omitted = uncounted = seen = 0
    names: dict[str, None] = {}
    working = [op for op in graph.ops if not op.is_view]
    for op, cost in zip(working, costs, strict=True):
        theirs = op.torch_macs or 0
        seen += theirs
        if cost.macs is None:
            uncounted += theirs
        elif cost.macs > theirs and OMITTED_BY_TORCH.intersection((op.name, *op.inside)):
            omitted += cost.macs - theirs
        elif cost.macs != theirs:
            names[f"{op.name} ({op.layer})" if op.layer else op.name] = None
    if seen != graph.torch_macs:
        names["outside of any recorded op"] = None
    return SecondCount(sum(c.macs or 0 for c in costs), graph.torch_macs, omitted, uncounted, tuple(names))


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
