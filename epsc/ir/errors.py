"""The one exception that users see, and the diagnostics that it carries."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from epsc.ir.source import Span


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Note:
    """A second place or fact that explains a diagnostic, such as where a name was first bound."""

    message: str
    span: Span | None = None


@dataclass(frozen=True)
class Diagnostic:
    """One thing that is wrong: what, where, what else to look at, and a way out.

    `code` is a stable, kebab-case name of the kind of fault (`unknown-name`, `shape-mismatch`), for tools and tests.
    """

    code: str
    message: str
    span: Span | None = None
    notes: tuple[Note, ...] = ()
    help: str | None = None
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        place = f"{self.span}: " if self.span else ""
        lines = [f"{place}{self.severity}: {self.message}"]
        if self.span:
            lines.append(self.span.excerpt())
        for note in self.notes:
            lines.append(f"  note: {f'{note.span}: ' if note.span else ''}{note.message}")
            if note.span:
                lines.append(note.span.excerpt())
        if self.help:
            lines.append(f"  help: {self.help}")
        return "\n".join(lines)


class EpsError(Exception):
    """Bad input of any kind. Everything else that epsc raises is a bug of epsc."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        self.diagnostics = diagnostics
        super().__init__("\n".join(map(str, diagnostics)))


class Faults:
    """Gathers diagnostics, so that one run reports everything that is wrong with a file."""

    def __init__(self) -> None:
        self.diagnostics: list[Diagnostic] = []

    def add(
        self,
        code: str,
        message: str,
        span: Span | None = None,
        *,
        notes: Iterable[Note] = (),
        help: str | None = None,
        severity: Severity = Severity.ERROR,
    ) -> None:
        fault = Diagnostic(code, message, span, tuple(notes), help, severity)
        if fault not in self.diagnostics:
            self.diagnostics.append(fault)

    @property
    def errors(self) -> list[Diagnostic]:
        return [d for d in self.diagnostics if d.severity is Severity.ERROR]

    @property
    def warnings(self) -> list[Diagnostic]:
        return [d for d in self.diagnostics if d.severity is Severity.WARNING]

    def raise_if_any(self) -> None:
        """Raise EpsError with every error gathered so far, in source order; warnings alone do not raise."""
        if self.errors:
            raise EpsError(*sorted(self.errors, key=lambda d: d.span.start if d.span else 0))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant by `name`, if one is close enough."""
    return next(iter(get_close_matches(name, sorted(set(known)), n=1, cutoff=0.6)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A help sentence: the nearest known name, or the list of what there is."""
    options = sorted(set(known))
    if close := nearest(name, options):
        return f"did you mean `{close}`?"
    return f"known here: {', '.join(f'`{o}`' for o in options)}" if options else "nothing of that kind is defined"
