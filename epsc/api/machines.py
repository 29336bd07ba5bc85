"""Machines: on how many of them the ranks of a group are, which decides what transfers there can be."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist


def nodes_of(group: dist.ProcessGroup | None, ranks: int) -> int:
    """Nodes of a cluster for the ranks of `group`. To be called on all of them."""
    if ranks == 1:
        return 1
    started = Path("/proc/sys/kernel/random/boot_id")
    names = [""] * ranks
    dist.all_gather_object(names, f"{platform.node()} {started.read_text() if started.exists() else ''}", group=group)
    return equal_nodes(names)


def equal_nodes(names: Sequence[str]) -> int:
    """How many nodes that is, of the machine of each rank. Where they have not as many ranks each, which no cluster can
    say, every rank counts as a node: what it sends is for other machines then."""
    counts = {names.count(name) for name in names}
    return len(set(names)) if len(counts) == 1 else len(names)
