"""Where a layer runs: a device, and how many of them share the work.

The numbers of a device come from a profile (`epsc.machine.profile`): one that is named, or the shipped one of the
device that is nearest in nodes and ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from epsc.ir.errors import Diagnostic, EpsError, did_you_mean
from epsc.ir.mesh import DeviceMesh
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


AXES = ("ep", "etp", "tp", "dp")
"""Axes of a mesh that ops can name."""


@dataclass(frozen=True)
class Mesh:
    """How ranks are arranged, twice: over experts, and inside an expert (etp); over data, and inside a layer (tp)."""

    ep: int = 1
    tp: int = 1
    dp: int = 1
    etp: int = 1

    def __getitem__(self, axis: str) -> int:
        return {"ep": self.ep, "tp": self.tp, "dp": self.dp, "etp": self.etp}[axis]

    @property
    def tables(self) -> tuple[DeviceMesh, ...]:
        """The two, over the same ranks: those that share an expert, or a layer, are neighbours."""
        experts = DeviceMesh("experts", (("ep", self.ep), ("etp", self.etp)))
        return experts, DeviceMesh("layer", (("dp", self.dp), ("tp", self.tp)))


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

    @property
    def tables(self) -> tuple[DeviceMesh, ...]:
        """The meshes, and where there are several nodes the ranks by these: `intra` within one, `inter` between."""
        nodes = DeviceMesh("nodes", (("inter", self.nodes), ("intra", self.node_ranks)))
        return (*self.mesh.tables, nodes) if self.nodes > 1 else self.mesh.tables

    @staticmethod
    def make(
        name: str,
        device: str,
        ep: int,
        tp: int = 1,
        dp: int | None = None,
        nodes: int = 1,
        profile: str | None = None,
        etp: int = 1,
    ) -> Cluster:
        """A cluster of a known device, with the numbers of `profile` (a shipped name or a file) if one is given.

        Without `dp` it is what `tp` leaves. Raises EpsError on an unknown device, a profile of another one, nodes that
        cannot be equal, or meshes that are not over the same ranks.
        """
        ranks = ep * etp
        dp = max(1, ranks // max(1, tp)) if dp is None else dp
        if profile is None and device not in DEVICES:
            raise EpsError(
                Diagnostic("unknown-device", f"`{device}` is no known device", help=did_you_mean(device, DEVICES))
            )
        if min(ep, tp, dp, etp, nodes) < 1 or ranks % nodes:
            raise EpsError(Diagnostic("bad-cluster", f"{ranks} ranks (ep {ep}, etp {etp}) do not fill {nodes} nodes"))
        if tp * dp != ranks:
            message = f"tp {tp} x dp {dp} are {tp * dp} ranks, but ep {ep} x etp {etp} are {ranks}"
            help = "both meshes are over the same ranks; without `dp` it is what `tp` leaves of them"
            raise EpsError(Diagnostic("mesh", message, help=help))
        found = load(profile or shipped_for(device, ranks, nodes) or device).device
        return Cluster(name, found, ranks, nodes, Mesh(ep, tp, dp, etp))
