"""Readers: anything a user can say, turned into a Spec."""

from epsc.grammar.format import format_spec
from epsc.grammar.parse import parse, parse_recovering

__all__ = ["format_spec", "parse", "parse_recovering"]
