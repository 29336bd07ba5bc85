"""Meshes: the ranks of a plan in rows and columns, so that an op can speak of the ranks of one axis."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from epsc.ir.errors import Diagnostic, EpsError


@dataclass(frozen=True)
class DeviceMesh:
    """Ranks 0, 1, ... along axes, outermost first: neighbours differ on the last axis.

    A plan may have several meshes over the same ranks. Those of one axis that agree on all others are a group.
    """

    name: str
    axes: tuple[tuple[str, int], ...]
    """Each with its size."""

    @property
    def ranks(self) -> int:
        return prod(size for _, size in self.axes)

    def size(self, axis: str) -> int:
        return dict(self.axes)[axis]

    def stride(self, axis: str) -> int:
        """How far apart neighbours along an axis are."""
        names = [name for name, _ in self.axes]
        return prod(size for _, size in self.axes[names.index(axis) + 1 :])

    def groups(self, axis: str) -> list[list[int]]:
        """The groups of an axis, by their first ranks."""
        size, stride = self.size(axis), self.stride(axis)
        firsts = [rank for rank in range(self.ranks) if rank // stride % size == 0]
        return [[first + i * stride for i in range(size)] for first in firsts]

    def __str__(self) -> str:
        return f"mesh {self.name}: {', '.join(f'{axis} {size}' for axis, size in self.axes)}"

    @staticmethod
    def parse(text: str) -> DeviceMesh:
        found = re.fullmatch(r"mesh (\w+): (\w+ [1-9]\d*(?:, \w+ [1-9]\d*)*)", text)
        if not found:
            raise EpsError(Diagnostic("bad-mesh", f"`{text}` does not read `mesh NAME: AXIS SIZE, ...`"))
        pairs = [pair.split(" ") for pair in found[2].split(", ")]
        return DeviceMesh(found[1], tuple((axis, int(size)) for axis, size in pairs))
