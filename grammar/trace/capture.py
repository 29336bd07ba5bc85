"""Capture: a block as a graph of torch ops with its experts as one op, by torch.export."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Interpreter, Node

from epsc.grammar.trace.experts import Ffn
from epsc.grammar.trace.probe import Inputs
from epsc.grammar.trace.seam import EXPERTS, Experts, add_site, run_site

LEAD = 2, 7
"""Leading sizes that are captured: both other than 1, which torch would take for a constant."""


@dataclass(frozen=True)
class Seam:
    """Where the experts of a module are called."""

    owner: str
    """The module whose parameters they use: the name of a submodule, or nothing for the block itself."""
    site: int
    reads: frozenset[str] | None = None
    """The parameters that they read, where that is known."""
    partial: bool = False
    """Some tokens may have fewer experts than others: -1 stands for none."""

    @property
    def experts(self) -> Experts:
        return run_site(self.site)


@dataclass(frozen=True)
class Slots:
    """Which arguments of a submodule are the tokens, the experts and the weights."""

    hidden: int | str
    ids: int | str
    weights: int | str
    ndim: int
    """Dimensions of the tokens."""
    experts: int = 0
    """How many there are, where the experts of a token are said by a mask [tokens, k, experts]; else 0."""

    def numbers(self, said: Tensor) -> Tensor:
        """The experts of each token, -1 for none, of what the submodule is called with."""
        return torch.where(said.bool().any(-1), said.argmax(-1), -1) if self.experts else said

    def said(self, numbers: Tensor) -> Tensor:
        """What the submodule is called with for these experts of each token."""
        if not self.experts:
            return numbers
        return (numbers.unsqueeze(-1) == torch.arange(self.experts, device=numbers.device)).to(numbers.dtype)

    def pick(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], slot: int | str) -> Tensor:
        found: Tensor = args[slot] if isinstance(slot, int) else kwargs[slot]
        return found


@dataclass
class Captured:
    """A block as a graph with exactly one experts node."""

    module: nn.Module
    graph: GraphModule
    node: Node
    seam: Seam
    how: str
    """By which path it was captured."""
    pick: int = -1
    """Which of the values that may be the seam it is, where experts are written out in the block."""
    ffn: Ffn | None = None
    """The experts, where they had to be known to find the seam."""


def seams(module: nn.Module, args: tuple[Any, ...]) -> list[tuple[str, Slots]]:
    """The submodules that are called with tokens, experts of each and weights, and give tokens."""
    found: dict[str, Slots] = {}
    handles = []

    def hook(name: str) -> Callable[..., None]:
        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            if slots := _slots(args, kwargs, out):
                found[name] = slots

        return look

    for name, child in module.named_modules():
        if name and any(True for _ in child.parameters()):
            handles.append(child.register_forward_hook(hook(name), with_kwargs=True))
    try:
        with torch.no_grad():
            module(*args)
    finally:
        for handle in handles:
            handle.remove()
    return [(name, slots) for name, slots in found.items() if not any(name.startswith(f"{o}.") for o in found)]


def _slots(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Slots | None:
    given: dict[int | str, Any] = dict(enumerate(args))
    given.update(kwargs)
    tensors = {slot: value for slot, value in given.items() if isinstance(value, Tensor)}
    whole = {slot: t for slot, t in tensors.items() if t.dtype in (torch.int64, torch.int32)}
    ids = [slot for slot, t in whole.items() if t.ndim == 2 or (t.ndim == 3 and _at_most_one(t))]
    if not isinstance(out, Tensor) or len(ids) != 1:
        return None
    of = tensors[ids[0]]
    shape = of.shape[:2]
    floats = {slot: t for slot, t in tensors.items() if t.is_floating_point()}
    weights = [slot for slot, t in floats.items() if t.shape == shape and t.shape != out.shape]
    rows = [slot for slot, t in floats.items() if t.shape == out.shape and t.numel() // t.shape[-1] == shape[0]]
    if len(weights) != 1 or len(rows) != 1:
        return None
    return Slots(rows[0], ids[0], weights[0], tensors[rows[0]].ndim, of.shape[2] if of.ndim == 3 else 0)


def _at_most_one(mask: Tensor) -> bool:
    """Whether a mask of experts has no more than one for each choice of a token."""
    return bool(((mask == 0) | (mask == 1)).all()) and bool((mask.sum(-1) <= 1).all())


@contextmanager
def opaque(module: nn.Module, name: str, slots: Slots) -> Iterator[Seam]:
    """While this lasts, a submodule is the experts op."""
    child = module.get_submodule(name)
    original = child.forward

    def experts(hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        # In as many dimensions as the module is used to.
        rows = hidden.reshape(*(1,) * (slots.ndim - 2), *hidden.shape)
        given = {slots.hidden: rows, slots.ids: slots.said(ids), slots.weights: weights}
        most = max((slot for slot in given if isinstance(slot, int)), default=-1)
        args = [given.get(i) for i in range(most + 1)]
        made: Tensor = original(*args, **{slot: t for slot, t in given.items() if isinstance(slot, str)})
        return made.reshape(hidden.shape)

    site = add_site(experts)

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        hidden, ids, weights = (slots.pick(args, kwargs, s) for s in (slots.hidden, slots.ids, slots.weights))
        made: Tensor = EXPERTS(hidden.reshape(-1, hidden.shape[-1]), slots.numbers(ids), weights, site)
        return made.reshape(hidden.shape)

    child.forward = forward
    try:
        yield Seam(name, site, partial=slots.experts > 0)
    finally:
        del child.forward


def exported(module: nn.Module, inputs: Inputs, dtype: torch.dtype) -> GraphModule:
    """The block by torch.export, for every number of tokens, with no op that writes into what another reads."""
    args = inputs.made(LEAD[-len(inputs.leading) :], 0, dtype)
    free = dict.fromkeys(range(len(inputs.leading)), torch.export.Dim.DYNAMIC)
    shapes = tuple(free if inputs.per_token(value) else None for value in inputs.example)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch says here of torch's own code
        program = torch.export.export(module, args, dynamic_shapes=shapes, strict=False)
        graph = program.run_decompositions({}).module(check_guards=False)
    assert isinstance(graph, GraphModule)
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and "_assert_" in str(node.target):
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def experts_nodes(graph: Graph) -> list[Node]:
    """The calls of the experts op."""
    return [node for node in graph.nodes if node.op == "call_function" and node.target is EXPERTS]


def watch(graph: GraphModule, args: tuple[Any, ...], nodes: list[Node]) -> list[Any]:
    """The values of nodes when the graph runs."""
    runner = Interpreter(graph, garbage_collect_values=False)
    with torch.no_grad():
        runner.run(*args)
    return [runner.env[node] for node in nodes]


def ancestors(*nodes: Node) -> set[Node]:
    """Everything that the nodes are made from, themselves included."""
    found: set[Node] = set()
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += node.all_input_nodes
    return found


def read_by(graph: GraphModule, nodes: set[Node]) -> dict[str, Tensor]:
    """The parameters and buffers that are among the nodes, or belong to modules that are called there."""
    found: dict[str, Tensor] = {}
    for node in graph.graph.nodes:
        if node not in nodes:
            continue
        if node.op == "get_attr":
            value = attribute(graph, str(node.target))
            if isinstance(value, Tensor):
                found[str(node.target)] = value
        elif node.op == "call_module":
            inside = graph.get_submodule(str(node.target))
            named = [*inside.named_parameters(), *inside.named_buffers()]
            found |= {f"{node.target}.{name}": tensor for name, tensor in named}
    return found


def attribute(graph: GraphModule, name: str) -> Any:
    """What a module has by a name with dots."""
    value: Any = graph
    for part in name.split("."):
        value = getattr(value, part)
    return value
