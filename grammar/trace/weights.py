"""Where each weight of a traced layer lies in the module: which tensors, how turned and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch
from torch import Tensor

Get = Callable[[str], Tensor]


@dataclass(frozen=True)
class Piece:
    """A matrix or a bias of each expert, or of the layer: by the names of the tensors that hold it."""

    names: tuple[str, ...]
    """One tensor, which holds all experts or needs none; or one tensor for each expert."""
    shape: tuple[int, ...]
    """As it lies in the module, of one expert."""
    turned: bool = False
    """The program wants it transposed."""

    @property
    def made(self) -> tuple[int, ...]:
        """As the program wants it, of one expert."""
        return self.shape[::-1] if self.turned else self.shape

    @property
    def listed(self) -> bool:
        return len(self.names) > 1

    def one(self, get: Get, expert: int | None, first: int = 0) -> Tensor:
        """The piece of one expert, as the program wants it. A tensor may hold all experts, or those from `first` on."""
        if expert is None:
            found = get(self.names[0]).reshape(self.shape)
        elif self.listed:
            found = get(self.names[expert]).reshape(self.shape)
        else:
            found = get(self.names[0]).reshape(-1, *self.shape)[expert - first]
        return found.mT if self.turned else found


@dataclass(frozen=True)
class Weight:
    """A weight of the program: pieces below each other, for each expert if there are `experts`."""

    name: str
    pieces: tuple[Piece, ...]
    experts: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        first, *rest = self.pieces[0].made
        one = (sum(piece.made[0] for piece in self.pieces), *rest) if len(self.pieces) > 1 else (first, *rest)
        return (self.experts, *one) if self.experts else one

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(name for piece in self.pieces for name in piece.names)

    def read(self, get: Get, first: int = 0, count: int | None = None) -> Tensor:
        """The weight, or that of `count` experts from `first` on. One that lies as it is wanted is not copied."""
        piece = self.pieces[0]
        if not self.experts:
            parts = [each.one(get, None) for each in self.pieces]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        count = self.experts if count is None else count
        if len(self.pieces) == 1 and not piece.listed:
            whole = get(piece.names[0]).reshape(-1, *piece.shape)
            own = whole if len(whole) == count else whole[first : first + count]
            return own.mT if piece.turned else own
        wholes = [get(each.names[0]).numel() // prod(each.shape) for each in self.pieces if not each.listed]
        held = first if count < self.experts and all(n == count for n in wholes) else 0
        made: Tensor | None = None
        for i in range(count):
            one = self.one(get, first + i, held)
            made = one.new_empty(count, *one.shape) if made is None else made
            made[i] = one
        assert made is not None
        return made

    def one(self, get: Get, expert: int, first: int = 0) -> Tensor:
        """What one expert has of the weight."""
        return torch.cat([each.one(get, expert, first) for each in self.pieces])

    def spread(self, weight: Tensor, first: int = 0) -> dict[str, Tensor]:
        """The module's tensors again, of the experts that `weight` holds, from expert `first` on."""
        found: dict[str, Tensor] = {}
        at = 0
        for piece in self.pieces:
            size = piece.made[0]
            part = weight.narrow(1 if self.experts else 0, at, size)
            part = part.mT if piece.turned else part
            at += size
            if piece.listed:
                found |= {piece.names[first + i]: one for i, one in enumerate(part)}
            else:
                found[piece.names[0]] = part
        return found


@dataclass(frozen=True)
class Bank:
    """Tensors of one kind that a module has for its experts: one for all, or one for each."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    """Of one expert."""


def banks(tensors: Iterable[tuple[str, tuple[int, ...]]], experts: int) -> list[Bank]:
    """The tensors that may hold something of each of `experts` experts, and of others behind them.

    Listed ones differ in one number of their names: `experts.0.up.weight`, `experts.1.up.weight`.
    """
    known = dict(tensors)
    found = []
    patterns = [(pattern, number, name) for name in known for pattern, number in _numbered(name)]
    for _, same in groupby(sorted(patterns), key=lambda each: each[0]):
        members = sorted(same, key=lambda each: each[1])
        names = tuple(name for _, _, name in members)
        numbers = [number for _, number, _ in members]
        shapes = {known[name] for name in names}
        if numbers == list(range(experts)) and len(shapes) == 1 and experts > 1:
            found.append(Bank(names, shapes.pop()))
    listed = {name for bank in found for name in bank.names}
    alone = {name: shape for name, shape in known.items() if name not in listed}
    stacked = [Bank((name,), shape[1:]) for name, shape in alone.items() if len(shape) > 1 and shape[0] == experts]
    stacked += [
        Bank((name,), (shape[0] // experts, *shape[1:]))
        for name, shape in alone.items()
        if len(shape) == 2 and shape[0] % experts == 0 and shape[0] > experts
    ]
    stacked += [Bank((name,), shape[1:]) for name, shape in alone.items() if len(shape) == 3 and shape[0] > experts]
    return stacked + found


def _numbered(name: str) -> list[tuple[str, int]]:
    """The name with each number in it left out, and that number: `experts.3.w` and `expert_3.w`."""
    parts = name.split(".")
    found = []
    for i, part in enumerate(parts):
        head = part.rstrip("0123456789")
        if head != part and (not head or head.endswith("_")):
            found.append((".".join([*parts[:i], f"{head}*", *parts[i + 1 :]]), int(part[len(head) :])))
    return found
