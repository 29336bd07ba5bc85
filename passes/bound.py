"""What names are bound to while a layer is built: rows, or the decision of a router."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from epsc.ir.attrs import RouteAttrs, RowsAttrs
from epsc.ir.dims import Tensor
from epsc.ir.places import Place
from epsc.ir.source import Span


@dataclass(frozen=True)
class Route:
    """What `r = route(...)` binds: not a tensor but a decision, which dispatch and combine read.

    `routing(...)` binds one that was made elsewhere: of `attrs` only `experts` and `top_k` are known.
    """

    attrs: RouteAttrs
    experts: str
    """The value that holds the experts of each token."""
    weights: str
    """The value that holds their weights."""
    span: Span | None = field(default=None, compare=False)
    """Where it says how many experts there are."""
    whole: Route | None = None
    """Of a share of the tokens: the route of all of them."""
    axis: str = ""
    """The mesh axis whose ranks have the shares."""
    partial: bool = False
    """Some copies go nowhere: their expert is -1."""


@dataclass(frozen=True)
class Ids:
    """A value of numbers of experts, one column for each of a token's choices."""

    name: str
    type: Tensor


@dataclass(frozen=True)
class Rows:
    """A value of rows: its name in the Graph, and for routed rows the route that sent them."""

    name: str
    type: Tensor
    route: Route | None = None
    dispatch: str = ""
    sent: RowsAttrs | None = None
    """Of routed rows: which of the route's experts they are for."""
    partial: str = ""
    """The mesh axis over whose ranks these are parts of a sum."""
    shard: str = ""
    """Of rows whose experts ranks share: `columns`, each rank has its own, or `sum`, each rank has a part of a sum."""


@dataclass(frozen=True)
class Product:
    """A matrix product as it is said: a weight, how many columns it makes, and its options."""

    weight: str
    out: int
    options: Mapping[str, Any]
    span: Span | None
    origin: str = ""
    """What the op comes from, if not what is being built."""


def all_of(route: Route) -> RowsAttrs:
    """Rows for all experts of a route."""
    return RowsAttrs(route.attrs.experts, route.attrs.top_k)


Bound = Route | Rows | Ids | None

ANY = 2**31
"""Experts of a route of which nobody knows how many it has."""


class Scope:
    """The names of one layer's body while it is built."""

    def __init__(self, prefix: str, values: dict[str, Bound]) -> None:
        self.prefix = prefix
        self.values = values
        self.spans: dict[str, Span | None] = {}
        self.used: set[str] = set()
        self.statement = ""
        """What ops built now come from: a binding, or inside a `return` the name of the call."""
        self.places: tuple[Place, ...] = ()
        """The Python that they come from, if a comment says so."""

    @contextmanager
    def inside(self, call: str) -> Iterator[None]:
        """Let the ops built in here come from `call`."""
        before, self.statement = self.statement, call
        try:
            yield
        finally:
            self.statement = before
