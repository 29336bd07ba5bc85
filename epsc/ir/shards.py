"""Shards: experts whose width ranks of etp share. A Graph has what one rank has; `whole` is what all have together."""

from __future__ import annotations

from dataclasses import replace

from epsc.ir.attrs import ExpertGemmAttrs
from epsc.ir.dims import Dim, Tensor
from epsc.ir.graph import Graph, Node

_BY_COLUMN = ("activation", "add", "mul")


def cut_values(graph: Graph) -> set[str]:
    """Values of which each rank of etp has its own columns: between the first product of an expert and the second."""
    found: set[str] = set()
    for node in graph.nodes:
        if makes_columns(graph, node) or (node.kind in _BY_COLUMN and found & set(node.ins)):
            found |= set(node.outs)
    return found


def makes_columns(graph: Graph, node: Node) -> bool:
    """Whether this is a product of which each rank of etp makes columns of its own."""
    if not isinstance(node.attrs, ExpertGemmAttrs) or graph.param[node.params[0]].etp == 1:
        return False
    return (graph.param[node.params[0]].dim == -2) is not node.attrs.transposed


def whole(graph: Graph) -> Graph:
    """The graph as it would be if no ranks shared an expert."""
    if all(param.etp == 1 for param in graph.params):
        return graph
    times = max(param.etp for param in graph.params)
    cut = cut_values(graph)
    nodes = []
    for node in graph.nodes:
        if makes_columns(graph, node) and isinstance(node.attrs, ExpertGemmAttrs):
            node = replace(node, attrs=replace(node.attrs, out=node.attrs.out * times))
        nodes.append(node)
    types = {
        value: Tensor(t.dtype, (*t.shape[:-1], Dim(t.shape[-1].scale * times))) if value in cut else t
        for value, t in graph.types.items()
    }
    params = tuple(replace(param, etp=1, dim=-1, parts=1) for param in graph.params)
    return replace(graph, nodes=tuple(nodes), types=types, params=params)
