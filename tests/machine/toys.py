"""Schedules of a few steps whose times are given, to work timelines out by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from epsc.ir.attrs import Attrs, Direction, ExpertGemmPutAttrs, GemmAttrs, NoAttrs, RowsAttrs, TransferAttrs
from epsc.ir.dims import TOKENS, Dim, DType, Tensor
from epsc.ir.graph import Graph, Node
from epsc.ir.impls import Choice
from epsc.ir.kinds import Role
from epsc.ir.schedule import Hazard, Lane, Ref, Schedule, Stage, Step, Wait
from epsc.machine.cluster import DEVICES, Cluster, Mesh
from epsc.machine.simulate import simulate
from epsc.machine.tables import Beside
from epsc.machine.timeline import Timeline

_ATTRS: dict[str, Attrs] = {
    "gemm": GemmAttrs(8),
    "all2all": TransferAttrs(Direction.DISPATCH, 8, 2),
    "sizes": RowsAttrs(8, 2),
    "add": NoAttrs(),
    "expert_gemm_put": ExpertGemmPutAttrs(8, 8, top_k=2),
}
_IMPLS = {"gemm": "torch", "add": "torch", "all2all": "nccl", "sizes": "pinned", "expert_gemm_put": "direct"}


@dataclass(frozen=True)
class Toy:
    """A step: `a` on lane `comp` that takes `seconds`, on `sms` SMs, after `waits`."""

    name: str
    kind: str
    lane: str
    seconds: float
    sms: int = 0
    waits: tuple[str, ...] = ()
    impl: str = ""


def schedule(*toys: Toy, urgent: tuple[str, ...] = ()) -> Schedule:
    """A schedule of these steps, at Stage.SYNCED, on a chip of 132 SMs."""
    rows = Tensor(DType.BF16, (TOKENS, Dim(8)))
    nodes = tuple(Node(t.name, t.kind, (), (t.name,), _ATTRS[t.kind], origin=t.name) for t in toys)
    graph = Graph("toy", (), {t.name: rows for t in toys}, (), nodes, ())
    steps = tuple(
        Step(
            t.name,
            Choice(t.impl or _IMPLS[t.kind]),
            (),
            (Ref(t.name),),
            lane=t.lane,
            comm="ep" if t.kind == "all2all" else "",
            sms=t.sms,
            waits=tuple(Wait(w, w, Hazard.RAW) for w in t.waits),
        )
        for t in toys
    )
    lanes = tuple(Lane(name, Role.COMPUTE, -1 if name in urgent else 0) for name in dict.fromkeys(t.lane for t in toys))
    return Schedule("toy", graph, 2, 132, Stage.SYNCED, steps, lanes=lanes)


def cluster(launch_s: float = 0, event_s: float = 0, besides: tuple[Beside, ...] = (), hbm: float = 1e30) -> Cluster:
    """Two GPUs on which nothing takes time but the steps themselves; memory of `hbm` bytes/s, if it is to count."""
    device = replace(
        DEVICES["h200"],
        launch_s=launch_s,
        event_s=event_s,
        besides=besides,
        hbm_bytes_per_s=hbm,
        transfer_floor_s=0,
        step_s=0,
        tables=(),
    )
    return Cluster("toy", device, 2, 1, Mesh(ep=2))


def run(
    *toys: Toy,
    urgent: tuple[str, ...] = (),
    launch_s: float = 0,
    event_s: float = 0,
    besides: tuple[Beside, ...] = (),
    hbm: float = 1e30,
) -> Timeline:
    seconds = {t.name: t.seconds for t in toys}
    return simulate(
        schedule(*toys, urgent=urgent),
        cluster(launch_s, event_s, besides, hbm),
        64,
        lambda _s, step, _c, _l: seconds[step.key],
    )


def hides(share: float) -> tuple[Beside, ...]:
    """NCCL beside any product hides this share of the shorter."""
    return (Beside("nccl", "*", ((132.0, share),), "made up", False),)


def spans(timeline: Timeline) -> dict[str, tuple[float, float]]:
    return {event.step: (event.start, event.end) for event in timeline.events}
