"""Where a piece of a Spec came from: a text and a stretch of it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property

_WIDTH = 160
"""Characters of a source line that an excerpt shows."""


@dataclass(frozen=True)
class Source:
    """A text that a user wrote, and the name to show for it (a path, `<string>`, a Python file)."""

    name: str
    text: str = field(repr=False)

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(i + 1 for i, char in enumerate(self.text) if char == "\n")]

    def position(self, offset: int) -> tuple[int, int]:
        """1-based (line, column) of a character offset."""
        offset = min(max(offset, 0), len(self.text))
        line = bisect_right(self._line_starts, offset)
        return line, offset - self._line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """The text of 1-based line `number`, without its newline."""
        start = self._line_starts[number - 1]
        end = self.text.find("\n", start)
        return self.text[start:] if end < 0 else self.text[start:end]


@dataclass(frozen=True)
class Span:
    """Characters `start` up to but not including `end` of a source."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        return self.source.position(self.start)[0]

    @property
    def column(self) -> int:
        return self.source.position(self.start)[1]

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}"

    def excerpt(self) -> str:
        """The source line with a caret under the span, numbered, ready to print."""
        line, column = self.source.position(self.start)
        text = self.source.line(line)
        end_line, end_column = self.source.position(self.end)
        width = (end_column if end_line == line else len(text) + 1) - column
        # A line may be as long as the file, and hold what a terminal would obey.
        cut = max(0, column - 1 - _WIDTH // 2) if len(text) > _WIDTH else 0
        shown = text[cut : cut + _WIDTH]
        shown = printable(shown, keep="\t")
        column -= cut
        width = min(width, len(shown) + 1 - column)
        # A tab takes one character of the source but several columns of a terminal: copy it into the caret line.
        indent = "".join("\t" if char == "\t" else " " for char in shown[: column - 1])
        margin = f"{line:>5} | "
        return f"{margin}{shown}\n{' ' * (len(margin) - 2)}| {indent}{'^' * max(1, width)}"


def printable(text: str, keep: str = "") -> str:
    """The text with a mark for each character that a terminal or a tool might obey."""
    return "".join(char if char.isprintable() or char in keep else "\N{REPLACEMENT CHARACTER}" for char in text)
