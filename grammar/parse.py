"""A text to its Spec."""

from __future__ import annotations

from epsc.grammar.build import Builder
from epsc.grammar.comments import CommentTaker
from epsc.grammar.first_faults import FirstFaults
from epsc.grammar.reader import Reader
from epsc.grammar.scan import scan
from epsc.ir.errors import Faults
from epsc.ir.source import Source
from epsc.ir.spec import Spec


def parse(source: Source) -> Spec:
    """The Spec of a `.eps` text. Raises EpsError with every syntax error in it."""
    spec, faults = parse_recovering(source)
    faults.raise_if_any()
    return spec


def parse_recovering(source: Source) -> tuple[Spec, Faults]:
    """The Spec of what could be read, and the syntax errors.

    A value that could not be read is Broken. A directive or item that could not be read is missing, and so is the
    second of two items of one kind and name.
    """
    faults = FirstFaults()
    tokens, comments = scan(source, faults)
    tree = Reader(source, tokens, faults).read()
    spec = Builder(source, CommentTaker(source, comments), faults).spec(tree)
    return spec, faults
