"""Gemms: which implementations of expert products a program holds, and how a step chooses at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from epsc.codegen.functions import Function
from epsc.codegen.lines import call
from epsc.codegen.names import Names, string
from epsc.codegen.triton_expert_gemm import Cuts
from epsc.ir.attrs import ActAttrs, ExpertGemmActAttrs, ExpertGemmAttrs, PlaceAttrs
from epsc.ir.dims import Axis
from epsc.ir.graph import Graph, Node
from epsc.ir.impls import Choice, Condition, Metric
from epsc.ir.schedule import Schedule, Step
from epsc.machine.device import Device
from epsc.machine.tiles import tiles_for

FUNCTIONS = {
    "persistent": "persistent_gemm",
    "grouped": "grouped_gemm",
    "dense": "dense_gemm",
    "batched": "batched_gemm",
    "direct": "direct_gemm",
}

_PLAIN = {"persistent": "expert_product", "direct": "direct_product"}
"""Implementations by persistent kernels -> the function of the one without an activation."""

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
    schedules: tuple[Schedule, ...]
    """Of all plans of the program."""
    activations: Mapping[ActAttrs, Mapping[str, str]]
    """Of each activation the function of every implementation."""
    names: Names
    """Those of the file, to which those of products with an activation are added."""
    device: Device | None = None
    """What the program is for, if that is known: tiles are what is fastest there."""

    @cached_property
    def _steps(self) -> list[tuple[Graph, Node, Step]]:
        return [
            (schedule.graph, node, step)
            for schedule in self.schedules
            for step in schedule.steps
            if isinstance((node := schedule.node(step)).attrs, ExpertGemmAttrs)
        ]

    @cached_property
    def groups(self) -> bool:
        """Whether some product is of a group of experts whose rows lie among those of all, where one-sided transfers
        put them."""
        return any(
            cut.axis is Axis.EXPERT_GROUP and isinstance(graph.maker[node.ins[1]].attrs, PlaceAttrs)
            for graph, node, step in self._steps
            for cut in step.cuts
        )

    @cached_property
    def used(self) -> list[str]:
        """The implementations whose functions without an activation something calls, in a fixed order."""
        names = {
            name
            for _, node, step in self._steps
            for name in step.impl.names
            if name != "persistent" or not isinstance(node.attrs, ExpertGemmActAttrs)
        }
        names |= {"grouped"} if "direct" in names else set()  # what that does on CPU
        return [name for name in FUNCTIONS if name in names]

    @cached_property
    def _joined(self) -> dict[tuple[str, ActAttrs], set[str]]:
        """Implementation and activation that are one op -> the devices on which some step may take them."""
        found: dict[tuple[str, ActAttrs], set[str]] = {}
        for _, node, step in self._steps:
            if isinstance(attrs := node.attrs, ExpertGemmActAttrs):
                for name in step.impl.names:
                    found.setdefault((name, attrs.act), set()).update(devices_of(name, step.impl))
        return found

    @cached_property
    def products(self) -> dict[str, ActAttrs | None]:
        """The persistent kernels that the program holds: function -> the activation in its epilogue."""
        plain: dict[str, ActAttrs | None] = {product: None for impl, product in _PLAIN.items() if impl in self.used}
        return plain | {self._product(act): act for name, act in self._joined if name == "persistent"}

    def _product(self, act: ActAttrs) -> str:
        name = self.names.of(f"product {act}", f"{self.activations[act]['torch']}_product")
        self.names.used |= {f"{name}_kernel", f"{name}_tiles", f"{name.upper()}_TILES"}
        return name

    def cuts(self, product: str) -> Cuts:
        """How a persistent kernel is cut, for every shape of weights that the program gives it."""
        act, found = self.products[product], {}
        impl = "direct" if product == _PLAIN["direct"] else "persistent"
        for graph, node, step in self._steps:
            assert isinstance(node.attrs, ExpertGemmAttrs)
            own = node.attrs.act if isinstance(node.attrs, ExpertGemmActAttrs) else None
            if impl in step.impl.names and own == act:
                out, deep = node.attrs.out, graph.types[node.ins[0]].shape[1].scale
                found[out, deep] = tiles_for(self.device.tiles if self.device else (), out, deep, act is not None)
        return found

    @cached_property
    def behind(self) -> frozenset[ActAttrs]:
        """Activations that a launch of their own makes on CUDA, behind a product of the same op."""
        return frozenset(
            act for (name, act), devices in self._joined.items() if name != "persistent" and "cuda" in devices
        )

    def functions(self) -> list[Function]:
        """The products with an activation."""
        return [self._function(name, act, devices) for (name, act), devices in self._joined.items()]

    def _function(self, impl: str, act: ActAttrs, devices: set[str]) -> Function:
        gemm, by = FUNCTIONS[impl], self.activations[act]
        bias = ["bias: Tensor | None"] if self.with_bias else []
        parameters = ("rows: Tensor", "weight: Tensor", *bias, "part: Part", "ends: Tensor", "out: Tensor")
        args = ", ".join(name.partition(":")[0] for name in parameters[:-1])
        if impl == "persistent":
            doc = f"One launch for all experts, with {by['torch']} of the sums before they are stored."
            given = ["rows", "weight.mT", "ends[part.ends]", "out", "programs_for(rows)", "expected=part.mean_rows"]
            given += ["bias=bias"] if self.with_bias else []
            given += ["inside=part.inside"] if self.groups else []
            body = call(f"return {self._product(act)}", given)
        else:
            doc = f"`{gemm}`, then {by['torch']}."
            made = f"{gemm}({args})"
            body = []
            if impl != "grouped":
                body.append("wide = rows.new_empty(len(rows), weight.shape[-1])")
                made = f"{gemm}({args}, wide)"
            function = by["torch"]
            if "cuda" in devices:
                body.append(f"activation = {by['triton']} if rows.is_cuda else {function}")
                function = "activation"
            body += [f"{function}({made}, out)", "return out"]
        return Function(self._name(impl, act), parameters, "Tensor", doc, tuple(f"    {line}" for line in body))

    def _name(self, impl: str, act: ActAttrs) -> str:
        return self.names.of(f"{impl} {act}", f"{impl}_{self.activations[act]['torch']}")

    @cached_property
    def turned(self) -> bool:
        """Whether the weights of some persistent product lie as [in, out]."""
        nodes = (node for _, node, step in self._steps if {*_PLAIN} & {*step.impl.names})
        return any(isinstance(node.attrs, ExpertGemmAttrs) and node.attrs.transposed for node in nodes)

    @cached_property
    def with_bias(self) -> bool:
        return any(isinstance(node.attrs, ExpertGemmAttrs) and node.attrs.bias for _, node, _ in self._steps)

    def own_result(self, node: Node, step: Step) -> bool:
        """Whether the step always makes a tensor of its own: grouped_mm cannot write into one that is there."""
        return node.kind == "expert_gemm" and step.impl.names == ("grouped",)

    def _of(self, node: Node) -> dict[str, str]:
        """Implementation -> function."""
        if isinstance(node.attrs, ExpertGemmActAttrs):
            act = node.attrs.act
            return {impl: self._name(impl, act) for impl, of in self._joined if of == act}
        return FUNCTIONS

    def choice(self, node: Node, step: Step) -> str:
        """The function to call, as an expression."""
        return choice_text(step.impl, self._of(node))

    def needs(self) -> list[Need]:
        """What must hold for `grouped`, once per op and its line of a plan."""
        found: dict[str, Need] = {}
        for graph, node, step in self._steps:
            line = f"{step.node} = {step.impl}"
            if "grouped" not in step.impl.names or line in found:
                continue
            assert isinstance(node.attrs, ExpertGemmAttrs)
            read = graph.types[node.ins[0]].shape[1].scale
            devices = devices_of("grouped", step.impl)
            # The strides of the rows and of the weights: those of `[in, out]` are `out`.
            widths = tuple(dict.fromkeys((read, node.attrs.out if node.attrs.transposed else read)))
            found[line] = Need(step.node, line, devices, widths)
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
