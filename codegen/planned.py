"""Planned: what the templates fill in of one plan of a program: what runs it makes once, and its `forward`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from epsc.codegen.constructor import constructor
from epsc.codegen.gemms import Gemms
from epsc.codegen.head import shape_text
from epsc.codegen.lines import WIDTH, call
from epsc.codegen.memory import Memory, base_dtype, dtype_text
from epsc.codegen.names import Names, string
from epsc.codegen.one_sided import memory_line, pairs
from epsc.codegen.ops import Ops
from epsc.codegen.plan import lane_lines, plan_table
from epsc.codegen.regions import Regions
from epsc.codegen.reserved import FORWARD, MODULE, PLAN
from epsc.codegen.steps import Block, Steps
from epsc.codegen.variants import Variants
from epsc.codegen.writer import Scope
from epsc.ir.dims import DType, Tensor
from epsc.ir.graph import Graph
from epsc.ir.schedule import Schedule


@dataclass(frozen=True)
class Shared:
    """What all plans of a program have in common."""

    names: Names
    """Of the file."""
    functions: Mapping[object, str]
    variants: Variants
    gemms: Gemms
    weights: Mapping[str, str] | None
    """Parameter -> attribute, if several plans must agree on them."""


@dataclass(frozen=True)
class Planned:
    """One plan: a schedule for a range of load."""

    schedule: Schedule
    load: tuple[int, int]
    cls: str
    """The class that runs it."""
    shared: Shared

    @property
    def several(self) -> bool:
        return self.shared.weights is not None

    @cached_property
    def scope(self) -> Scope:
        shared, graph = self.shared, self.schedule.graph
        members = Names((*MODULE, *(PLAN if self.several else ()), *(shared.weights or {}).values()))
        kinds = ("layout", "layout_shares")
        dispatches = [node.name.removesuffix(f".{node.kind}") for node in graph.nodes if node.kind in kinds]
        return Scope(
            {lane.name: members.of(f"lane {lane.name}", lane.name) for lane in self.schedule.lanes},
            dict(shared.weights or weights_of(graph, members)),
            {d: members.of(f"layout {d}", f"{d}.layout") for d in dispatches},
            {pair.dispatch: members.of(f"slots {pair.dispatch}", f"{pair.dispatch}.slots") for pair in pairs(graph)},
            dict(shared.functions),
            {
                text: members.of(f"by device {text}", wish)
                for text, wish in shared.variants.by_device(self.schedule).items()
            },
        )

    @cached_property
    def regions(self) -> Regions:
        more = ("most",) if self.several else ()
        return Regions(self.schedule, Names((*FORWARD, *more, *self.shared.names.used)), self.scope.slots)

    @cached_property
    def inputs(self) -> list[str]:
        """The inputs as `forward` calls them."""
        return list(map(self.regions.variable, self.schedule.graph.inputs))

    @cached_property
    def _memory(self) -> Memory:
        gemms, own = self.shared.gemms, set()
        for step in self.schedule.steps:
            node = self.schedule.node(step)
            if gemms.own_result(node, step) or node.kind == "call":
                own.add(step.key)
        return Memory(self.schedule, self.regions, self.scope.lanes, frozenset(own))

    @cached_property
    def blocks(self) -> list[Block]:
        ops = Ops(self.schedule, self.regions, self.shared.gemms, self.shared.variants, self.scope)
        steps = Steps(self.schedule, self.regions, self._memory, ops)
        return [steps.block(i, step) for i, step in enumerate(self.schedule.steps)]

    @cached_property
    def context(self) -> dict[str, Any]:
        """What the templates need of this plan alone."""
        inputs, allocations = self.inputs, self._memory.allocations()
        blocks = [{"memory": allocations.get(i, []), "block": block} for i, block in enumerate(self.blocks)]
        return {
            "cls": self.cls,
            "title": f"# --- The plan {self.schedule.name} ".ljust(WIDTH - 1, "-"),
            "schedule_name": self.schedule.name,
            "name": string(self.schedule.name),
            "range": self.load,
            "own_one_sided": bool(self.scope.slots),
            "lanes": lane_lines(self.schedule),
            "plan": plan_table(self.schedule),
            "memory_lines": memory_line(self.schedule, self.load[1]),
            **constructor(self.schedule, self.regions, self.scope, self.several),
            **_forward(self.regions, inputs, self.several),
            "blocks": blocks,
        }


def weights_of(graph: Graph, members: Names) -> dict[str, str]:
    """Parameter -> attribute of the module."""
    return {param.name: members.of(f"weight {param.name}", param.name) for param in graph.params}


def _forward(regions: Regions, inputs: list[str], several: bool) -> dict[str, Any]:
    """Signature, first lines and result of `forward`."""
    graph = regions.graph
    shapes = ", ".join(
        f"{name}{shape_text(graph.types[value])}" for name, value in zip(inputs, graph.inputs, strict=True)
    )
    outs = ", ".join(shape_text(graph.types[value]) for value in graph.results)
    first = [f"tokens = len({inputs[0]})"]
    if regions.slots:
        first.append(f"expect_room(tokens{', self.most' if several else ''})")
    base = base_dtype(regions.schedule)
    first += [
        line
        for name, value in zip(inputs, graph.inputs, strict=True)
        for line in _expect(name, graph.types[value], base)
    ]
    for axis, (shares, count) in sorted(regions.shares.items()):
        first.append(f"{shares} = by_tokens(tokens, {regions.schedule.mesh_of(axis).size(axis)}, 1)")
        first.append(f"{count} = length({shares}[{regions.place(axis)}])")
    first += [
        f"{name} = by_tokens({of}, {n}, {copies})"
        for (of, n, copies), name in sorted(regions.ranges.items(), key=lambda item: item[0][1:])
    ]
    own, may = "Each rank brings its own tokens.", "The number of tokens may differ between ranks, and be 0."
    if regions.schedule.same_tokens:
        own = may = "Ranks that share tokens (SAME_TOKENS) bring the same."
    return {
        "class_doc": f"{graph.name}: {shapes} -> {outs}. {own}",
        "forward_head": call("def forward", ["self", *(f"{name}: Tensor" for name in inputs)], arrow(graph), 4),
        "forward_doc": f"{shapes} -> {outs}. {may}",
        "first_lines": first,
        "result_type": "Tensor" if len(graph.results) == 1 else f"tuple[{', '.join(['Tensor'] * len(graph.results))}]",
        "results": ", ".join(map(regions.variable, graph.results)),
    }


def _expect(name: str, type: Tensor, base: DType) -> list[str]:
    """A line that refuses what is not such an input."""
    width = math.prod(dim.scale for dim in type.shape[1:])
    return call("expect", [string(name), name, str(width), dtype_text(type.dtype, base, "self.dtype")])


def arrow(graph: Graph) -> str:
    """The end of the head of a function that returns the results."""
    if len(graph.results) == 1:
        return " -> Tensor:"
    return f" -> tuple[{', '.join(['Tensor'] * len(graph.results))}]:"
