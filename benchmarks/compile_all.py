"""Compile every program that the benchmark compares: `python -m benchmarks.compile_all -o build/gpu --ep 1 2`.

Writes `NAME_epN.py` for each contender, and `manifest.json`, which says what they are and what the layer is. The
machine that runs them needs neither the compiler nor its dependencies: only torch, this folder and that one.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.handwritten import Shape
from epsc import driver
from epsc.ir.attrs import Act, ActAttrs, Choose, ExpertGemmAttrs, GemmAttrs, RouteAttrs
from epsc.ir.errors import EpsError
from epsc.ir.graph import Graph

CONTENDERS: dict[str, tuple[str, dict[str, str]]] = {
    "serial": ("serial", {}),
    **{f"eps{n}": ("eps", {"groups": str(n)}) for n in (2, 4, 5, 8)},
    "capacity": ("capacity", {}),
}
"""Name -> schedule of the file, and what to define besides."""


def shape_of(graph: Graph) -> Shape:
    """The layer as the hand-written one knows it. Raises ValueError for layers that it does not know."""
    routes = [n for n in graph.nodes if n.kind == "route"]
    acts = [n.attrs for n in graph.nodes if n.kind == "activation"]
    if len(routes) != 1 or any(a != ActAttrs(Act.SWIGLU) for a in acts):
        raise ValueError(f"{graph.name}: the hand-written layer has one router, and plain SwiGLU")
    route = routes[0].attrs
    assert isinstance(route, RouteAttrs)
    if route.bias or (route.choose is Choose.BY_LOGIT and not _same_by_score(route)):
        raise ValueError(f"{graph.name}: the hand-written layer does not know this router")
    params = {p.name: tuple(d.scale for d in p.type.shape) for p in graph.params}
    hidden = graph.types[graph.inputs[0]].shape[1].scale
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
        renorm=route.renorm or route.choose is Choose.BY_LOGIT,
        scale=route.scale,
    )
    if {name: size for name, (size, _) in shape.weights.items()} != params:
        raise ValueError(f"{graph.name}: its weights are {params}, the hand-written layer's are {shape.weights}")
    for node in graph.nodes:
        if isinstance(node.attrs, GemmAttrs | ExpertGemmAttrs) and (node.attrs.bias or node.attrs.transposed):
            raise ValueError(f"{graph.name}: the hand-written layer has no biases and no transposed weights")
    return shape


def _same_by_score(route: RouteAttrs) -> bool:
    """Softmax over the chosen is softmax over all, divided by the sum of the chosen."""
    return route.score == "softmax" and not route.choice_bias


def compile_all(file: Path, out: Path, eps: list[int], names: list[str], defines: dict[str, str]) -> int:
    """How many programs were refused. A refusal is printed, and the rest still compiled."""
    out.mkdir(parents=True, exist_ok=True)
    source = driver.read(file)
    shape: Shape | None = None
    programs = []
    refused = 0
    for ep in eps:
        for name in names:
            schedule, more = CONTENDERS.get(name, (name, {}))
            options = driver.Options(defines={**defines, **more, "ep": str(ep)})
            try:
                layer = driver.understand(source, options)
                shape = shape or shape_of(layer.said)
                plan = driver.plan(layer, schedule)
                program = driver.write(plan)
            except EpsError as error:
                refused += 1
                print(f"{name}, ep = {ep}: refused\n{error}", file=sys.stderr)
                continue
            path = out / f"{shape.name}_{name}_ep{ep}.py"
            path.write_text(program.text, encoding="utf-8")
            programs.append({"name": name, "ep": ep, "file": path.name, "schedule": schedule, "defines": more})
            print(f"{path}: {len(program.text.splitlines())} lines, {len(plan.schedule.steps)} steps")
    if shape:
        manifest = {"layer": asdict(shape), "source": file.name, "defines": defines, "programs": programs}
        (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=Path("examples/deepseek_v2.eps"))
    parser.add_argument("-o", "--output", type=Path, default=Path("build/gpu"))
    parser.add_argument("--ep", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), help="contenders, or schedules of the file")
    parser.add_argument("-D", "--define", action="append", default=[], metavar="NAME=NUMBER")
    given = parser.parse_args()
    defines = dict(text.split("=", 1) for text in given.define)
    sys.exit(1 if compile_all(given.file, given.output, given.ep, given.only, defines) else 0)


if __name__ == "__main__":
    main()
