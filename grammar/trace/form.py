"""Form: how many experts a seam has and what each computes, from the parameters and the numbers of its code."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from epsc.grammar.trace.capture import Seam
from epsc.grammar.trace.experts import Ffn, identify
from epsc.grammar.trace.oracle import close


def form(module: nn.Module, seam: Seam, hidden: int, top_k: int, device: torch.device) -> Ffn | None:
    """The experts of an fp32 twin as the language says them; None when it cannot."""
    owner = module.get_submodule(seam.owner)
    prefix = f"{seam.owner}." if seam.owner else ""
    named = {prefix + name: p for name, p in owner.named_parameters() if p.is_floating_point()}
    tensors: dict[str, Tensor] = {name: p for name, p in named.items() if seam.reads is None or name in seam.reads}
    numbers = module_numbers(owner)
    # What an activation computes with is no whole number by its type, what counts experts is.
    real = {n for n in numbers if isinstance(n, float)}
    posts = {prefix + name: child for name, child in owner.named_modules() if name and _is_post(child)}
    for count in _counts(tensors, {n for n in numbers if isinstance(n, int)}, top_k):
        with torch.no_grad():
            try:
                ffn = identify(seam.experts, tensors, count, top_k, hidden, real, device, posts)
            except (IndexError, RuntimeError, TypeError, ValueError):
                continue  # not so many experts: the module's own code cannot take their numbers
        if ffn:
            return ffn
    return None


def _is_post(module: nn.Module) -> bool:
    """Whether a module may stand behind experts: it has vectors only, as a norm or a scale of columns has."""
    parameters = list(module.parameters())
    return bool(parameters) and all(p.ndim == 1 for p in parameters) and type(module).forward is not nn.Module.forward


def identities(seam: Seam, ffn: Ffn, every: int, hidden: int, top_k: int, device: torch.device) -> bool:
    """Whether the experts behind those of `ffn`, of `every` that a token chooses from, hand their tokens back."""
    x = torch.randn(4, hidden, generator=torch.Generator(device).manual_seed(2), device=device)
    weights = torch.zeros(4, top_k, device=device)
    weights[:, 0] = 0.5
    for e in range(ffn.experts, every):
        ids = (e + torch.arange(top_k, device=device)).remainder(every).expand(4, -1).contiguous()
        with torch.no_grad():
            if not close(2 * seam.experts(x, ids, weights), x):
                return False
    return True


def _counts(tensors: dict[str, Tensor], numbers: set[int], top_k: int) -> list[int]:
    """How many experts there may be: first what the first dimension of stacked weights says, then listed ones."""
    stacked, words = _stacked(tensors), _listed(tensors)
    said = sorted((n for n in numbers if 1 < n <= 4096), reverse=True)
    divides = [n for n in said if all(t.shape[0] % n == 0 for t in tensors.values() if t.ndim == 2)]
    return [n for n in dict.fromkeys([*stacked, *sorted(words, reverse=True), *divides]) if n >= top_k]


def most_experts(tensors: dict[str, Tensor]) -> int:
    """As many as there can be, by weights that are stacked or listed; else by the rows of any matrix."""
    known = [*_stacked(tensors), *_listed(tensors)]
    return min(max(known or [t.shape[0] for t in tensors.values() if t.ndim > 1] or [1]), 1024)


def _stacked(tensors: dict[str, Tensor]) -> list[int]:
    return [t.shape[0] for t in tensors.values() if t.ndim == 3]


def _listed(tensors: dict[str, Tensor]) -> set[int]:
    last = [part.rpartition("_")[2] for name in tensors for part in name.split(".")]
    return {int(number) + 1 for number in last if number.isdigit()}


def module_numbers(module: nn.Module) -> list[int | float]:
    """Numbers that a module may compute with: its attributes, those of its parts, and the constants of its code."""
    found: dict[tuple[type, int | float], int | float] = {}
    for each in module.modules():
        values = [*vars(each).values()]
        for kind in type(each).__mro__:
            if kind.__module__.startswith("torch.nn"):
                break
            for function in vars(kind).values():
                code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
                values += code.co_consts if code else ()
        found |= {(type(v), v): v for v in values if isinstance(v, int | float) and not isinstance(v, bool)}
    return [n for n in found.values() if abs(n) < 1e6]
