"""The roofline: the least time that a device's rates allow for an amount of work, and how far above it a step runs.

    seconds = floor + ratio * max(FLOP / FLOP rate, bytes / memory rate, bytes sent / link rate)

The ratio comes from what was measured (`Device.tables`), or where nothing was, from the efficiency in the table of
implementations (1 / efficiency). On fewer SMs, FLOP fall in proportion; memory and links only below the SMs that
saturate them.
"""

from __future__ import annotations

from dataclasses import dataclass

from epsc.ir.impls import Impl, Resource
from epsc.ir.kinds import KINDS, Role
from epsc.machine.device import Device
from epsc.machine.tables import Point, Ratios, Table

MANY_PROGRAMS = 8
"""Programs for each SM of a transfer by SMs that keeps to none."""
PACKED = 4
"""Programs of a transfer that keeps to n SMs fit on n / 4: they are 16 warps for each of them, and an SM holds 64."""
LEAST_RATIO = 0.1
"""A measured point this far below the roofline says that the roofline is wrong, not that the step is free."""


@dataclass(frozen=True)
class Least:
    """A roofline: what is paid however much there is to do, and the time at full rate, by resource."""

    floor: float = 0.0
    flops: float = 0.0
    memory: float = 0.0
    link: float = 0.0
    turns: float = 0.0

    @property
    def slope(self) -> float:
        return max(self.flops, self.memory, self.link, self.turns)


def product(device: Device, at: Point, launches: int = 1) -> Least:
    """A product of `rows` rows for each of `experts` experts, from `in` columns to `out`.

    `launches` 0: one for each expert, whose floors and tails are in what was measured.
    """
    experts, rows, out, wide = at.get("experts", 1), at["rows"], at["out"], at["in"]
    element = at.get("element", 2)
    rate = device.flops_fp32 if element == 4 else device.flops_bf16
    moved = experts * element * (out * wide + rows * (out + wide))
    share = _of(at, device.sms)
    return Least(
        floor=launches * device.kernel_s + (tail(device, at) if launches else 0.0),
        flops=2 * experts * rows * out * wide / (rate * share),
        memory=moved / (device.hbm_bytes_per_s * share**device.product_memory_power),
    )


def tail(device: Device, at: Point) -> float:
    """What a launch of a product loses at its end, when some SMs have a last tile and others none: half a tile's time.

    Measured rates of whole layers contain it once. A layer that is cut pays it for each piece.
    """
    tile_rows, columns = device.tile
    element = at.get("element", 2)
    rate = (device.flops_fp32 if element == 4 else device.flops_bf16) / device.sms
    return min(tile_rows, at["rows"]) * min(columns, at["out"]) * at["in"] / rate


def rows_pass(device: Device, at: Point, launches: int = 1) -> Least:
    """Something bound by memory that reads and writes `mb` megabytes."""
    rate = device.hbm_bytes_per_s * _of(at, device.memory_sms)
    return Least(floor=launches * device.kernel_s, memory=at["mb"] * 1e6 / rate)


def transfer(device: Device, at: Point, floor: float, turn: float = 0.0, copies: bool = False) -> Least:
    """Sends `mb` megabytes to other ranks, `outside` of them to `away` ranks of other nodes; by copy engines, or by
    SMs, which for a one-sided transfer read and write `moved` megabytes of memory. With `levels` 2 to ranks of the node
    first and then to others, or the other way; else to both at once.

    One-sided by SMs goes from row to row, or piece of a row, and needs at least `turn` for each of `turns`: programs
    take them one after the other, and read where a row lies before they can read the row.
    """
    line = device.copy_bytes_per_s if copies else device.intra_bytes_per_s * _of(at, device.transfer_sms)
    outside = at.get("outside", 0.0)
    inside = at["mb"] - outside
    near, far = inside * 1e6 / line, outside * 1e6 / device.inter_bytes_per_s
    levels = at.get("levels", 1)
    return Least(
        floor=levels * floor + device.peer_s * at.get("away", 0),
        memory=at.get("moved", 0.0) * 1e6 / (device.hbm_bytes_per_s * _of(at, device.memory_sms)),
        link=near + far if levels > 1 else max(near, far),
        turns=at.get("turns", 0.0) * turn,
    )


def floor_of(device: Device, kind: str, impl: str) -> float:
    """What a transfer costs that moves nothing."""
    table = device.table.get((kind, impl))
    return device.transfer_floor_s if table is None or table.floor_s is None else table.floor_s


def latency(device: Device, kind: str, impl: str) -> float:
    """What something costs whose amount does not matter, such as an exchange of counts."""
    table = device.table.get((kind, impl))
    return table.seconds(table.points[0]) if table else device.transfer_floor_s


def ratio(device: Device, impl: Impl, at: Point) -> float:
    """How many times its roofline a step takes there."""
    measured = _ratios(device, impl)
    return measured.read(at) if measured else 1 / impl.cost.efficiency


def least(device: Device, impl: Impl, at: Point) -> Least:
    """The roofline of an implementation at a place, of a step and of a point of a table alike."""
    if "out" in at:
        return product(device, at, impl.cost.launches)
    if KINDS[impl.kind].role is Role.TRANSFER:
        floor, copies = floor_of(device, impl.kind, impl.name), Resource.COPY_ENGINE in impl.occupies
        return transfer(device, at, floor, _turn(device, impl, at) if "turns" in at else 0.0, copies)
    return rows_pass(device, at, impl.cost.launches)


def _turn(device: Device, impl: Impl, at: Point) -> float:
    """What a turn of a one-sided transfer by SMs takes, shared by all of its programs."""
    table = device.table.get((impl.kind, impl.name))
    kept = at["sms"] < device.sms
    return table.turn_s / (at["sms"] * (impl.cost.sm_programs if kept else MANY_PROGRAMS)) if table else 0.0


def _ratios(device: Device, impl: Impl) -> Ratios | None:
    """What the tables say of an implementation, worked out once."""
    key = impl.kind, impl.name
    if key not in device.ratios:
        table = device.table.get(key)
        if device.base and device.base.table.get(key) is table:
            return _ratios(device.base, impl)
        numbers = tuple(_ratio(device, impl, table, point) for point in table.points) if table else ()
        device.ratios[key] = Ratios(table, numbers) if table else None
    return device.ratios[key]


def _ratio(device: Device, impl: Impl, table: Table, point: tuple[float, ...]) -> float:
    there = least(device, impl, table.at(point))
    over = max(table.seconds(point) - there.floor, 0.0)
    return max(over / there.slope, LEAST_RATIO) if there.slope else 1.0


def _of(at: Point, enough: int) -> float:
    """The share of a rate that the SMs of a step reach, if `enough` of them reach all of it."""
    sms = at.get("sms", 0)
    return min(1.0, sms / enough) if sms else 1.0
