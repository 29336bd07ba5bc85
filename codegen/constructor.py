"""Constructor: what a module makes once: lanes, communicators, layouts, and the modules that it is given."""

from __future__ import annotations

from typing import Any

from epsc.codegen.lines import Arg, Listing, assign, call
from epsc.codegen.names import string
from epsc.codegen.one_sided import made_once
from epsc.codegen.regions import Regions, refuse
from epsc.codegen.writer import Scope
from epsc.ir.attrs import CallAttrs, CollectiveAttrs, RowsAttrs, TransferAttrs
from epsc.ir.dims import Axis
from epsc.ir.graph import Graph
from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule


def constructor(schedule: Schedule, regions: Regions, scope: Scope, several: bool) -> dict[str, Any]:
    """Lines for the `__init__` of what runs a plan (indented by 8)."""
    return {
        "init_lanes": [
            *_by_device(scope),
            *_lanes(schedule, scope),
            *_comms(schedule),
            *made_once(schedule, scope.slots, several),
        ],
        "init_layouts": [line for dispatch in scope.layouts for line in _layout(regions, scope, dispatch)],
    }


def made_by(graph: Graph, cls: str) -> dict[str, Any]:
    """What the `__init__` of the layer takes besides, and lines for `main`, which calls it."""
    given = given_modules(graph)
    return {
        "init_parameters": ["given: Mapping[str, Callable[..., Tensor]] | None = None,"] if given else [],
        "make_layer": call(
            f"layer = {cls}", ["device=device", "dtype=dtype", "timeout=timeout", *_stand_ins(given)], "", 8
        ),
    }


def given_modules(graph: Graph) -> dict[str, int]:
    """The modules that epsc does not look into, and how many columns each makes."""
    calls = [(node, node.attrs) for node in graph.nodes if isinstance(node.attrs, CallAttrs)]
    return {attrs.module: graph.types[node.outs[0]].shape[1].scale for node, attrs in calls}


def two_level(schedule: Schedule) -> tuple[int, int] | None:
    """Nodes, and ranks of each, where some rows go within nodes and then between them; else nothing."""
    if not any("two_level" in step.impl.names for step in schedule.steps):
        return None
    mesh = schedule.mesh_of("inter")
    return mesh.size("inter"), mesh.size("intra")


def _by_device(scope: Scope) -> list[str]:
    """What the device alone decides."""
    lines = [line for text, name in scope.by_device.items() for line in assign(f"self.{name}", text, 8)]
    return ["        # What this device runs, whatever the load.", *lines] if lines else []


def _lanes(schedule: Schedule, scope: Scope) -> list[str]:
    lines = []
    for lane in schedule.lanes:
        args: list[Arg] = [string(lane.name), "self.run"]
        if lane.name != "compute" and lane.role is not Role.HOST:
            args.append(f"priority={lane.priority}")
        cls = "Host" if lane.role is Role.HOST else "Lane"
        lines += call(f"self.{scope.lanes[lane.name]} = {cls}", args, "", 8)
    return lines


def _comms(schedule: Schedule) -> list[str]:
    sms: dict[str, int] = {}
    axes: dict[str, str] = {}
    for step in schedule.steps:
        if step.comm:
            sms[step.comm] = max(sms.get(step.comm, 0), step.sms)
            attrs = schedule.node(step).attrs
            assert isinstance(attrs, TransferAttrs | CollectiveAttrs)
            axes[step.comm] = attrs.mesh
    if not sms:
        return []
    items = tuple(f"{string(name)}: {count}" for name, count in sms.items())
    if schedule.meshes:
        for comm in {step.comm: None for step in schedule.steps if "two_level" in step.impl.names}:
            # Two of its own, in whose names no lane's can end.
            axes |= {f"{comm}.{axis}": axis for axis in ("intra", "inter")}
            sms |= {f"{comm}.{axis}": sms[comm] for axis in ("intra", "inter")}
        over = {name: (schedule.mesh_of(axis), axis) for name, axis in axes.items()}
        items = tuple(
            f"{string(name)}: ({sms[name]}, {mesh.stride(axis)}, {mesh.size(axis)})"
            for name, (mesh, axis) in over.items()
        )
    return call("self.transport = Transport", ["self.run", "group", Listing("", items, "{}"), "timeout"], "", 8)


def _gathered(regions: Regions, scope: Scope, combine: str, axis: str) -> list[str]:
    """Where rows lie that ranks with the same tokens gather: as they came home, by the layout of their dispatch."""
    schedule, graph = regions.schedule, regions.graph
    sent = scope.layouts[regions.dispatch(graph.maker[graph.node[f"{combine}.gather"].ins[0]])]
    (pieces,) = regions.cuts.get(combine, {1})
    mesh, experts = schedule.mesh_of(axis), schedule.mesh_of("ep")
    apart = mesh.stride(axis)
    first = f"self.rank - {regions.place(axis)}{f' * {apart}' if apart > 1 else ''}"
    ranks = f"range({first}, {first} + {mesh.size(axis) * apart}, {apart})"
    own = f"[rank // {experts.stride('ep')} % EP for rank in {ranks}]"
    return call(f"self.{scope.layouts[combine]} = Gathered", [f"self.{sent}", str(pieces), own], "", 8)


def _layout(regions: Regions, scope: Scope, dispatch: str) -> list[str]:
    shares = regions.shares_of(dispatch)
    if shares is not None and isinstance(shares.attrs, RowsAttrs):
        return _gathered(regions, scope, dispatch, shares.attrs.over)
    layout = regions.layout(dispatch)
    local = regions.experts(dispatch) // regions.schedule.ep
    cuts = sorted(regions.cuts.get(dispatch, set()) | {layout.count})
    if layout.axis is Axis.PEER:
        if not set(cuts) <= {1, regions.schedule.ep}:
            raise refuse(f"rows of `{dispatch}` lie by rank, but an op cuts them otherwise")
        return call(f"self.{scope.layouts[dispatch]} = ByPeer", [str(local), "self.rank", "self.device"], "", 8)
    if layout.axis is Axis.TOKENS and cuts != [layout.count]:
        raise refuse(f"rows of `{dispatch}` lie in {layout.count} pieces of the tokens, but an op cuts them otherwise")
    cls = "ByToken" if layout.axis is Axis.TOKENS else "ByExpert"
    args = [str(local), str(layout.count), str(tuple(cuts)), "self.device"]
    attrs = regions.graph.node[f"{dispatch}.layout"].attrs
    if isinstance(attrs, RowsAttrs) and attrs.first:
        args.append(f"first={attrs.first}")
    if regions.stays(dispatch):
        cls, args = "Local", [*args, "self.rank"]
    elif regions.schedule.mesh_of("etp").size("etp") > 1:
        args.append(regions.place("etp"))
    return call(f"self.{scope.layouts[dispatch]} = {cls}", args, "", 8)


def _stand_ins(given: dict[str, int]) -> list[str]:
    """Modules to try the program with, where it needs some."""
    return ["given={name: stand_in(name) for name in GIVEN}"] if given else []
