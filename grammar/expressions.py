"""The tree of an expression to the expression."""

from __future__ import annotations

import math

from epsc.grammar.tree import Node, Part, Token, word
from epsc.ir.errors import Faults
from epsc.ir.source import Source, Span
from epsc.ir.spec import Binary, Broken, Call, Expr, Keyword, Name, Number

MOST_DEPTH = 100
"""Expressions in expressions. All that walks an expression may recurse, and Python allows some hundreds of calls."""

_MOST = 2**63 - 1
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//"}


class Expressions:
    def __init__(self, source: Source, faults: Faults) -> None:
        self._source = source
        self._faults = faults

    def span(self, part: Part) -> Span:
        return Span(self._source, part.start, part.end)

    def build(self, part: Part) -> Expr:
        """The expression; Broken, with its fault gathered, where it is too deep or a number too large."""
        try:
            return self._build(part, 0)
        except _TooDeepError as error:
            message = f"more than {MOST_DEPTH} expressions within each other"
            self._faults.add("too-deep", message, error.span, help="give parts of it names of their own")
            return Broken(self.span(part))

    def _build(self, part: Part, depth: int) -> Expr:
        span = self.span(part)
        if isinstance(part, Token):
            return Broken(span)
        if depth >= MOST_DEPTH:
            raise _TooDeepError(span)
        match part.kind:
            case "int" | "float":
                return self._number(word(part.children[0]), span)
            case "name":
                return Name(word(part.children[0]), span)
            case "neg":
                operand = self._build(part.children[0], depth + 1)
                if isinstance(operand, Number):
                    return Number(-operand.value, span)
                return Binary("-", Number(0, span), operand, span)
            case "call":
                return self._call(part, span, depth)
        left, right = (self._build(operand, depth + 1) for operand in part.children)
        return Binary(_OPERATORS[part.kind], left, right, span)

    def _number(self, text: str, span: Span) -> Number | Broken:
        if text.isdigit():
            # Python refuses to read thousands of digits, so the length is looked at first.
            if len(text.lstrip("0")) < 20 and int(text) <= _MOST:
                return Number(int(text), span)
            self._faults.add("number-too-large", f"integers go up to {_MOST}", span)
        elif math.isfinite(value := float(text)):
            return Number(value, span)
        else:
            self._faults.add("number-too-large", "the number is too large for a float", span)
        return Broken(span)

    def _call(self, tree: Node, span: Span, depth: int) -> Call:
        name, *arguments = tree.children
        args: list[Expr] = []
        keywords: list[Keyword] = []
        for argument in arguments:
            if isinstance(argument, Node) and argument.kind == "keyword":
                key, value = argument.children
                keywords.append(Keyword(word(key), self._build(value, depth + 1), self.span(argument)))
                continue
            if keywords:
                message = f"an argument without a name behind `{keywords[-1].name}=`"
                help = "arguments without names come first"
                self._faults.add("syntax", message, self.span(argument), help=help)
            args.append(self._build(argument, depth + 1))
        return Call(word(name), tuple(args), tuple(keywords), span, self.span(name))


class _TooDeepError(Exception):
    def __init__(self, span: Span) -> None:
        self.span = span
