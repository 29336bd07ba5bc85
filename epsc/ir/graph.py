"""Graph: what a layer *means*. Typed dataflow, no decision in it.

Invariants (`verify`): names are unique; every value is read after it is made; each node has the inputs, attributes and
outputs of its kind; a `rows(d)` size names a dispatch of this graph. `Graph.parse(str(g)) == g`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from epsc.ir.attrs import Attrs
from epsc.ir.dims import Dim, Tensor
from epsc.ir.errors import Diagnostic, EpsError, Faults
from epsc.ir.kinds import KINDS, Kind
from epsc.ir.places import Place
from epsc.ir.source import Span
from epsc.ir.text import attrs_parse, attrs_text, split

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class Param:
    """A weight: global type (all experts), and how the program finds it. Expert weights are sharded over ep, and where
    ranks share an expert, its width over etp."""

    name: str
    type: Tensor
    sharded: bool = False
    etp: int = 1
    """Ranks that share an expert."""
    dim: int = -1
    """The dimension that they cut."""
    parts: int = 1
    """It holds so many things side by side, such as gate and up; each of them is cut."""

    @property
    def local(self) -> Tensor:
        """What a rank holds of each expert, or of all if it is not cut."""
        shape = list(self.type.shape)
        shape[self.dim] = Dim(shape[self.dim].scale // self.etp)
        return Tensor(self.type.dtype, tuple(shape))

    def __str__(self) -> str:
        cut = f", etp {self.etp} of {self.dim} by {self.parts}" if self.etp > 1 else ""
        return f"param {self.name}: {self.type}{' sharded ep' if self.sharded else ''}{cut}"


@dataclass(frozen=True)
class Node:
    """One op: what it reads, what it makes. The edges of the graph are these names."""

    name: str
    kind: str
    ins: tuple[str, ...]
    outs: tuple[str, ...]
    attrs: Attrs
    params: tuple[str, ...] = ()
    origin: str = ""
    """The binding of the Spec that this came from: what schedules name."""
    span: Span | None = field(default=None, compare=False, repr=False)
    also: tuple[str, ...] = ()
    """Other names by which schedules may speak of it: of an op that was joined into it."""
    places: tuple[Place, ...] = field(default=(), compare=False, repr=False, metadata={"json": True})
    """Lines of Python that it was read from, if its statement says so."""

    @property
    def info(self) -> Kind:
        return KINDS[self.kind]


def places_of(*nodes: Node) -> tuple[Place, ...]:
    """The Python that any of the nodes was read from."""
    return tuple(dict.fromkeys(place for node in nodes for place in node.places))


@dataclass(frozen=True)
class Graph:
    name: str
    inputs: tuple[str, ...]
    types: dict[str, Tensor]
    """The type of every value, inputs included."""
    params: tuple[Param, ...]
    nodes: tuple[Node, ...]
    results: tuple[str, ...]

    @cached_property
    def node(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def param(self) -> dict[str, Param]:
        return {param.name: param for param in self.params}

    @cached_property
    def maker(self) -> dict[str, Node]:
        """The node that makes each value; inputs have none."""
        return {out: node for node in self.nodes for out in node.outs}

    @cached_property
    def users(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {value: [] for value in self.types}
        for node in self.nodes:
            for value in dict.fromkeys(node.ins):
                found[value].append(node)
        return found

    def with_nodes(self, nodes: tuple[Node, ...], types: dict[str, Tensor] | None = None) -> Graph:
        """The same graph with other nodes; types of values that nobody makes any more are dropped."""
        known = {**self.types, **(types or {})}
        alive = {*self.inputs, *(out for node in nodes for out in node.outs)}
        return replace(self, nodes=nodes, types={v: t for v, t in known.items() if v in alive})

    def dag(self) -> networkx.DiGraph:
        """The graph as networkx sees it, keyed by node name, for algorithms and pictures."""
        import networkx

        view = networkx.DiGraph()
        view.add_nodes_from((node.name, {"kind": node.kind}) for node in self.nodes)
        for node in self.nodes:
            for value in node.ins:
                if value in self.maker:
                    view.add_edge(self.maker[value].name, node.name, value=value)
        return view

    def __str__(self) -> str:
        inputs = ", ".join(f"{value}: {self.types[value]}" for value in self.inputs)
        lines = [f"graph {self.name}({inputs}) -> {', '.join(self.results)} {{"]
        lines += [f"  {param}" for param in self.params]
        for node in self.nodes:
            attrs = attrs_text(node.attrs)
            using = f" using {', '.join(node.params)}" if node.params else ""
            types = " | ".join(str(self.types[value]) for value in node.outs)
            inside = "; ".join(filter(None, [", ".join(node.ins), attrs]))
            of = ", ".join((node.origin, *node.also))
            lines.append(f"  {node.name} = {node.kind}({inside}){using} of {of} : {types}")
        return "\n".join([*lines, "}"])

    @staticmethod
    def parse(text: str) -> Graph:
        """The graph that `str` printed, spans left out. Raises EpsError with the line that does not fit."""
        lines = [line.strip() for line in text.strip().splitlines()]
        head = re.fullmatch(r"graph (\S+?)\((.*)\) -> (.*) \{", lines[0]) if lines else None
        if not head or lines[-1] != "}":
            raise EpsError(Diagnostic("bad-graph", "a graph reads `graph NAME(inputs) -> results {` ... `}`"))
        types: dict[str, Tensor] = {}
        for piece in split(head[2], ","):
            value, _, tensor = piece.partition(": ")
            types[value] = Tensor.parse(tensor)
        inputs = tuple(types)
        params: list[Param] = []
        nodes: list[Node] = []
        for line in lines[1:-1]:
            if found := re.fullmatch(r"param (\S+): (.+?)( sharded ep(?:, etp (\d+) of (-\d) by (\d+))?)?", line):
                cut = tuple(map(int, found.groups()[3:])) if found[4] else ()
                params.append(Param(found[1], Tensor.parse(found[2]), bool(found[3]), *cut))
                continue
            found = re.fullmatch(r"(\S+) = (\w+)\((.*)\)(?: using (.*?))? of (.*?) : (.*)", line)
            if not found or found[2] not in KINDS:
                raise EpsError(Diagnostic("bad-graph", f"`{line}` is not an op of a graph"))
            kind = KINDS[found[2]]
            origin, *also = found[5].split(", ")
            ins, _, attrs = found[3].rpartition(";") if ";" in found[3] else _only(found[3])
            node = Node(
                found[1],
                kind.name,
                tuple(split(ins, ",")),
                tuple(f"{found[1]}{suffix}" for suffix in kind.outs),
                attrs_parse(kind.attrs, attrs),
                tuple(split(found[4] or "", ",")),
                origin,
                also=tuple(also),
            )
            types.update(zip(node.outs, map(Tensor.parse, found[6].split(" | ")), strict=True))
            nodes.append(node)
        return Graph(head[1], inputs, types, tuple(params), tuple(nodes), tuple(split(head[3], ",")))

    def verify(self) -> None:
        """Check the invariants above. Raises EpsError listing everything that does not hold."""
        faults = Faults()
        made = set(self.inputs)
        names: set[str] = set()
        for node in self.nodes:
            where = f"op `{node.name}` ({node.kind})"
            if node.name in names:
                faults.add("duplicate-op", f"{where} is there twice", node.span)
            names.add(node.name)
            if node.kind not in KINDS:
                faults.add("unknown-kind", f"{where} is of no known kind", node.span)
                continue
            if not isinstance(node.attrs, node.info.attrs):
                faults.add("bad-attrs", f"{where} holds {type(node.attrs).__name__}", node.span)
            for value in node.ins:
                if value not in made:
                    faults.add("unmade-value", f"{where} reads `{value}`, which nothing before it makes", node.span)
            for name in node.params:
                if name not in self.param:
                    faults.add("unknown-param", f"{where} uses the weight `{name}`, which is not declared", node.span)
            expected = tuple(f"{node.name}{suffix}" for suffix in node.info.outs)
            if node.outs != expected:
                faults.add("bad-outs", f"{where} makes {node.outs}, not {expected}", node.span)
            for value in node.outs:
                if value in made:
                    faults.add("duplicate-value", f"{where} makes `{value}` a second time", node.span)
                if value not in self.types:
                    faults.add("untyped-value", f"{where} makes `{value}`, which has no type", node.span)
                made.add(value)
        for value in self.results:
            if value not in made:
                faults.add("unmade-value", f"the result `{value}` is made by nothing")
        for value, tensor in self.types.items():
            for dim in tensor.shape:
                if dim.symbol.startswith("rows(") and dim.symbol[5:-1] not in names:
                    faults.add("unknown-rows", f"`{value}` has {dim} rows, but no op is named `{dim.symbol[5:-1]}`")
        faults.raise_if_any()


def _only(inside: str) -> tuple[str, str, str]:
    """Inputs and attributes of an op that prints only one of the two."""
    return ("", ";", inside) if "=" in inside else (inside, ";", "")
