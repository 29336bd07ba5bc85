"""How long a step takes alone: its roofline times the ratio that its implementation was measured at (`roofline`).

Nothing here knows an op kind by name: what a step is bound by and occupies stands in the table of implementations, and
what it was measured at in the device's profile. Routing is taken to be balanced, but for the `share` of a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from epsc.ir.attrs import CallAttrs
from epsc.ir.impls import Bound, Impl, Resource, impls_of
from epsc.ir.kinds import KINDS, Role
from epsc.ir.schedule import Schedule, Step
from epsc.machine.balanced import group_experts, region
from epsc.machine.cluster import Cluster, Device
from epsc.machine.roofline import PACKED, floor_of, latency, least, ratio, rows_pass
from epsc.machine.work import Work, matrix, of_arrived, picked, work

Costs = Callable[[Schedule, Step, Cluster, int], float]
"""Seconds of a step alone at a load in tokens per rank."""

_LOCAL_SHARE = 0.7
"""Share of the memory rate at which the rows of a transfer that stay on their rank are copied, as by index_select."""


@dataclass(frozen=True)
class Priced:
    """A step with the implementation that its choice takes, what that has to do, and how long it takes alone."""

    impl: Impl
    work: Work
    seconds: float
    floor: float = 0.0
    """Of these, what a transfer takes that moves nothing."""
    spread: float = 0.0
    """Of a one-sided transfer that keeps to some SMs: those that its programs are on if nobody else is there."""
    packed: float = 0.0
    """How long it takes if it is on as few SMs as its programs fit on."""


def price(
    schedule: Schedule, step: Step, cluster: Cluster, load: int, most: int | None = None, share: float = 1.0
) -> Priced:
    """What `step` does and takes alone, once started, when every rank has `load` tokens, of at most `most`, and to this
    one come `share` times the rows that come when routing is balanced."""
    share = share if of_arrived(schedule, step) else 1.0
    impl = picked(schedule, step, load, cluster.device.backend, share)
    done = work(schedule, step, load, cluster.device.backend, impl, most).of_rows(share)
    device, floor = cluster.device, 0.0
    if schedule.node(step).info.role is Role.TRANSFER:
        floor = floor_of(device, impl.kind, impl.name)
        if Resource.HOST_LINK not in impl.occupies:
            levels, away = reach(schedule, step, cluster, impl)
            floor = levels * floor + device.peer_s * away
    seconds = _seconds(schedule, step, cluster, impl, done)
    if not (done.turns and step.sms and device.sm_bytes_per_s):
        return Priced(impl, done, seconds, floor)
    spread = min(schedule.chip_sms, step.sms * impl.cost.sm_programs)
    packed = done.hbm_bytes / (device.sm_bytes_per_s * step.sms / PACKED)
    return Priced(impl, done, seconds, floor, spread, packed)


def cost(schedule: Schedule, step: Step, cluster: Cluster, load: int) -> float:
    """The seconds of `price`."""
    return price(schedule, step, cluster, load).seconds


def _seconds(schedule: Schedule, step: Step, cluster: Cluster, impl: Impl, done: Work) -> float:
    device = cluster.device
    role = KINDS[impl.kind].role
    if impl.cost.longest_of and (impl.kind, impl.name) not in device.table:
        others = (impls_of(kind)[name] for kind, name in impl.cost.longest_of)
        return max(_seconds(schedule, step, cluster, other, done) for other in others)
    if role is Role.HOST:
        return device.host_sync_s
    if Resource.HOST_LINK in impl.occupies:
        return device.kernel_s + done.host_bytes / (device.host_bytes_per_s * impl.cost.efficiency)
    if role is Role.TRANSFER and not done.link_bytes:
        # All of it stays on the rank (there is one, or it is the cut of peer 0): that is a copy.
        return device.kernel_s + done.hbm_bytes / (device.hbm_bytes_per_s * _LOCAL_SHARE)
    if role is Role.TRANSFER and impl.cost.bound is Bound.LATENCY:
        return latency(device, impl.kind, impl.name) + device.peer_s * reach(schedule, step, cluster, impl)[1]
    at = coordinates(schedule, step, cluster, impl, done)
    attrs = schedule.node(step).attrs
    if isinstance(attrs, CallAttrs):
        if attrs.us:
            return attrs.us.at(done.rows) / 1e6
        there = rows_pass(device, at, impl.cost.launches)
        share = min(1.0, at["sms"] / device.sms)
        return there.floor + max(there.memory, done.flops / (device.flops_bf16 * share * impl.cost.efficiency))
    there = least(device, impl, at)
    return there.floor + there.slope * ratio(device, impl, at) + besides_bytes(done) / device.hbm_bytes_per_s


def coordinates(schedule: Schedule, step: Step, cluster: Cluster, impl: Impl, done: Work) -> dict[str, float]:
    """Where a step lies in the tables (`tables.COORDINATES`) and on its roofline."""
    at: dict[str, float] = {"sms": (impl.cost.keeps_sms and step.sms) or schedule.chip_sms}
    if step.writes:
        at["element"] = region(step.writes[0], schedule).dtype.bytes
    info = KINDS[impl.kind]
    if info.role is Role.TRANSFER:
        near, ranks = group(schedule, step, cluster)
        levels, away = reach(schedule, step, cluster, impl)
        # In two levels all that is for other nodes goes to one rank of each, and the rest to the ranks of this one.
        share = 1 - near / ranks
        outside = done.link_bytes * (share / (share + 1 - 1 / near) if levels > 1 else away / max(1, ranks - 1))
        at |= {"mb": done.link_bytes / 1e6, "outside": outside / 1e6, "ranks": ranks, "away": away, "levels": levels}
        if info.one_sided and Resource.SMS in impl.occupies:
            at |= {"moved": done.hbm_bytes / 1e6, "turns": done.turns}
        return at
    at["mb"] = (done.hbm_bytes - done.padding_bytes) / 1e6
    made = matrix(schedule, step)
    if impl.cost.bound is Bound.FLOPS and made:
        # Experts that nobody chose cost nothing.
        experts = (group_experts(step, schedule) or 1) * done.chosen
        at |= {"experts": experts, "rows": done.rows / experts, "out": made[0], "in": made[1]}
    return at


def group(schedule: Schedule, step: Step, cluster: Cluster) -> tuple[int, int]:
    """How many ranks a transfer is among: those of a node, and all."""
    axis: str = getattr(schedule.node(step).attrs, "mesh", "ep")
    mesh = schedule.mesh_of(axis)
    ranks = mesh.size(axis)
    return max(1, min(ranks, cluster.node_ranks // mesh.stride(axis))), ranks


def reach(schedule: Schedule, step: Step, cluster: Cluster, impl: Impl) -> tuple[int, int]:
    """In how many levels a transfer goes, and to how many ranks of other nodes."""
    near, ranks = group(schedule, step, cluster)
    return (2, ranks // near - 1) if impl.cost.two_level else (1, ranks - near)


def besides_bytes(done: Work) -> float:
    """What launches beside the one that a table is about read and write: padding, an activation."""
    return done.padding_bytes + done.after_bytes


def issue(impl: Impl, done: Work, device: Device) -> float:
    """Seconds that the host is busy issuing a step."""
    return device.step_s + done.launches * (device.triton_s if impl.cost.triton else device.launch_s)


def demand(done: Work, seconds: float, device: Device) -> float:
    """The share of the memory's rate that a step needs while it runs."""
    return min(1.0, done.hbm_bytes / (device.hbm_bytes_per_s * seconds)) if seconds else 0.0
