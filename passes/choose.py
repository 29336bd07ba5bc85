"""choose: Graph -> Schedule. One step per op, with the implementation that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from epsc.ir.attrs import ExpertGemmAttrs
from epsc.ir.errors import Diagnostic, EpsError, Faults, did_you_mean
from epsc.ir.graph import Graph, Node
from epsc.ir.impls import Choice, Condition, Metric, impls_of
from epsc.ir.schedule import Ref, Schedule, Stage, Step
from epsc.passes.needs import check_needs, first_that_can
from epsc.passes.wishes import Context


@dataclass(frozen=True)
class Choose:
    """Give every op the implementation that the schedule asks for, else the one named here, else the first of the table
    that can run it: on CUDA, and elsewhere. The table has the fastest first."""

    name: ClassVar[str] = "choose"

    experts: str = ""
    """For expert gemms that no `use` names; else the first of the table that can."""

    def __post_init__(self) -> None:
        known = impls_of("expert_gemm")
        if self.experts and self.experts not in known:
            raise EpsError(
                Diagnostic(
                    "unknown-implementation",
                    f"`{self.experts}` is no implementation of expert gemms",
                    help=did_you_mean(self.experts, known),
                )
            )

    def __call__(self, graph: Graph, context: Context) -> Schedule:
        steps = []
        faults = Faults()
        for node in graph.nodes:
            choice = context.wishes.choices.get(node.name) or self._default(graph, node, context)
            if context.device:
                check_needs(graph, node, choice, context.device, context.wishes.choice_spans.get(node.name), faults)
            reads = tuple(Ref(value) for value in dict.fromkeys(node.ins))
            steps.append(Step(node.name, choice, reads, tuple(map(Ref, node.outs))))
        faults.raise_if_any()
        # Where ops speak of ep alone, which is all ranks, there is no table to look at.
        spoken = {getattr(node.attrs, "mesh", "ep") for node in graph.nodes}
        by_node = spoken & {"inter", "intra"}
        meshes = tuple(mesh for mesh in context.meshes if by_node or mesh.name != "nodes")
        return Schedule(
            context.wishes.name,
            graph,
            context.ep,
            context.chip_sms,
            Stage.CHOSEN,
            tuple(steps),
            meshes=() if spoken <= {"ep"} else meshes,
        )

    def _default(self, graph: Graph, node: Node, context: Context) -> Choice:
        if isinstance(node.attrs, ExpertGemmAttrs) and self.experts:
            return Choice(self.experts)
        on_cuda, elsewhere = (first_that_can(graph, node, backend, context.device) for backend in ("cuda", "cpu"))
        if on_cuda == elsewhere:
            return Choice(elsewhere)
        return Choice(elsewhere, ((on_cuda, Condition(Metric.DEVICE, "==", "cuda")),))
