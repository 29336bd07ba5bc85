"""An expression to text, with no more brackets than it needs."""

from __future__ import annotations

from epsc.ir.spec import Binary, Broken, Call, Expr, Keyword, Name, Number

WIDTH = 100
"""Columns that a line should fit in."""

INDENT = 2

_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "//": 2}


def flat(expr: Expr) -> str:
    """The expression on one line."""
    match expr:
        case Number():
            return repr(expr.value)
        case Name():
            return expr.name
        case Binary():
            strength = _STRENGTH[expr.op]
            sign = f" {expr.op} " if strength == 1 else expr.op
            # Operators of one strength go from left to right, so of two operands only the right one needs brackets.
            return f"{_operand(expr.left, strength)}{sign}{_operand(expr.right, strength + 1)}"
        case Call():
            return f"{expr.fn}({', '.join([*map(flat, expr.args), *map(_keyword, expr.keywords)])})"
        case Broken():
            raise ValueError("a Spec with syntax errors has no text")


def wrapped(expr: Expr, indent: int, used: int) -> str:
    """The expression behind `used` columns of a line with that indent.

    A call that does not fit gets a line for each argument; what has no call is left long.
    """
    text = flat(expr)
    if used + len(text) <= WIDTH:
        return text
    match expr:
        case Call() if expr.args or expr.keywords:
            return _call(expr, indent)
        case Binary(op=("+" | "-") as op, left=left, right=Call() as right):
            before = f"{flat(left)} {op} "
            return before + wrapped(right, indent, used + len(before))
    return text


def _call(call: Call, indent: int) -> str:
    inner = indent + INDENT
    lines = [wrapped(arg, inner, inner + len(",")) for arg in call.args]
    for keyword in call.keywords:
        used = inner + len(keyword.name) + len("=,")
        lines.append(f"{keyword.name}={wrapped(keyword.value, inner, used)}")
    return "\n".join([f"{call.fn}(", *(f"{' ' * inner}{line}," for line in lines), f"{' ' * indent})"])


def _operand(expr: Expr, strength: int) -> str:
    text = flat(expr)
    return f"({text})" if isinstance(expr, Binary) and _STRENGTH[expr.op] < strength else text


def _keyword(keyword: Keyword) -> str:
    return f"{keyword.name}={flat(keyword.value)}"
