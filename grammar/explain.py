"""Say in words what the grammar expected."""

from __future__ import annotations

from epsc.grammar.language import DIRECTIVE_WORDS, END, ITEM_WORDS, JUNK, KEYWORDS, KINDS, RESERVED, WORDS
from epsc.grammar.tables import FIXED
from epsc.grammar.tree import Token
from epsc.ir.dims import Axis, DType
from epsc.ir.errors import nearest

_EXPRESSION = {"NAME", "INT", "FLOAT", "LPAR", "MINUS"}
_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "_DOUBLE_SLASH"}

# What a name is for, by the kind of the token before it.
_NAME_AFTER = {
    "BY": f"an axis ({', '.join(f'`{axis}`' for axis in Axis)})",
    "COLON": f"an element type ({', '.join(f'`{dtype}`' for dtype in DType)})",
    "USE": "the name of an implementation",
    "ELSE": "the name of an implementation",
    "ON": "the name of a lane",
    "WHEN": "a number that the run knows, such as `rows`",
    "FOR": "what it is for: the name of a binding or weight",
}

# How a statement or item reads, by the kind of its first token.
_FORMS = {
    "LET": "a `let` reads `let NAME = NUMBER`",
    "PRESET": "a preset reads `preset NAME { NAME = NUMBER ... }`",
    "TOKENS": "a load reads `tokens LEAST .. MOST`; for one size, say it twice",
    "CLUSTER": "a cluster reads `cluster NAME { NAME = VALUE ... }`",
    "LAYER": "a layer reads `layer NAME(x: bf16[tokens, 5120], ...) { ... }`",
    "SCHEDULE": "a schedule reads `schedule NAME { ... }`, `schedule NAME = auto` or, by load,"
    " `schedule NAME = NAME when tokens <= NUMBER else NAME`",
    "RETURN": "a return reads `return EXPRESSION`",
    "SPLIT": "a split reads `split NAMES by AXIS into COUNT`",
    "USE": "a choice reads `use IMPL for NAMES` or `use IMPL for NAMES when METRIC < NUMBER else IMPL`",
    "DEDUP": "it reads `dedup NAMES`, of dispatches",
    "LOCAL_REDUCE": "it reads `local_reduce NAMES`, of combines",
    "ROOM": "it reads `room FACTOR for NAMES`, of dispatches",
    "OFFLOAD": "it reads `offload NAMES into COUNT slots`, of experts' weights",
    "RESERVE": "a reservation reads `reserve COUNT sms for NAMES`",
    "RUN": "an order reads `run NAMES beside NAMES`, `run NAMES before NAMES` or `run NAMES on LANE`",
    "OVERLAP": "it reads `overlap none`",
}


def shown(token: Token) -> str:
    """A token as a message shows it: short, and without anything that a terminal would obey."""
    if token.kind == END:
        return "the end of the file"
    text = token.text if len(token.text) <= 40 else token.text[:39] + "…"
    return f"`{text if text.isprintable() else ascii(text)[1:-1]}`"


def expectation(accepted: set[str], before: str, at_start: bool) -> str:
    """`an operator, `,` or `)``: what may stand behind a token of kind `before`.

    `at_start` is whether a new statement or item is what the user seems to be writing.
    """
    rest = set(accepted)
    parts: list[str] = []
    if "FLOAT" in rest:
        parts.append("an expression")
        rest -= _EXPRESSION
    elif "PLUS" in rest:
        if not at_start:
            parts.append("an operator")
        rest -= {*_OPERATORS, "EQUAL", "LPAR"}
    if "LET" in rest:
        parts.append("an item (`let`, `preset`, `layer`, `cluster`, `tokens`, `schedule`)")
        rest -= {*ITEM_WORDS, "TOKENS", END}
    if "SPLIT" in rest:
        parts.append(
            "a directive (`split`, `use`, `dedup`, `local_reduce`, `room`, `offload`, `reserve`, `run`, `overlap`)"
        )
        rest -= DIRECTIVE_WORDS
    if "RETURN" in rest:
        parts.append("a statement (`name = ...`, `return ...`)")
        rest -= {"NAME", "RETURN"}
    elif {"NAME", "RBRACE"} <= rest:
        parts.append("a setting (`name = ...`)")
        rest.remove("NAME")
    if {"NAME", "AUTO"} <= rest:
        parts.append("the name of a schedule")
        rest.remove("NAME")
    if "NAME" in rest:
        parts.append(_NAME_AFTER.get(before, "a name"))
        rest.remove("NAME")
    if "COMPARISON" in rest:
        parts.append("a comparison (`==`, `!=`, `<`, `<=`, `>`, `>=`)")
        rest.remove("COMPARISON")
    parts += [f"`{FIXED[kind]}`" for kind in KINDS if kind in rest and kind in FIXED]
    return " or ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else "the end of the file"


def meant(token: Token, accepted: set[str]) -> str | None:
    """The kind of the keyword that a misspelled word probably meant."""
    if token.kind not in WORDS:
        return None
    found = nearest(token.text, [FIXED[kind] for kind in accepted if FIXED.get(kind) in KEYWORDS])
    return KEYWORDS[found] if found else None


def way_out(token: Token | None, before: str, accepted: set[str], words: list[str]) -> str | None:
    """A help line: what to do about a known cause, or how a statement reads that holds such kinds of words.

    `token` is what was found where that is to blame, `before` the kind of token before it.
    """
    cause = _known_cause(token, before, accepted) if token else None
    if cause:
        return cause
    if "ELSE" in accepted and "USE" in words:
        return "say what holds otherwise: `use grouped for h when rows < 2048 else dense`"
    if "COLON" in accepted:
        return "an argument reads `x: bf16[tokens, 5120]`"
    if "FLOAT" in accepted and before not in _FORMS:
        return None
    return next((_FORMS[kind] for kind in words if kind in _FORMS), None)


def _known_cause(token: Token, before: str, accepted: set[str]) -> str | None:
    if token.kind == JUNK:
        if token.text == ".":
            return "a number has digits on both sides of its dot, and names have no dots"
        if token.text[0].isdigit():
            return "a number is digits, with a fraction and an exponent at most: `16384`, `0.5`, `1e-5`"
        if token.text[0].isalpha():
            return "names are made of the letters a to z and A to Z, digits and `_`"
        return f"{shown(token)} means nothing here"
    if token.kind in RESERVED and "NAME" in accepted:
        return f"`{token.text}` is a reserved word: choose another name"
    if token.kind == before == "EQUAL":
        return "one `=` is enough"
    if token.kind == "EQUAL" and "COMPARISON" in accepted:
        return "a condition compares with `==`, `!=`, `<`, `<=`, `>` or `>=`"
    if token.kind == "STAR" == before:
        return "there is no power operator"
    return None
