"""Weights: how large made-up numbers are.

The same scheme as that of `epsc.interpret_weights`, so that a program and the oracle can be given the same numbers.
"""

from __future__ import annotations

from epsc.ir.attrs import Choose, ExpertGemmAttrs, GemmAttrs, RouteAttrs, Score
from epsc.ir.graph import Graph, Node


def weight_scales(graph: Graph) -> dict[str, float]:
    """The scale of each parameter's numbers, by what its first user does with it."""
    scales: dict[str, float] = {}
    for node in graph.nodes:
        for index, name in enumerate(node.params):
            scales.setdefault(name, _scale(node, index, [dim.scale for dim in graph.param[name].type.shape]))
    return {param.name: scales.get(param.name, 1.0) for param in graph.params}


def _scale(node: Node, index: int, shape: list[int]) -> float:
    """A weight has 1/sqrt(inputs per output), which keeps values of order 1; biases are small beside that."""
    attrs = node.attrs
    if index == 0:
        transposed = isinstance(attrs, GemmAttrs | ExpertGemmAttrs) and attrs.transposed
        return float(max(1, shape[-2 if transposed else -1]) ** -0.5)
    if isinstance(attrs, RouteAttrs) and index == len(node.params) - 1 and attrs.choice_bias:
        if attrs.choose is Choose.BY_LOGIT:
            return 0.1
        # Small beside the differences between scores, or every token would choose the same experts.
        return 0.02 if attrs.score is Score.SIGMOID else 0.1 / attrs.experts
    return 0.1
