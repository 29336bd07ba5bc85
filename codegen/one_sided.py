"""One-sided: dispatches by one-sided transfers, as a program has them: what it makes once, and what each op calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from epsc.codegen.lines import Arg, Listing, call
from epsc.codegen.memory import base_dtype, dtype_text
from epsc.codegen.names import string
from epsc.codegen.regions import refuse
from epsc.ir.attrs import RowsAttrs
from epsc.ir.dims import DType
from epsc.ir.graph import Graph, Node
from epsc.ir.schedule import Schedule


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


def pairs(graph: Graph) -> list[Pair]:
    """The one-sided dispatches of a graph, in order. Raises EpsError for one without a combine, or with several."""
    found = []
    for node in graph.nodes:
        if node.kind != "expand":
            continue
        assert isinstance(node.attrs, RowsAttrs)
        sums = [n for n in graph.nodes if n.kind == "put_sums" and dispatch_of(graph, n) == node.name]
        if len(sums) != 1:
            raise refuse(f"`{node.name}` has {len(sums)} combines, where a program can have one")
        row = graph.types[node.outs[0]]
        found.append(
            Pair(
                node.name,
                sums[0].name.removesuffix(".put"),
                node.attrs.experts,
                node.attrs.top_k,
                row.shape[1].scale,
                graph.types[sums[0].outs[0]].shape[1].scale,
                row.dtype,
            )
        )
    return found


def dispatch_of(graph: Graph, node: Node) -> str:
    """The dispatch that an op of a one-sided one belongs to."""
    match node.kind:
        case "expand":
            return node.name
        case "put_sums":
            return node.ins[1].removesuffix(".locate.place")
        case "sum_ranks":
            return dispatch_of(graph, graph.maker[node.ins[0]])
    return node.name.rpartition(".")[0]


def made_once(schedule: Schedule, slots: Mapping[str, str]) -> list[str]:
    """Lines of the constructor (indented by 8)."""
    found = pairs(schedule.graph)
    if not found:
        return []
    base = base_dtype(schedule)
    waited = dict.fromkeys(wait.step for step in schedule.steps for wait in step.waits if wait.everywhere)
    lines = ["        regions = {"]
    for pair in found:
        lines += call("**Slots.regions", [*_args(pair), dtype_text(pair.dtype, base, "dtype")], ",", 12)
    lines.append("        }")
    signals = Listing("", tuple(map(string, waited)))
    lines += call("self.symmetric = Symmetric", ["self.run", "group", "regions", signals, "timeout"], "", 8)
    lines.append("        self.run.symmetric = self.symmetric")
    for pair in found:
        lines += call(f"self.{slots[pair.dispatch]} = Slots", ["self.symmetric", *_args(pair)], "", 8)
    return lines


def _args(pair: Pair) -> list[Arg]:
    sizes = (pair.experts, pair.top_k, pair.width, pair.back)
    return [string(pair.dispatch), string(pair.combine), *map(str, sizes)]


def memory_line(schedule: Schedule, most: int) -> list[str]:
    """What the docstring of a file says about memory that outlives a forward, and rows that may arrive."""
    lines = []
    for pair in pairs(schedule.graph):
        symmetric = schedule.ep * most * (pair.dtype.bytes * (pair.width + pair.back) + 12 * pair.top_k)
        rows = schedule.ep * most * min(pair.top_k, pair.experts // schedule.ep)
        lines.append(
            f"{pair.dispatch}: {symmetric / 1e9:.2f} GB of symmetric memory, for {most} tokens of each rank; room for"
            f" {rows} rows at the experts, which is every copy of every token: no choice of experts can overflow it"
        )
    return lines
