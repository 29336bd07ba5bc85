"""Lines of Python that a layer was read from, as comments of its `.eps` text name them: `# model.py:31: y = f(x)`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from epsc.ir.source import printable

_PLACE = re.compile(r"([^\s:]{1,200}\.py):([1-9][0-9]{0,8})(?::(?: (.*))?)?")


@dataclass(frozen=True)
class Place:
    """A line of Python. Its text is what the comment says: no file is opened that a `.eps` text names."""

    file: str
    line: int
    text: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def comment(self) -> str:
        """As a comment says it: `model.py:31: y = self.experts(x)`."""
        return f"{self}: {self.text}" if self.text else str(self)

    @staticmethod
    def parse(comment: str) -> Place | None:
        """The place that a comment names, if it starts with one."""
        found = _PLACE.fullmatch(printable(comment).strip())
        return Place(found[1], int(found[2]), (found[3] or "").strip()) if found else None


def places_in(comments: Iterable[str]) -> tuple[Place, ...]:
    """The places that comments name, each once."""
    return tuple(dict.fromkeys(place for comment in comments if (place := Place.parse(comment))))


def short_names(places: Iterable[Place]) -> dict[Place, Place]:
    """The places with the name of the file alone, where only one file has that name."""
    known = tuple(places)
    files: dict[str, set[str]] = {}
    for place in known:
        files.setdefault(PurePosixPath(place.file).name, set()).add(place.file)
    only = {place: PurePosixPath(place.file).name for place in known}
    return {place: replace(place, file=name) if len(files[name]) == 1 else place for place, name in only.items()}


def named(places: Iterable[Place]) -> str:
    """`model.py:31, :47, layers.py:9`: the file is said where it changes."""
    words: list[str] = []
    file = ""
    for place in places:
        words.append(f":{place.line}" if place.file == file else str(place))
        file = place.file
    return ", ".join(words)
