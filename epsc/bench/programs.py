"""Compile what a comparison needs into a folder: programs, and a manifest that says what they and their layer are.

A machine that runs them needs neither the compiler nor its dependencies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from epsc import driver
from epsc.bench.shape import Router, Shape
from epsc.ir.attrs import Act, ActAttrs, CallAttrs, Choose, ExpertGemmAttrs, GemmAttrs, RouteAttrs
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import Graph, Node
from epsc.ir.kinds import Role
from epsc.ir.source import Source


@dataclass(frozen=True)
class Wanted:
    """One contender: a schedule of the file, and what to define besides. Written `NAME` or `NAME:LET=NUMBER,...`."""

    name: str
    schedule: str
    defines: dict[str, str]

    @staticmethod
    def parse(text: str) -> Wanted:
        found = re.fullmatch(r"(\w+)(?::(\w+=\d+(?:,\w+=\d+)*))?", text)
        if not found:
            raise EpsError(Diagnostic("bad-schedule", f"`{text}` does not read NAME or NAME:LET=NUMBER,..."))
        defines = dict(piece.split("=") for piece in found[2].split(",")) if found[2] else {}
        return Wanted(text, found[1], defines)


def compile_all(
    source: Source,
    options: driver.Options,
    wanted: Iterable[Wanted] | None,
    eps: Iterable[int],
    folder: Path,
    refused: Callable[[str, EpsError], None],
) -> list[dict[str, Any]]:
    """Write the programs and their manifest; what it says of each program.

    `wanted`: None for every schedule that is one plan, as it is written. `refused` is told of those that cannot be had.
    """
    programs: list[dict[str, Any]] = []
    head: dict[str, Any] | None = None
    for ep in eps:
        given = replace(options, defines={**options.defines, "ep": str(ep)})
        layer = driver.understand(source, given)
        if layer.cluster.mesh.etp > 1:
            message = f"what is measured has each expert on one rank, and the file says etp = {layer.cluster.mesh.etp}"
            raise EpsError(Diagnostic("mesh", message, help="-D etp=1"))
        head = head or _head(layer.said)
        named = wanted or [Wanted.parse(decl.name) for decl in layer.schedules if not (decl.auto or decl.by_load)]
        for each in named:
            try:
                own = driver.understand(source, replace(given, defines={**given.defines, **each.defines}))
                if _head(own.said) != head:
                    what = f"`{each.name}` is another layer than the others: only a schedule can vary"
                    raise EpsError(Diagnostic("other-layer", what))
                plan = driver.plan(own, each.schedule)
                program = driver.write(plan)
            except EpsError as error:
                refused(each.name, error)
                continue
            programs.append(_entry(folder, head["layer"], each.name, plan, program.text, each.defines))
    manifest = {**(head or {}), "source": Path(source.name).name, "defines": options.defines, "programs": programs}
    driver.save(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return programs


def write_plans(plans: Mapping[str, driver.Plan], folder: Path) -> None:
    """Programs of plans of one layer, by name, and their manifest. Raises EpsError for what no benchmark can run."""
    first = next(iter(plans.values()))
    head = _head(first.layer.said)
    made = [
        _entry(folder, head["layer"], name, plan, driver.write(plan).text, plan.layer.options.defines)
        for name, plan in plans.items()
    ]
    manifest = {**head, "source": Path(first.layer.source.name).name, "defines": {}, "programs": made}
    driver.save(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def _entry(
    folder: Path, layer: str, name: str, plan: driver.Plan, text: str, defines: dict[str, str]
) -> dict[str, Any]:
    """Write one program; what the manifest says of it."""
    ep = plan.schedule.ep
    file = f"{layer}_{re.sub(r'[^a-z0-9]+', '_', name.lower())}_ep{ep}.py"
    driver.save(folder / file, text)
    return {
        "name": name,
        "ep": ep,
        "file": file,
        "schedule": plan.schedule.name,
        "defines": defines,
        "lines": len(text.splitlines()),
        "steps": len(plan.schedule.steps),
        "transfers": [s.key for s in plan.schedule.steps if plan.schedule.node(s).info.role is Role.TRANSFER],
    }


def _head(graph: Graph) -> dict[str, Any]:
    """What the layer is. Raises EpsError for layers whose load no benchmark can set."""
    routes = [node for node in graph.nodes if isinstance(node.attrs, RouteAttrs)]
    if len(routes) != 1 or len(graph.inputs) != 1:
        what = f"`{graph.name}` has {len(routes)} routers and {len(graph.inputs)} inputs"
        raise EpsError(Diagnostic("no-bench", f"{what}: a benchmark sets the load of one router by one input"))
    if calls := [node.attrs.module for node in graph.nodes if isinstance(node.attrs, CallAttrs)]:
        message = f"`{graph.name}` calls `{calls[0]}`, a module that a benchmark does not have"
        raise EpsError(Diagnostic("no-bench", message, help="measure the layer of its experts alone: `--layer NAME`"))
    (route,) = routes
    if isinstance(route.attrs, RouteAttrs) and route.attrs.threshold > 0:
        what = f"`{graph.name}` keeps what is above a threshold"
        raise EpsError(Diagnostic("no-bench", f"{what}: a benchmark sets how many experts a token goes to"))
    hidden = graph.types[graph.inputs[0]].shape[1].scale
    shape, unlike = shape_of(graph, route, hidden)
    return {
        "layer": graph.name,
        "hidden": hidden,
        "router": asdict(_router(route)),
        "shape": asdict(shape) if shape else None,
        "unlike": unlike,
    }


def _router(node: Node) -> Router:
    route = node.attrs
    assert isinstance(route, RouteAttrs)
    return Router(
        route.experts,
        route.top_k,
        str(route.score),
        str(route.choose),
        route.choice_bias,
        route.bias,
        route.groups,
        route.top_groups,
        str(route.group_by),
        node.name,
    )


def shape_of(graph: Graph, node: Node, hidden: int) -> tuple[Shape | None, str]:
    """The layer as those by hand know it; None, and why, for one that they do not."""
    route = node.attrs
    assert isinstance(route, RouteAttrs)
    by_logit = route.choose is Choose.BY_LOGIT
    # Softmax over the chosen is softmax over all, divided by the sum of the chosen.
    if route.bias or not route.weighted or (by_logit and (route.score != "softmax" or route.choice_bias)):
        return None, "they do not know this router"
    if any(n.kind == "activation" and n.attrs != ActAttrs(Act.SWIGLU) for n in graph.nodes):
        return None, "they know plain SwiGLU only"
    if any(
        isinstance(n.attrs, GemmAttrs | ExpertGemmAttrs) and (n.attrs.bias or n.attrs.transposed) for n in graph.nodes
    ):
        return None, "they have no biases and no transposed weights"
    params = {p.name: tuple(d.scale for d in p.type.shape) for p in graph.params}
    shape = Shape(
        graph.name,
        hidden=hidden,
        width=params["down"][2] if len(params.get("down", ())) == 3 else 0,
        experts=route.experts,
        top_k=route.top_k,
        shared=params["mlp.down"][1] if "mlp.down" in params else 0,
        score=str(route.score),
        choice_bias=route.choice_bias,
        groups=route.groups,
        top_groups=route.top_groups,
        group_by=str(route.group_by),
        renorm=route.renorm or by_logit,
        scale=route.scale,
    )
    if {name: weight.shape for name, weight in shape.weights.items()} != params:
        return None, f"they have the weights {', '.join(shape.weights)}, it has {', '.join(params)}"
    return shape, ""
