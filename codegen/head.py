"""Head: what stands above the code: what the program is, how to start and use it, its weights and inputs."""

from __future__ import annotations

import math
from typing import Any

from epsc.codegen.lines import Arg, call
from epsc.codegen.memory import TORCH_DTYPES, base_dtype, dtype_text
from epsc.codegen.names import string
from epsc.ir.attrs import CallAttrs, RowsAttrs
from epsc.ir.dims import Tensor
from epsc.ir.graph import Graph
from epsc.ir.scales import param_scales
from epsc.ir.schedule import Schedule
from epsc.machine.totals import offloaded


def docstring(
    schedule: Schedule,
    name: str,
    file_name: str,
    cls: str,
    values: list[str],
    load: tuple[int, int],
    given: dict[str, int],
    several: bool,
) -> dict[str, Any]:
    """The pieces of the docstring of the file, which is scheduled as `name`; `values` are the inputs as `forward` calls
    them, `given` the modules that it is to be given, with the columns that they make; `several`: plans."""
    graph = schedule.graph
    run = f"torchrun --nproc-per-node {schedule.ranks} {file_name}.py"
    told = [
        ("--check", "compare with a plain reference, in this file"),
        (f"--bench --tokens {load[1]}", "how long a forward pass takes"),
        ("--trace trace.json", "what ran when; open it in ui.perfetto.dev"),
    ]
    width = max(len(option) for option, _ in told)
    shapes = " and ".join(shape_text(graph.types[value]) for value in graph.inputs)
    return {
        "title": f"{graph.name}, scheduled as {name}{' by load' if several else ''}, for {_whose(schedule)}.",
        "commands": [f"{run} {option:<{width}}  # {what}" for option, what in told],
        "usage": [
            *_given_lines(graph, given),
            f'layer = {cls}(group, device="cuda", given=given)  # on every rank of the group at the same time'
            if given
            else f'layer = {cls}(group, device="cuda")  # on every rank of the group at the same time',
            'layer.load("weights.safetensors")  # or a state dict',
            f"y = layer({', '.join(values)})  # {shapes}",
            *([f"y = layer({', '.join(values)}, most=n)  # n: tokens of the rank that has most"] if several else []),
        ],
    }


def _given_lines(graph: Graph, given: dict[str, int]) -> list[str]:
    """How the modules that the program is given are called."""
    if not given:
        return []
    shapes: dict[str, str] = {}
    for node in graph.nodes:
        if isinstance(node.attrs, CallAttrs):
            shapes[node.attrs.module] = " and ".join(shape_text(graph.types[value]) for value in node.ins)
    lines = [f"    {string(name)}: ...,  # {shapes[name]} -> [tokens, {width}]" for name, width in given.items()]
    return ["given = {", *lines, "}"]


def _whose(schedule: Schedule) -> str:
    """The ranks of a plan."""
    if not schedule.meshes:
        return f"{schedule.ep} ranks that share the experts"
    return f"{schedule.ranks} ranks: {' and '.join(str(mesh).removeprefix('mesh ') for mesh in schedule.meshes)}"


def input_lines(schedule: Schedule) -> list[str]:
    """A table of the inputs, to make some up."""
    lines = ["INPUTS: dict[str, tuple[int, torch.dtype | None, int]] = {"]
    base = base_dtype(schedule)
    for value in schedule.graph.inputs:
        type = schedule.graph.types[value]
        width = math.prod(dim.scale for dim in type.shape[1:])
        experts = _experts_named(schedule.graph, value)
        lines.append(f"    {string(value)}: ({width}, {dtype_text(type.dtype, base, 'None')}, {experts}),")
    return [*lines, "}  # columns; dtype, if not the layer's; experts that the numbers name, if they do"]


def weight_lines(schedule: Schedule, attributes: dict[str, str]) -> list[str]:
    """A table of the weights: parameter -> attribute, shape and so on."""
    graph, base = schedule.graph, base_dtype(schedule)
    scales, away = param_scales(graph), offloaded(graph)
    lines = ["WEIGHTS: dict[str, Weight] = {"]
    for param in graph.params:
        shape = tuple(dim.scale for dim in param.type.shape)
        args: list[Arg] = [string(attributes[param.name]), repr(shape), repr(scales[param.name])]
        if param.sharded:
            args.append("sharded=True")
        if param.etp > 1:
            args.append(f"cut=({param.dim}, {param.parts})")
        if param.name in away:
            args.append("offloaded=True")
        if param.type.dtype is not base:
            args.append(f"dtype={TORCH_DTYPES[param.type.dtype]}")
        lines += call(f"{string(param.name)}: Weight", args, ",", 4)
    return [*lines, "}"]


def declared_lines(schedule: Schedule, attributes: dict[str, str]) -> list[str]:
    """The weights as attributes of the class, with the shapes that one rank holds."""
    lines = []
    for param in schedule.graph.params:
        first, *rest = (dim.scale for dim in param.local.shape)
        shape = [first // schedule.ep if param.sharded else first, *rest]
        whose = f" of {first} experts" if param.sharded else ""
        lines.append(f"{attributes[param.name]}: Tensor  # {shape}{whose}")
    return lines


def shape_text(type: Tensor) -> str:
    """`[tokens, 64]`."""
    return f"[{', '.join(map(str, type.shape))}]"


def _experts_named(graph: Graph, value: str) -> int:
    """How many experts a layout of this input chooses among; 0 if none reads it."""
    readers = (node for node in graph.users[value] if node.kind == "layout")
    return next((node.attrs.among or node.attrs.experts for node in readers if isinstance(node.attrs, RowsAttrs)), 0)
