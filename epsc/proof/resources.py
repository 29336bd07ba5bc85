"""SMs: kernels that may run together must not keep more of them to themselves than there are."""

from __future__ import annotations

from epsc.ir.errors import Faults, Severity
from epsc.ir.impls import Resource, impls_of
from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule, Step
from epsc.proof.happens import Happens


def check_resources(schedule: Schedule, happens: Happens, faults: Faults) -> None:
    """Errors for over-subscribed SMs, a warning for a transfer that would queue behind an unlimited GEMM.

    For each step with SMs of its own: it and, of each other lane, the hungriest step that may run at the same time.
    That bound is safe: it counts two of them together even where they exclude each other.
    """
    lanes: dict[str, list[Step]] = {lane.name: [] for lane in schedule.lanes}
    for step in schedule.steps:
        lanes[step.lane].append(step)
    warned: set[str] = set()
    for step in schedule.steps:
        if step.sms < 0:
            faults.add("sms", f"`{step.key}` is to run on {step.sms} SMs", schedule.node(step).span)
        if step.sms > schedule.chip_sms:
            faults.add(
                "sms-over-chip", f"`{step.key}` wants {step.sms} SMs of {schedule.chip_sms}", schedule.node(step).span
            )
            continue
        together = [step]
        for name, others in lanes.items():
            if name == step.lane or not (step.sms or step.comm):
                continue
            near = happens.stretch(step, others)
            if near:
                together.append(max(near, key=lambda s: s.sms))
            if step.comm and not step.sms and _takes_sms(schedule, step):
                for other in near:
                    origin = schedule.node(step).origin
                    if schedule.node(other).info.role is Role.COMPUTE and not other.sms and origin not in warned:
                        warned.add(origin)
                        faults.add(
                            "queues-for-sms",
                            f"`{step.node}` and `{other.node}` may run together, but both want the whole chip: they"
                            " will queue rather than overlap (measured on 2 x H200: 0 to -10 % of the transfer hidden)",
                            schedule.node(step).span,
                            help=f"`reserve 16 sms for {schedule.node(step).origin}` gives each its own SMs",
                            severity=Severity.WARNING,
                        )
        total = sum(s.sms for s in together)
        if total > schedule.chip_sms:
            faults.add(
                "sms-over-chip",
                f"{' and '.join(f'`{s.key}` ({s.sms})' for s in together if s.sms)} may run together on {total} SMs,"
                f" but the chip has {schedule.chip_sms}",
                schedule.node(step).span,
            )


def _takes_sms(schedule: Schedule, step: Step) -> bool:
    impls = impls_of(schedule.node(step).kind)
    return any(Resource.SMS in impls[name].occupies for name in step.impl.names if name in impls)
