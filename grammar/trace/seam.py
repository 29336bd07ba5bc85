"""The seam of a block: where experts meet tokens, `experts(hidden[T, H], ids[T, K], weights[T, K]) -> [T, H]`.

All blocks share it whatever their router is. For tracing it is one op, `epsc::experts`, that nobody looks into.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]

_sites: dict[int, Experts] = {}
_numbers = count()


@torch.library.custom_op("epsc::experts", mutates_args=())
def experts_op(hidden: Tensor, ids: Tensor, weights: Tensor, site: int) -> Tensor:
    """Run the experts of a site: those of the module while it is traced, a compiled layer afterwards."""
    return _sites[site](hidden, ids, weights)


@experts_op.register_fake
def _(hidden: Tensor, ids: Tensor, weights: Tensor, site: int) -> Tensor:  # noqa: ARG001 - the op's signature
    return hidden.new_empty(hidden.shape)


EXPERTS = torch.ops.epsc.experts.default


def add_site(experts: Experts) -> int:
    """A number by which the op finds `experts`."""
    site = next(_numbers)
    _sites[site] = experts
    return site


@contextmanager
def forgotten() -> Iterator[None]:
    """Sites that are added while this lasts are gone afterwards, and with them the module that was traced."""
    before = set(_sites)
    try:
        yield
    finally:
        for site in _sites.keys() - before:
            del _sites[site]


def run_site(site: int) -> Experts:
    """What the op runs at a site."""
    return _sites[site]


@dataclass
class Marks:
    """The calls of `mark_experts` during one trace: each is a site."""

    sites: dict[int, int] = field(default_factory=dict)
    """By the identity of what was called: a forward that runs twice is one site still."""
    kept: list[Experts] = field(default_factory=list)

    def site(self, experts: Experts) -> int:
        key = hash(experts)
        if key not in self.sites:
            self.sites[key] = add_site(experts)
            self.kept.append(experts)
        return self.sites[key]


_marks: Marks | None = None


@contextmanager
def marking() -> Iterator[Marks]:
    """While this lasts, `mark_experts` makes the op."""
    global _marks
    before, _marks = _marks, Marks()
    try:
        yield _marks
    finally:
        _marks = before


def mark_experts(experts: Experts, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Say where the experts of a block are: `y = epsc.mark_experts(self.run_experts, hidden, ids, weights)`.

    `experts(hidden, ids, weights)` is a method or a module; it is called as it is, except while epsc traces.
    """
    if _marks is None:
        return experts(hidden, ids, weights)
    made: Tensor = EXPERTS(hidden, ids, weights, _marks.site(experts))
    return made
