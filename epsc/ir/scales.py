"""How large made-up weights are: the one scheme that the oracle and emitted programs share."""

from __future__ import annotations

from epsc.ir.attrs import Choose, ExpertGemmAttrs, GemmAttrs, RouteAttrs, Score
from epsc.ir.graph import Graph, Node


def param_scales(graph: Graph) -> dict[str, float]:
    """The scale of each parameter's numbers, by what its first user does with it.

    A weight has 1/sqrt(inputs per output), which keeps values of order 1 from layer to layer and router logits spread
    by about 1, so that tokens choose differently. Biases are small beside that; a choice bias is small beside the
    differences between scores, or every token would choose the same experts.
    """
    scales: dict[str, float] = {}
    for node in graph.nodes:
        for index, name in enumerate(node.params):
            scales.setdefault(name, _scale(node, index, [dim.scale for dim in graph.param[name].type.shape]))
    return {param.name: scales.get(param.name, 1.0) for param in graph.params}


def _scale(node: Node, index: int, shape: list[int]) -> float:
    """The scale of parameter `index` of `node`: 0 is its weight, then come biases."""
    a = node.attrs
    if index == 0:
        transposed = isinstance(a, GemmAttrs | ExpertGemmAttrs) and a.transposed
        return float(max(1, shape[-2 if transposed else -1]) ** -0.5)
    if isinstance(a, RouteAttrs) and index == len(node.params) - 1 and a.choice_bias:
        if a.choose is Choose.BY_LOGIT:
            return 0.1
        # The chosen few of many have sigmoids close to 1; softmax over all experts makes scores of about 1/experts.
        return 0.02 if a.score is Score.SIGMOID else 0.1 / a.experts
    return 0.1
