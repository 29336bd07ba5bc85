"""Lift: a captured block to what the language can say of it, and the same block with that part cut out."""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from epsc.grammar.trace import experts as experts_of
from epsc.grammar.trace import router as router_of
from epsc.grammar.trace import shared as shared_of
from epsc.grammar.trace.capture import Captured, ancestors, read_by, watch
from epsc.grammar.trace.form import form, identities, module_numbers
from epsc.grammar.trace.probe import Inputs
from epsc.grammar.trace.router import numbers_in
from epsc.grammar.trace.spans import module_span, node_span, weight_span
from epsc.grammar.trace.weights import Weight
from epsc.grammar.trace.write import Places, shared_name
from epsc.ir.attrs import Act
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.source import Span

PROBES = ((48, 11, 1.0), (32, 12, 0.25), (32, 13, 5.0))
"""Tokens, seed and scale of the inputs that recognition looks at."""

LAYER = "layer"
"""The submodule of a cut graph that stands for the compiled layer."""

_SAME = frozenset(
    {"view", "_unsafe_view", "reshape", "_to_copy", "clone", "contiguous", "squeeze", "unsqueeze", "to", "type_as"}
    | {"flatten", "alias", "detach", "float", "type"}
)


@dataclass(frozen=True)
class Lifted:
    """What was recognised of a block."""

    hidden: int
    top_k: int
    ffn: experts_of.Ffn
    router: router_of.Router | None
    shared: tuple[shared_of.Shared, ...]
    places: Places
    notes: tuple[str, ...] = ()
    """What was not recognised and so runs as captured."""
    pick: int = -1
    """Which of the values that may be the seam it is, where experts are written out in the block."""
    partial: bool = False
    """Some copies go nowhere."""
    copies: int = 1
    """Of each token so many go to the layer as tokens of their own."""

    @property
    def weights(self) -> tuple[Weight, ...]:
        found = [*(self.router.weights if self.router else ()), *self.ffn.weights]
        return tuple(found + [weight for branch in self.shared for weight in branch.weights])


def lift(module: nn.Module, captured: Captured, inputs: Inputs) -> Lifted:
    """Recognise what can be of an fp32 twin with made-up weights. Raises EpsError when its experts are not."""
    graph, node = captured.graph, captured.node
    x, ids, weights = _arguments(node)
    branches = list(tail(node))
    looked = [
        watch(graph, inputs.made(count, seed, torch.float32, scale=scale), [x, ids, weights, *(b for _, b in branches)])
        for count, seed, scale in PROBES
    ]
    hidden, top_k = looked[0][0].shape[1], looked[0][1].shape[1]
    ffn = captured.ffn or form(module, captured.seam, hidden, top_k, inputs.rows.device)
    if ffn is None:
        raise unknown_experts(module, captured)
    notes = []
    behind = ancestors(ids, weights)
    read = {n: t for n, t in read_by(graph, behind).items() if t.is_floating_point()}
    most = max(int(values[1].max()) for values in looked)
    if most >= ffn.experts:
        # A router has a number of each expert in something that it reads.
        every = min((size for t in read.values() for size in t.shape if size > most), default=most + 1)
        if not identities(captured.seam, ffn, every, hidden, top_k, inputs.rows.device):
            raise unknown_experts(module, captured)
        ffn = replace(ffn, identities=every - ffn.experts)
    router = None
    if not captured.seam.partial and ffn.plain:
        samples = [(values[0], values[1], ffn.weighing.of(values[2])) for values in looked]
        numbers = numbers_in(list(behind)) | _module_numbers(graph, behind)
        router = router_of.identify(samples, read, ffn.every, numbers)
    if not ffn.plain:
        why = f"`{ffn.post}` stands behind each expert" if ffn.post else "weights multiply what goes to experts"
        notes.append(f"{why}: each copy is a token of its own, and the router runs as captured")
    elif router is None:
        notes.append("the router is none that `route` can say: it runs as captured")
    found: list[shared_of.Shared] = []
    before = ancestors(x)
    for i, (_, branch) in enumerate(branches if ffn.plain else ()):
        made = ancestors(branch) - before
        pairs = [(values[0], values[3 + i].reshape(-1, values[3 + i].shape[-1])) for values in looked]
        tensors = {n: t for n, t in read_by(graph, made).items() if t.is_floating_point()}
        numbers = numbers_in(list(made)) | _module_numbers(graph, made)
        one = shared_of.identify(pairs, tensors, numbers, shared_name(i))
        if one is None:
            notes.append("what is added to the experts' result is no `mlp` of the tokens: it runs as captured")
            break
        found.append(one)
    places = Places(
        module_span(module),
        node_span(ids) or node_span(node),
        node_span(node) or module_span(module),
        tuple(node_span(add) for add, _ in branches),
    )
    partial = captured.seam.partial
    copies = 1 if ffn.plain else top_k
    lifted = Lifted(
        hidden, top_k // copies, ffn, router, tuple(found), places, tuple(notes), captured.pick, partial, copies
    )
    reads = {weight.name: _reads(module, weight) for weight in lifted.weights}
    return replace(lifted, places=replace(places, reads=reads))


def _reads(module: nn.Module, weight: Weight) -> tuple[Span, ...]:
    """Where a weight is read; one of many experts is as good as all."""
    spans = (weight_span(module, piece.names[0]) for piece in weight.pieces)
    return tuple(dict.fromkeys(span for span in spans if span))


def cut(captured: Captured, lifted: Lifted) -> GraphModule:
    """The captured block with a submodule `layer` where the compiled layer is to run; what it replaces is gone.

    The captured graph stays as it is; parameters are shared with it.
    """
    copies: dict[Any, Any] = {"of": captured.graph}  # a deepcopy takes no empty memo
    made = copied(captured.graph.graph, copies)
    node = copies[captured.node]
    x, ids, weights = _arguments(node)
    added = list(tail(node))[: len(lifted.shared)]
    with made.inserting_before(node):
        if not lifted.router and lifted.ffn.weighing.sigmoid:
            weights = made.call_method("sigmoid", (made.call_method("float", (weights,)),))
        if not lifted.ffn.plain:
            layer = _apart(made, x, ids, weights, lifted)
        else:
            layer = made.call_module(LAYER, (x,) if lifted.router else (x, ids, weights))
    for add, branch in added:
        (rest,) = (each for each in add.all_input_nodes if each is not branch)
        add.replace_all_uses_with(rest)
        made.erase_node(add)
    node.replace_all_uses_with(layer)
    made.erase_node(node)
    captured.graph.add_submodule(LAYER, nn.Identity())
    if lifted.ffn.post:
        captured.graph.add_submodule(lifted.ffn.post, captured.module.get_submodule(lifted.ffn.post))
    module = GraphModule(captured.graph, made)
    module.graph.eliminate_dead_code()
    module.recompile()
    return GraphModule(module, module.graph)  # without the parameters that nothing reads any more


def _apart(made: Graph, x: Node, ids: Node, weights: Node, lifted: Lifted) -> Node:
    """The layer on copies, each with its one expert; they are weighted before or behind it, and then summed."""
    column = made.call_method("type_as", (made.call_method("unsqueeze", (weights, -1)), x))
    rows = made.call_method("unsqueeze", (x, 1))
    if lifted.ffn.weighing.on_input:
        rows = made.call_function(operator.mul, (rows, column))
    else:
        rows = made.call_method("expand", (rows, -1, lifted.copies, -1))
    each = made.call_method("reshape", (ids, -1, 1))
    ones = made.call_function(torch.ones_like, (made.call_method("reshape", (weights, -1, 1)),))
    back = made.call_module(LAYER, (made.call_method("flatten", (rows, 0, 1)), each, ones))
    if lifted.ffn.post:
        back = made.call_module(lifted.ffn.post, (back,))
    back = made.call_method("unflatten", (back, 0, (-1, lifted.copies)))
    if not lifted.ffn.weighing.on_input:
        back = made.call_function(operator.mul, (back, column))
    return made.call_method("sum", (back, 1))


def copied(graph: Graph, copies: dict[Any, Any] | None = None) -> Graph:
    """A copy of a graph, and of how it is called; `copies` are filled with its nodes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says here of torch's own code
        made: Graph = copy.deepcopy(graph, copies)
    return made


def tail(node: Node) -> Iterator[tuple[Node, Node]]:
    """The sums that the result of a node goes through, each with the branch that is added there."""
    value = node
    while len(value.users) == 1:
        (user,) = value.users
        if _name(user) in _SAME and user.args and user.args[0] is value:
            value = user
            continue
        if _name(user) not in ("add", "add_", "iadd") or len(user.all_input_nodes) != 2 or user.kwargs:
            return
        (branch,) = (each for each in user.all_input_nodes if each is not value)
        if node in ancestors(branch):
            return
        yield user, branch
        value = user


def _name(node: Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target._schema.name.split("::")[1])
    return "add" if node.target is operator.add else str(getattr(node.target, "__name__", ""))


def _arguments(node: Node) -> tuple[Node, Node, Node]:
    x, ids, weights = node.args[:3]
    assert isinstance(x, Node) and isinstance(ids, Node) and isinstance(weights, Node)
    return x, ids, weights


def _module_numbers(graph: GraphModule, nodes: set[Node]) -> set[float]:
    called = [graph.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"]
    return {float(n) for each in called for n in module_numbers(each)}


def unknown_experts(module: nn.Module, captured: Captured) -> EpsError:
    """The error of experts that are none of the language."""
    owner = module.get_submodule(captured.seam.owner)
    return EpsError(
        Diagnostic(
            "unknown-experts",
            f"the experts of {type(owner).__name__} compute nothing that the language can say: two products with"
            " an activation between them, weighted behind the second",
            node_span(captured.node) or module_span(owner),
            help="activations: swiglu (with limit, alpha, offset, softcaps), "
            + ", ".join(act for act in Act if act is not Act.SWIGLU),
        )
    )


def without_router(lifted: Lifted, why: str) -> Lifted:
    """The same with the router as captured."""
    return replace(lifted, router=None, notes=(*lifted.notes, why))
