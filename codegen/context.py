"""Context: everything that the templates fill in, as strings and lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from epsc.codegen.constructor import given_modules, made_by, two_level
from epsc.codegen.functions import Function, activation_function, route_function
from epsc.codegen.gemms import Gemms
from epsc.codegen.head import declared_lines, docstring, input_lines, weight_lines
from epsc.codegen.lines import Arg, Listing, call
from epsc.codegen.memory import TORCH_DTYPES, base_dtype
from epsc.codegen.names import (
    Names,
    checked_dotted,
    checked_version,
    class_name,
    comment_line,
    comment_lines,
    identifier,
    string,
)
from epsc.codegen.one_sided import memory_together
from epsc.codegen.ops import ONE_SIDED
from epsc.codegen.planned import Planned, Shared, arrow, weights_of
from epsc.codegen.reference import Reference
from epsc.codegen.reserved import FILE, MODULE, PLAN, REFERENCE
from epsc.codegen.variants import Variants
from epsc.ir.attrs import ActAttrs, CallAttrs, ExpertGemmActAttrs, RouteAttrs
from epsc.ir.dims import Axis
from epsc.ir.graph import Graph
from epsc.ir.schedule import Schedule
from epsc.ir.shards import whole
from epsc.machine.device import Device


def context(
    plans: Sequence[tuple[Schedule, tuple[int, int]]],
    name: str,
    spec_text: str,
    version: str,
    device: Device | None = None,
    settings: str = "",
) -> dict[str, Any]:
    """What the templates need for the program of these schedules, each for a range of load, which is scheduled as
    `name`. Raises EpsError for what cannot be written."""
    schedules = tuple(schedule for schedule, _ in plans)
    for each in schedules:
        _check_names(each)
    first, several = schedules[0], len(schedules) > 1
    load = plans[0][1][0], plans[-1][1][1]
    graph, graphs = first.graph, [each.graph for each in schedules]
    cls = class_name(graph.name)
    file_name = f"{identifier(graph.name)}_{identifier(name)}"
    file_names = Names((*FILE, cls))
    functions = _functions(graphs, file_names)
    by_attrs = {attrs: function.name for attrs, function in functions.items()}
    variants = Variants.of(schedules, by_attrs, file_names)
    gemms = Gemms(schedules, variants.activations, file_names, device)
    joined = gemms.functions()
    kernels = variants.kernels(gemms)
    shared = Shared(
        file_names, by_attrs, variants, gemms, weights_of(graph, Names((*MODULE, *PLAN))) if several else None
    )
    classes = [
        file_names.of(f"plan {i}", class_name(each.name)) if several else cls for i, each in enumerate(schedules)
    ]
    made = [Planned(*each, own, shared) for each, own in zip(plans, classes, strict=True)]
    found = [each.context for each in made]
    given = given_modules(graph)
    nodes = [node for each in graphs for node in each.nodes]
    kinds = {node.kind for node in nodes}
    weights = made[0].scope.weights
    return {
        **found[0],
        **docstring(first, name, file_name, cls, made[0].inputs, load, given, several),
        "several": several,
        "plans": found,
        "table": _table(made),
        "plan_classes": call("PLANS = ", [each.cls for each in made], "  # by load, the least first"),
        "memory_together": memory_together((each.schedule, each.load[1]) for each in made),
        "inputs": made[0].inputs,
        "layer_head": call(
            "def forward",
            ["self", *(f"{value}: Tensor" for value in made[0].inputs), "most: int | None = None"],
            arrow(graph),
            4,
        ),
        "compiled_from": comment_line(f"What it was compiled from{settings and f', with {settings}'}:"),
        "spec": comment_lines(spec_text),
        "file_name": file_name,
        "class_name": cls,
        "layer_string": string(graph.name),
        "schedule_string": string(name),
        "version": checked_version(version),
        "version_string": string(version),
        "ep": first.ep,
        "meshes": first.meshes,
        "all_ranks": first.ranks,
        "etp": first.mesh_of("etp").size("etp"),
        "world": "RANKS" if first.meshes else "EP",
        "ranks": "1 rank" if first.ranks == 1 else f"{first.ranks} ranks",
        "two_level": next(filter(None, map(two_level, schedules)), None),
        "load": load,
        "one_sided": any(each.scope.slots for each in made),
        "selective": variants.selective,
        "offloads": any(node.info.from_host for node in nodes),
        "identities": "identity" in kinds,
        "one_sided_kinds": kinds & {*ONE_SIDED, "expert_gemm_put"},
        "groups": gemms.groups,
        "collective": any(step.comm for each in schedules for step in each.steps),
        "collective_kinds": kinds,
        "gathers": any(kind.startswith("all_gather") for kind in kinds),
        "same_tokens": first.same_tokens,
        "dtype": TORCH_DTYPES[base_dtype(first)],
        "input_constants": input_lines(first),
        "weights": weight_lines(first, weights),
        "declared_weights": declared_lines(first, weights),
        "layout_classes": _layout_classes(made),
        "op_files": _op_files(made, gemms, variants),
        "functions": [*functions.values(), *joined],
        "kernels": kernels,
        "packages": "torch (and triton on CUDA)" if kernels else "torch",
        **_needs(gemms, variants, given),
        **made_by(graph, cls),
        **_reference(graph, file_names, by_attrs, variants.routers),
    }


def _table(plans: Sequence[Planned]) -> list[str]:
    """Which plan is taken at which load."""
    rows = [(f"{plan.load[0]} to {plan.load[1]} tokens", plan.cls, plan.schedule.name) for plan in plans]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"{load:<{widths[0]}}  {cls:<{widths[1]}}  the plan {name}" for load, cls, name in rows]


def _functions(graphs: Sequence[Graph], names: Names) -> dict[object, Function]:
    """Routers and activations, each kind of them once."""
    found: dict[object, Function] = {}
    for node in (node for graph in graphs for node in graph.nodes):
        attrs = node.attrs.act if isinstance(node.attrs, ExpertGemmActAttrs) else node.attrs
        if attrs in found:
            continue
        if isinstance(attrs, RouteAttrs):
            found[attrs] = route_function(names.of(f"route {len(found)}", "route"), attrs)
        elif isinstance(attrs, ActAttrs):
            found[attrs] = activation_function(names.of(f"act {len(found)}", attrs.fn.value), attrs)
    return found


def _layout_classes(plans: Sequence[Planned]) -> list[str]:
    layouts = [(each.regions, dispatch) for each in plans for dispatch in each.scope.layouts]
    laid = [(regions, dispatch) for regions, dispatch in layouts if not regions.shares_of(dispatch)]
    axes = {regions.layout(dispatch).axis for regions, dispatch in laid}
    wanted = {
        "layout_experts.jinja": bool(axes - {Axis.TOKENS}),
        "layout_peers.jinja": Axis.PEER in axes,
        "layout_tokens.jinja": Axis.TOKENS in axes,
    }
    found = [name for name, used in wanted.items() if used]
    found += ["layout_gathered.jinja"] if len(laid) < len(layouts) else []
    return [*found, "layout_local.jinja"] if any(regions.stays(d) for regions, d in laid) else found


def _op_files(plans: Sequence[Planned], gemms: Gemms, variants: Variants) -> list[str]:
    """The templates of the operations that this program uses, in a fixed order."""
    kinds = {node.kind for each in plans for node in each.schedule.graph.nodes}
    bias = "_bias" if gemms.with_bias else ""
    wanted = {
        "op_chunks.jinja": any(each.regions.ranges or each.regions.shares for each in plans),
        "op_length.jinja": any("length" in each.regions.helpers for each in plans),
        "op_keep.jinja": any("keep" in block.op for each in plans for block in each.blocks),
        "op_called.jinja": "call" in kinds,
        "op_expect.jinja": True,
        "op_router_logits.jinja": "route" in kinds,
        "op_sort_rows.jinja": variants.used("torch", "layout"),
        "op_identity.jinja": "identity" in kinds,
        "op_rows_or_zero.jinja": variants.selective
        and ("unpermute" in kinds or variants.used("torch", "unpermute_sum")),
        "op_weighted_sum.jinja": variants.used("torch", "unpermute_sum"),
        "op_put_rows.jinja": variants.used("torch", "ungroup"),
        "gemm_expert_of_rows.jinja": bool(bias) and "grouped" in gemms.used,
        "gemm_programs.jinja": bool(gemms.products),
        **{f"gemm_{name}{bias}.jinja": True for name in gemms.used},
    }
    return [name for name, used in wanted.items() if used]


def _needs(gemms: Gemms, variants: Variants, given: dict[str, int]) -> dict[str, Any]:
    """What must be there when a module is made."""
    rows: list[str] = []
    for need in gemms.needs():
        args: list[Arg] = [string(need.step), string(need.plan), Listing("", tuple(map(string, need.devices)), "()")]
        rows += call("", [*args, Listing("", tuple(map(str, need.widths)), "()")], ",", 4)
    files = ["given.jinja"] if given else []
    checks = ["self.given = checked_modules(given or {})"] if given else []
    if rows:
        files.append("needs.jinja")
        checks.append("check_grouped(self.device, dtype)")
    launches = []
    for plan, (devices, products) in variants.needs().items():
        launches += call("", [string(plan), Listing("", tuple(map(string, devices)), "()"), str(products)], ",", 4)
    if launches:
        files.append("needs_triton.jinja")
        checks.append("check_triton(self.device, dtype)")
    return {
        "triton_rows": ["TRITON: list[tuple[str, tuple[str, ...], bool]] = [", *launches, "]"],
        "need_files": files,
        "need_rows": ["GROUPED: list[tuple[str, str, tuple[str, ...], tuple[int, ...]]] = [", *rows, "]"],
        "given_rows": [
            "GIVEN = {",
            *(f"    {string(name)}: {width}," for name, width in given.items()),
            "}  # modules that the layer calls and does not hold -> columns that they make",
        ],
        "init_checks": checks,
    }


def _reference(
    graph: Graph, file_names: Names, functions: dict[object, str], routers: dict[RouteAttrs, str]
) -> dict[str, Any]:
    reference = Reference(whole(graph), Names((*REFERENCE, *file_names.used)), functions, routers)
    parameters = [*(f"{name}: Tensor" for name in reference.parameters()), "raw: Raw", "dtype: torch.dtype"]
    call_args = ["*(x.float() if x.is_floating_point() else x for x in given)", "raw", "layer.dtype"]
    if given_modules(graph):
        parameters.append("given: Mapping[str, Callable[..., Tensor]]")
        call_args.append("layer.given")
    return {
        "reference_head": call("def reference", parameters, arrow(graph)),
        "reference_lines": reference.lines(),
        "reference_call": ", ".join(call_args),
    }


def _check_names(schedule: Schedule) -> None:
    """Every name of the spec is written somewhere in the program: let none be anything but words and dots."""
    graph = schedule.graph
    names = [graph.name, schedule.name, *graph.types, *(param.name for param in graph.params)]
    names += [name for node in graph.nodes for name in (node.name, node.origin) if name]
    names += [node.attrs.module for node in graph.nodes if isinstance(node.attrs, CallAttrs)]
    names += [lane.name for lane in schedule.lanes] + [step.comm for step in schedule.steps if step.comm]
    names += [storage.name for storage in schedule.storages]
    for name in names:
        checked_dotted(name)
