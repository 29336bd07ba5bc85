"""Say what does not fit, where, and what would."""

from __future__ import annotations

from epsc.grammar.automaton import Automaton
from epsc.grammar.explain import expectation, shown, way_out
from epsc.grammar.language import CLOSING, END
from epsc.grammar.layout import Layout
from epsc.grammar.tree import Token
from epsc.ir.errors import Faults, Note
from epsc.ir.source import Source, Span

# Behind these, a name may be an operand whose operator is missing.
_ENDS = {"NAME", "INT", "FLOAT", "RPAR"}


class Report:
    """Writes the faults of one file, as seen from where the parser is."""

    def __init__(self, source: Source, layout: Layout, automaton: Automaton, faults: Faults) -> None:
        self._source = source
        self._layout = layout
        self._automaton = automaton
        self._faults = faults

    def misfit(self, at: int, accepted: set[str], at_boundary: bool, help: str | None = None) -> None:
        """Token `at` fits nowhere: only `accepted` kinds do.

        `at_boundary` is whether the statement before it may be complete.
        """
        layout = self._layout
        token = layout.tokens[at]
        before = layout.tokens[at - 1] if at else None
        kind_before = before.kind if before else ""
        # Behind half a statement, the next line is innocent: something is missing at the end of this one.
        missing = before is not None and (token.kind == END or (layout.leads(at) and not at_boundary))
        wanted = expectation(accepted, kind_before, at_boundary and layout.leads(at))
        if "ELSE" in accepted:
            message = "a choice needs an `else`"
        elif missing and before:
            message = f"expected {wanted} after {shown(before)}"
        else:
            message = f"expected {wanted}, found {shown(token)}"
        notes = []
        unclosed = self._automaton.unclosed(1)
        if unclosed and not accepted.isdisjoint(CLOSING) and unclosed[-1].line != token.line:
            notes.append(self.opened(unclosed[-1]))
        if not help and before and accepted == {"EQUAL"} and at > 1 and layout.tokens[at - 2].kind in _ENDS:
            help = f"or an operator is missing before {shown(before)}"
        help = help or way_out(None if missing else token, kind_before, accepted, self._open_words())
        self.add(message, self.end_of(at - 1) if missing else self.span(token), notes, help)

    def add(self, message: str, span: Span, notes: list[Note] | None = None, help: str | None = None) -> None:
        self._faults.add("syntax", message, span, notes=notes or (), help=help)

    def span(self, token: Token) -> Span:
        return Span(self._source, token.start, token.end)

    def end_of(self, at: int) -> Span:
        """The place behind a token."""
        end = self._layout.tokens[at].end
        return Span(self._source, end, end)

    def opened(self, token: Token) -> Note:
        return Note(f"{shown(token)} was opened here", self.span(token))

    def _open_words(self) -> list[str]:
        """The kinds of the tokens of the innermost statement or item, as far as they are read and still apart."""
        words: list[str] = []
        for value in reversed(self._automaton.values):
            if isinstance(value, Token):
                if value.kind == "OPEN":
                    break
                words.append(value.kind)
        return words
