"""Probes: inputs of other sizes made after those of an example, and a twin of a module with made-up weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


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


def twin_of(module: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A copy of the module to try things on: with made-up weights, so that what is zero or unset in it counts.

    In `dtype` is what has the dtype of the module; what is wider there, such as the bias of a router, stays so.
    """
    twin = copy.deepcopy(module)
    if any(p.is_meta for p in module.parameters()):
        twin = twin.to_empty(device=device)
    twin = twin.to(device=device).eval()
    main = dtype_of(module)
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.is_floating_point() and (dtype is torch.float32 or tensor.dtype is main):
            tensor.data = tensor.data.to(dtype)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.requires_grad_(False)
            if parameter.is_floating_point():
                fan = parameter.shape[-1] if parameter.ndim > 1 else 16
                numbers = torch.randn(parameter.shape, generator=generator, device=device)
                parameter.copy_(numbers / math.sqrt(fan))
        for buffer in twin.buffers():
            if buffer.is_floating_point() and not buffer.is_inference() and bool((buffer == 0).all()):
                buffer.copy_(0.25 * torch.randn(buffer.shape, generator=generator, device=device))
    return twin


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of most of what a module computes with."""
    return max((p for p in module.parameters() if p.is_floating_point()), key=lambda p: p.numel()).dtype
