"""What was measured, for people."""

from __future__ import annotations

from typing import Any

LEGEND = """\
median, p10, p90: ms of a forward over rounds, the slowest rank of each; noise: how far apart the runs' medians are
vs best: how many times as fast as the fastest layer by hand; floor: its share of the median
transfer, compute: ms of the plan's steps, each run alone; hidden: (transfer + compute - median) / the shorter of them
error: relative to fp32"""


def table(found: dict[str, Any]) -> str:
    """All cells of a journal."""
    if "layer" not in found:
        return "\n".join(["nothing was measured", *_failures(found)])
    lines = ["{layer}: {ranks} x {device}, {dtype}, torch {torch}".format(**found)]
    if rates := found.get("ceilings"):
        link = f", links {rates['link'] / 1e9:.0f} GB/s" if rates["link"] else ""
        lines.append(
            f"floor at {rates['flops'] / 1e12:.3g} TFLOP/s, memory {rates['hbm'] / 1e9:.0f} GB/s{link}"
            f" ({rates['origin']})"
        )
    for cell in found["cells"]:
        lines += ["", *_cell(cell)]
    for soak in found["soaks"]:
        lines += ["", *_soak(soak)]
    if found["cells"]:
        lines += ["", LEGEND]
    lines += [f"note: {note}" for note in found["notes"]]
    return "\n".join([*lines, *_failures(found)])


def _failures(found: dict[str, Any]) -> list[str]:
    return [f"FAILED: {f['name']}, {f['where']}: {f['reason'].splitlines()[-1]}" for f in found["failed"]]


def _cell(cell: dict[str, Any]) -> list[str]:
    rows, floor = cell["rows"], cell["floor"]
    head = f"{cell['workload']}, {cell['tokens']} tokens per rank; {_rows(rows)}"
    second = f"floor {floor['ms']:.3f} ms ({floor['bound_by']})"
    if cell["all2alls_ms"] is not None:
        second += f"; two all2alls by torch.distributed alone, evenly routed: {cell['all2alls_ms']:.3f} ms"
    names = list(cell["contenders"])
    hand = [c["median"] for c in cell["contenders"].values() if c["by_hand"]]
    heads = ("median", "p10", "p90", "noise", "vs best", "floor", "transfer", "compute", "hidden", "error")
    lines = [head, second, f"{'':20}" + "".join(f"{head:>9}" for head in heads)]
    for name in names:
        c = cell["contenders"][name]
        alone = c["alone"]
        hidden = "-"
        if alone is not None and alone["hidden"] is not None:
            hidden = f"{alone['hidden']:.0%}" if alone["hidden"] >= 0 else "< 0"
        cells = [f"{c[key]:.3f}" for key in ("median", "p10", "p90")]
        cells += [f"{(max(c['runs']) - min(c['runs'])) / c['median']:.1%}"]
        cells += [f"{min(hand) / c['median']:.2f}x" if hand else "-", f"{floor['ms'] / c['median']:.0%}"]
        cells += ["-", "-"] if alone is None else [f"{alone['transfer']:.3f}", f"{alone['compute']:.3f}"]
        cells += [hidden, f"{c['error']:.1e}"]
        lines.append(f"{name:20}" + "".join(f"{text:>9}" for text in cells))
    return lines


def _soak(soak: dict[str, Any]) -> list[str]:
    lines = [
        f"{soak['workload']}, {soak['forwards']} forwards of {', '.join(map(str, soak['tokens']))} tokens per rank in"
        f" {soak['seconds']:g} s;"
        f" {_rows(soak['rows'])}",
        f"outputs against {soak['against']}; memory grew by {soak['grew_bytes'] / 2**20:.1f} MiB from forward"
        f" {soak['warm']} on ({soak['memory']})",
    ]
    return lines + [f"{name:20} worst error {worst:.1e}" for name, worst in soak["errors"].items()]


def _rows(rows: dict[str, Any]) -> str:
    def three(values: list[float]) -> str:
        return " / ".join(f"{v:g}" for v in values)

    text = f"rows per rank {three(rows['per_rank'])}, per expert {three(rows['per_expert'])} (least / mean / most)"
    return text if rows["as_wanted"] > 0.9995 else f"{text}; {rows['as_wanted']:.1%} of tokens as wanted"
