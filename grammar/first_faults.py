"""Faults with a limit: a large file may be all wrong."""

from __future__ import annotations

from collections.abc import Iterable

from epsc.ir.errors import Faults, Note, Severity
from epsc.ir.source import Span

_MOST = 100


class FirstFaults(Faults):
    """Gathers faults up to a limit, then says once that there are more."""

    @property
    def full(self) -> bool:
        return len(self.diagnostics) > _MOST

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
        if len(self.diagnostics) < _MOST:
            super().add(code, message, span, notes=notes, help=help, severity=severity)
        elif not self.full:
            super().add("too-many-faults", f"there are more faults: the first {_MOST} are shown", span)
