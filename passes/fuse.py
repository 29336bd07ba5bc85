"""fuse: fewer passes over memory, where one implementation does the work of two ops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from epsc.ir.attrs import ActAttrs, ExpertGemmActAttrs, ExpertGemmAttrs, ExpertGemmPutAttrs, TransferAttrs
from epsc.ir.graph import Graph, Node, places_of
from epsc.passes.asks import NOTHING, Asks
from epsc.passes.questions import SUMS, name_of, why_not_persistent


@dataclass(frozen=True)
class Fuse:
    """Join ops whose intermediate need not exist.

    rewrite:
        c = unpermute(rows, place) ; y = weighted_sum(c, w)  -->  y = unpermute_sum(rows, place, w)
        (k*tokens rows less to write and to read back)
        g = expert_gemm(rows, ends) ; h = activation(g)      -->  h = expert_gemm_act(rows, ends)
        (gated, and what the persistent kernel can run; not where the schedule chooses how one of the two runs)
        g = expert_gemm(rows, ends) ; c = put_back(g, place, counts)
                                                             -->  c = expert_gemm_put(rows, ends, place, counts)
        (where `use direct` asks for it: the product stores its rows at home, and nobody reads them here)
        s = unpermute_sum(..), sum_copies(..) or sum_ranks(..) ; y = s + z   -->  y = the same with z
        (a pass over tokens less, and one rounding less)
    """

    name: ClassVar[str] = "fuse"

    sums: bool = True
    """Join unpermute and weighted_sum."""
    epilogue: bool = True
    """Join an expert gemm and its gated activation."""
    addends: bool = True
    """Join the sum of what experts made and what is added to it."""

    def __call__(self, graph: Graph, asks: Asks = NOTHING) -> Graph:
        return self._with_addends(self._in_pairs(graph, asks))

    def _in_pairs(self, graph: Graph, asks: Asks) -> Graph:
        joined: dict[str, Node] = {}
        gone: set[str] = set()
        for node in graph.nodes:
            before = graph.maker.get(node.ins[0]) if node.ins else None
            if before is None or graph.users[node.ins[0]] != [node] or node.ins[0] in graph.results:
                continue
            if self.sums and before.kind == "unpermute" and node.kind == "weighted_sum":
                one = replace(
                    node, kind="unpermute_sum", ins=(*before.ins, node.ins[1]), places=places_of(before, node)
                )
            elif self.epilogue and node.name not in asks.apart and (found := _with_epilogue(graph, before, node)):
                one = found
            elif node.kind == "put_back" and asks.transports.get(node.name.removesuffix(".put")) == "direct":
                one = _with_put(before, node)
            else:
                continue
            joined[node.name] = one
            gone.add(before.name)
        return graph.with_nodes(tuple(joined.get(n.name, n) for n in graph.nodes if n.name not in gone))

    def _with_addends(self, graph: Graph) -> Graph:
        if not self.addends:
            return graph
        joined: dict[str, Node] = {}
        gone: set[str] = set()
        for node in graph.nodes:
            for value, other in (node.ins, node.ins[::-1]) if node.kind == "add" else ():
                before = graph.maker.get(value)
                if (
                    before is None
                    or before.kind not in SUMS
                    or before.name in joined
                    or len(before.ins) > SUMS[before.kind]
                    or graph.users[value] != [node]
                    or value in graph.results
                    or graph.types[value] != graph.types[other]
                ):
                    continue
                names = tuple(n for n in dict.fromkeys((before.origin, *before.also)) if n != node.origin)
                one = replace(before, name=node.name, ins=(*before.ins, other), outs=node.outs, origin=node.origin)
                joined[node.name] = replace(one, also=names, places=places_of(before, node))
                gone.add(before.name)
                break
        return graph.with_nodes(tuple(joined.get(n.name, n) for n in graph.nodes if n.name not in gone))


def _with_epilogue(graph: Graph, gemm: Node, act: Node) -> Node | None:
    """The two as one op, if they are an expert gemm and a gated activation, and the persistent kernel can run that."""
    if gemm.kind != "expert_gemm" or not isinstance(act.attrs, ActAttrs) or not act.attrs.fn.gated:
        return None
    assert isinstance(gemm.attrs, ExpertGemmAttrs)
    attrs = ExpertGemmActAttrs.joined(gemm.attrs, act.attrs)
    one = replace(act, kind="expert_gemm_act", ins=gemm.ins, params=gemm.params, attrs=attrs)
    one = replace(one, places=places_of(gemm, act))
    names = dict.fromkeys((gemm.origin, name_of(gemm)))
    return None if why_not_persistent(graph, one) else replace(one, also=tuple(n for n in names if n != act.origin))


def _with_put(gemm: Node, put: Node) -> Node:
    """The two as one op: what asks for that has seen that they can be."""
    assert isinstance(gemm.attrs, ExpertGemmAttrs) and isinstance(put.attrs, TransferAttrs)
    attrs = ExpertGemmPutAttrs.joined(gemm.attrs, put.attrs)
    names = dict.fromkeys((gemm.origin, name_of(gemm)))
    also = tuple(name for name in names if name != put.origin)
    ins = (*gemm.ins, *put.ins[1:])
    one = replace(put, kind="expert_gemm_put", ins=ins, params=gemm.params, attrs=attrs, also=also)
    return replace(one, places=places_of(gemm, put))
