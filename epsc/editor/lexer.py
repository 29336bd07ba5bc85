"""The Pygments lexer: `pygmentize -l eps`, and ```eps blocks of documents that Pygments colours.

It is found by its entry point; nothing of epsc imports it, because Pygments is nothing that epsc needs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pygments.lexer import RegexLexer, bygroups, words
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, Text

from epsc.ir.dims import DType

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_FLOAT = r"[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+"
_DTYPES = tuple(dtype.value for dtype in DType)
_DIRECTIVES = ("split", "use", "dedup", "local_reduce", "offload", "reserve", "room", "run", "overlap")
_INSIDE = ("by", "into", "for", "when", "else", "sms", "slots", "beside", "before", "on", "none")

_COMMON: list[Any] = [
    (r"\s+", Text),
    (r"#.*$", Comment.Single),
    (_FLOAT, Number.Float),
    (r"[0-9]+", Number.Integer),
    (r"\.\.|//|<=|>=|==|!=|[-+*/<>=]", Operator),
    (r"[(),\[\]:]", Punctuation),
]


class EpsLexer(RegexLexer):  # type: ignore[misc]
    """Layers, clusters and schedules of epsc."""

    name = "EPS"
    aliases: ClassVar[list[str]] = ["eps"]
    filenames: ClassVar[list[str]] = ["*.eps"]
    url = "https://arxiv.org/abs/2410.12247"

    tokens: ClassVar[dict[str, list[Any]]] = {
        "root": [
            (rf"(schedule)(\s+)({_NAME})", bygroups(Keyword.Declaration, Text, Name.Class), "schedule head"),
            (rf"(layer)(\s+)({_NAME})", bygroups(Keyword.Declaration, Text, Name.Function), "layer head"),
            (rf"(cluster|preset)(\s+)({_NAME})", bygroups(Keyword.Declaration, Text, Name.Class), "settings head"),
            (rf"(let)(\s+)({_NAME})", bygroups(Keyword.Declaration, Text, Name.Constant)),
            (r"tokens\b", Keyword),
            *_COMMON,
            (_NAME, Name),
            (r".", Text),
        ],
        "schedule head": [
            (r"\{", Punctuation, ("#pop", "schedule")),
            (r"(=)(\s*)(auto)\b", bygroups(Operator, Text, Keyword), ("#pop", "choice")),
            (rf"(=)(\s*)({_NAME})", bygroups(Operator, Text, Name.Class), ("#pop", "choice")),
            *_COMMON,
            (r"", Text, "#pop"),
        ],
        "choice": [
            (r"(by|when)(\s+)(tokens)\b", bygroups(Keyword.Reserved, Text, Keyword)),
            (r"(else)(\s+)(auto)\b", bygroups(Keyword.Reserved, Text, Keyword)),
            (rf"(else)(\s+)({_NAME})", bygroups(Keyword.Reserved, Text, Name.Class)),
            (rf"(<=|//|[-+*/<(])(\s*)({_NAME})", bygroups(Operator, Text, Name)),
            *_COMMON,
            (r"", Text, "#pop"),
        ],
        "schedule": [
            (r"\}", Punctuation, "#pop"),
            (words(_DIRECTIVES, suffix=r"\b"), Keyword),
            (words(_INSIDE, suffix=r"\b"), Keyword.Reserved),
            *_COMMON,
            (_NAME, Name),
            (r".", Text),
        ],
        "layer head": [
            (r"\{", Punctuation, ("#pop", "layer")),
            (words(_DTYPES, suffix=r"\b"), Keyword.Type),
            *_COMMON,
            (_NAME, Name),
            (r".", Text),
        ],
        "layer": [
            (r"\}", Punctuation, "#pop"),
            (r"return\b", Keyword),
            (words(_DTYPES, suffix=r"\b"), Keyword.Type),
            (rf"({_NAME})(\s*)(\()", bygroups(Name.Function, Text, Punctuation)),
            (rf"({_NAME})(=)(?!=)", bygroups(Name.Attribute, Operator)),
            *_COMMON,
            (_NAME, Name),
            (r".", Text),
        ],
        "settings head": [(r"\{", Punctuation, ("#pop", "settings")), *_COMMON, (r"", Text, "#pop")],
        "settings": [
            (r"\}", Punctuation, "#pop"),
            (rf"({_NAME})(\s*)(=)(?!=)", bygroups(Name.Attribute, Text, Operator)),
            *_COMMON,
            (_NAME, Name),
            (r".", Text),
        ],
    }
