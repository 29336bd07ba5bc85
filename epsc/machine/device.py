"""What one accelerator (or CPU socket) and its links do: the numbers of a profile, in seconds, bytes and FLOP."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from epsc.machine.tables import Beside, Ratios, Table
from epsc.machine.tiles import TileTable


class Origin(StrEnum):
    """Where a device's numbers come from."""

    PUBLISHED = "published"
    MEASURED = "measured"


@dataclass(frozen=True)
class Device:
    """Rates are per second, per direction, and are what good code reaches, not what a data sheet promises."""

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
    """Time of a small copy to the host, the host's wait for it, and what it works out from it before it goes on."""
    transfer_sms: int
    """SMs with which a transfer kernel reaches its full rate."""
    memory_sms: int
    """SMs with which a memory-bound kernel reaches its full rate."""
    origin: Origin
    peer_s: float = 0.0
    """What each rank of another node that a rank sends to adds to the time of a collective."""
    memory_bytes: int = 0
    """Memory of the device, for weights and rows; 0: not known."""
    sm_bytes_per_s: float = 0.0
    """What one SM reads and writes for a transfer when it holds as many of its programs as it can; 0: not known."""
    product_memory_power: float = 1.0
    """On a share s of the SMs, products that memory binds reach s to this power of its rate."""
    capability: tuple[int, int] = (0, 0)
    """CUDA compute capability."""
    tile: tuple[int, int] = (0, 0)
    """Rows and columns of a product that one SM makes at a time; 0: no such thing."""
    signal_s: float = 0.0
    """From a flag that one rank sets to another rank's kernel that waits for it."""
    step_s: float = 0.0
    """Host time of a step besides its launches: streams, events, views, what a collective's call takes."""
    triton_s: float = 0.0
    """Host time to issue one Triton kernel from an emitted program, its arguments and outputs included."""
    graph_s: float = 0.0
    """To replay a CUDA graph: its launch, and its inputs into memory of its own."""
    profile: str = ""
    """The name of the profile that these numbers are from."""
    origins: tuple[tuple[str, str], ...] = ()
    """Section of the profile -> where its numbers come from."""
    tables: tuple[Table, ...] = ()
    besides: tuple[Beside, ...] = ()
    tiles: tuple[TileTable, ...] = ()
    """How expert products are cut, by shape."""
    base: Device | None = None
    """The device that tables which this one shares with it were measured on: how near to *its* rates a step came."""

    @cached_property
    def table(self) -> dict[tuple[str, str], Table]:
        """By op kind and implementation."""
        return {(kind, table.impl): table for table in self.tables for kind in table.kinds}

    @cached_property
    def beside(self) -> dict[tuple[str, str], Beside]:
        """By implementation of the transfer and of the product."""
        return {(pair.transfer, pair.compute): pair for pair in self.besides}

    @cached_property
    def ratios(self) -> dict[tuple[str, str], Ratios | None]:
        """What `epsc.machine.roofline` has worked out of the tables, as it is asked."""
        return {}
