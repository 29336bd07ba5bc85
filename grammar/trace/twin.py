"""Twins: copies of a module to try things on, with made-up weights, in the memory of its largest matrix.

Weights are windows of a few numbers: each matrix begins a little after another, those of the experts in one tensor too.
All differ, and none has memory of its own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

STEP = 8
"""Numbers between the beginnings of two matrices: as many as keep them aligned in 16 bits."""


def twin_of(module: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A copy with made-up weights, so that what is zero or unset in the module counts.

    In `dtype` is what has the dtype of the module; what is wider there, such as the bias of a router, stays so.
    """
    main = dtype_of(module)
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    made = _windows([(p, dtype if dtype is torch.float32 or p.dtype is main else p.dtype) for p in parameters], device)
    twin = copy.deepcopy(module, made).to(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.requires_grad_(False)
        for buffer in twin.buffers():
            if not buffer.is_floating_point():
                continue
            if dtype is torch.float32 or buffer.dtype is main:
                buffer.data = buffer.data.to(dtype)
            if not buffer.is_inference() and bool((buffer == 0).all()):
                buffer.copy_(0.25 * torch.randn(buffer.shape, generator=generator, device=device))
    return twin


def widened(twin: nn.Module) -> nn.Module:
    """A twin of 16 bits in fp32, with the same numbers."""
    made: dict[int, object] = {}
    wide: dict[int, Tensor] = {}
    for p in twin.parameters():
        if p.is_floating_point() and p.dtype is not torch.float32:
            storage = p.untyped_storage()
            if storage.data_ptr() not in wide:
                all_of_it = torch.empty(0, dtype=p.dtype, device=p.device).set_(storage)
                wide[storage.data_ptr()] = all_of_it.float()
            window = wide[storage.data_ptr()].as_strided(p.shape, p.stride(), p.storage_offset())
            made[id(p)] = nn.Parameter(window, requires_grad=False)
    return copy.deepcopy(twin, made).float() if made else copy.deepcopy(twin).float()


def _windows(wanted: Iterable[tuple[Tensor, torch.dtype]], device: torch.device) -> dict[int, object]:
    """By the identity of each parameter a new one, of numbers as large as its columns ask for."""
    groups: dict[tuple[int, torch.dtype], list[Tensor]] = {}
    for p, dtype in wanted:
        groups.setdefault((p.shape[-1] if p.ndim > 1 else 16, dtype), []).append(p)
    made: dict[int, object] = {}
    for (fan, dtype), members in groups.items():
        # A stack has a step for each of its matrices: no two of all begin alike.
        begins = list(accumulate((STEP * _matrices(p) for p in members), initial=0))
        most = max(begin + _reach(p) for begin, p in zip(begins, members, strict=False))
        generator = torch.Generator(device).manual_seed(fan)
        numbers = torch.randn(most, generator=generator, device=device).div_(math.sqrt(fan)).to(dtype)
        for begin, p in zip(begins, members, strict=False):
            made[id(p)] = nn.Parameter(numbers.as_strided(p.shape, _strides(p), begin), requires_grad=False)
    return made


def _matrices(p: Tensor) -> int:
    """How many begin a step after each other: those of a stack, or one."""
    return p.shape[0] if p.ndim > 2 and prod(p.shape[1:]) > STEP else 1


def _strides(p: Tensor) -> tuple[int, ...]:
    """As if contiguous, but that in a stack of matrices each begins a step after the one before."""
    strides = tuple(prod(p.shape[i + 1 :]) for i in range(p.ndim))
    return (STEP, *strides[1:]) if _matrices(p) > 1 else strides


def _reach(p: Tensor) -> int:
    """How many numbers a window on them needs."""
    return 1 + sum((size - 1) * stride for size, stride in zip(p.shape, _strides(p), strict=True)) if p.numel() else 0


def dtype_of(module: nn.Module) -> torch.dtype:
    """The dtype of most of what a module computes with."""
    return max((p for p in module.parameters() if p.is_floating_point()), key=lambda p: p.numel()).dtype
