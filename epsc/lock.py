"""Lock files: which schedule was measured to be the best for a layer, where and at which load; kept beside the file.

`schedule best = auto` takes what stands in the lock file of its file for the same layer, device, ranks and load (up to
a power of two), and is predicted where nothing does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from epsc.grammar import format_spec, parse
from epsc.ir.errors import Diagnostic, EpsError
from epsc.ir.graph import Graph
from epsc.ir.source import Source
from epsc.ir.spec import ScheduleDecl, Spec

FORMAT = 1


@dataclass(frozen=True)
class Key:
    """What a measurement is valid for."""

    layer: str
    shape: str
    """A digest of the layer's graph: another number in it is another layer."""
    device: str
    """As a cluster calls it."""
    ep: int
    bucket: int
    """Tokens per rank from this power of two to the next."""

    @staticmethod
    def of(said: Graph, device: str, ep: int, tokens: int) -> Key:
        digest = hashlib.sha256(str(said).encode()).hexdigest()[:16]
        return Key(said.name, digest, device, ep, 1 << max(0, tokens.bit_length() - 1))


@dataclass(frozen=True)
class Entry:
    """The schedule that won, and what was measured."""

    key: Key
    schedule: str
    """As `.eps` text."""
    tokens: int
    milliseconds: Mapping[str, float]
    """Of every schedule that was measured: medians."""
    noise: float
    """Share by which two measurements of one schedule differed at most."""
    hardware: str
    versions: Mapping[str, str]
    date: str

    @property
    def decl(self) -> ScheduleDecl:
        return parse(Source("the lock file", self.schedule)).schedules[0]


def text_of(decl: ScheduleDecl) -> str:
    """A schedule as `.eps` text."""
    return format_spec(Spec((decl,)))


def path_of(source: Source) -> Path:
    """The lock file of an `.eps` file."""
    return Path(f"{source.name}.lock")


def load(path: Path) -> tuple[Entry, ...]:
    """What a lock file holds; nothing if it is not there. Raises EpsError when it is no lock file."""
    try:
        said = json.loads(path.read_bytes())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise EpsError(Diagnostic("no-file", f"cannot read {path}: {error.strerror}")) from None
    except ValueError as error:
        raise _not_a_lock(path, str(error)) from None
    try:
        if said["format"] != FORMAT:
            raise ValueError(f"its format is {said['format']}, not {FORMAT}")
        entries = tuple(Entry(**{**each, "key": Key(**each["key"])}) for each in said["entries"])
        for entry in entries:
            if len(parse(Source(str(path), entry.schedule)).schedules) != 1:
                raise ValueError("an entry has one schedule")
    except (KeyError, TypeError, ValueError) as error:
        raise _not_a_lock(path, str(error)) from None
    return entries


def _not_a_lock(path: Path, why: str) -> EpsError:
    return EpsError(
        Diagnostic("bad-lock", f"{path} is no lock file: {why}", help="delete it; `epsc tune` writes a new one")
    )


def find(path: Path, key: Key) -> Entry | None:
    """What was measured for just this."""
    return next((entry for entry in load(path) if entry.key == key), None)


def with_entry(path: Path, entry: Entry) -> str:
    """The text of the lock file with one more entry, in the place of one for the same."""
    kept = {each.key: each for each in load(path)} | {entry.key: entry}
    ordered = sorted(kept.values(), key=lambda each: tuple(asdict(each.key).values()))
    return json.dumps({"format": FORMAT, "entries": [asdict(each) for each in ordered]}, indent=1) + "\n"
