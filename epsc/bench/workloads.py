"""Workloads: inputs for which a layer's own router, as it is, sends tokens where a benchmark wants them.

Nothing in a layer is replaced. First a workload says which experts each token should get, within the router's group
limits. Then inputs are solved for: random numbers plus the combination of router rows that makes the logits of the
wanted experts higher than all others by a clear margin. With fewer experts than hidden sizes there always is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from epsc.bench.reference import Raw, chosen_experts
from epsc.bench.shape import Router

WANTED = (1.5, 2.5)
OTHERS = (-1.5, -0.5)
"""Logits, evenly spread: so far apart that neither rounding nor a small choice bias changes the choice."""


@dataclass(frozen=True)
class Achieved:
    """Rows that came out, over all ranks: least, mean and most."""

    per_rank: tuple[int, float, int]
    per_expert: tuple[int, float, int]
    as_wanted: float
    """Share of the tokens whose experts are those that the workload asked for."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Workloads:
    """Inputs by workload for one rank."""

    def __init__(self, router: Router, raw: Raw, rank: int, world: int, dtype: torch.dtype, seed: int = 0) -> None:
        self.router, self.raw, self.rank, self.world, self.dtype = router, raw, rank, world, dtype
        weight = raw(f"{router.name}.weight").float()
        self.rows, self.device, self.hidden = weight, weight.device, weight.shape[1]
        self.local = router.experts // world
        # In fp64 and on the host: it is small, and what it solves is exact then.
        gram = weight.cpu().double() @ weight.cpu().double().T
        self.inverse = torch.linalg.pinv(gram, hermitian=True).float().to(self.device)
        self.here = torch.Generator(self.device).manual_seed(1000 + 7919 * seed + rank)
        self.host = torch.Generator().manual_seed(1000 + 7919 * seed + rank)
        # What is the same on every rank: which experts are popular.
        self.popularity = torch.randperm(router.experts, generator=torch.Generator().manual_seed(seed))

    def sizes(self, workload: str, tokens: int, count: int) -> list[int]:
        """Tokens of `count` forwards that come one after the other."""
        if workload == "burst":
            return [max(1, tokens // 8) if (i + 1) % 4 else tokens for i in range(count)]
        return [tokens] * count

    def make(self, workload: str, tokens: int) -> tuple[Tensor, Tensor | None]:
        """x[tokens, hidden] of this rank, and the experts it was made for, int64[tokens, k]; None: any."""
        x = torch.randn(tokens, self.hidden, generator=self.here, device=self.device)
        wanted = self.wanted(workload, tokens)
        if wanted is None or not tokens:
            return x.to(self.dtype), None

        def spread(ends: tuple[float, float]) -> Tensor:
            numbers = torch.rand(tokens, self.router.experts, generator=self.here, device=self.device)
            return ends[0] + (ends[1] - ends[0]) * numbers

        target = spread(OTHERS).scatter(1, wanted, spread(WANTED).gather(1, wanted))
        if self.router.bias:
            target = target - self.raw(f"{self.router.name}.bias").float()
        x = x + (target - x @ self.rows.T) @ self.inverse @ self.rows
        return x.to(self.dtype), wanted

    def wanted(self, workload: str, tokens: int) -> Tensor | None:
        """Which experts each token should get, int64[tokens, k], within group limits; None: any."""
        if workload in ("random", "burst"):
            return None
        if workload == "balanced":
            return self._balanced(tokens).to(self.device)
        experts = self.router.experts
        likely = torch.zeros(experts)
        if workload == "zipf":
            likely[self.popularity] = -torch.arange(1, experts + 1).float().log()
        # A finite push, larger than any noise: where group limits or k leave no other choice, an expert is still taken.
        elif workload == "hot-expert":
            likely[0] = 1e3
        elif workload == "hot-rank":
            likely[: self.local] = 1e3
        elif workload == "empty-rank":
            likely[experts - self.local :] = -1e3
        # Adding Gumbel noise and taking the k best draws k experts without putting any back.
        noise = torch.rand(tokens, experts, generator=self.here, device=self.device).clamp(1e-9, 1 - 1e-7)
        return self._best(likely.to(self.device) - (-noise.log()).log())

    def _best(self, keys: Tensor) -> Tensor:
        """keys[tokens, experts] -> the k best of each token that its router can choose together."""
        if self.router.groups > 1:
            grouped = keys.unflatten(-1, (self.router.groups, -1))
            kept = grouped.amax(-1).topk(self.router.top_groups, dim=-1).indices
            dropped = torch.ones(grouped.shape[:2], dtype=torch.bool, device=keys.device).scatter_(1, kept, False)
            keys = grouped.masked_fill(dropped.unsqueeze(-1), -torch.inf).flatten(1)
        return keys.topk(self.router.top_k, dim=-1).indices

    def _balanced(self, tokens: int) -> Tensor:
        """A few tokens after the other take those experts that have the fewest rows so far. Many small steps: on the
        host."""
        experts, k = self.router.experts, self.router.top_k
        rows, found = torch.zeros(experts), []
        step = max(1, experts // (4 * k))
        for first in range(0, tokens, step):
            few = min(step, tokens - first)
            best = self._best(torch.rand(few, experts, generator=self.host) * 0.9 - rows)
            rows += torch.bincount(best.flatten(), minlength=experts)
            found.append(best)
        return torch.cat(found) if found else torch.empty(0, k, dtype=torch.int64)

    def achieved(self, given: list[tuple[Tensor, Tensor | None]], everyone: Callable[[Any], list[Any]]) -> Achieved:
        """What the router makes of these inputs of all ranks. `everyone`: the value of each rank."""
        rows = torch.zeros(self.router.experts, dtype=torch.int64, device=self.device)
        same, tokens = 0, 0

        def get(name: str) -> Tensor:
            return self.raw(name).float()

        for x, wanted in given:
            chosen = chosen_experts(self.router, x.float(), get)[1]
            rows += chosen.sum(0)
            tokens += len(x)
            if wanted is None:
                same += len(x)
            else:
                same += int((torch.zeros_like(chosen).scatter_(1, wanted, True) == chosen).all(-1).sum())
        every = everyone([same, tokens, *rows.tolist()])
        same, tokens, *counts = map(sum, zip(*every, strict=True))
        by_rank = [sum(counts[i * self.local : (i + 1) * self.local]) for i in range(self.world)]
        return Achieved(_spread(by_rank, len(given)), _spread(counts, len(given)), same / max(1, tokens))


def _spread(rows: list[int], forwards: int) -> tuple[int, float, int]:
    """Least, mean and most for one forward on average."""
    return round(min(rows) / forwards), round(sum(rows) / len(rows) / forwards, 1), round(max(rows) / forwards)
