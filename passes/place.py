"""place: which lane each step runs on, over which communicator, on how many SMs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from epsc.ir.attrs import CollectiveAttrs, TransferAttrs
from epsc.ir.graph import Node
from epsc.ir.kinds import Role
from epsc.ir.schedule import HOST_LANE, Lane, Schedule, Stage, Step
from epsc.passes.wishes import Context

COMPUTE_LANE = "compute"
HOST_LINK_LANE = "host_link"


@dataclass(frozen=True)
class Place:
    """Put steps on lanes.

    Everything runs on `compute`, but: host steps on `host`; weights from the host on `host_link`; transfers that the
    schedule splits, runs beside something or reserves SMs for, on lanes of their own (`dispatch`, `combine`; one
    `transfer` lane for two that share SMs); and what a `run .. on` names, where it says. Each lane that transfers has a
    communicator of its own name.

    Where SMs are reserved, GEMMs are limited to the rest, so that the two do not queue for the chip; GEMMs on several
    lanes share that rest evenly, because they may meet.
    """

    name: ClassVar[str] = "place"

    overlap: bool = True
    """False: one lane for everything, as `overlap none` says."""

    def __call__(self, schedule: Schedule, context: Context) -> Schedule:
        graph, wishes = schedule.graph, context.wishes
        lane_of: dict[str, str] = {}
        if self.overlap and wishes.overlap:
            freed = set(wishes.splits)
            freed |= {name for beside in wishes.besides for name in (*beside.these, *beside.others)}
            origins = {graph.node[name].origin for name in freed}
            for node in graph.nodes:
                # What a rank tells the others is short, and waited for at once.
                if (
                    node.info.role is Role.TRANSFER
                    and node.origin in origins
                    and not (node.kind == "tell" or node.info.from_host)
                ):
                    lane_of[node.name] = _own_lane(node)
            for partition in wishes.partitions:
                directions = {_own_lane(graph.node[name]) for name in partition.nodes}
                lane = directions.pop() if len(directions) == 1 else "transfer"
                lane_of |= dict.fromkeys(partition.nodes, lane)
            for beside in wishes.besides:
                # Two things of the compute lane can only overlap on two streams.
                if not any(name in lane_of for name in (*beside.these, *beside.others)):
                    lane_of |= {name: "side" for name in beside.these if graph.node[name].info.role is not Role.HOST}
            lane_of |= {node.name: HOST_LINK_LANE for node in graph.nodes if node.info.from_host}
            lane_of |= wishes.lanes
        sms_of = {name: partition.sms for partition in wishes.partitions for name in partition.nodes}
        gemm_lanes = {lane_of.get(n.name, COMPUTE_LANE) for n in graph.nodes if n.info.role is Role.COMPUTE}
        free = schedule.chip_sms - sum(partition.sms for partition in wishes.partitions)
        left = max(1, free // max(1, len(gemm_lanes)))

        def placed(step: Step) -> Step:
            node = graph.node[step.node]
            lane = HOST_LANE if node.info.role is Role.HOST else lane_of.get(node.name, COMPUTE_LANE)
            collective = node.info.collective
            comm = _comm(node, lane) if collective else ""
            sms = 0
            if sms_of and lane_of:
                sms = sms_of.get(node.name, left if node.info.role is Role.COMPUTE else 0)
            return replace(step, lane=lane, comm=comm, sms=sms)

        steps = tuple(map(placed, schedule.steps))
        names = dict.fromkeys([COMPUTE_LANE, *(step.lane for step in steps)])
        transfers = {step.lane for step in steps if graph.node[step.node].info.role is Role.TRANSFER}
        lanes = tuple(
            Lane(name, Role.HOST, 0)
            if name == HOST_LANE
            # Transfers first: behind a GEMM that fills the chip, one would wait for a whole wave.
            else (Lane(name, Role.TRANSFER, -1) if name in transfers - {COMPUTE_LANE} else Lane(name, Role.COMPUTE, 0))
            for name in names
        )
        befores = tuple(pair for before in wishes.befores for pair in before.pairs)
        return replace(schedule, stage=Stage.PLACED, steps=steps, lanes=lanes, order=befores)


def _own_lane(node: Node) -> str:
    """Where a transfer goes that is to have a lane of its own."""
    if isinstance(node.attrs, CollectiveAttrs):
        return "collective"
    assert isinstance(node.attrs, TransferAttrs)
    return node.attrs.direction.value


def _comm(node: Node, lane: str) -> str:
    """A communicator has the ranks of one mesh axis, and the transfers of one lane."""
    assert isinstance(node.attrs, TransferAttrs | CollectiveAttrs)
    axis = node.attrs.mesh
    if lane == COMPUTE_LANE:
        return axis
    return lane if axis == "ep" else f"{lane}_{axis}"
