"""Steps on their way through the simulation: what each takes, how fast it goes beside others, where it meets other
ranks, when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from epsc.ir.attrs import TransferAttrs
from epsc.ir.impls import Bound, Impl, Resource
from epsc.ir.kinds import Role
from epsc.ir.schedule import Schedule, Step
from epsc.machine.cluster import Cluster, Device
from epsc.machine.cost import Priced, demand, group, issue
from epsc.machine.needs import signals_of, waits_of
from epsc.machine.roofline import PACKED
from epsc.machine.timeline import Event

SMS, COPY, COMM = "SMs", "copy engines", "communicator "


@dataclass
class Job:
    """A step on its way through the simulation."""

    index: int
    step: Step
    role: Role
    priced: Priced
    seconds: float
    """Alone."""
    issue_s: float
    takes: dict[str, int]
    """Units of each resource that it holds while it runs."""
    urgency: int
    before: str
    """The step before it on its lane."""
    waits: tuple[str, ...]
    signals: frozenset[str]
    """Those of its waits that are for every rank, which signal them to each other."""
    moving: float
    """Of a transfer: the share of its time that is not latency."""
    memory: float
    """The share of the memory's rate that it needs at pace 1."""
    issued: float = inf
    """When the host has issued its first kernel."""
    issue_end: float = inf
    start: float = inf
    end: float = inf
    """Once it runs: when it ends if its pace stays as it is."""
    pace: float = 1.0
    own_pace: float = 1.0
    """What its pace would be if it were not for other ranks."""
    paced: float = 0.0
    """Since when it has this pace."""
    left: float = 0.0
    """Seconds at pace 1 that it still had to do then."""
    on_sms: float = 0.0
    """Of a transfer that keeps to its SMs: those that its programs really are on."""
    meeting: Meeting | None = None
    """Of a collective: where it meets ranks that are not alike."""
    met: float = inf
    """When it began to do its work: at once, or when the last rank came."""
    after: str = ""
    waited_for: str = ""
    host_after: str = ""
    """The host-lane step that the host stopped at last before it issued this one."""

    @property
    def impl(self) -> Impl:
        return self.priced.impl

    @property
    def takes_all(self) -> bool:
        """A product that no limit on SMs holds back."""
        return self.role is Role.COMPUTE and not self.impl.cost.keeps_sms

    def settle(self, beside: list[Job]) -> None:
        """Get SMs, beside what runs already."""
        self.on_sms = self.priced.spread
        if self.on_sms and any(other.takes_all for other in beside):
            # Its programs get the SMs that a product's blocks leave first, as many as fit there, and stay.
            self.on_sms = self.step.sms / PACKED
            self.seconds = max(self.seconds, self.priced.packed)

    def begin(self, now: float) -> None:
        """Do its work from now on."""
        self.met = self.paced = now
        self.left = self.seconds
        self.end = max(now + self.seconds, self.issue_end)

    def go_on(self, now: float, pace: float) -> None:
        """Run at another pace from now on."""
        if pace != self.pace:
            self.left = max(0.0, self.left - self.pace * (now - self.paced))
            self.pace, self.paced = pace, now
            # It cannot end before its last kernel was issued.
            self.end = max(now + self.left / pace, self.issue_end)

    def event(self, schedule: Schedule) -> Event:
        """What became of it."""
        attrs = schedule.node(self.step).attrs
        return Event(
            step=self.step.key,
            node=self.step.node,
            lane=self.step.lane,
            role=self.role,
            start=self.start,
            end=self.end,
            after=self.after,
            waited_for=self.waited_for,
            chunk=self.step.cuts[0].index if self.step.cuts else None,
            direction=attrs.direction if isinstance(attrs, TransferAttrs) else None,
            sms=self.step.sms,
            impl=self.impl.name,
            work=self.priced.work,
            alone=max(self.met - self.start + self.seconds, min(self.issue_end, self.end) - self.start),
            met=self.met if self.meeting else None,
        )


HasLinks = Callable[[Job, dict[str, int], float], bool]
"""Whether the links that a collective takes are free on its rank."""


@dataclass
class Meeting:
    """A collective of ranks that are not alike: it moves nothing before all have come, and then takes each of them as
    long as the one that has most to move.

    A rank that waits there keeps the communicator. Links are for others meanwhile, and SMs, of which it needs few: so
    two ranks that come to two collectives in another order do not block each other.
    """

    awaited: int
    came: list[tuple[Job, dict[str, int], HasLinks]] = field(default_factory=list)
    """With what each takes while it moves."""
    begun: bool = False

    def come(self, job: Job, now: float, has_links: HasLinks) -> None:
        self.came.append((job, job.takes, has_links))
        self.begin(now)

    def begin(self, now: float) -> None:
        """Begin, if all are here and links are free on all of them."""
        if self.begun or len(self.came) < self.awaited:
            return
        if all(has_links(job, takes, now) for job, takes, has_links in self.came):
            self.begun = True
            seconds = max(job.seconds for job, *_ in self.came)
            for job, takes, _ in self.came:
                job.seconds, job.takes = seconds, takes
                job.begin(now)

    def go_on(self, now: float) -> None:
        """Go on at the pace of the slowest: everybody waits for what that one sends and gets."""
        pace = min(job.own_pace for job, *_ in self.came)
        for job, *_ in self.came:
            job.go_on(now, pace)

    def settle(self) -> bool:
        """The moment is over: whoever came waits. Whether that gave anything back."""
        gave = False
        for job, takes, _ in () if self.begun else self.came:
            kept = {name: n for name, n in takes.items() if name.startswith(COMM)}
            gave, job.takes = gave or job.takes != kept, kept
        return gave


def jobs_of(schedule: Schedule, cluster: Cluster, prices: dict[str, Priced], alone: dict[str, float]) -> dict[str, Job]:
    """A job for each step, by key; `alone`: seconds by step, where they are not those of its price."""
    waits, signals = waits_of(schedule), signals_of(schedule)
    urgency = {lane.name: lane.priority for lane in schedule.lanes}
    last: dict[str, str] = {}
    found = {}
    for index, step in enumerate(schedule.steps):
        priced = prices[step.key]
        seconds = alone.get(step.key, priced.seconds)
        found[step.key] = Job(
            index,
            step,
            schedule.node(step).info.role,
            priced,
            seconds,
            issue(priced.impl, priced.work, cluster.device),
            _takes(schedule, step, cluster, priced.impl),
            urgency.get(step.lane, 0),
            last.get(step.lane, ""),
            waits[step.key],
            signals[step.key],
            moving=max(0.0, 1 - priced.floor / seconds) if seconds else 0.0,
            memory=demand(priced.work, seconds, cluster.device),
        )
        last[step.lane] = step.key
    return found


def _takes(schedule: Schedule, step: Step, cluster: Cluster, impl: Impl) -> dict[str, int]:
    role = schedule.node(step).info.role
    takes: dict[str, int] = {}
    if role in (Role.CONTROL, Role.HOST):
        return takes
    if role is Role.TRANSFER and step.comm:
        takes[f"{COMM}{step.comm}"] = 1
    if impl.cost.bound is Bound.LATENCY:
        return takes
    if Resource.SMS in impl.occupies:
        free = cluster.device.memory_sms if role is Role.MEMORY else schedule.chip_sms
        takes[SMS] = min(step.sms or free, schedule.chip_sms)
    if Resource.COPY_ENGINE in impl.occupies:
        takes[COPY] = 1
    if role is Role.TRANSFER or Resource.INTRA_LINK in impl.occupies:
        if Resource.HOST_LINK in impl.occupies:
            return takes | {"host link": 1}
        # A group within a node leaves the links between nodes to others; one with a rank of each node the others.
        near, ranks = group(schedule, step, cluster)
        takes |= {"link": 1} if near > 1 or ranks == 1 else {}
        takes |= {"link between nodes": 1} if near < ranks else {}
    return takes


def pace_beside(job: Job, other: Job, device: Device, chip_sms: int) -> float | None:
    """The pace of `job` beside the other; None if they are no transfer and product, or never measured."""
    transfer, product = (job, other) if job.role is Role.TRANSFER else (other, job)
    if transfer.role is not Role.TRANSFER or product.role is not Role.COMPUTE:
        return None
    if product.takes_all and transfer.priced.spread:
        # Where programs of the transfer are, no block of the product fits; whoever came first has the choice.
        return 1.0 if job is transfer else max(1.0, chip_sms - transfer.on_sms) / chip_sms
    known, sms = device.beside, (not product.takes_all and product.step.sms) or chip_sms
    pair = known.get((transfer.impl.name, product.impl.name)) or known.get((transfer.impl.name, "*"))
    return 1 - transfer.moving * (1 - pair.pace(sms)) if pair else None
