"""What no schedule can go below: a layer's products, bytes or transfers alone, at rates that simple code reaches."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from epsc.bench.ranks import Ranks
from epsc.bench.shape import Router, Table
from epsc.bench.weights import flops_per_token


@dataclass(frozen=True)
class Ceilings:
    """Rates per second of one device, each the best that something simple reaches."""

    flops: float
    hbm: float
    """Bytes read plus bytes written."""
    link: float
    """Bytes to other ranks, each way; infinite where there are none."""
    origin: str


KNOWN = {"NVIDIA H200": Ceilings(771e12, 4.3e12, 387e9, "known for H200: 8192^3 product, copy, copy engine to a peer")}
"""Measured on two H200 over NVLink, bf16; the clock of a GPU that is hot already is no ceiling."""


def ceilings(ranks: Ranks, dtype: torch.dtype) -> Ceilings:
    """The known ones of this device, else what one large product, one copy and one all2all reach here and now."""
    cuda = ranks.device.type == "cuda"
    name = torch.cuda.get_device_name() if cuda else "cpu"
    if dtype == torch.bfloat16 and name in KNOWN:
        return KNOWN[name]
    alone = Ranks(ranks.device)
    n = 8192 if cuda else 512
    a, b = (torch.randn(n, n, device=ranks.device).to(dtype) for _ in range(2))
    alone.time([lambda: a @ b] * 3)
    product = median(alone.time([lambda: a @ b] * 5) for _ in range(3)) * 1e-3
    size = (1 << 30) if cuda else (1 << 25)
    there, here = (torch.zeros(size, dtype=torch.uint8, device=ranks.device) for _ in range(2))
    copy = median(alone.time([lambda: here.copy_(there)] * 3) for _ in range(5)) * 1e-3
    link = math.inf
    if ranks.world > 1:
        part = size // 4
        call = [lambda: dist.all_to_all_single(here[:part], there[:part])] * 2
        ranks.time(call)
        took = ranks.median([ranks.time(call) for _ in range(5)]) * 1e-3
        link = part * (ranks.world - 1) / ranks.world / took
    # Every rank must print the same.
    found = ranks.everyone((2.0 * n**3 / product, 2.0 * size / copy, link))[0]
    return Ceilings(*found, "measured here: one product, one copy, one all2all")


@dataclass(frozen=True)
class Floor:
    """Milliseconds of one forward, evenly routed."""

    products: float
    """All products but the router's, at the rate of one large one."""
    memory: float
    """Each weight that a random choice of experts needs and each input read once, each output written once."""
    links: float
    """Each token goes once to each other rank that has an expert of its choice, and once home."""

    @property
    def ms(self) -> float:
        return max(self.products, self.memory, self.links)

    @property
    def bound_by(self) -> str:
        return max(("products", "memory", "links"), key=lambda name: float(getattr(self, name)))

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ms": self.ms, "bound_by": self.bound_by}


def floor(table: Table, router: Router, hidden: int, tokens: float, world: int, item: int, rates: Ceilings) -> Floor:
    """`tokens` per rank, `item` bytes per element."""
    # Of the experts: those that some token chooses, when each chooses k at random.
    used = 1 - (1 - router.top_k / router.experts) ** (tokens * world)
    weights = sum(math.prod(w.shape) * (used / world if w.sharded else 1) for w in table.values())
    local = router.experts // world
    # Of k different experts, evenly drawn, none is on a given other rank.
    missed = math.comb(router.experts - local, router.top_k) / math.comb(router.experts, router.top_k)
    crossing = tokens * (world - 1) * (1 - missed) * hidden * item
    return Floor(
        tokens * flops_per_token(table, router.name, router.top_k) / rates.flops * 1e3,
        (weights + 2 * tokens * hidden) * item / rates.hbm * 1e3,
        2 * crossing / rates.link * 1e3,
    )
