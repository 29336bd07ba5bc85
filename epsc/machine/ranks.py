"""Simulate ranks that are not alike: experts of one are chosen more often than those of another.

Every rank runs the same steps, each at the pace of its own rows; what they wait for is what makes them one: a
collective moves nothing before all its ranks have come, and a signal is waited for on all of them. Ranks that no step
can tell apart are simulated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from epsc.ir.attrs import CollectiveAttrs, TransferAttrs
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.mesh import DeviceMesh
from epsc.ir.schedule import Schedule
from epsc.machine.cluster import Cluster
from epsc.machine.jobs import Meeting
from epsc.machine.simulate import Run
from epsc.machine.timeline import Timeline


def skewed(ep: int, skew: float) -> tuple[float, ...]:
    """The share of rows of each rank of ep, over the mean: rank 0 has `skew`, the others what is left, evenly."""
    if not 1 <= skew <= ep:  # nor what is no number
        raise EpsError(
            Diagnostic(
                "bad-skew",
                f"no rank of {ep} can have {skew:g} times the mean of the rows",
                help=f"all of them are {ep} times the mean" if ep > 1 else "there is one rank, which has all of them",
            )
        )
    return (skew, *((ep - skew) / (ep - 1) for _ in range(ep - 1)))


def simulate_ranks(
    schedule: Schedule, cluster: Cluster, load: int, shares: Sequence[float], graph: bool = False
) -> tuple[Timeline, ...]:
    """A timeline of each kind of rank, the one with most rows first, at `load` tokens per rank.

    `shares`: rows that come to each rank of ep, over their mean. Where all ranks are alike, it is one timeline of all.
    """
    mesh = schedule.mesh_of("ep")
    of_rank = [shares[rank // mesh.stride("ep") % mesh.size("ep")] for rank in range(mesh.ranks)]
    kinds = _kinds(schedule, of_rank)
    if len(set(kinds)) == 1:
        return (Run(schedule, cluster, load, None, graph).timeline(),)
    ranks = {kind: [rank for rank, its in enumerate(kinds) if its == kind] for kind in dict.fromkeys(kinds)}
    runs = {
        kind: Run(schedule, cluster, load, None, graph, share=of_rank[alike[0]])
        for kind, alike in sorted(ranks.items(), key=lambda each: (-of_rank[each[1][0]], each[1]))
    }
    _together(list(runs.values()), _meetings(schedule, runs, kinds))
    return tuple(replace(run.result(), ranks=tuple(ranks[kind]), share=run.share) for kind, run in runs.items())


def _kinds(schedule: Schedule, shares: Sequence[float]) -> list[int]:
    """The kind of each rank. Those of one kind have as many rows, and on each axis meet ranks of the same kinds."""
    kinds = [list(dict.fromkeys(shares)).index(share) for share in shares]
    groups = [group for mesh in _meshes(schedule) for axis, _ in mesh.axes for group in mesh.groups(axis)]
    while True:
        met: list[list[object]] = [[kind] for kind in kinds]
        for group in groups:
            for rank in group:
                met[rank].append(tuple(sorted(kinds[other] for other in group)))
        told = [tuple(each) for each in met]
        finer = [list(dict.fromkeys(told)).index(each) for each in told]
        if len(set(finer)) == len(set(kinds)):
            return kinds
        kinds = finer


def _meshes(schedule: Schedule) -> tuple[DeviceMesh, ...]:
    return schedule.meshes or (schedule.mesh_of("ep"),)


def _meetings(schedule: Schedule, runs: dict[int, Run], kinds: list[int]) -> list[Meeting]:
    """Let every run know which others it meets in which step."""
    found: dict[tuple[str, frozenset[int]], Meeting] = {}
    for step in schedule.steps:
        node = schedule.node(step)
        if node.info.collective:
            assert isinstance(node.attrs, TransferAttrs | CollectiveAttrs)
            for group in schedule.mesh_of(node.attrs.mesh).groups(node.attrs.mesh):
                here = frozenset(kinds[rank] for rank in group)
                meeting = found.setdefault((step.key, here), Meeting(len(here)))
                for kind in here if len(here) > 1 else ():
                    runs[kind].jobs[step.key].meeting = meeting
    for run in runs.values():
        run.others = [other for other in runs.values() if other is not run]
    return list(found.values())


def _together(runs: list[Run], meetings: list[Meeting]) -> None:
    """Run them beside each other until nothing happens on any of them."""
    going = [run.go() for run in runs]
    wanted = [next(each) for each in going]
    while (now := min(wanted)) < inf:
        for meeting in meetings:
            meeting.begin(now)
        wanted = [each.send(now) for each in going]
        # Who came and waits gives something back, which others may take at once.
        if min(wanted) > now and sum(meeting.settle() for meeting in meetings):
            wanted = [now]
