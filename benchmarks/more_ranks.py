"""What `auto` takes on 2, 4, 8 and 64 GPUs, and what is predicted of it: the table of docs/cost-model.md.

python -m benchmarks.more_ranks [--tokens N] [LAYER ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from epsc import driver
from epsc.ir.errors import EpsError
from epsc.machine.simulate import simulate
from epsc.machine.timeline import length
from epsc.passes.auto import Candidate, best_of

EXAMPLES = Path(__file__).parents[1] / "examples"
LAYERS = ("deepseek_v2", "deepseek_v3", "qwen3_30b_a3b", "mixtral_8x7b", "dbrx")
MACHINES = (("h200", 2, 1), ("h200", 4, 1), ("h200", 8, 1), ("h800", 8, 1), ("h100", 64, 8))
"""Device, ranks, nodes."""


@dataclass(frozen=True)
class Row:
    """One layer on one machine."""

    layer: str
    machine: str
    ep: int
    taken: Candidate
    serial: float
    """Predicted seconds of serial."""
    transfers: float
    """Seconds of the plan that is taken in which a transfer runs."""
    exposed: float
    sent: float
    """Bytes that leave a rank."""

    def __str__(self) -> str:
        taken, sent = self.taken, f"{self.sent / 1e6:.0f}"
        how = f"`{taken.decl.name}`{', graph' if taken.graph else ''}"
        ms = [f"{1e3 * seconds:.2f}" for seconds in (self.serial, taken.seconds, self.transfers, self.exposed)]
        gain = f"{self.serial / taken.seconds:.2f}x"
        return " | ".join(
            ("", self.layer, self.machine, str(self.ep), how, ms[0], ms[1], gain, *ms[2:], sent, "")
        ).strip()


HEAD = (
    "| layer | device | `ep` | `auto` takes | serial, ms | taken, ms | | transfers | exposed | sent, MB |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def rows(names: tuple[str, ...], tokens: int) -> Iterator[Row]:
    """Of every layer on every machine whose ranks can share its experts."""
    for name in names:
        for device, ep, nodes in MACHINES:
            said = {"ep": str(ep), "nodes": str(nodes), "device": device, "tokens": str(tokens)}
            try:
                layer = driver.understand(driver.read(EXAMPLES / f"{name}.eps"), driver.Options(said))
            except EpsError:
                continue
            plan = driver.plan(layer, "best")
            taken = best_of(list(plan.considered))
            serial = next(each for each in plan.considered if each.decl.name == "serial").seconds
            timeline = simulate(plan.schedule, layer.cluster, tokens, graph=taken.graph)
            sent = sum(event.work.link_bytes for event in timeline.events)
            machine = f"{device}, {nodes} nodes" if nodes > 1 else device
            yield Row(name, machine, ep, taken, serial, length(timeline.transfers), timeline.exposed_transfer, sent)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("layers", nargs="*", metavar="LAYER", help=f"of {', '.join(LAYERS)}; all by default")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per rank, 4096 by default")
    args = parser.parse_args()
    if strangers := [name for name in args.layers if not (EXAMPLES / f"{name}.eps").is_file()]:
        parser.error(f"there is no example {', '.join(strangers)}")
    print(HEAD)
    for row in rows(tuple(args.layers) or LAYERS, args.tokens):
        print(row, flush=True)


if __name__ == "__main__":
    main()
