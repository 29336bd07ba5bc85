"""Questions that several passes ask of an op."""

from __future__ import annotations

from dataclasses import replace

from epsc.ir.attrs import CallAttrs, Direction, ExpertGemmActAttrs, ExpertGemmAttrs, SlotAttrs, TransferAttrs
from epsc.ir.dims import Axis, DType
from epsc.ir.graph import Graph, Node
from epsc.ir.kinds import KINDS
from epsc.ir.schedule import Ref

LOWERED_AXES = (Axis.EXPERT_GROUP, Axis.TOKENS)
"""Axes that the passes can cut along today; the others are in the language and the types only."""


SUMS = {"unpermute_sum": 3, "sum_copies": 2, "sum_ranks": 2}
"""Sums that can start from rows of tokens, and how many inputs they have besides."""


def why_not_persistent(graph: Graph, node: Node) -> str:
    """What the persistent kernel cannot do of this expert gemm; nothing if it can run it."""
    attrs = node.attrs
    assert isinstance(attrs, ExpertGemmAttrs)
    made = attrs.width if isinstance(attrs, ExpertGemmActAttrs) else attrs.out
    read = graph.types[node.ins[0]]
    if read.dtype is DType.FP32:
        return "its tensor cores take bf16 and fp16"
    # 16 bytes: what TMA addresses rows by.
    if read.shape[1].scale % 8 or made % 8:
        return f"its widths, {read.shape[1].scale} and {made}, are no multiples of 8"
    return ""


def name_of(node: Node) -> str:
    """The name of the weight, or of the module, as the layer's text says it, for a `call` and for a gemm that is not
    inside an `mlp`; else the origin."""
    if isinstance(node.attrs, CallAttrs):
        return node.attrs.module.rpartition(".")[2]
    if not node.kind.endswith("gemm"):  # one with an activation is named by its result
        return node.origin
    *before, weight = node.params[0].split(".")
    if len(before) > 1 and before[-1].isdigit() and before[-2] == node.origin:  # the second of that name, and so on
        before.pop()
    return node.origin if before and before[-1] == node.origin else weight


def layer_of(node: Node) -> tuple[str, ...]:
    """Which inlining of a layer an op is part of: the names of the calls around it."""
    parts = node.name.split(".")
    word = node.origin if node.origin in parts else name_of(node)
    return tuple(parts[: len(parts) - 1 - parts[::-1].index(word)]) if word in parts else ()


def needed(graph: Graph) -> list[Node]:
    """The nodes that some result depends on, in order."""
    wanted = set(graph.results)
    kept = []
    for node in reversed(graph.nodes):
        if wanted & set(node.outs):
            wanted |= set(node.ins)
            kept.append(node)
    return kept[::-1]


def at_experts(graph: Graph, node: Node) -> bool:
    """Whether an op runs on rows that arrived for experts."""
    return graph.types[node.outs[0]].shape[0].symbol.startswith("rows(")


def axes_of(graph: Graph, node: Node) -> frozenset[Axis]:
    """The axes along which this op can be cut: those of its kind that its result has."""
    rows = graph.types[node.outs[0]].shape[0]
    at_home = not rows.symbol.startswith(("rows(", "gets(", "experts(")) and node.kind != "all2all"
    without = {Axis.EXPERT_GROUP, Axis.PEER} if at_home else set()
    return KINDS[node.kind].axes - without


def slot_before(graph: Graph, ref: Ref) -> Ref | None:
    """The expert whose weight lay in the slot before the one of `ref` was brought there; none if it is the first."""
    maker = graph.maker.get(ref.value)
    if maker is None or not isinstance(maker.attrs, SlotAttrs) or not ref.cuts:
        return None
    (cut,) = ref.cuts
    index = cut.index - maker.attrs.slots
    return Ref(ref.value, (replace(cut, index=index),)) if index >= 0 else None


def is_dispatch(node: Node) -> bool:
    """Whether this takes rows to their experts."""
    return (
        node.info.moves_rows and isinstance(node.attrs, TransferAttrs) and (node.attrs.direction is Direction.DISPATCH)
    )


def is_row_op(node: Node) -> bool:
    """Whether its result is rows of numbers, which need a buffer, and not an index or a count."""
    return node.info.makes_rows
