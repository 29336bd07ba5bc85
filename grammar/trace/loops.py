"""Loops: experts that are written out in a block, found in its graph by dataflow and replaced by the experts op.

Wanted are four values: tokens x[T, H], experts ids[T, K], weights w[T, K], and y[T, H] through which everything goes
that the experts give. Whether they are the seam of known experts, `experts.identify` says.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from epsc.grammar.trace.capture import ancestors
from epsc.grammar.trace.seam import EXPERTS, Experts

Four = tuple[Node, Node, Node, Node]


def candidates(graph: GraphModule) -> Iterator[Four]:
    """Values that may be the seam: x, ids, w, y. The likely ones first."""
    nodes = list(graph.graph.nodes)
    output = nodes[-1].all_input_nodes[0]
    width = _width(output)
    for ids in reversed([n for n in nodes if _is(n, torch.int64, 2)]):
        after, shape = _descendants(ids), _shape(ids)
        rows = [n for n in nodes if _width(n) == width and _is_rows(n, shape[0])]
        for y in (n for n in rows if n in after and _all_through(n, ids, output)):
            before = ancestors(y)
            weights = [
                n for n in nodes if n in before and n is not ids and _shape(n) == shape and _is_rows(n, shape[0])
            ]
            for x in reversed([n for n in rows if n in before and n not in after]):
                for w in reversed(weights):
                    if not _reads_tokens_besides(y, {x, ids, w}):
                        yield x, ids, w, y


_LIKE = frozenset(
    {f"{what}_like" for what in ("zeros", "ones", "empty", "full")}
    | {f"new_{what}" for what in ("zeros", "ones", "empty", "full")}
)


def _reads_tokens_besides(y: Node, seam: set[Node]) -> bool:
    """Whether y reads an argument of the block on a way around the seam; its sizes are no matter."""
    needed: set[Node] = set()
    todo = [y]
    while todo:
        node = todo.pop()
        if node not in needed and node not in seam:
            needed.add(node)
            todo += node.all_input_nodes
    given = [node for node in needed if node.op == "placeholder"]
    users = [user for node in given for user in node.users if user in needed]
    return any(_value(user) is not None and _called(user) not in _LIKE for user in users)


def _called(node: Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _value(node: Node) -> Tensor | None:
    found = node.meta.get("example")
    return found if isinstance(found, Tensor) else None


def _is(node: Node, dtype: torch.dtype, ndim: int) -> bool:
    value = _value(node)
    return value is not None and value.dtype == dtype and value.ndim == ndim


def _is_rows(node: Node, tokens: int) -> bool:
    value = _value(node)
    return value is not None and value.is_floating_point() and value.ndim == 2 and len(value) == tokens


def _shape(node: Node) -> tuple[int, ...]:
    value = _value(node)
    return () if value is None else tuple(value.shape)


def _width(node: Node) -> int:
    return (_shape(node) or (0,))[-1]


def _descendants(node: Node) -> set[Node]:
    found: set[Node] = set()
    todo = [node]
    while todo:
        each = todo.pop()
        if each not in found:
            found.add(each)
            todo += each.users
    return found


def _all_through(node: Node, start: Node, end: Node) -> bool:
    """Whether every way from `start` to `end` goes through `node`."""
    if node is start:
        return False
    seen, todo = {node}, [start]
    while todo:
        each = todo.pop()
        if each is end:
            return node is end
        if each not in seen:
            seen.add(each)
            todo += each.users
    return True


def inside(graph: GraphModule, four: Four, tokens: Node) -> Experts:
    """What lies between the four values, as a function of the first three.

    Sizes there may be those of `tokens`, the block's own argument: it is given the same rows.
    """
    y = four[3]
    made = Graph()
    copies = {node: made.placeholder(f"in_{i}") for i, node in enumerate(four[:3])}
    copies.setdefault(tokens, made.placeholder("tokens"))
    needed = ancestors(y)
    for node in graph.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = made.node_copy(node, lambda each: copies[each])
    made.output(copies[y])
    module = GraphModule(graph, made)
    module.graph.eliminate_dead_code()
    module.recompile()
    lead = (1,) * (len(tokens.meta["example"].shape) - 2)

    def experts(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        result: Tensor = module.forward(hidden, ids, weights, hidden.reshape(*lead, *hidden.shape))
        return result

    return experts


def replaced(graph: GraphModule, four: Four, site: int) -> Node:
    """Put the experts op of a site where y is made."""
    x, ids, w, y = four
    with graph.graph.inserting_before(y):
        node = graph.graph.call_function(EXPERTS, (x, ids, w, site))
    node.meta = {"stack_trace": y.meta.get("stack_trace")}
    y.replace_all_uses_with(node)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return node
