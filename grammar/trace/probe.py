"""Probes: inputs of other sizes made after those of an example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """How a block is called: which argument holds the tokens, and what else has a row for each of them."""

    example: tuple[Any, ...]
    tokens: int
    """Position of the tokens among the arguments."""

    @property
    def rows(self) -> Tensor:
        found: Tensor = self.example[self.tokens]
        return found

    @property
    def leading(self) -> tuple[int, ...]:
        """The shape of the tokens without their features."""
        return tuple(self.rows.shape[:-1])

    def per_token(self, value: Any) -> bool:
        """Whether an argument has something for each token."""
        return isinstance(value, Tensor) and tuple(value.shape[: len(self.leading)]) == self.leading

    def made(
        self, count: int | tuple[int, ...], seed: int, dtype: torch.dtype, *, scale: float = 1.0, same: bool = False
    ) -> tuple[Any, ...]:
        """Arguments for `count` tokens: one sequence of them, or that shape. `same`: all tokens are equal."""
        lead = count if isinstance(count, tuple) else (*(1 for _ in self.leading[1:]), count)
        device = self.rows.device
        generator = torch.Generator(device).manual_seed(seed)
        made: list[Any] = []
        for value in self.example:
            if not self.per_token(value):
                floating = isinstance(value, Tensor) and value.is_floating_point()
                made.append(value.to(dtype) if floating else value)
                continue
            shape = (*lead, *value.shape[len(self.leading) :])
            if value.is_floating_point():
                tail = value.shape[len(self.leading) :]
                rows = torch.randn((1,) * len(lead) + tail if same else shape, generator=generator, device=device)
                made.append((rows.expand(shape) * scale).contiguous().to(dtype))
            else:
                most = int(value.max()) + 1 if value.numel() else 1
                made.append(torch.randint(0, most, shape, generator=generator, device=device).to(value.dtype))
        return tuple(made)


def inputs_of(example: Sequence[Any]) -> Inputs | None:
    """The tokens are the first argument of floating-point rows; None when there is none."""
    for i, value in enumerate(example):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2:
            return Inputs(tuple(example), i)
    return None
