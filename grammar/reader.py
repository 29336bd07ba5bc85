"""Tokens to a tree: the parse, and what to do where the text does not follow the grammar.

Each fault is reported once, at the first token that does not fit. Then the reader gets back on its feet, by one of
- a repair, where what was meant is plain: a misspelled keyword, a brace left out or one too many;
- a BROKEN token in the place of the smallest piece (a value, an argument, a header, a statement, an item) behind
  which the text makes sense again, to the eye (`Layout`).
"""

from __future__ import annotations

from epsc.grammar.automaton import Automaton
from epsc.grammar.explain import meant, shown
from epsc.grammar.first_faults import FirstFaults
from epsc.grammar.language import BLOCK_WORDS, CONTEXTUAL, END, ITEM_WORDS, KEYWORDS, KINDS, RESERVED
from epsc.grammar.layout import Layout
from epsc.grammar.report import Report
from epsc.grammar.tables import FIXED
from epsc.grammar.tree import Node, Token
from epsc.ir.source import Source

_MOST_TRIES = 4
"""Repairs at one token: a value, a statement and a block may end there, and then the token may be wrong as well."""


class Reader:
    """Reads one file."""

    def __init__(self, source: Source, tokens: list[Token], faults: FirstFaults) -> None:
        self._tokens = tokens
        self._faults = faults
        self._layout = Layout(tokens)
        self._automaton = Automaton()
        self._report = Report(source, self._layout, self._automaton, faults)
        self._item: Token | None = None
        """The word that began the item at hand."""
        self._block: Token | None = None
        """The `{` that is open."""
        self._last_try, self._tries = -1, 0
        self._quiet = False
        """Whether the statement at hand has been reported already."""

    def read(self) -> Node:
        """The tree of the whole file; faults go where `faults` gathers them."""
        at = 0
        while True:
            kind = self._kind(at)
            if self._quiet and self._at_boundary():
                self._quiet = False
            if not self._automaton.accepts(kind):
                at = self._recover(at, kind)
                continue
            tree = self._feed(self._tokens[at].as_kind(kind))
            if tree is not None:
                return tree
            at += 1

    def _kind(self, at: int) -> str:
        """The kind of a token here: most keywords are names where the grammar does not ask for them."""
        kind = self._tokens[at].kind
        if kind not in CONTEXTUAL or self._automaton.accepts(kind):
            return kind
        in_schedule = self._block_kind() == "SCHEDULE"
        if self._layout.begins_load(at) or (in_schedule and self._layout.begins_directive(at)):
            return kind
        return "NAME"

    def _feed(self, token: Token) -> Node | None:
        if token.kind in BLOCK_WORDS:
            self._item = token
        elif token.kind == "OPEN":
            self._block = token
        elif token.kind in ("RBRACE", "BROKEN_ITEM"):
            self._block = None
        return self._automaton.feed(token)

    def _block_kind(self) -> str | None:
        return self._item.kind if self._block and self._item else None

    def _at_boundary(self) -> bool:
        """Whether a statement or item may be over here."""
        return self._automaton.accepts("BROKEN_STATEMENT") or self._automaton.accepts("BROKEN_ITEM")

    # --- recovery -----------------------------------------------------------------------------------------------------

    def _recover(self, at: int, kind: str) -> int:
        """Deal with a token that does not fit; where to read on."""
        if self._faults.full:
            self._break_off(len(self._tokens) - 1, 1, "BROKEN_ITEM")
            return len(self._tokens) - 1
        self._tries = self._tries + 1 if at == self._last_try else 1
        self._last_try = at
        if self._tries > _MOST_TRIES and kind != END:
            return at + 1
        accepted = {each for each in KINDS if self._automaton.accepts(each)}
        next_at = self._repair_reserved(at, kind, accepted)
        if next_at is None:
            next_at = self._repair_brace(at, kind, accepted)
        if next_at is None:
            next_at = self._repair_word(at, kind, accepted)
        if next_at is None:
            self._misfit(at, accepted)
            next_at = self._give_up_piece(at)
        return next_at

    def _repair_reserved(self, at: int, kind: str, accepted: set[str]) -> int | None:
        """Take a reserved word for the name that it seems to be meant as."""
        if kind in RESERVED and "NAME" in accepted and not self._layout.begins_item(at):
            self._misfit(at, accepted)
            self._feed(self._tokens[at].as_kind("NAME"))
            return at + 1
        return None

    def _repair_brace(self, at: int, kind: str, accepted: set[str]) -> int | None:
        token, report = self._tokens[at], self._report
        outside = kind in ITEM_WORDS or kind == END or self._layout.begins_load(at)
        if self._block and "RBRACE" in accepted and outside:
            item = self._item or token
            if kind == "LET" and (token.column > item.column or not self._layout.leads(at)):
                help = "in a block, leave out the `let`: `name = ...`"
                report.add("`let` stands outside of all blocks", report.span(token), help=help)
                return at + 1
            message = f"the `{{` of this {FIXED[item.kind]} is never closed"
            report.add(message, report.end_of(at - 1), [report.opened(self._block)])
            self._feed(self._broken("RBRACE", at, at))
            return at
        if kind == "RBRACE" and "LET" in accepted:
            report.add("this `}` closes nothing", report.span(token))
            return at + 1
        if "OPEN" in accepted and self._would_take("OPEN", at):
            self._misfit(at, accepted)
            self._feed(self._broken("OPEN", at, at))
            return at
        return None

    def _repair_word(self, at: int, kind: str, accepted: set[str]) -> int | None:
        token = self._tokens[at]
        # A misspelled keyword where only a keyword may stand, ...
        if kind == "NAME" and (word := meant(token, accepted)) and self._would_take(word, at + 1):
            self._misfit(at, accepted, help=f"did you mean `{FIXED[word]}`?")
            self._quiet = True
            self._feed(token.as_kind(word))
            return at + 1
        # ... and one where a name may stand too, so that only the next token showed it.
        height = len(self._automaton.states) - 1
        last = self._automaton.values[-1] if height else None
        if isinstance(last, Token) and last.kind == "NAME":
            possible = {each for each in KEYWORDS.values() if self._automaton.accepts_below(height, (each, kind))}
            if word := meant(last, possible):
                message = f"unexpected {shown(token)} behind the name {shown(last)}"
                self._report.add(message, self._report.span(last), help=f"did you mean `{FIXED[word]}`?")
                self._quiet = True
                self._automaton.cut(height)
                self._feed(last.as_kind(word))
                return at
        return None

    def _would_take(self, kind: str, at: int) -> bool:
        """Whether the parser would take a token of that kind, and then token `at`."""
        following = self._tokens[min(at, len(self._tokens) - 1)].kind
        kinds = {following, "NAME"} if following in CONTEXTUAL else {following}
        return any(self._automaton.accepts(kind, each) for each in kinds)

    def _misfit(self, at: int, accepted: set[str], help: str | None = None) -> None:
        if not self._quiet:
            self._report.misfit(at, accepted, self._at_boundary(), help)

    def _give_up_piece(self, at: int) -> int:
        """Put a BROKEN token in the place of the piece that holds the fault; where to read on."""
        layout, automaton, block = self._layout, self._automaton, self._block_kind()
        last = automaton.values[-1] if automaton.values else None
        block_over = isinstance(last, Token) and last.kind == "RBRACE"
        if (block_over or layout.leads(at)) and self._at_boundary():
            # What came before is complete: the fault is in a new piece that begins here.
            if automaton.accepts("BROKEN_STATEMENT"):
                piece, end = "BROKEN_STATEMENT", layout.statement_end(at + 1, at, block, [])
            else:
                piece, end = "BROKEN_ITEM", layout.item_end(at, at)
            self._feed(self._broken(piece, at, end))
            return end
        marks = list(automaton.marks())
        whole = next(height for height, piece in marks if piece in ("BROKEN_STATEMENT", "BROKEN_ITEM"))
        anchor = self._begin_of(whole, at)
        for height, piece in marks:
            unclosed = automaton.unclosed(height)
            if piece in ("BROKEN_PARAM", "BROKEN_HEAD"):
                end = layout.head_end(at) if piece == "BROKEN_HEAD" else layout.argument_end(at, unclosed)
                if not automaton.accepts_below(height, (piece, self._tokens[end].kind)):
                    continue
            elif piece == "BROKEN_ITEM":
                end = layout.item_end(at, anchor)
            else:
                end = layout.statement_end(max(at, anchor + 1), anchor, block, unclosed)
            self._break_off(end, height, piece)
            return end
        raise AssertionError("an item can always be given up")

    def _break_off(self, end: int, height: int, piece: str) -> None:
        begin = self._begin_of(height, end)
        self._automaton.cut(height)
        self._feed(self._broken(piece, begin, end))

    def _begin_of(self, height: int, otherwise: int) -> int:
        """The first token above the first `height` states of the stack."""
        values = self._automaton.values[height - 1 : height]
        return self._layout.index(values[0].start) if values else otherwise

    def _broken(self, kind: str, begin: int, end: int) -> Token:
        """A token of no text, over the tokens from `begin` up to but not including `end`."""
        first = self._tokens[begin]
        stop = self._tokens[end - 1].end if end > begin else first.start
        return Token(kind, "", first.start, stop, first.line, first.column)
