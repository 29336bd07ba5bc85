"""Variants: ops that torch or a Triton kernel may run: which functions a program holds, and which one a step calls."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from epsc.codegen import triton_kernels
from epsc.codegen.gemms import Gemms, choice_text, devices_of
from epsc.codegen.names import Names
from epsc.codegen.triton_expert_gemm import expert_gemm
from epsc.ir.attrs import ActAttrs, RouteAttrs, RowsAttrs
from epsc.ir.dims import Axis
from epsc.ir.graph import Node
from epsc.ir.impls import Metric
from epsc.ir.schedule import Layout, Schedule, Step

_FIXED: Mapping[object, Mapping[str, str]] = {
    "unpermute_sum": {"torch": "weighted_sum", "triton": "triton_weighted_sum"},
    "ungroup": {"torch": "put_rows", "triton": "scatter_rows"},
    "layout": {"torch": "sort_rows", "triton": "rank_rows"},
}
"""Functions of the kinds of which a program needs one form only."""


@dataclass(frozen=True)
class Variants:
    schedules: tuple[Schedule, ...]
    """Of all plans of the program."""
    functions: Mapping[object, Mapping[str, str]]
    """A kind of `_FIXED`, or the attributes of an activation or a router -> implementation -> function."""

    @staticmethod
    def of(schedules: tuple[Schedule, ...], by_torch: Mapping[object, str], names: Names) -> Variants:
        """`by_torch`: attributes -> function; `names` are those of the file, to which those of kernels are added."""
        functions = dict(_FIXED)
        for attrs, name in by_torch.items():
            if isinstance(attrs, ActAttrs | RouteAttrs):
                kernel = names.of(f"triton {name}", f"triton_{name}")
                names.used.add(f"{kernel}_kernel")
                functions[attrs] = {"torch": name, "triton": kernel}
        return Variants(schedules, functions)

    @cached_property
    def _steps(self) -> list[tuple[Node, Step]]:
        every = [(schedule.node(step), step) for schedule in self.schedules for step in schedule.steps]
        return [(node, step) for node, step in every if _key(node) in self.functions]

    @cached_property
    def _nodes(self) -> list[Node]:
        """Of all plans: an op of several is there several times."""
        return [node for schedule in self.schedules for node in schedule.graph.nodes]

    def used(self, impl: str, key: object) -> bool:
        """Whether some step may take the implementation, of a kind, an activation or a router."""
        return any(impl in step.impl.names for node, step in self._steps if _key(node) == key)

    def choice(self, node: Node, step: Step) -> str:
        """The function to call, as an expression."""
        return choice_text(step.impl, self.functions[_key(node)])

    def by_load(self, step: Step) -> bool:
        """Whether the choice depends on more than the device."""
        return any(condition.metric is not Metric.DEVICE for _, condition in step.impl.cases)

    def by_device(self, schedule: Schedule) -> dict[str, str]:
        """Choices of one plan that the device alone decides -> a good name for what it decides on."""
        every = [(schedule.node(step), step) for step in schedule.steps]
        return {
            self.choice(node, step): self.functions[_key(node)]["torch"]
            for node, step in every
            if _key(node) in self.functions and step.impl.cases and not self.by_load(step)
        }

    def needs(self) -> dict[str, tuple[tuple[str, ...], bool]]:
        """Lines of the plan that launch kernels -> devices on which they may, and whether they need tensor cores."""
        return {
            f"{step.node} = {step.impl}": (devices, name != "triton")
            for name in ("triton", "persistent", "direct")
            for schedule in self.schedules
            for step in schedule.steps
            # On CPU `direct` launches nothing.
            if (devices := tuple(d for d in devices_of(name, step.impl) if name != "direct" or d == "cuda"))
        }

    @cached_property
    def selective(self) -> bool:
        """Whether some dispatch sends some copies of a token only."""
        return any(
            isinstance(node.attrs, RowsAttrs) and node.attrs.selective and node.kind == "layout" for node in self._nodes
        )

    @property
    def activations(self) -> dict[ActAttrs, Mapping[str, str]]:
        """Of each activation the function of every implementation."""
        return {key: functions for key, functions in self.functions.items() if isinstance(key, ActAttrs)}

    @property
    def routers(self) -> dict[RouteAttrs, str]:
        """The kernel of each router that some step may route with by one."""
        return {
            key: functions["triton"]
            for key, functions in self.functions.items()
            if isinstance(key, RouteAttrs) and self.used("triton", key)
        }

    def kernels(self, gemms: Gemms) -> str:
        """The text of all kernels that some step may launch: those of variants, expert products, and activations that
        are made behind other products."""
        texts = list(self._kernels(gemms.behind))
        one_sided = any(node.info.one_sided for node in self._nodes)
        ranked = self.used("triton", "layout")
        if one_sided or ranked:
            texts.append(triton_kernels.copy_ranks())
        if ranked:
            axes = self._layout_axes()
            texts.append(triton_kernels.rank_rows(by_expert=axes != {Axis.TOKENS}, by_token=Axis.TOKENS in axes))
        if one_sided:
            texts.append(triton_kernels.one_sided({node.kind for node in self._nodes}, several=len(self.schedules) > 1))
        persistent = bool(gemms.products)
        if persistent:
            texts.append(triton_kernels.tiles())
            texts += [
                expert_gemm(
                    name,
                    act,
                    gemms.cuts(name),
                    bias=gemms.with_bias,
                    turned=gemms.turned,
                    home=name == "direct_product",
                )
                for name, act in gemms.products.items()
            ]
        sums = persistent or one_sided or ranked or bool(self.routers)
        return "".join([triton_kernels.head(descriptors=persistent, sums=sums), *texts]) if texts else ""

    def _layout_axes(self) -> set[Axis | None]:
        """What the rows of dispatches are laid out by."""
        return {
            schedule.layout.get(dispatch, Layout(dispatch)).axis
            for schedule in self.schedules
            for node in schedule.graph.nodes
            if node.kind == "layout"
            for dispatch in (node.name.removesuffix(".layout"),)
        }

    def _kernels(self, behind: Collection[ActAttrs]) -> Iterator[str]:
        if self.routers:
            yield triton_kernels.ordering()
        for key, functions in self.functions.items():
            if key == "layout" or (not self.used("triton", key) and key not in behind):
                continue
            if isinstance(key, ActAttrs):
                yield triton_kernels.activation(functions["triton"], key)
            elif isinstance(key, RouteAttrs):
                yield triton_kernels.route(functions["triton"], key)
            elif key == "ungroup":
                yield triton_kernels.scatter_rows()
            else:
                yield triton_kernels.weighted_sum(functions["triton"], self.selective)


def _key(node: Node) -> object:
    return node.attrs if node.kind in ("activation", "route") else node.kind
