"""One-sided: dispatches by one-sided transfers, as a program has them: what it makes once, and what each op calls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from textwrap import wrap

from epsc.codegen.lines import Arg, Listing, call
from epsc.codegen.memory import base_dtype, dtype_text
from epsc.codegen.names import string
from epsc.codegen.regions import place_of, refuse
from epsc.ir.attrs import PlaceAttrs
from epsc.ir.dims import DType
from epsc.ir.graph import Graph, Node
from epsc.ir.schedule import Schedule

BRING_HOME = ("put_sums", "put_back", "expert_gemm_put")
"""Kinds that store rows at the rank of their tokens."""


@dataclass(frozen=True)
class Pair:
    """A dispatch and the combine of its rows."""

    dispatch: str
    combine: str
    experts: int
    top_k: int
    width: int
    """Columns of a row that is sent."""
    back: int
    """Columns of a row that comes home."""
    dtype: DType
    straight: bool
    """Each copy of a token is stored where a product reads it, not once per rank in a slot."""
    apart: bool
    """Each copy comes home as it is, not summed with the others of its rank."""
    room: float
    """How many times the rows of balanced routing there is room for; 0: for whatever tokens choose."""

    def rows(self, ep: int, most: int) -> int:
        """Rows that there is room for at the experts of a rank, as `Slots.room_for` says."""
        worst = ep * most * min(self.top_k, self.experts // ep)
        return min(worst, math.ceil(self.room * most * self.top_k)) if self.room else worst

    def symmetric_bytes(self, ep: int, most: int) -> int:
        """Of what other ranks write at a rank."""
        sent = self.rows(ep, most) if self.straight else ep * most
        home = most * (self.top_k if self.apart else ep)
        return self.dtype.bytes * (sent * self.width + home * self.back) + ep * most * 12 * self.top_k


def pairs(graph: Graph) -> list[Pair]:
    """The one-sided dispatches of a graph, in order. Raises EpsError for one without a combine, or with several."""
    found = []
    for node in graph.nodes:
        if node.kind not in ("expand", "put_copies"):
            continue
        attrs = place_of(graph, node.name).attrs
        assert isinstance(attrs, PlaceAttrs)
        sums = [n for n in graph.nodes if n.kind in BRING_HOME and dispatch_of(graph, n) == node.name]
        if len(sums) != 1:
            raise refuse(f"`{node.name}` has {len(sums)} combines, where a program can have one")
        row = graph.types[node.outs[0]]
        found.append(
            Pair(
                node.name,
                sums[0].name.removesuffix(".put"),
                attrs.experts,
                attrs.top_k,
                row.shape[1].scale,
                graph.types[sums[0].outs[0]].shape[1].scale,
                row.dtype,
                node.kind == "put_copies",
                sums[0].kind != "put_sums",
                attrs.room,
            )
        )
    return found


def dispatch_of(graph: Graph, node: Node) -> str:
    """The dispatch that an op of a one-sided one belongs to."""
    match node.kind:
        case "expand" | "put_copies":
            return node.name
        case "put_sums" | "put_back":
            return dispatch_of(graph, graph.maker[node.ins[1]])
        case "expert_gemm_put":
            return dispatch_of(graph, graph.maker[node.ins[2]])
        case "sum_ranks" | "sum_copies":
            return dispatch_of(graph, graph.maker[node.ins[0]])
    return node.name.rpartition(".")[0]


def made_once(schedule: Schedule, slots: Mapping[str, str], several: bool) -> list[str]:
    """Lines of the constructor (indented by 8); one of `several` plans says for how many tokens it has room."""
    found = pairs(schedule.graph)
    if not found:
        return []
    base = base_dtype(schedule)
    waited = dict.fromkeys(wait.step for step in schedule.steps for wait in step.waits if wait.everywhere)
    most = ["most=self.most"] if several else []
    lines = ["        regions = {"]
    for pair in found:
        lines += call(
            "**Slots.regions", [*_args(pair), dtype_text(pair.dtype, base, "dtype"), *most, *_ways(pair)], ",", 12
        )
    lines.append("        }")
    signals = Listing("", tuple(map(string, waited)))
    args: list[Arg] = ["self.run", "group", "regions", signals, "timeout", *most]
    lines += call("self.symmetric = Symmetric", args, "", 8)
    lines.append("        self.run.symmetric = self.symmetric")
    for pair in found:
        lines += call(f"self.{slots[pair.dispatch]} = Slots", ["self.symmetric", *_args(pair), *_ways(pair)], "", 8)
    return lines


def _args(pair: Pair) -> list[Arg]:
    sizes = (pair.experts, pair.top_k, pair.width, pair.back)
    return [string(pair.dispatch), string(pair.combine), *map(str, sizes)]


def _ways(pair: Pair) -> list[Arg]:
    ways: list[Arg] = ["straight=True"] if pair.straight else []
    ways += ["apart=True"] if pair.apart else []
    return [*ways, f"room={pair.room}"] if pair.room else ways


def memory_together(plans: Iterable[tuple[Schedule, int]]) -> str:
    """What the docstring of a file says of the symmetric memory of all its plans, each with its most tokens."""
    sizes = [pair.symmetric_bytes(plan.ep, most) for plan, most in plans for pair in pairs(plan.graph)]
    return f"Together they keep {_size(sum(sizes))} of symmetric memory." if sizes else ""


def memory_line(schedule: Schedule, most: int) -> list[str]:
    """What the docstring of a file says about memory that outlives a forward, and rows that may arrive."""
    lines = []
    for pair in pairs(schedule.graph):
        rows = pair.rows(schedule.ep, most)
        room = "which is every copy of every token: no choice of experts can overflow it"
        if pair.room:
            room = (
                f"{pair.room:g} times those of balanced routing: a forward pass to which more come fails on every rank"
            )
        text = (
            f"{pair.dispatch}: {_size(pair.symmetric_bytes(schedule.ep, most))} of symmetric memory, for {most}"
            f" tokens of each rank; room for {rows} rows at the experts, {room}"
        )
        lines += wrap(text, 106, subsequent_indent="    ")
    return lines


def _size(count: int) -> str:
    """Bytes as people say them."""
    size, unit = (count / 1e9, "GB") if count >= 1e8 else (count / 1e6, "MB") if count >= 1e5 else (count / 1e3, "kB")
    return f"{size:.2f} {unit}"
