"""Gemms: which implementations of expert products a program holds, and how a step chooses at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from epsc.codegen.names import string
from epsc.ir.attrs import ExpertGemmAttrs
from epsc.ir.impls import Choice, Condition, Metric
from epsc.ir.schedule import Schedule, Step

FUNCTIONS = {
    "persistent": "persistent_gemm",
    "grouped": "grouped_gemm",
    "dense": "dense_gemm",
    "batched": "batched_gemm",
}

_KNOWN = {
    Metric.ROWS: "part.rows",
    Metric.MEAN_ROWS: "part.mean_rows",
    Metric.MAX_ROWS: "part.max_rows",
    Metric.TOKENS: "tokens",
    Metric.DEVICE: "self.device.type",
}


@dataclass(frozen=True)
class Need:
    """An implementation that does not run everywhere: the program checks this when a module is made."""

    step: str
    plan: str
    devices: tuple[str, ...]
    widths: tuple[int, ...]
    """Elements per row of what it reads."""


@dataclass(frozen=True)
class Gemms:
    schedule: Schedule

    @cached_property
    def _steps(self) -> list[Step]:
        return [step for step in self.schedule.steps if self.schedule.node(step).kind == "expert_gemm"]

    @cached_property
    def used(self) -> list[str]:
        """The implementations that some step may take, in a fixed order."""
        names = {name for step in self._steps for name in step.impl.names}
        return [name for name in FUNCTIONS if name in names]

    @cached_property
    def with_bias(self) -> bool:
        nodes = map(self.schedule.node, self._steps)
        return any(isinstance(node.attrs, ExpertGemmAttrs) and node.attrs.bias for node in nodes)

    def own_result(self, step: Step) -> bool:
        """Whether the step always makes a tensor of its own: grouped_mm cannot write into one that is there."""
        return self.schedule.node(step).kind == "expert_gemm" and step.impl.names == ("grouped",)

    def choice(self, step: Step) -> str:
        """The function to call, as an expression."""
        return choice_text(step.impl, FUNCTIONS)

    def needs(self) -> list[Need]:
        """What must hold for `grouped`, once per op."""
        found: dict[str, Need] = {}
        for step in self._steps:
            if "grouped" not in step.impl.names or step.node in found:
                continue
            node = self.schedule.node(step)
            assert isinstance(node.attrs, ExpertGemmAttrs)
            read = self.schedule.graph.types[node.ins[0]].shape[1].scale
            devices = devices_of("grouped", step.impl)
            # The strides of the rows and of the weights: those of `[in, out]` are `out`.
            widths = tuple(dict.fromkeys((read, node.attrs.out if node.attrs.transposed else read)))
            found[step.node] = Need(step.node, f"{step.node} = {step.impl}", devices, widths)
        return list(found.values())


def choice_text(choice: Choice, functions: Mapping[str, str]) -> str:
    """`grouped_gemm if part.rows < 2048 else dense_gemm`; `functions` are those of the implementations."""
    cases = [f"{functions[name]} if {_condition(condition)} else " for name, condition in choice.cases]
    return f"{''.join(cases)}{functions[choice.otherwise]}"


def devices_of(name: str, choice: Choice) -> tuple[str, ...]:
    """The devices on which the implementation `name` may be taken."""
    return tuple(device for device in ("cuda", "cpu") if name in choice.possible(device))


def _condition(condition: Condition) -> str:
    value = string(condition.value) if isinstance(condition.value, str) else str(condition.value)
    return f"{_KNOWN[condition.metric]} {condition.op} {value}"
