"""Questions that several passes ask of an op."""

from __future__ import annotations

from dataclasses import dataclass, replace

from epsc.ir.attrs import CallAttrs, Direction, ExpertGemmActAttrs, ExpertGemmAttrs, SlotAttrs, TransferAttrs
from epsc.ir.dims import Axis, DType
from epsc.ir.graph import Graph, Node
from epsc.ir.kinds import KINDS
from epsc.ir.rows import by_source
from epsc.ir.schedule import Ref

LOWERED_AXES = (Axis.EXPERT_GROUP, Axis.TOKENS, Axis.PEER, Axis.COLUMNS)
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
    axes = KINDS[node.kind].axes
    dims = [graph.types[value].shape[0] for value in (*node.outs, *node.ins) if graph.types[value].shape]
    if any(dim.symbol.startswith("gets(") for dim in dims):
        return axes - {Axis.PEER, Axis.COLUMNS}  # ranks share their experts: rows go on from each to the others
    if isinstance(node.attrs, SlotAttrs) or (isinstance(node.attrs, ExpertGemmAttrs) and node.attrs.slots):
        return axes - {Axis.PEER, Axis.COLUMNS}  # a slot holds the whole weight of an expert, once
    if node.info.moves_rows:
        # A product needs whole rows: only what goes home can go in columns.
        return axes - {Axis.COLUMNS} if is_dispatch(node) else axes
    symbol = graph.types[node.outs[0]].shape[0].symbol
    if not symbol.startswith("rows("):
        return axes - {Axis.EXPERT_GROUP, Axis.PEER}
    if one_sided_rows(graph, symbol):
        # They lie by expert, in one piece: what each rank sent is nowhere in one.
        # Which of them are of a group only the device knows, and only what is told where rows end.
        return axes - {Axis.TOKENS, Axis.PEER, *([Axis.EXPERT_GROUP] if node.kind == "activation" else [])}
    return axes if by_source(graph, node.outs[0]) else axes - {Axis.PEER}


@dataclass(frozen=True)
class Uneven:
    """Why something cannot be cut into so many chunks."""

    message: str
    help: str


ALIGN = 16
"""Bytes that the rows of a chunk of columns are a multiple of: kernels move so many at once, and TMA asks for it."""


def uneven(graph: Graph, node: Node, axis: Axis, count: int, ep: int) -> Uneven | None:
    """What is wrong with cutting an op into `count` chunks: by peer there is one for each rank, and columns are cut
    evenly; None if nothing is."""
    if count < 2:
        return None
    if axis is Axis.PEER and count != ep:
        return Uneven(
            f"`{node.origin}` cannot be cut by peer into {count}: {ep} ranks send to each other, one chunk for each",
            "write `into ep`",
        )
    made = graph.types[node.outs[0]]
    if axis is Axis.COLUMNS and (made.shape[-1].scale * made.dtype.bytes) % (count * ALIGN):
        size = made.shape[-1].scale * made.dtype.bytes
        fits = [n for n in range(count, 1, -1) if size % (n * ALIGN) == 0]
        return Uneven(
            f"`{node.origin}` cannot be cut by columns into {count}: rows of {made.shape[-1].scale} {made.dtype} do not"
            f" make {count} even parts of multiples of {ALIGN} bytes",
            f"{fits[0]} chunks would do" if fits else "leave it whole",
        )
    return None


def one_sided_rows(graph: Graph, symbol: str) -> bool:
    """Whether `rows(d)` are those of a dispatch by one-sided transfers: the host does not know how many come."""
    dispatch = graph.node.get(symbol[len("rows(") : -1])
    return dispatch is not None and dispatch.kind in ("expand", "put_copies")


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
