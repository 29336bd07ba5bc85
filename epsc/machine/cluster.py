"""Where a layer runs: the numbers of a device, and how many of them share the work.

Every rate here is what good code reaches, not what a data sheet promises: an H200 reaches 771 of its 989 TFLOP/s in a
large matrix product and 4.3 of its 4.8 TB/s in a copy, so published figures are scaled by the same two shares.
A later calibration replaces these numbers, one `Device` by another; nothing else knows where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from epsc.ir.errors import Diagnostic, EpsError, did_you_mean


class Origin(StrEnum):
    """Where a device's numbers come from."""

    PUBLISHED = "published"
    MEASURED = "measured"


@dataclass(frozen=True)
class Device:
    """One accelerator (or CPU socket) and its links. Rates are per second, per direction; times are in seconds."""

    name: str
    backend: str
    """`cuda` or `cpu`: what conditions on the device see."""
    sms: int
    flops_bf16: float
    """Dense bf16 or fp16 FLOP/s of a large matrix product."""
    flops_fp32: float
    hbm_bytes_per_s: float
    """Bytes read plus bytes written."""
    intra_bytes_per_s: float
    """Line rate to the other ranks of the node, each way."""
    inter_bytes_per_s: float
    """Line rate to other nodes, each way."""
    copy_bytes_per_s: float
    """What copy engines move between ranks of a node, each way."""
    host_bytes_per_s: float
    copy_engines: int
    launch_s: float
    """Host time to issue one kernel from an eager torch program."""
    kernel_s: float
    """Device time that a kernel takes even when it has nothing to do."""
    event_s: float
    """From the end of a step to the start of one on another lane that waits for it."""
    transfer_floor_s: float
    """Time of a collective that moves nothing."""
    host_sync_s: float
    """Time of a small copy to the host and the host's wait for it."""
    transfer_sms: int
    """SMs with which a transfer kernel reaches its full rate."""
    memory_sms: int
    """SMs with which a memory-bound kernel reaches its full rate."""
    origin: Origin
    capability: tuple[int, int] = (0, 0)
    """CUDA compute capability."""


_MM_SHARE = 771e12 / 989.4e12
"""Share of the data sheet's dense bf16 rate that an 8192^3 product reaches on an H200."""
_HBM_SHARE = 4.3 / 4.8
"""Share of the data sheet's memory bandwidth that a copy reaches on an H200."""

# Measured on two H200 over NVLink with torch 2.11 and NCCL 2.28: the products and copies of `_MM_SHARE` and
# `_HBM_SHARE`; an all2all of 8, 64 and 256 MB per rank at 53, 173 and 252 GB/s, which a floor of 65 us and 0.65 of
# the line rate explain; copy engines at 380 GB/s; a loop of `mm` over expert slices at 22 us each, which is also what
# the 0.6 to 1.0 ms that a CUDA graph takes off a layer of 30 to 50 launches comes to; about 24 us for a round trip to
# the host. Line rate: 18 NVLink 4 links of 25 GB/s. Between nodes: one 400 Gb/s adapter per GPU (HGX).
# SMs that saturate: NCCL about 16 (EPS-MoE: an all2all needs 10 to 20, an activation 40 to 60, and more do not help).
_H200 = Device(
    name="h200",
    backend="cuda",
    sms=132,
    flops_bf16=771e12,
    flops_fp32=67e12 * _MM_SHARE,
    hbm_bytes_per_s=4.3e12,
    intra_bytes_per_s=450e9,
    inter_bytes_per_s=50e9,
    copy_bytes_per_s=380e9,
    host_bytes_per_s=64e9,
    copy_engines=3,
    launch_s=22e-6,
    kernel_s=3e-6,
    event_s=2e-6,
    transfer_floor_s=65e-6,
    host_sync_s=24e-6,
    transfer_sms=16,
    memory_sms=50,
    origin=Origin.MEASURED,
    capability=(9, 0),
)


def _published(
    name: str,
    sms: int,
    tflops_bf16: float,
    tflops_fp32: float,
    hbm_tb: float,
    link_gb: float,
    inter_gb: float,
    capability: tuple[int, int] = (9, 0),
) -> Device:
    """A device from its data sheet; what data sheets do not tell is taken from the H200."""
    return Device(
        name=name,
        backend="cuda",
        sms=sms,
        flops_bf16=tflops_bf16 * 1e12 * _MM_SHARE,
        flops_fp32=tflops_fp32 * 1e12 * _MM_SHARE,
        hbm_bytes_per_s=hbm_tb * 1e12 * _HBM_SHARE,
        intra_bytes_per_s=link_gb * 1e9,
        inter_bytes_per_s=inter_gb * 1e9,
        copy_bytes_per_s=link_gb * 1e9 * (380 / 450),
        host_bytes_per_s=_H200.host_bytes_per_s,
        copy_engines=_H200.copy_engines,
        launch_s=_H200.launch_s,
        kernel_s=_H200.kernel_s,
        event_s=_H200.event_s,
        transfer_floor_s=_H200.transfer_floor_s,
        host_sync_s=_H200.host_sync_s,
        transfer_sms=_H200.transfer_sms,
        memory_sms=_H200.memory_sms,
        origin=Origin.PUBLISHED,
        capability=capability,
    )


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        # NVIDIA H100 SXM data sheet: 989.4 dense bf16 and 67 fp32 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s both ways.
        _published("h100", 132, 989.4, 67, 3.35, 450, 50),
        _H200,
        # An H100 with NVLink cut to 400 GB/s both ways (DeepSeek-V3 report, arXiv 2412.19437, section 3.1 and on).
        _published("h800", 132, 989.4, 67, 3.35, 200, 50),
        # NVIDIA A100 80 GB SXM data sheet: 312 and 19.5 TFLOP/s, 2.039 TB/s, NVLink 600 GB/s both ways; HDR 200 Gb/s.
        _published("a100", 108, 312, 19.5, 2.039, 300, 25, (8, 0)),
        # Two cores and gloo over the loopback: orders of magnitude, so that plans for tests look plausible.
        Device(
            name="cpu",
            backend="cpu",
            sms=2,
            flops_bf16=50e9,
            flops_fp32=100e9,
            hbm_bytes_per_s=20e9,
            intra_bytes_per_s=2e9,
            inter_bytes_per_s=1e9,
            copy_bytes_per_s=2e9,
            host_bytes_per_s=10e9,
            copy_engines=0,
            launch_s=5e-6,
            kernel_s=5e-6,
            event_s=20e-6,
            transfer_floor_s=300e-6,
            host_sync_s=1e-6,
            transfer_sms=1,
            memory_sms=2,
            origin=Origin.PUBLISHED,
        ),
    )
}


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
    def make(name: str, device: str, ep: int, tp: int = 1, dp: int = 1, nodes: int = 1) -> Cluster:
        """A cluster of a known device. Raises EpsError on an unknown one, or nodes that cannot be equal."""
        ranks = ep * tp * dp
        if device not in DEVICES:
            raise EpsError(
                Diagnostic("unknown-device", f"`{device}` is no known device", help=did_you_mean(device, DEVICES))
            )
        if min(ep, tp, dp, nodes) < 1 or ranks % nodes:
            raise EpsError(
                Diagnostic("bad-cluster", f"{ranks} ranks (ep {ep}, tp {tp}, dp {dp}) do not fill {nodes} nodes")
            )
        return Cluster(name, DEVICES[device], ranks, nodes, Mesh(ep, tp, dp))
