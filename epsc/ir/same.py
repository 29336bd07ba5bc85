"""Whether two graphs mean the same layer, whatever their values are called and in whatever order ops are written."""

from __future__ import annotations

from collections import Counter

from epsc.ir.graph import Graph, Node
from epsc.ir.text import attrs_text

_EITHER_WAY = ("add", "mul")
"""Kinds whose inputs may change places."""
_Keys = dict[tuple[object, ...], int]


def unlike(a: Graph, b: Graph) -> str:
    """What `b` has that `a` has not, in words; empty if they are the same layer: the same ops on the same inputs, with
    weights of the same names and shapes, so that one checkpoint serves both."""
    takes = [[str(graph.types[value]) for value in graph.inputs] for graph in (a, b)]
    if takes[0] != takes[1]:
        return f"it takes {', '.join(takes[1])}, not {', '.join(takes[0])}"
    weights = [{str(param) for param in graph.params} for graph in (a, b)]
    keys: _Keys = {}
    if weights[0] == weights[1] and _results(a, keys) == _results(b, keys):
        return ""
    ops = [Counter(map(_words, graph.nodes)) for graph in (a, b)]
    more, less = next(iter(ops[1] - ops[0]), ""), next(iter(ops[0] - ops[1]), "")
    if more:
        return f"it has {more}{f', not {less}' if less else ''}"
    if less:
        return f"it lacks {less}"
    if names := weights[0] ^ weights[1]:
        return f"only one of them has the weight {min(names).removeprefix('param ')}"
    return "its ops are the same, but read other values"


def _results(graph: Graph, keys: _Keys) -> list[int]:
    """One number for each result: the same for values that are computed alike, of both graphs that share `keys`."""
    known: dict[str, int] = {}

    def number(key: tuple[object, ...]) -> int:
        return keys.setdefault(key, len(keys))

    for i, value in enumerate(graph.inputs):
        known[value] = number(("input", i))
    for node in graph.nodes:
        ins = [known[value] for value in node.ins]
        ins = sorted(ins) if node.kind in _EITHER_WAY else ins
        for i, value in enumerate(node.outs):
            known[value] = number((node.kind, node.attrs, node.params, tuple(ins), i))
    return [known[value] for value in graph.results]


def _words(node: Node) -> str:
    attrs = attrs_text(node.attrs)
    return f"{node.kind}({', '.join(filter(None, (*node.params, attrs)))})"
