"""Writes tables.py from eps.lark: `python -m epsc.grammar.generate`.

To let Lark read the grammar and compute its LALR(1) table takes longer than all else that `epsc check` does, so that
is done when the grammar changes, not at every start. A test tells when tables.py is older than the grammar.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from lark import Lark, Token
from lark.grammar import Rule
from lark.lexer import Lexer, PatternRE, PatternStr
from lark.parsers.lalr_analysis import Shift

_HEAD = '''\
"""The LALR(1) table of eps.lark, made by `python -m epsc.grammar.generate`. Change the grammar, not this."""

# ruff: noqa: E501
# fmt: off

'''


class _NoLexer(Lexer):
    """Lark only makes the table."""

    def __init__(self, lexer_conf: object) -> None:
        pass

    def lex(self, _lexer_state: object, _parser_state: object) -> Iterator[Token]:
        return iter(())


def tables_text() -> str:
    """The text of tables.py for the grammar as it is."""
    grammar = files("epsc.grammar").joinpath("eps.lark").read_text(encoding="utf-8")
    lark = Lark(grammar, parser="lalr", lexer=_NoLexer, start="spec", strict=False)
    conf = lark.parse_interactive("").parser_state.parse_conf
    rules = sorted(
        {rule for row in conf.states.values() for action, rule in row.values() if action is not Shift}, key=str
    )
    # Lark numbers states in an order that changes from run to run: number them by how they are reached.
    order = [conf.start_state]
    for state in order:
        for _, (action, arg) in sorted(conf.states[state].items()):
            if action is Shift and arg not in order:
                order.append(arg)
    number = {state: index for index, state in enumerate(order)}
    rows = []
    for state in order:
        row = {
            symbol: number[arg] if action is Shift else ~rules.index(arg)
            for symbol, (action, arg) in sorted(conf.states[state].items())
        }
        rows.append(f"    {row},\n")
    fixed = {t.name: t.pattern.value for t in lark.terminals if isinstance(t.pattern, PatternStr)}
    patterns = {t.name: t.pattern.value for t in lark.terminals if isinstance(t.pattern, PatternRE)}
    return (
        f"{_HEAD}"
        f"END_STATE = {number[conf.end_state]}\n\n"
        f"FIXED = {fixed!r}\n"
        '"""Text by kind of token."""\n\n'
        f"PATTERNS = {patterns!r}\n"
        '"""Regular expression by kind of token."""\n\n'
        f"RULES: tuple[tuple[str, str, int, tuple[int, ...], bool], ...] = (\n"
        f"{''.join(f'    {_rule(rule)!r},{chr(10)}' for rule in rules)})\n"
        '"""(name of the node, symbol, length, children to keep, whether one child stands for the node)."""\n\n'
        f"STATES: tuple[dict[str, int], ...] = (\n{''.join(rows)})\n"
        '"""Per state and symbol: the state to go to, or ~rule to reduce by."""\n'
    )


def _rule(rule: Rule) -> tuple[str, str, int, tuple[int, ...], bool]:
    origin = str(rule.origin.name)
    keep = tuple(i for i, symbol in enumerate(rule.expansion) if not getattr(symbol, "filter_out", False))
    return rule.alias or origin, origin, len(rule.expansion), keep, bool(rule.options.expand1) and not rule.alias


if __name__ == "__main__":
    (Path(__file__).parent / "tables.py").write_text(tables_text(), encoding="utf-8")
