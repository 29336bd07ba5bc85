"""Amount: a number that grows with the load, as a polynomial in the tokens of a rank."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest

from epsc.ir.errors import Diagnostic, EpsError

MOST_DEGREE = 3


@dataclass(frozen=True)
class Amount:
    """`terms[i]` for each tokens to the power of i. No terms: nobody said how much it is."""

    terms: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.terms)

    def at(self, tokens: float) -> float:
        """What it is worth at a load; nothing is less than nothing."""
        return max(0.0, sum(term * tokens**power for power, term in enumerate(self.terms)))

    @property
    def degree(self) -> int:
        return max((power for power, term in enumerate(self.terms) if term), default=0)

    def plus(self, other: Amount, sign: int = 1) -> Amount:
        return Amount(tuple(a + sign * b for a, b in zip_longest(self.terms, other.terms, fillvalue=0.0)))

    def times(self, other: Amount) -> Amount:
        terms = [0.0] * (len(self.terms) + len(other.terms) - 1)
        for i, a in enumerate(self.terms):
            for j, b in enumerate(other.terms):
                terms[i + j] += a * b
        return Amount(tuple(terms))

    def __str__(self) -> str:
        return " + ".join(f"{term!r}*tokens^{power}" for power, term in enumerate(self.terms))

    @staticmethod
    def parse(text: str) -> Amount:
        terms = []
        for power, piece in enumerate(text.split(" + ") if text else ()):
            found = re.fullmatch(r"(-?[0-9.]+(?:e[+-]?[0-9]+)?)\*tokens\^([0-9]+)", piece.strip())
            if not found or int(found[2]) != power:
                raise EpsError(Diagnostic("bad-value", f"`{text}` should read `1.0*tokens^0 + 2.0*tokens^1`"))
            terms.append(float(found[1]))
        return Amount(tuple(terms))
