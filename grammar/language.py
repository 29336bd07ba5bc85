"""The words of the language, and the pattern that cuts a text into tokens."""

from __future__ import annotations

import re

from epsc.grammar.tables import FIXED, PATTERNS

END = "$END"
JUNK = "JUNK"
"""Characters that begin no token: a kind that no state of the parser accepts."""

RESERVED = frozenset({"LET", "PRESET", "LAYER", "CLUSTER", "SCHEDULE", "RETURN"})
"""Kinds of the words that are never names; eps.lark says why."""
ITEM_WORDS = RESERVED - {"RETURN"}
BLOCK_WORDS = ITEM_WORDS - {"LET"}
DIRECTIVE_WORDS = frozenset({"SPLIT", "USE", "DEDUP", "LOCAL_REDUCE", "ROOM", "OFFLOAD", "RESERVE", "RUN", "OVERLAP"})
OPENING = frozenset({"LPAR", "LSQB"})
CLOSING = frozenset({"RPAR", "RSQB"})

KEYWORDS = {text: kind for kind, text in FIXED.items() if text.isidentifier()}
"""Kind by word."""
SIGNS = {text: kind for kind, text in FIXED.items() if not text.isidentifier()}
"""Kind by sign."""
CONTEXTUAL = frozenset(KEYWORDS.values()) - RESERVED
"""Kinds of the words that are names where the grammar does not ask for them."""
WORDS = frozenset({"NAME", *KEYWORDS.values()})
KINDS = [*FIXED, *PATTERNS, END]
"""Every kind of token that a user can write."""

# A number ends where no digit or letter follows: `16k` and `1.2.3` are one piece of junk, not a number and a rest.
_NUMBER_END = r"(?![0-9A-Za-z_]|\.[0-9])"
_PIECES = {
    "SPACE": r"\s+|\ufeff",
    "COMMENT": r"#[^\n]*",
    "NAME": PATTERNS["NAME"],
    "FLOAT": f"(?:{PATTERNS['FLOAT']}){_NUMBER_END}",
    "INT": f"(?:{PATTERNS['INT']}){_NUMBER_END}",
    "COMPARISON": PATTERNS["COMPARISON"],
    "SIGN": "|".join(re.escape(sign) for sign in sorted(SIGNS, key=len, reverse=True)),
    JUNK: r"[0-9][0-9A-Za-z_]*(?:\.[0-9A-Za-z_]+)*|[^\x20-\x7e\s]+|.",
}
PIECE = re.compile("|".join(f"(?P<{kind}>{piece})" for kind, piece in _PIECES.items()))
"""Cuts any text into pieces: `lastgroup` is the kind of one, SIGN for any sign."""
