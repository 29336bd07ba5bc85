"""Lines of code in the usual format: one line where it fits, else broken at its brackets as formatters do."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 110
INDENT = "    "


@dataclass(frozen=True)
class Listing:
    """An argument `prefix[items]` that may itself need several lines."""

    prefix: str
    items: tuple[str, ...]
    brackets: str = "[]"

    def __str__(self) -> str:
        comma = "," if self.brackets == "()" and len(self.items) == 1 else ""
        return f"{self.prefix}{self.brackets[0]}{', '.join(self.items)}{comma}{self.brackets[1]}"


Arg = str | Listing


def call(head: str, args: Sequence[Arg], tail: str = "", indent: int = 0) -> list[str]:
    """`head(args)tail`, each line with `indent` spaces."""
    pad = " " * indent
    flat = f"{pad}{head}({', '.join(map(str, args))}){tail}"
    if len(flat) <= WIDTH or not args:
        return [flat]
    inner = pad + INDENT
    together = f"{inner}{', '.join(map(str, args))}"
    if len(together) <= WIDTH:
        return [f"{pad}{head}(", together, f"{pad}){tail}"]
    lines = [f"{pad}{head}("]
    for arg in args:
        lines += _argument(arg, inner)
    return [*lines, f"{pad}){tail}"]


def assign(target: str, choice: str, indent: int = 0) -> list[str]:
    """`target = a if c else b`, in parentheses where it is too long for a line, with a case per line if need be."""
    pad = " " * indent
    if len(flat := f"{pad}{target} = {choice}") <= WIDTH:
        return [flat]
    inner = f"{pad}{INDENT}{choice}"
    lines = [inner] if len(inner) <= WIDTH else _cases(choice, pad + INDENT)
    return [f"{pad}{target} = (", *lines, f"{pad})"]


def _cases(choice: str, pad: str) -> list[str]:
    """A choice between functions: a case per line."""
    return [f"{pad}{piece}" for piece in re.split(r" (?=if |else )", choice)]


def _argument(arg: Arg, pad: str) -> list[str]:
    if isinstance(arg, Listing) and len(f"{pad}{arg},") > WIDTH:
        opening, closing = arg.brackets[0], arg.brackets[1]
        items = [f"{pad}{INDENT}{item}," for item in arg.items]
        return [f"{pad}{arg.prefix}{opening}", *items, f"{pad}{closing},"]
    if isinstance(arg, str) and not arg.startswith('"') and len(f"{pad}{arg},") > WIDTH:
        return _cases(f"{arg},", pad)
    return [f"{pad}{arg},"]


def comment(text: str, indent: int = 0) -> list[str]:
    """A comment, wrapped."""
    pad = f"{' ' * indent}# "
    return [
        f"{pad}{line}" for line in textwrap.wrap(text, WIDTH - len(pad), break_long_words=False, break_on_hyphens=False)
    ]
