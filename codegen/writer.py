"""Writer: what all ops have at hand when they say what their templates fill in."""

from __future__ import annotations

from dataclasses import dataclass

from epsc.codegen.gemms import Gemms
from epsc.codegen.names import string
from epsc.codegen.one_sided import dispatch_of
from epsc.codegen.regions import Regions, Target
from epsc.codegen.variants import Variants
from epsc.ir.dims import Axis, Cut
from epsc.ir.graph import Node
from epsc.ir.schedule import Ref, Schedule, Step

Op = dict[str, str | tuple[str, ...]]
"""What the macro of an op fills in: expressions, and lists of arguments."""


@dataclass(frozen=True)
class Scope:
    """What names of the module and of the file a step may use."""

    lanes: dict[str, str]
    """Lane -> attribute."""
    weights: dict[str, str]
    """Parameter -> attribute."""
    layouts: dict[str, str]
    """Dispatch -> attribute."""
    slots: dict[str, str]
    """Dispatch by one-sided transfers -> attribute."""
    functions: dict[object, str]
    """Attributes of a route or an activation -> function."""
    by_device: dict[str, str]
    """A choice of a function that the device alone decides -> attribute."""


@dataclass(frozen=True)
class At:
    """The step that is written."""

    step: Step
    node: Node
    cut: Cut | None


@dataclass(frozen=True)
class Writer:
    """A plan, and what is known of the file that its program is written to."""

    schedule: Schedule
    regions: Regions
    gemms: Gemms
    variants: Variants
    scope: Scope

    def _results(self, at: At) -> Op:
        """Names for tensors that the function makes itself."""
        return {"results": ", ".join(map(self.regions.variable, at.node.outs))}

    def _variant(self, at: At, *args: str) -> Op:
        """A call of a function, of what the device decided on, or of what is chosen by load."""
        text = self.variants.choice(at.node, at.step)
        if not self.variants.by_load(at.step):
            return {"function": f"self.{bound}" if (bound := self.scope.by_device.get(text)) else text, "args": args}
        return {"choose": text, "key": string(at.step.key), "function": "run", "args": args}

    def _addend(self, at: At, known: int) -> list[str]:
        """What a sum starts from, if it has more than its `known` inputs."""
        return [self.regions.read(at.step, ref) for ref in at.step.reads if ref.value in at.node.ins[known:]]

    def _slots(self, node: Node) -> str:
        return f"self.{self.regions.slots[dispatch_of(self.schedule.graph, node)]}"

    def _read(self, at: At, value: str) -> str:
        """A value as a method of slots takes it: all rows, or an index; of what is cut by columns some of them."""
        columns = tuple(cut for cut in at.step.cuts if cut.axis is Axis.COLUMNS)
        ref = Ref(value, columns if Ref(value, columns) in at.step.reads else ())
        return self.regions.read(at.step, ref) if self.regions.buffer(ref) else self.regions.variable(value)


def result_of(target: Target) -> Op:
    """Where a tensor that the op may have made itself goes: a name for it, or a copy to where it belongs."""
    return {"target": target.name} if target.name else {"target": "made", "keep": target.expr}
