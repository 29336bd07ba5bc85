"""How kinds of steps are drawn where there are real colours: one key, one name and one pair of colours for each."""

from __future__ import annotations

from dataclasses import dataclass

from epsc.ir.attrs import Direction, TransferAttrs
from epsc.ir.graph import Node
from epsc.ir.kinds import Role


@dataclass(frozen=True)
class Look:
    key: str
    words: str
    light: str
    """Fill on a light page; text on it is black."""
    dark: str
    """Fill on a dark page; text on it is black as well."""


LOOKS = (
    Look("compute", "GEMM", "#8fb3e8", "#7aa5e6"),
    Look("memory", "gather, activation, sum", "#8fd0c8", "#6cc0b6"),
    Look("dispatch", "transfer to the experts", "#a4d67d", "#93c96b"),
    Look("combine", "transfer back home", "#f4b860", "#e8aa4e"),
    Look("control", "routing, counts", "#c9cbd1", "#a9adb8"),
    Look("host", "the host waits", "#d5aee0", "#c394d2"),
)
BY_KEY = {look.key: look for look in LOOKS}


def look_of(role: Role, direction: Direction | None = None) -> Look:
    if role is Role.TRANSFER:
        return BY_KEY["combine" if direction is Direction.COMBINE else "dispatch"]
    return BY_KEY[role.value]


def look_of_node(node: Node) -> Look:
    return look_of(node.info.role, node.attrs.direction if isinstance(node.attrs, TransferAttrs) else None)
