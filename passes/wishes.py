"""What a schedule asks for, in terms of the Graph: the directives, once `resolve` knows which ops they speak of."""

from __future__ import annotations

from dataclasses import dataclass, field

from epsc.ir.dims import Axis
from epsc.ir.impls import Choice
from epsc.ir.mesh import DeviceMesh
from epsc.ir.source import Span
from epsc.machine.cluster import Device


@dataclass(frozen=True)
class SideBySide:
    """`these` may run at the same time as `others` (node names)."""

    these: tuple[str, ...]
    others: tuple[str, ...]
    span: Span | None = None


@dataclass(frozen=True)
class Partition:
    """`sms` SMs that the transfers `nodes` share, one after the other."""

    sms: int
    nodes: tuple[str, ...]
    span: Span | None = None


@dataclass(frozen=True)
class OneThenOther:
    """Ops (node names) of which the first of each pair is issued before the second."""

    pairs: tuple[tuple[str, str], ...]
    span: Span | None = None


@dataclass(frozen=True)
class Wishes:
    """What one schedule asks for, keyed by node name. Empty: everything runs in order on one stream."""

    name: str
    splits: dict[str, tuple[Axis, int]] = field(default_factory=dict)
    split_spans: dict[str, Span | None] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    partitions: tuple[Partition, ...] = ()
    besides: tuple[SideBySide, ...] = ()
    befores: tuple[OneThenOther, ...] = ()
    lanes: dict[str, str] = field(default_factory=dict)
    overlap: bool = True
    choice_spans: dict[str, Span | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What the Schedule passes know besides the Schedule: the wishes, and the machine in the coarse."""

    wishes: Wishes
    ep: int
    """Ranks that share the experts."""
    chip_sms: int
    """SMs of one GPU."""
    device: Device | None = None
    """Where the plan is to run; without one nobody asks whether its implementations can."""
    meshes: tuple[DeviceMesh, ...] = ()
