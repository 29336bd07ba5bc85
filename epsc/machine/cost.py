"""How long a step takes alone: its work over the rates that its implementation reaches on a device.

First order, with balanced routing. A GEMM over few rows is bound by reading its weights, one over many by FLOPs, and in
between it climbs as m / (m + m_half) with m rows per expert. `_FITS` was fitted to 45 measurements on an H200
(DeepSeek-V2, Qwen3-30B and Mixtral-8x7B up-projections, 16 to 4096 rows per expert): 12 % off in the root mean
square, 28 % at worst.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from epsc.ir.dims import DType
from epsc.ir.impls import Bound, Impl, Resource
from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule, Step
from epsc.machine.balanced import group_experts, region
from epsc.machine.cluster import Cluster, Device
from epsc.machine.work import Work, picked, work


@dataclass(frozen=True)
class Fit:
    """How an expert GEMM's rate depends on its rows per expert."""

    m_half: float
    """Rows per expert at which half of the implementation's FLOP rate is reached."""
    weight_share: float
    """Share of the memory rate at which weights are read."""


_FITS = {"persistent": Fit(45, 0.95), "grouped": Fit(16, 0.6), "dense": Fit(48, 0.7), "batched": Fit(48, 0.75)}
_PLAIN = Fit(0, 1.0)

Costs = Callable[[Schedule, Step, Cluster, int], float]
"""Seconds of a step alone at a load in tokens per rank: what a calibrated model has to provide."""


def cost(schedule: Schedule, step: Step, cluster: Cluster, load: int) -> float:
    """Seconds that `step` takes alone, once started, when every rank has `load` tokens."""
    device = cluster.device
    impl = picked(schedule, step, load, device.backend)
    done = work(schedule, step, load, device.backend)
    role = schedule.node(step).info.role
    if role is Role.HOST:
        return device.host_sync_s
    if role is Role.TRANSFER:
        return _transfer(schedule, step, cluster, impl, done)
    floor = done.launches * device.kernel_s
    if impl.cost.bound is Bound.FLOPS:
        return floor + _gemm(schedule, step, device, impl, done)
    rate = device.hbm_bytes_per_s * impl.cost.efficiency * _of_sms(step, device.memory_sms)
    return floor + done.hbm_bytes / rate


def issue(schedule: Schedule, step: Step, cluster: Cluster, load: int) -> float:
    """Seconds that the host is busy issuing `step`."""
    device = cluster.device
    return device.launch_s * work(schedule, step, load, device.backend).launches


def _gemm(schedule: Schedule, step: Step, device: Device, impl: Impl, done: Work) -> float:
    """max(FLOPs, weights, all bytes), each over its rate, + padding. On n of N SMs a GEMM has n/N of the FLOP rate."""
    fit = _FITS.get(impl.name, _PLAIN)
    per_expert = done.rows / (group_experts(step, schedule) or 1)
    climb = per_expert / (per_expert + fit.m_half) if per_expert else 1.0
    fp32 = bool(step.writes) and region(step.writes[0], schedule).dtype is DType.FP32
    peak = device.flops_fp32 if fp32 else device.flops_bf16
    flops_rate = peak * impl.cost.efficiency * climb * _of_sms(step, schedule.chip_sms)
    hbm_rate = device.hbm_bytes_per_s * _of_sms(step, device.memory_sms)
    padding = done.padding_bytes / hbm_rate
    return padding + max(
        done.flops / flops_rate,
        done.weight_bytes / (hbm_rate * fit.weight_share),
        (done.hbm_bytes - done.padding_bytes) / hbm_rate,
    )


def _transfer(schedule: Schedule, step: Step, cluster: Cluster, impl: Impl, done: Work) -> float:
    """Floor + the slower of the rows that stay in the node over its links and those that leave it over theirs.

    Rows that stay on the rank are copied meanwhile. A transfer that is all local (one rank, or the cut of peer 0)
    costs that copy alone.
    """
    device = cluster.device
    local = done.hbm_bytes / (device.hbm_bytes_per_s * 0.7)  # as an index_select reaches
    if not done.link_bytes:
        return device.kernel_s + local
    if impl.cost.bound is Bound.LATENCY:
        return device.transfer_floor_s
    line = device.intra_bytes_per_s * impl.cost.efficiency
    if Resource.COPY_ENGINE in impl.occupies:
        line = min(line, device.copy_bytes_per_s)
    if Resource.SMS in impl.occupies:
        line *= _of_sms(step, device.transfer_sms)
    inter = device.inter_bytes_per_s * impl.cost.efficiency
    near = min(cluster.node_ranks, schedule.ep)
    outside = done.link_bytes * (schedule.ep - near) / max(1, schedule.ep - 1)
    inside = done.link_bytes - outside
    return device.transfer_floor_s + max(inside / line, outside / inter)


def _of_sms(step: Step, enough: int) -> float:
    """The share of a rate that a step on its SMs reaches, if `enough` of them reach all of it."""
    return min(1.0, step.sms / enough) if step.sms else 1.0
