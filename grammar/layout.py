"""Where a text seems to begin its next piece, to the eye: by words, line breaks, indentation and brackets.

The grammar cares for none of this. Recovery from a syntax error does.
"""

from __future__ import annotations

from bisect import bisect_left

from epsc.grammar.explain import meant
from epsc.grammar.language import CLOSING, DIRECTIVE_WORDS, END, ITEM_WORDS, OPENING, WORDS
from epsc.grammar.tree import Token

# Behind these comes a name, even if it is spelled like a directive.
_BEFORE_NAME = {"COMMA", "FOR", "BY", "BESIDE", "BEFORE", "ON", "USE", "SPLIT", "RUN", "ELSE", "WHEN"}
_MOST_RETURNS = 20


class Layout:
    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self._returns = 0

    def index(self, offset: int) -> int:
        """The token that begins at a character offset, or the next one."""
        return bisect_left(self.tokens, offset, key=lambda token: token.start)

    def is_word(self, at: int) -> bool:
        return self.tokens[at].kind in WORDS

    def leads(self, at: int) -> bool:
        """Whether the token is the first of its line."""
        return at == 0 or self.tokens[at].line != self.tokens[at - 1].line

    def begins_item(self, at: int) -> bool:
        """Whether a reserved word stands where an item or `return` would, and not for a name that is bound."""
        return self.leads(at) and self.tokens[at + 1].kind != "EQUAL"

    def begins_load(self, at: int) -> bool:
        """On a new line, `tokens` and a number, which no expression can hold: an item, whatever came before."""
        return self.tokens[at].kind == "TOKENS" and self.leads(at) and self.tokens[at + 1].kind == "INT"

    def begins_directive(self, at: int) -> bool:
        """In a schedule: a directive whatever came before, because no name is followed by a name or number."""
        token = self.tokens[at]
        return token.kind in DIRECTIVE_WORDS and self.leads(at) and self.tokens[at + 1].kind in ("NAME", "INT", "NONE")

    def _outdented(self, at: int, anchor: int) -> bool:
        """A word at the start of a line, no deeper than `anchor`, which starts its line too."""
        if not (self.is_word(at) and self.leads(at) and self.leads(anchor)):
            return False
        return self.tokens[at].column <= self.tokens[anchor].column

    def _begins_statement(self, at: int, anchor: int, block: str | None) -> bool:
        token, behind = self.tokens[at], self.tokens[at - 1]
        if token.kind == "RETURN" or self.begins_load(at) or self._outdented(at, anchor):
            return True
        if not self.leads(at) and behind.kind in _BEFORE_NAME:
            return False
        if block == "SCHEDULE":
            return token.kind in DIRECTIVE_WORDS
        return block is not None and self.is_word(at) and self.tokens[at + 1].kind == "EQUAL"

    def statement_end(self, at: int, anchor: int, block: str | None, unclosed: list[Token]) -> int:
        """Where the statement that began at token `anchor` and went wrong at token `at` is over.

        `unclosed` are the brackets that were open then. If they are never closed, the statement was over earlier.
        """
        depth = len(unclosed)
        at = min(at, len(self.tokens) - 1)
        while not self._ends_block(at, block):
            token = self.tokens[at]
            if token.kind == "OPEN":
                at = self._over_braces(at)
                continue
            if token.kind in OPENING:
                depth += 1
            elif token.kind in CLOSING:
                depth = max(0, depth - 1)
            elif depth == 0 and at > anchor and self._begins_statement(at, anchor, block):
                return at
            at += 1
        # Going back costs reading the same tokens again, so a hostile file may not ask for it at every line.
        if depth and unclosed and self._returns < _MOST_RETURNS:
            self._returns += 1
            for earlier in range(self.index(unclosed[-1].start) + 1, at):
                if self._outdented(earlier, anchor) and self._begins_statement(earlier, earlier, block):
                    return earlier
        return at

    def _ends_block(self, at: int, block: str | None) -> bool:
        kind = self.tokens[at].kind
        outside = kind == END or kind in ITEM_WORDS or self.begins_load(at)
        return outside or (kind == "RBRACE" and block is not None)

    def _over_braces(self, at: int) -> int:
        depth = 0
        while True:
            kind = self.tokens[at].kind
            if kind == END or kind in ITEM_WORDS:
                return at
            at += 1
            if kind == "OPEN":
                depth += 1
            elif kind == "RBRACE":
                depth -= 1
                if depth == 0:
                    return at

    def head_end(self, at: int) -> int:
        """Where the header that went wrong at `at` should be over: at its `{` or `=`, if it has one."""
        while not self._ends_block(at, "any") and self.tokens[at].kind not in ("OPEN", "EQUAL"):
            at += 1
        return at

    def argument_end(self, at: int, unclosed: list[Token]) -> int:
        """Where the argument of a layer that went wrong at `at` should be over: at its `,` or `)`, if it has one."""
        depth = len(unclosed)
        while not self._ends_block(at, "any") and self.tokens[at].kind != "OPEN":
            kind = self.tokens[at].kind
            if depth == 0 and kind in ("COMMA", "RPAR"):
                return at
            if kind in OPENING:
                depth += 1
            elif kind in CLOSING:
                depth = max(0, depth - 1)
            at += 1
        return at

    def item_end(self, at: int, anchor: int) -> int:
        """Where the item that began at token `anchor` and went wrong at token `at` is over."""
        at = min(max(at, anchor + 1), len(self.tokens) - 1)
        depth = 0
        while (kind := self.tokens[at].kind) != END and kind not in ITEM_WORDS and not self.begins_load(at):
            if kind == "OPEN":
                depth += 1
            elif kind == "RBRACE":
                depth = max(0, depth - 1)
            elif depth == 0 and self._outdented(at, anchor) and meant(self.tokens[at], {*ITEM_WORDS, "TOKENS"}):
                return at
            at += 1
        return at
