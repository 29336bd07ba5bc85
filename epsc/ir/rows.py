"""Where rows that were sent lie at their experts, and what of them an op needs for a part of what it makes."""

from __future__ import annotations

from epsc.ir.attrs import Direction, TransferAttrs
from epsc.ir.dims import Axis, Cuts
from epsc.ir.graph import Graph, Node

_ROW_BY_ROW = ("expert_gemm", "expert_gemm_act", "activation")
_FROM_TOKENS = ("put_copies", "expand", "pick_rows")
_PRODUCTS = ("gemm", "expert_gemm", "expert_gemm_act")


def by_source(graph: Graph, value: str) -> bool:
    """Whether rows lie as an all2all brought them: by source rank, and by expert only among those of one source."""
    maker = graph.maker.get(value)
    while maker is not None and maker.kind in _ROW_BY_ROW:
        maker = graph.maker.get(maker.ins[0])
    return (
        maker is not None
        and maker.kind == "all2all"
        and isinstance(maker.attrs, TransferAttrs)
        and maker.attrs.direction is Direction.DISPATCH
    )


def part_read(graph: Graph, node: Node, value: str, cuts: Cuts) -> Cuts:
    """The region of `value` that `node` needs to make the region `cuts` of its results.

    Of an index or a count all of it; of rows the same rows and the same columns, but: a product needs every column for
    any; and rows at home have no expert group or peer, except in the order in which an all2all sends them.
    """
    maker = graph.maker.get(value)
    if maker is not None and not maker.info.makes_rows:
        return ()
    at_experts = graph.types[value].shape[0].symbol.startswith("rows(")
    found = []
    for cut in cuts:
        if cut.axis is Axis.COLUMNS and node.kind in _PRODUCTS:
            continue
        if cut.axis is Axis.EXPERT_GROUP and not at_experts and node.kind in _FROM_TOKENS:
            continue
        found.append(cut)
    return tuple(found)
