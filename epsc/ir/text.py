"""Shared by the nouns' `str` and `parse`: attributes as `key=value` text, and splitting outside brackets."""

from __future__ import annotations

from dataclasses import MISSING, fields
from enum import StrEnum
from typing import Any, get_type_hints

from epsc.ir.amount import Amount
from epsc.ir.errors import Diagnostic, EpsError, did_you_mean


def attrs_text(attrs: Any) -> str:
    """`experts=160, top_k=6`: every field that differs from its default."""
    return ", ".join(
        f"{f.name}={_scalar_text(getattr(attrs, f.name))}"
        for f in fields(attrs)
        if f.default is MISSING or getattr(attrs, f.name) != f.default
    )


def attrs_parse(cls: type, text: str) -> Any:
    """The inverse of `attrs_text` for the attribute class `cls`. Raises EpsError on an unknown key or a bad value."""
    hints = {f.name: get_type_hints(cls)[f.name] for f in fields(cls)}
    values = {}
    for part in split(text, ","):
        key, _, value = part.partition("=")
        if key not in hints:
            raise EpsError(Diagnostic("unknown-key", f"`{key}` is no attribute here", help=did_you_mean(key, hints)))
        values[key] = _scalar_parse(hints[key], value)
    try:
        return cls(**values)
    except TypeError as error:
        raise EpsError(Diagnostic("missing-key", f"`{text}` does not make a {cls.__name__}: {error}")) from None


def _scalar_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _scalar_parse(kind: type, text: str) -> object:
    if kind is Amount:
        return Amount.parse(text)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        return kind(text)
    except (ValueError, KeyError):
        if issubclass(kind, StrEnum):
            expected = " or ".join(kind)
        else:
            expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise EpsError(Diagnostic("bad-value", f"`{text}` should be {expected}")) from None


def split(text: str, separator: str) -> list[str]:
    """Pieces of `text` between separators that stand outside (), [] and {}, stripped; none for blank text."""
    pieces, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == separator and depth == 0:
            pieces.append(text[start:i].strip())
            start = i + 1
    pieces.append(text[start:].strip())
    return [] if pieces == [""] else pieces
