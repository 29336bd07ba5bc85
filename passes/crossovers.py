"""crossovers: which implementation of an expert gemm a profile says is the fastest, by rows per expert."""

from __future__ import annotations

from epsc.ir.attrs import ExpertGemmActAttrs, ExpertGemmAttrs
from epsc.ir.errors import Faults
from epsc.ir.graph import Graph, Node
from epsc.ir.impls import Choice, Condition, Impl, Metric, impls_of
from epsc.ir.spec import Name, Number, Target, Use, When
from epsc.machine.device import Device
from epsc.machine.roofline import least, ratio
from epsc.passes.needs import check_needs, first_that_can

LEAD = 0.05
"""Share by which another implementation must be faster than the default to be named: predictions err."""
_ROWS = tuple(int(2 ** (i / 2)) for i in range(33))
"""Rows per expert that are asked about: 1 to 65536."""


def uses(graph: Graph, ep: int, device: Device) -> tuple[Use, ...]:
    """A `use` for each expert gemm of a lowered graph that something beats the default for."""
    found = []
    for node in graph.nodes:
        if isinstance(node.attrs, ExpertGemmAttrs):
            choice = crossovers(graph, node, max(1, node.attrs.experts // ep), device)
            if choice.names != (first_that_can(graph, node, device.backend, device),):
                impls = (*(Name(name) for name, _ in choice.cases), Name(choice.otherwise))
                whens = tuple(
                    When(c.metric, c.op, Number(c.value)) for _, c in choice.cases if isinstance(c.value, int)
                )
                found.append(Use(impls, whens, (Target(node.params[0].rpartition(".")[2]),)))
    return tuple(dict.fromkeys(found))


def crossovers(graph: Graph, node: Node, experts: int, device: Device) -> Choice:
    """The fastest implementation for every number of rows per expert, as a choice by `mean_rows`.

    One that pads is left out: what it costs is decided by the fullest expert, which a model of balanced routing does
    not know.
    """
    default = first_that_can(graph, node, device.backend, device)
    able = [impl for impl in impls_of(node.kind).values() if not impl.cost.padding and _can(graph, node, impl, device)]
    best: list[tuple[int, str]] = []
    for rows in _ROWS:
        seconds = {impl.name: _seconds(graph, node, impl, experts, rows, device) for impl in able}
        fastest = min(seconds, key=lambda name: (seconds[name], name != default))
        name = fastest if seconds[fastest] < seconds[default] * (1 - LEAD) else default
        if not best or best[-1][1] != name:
            best.append((rows, name))
    ends = [rows for rows, _ in best[1:]]
    cases = tuple((name, Condition(Metric.MEAN_ROWS, "<", end)) for (_, name), end in zip(best[:-1], ends, strict=True))
    return Choice(best[-1][1], cases)


def _can(graph: Graph, node: Node, impl: Impl, device: Device) -> bool:
    faults = Faults()
    check_needs(graph, node, Choice(impl.name), device, None, faults)
    return not faults.errors


def _seconds(graph: Graph, node: Node, impl: Impl, experts: int, rows: int, device: Device) -> float:
    """On the whole chip; a host that issues one launch per expert may be what it waits for."""
    shape = graph.param[node.params[0]].type.shape
    out, wide = (dim.scale for dim in shape[-2:])
    if isinstance(node.attrs, ExpertGemmAttrs) and node.attrs.transposed:
        out, wide = wide, out
    element = graph.types[node.outs[0]].dtype.bytes
    at = {"experts": experts, "rows": rows, "out": out, "in": wide, "element": element}
    there = least(device, impl, at)
    after = 0.0
    if impl.cost.activation_after and isinstance(node.attrs, ExpertGemmActAttrs):
        after = experts * rows * (node.attrs.out + node.attrs.width) * element / device.hbm_bytes_per_s
    issued = (impl.cost.launches or experts) * (device.triton_s if impl.cost.triton else device.launch_s)
    return max(there.floor + there.slope * ratio(device, impl, at) + after, issued)
