"""Where a layer runs: a device, and how many of them share the work.

The numbers of a device come from a profile (`epsc.machine.profile`): one that is named, or the shipped one of the
device that is nearest in nodes and ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from epsc.ir.errors import Diagnostic, EpsError, did_you_mean
from epsc.machine.device import Device, Origin
from epsc.machine.profile import load, shipped_devices, shipped_for

__all__ = ["DEVICES", "Cluster", "Device", "Mesh", "Origin"]


class _Devices(Mapping[str, Device]):
    """Devices by name, as on one node of 8; a profile is read when it is asked for."""

    def __getitem__(self, name: str) -> Device:
        profile = shipped_for(name, 8, 1)
        if profile is None:
            raise KeyError(name)
        return load(profile).device

    def __iter__(self) -> Iterator[str]:
        return iter(shipped_devices())

    def __len__(self) -> int:
        return len(shipped_devices())

    def __contains__(self, name: object) -> bool:
        return name in shipped_devices()


DEVICES: Mapping[str, Device] = _Devices()


AXES = ("ep",)
"""Axes of a mesh that ops can name."""


@dataclass(frozen=True)
class Mesh:
    """How ranks are arranged: over experts, inside an expert (or layer), and over data."""

    ep: int = 1
    tp: int = 1
    dp: int = 1

    def __getitem__(self, axis: str) -> int:
        return {"ep": self.ep, "tp": self.tp, "dp": self.dp}[axis]


@dataclass(frozen=True)
class Cluster:
    """Equal devices on equal nodes. Ranks that share experts are neighbours: they fill a node before the next."""

    name: str
    device: Device
    ranks: int
    nodes: int
    mesh: Mesh

    @property
    def node_ranks(self) -> int:
        """Ranks of one node."""
        return self.ranks // self.nodes

    @staticmethod
    def make(
        name: str, device: str, ep: int, tp: int = 1, dp: int = 1, nodes: int = 1, profile: str | None = None
    ) -> Cluster:
        """A cluster of a known device, with the numbers of `profile` (a shipped name or a file) if one is given.

        Raises EpsError on an unknown device, a profile of another one, or nodes that cannot be equal.
        """
        ranks = ep * tp * dp
        if profile is None and device not in DEVICES:
            raise EpsError(
                Diagnostic("unknown-device", f"`{device}` is no known device", help=did_you_mean(device, DEVICES))
            )
        if min(ep, tp, dp, nodes) < 1 or ranks % nodes:
            raise EpsError(
                Diagnostic("bad-cluster", f"{ranks} ranks (ep {ep}, tp {tp}, dp {dp}) do not fill {nodes} nodes")
            )
        found = load(profile or shipped_for(device, ranks, nodes) or device).device
        return Cluster(name, found, ranks, nodes, Mesh(ep, tp, dp))
