"""Cut a text into tokens and comments."""

from __future__ import annotations

from dataclasses import dataclass

from epsc.grammar.language import END, JUNK, KEYWORDS, PIECE, SIGNS
from epsc.grammar.tree import Token
from epsc.ir.errors import Faults
from epsc.ir.source import Source, Span

# Habits from other languages that need no more than to be left out.
_NEEDLESS = {
    ";": "line breaks and spaces separate statements: leave it out",
    '"': "words are written without quotes",
    "'": "words are written without quotes",
    "`": "words are written without quotes",
}


@dataclass(frozen=True)
class Comment:
    """A comment without its `#` and the space behind that."""

    start: int
    text: str


def scan(source: Source, faults: Faults) -> tuple[list[Token], list[Comment]]:
    """The tokens, an END token last, and the comments.

    A word has the kind of its keyword if there is one. Of needless signs, the first of each sort is reported.
    """
    tokens: list[Token] = []
    comments: list[Comment] = []
    line, line_start = 1, 0
    needless = dict(_NEEDLESS)
    for match in PIECE.finditer(source.text):
        kind, text, start, end = match.lastgroup or JUNK, match[0], match.start(), match.end()
        if kind == "SPACE":
            if breaks := text.count("\n"):
                line += breaks
                line_start = start + text.rindex("\n") + 1
            continue
        if kind == "COMMENT":
            comments.append(Comment(start, text[1:].removeprefix(" ").rstrip()))
            continue
        if kind == JUNK and text in _NEEDLESS:
            if help := needless.pop(text, None):
                faults.add("syntax", f"`.eps` has no `{text}`", Span(source, start, end), help=help)
            continue
        if kind == "NAME":
            kind = KEYWORDS.get(text, kind)
        elif kind == "SIGN":
            kind = SIGNS[text]
        tokens.append(Token(kind, text, start, end, line, start - line_start + 1))
    tokens.append(Token(END, "", len(source.text), len(source.text), line, len(source.text) - line_start + 1))
    return tokens, comments
