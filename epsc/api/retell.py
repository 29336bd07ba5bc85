"""Errors of the driver about the text of a traced layer, told about the user's Python."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from epsc.grammar import parse
from epsc.ir.errors import EpsError, Note
from epsc.ir.source import Source, Span
from epsc.ir.spec import Spec


def retold(error: EpsError, text: str, spec: Spec) -> EpsError:
    """The same diagnostics, at the places of `spec` that the stretches of its `text` were written from."""
    places: dict[tuple[int, int], Span] = {}
    written = parse(Source("", text))
    _pair(written.layers, spec.layers, places)

    def at(span: Span | None) -> Span | None:
        return places.get((span.start, span.end), span) if span else None

    return EpsError(
        *(
            replace(d, span=at(d.span), notes=tuple(Note(note.message, at(note.span)) for note in d.notes))
            for d in error.diagnostics
        )
    )


def _pair(written: Any, said: Any, places: dict[tuple[int, int], Span]) -> None:
    """Walk two equal trees, and note which stretch of the one is which place of the other."""
    if isinstance(written, tuple) and isinstance(said, tuple):
        for a, b in zip(written, said, strict=False):
            _pair(a, b, places)
    elif is_dataclass(written) and type(written) is type(said):
        for field in fields(written):
            a, b = getattr(written, field.name), getattr(said, field.name)
            if isinstance(a, Span) and isinstance(b, Span):
                places.setdefault((a.start, a.end), b)
            elif not isinstance(a, Span):
                _pair(a, b, places)
