"""Verify: the lifted block computes what the module computes, or is not accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from epsc.grammar.trace.probe import Inputs
from epsc.grammar.trace.twin import widened
from epsc.ir.errors import EpsError

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Of the largest difference, over the largest value."""

LOADS = ((1, False), (3, False), (80, False), (80, True))
"""Tokens, and whether all are the same and so go to the same experts."""


@dataclass(frozen=True)
class Mismatch:
    """Where a lifted block is off, and by how much."""

    tokens: int
    same: bool
    dtype: torch.dtype
    error: float

    def __str__(self) -> str:
        how = " that all go to the same experts" if self.same else ""
        kind = str(self.dtype).removeprefix("torch.")
        limit = LIMITS[self.dtype]
        off = f"off by {self.error:.2g} of the largest value ({limit:g} may be)"
        return f"on {self.tokens} token(s){how}, in {kind}, it is {off}"


@dataclass(frozen=True)
class Case:
    """A load, and what the module computes on it."""

    tokens: int
    same: bool
    args: tuple[Any, ...]
    wanted: list[Tensor]
    exact: list[Tensor]
    """The module in fp32 on the same numbers."""


def cases(module: nn.Module, inputs: Inputs, dtype: torch.dtype) -> list[Case]:
    """What `module`, which is in that dtype, computes on every load."""
    wide = module if dtype is torch.float32 else widened(module)
    found = []
    for seed, (tokens, same) in enumerate(LOADS):
        args = inputs.made(tokens, 100 + seed, dtype, same=same)
        with torch.no_grad():
            found.append(Case(tokens, same, args, _tensors(module(*args)), _tensors(wide(*_float(args)))))
    return found


def verify(lifted: Callable[..., Any], known: list[Case], dtype: torch.dtype) -> Mismatch | None:
    """The first load on which `lifted` is not what the module computes.

    In 16 bits a router that rounds its logits may choose another of two close experts than one that does not. So a
    row must equal the module's in that dtype, or the module's in fp32 on the same numbers.
    """
    for case in known:
        try:
            with torch.no_grad():
                made = _tensors(lifted(*case.args))
        except EpsError:
            return Mismatch(case.tokens, case.same, dtype, float("inf"))  # such as an expert that there is not
        error = _off(made, case.wanted, case.exact, case.tokens)
        if not error <= LIMITS[dtype]:
            return Mismatch(case.tokens, case.same, dtype, error)
    return None


def _tensors(out: Any) -> list[Tensor]:
    return [each for each in pytree.tree_leaves(out) if isinstance(each, Tensor)]


def _float(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def _off(made: list[Tensor], wanted: list[Tensor], exact: list[Tensor], tokens: int) -> float:
    """The largest difference over the largest value; infinite where shapes or dtypes differ."""
    if len(made) != len(wanted):
        return float("inf")
    worst = 0.0
    for m, w, e in zip(made, wanted, exact, strict=True):
        if m.shape != w.shape or m.dtype != w.dtype:
            return float("inf")
        rows = (tokens, -1) if m.numel() and m.numel() % tokens == 0 else (1, -1)
        if not m.numel():
            continue
        m, w, e = (t.double().reshape(rows) for t in (m, w, e))
        error = torch.minimum((m - w).abs().amax(1), (m - e).abs().amax(1))
        scale = float(w.abs().max()) or 1.0
        worst = max(worst, float(error.max()) / scale) if bool(torch.isfinite(error).all()) else float("inf")
    return worst
