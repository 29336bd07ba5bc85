"""fuse: fewer passes over memory, where one implementation does the work of two ops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from epsc.ir.graph import Graph, Node
from epsc.passes.asks import NOTHING, Asks


@dataclass(frozen=True)
class Fuse:
    """Join ops whose intermediate need not exist.

    rewrite:
        c = unpermute(rows, place) ; y = weighted_sum(c, w)  -->  y = unpermute_sum(rows, place, w)
        (k*tokens rows less to write and to read back)
    """

    name: ClassVar[str] = "fuse"

    sums: bool = True
    """Join unpermute and weighted_sum."""

    def __call__(self, graph: Graph, asks: Asks = NOTHING) -> Graph:  # noqa: ARG002 - every pass is called alike
        if not self.sums:
            return graph
        joined: dict[str, Node] = {}
        gone: set[str] = set()
        for node in graph.nodes:
            if node.kind != "weighted_sum":
                continue
            copies = graph.maker.get(node.ins[0])
            if copies and copies.kind == "unpermute" and graph.users[node.ins[0]] == [node]:
                joined[node.name] = replace(node, kind="unpermute_sum", ins=(*copies.ins, node.ins[1]))
                gone.add(copies.name)
        return graph.with_nodes(tuple(joined.get(n.name, n) for n in graph.nodes if n.name not in gone))
