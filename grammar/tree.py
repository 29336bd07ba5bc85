"""What a text is cut into, and what the grammar makes of that."""

from __future__ import annotations

from typing import NamedTuple


class Token(NamedTuple):
    """A word, number or sign; `kind` is its name in eps.lark. Tuples, because a large file has many."""

    kind: str
    text: str
    start: int
    end: int
    line: int
    column: int

    def as_kind(self, kind: str) -> Token:
        return self if kind == self.kind else self._replace(kind=kind)


class Node(NamedTuple):
    """What a rule of the grammar matched, without the words and signs that say nothing more."""

    kind: str
    children: list[Part]
    start: int
    end: int


Part = Token | Node


def word(part: Part) -> str:
    """The text of a part that the grammar makes a token."""
    assert isinstance(part, Token)
    return part.text
