"""Diagnostics as editors take them: `PublishDiagnosticsParams` of the Language Server Protocol, one per file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from epsc.ir.errors import Diagnostic, Severity
from epsc.ir.source import Source, Span

_SEVERITY = {Severity.ERROR: 1, Severity.WARNING: 2}
_NOWHERE = {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 0}}


def published(file: Path, diagnostics: Iterable[Diagnostic]) -> dict[str, Any]:
    """What a server would publish for `file`; an empty list clears what was shown before."""
    return {"uri": _uri(file), "diagnostics": [_diagnostic(each, file) for each in diagnostics]}


def _diagnostic(found: Diagnostic, file: Path) -> dict[str, Any]:
    # The protocol has no field for a way out, so people read it behind the message, and tools in `data`.
    message = f"{found.message}\nhelp: {found.help}" if found.help else found.message
    made: dict[str, Any] = {
        "range": _range(found.span) if found.span else _NOWHERE,
        "severity": _SEVERITY[found.severity],
        "code": found.code,
        "source": "epsc",
        "message": message,
    }
    related = [
        {
            "location": {
                "uri": _uri(Path(note.span.source.name)) if note.span else _uri(file),
                "range": _range(note.span) if note.span else made["range"],
            },
            "message": note.message,
        }
        for note in found.notes
    ]
    if related:
        made["relatedInformation"] = related
    if found.help:
        made["data"] = {"help": found.help}
    return made


def _uri(path: Path) -> str:
    return path.absolute().as_uri()


def _range(span: Span) -> dict[str, Any]:
    return {"start": _position(span.source, span.start), "end": _position(span.source, span.end)}


def _position(source: Source, offset: int) -> dict[str, int]:
    """Lines and UTF-16 units, both from 0, as the protocol counts them."""
    line, column = source.position(offset)
    before = source.line(line)[: column - 1]
    return {"line": line - 1, "character": len(before.encode("utf-16-le")) // 2}
