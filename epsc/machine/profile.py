"""Cluster profiles: TOML files of numbers with their units and their origin, read into a Device.

A profile is read whole or refused with every fault in it, each with file and key. `base` takes from another profile
what this one does not say; a shipped profile is named by its file, without `.toml`.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

from epsc.ir.errors import Diagnostic, EpsError, Faults, did_you_mean
from epsc.ir.kinds import KINDS
from epsc.machine.device import Device, Origin
from epsc.machine.tables import COORDINATES, VALUES, Beside, Table
from epsc.machine.tiles import COLUMNS, Tile, TileTable

SECTIONS: dict[str, dict[str, tuple[str, float]]] = {
    "chip": {
        "sms": ("sms", 1),
        "copy_engines": ("copy_engines", 1),
        "transfer_sms": ("transfer_sms", 1),
        "memory_sms": ("memory_sms", 1),
        "memory_gb": ("memory_bytes", 1e9),
        "sm_gb_per_s": ("sm_bytes_per_s", 1e9),
        "product_memory_power": ("product_memory_power", 1),
    },
    "rates": {
        "bf16_tflops": ("flops_bf16", 1e12),
        "fp32_tflops": ("flops_fp32", 1e12),
        "hbm_gb_per_s": ("hbm_bytes_per_s", 1e9),
        "intra_gb_per_s": ("intra_bytes_per_s", 1e9),
        "inter_gb_per_s": ("inter_bytes_per_s", 1e9),
        "copy_gb_per_s": ("copy_bytes_per_s", 1e9),
        "host_gb_per_s": ("host_bytes_per_s", 1e9),
    },
    "latencies": {
        "launch_us": ("launch_s", 1e-6),
        "step_us": ("step_s", 1e-6),
        "kernel_us": ("kernel_s", 1e-6),
        "event_us": ("event_s", 1e-6),
        "transfer_us": ("transfer_floor_s", 1e-6),
        "peer_us": ("peer_s", 1e-6),
        "host_sync_us": ("host_sync_s", 1e-6),
        "signal_us": ("signal_s", 1e-6),
        "triton_us": ("triton_s", 1e-6),
        "graph_us": ("graph_s", 1e-6),
    },
}
"""Section -> key, which ends in its unit -> field of Device, and the unit."""
_MAY_LACK = ("peer_us", "triton_us", "graph_us", "memory_gb", "sm_gb_per_s", "product_memory_power")
_CHIP_MORE = ("backend", "capability", "tile")
_HEAD = ("device", "ranks", "nodes", "measured", "origin", "base")
_RATE = ("kind", "impl", "origin", "columns", "points", "measured", "element", "floor_us", "turn_us")
_NAME = re.compile(r"([a-z]\w*?)x(\d+)(?:_nodes(\d+))?")


@dataclass(frozen=True)
class Profile:
    """A device as one cluster of it was measured or published."""

    name: str
    ranks: int
    nodes: int
    origin: str
    device: Device


@lru_cache(maxsize=1)
def shipped() -> tuple[str, ...]:
    """The names of the profiles that come with epsc."""
    folder = resources.files("epsc.machine") / "profiles"
    return tuple(sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml")))


def shipped_for(device: str, ranks: int, nodes: int) -> str | None:
    """The shipped profile of a device for the nearest number of nodes, then of ranks, the smaller of two as near."""
    named = [(found, name) for name in shipped() if (found := _NAME.fullmatch(name)) and found[1] == device]

    def distance(found: re.Match[str]) -> tuple[float, float, int]:
        at_nodes, at_ranks = int(found[3] or 1), int(found[2])
        return abs(at_nodes - nodes), abs(at_ranks - ranks), at_ranks

    return min(named, key=lambda pair: distance(pair[0]))[1] if named else None


@lru_cache(maxsize=1)
def shipped_devices() -> tuple[str, ...]:
    """The devices that there are shipped profiles of."""
    return tuple(dict.fromkeys(found[1] for name in shipped() if (found := _NAME.fullmatch(name))))


@lru_cache(maxsize=32)
def load(name: str) -> Profile:
    """A profile by the name of a shipped one or the path of a file. Raises EpsError."""
    if name in shipped():
        text = (resources.files("epsc.machine") / "profiles" / f"{name}.toml").read_text(encoding="utf-8")
        return parse(text, name, f"{name}.toml")
    path = Path(name)
    try:
        return parse(path.read_bytes().decode("utf-8"), path.stem, name)
    except OSError as error:
        known = did_you_mean(name, shipped()) or f"shipped are {', '.join(shipped())}"
        raise EpsError(
            Diagnostic("no-profile", f"no profile `{name}` is shipped, and no file: {error.strerror}", help=known)
        ) from None
    except UnicodeDecodeError as error:
        raise EpsError(Diagnostic("bad-profile", f"{name} is not UTF-8 text (byte {error.start})")) from None


def parse(text: str, name: str, file: str) -> Profile:
    """The profile that a TOML text says. Raises EpsError with every fault, with `file` and the key."""
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise EpsError(Diagnostic("bad-profile", f"{file}: this is not TOML: {error}")) from None
    reader = _Reader(file)
    base = _base(said, reader)
    profile = _profile(said, name, base, reader)
    reader.faults.raise_if_any()
    if profile is None:
        raise AssertionError("the profile could not be made, and nobody said why")
    return profile


@dataclass
class _Reader:
    """Takes typed values out of parsed TOML; what does not fit becomes a fault with its key."""

    file: str
    faults: Faults = field(default_factory=Faults)

    def fault(self, key: str, message: str, help: str | None = None) -> None:
        self.faults.add("bad-profile", f"{self.file}: {key}: {message}", help=help)

    def unknown(self, said: dict[str, Any], known: tuple[str, ...], where: str) -> None:
        for key in said:
            if key not in known:
                self.fault(f"{where}{key}", "there is no such key", did_you_mean(key, known))

    def text(self, said: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
        value = said.get(key, default)
        if value is None:
            self.fault(f"{where}{key}", "it is missing")
        elif not isinstance(value, str):
            self.fault(f"{where}{key}", f"it must be text, not {value!r}")
        elif key == "origin" and not value.strip():
            self.fault(f"{where}{key}", "every number has an origin: say how it was measured or where it was published")
        return value if isinstance(value, str) else ""

    def flag(self, said: dict[str, Any], key: str, where: str, default: bool | None = None) -> bool:
        value = said.get(key, default)
        if not isinstance(value, bool):
            self.fault(f"{where}{key}", "it must be true or false" if key in said else "it is missing")
        return bool(value)

    def number(self, value: Any, key: str, least: float = 0.0, above: bool = False) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            self.fault(key, f"it must be a number, not {value!r}")
        elif value < least or (above and value == least) or value == float("inf"):
            self.fault(key, f"it must be a finite number {'above' if above else 'of at least'} {least:g}, not {value}")
        else:
            return float(value)
        return 1.0

    def rows(self, said: dict[str, Any], columns: int, where: str) -> tuple[tuple[float, ...], ...]:
        value = said.get("points")
        if not isinstance(value, list) or not value:
            self.fault(f"{where}points", "it must be a list of points, at least one")
            return ()
        found = []
        for i, point in enumerate(value):
            if not isinstance(point, list) or len(point) != columns:
                self.fault(f"{where}points[{i}]", f"a point has {columns} numbers, one for each of `columns`")
            else:
                found.append(point)
        return tuple(map(tuple, found))


def _base(said: dict[str, Any], reader: _Reader) -> Profile | None:
    name = said.get("base")
    if name is None:
        return None
    if not isinstance(name, str) or name not in shipped():
        reader.fault("base", f"`{name}` is no shipped profile", did_you_mean(str(name), shipped()))
        return None
    return load(name)


def _profile(said: dict[str, Any], name: str, base: Profile | None, reader: _Reader) -> Profile | None:
    reader.unknown(said, (*_HEAD, *SECTIONS, "rate", "beside", "tiles"), "")
    device_name = reader.text(said, "device", "", base.device.name if base else None)
    ranks, nodes = (int(reader.number(said.get(key, 1), key, 1)) for key in ("ranks", "nodes"))
    measured = reader.flag(said, "measured", "")
    origin = reader.text(said, "origin", "")
    numbers: dict[str, Any] = {}
    origins = dict(base.device.origins) if base else {}
    for section, keys in SECTIONS.items():
        values = said.get(section, {})
        if not isinstance(values, dict):
            reader.fault(section, "it must be a table")
            continue
        more = _CHIP_MORE if section == "chip" else ()
        reader.unknown(values, (*keys, *more, "origin"), f"{section}.")
        if values:
            own = reader.text(values, "origin", f"{section}.")
            origins[section] = own + (f"; what it does not say: {origins[section]}" if section in origins else "")
        for key, (into, unit) in keys.items():
            if key in values:
                number = reader.number(values[key], f"{section}.{key}", above=unit > 1) * unit
                numbers[into] = int(number) if section == "chip" and not key.endswith("_power") else number
            elif base is None and key not in _MAY_LACK:
                reader.fault(f"{section}.{key}", "it is missing, and there is no `base` to take it from")
        for key in more:
            if key in values:
                numbers[key] = _chip(values[key], key, reader)
            elif base is None and key == "backend":
                reader.fault("chip.backend", "it is missing: `cuda` or `cpu`")
    if "launch_s" in numbers:
        numbers.setdefault("triton_s", numbers["launch_s"])
    # Of two tables of one kind and implementation the later counts: the base's stand first.
    tables = (*(base.device.tables if base else ()), *_tables(said, measured, reader))
    besides = (*(base.device.besides if base else ()), *_besides(said, measured, reader))
    tiles = (*(base.device.tiles if base else ()), *_tiles(said, measured, reader))
    if reader.faults.errors:
        return None
    made = dict(
        numbers,
        name=device_name,
        origin=Origin.MEASURED if measured else Origin.PUBLISHED,
        profile=name,
        origins=tuple(origins.items()),
        tables=tables,
        besides=besides,
        tiles=tiles,
        base=base.device if base else None,
    )
    device = replace(base.device, **made) if base else Device(**made)
    return Profile(name, ranks, nodes, origin, device)


def _chip(value: Any, key: str, reader: _Reader) -> Any:
    if key == "backend":
        if value not in ("cuda", "cpu"):
            reader.fault("chip.backend", f"it must be `cuda` or `cpu`, not {value!r}")
        return value
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and n >= 0 for n in value):
        reader.fault(f"chip.{key}", f"it must be two whole numbers, not {value!r}")
        return (0, 0)
    return tuple(value)


def _entries(said: dict[str, Any], name: str, reader: _Reader) -> list[tuple[str, dict[str, Any]]]:
    found = said.get(name, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        reader.fault(name, f"it must be written [[{name}]]")
        return []
    return [(f"{name}[{i}].", item) for i, item in enumerate(found)]


def _tables(said: dict[str, Any], measured: bool, reader: _Reader) -> list[Table]:
    found = []
    for where, item in _entries(said, "rate", reader):
        reader.unknown(item, _RATE, where)
        impl, origin = (reader.text(item, key, where) for key in ("impl", "origin"))
        said_kinds = item.get("kind")
        kinds: list[Any] = said_kinds if isinstance(said_kinds, list) else [said_kinds]
        for kind in kinds or [None]:
            if kind not in KINDS:
                reader.fault(f"{where}kind", f"`{kind}` is no kind of op", did_you_mean(str(kind), KINDS))
        columns = item.get("columns")
        if not isinstance(columns, list) or len(columns) < 2:
            reader.fault(f"{where}columns", "it must list coordinates, and the value last")
            continue
        for column in columns[:-1]:
            if column not in COORDINATES:
                reader.fault(f"{where}columns", f"`{column}` is no coordinate", did_you_mean(str(column), COORDINATES))
        needs = {"tflops": ("rows", "out", "in"), "gb_per_s": ("mb",), "us": ()}.get(columns[-1])
        if needs is None:
            reader.fault(f"{where}columns", f"the last must be one of {', '.join(VALUES)}, not `{columns[-1]}`")
        elif missing := [name for name in needs if name not in columns]:
            reader.fault(f"{where}columns", f"{columns[-1]} needs {', '.join(missing)} beside it")
        elif columns[-1] == "us" and "mb" not in columns:
            reader.fault(f"{where}columns", "us needs mb beside it")
        points = reader.rows(item, len(columns), where)
        for i, point in enumerate(points):
            for column, number in zip(columns, point, strict=True):
                reader.number(number, f"{where}points[{i}].{column}", above=True)
        if len({point[:-1] for point in points}) < len(points):
            reader.fault(f"{where}points", "two points have the same coordinates")
        element = int(reader.number(item.get("element", 2), f"{where}element", 1))
        floor = reader.number(item["floor_us"], f"{where}floor_us") * 1e-6 if "floor_us" in item else None
        turn = reader.number(item.get("turn_us", 0.0), f"{where}turn_us") * 1e-6
        marked = reader.flag(item, "measured", where, measured)
        found.append(Table(tuple(kinds), impl, tuple(columns), points, origin, marked, element, floor, turn))
    return found


def _besides(said: dict[str, Any], measured: bool, reader: _Reader) -> list[Beside]:
    found = []
    for where, item in _entries(said, "beside", reader):
        reader.unknown(item, ("transfer", "compute", "origin", "columns", "points", "measured"), where)
        transfer, compute, origin = (reader.text(item, key, where) for key in ("transfer", "compute", "origin"))
        if item.get("columns") != ["sms", "hidden"]:
            reader.fault(f"{where}columns", 'it must be ["sms", "hidden"]')
        points = reader.rows(item, 2, where)
        for i, (sms, hidden) in enumerate(points):
            reader.number(sms, f"{where}points[{i}].sms", above=True)
            if reader.number(hidden, f"{where}points[{i}].hidden", least=-100) > 1:
                reader.fault(f"{where}points[{i}].hidden", f"at most all of it, 1, can be hidden, not {hidden}")
        pairs = tuple(sorted((float(sms), float(hidden)) for sms, hidden in points)) if not reader.faults.errors else ()
        found.append(Beside(transfer, compute, pairs, origin, reader.flag(item, "measured", where, measured)))
    return found


def _tiles(said: dict[str, Any], measured: bool, reader: _Reader) -> list[TileTable]:
    found = []
    for where, item in _entries(said, "tiles", reader):
        reader.unknown(item, ("out", "in", "act", "origin", "columns", "points", "measured"), where)
        out, deep = (int(reader.number(item.get(key), f"{where}{key}", 1)) for key in ("out", "in"))
        act, origin = reader.flag(item, "act", where), reader.text(item, "origin", where)
        if item.get("columns") != list(COLUMNS):
            reader.fault(f"{where}columns", f"it must be {json.dumps(COLUMNS)}")
            continue
        points = []
        for i, point in enumerate(reader.rows(item, len(COLUMNS), where)):
            if not all(type(number) is int and 0 <= number < 1 << 31 for number in point):
                reader.fault(f"{where}points[{i}]", "it must be whole numbers of at least 0")
                continue
            rows, *fields = map(int, point)
            tile = Tile(*fields)
            if fault := tile.fault():
                reader.fault(f"{where}points[{i}]", fault)
            points.append((rows, tile))
        if any(before >= after for (before, _), (after, _) in pairwise(points)):
            reader.fault(f"{where}points", "rows must rise from point to point")
        found.append(TileTable(out, deep, act, tuple(points), origin, reader.flag(item, "measured", where, measured)))
    return found
