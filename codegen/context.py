"""Context: everything that the templates fill in, as strings and lists."""

from __future__ import annotations

import math
from typing import Any

from epsc.codegen.constructor import constructor, given_modules, two_level
from epsc.codegen.functions import Function, activation_function, route_function
from epsc.codegen.gemms import Gemms
from epsc.codegen.head import declared_lines, docstring, input_lines, shape_text, weight_lines
from epsc.codegen.lines import Arg, Listing, call
from epsc.codegen.memory import TORCH_DTYPES, Memory, base_dtype, dtype_text
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
from epsc.codegen.one_sided import memory_line, pairs
from epsc.codegen.ops import ONE_SIDED, Ops, Scope
from epsc.codegen.reference import Reference
from epsc.codegen.regions import Regions
from epsc.codegen.reserved import FILE, FORWARD, MODULE, REFERENCE
from epsc.codegen.steps import Steps
from epsc.codegen.variants import Variants
from epsc.ir.attrs import ActAttrs, CallAttrs, ExpertGemmActAttrs, RouteAttrs
from epsc.ir.dims import Axis, DType, Tensor
from epsc.ir.graph import Graph
from epsc.ir.schedule import Schedule
from epsc.ir.shards import whole
from epsc.machine.device import Device


def context(
    schedule: Schedule,
    spec_text: str,
    version: str,
    load: tuple[int, int],
    device: Device | None = None,
    settings: str = "",
) -> dict[str, Any]:
    """What the templates need. Raises EpsError for what cannot be written."""
    _check_names(schedule)
    graph = schedule.graph
    cls = class_name(graph.name)
    file_name = f"{identifier(graph.name)}_{identifier(schedule.name)}"
    file_names = Names((*FILE, cls))
    functions = _functions(graph, file_names)
    variants = Variants.of(schedule, {attrs: function.name for attrs, function in functions.items()}, file_names)
    gemms = Gemms(schedule, variants.activations, file_names, device)
    joined = gemms.functions()
    kernels = variants.kernels(gemms)
    scope = _scope(schedule, {attrs: function.name for attrs, function in functions.items()}, variants)
    regions = Regions(schedule, Names((*FORWARD, *file_names.used)), scope.slots)
    inputs = list(map(regions.variable, graph.inputs))
    own = {step.key for step in schedule.steps if gemms.own_result(step)}
    own |= {step.key for step in schedule.steps if graph.node[step.node].kind == "call"}
    memory = Memory(schedule, regions, scope.lanes, frozenset(own))
    steps = Steps(schedule, regions, memory, Ops(schedule, regions, gemms, variants, scope))
    given = given_modules(graph)
    allocations = memory.allocations()
    blocks = [steps.block(i, step) for i, step in enumerate(schedule.steps)]
    return {
        **docstring(schedule, file_name, cls, inputs, load, given),
        "compiled_from": comment_line(f"What it was compiled from{settings and f', with {settings}'}:"),
        "spec": comment_lines(spec_text),
        "file_name": file_name,
        "class_name": cls,
        "layer_string": string(graph.name),
        "schedule_string": string(schedule.name),
        "version": checked_version(version),
        "version_string": string(version),
        "ep": schedule.ep,
        "meshes": schedule.meshes,
        "all_ranks": schedule.ranks,
        "etp": schedule.mesh_of("etp").size("etp"),
        "world": "RANKS" if schedule.meshes else "EP",
        "ranks": "1 rank" if schedule.ranks == 1 else f"{schedule.ranks} ranks",
        "two_level": two_level(schedule),
        "load": load,
        "one_sided": bool(scope.slots),
        "selective": variants.selective,
        "offloads": any(node.info.from_host for node in graph.nodes),
        "identities": any(node.kind == "identity" for node in graph.nodes),
        "one_sided_kinds": {node.kind for node in graph.nodes} & {*ONE_SIDED, "expert_gemm_put"},
        "groups": gemms.groups,
        "collective": any(step.comm for step in schedule.steps),
        "collective_kinds": {node.kind for node in graph.nodes},
        "gathers": any(node.kind.startswith("all_gather") for node in graph.nodes),
        "same_tokens": schedule.same_tokens,
        "memory_lines": memory_line(schedule, load[1]),
        "dtype": TORCH_DTYPES[base_dtype(schedule)],
        "input_constants": input_lines(schedule),
        "weights": weight_lines(schedule, scope.weights),
        "declared_weights": declared_lines(schedule, scope.weights),
        "layout_classes": _layout_classes(regions, scope),
        "op_files": _op_files(graph, regions, gemms, variants, any("keep" in block.op for block in blocks)),
        "functions": [*functions.values(), *joined],
        "kernels": kernels,
        "packages": "torch (and triton on CUDA)" if kernels else "torch",
        **_needs(gemms, variants, given),
        **constructor(schedule, regions, scope, cls),
        **_forward(regions, inputs),
        "blocks": [{"memory": allocations.get(i, []), "block": block} for i, block in enumerate(blocks)],
        **_reference(graph, file_names, scope.functions, variants.routers),
    }


def _functions(graph: Graph, names: Names) -> dict[object, Function]:
    """Routers and activations, each kind of them once."""
    found: dict[object, Function] = {}
    for node in graph.nodes:
        attrs = node.attrs.act if isinstance(node.attrs, ExpertGemmActAttrs) else node.attrs
        if attrs in found:
            continue
        if isinstance(attrs, RouteAttrs):
            found[attrs] = route_function(names.of(f"route {len(found)}", "route"), attrs)
        elif isinstance(attrs, ActAttrs):
            found[attrs] = activation_function(names.of(f"act {len(found)}", attrs.fn.value), attrs)
    return found


def _scope(schedule: Schedule, functions: dict[object, str], variants: Variants) -> Scope:
    members = Names(MODULE)
    kinds = ("layout", "layout_shares")
    dispatches = [n.name.removesuffix(f".{n.kind}") for n in schedule.graph.nodes if n.kind in kinds]
    return Scope(
        {lane.name: members.of(f"lane {lane.name}", lane.name) for lane in schedule.lanes},
        {param.name: members.of(f"weight {param.name}", param.name) for param in schedule.graph.params},
        {d: members.of(f"layout {d}", f"{d}.layout") for d in dispatches},
        {
            pair.dispatch: members.of(f"slots {pair.dispatch}", f"{pair.dispatch}.slots")
            for pair in pairs(schedule.graph)
        },
        functions,
        {text: members.of(f"by device {text}", wish) for text, wish in variants.by_device.items()},
    )


def _layout_classes(regions: Regions, scope: Scope) -> list[str]:
    laid = [dispatch for dispatch in scope.layouts if not regions.shares_of(dispatch)]
    axes = {regions.layout(dispatch).axis for dispatch in laid}
    wanted = {
        "layout_experts.jinja": bool(axes - {Axis.TOKENS}),
        "layout_peers.jinja": Axis.PEER in axes,
        "layout_tokens.jinja": Axis.TOKENS in axes,
    }
    found = [name for name, used in wanted.items() if used]
    found += ["layout_gathered.jinja"] if len(laid) < len(scope.layouts) else []
    return [*found, "layout_local.jinja"] if any(map(regions.stays, laid)) else found


def _op_files(graph: Graph, regions: Regions, gemms: Gemms, variants: Variants, keeps: bool) -> list[str]:
    """The templates of the operations that this program uses, in a fixed order."""
    kinds = {node.kind for node in graph.nodes}
    bias = "_bias" if gemms.with_bias else ""
    wanted = {
        "op_chunks.jinja": bool(regions.ranges or regions.shares),
        "op_length.jinja": "length" in regions.helpers,
        "op_keep.jinja": keeps,
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


def _forward(regions: Regions, inputs: list[str]) -> dict[str, Any]:
    """Signature, first lines and result of `forward`."""
    graph = regions.graph
    shapes = ", ".join(
        f"{name}{shape_text(graph.types[value])}" for name, value in zip(inputs, graph.inputs, strict=True)
    )
    outs = ", ".join(shape_text(graph.types[value]) for value in graph.results)
    first = [f"tokens = len({inputs[0]})"]
    if regions.slots:
        first.append("expect_room(tokens)")
    base = base_dtype(regions.schedule)
    first += [
        line
        for name, value in zip(inputs, graph.inputs, strict=True)
        for line in _expect(name, graph.types[value], base)
    ]
    for axis, (shares, count) in sorted(regions.shares.items()):
        first.append(f"{shares} = by_tokens(tokens, {regions.schedule.mesh_of(axis).size(axis)}, 1)")
        first.append(f"{count} = length({shares}[{regions.place(axis)}])")
    first += [
        f"{name} = by_tokens({of}, {n}, {copies})"
        for (of, n, copies), name in sorted(regions.ranges.items(), key=lambda item: item[0][1:])
    ]
    own, may = "Each rank brings its own tokens.", "The number of tokens may differ between ranks, and be 0."
    if regions.schedule.same_tokens:
        own = may = "Ranks that share tokens (SAME_TOKENS) bring the same."
    return {
        "class_doc": f"{graph.name}: {shapes} -> {outs}. {own}",
        "forward_head": call("def forward", ["self", *(f"{name}: Tensor" for name in inputs)], _arrow(graph), 4),
        "forward_doc": f"{shapes} -> {outs}. {may}",
        "first_lines": first,
        "result_type": "Tensor" if len(graph.results) == 1 else f"tuple[{', '.join(['Tensor'] * len(graph.results))}]",
        "results": ", ".join(map(regions.variable, graph.results)),
    }


def _expect(name: str, type: Tensor, base: DType) -> list[str]:
    """A line that refuses what is not such an input."""
    width = math.prod(dim.scale for dim in type.shape[1:])
    return call("expect", [string(name), name, str(width), dtype_text(type.dtype, base, "self.dtype")])


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
        "reference_head": call("def reference", parameters, _arrow(graph)),
        "reference_lines": reference.lines(),
        "reference_call": ", ".join(call_args),
    }


def _arrow(graph: Graph) -> str:
    """The end of the head of a function that returns the results."""
    if len(graph.results) == 1:
        return " -> Tensor:"
    return f" -> tuple[{', '.join(['Tensor'] * len(graph.results))}]:"


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
