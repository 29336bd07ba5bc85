"""The profile that a journal of measurements makes: TOML text, read again by `epsc.machine.profile`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Any

Points = dict[tuple[float, ...], list[float]]
"""Coordinates -> what was measured there, in several programs."""

_GEMM = ("rows", "out", "in", "experts", "sms")
_ROLES = ("compute", "memory")
_CONTROL = "control"


@dataclass(frozen=True)
class Head:
    """What the measurements do not say."""

    device: str
    backend: str
    ranks: int
    date: str
    line_gb_per_s: float | None = None
    """The line rate of the links between ranks, if it is known."""
    base: str | None = None
    """The shipped profile that what was not measured is taken from."""


NEEDED = ("bf16_flops", "fp32_flops", "copy_bytes_per_s", "launch_s", "kernel_s", "transfer_s", "round_trip_s")
"""Numbers of the machine without which there is no profile, unless it has a base."""


def profile_text(journal: dict[str, Any], manifest: dict[str, Any], head: Head) -> str:
    """A profile of everything that `journal` holds."""
    rates = {name.removeprefix("machine: "): found for name, found in journal.items() if name.startswith("machine: ")}
    measured = [
        (load, found)
        for probe in manifest["probes"]
        if f"program: {probe['name']}" in journal
        for load, found in zip(probe["loads"], journal[f"program: {probe['name']}"], strict=True)
    ]
    host = [
        found["alone"][step]
        for load, found in measured
        for step, what in load["steps"].items()
        if what["role"] == "host"
    ]
    origin = _origin(journal, head)
    lines = [
        *([f'base = "{head.base}"'] if head.base else []),
        f'device = "{head.device}"',
        f"ranks = {head.ranks}",
        "nodes = 1",
        "measured = true",
        f'origin = "{origin}"',
        "",
        *_chip(journal, head),
        "",
        *_rates(rates, head),
        "",
        *_latencies(rates, measured, host, head),
    ]
    for (impl, columns), kinds in _tables(measured, rates):
        for kind, points in kinds.items():
            lines += ["", *_rate(kind, impl, columns, points)]
    # Where the device waited for the host, gaps say nothing about what shares it. (CPU lanes issue as they go.)
    busy = [
        (load, timed) for load, timed in measured if head.backend != "cuda" or timed["issued"] < 0.75 * timed["whole"]
    ]
    for (transfer, compute), pairs in _besides(busy).items():
        lines += ["", *_beside(transfer, compute, pairs)]
    return "\n".join(lines) + "\n"


def _origin(journal: dict[str, Any], head: Head) -> str:
    hardware = journal.get("hardware", "CPU cores, gloo")
    nccl = f", NCCL {journal['nccl']}" if "nccl" in journal else ""
    return f"epsc calibrate, {head.date}: {head.ranks} ranks on {hardware}; torch {journal['torch']}{nccl}"


_CHIP = """sms, capability, memory: the driver. Others are not measured: EPS-MoE says that an all2all needs 10 to 20 \
SMs, an activation 40 to 60; tile is that of the persistent kernel"""
_CORES = "sms: cores count as two, whatever there are; nothing here is measured"
_LATENCIES = """launch: the host, for one small product in a row of them; step, triton: what the host takes for \
forwards of few tokens of all programs, less other launches and what those take more that stop for sizes, by least \
squares (all 0 on CPU, where a step is done when it is issued); kernel: small kernels in a row; event: two streams \
that wait for each other; transfer: an all2all of one element; host_sync: the step that reads sizes; signal: as a \
transfer, unless there is a base"""


def _chip(journal: dict[str, Any], head: Head) -> list[str]:
    cuda = head.backend == "cuda"
    lines = [
        "[chip]",
        f'origin = "{_CHIP if cuda else _CORES}"',
        f'backend = "{head.backend}"',
        f"sms = {journal.get('sms', 2)}",
        f"copy_engines = {3 if cuda else 0}",
        f"transfer_sms = {16 if cuda else 1}",
        f"memory_sms = {50 if cuda else 2}",
    ]
    if cuda:
        lines += [f"capability = {journal['capability']}", "tile = [128, 256]"]
        lines += [f"memory_gb = {journal['memory'] / 1e9:.4g}"] if "memory" in journal else []
    return lines


def _rates(rates: dict[str, float], head: Head) -> list[str]:
    line = head.line_gb_per_s or (None if head.base else rates["link_bytes_per_s"] / 1e9)
    told = "given" if head.line_gb_per_s else "what a large all2all reaches"
    origins = ["products of square matrices; a copy, read plus written"]
    if line:
        origins.append(f"intra: {told}")
    if not head.base:
        origins.append("inter, copy: as intra; host: as intra; not measured")
    known = {
        "bf16_tflops": _of(rates, "bf16_flops", 1e12),
        "fp32_tflops": _of(rates, "fp32_flops", 1e12),
        "hbm_gb_per_s": _of(rates, "copy_bytes_per_s", 1e9),
        "intra_gb_per_s": line,
    }
    if not head.base:
        known |= dict.fromkeys(("inter_gb_per_s", "copy_gb_per_s", "host_gb_per_s"), line)
    return _section("rates", "; ".join(origins), known)


def _latencies(rates: dict[str, float], measured: list[tuple[Any, Any]], host: list[float], head: Head) -> list[str]:
    cuda = head.backend == "cuda"
    syncs = [rates[name] for name in ("round_trip_s",) if name in rates] + ([median(host)] if host else [])
    known = {
        "launch_us": _of(rates, "launch_s", 1e-6) if cuda else 0.0,
        "kernel_us": _of(rates, "kernel_s", 1e-6),
        "event_us": _of(rates, "event_s", 1e-6) or _of(rates, "kernel_s", 1e-6),
        "transfer_us": _of(rates, "transfer_s", 1e-6),
        "host_sync_us": max(syncs) * 1e6 if syncs else None,
    }
    # On CPU a step is done when it is issued, so what issuing costs is in the time of the step.
    issuing = _issuing(measured, rates["launch_s"]) if cuda and "launch_s" in rates else None
    if issuing:
        known |= {"step_us": issuing[0] * 1e6, "triton_us": issuing[1] * 1e6}
    elif not head.base:
        known["step_us"] = 0.0
    if not head.base:
        known["signal_us"] = known["transfer_us"]
    return _section("latencies", _LATENCIES, known)


def _of(rates: dict[str, float], name: str, unit: float) -> float | None:
    return rates[name] / unit if name in rates else None


def _section(name: str, origin: str, known: dict[str, float | None]) -> list[str]:
    """Without what was not measured: that is the base's."""
    numbers = [f"{key} = {_short(number)}" for key, number in known.items() if number is not None]
    return [f"[{name}]", f'origin = "{origin}"', *numbers]


def _issuing(measured: list[tuple[Any, Any]], launch_s: float) -> tuple[float, float] | None:
    """Host time of a step besides its launches, and of a Triton launch; None if too few programs were measured.

    Of the least load of each program: seconds until all was issued, less launches of torch, are
    steps * a + Triton launches * b, and c more where the host stops for sizes.
    """
    least: dict[tuple[str, ...], tuple[Any, Any]] = {}
    for load, found in measured:
        steps = tuple(load["steps"])
        if steps not in least or load["tokens"] < least[steps][0]["tokens"]:
            least[steps] = (load, found)
    rows, seconds = [], []
    for load, found in least.values():
        steps = load["steps"].values()
        triton = sum(what["launches"] for what in steps if what.get("triton"))
        others = sum(what["launches"] for what in steps if not what.get("triton"))
        rows.append((float(len(steps)), float(triton), float(any(what["role"] == "host" for what in steps))))
        seconds.append(found["issued"] - others * launch_s)
    if len(rows) < 3:
        return None
    a, b, _ = _least_squares(rows, seconds)
    return a, b


def _least_squares(rows: Sequence[tuple[float, ...]], wanted: list[float]) -> list[float]:
    """Numbers of at least 0, by which the rows come nearest to what is wanted: one after the other, until still."""
    found = [0.0] * len(rows[0])
    for _ in range(2000):
        for i in range(len(found)):
            square = sum(row[i] * row[i] for row in rows)
            off = sum(
                row[i] * (w - sum(x * f for x, f in zip(row, found, strict=True)) + row[i] * found[i])
                for row, w in zip(rows, wanted, strict=True)
            )
            found[i] = max(0.0, off / square) if square else 0.0
    return found


def _tables(
    measured: list[tuple[Any, Any]], rates: dict[str, float]
) -> Iterable[tuple[tuple[str, tuple[str, ...]], dict[str, Points]]]:
    """(implementation, columns) -> kind -> points."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, Points]] = {}
    for load, timed in measured:
        for step, what in load["steps"].items():
            at, seconds = what["at"], timed["alone"].get(step)
            if seconds is None or seconds <= 0 or not at.get("mb"):
                continue
            besides = what["besides_mb"] * 1e6 / rates.get("copy_bytes_per_s", inf)
            if what["role"] in _ROLES and "out" in at and at["rows"] > 0:
                columns: tuple[str, ...] = (*_GEMM, "tflops")
                flops = 2 * at["experts"] * at["rows"] * at["out"] * at["in"]
                # What pads or activates beside the product was measured with it.
                value = flops / max(seconds - besides, seconds / 4) / 1e12
            elif what["role"] == "transfer":
                columns = ("mb", *(["moved"] if "moved" in at else []), "sms", "us")
                value = seconds * 1e6
            elif what["role"] in (*_ROLES, _CONTROL):
                columns, value = ("mb", "us"), seconds * 1e6
            else:
                continue
            place = tuple(float(_short(at[name])) for name in columns[:-1])
            kinds = found.setdefault((what["impl"], columns), {})
            kinds.setdefault(what["kind"], {}).setdefault(place, []).append(value)
    return found.items()


def _besides(measured: list[tuple[Any, Any]]) -> dict[tuple[str, str], dict[float, list[float]]]:
    """(transfer, product) -> SMs of the product -> shares hidden, of every run in which the two met for long enough."""
    found: dict[tuple[str, str], dict[float, list[float]]] = {}
    for load, timed in measured:
        for spans in timed.get("together", ()):
            for step, what in load["steps"].items():
                if what["role"] != "transfer" or not what["at"].get("mb") or step not in spans:
                    continue
                pair = _hidden(step, spans, load["steps"], timed["alone"])
                if pair:
                    compute, sms, hidden = pair
                    found.setdefault((what["impl"], compute), {}).setdefault(sms, []).append(hidden)
    return found


def _hidden(
    transfer: str, spans: dict[str, list[float]], steps: dict[str, Any], alone: dict[str, float]
) -> tuple[str, float, float] | None:
    """The product that mostly ran beside a transfer, its SMs, and the share of the shorter that was hidden."""
    start, end = spans[transfer]
    beside = [
        step
        for step, what in steps.items()
        if what["role"] in _ROLES and step in spans and spans[step][0] < end and spans[step][1] > start
    ]
    products = [step for step in beside if steps[step]["role"] == "compute"]
    if not products:
        return None
    shared = sum(min(end, spans[step][1]) - max(start, spans[step][0]) for step in products)
    compute = sum(alone[step] for step in beside)
    shorter = min(compute, alone[transfer])
    if shared < 0.5 * shorter or shorter <= 0:
        return None  # they hardly met: the share would be of nothing
    together = max(end, *(spans[step][1] for step in beside)) - min(start, *(spans[step][0] for step in beside))
    longest = max(products, key=lambda step: alone[step])
    hidden = (compute + alone[transfer] - together) / shorter
    return steps[longest]["impl"], float(steps[longest]["at"]["sms"]), min(1.0, hidden)


def _rate(kind: str, impl: str, columns: tuple[str, ...], points: Points) -> list[str]:
    rows = [f"  [{', '.join(map(_short, (*place, median(values))))}]," for place, values in sorted(points.items())]
    return [
        "[[rate]]",
        f'kind = "{kind}"',
        f'impl = "{impl}"',
        'origin = "steps of emitted programs, each alone; medians, of ranks the slowest; rows per expert are random"',
        f"columns = {json.dumps(columns)}",
        "points = [",
        *rows,
        "]",
    ]


def _beside(transfer: str, compute: str, pairs: dict[float, list[float]]) -> list[str]:
    rows = [f"  [{_short(sms)}, {median(shares):.2f}]," for sms, shares in sorted(pairs.items())]
    return [
        "[[beside]]",
        f'transfer = "{transfer}"',
        f'compute = "{compute}"',
        'origin = "layers cut in two or more groups: what a transfer and the steps beside it take together and alone"',
        'columns = ["sms", "hidden"]',
        "points = [",
        *rows,
        "]",
    ]


def _short(number: float) -> str:
    """Four digits that count."""
    return f"{float(f'{number:.4g}'):.10g}"
