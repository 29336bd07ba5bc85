"""Names: how words of a user become Python names, and other text of a user becomes comments or strings.

The `.eps` text is not trusted. Nothing of it reaches a program but through here.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable

from epsc.ir.errors import Diagnostic, EpsError

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOTTED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")

PYTHON = frozenset(
    {*keyword.kwlist, *keyword.softkwlist, *(name for name in dir(builtins) if not name.startswith("_"))}
)


class Names:
    """The names of one scope: each key gets one name, different keys get different names, in a stable way."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        """`taken`: names that the scope already uses."""
        self.used = {*PYTHON, *taken}
        """Names that are taken."""
        self._given: dict[str, str] = {}

    def of(self, key: str, wish: str | None = None) -> str:
        """The name for `key`: `wish` (by default `key` itself) made an identifier, with a number if that is taken."""
        if key in self._given:
            return self._given[key]
        base = identifier(key if wish is None else wish)
        if base in PYTHON:
            base += "_"
        name, number = base, 2
        while name in self.used:
            name, number = f"{base}_{number}", number + 1
        self.used.add(name)
        self._given[key] = name
        return name


def identifier(text: str) -> str:
    """A Python name made of a dotted name of a spec: `layers.0.sent` is `layers_0_sent`."""
    return checked(checked_dotted(text).replace(".", "_"))


def checked_dotted(text: str) -> str:
    """`text`, if it is words with dots between. Raises EpsError: such text would not be safe in a program."""
    if not _DOTTED.fullmatch(text):
        raise EpsError(Diagnostic("bad-name", f"{text!r} cannot be a name in a program"))
    return text


def checked_version(text: str) -> str:
    """`text`, if it is a version such as `0.1.0` or `0.2.0rc1`."""
    if not re.fullmatch(r"[0-9A-Za-z.+-]+", text):
        raise EpsError(Diagnostic("bad-version", f"{text!r} is no version"))
    return text


def checked(text: str) -> str:
    """`text`, if it is a plain ASCII identifier. Raises EpsError otherwise."""
    if not _WORD.fullmatch(text):
        raise EpsError(Diagnostic("bad-name", f"{text!r} cannot be a name in a program"))
    return text


def class_name(text: str) -> str:
    """`deepseek_v2` as a class: `DeepseekV2`."""
    joined = "".join(word[:1].upper() + word[1:] for word in identifier(text).split("_"))
    name = joined if joined[:1].isalpha() else f"Layer{joined}"
    return f"{name}Layer" if name in PYTHON else name


def string(text: str) -> str:
    """A string literal in double quotes, ASCII only."""
    plain = text.isascii() and text.isprintable()
    escaped = text.replace("\\", "\\\\").replace('"', '\\"') if plain else None
    return f'"{escaped}"' if escaped is not None else ascii(text)


def comment_lines(text: str) -> list[str]:
    """Any text as comment lines: a margin keeps it from meaning anything to tools, what does not print is escaped."""
    lines = text.replace("\r\n", "\n").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return [f"#| {visible(line)}".rstrip() for line in lines]


def comment_line(text: str) -> str:
    """Any text as one line of a comment."""
    return f"# {visible(' '.join(text.split()))}"


def visible(line: str) -> str:
    """A line of a user as a comment may hold it: ASCII, and what does not print is escaped."""
    return "".join(
        char if char.isascii() and char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in line.replace("\t", "    ")
    )
