"""The LALR parser with its stack in view: ask what it would take, feed it, or cut its stack back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from epsc.grammar.language import CLOSING, END, OPENING
from epsc.grammar.tables import END_STATE, RULES, STATES
from epsc.grammar.tree import Node, Part, Token


class Automaton:
    """States are numbers; `values[k]` is what was read between `states[k]` and `states[k + 1]`."""

    def __init__(self) -> None:
        self.states: list[int] = [0]
        self.values: list[Part] = []
        self._end = 0

    def feed(self, token: Token) -> Node | None:
        """Take a token that `accepts` accepts; the node of all that was read once that is END."""
        while (action := STATES[self.states[-1]][token.kind]) < 0:
            self._reduce(~action)
            if token.kind == END and self.states[-1] == END_STATE:
                (node,) = self.values
                assert isinstance(node, Node)
                return node
        self.states.append(action)
        self.values.append(token)
        self._end = token.end
        return None

    def _reduce(self, rule: int) -> None:
        name, origin, size, keep, pass_through = RULES[rule]
        if size == 0:
            node: Part = Node(name, [], self._end, self._end)
        else:
            parts = self.values[-size:]
            del self.values[-size:], self.states[-size:]
            node = _node(name, parts, keep, pass_through)
        self.values.append(node)
        self.states.append(STATES[self.states[-1]][origin])

    def accepts(self, *kinds: str) -> bool:
        """Whether tokens of these kinds would all be taken, one after the other."""
        if len(kinds) == 1 and STATES[self.states[-1]].get(kinds[0], -1) >= 0:
            return True  # so it is half of the time
        return self.accepts_below(len(self.states), kinds)

    def accepts_below(self, height: int, kinds: Sequence[str]) -> bool:
        """The same, if the stack were cut back to its first `height` states."""
        # The stack is not copied, because it may be as high as the file is long: `top` lies on what is left of it.
        top: list[int] = []
        for kind in kinds:
            while True:
                action = STATES[top[-1] if top else self.states[height - 1]].get(kind)
                if action is None:
                    return False
                if action >= 0:
                    top.append(action)
                    break
                _, origin, size, _, _ = RULES[~action]
                height -= max(0, size - len(top))
                del top[max(0, len(top) - size) :]
                top.append(STATES[top[-1] if top else self.states[height - 1]][origin])
                if top[-1] == END_STATE:
                    return True  # END is never shifted
        return True

    def marks(self) -> Iterator[tuple[int, str]]:
        """Where recovery can put a BROKEN token: (height of the stack, kind), from the top of the stack down."""
        for height in range(len(self.states), 0, -1):
            for kind, action in STATES[self.states[height - 1]].items():
                if action >= 0 and kind.startswith("BROKEN"):
                    yield height, kind

    def unclosed(self, height: int) -> list[Token]:
        """The brackets above the first `height` states that were opened and not closed, the innermost last."""
        opened: list[Token] = []
        for value in self.values[height - 1 :]:
            if isinstance(value, Token) and value.kind in OPENING:
                opened.append(value)
            elif isinstance(value, Token) and value.kind in CLOSING:
                del opened[-1:]
        return opened

    def cut(self, height: int) -> None:
        """Forget all that was read above the first `height` states."""
        del self.states[height:]
        del self.values[height - 1 :]


def _node(name: str, parts: list[Part], keep: tuple[int, ...], pass_through: bool) -> Part:
    start, end = parts[0].start, parts[-1].end
    children: list[Part] = []
    for index in keep:
        part = parts[index]
        if isinstance(part, Node) and part.kind.startswith("_"):
            if index == 0:
                # A list grows at its end, one rule at a time. To copy it each time would take time squared.
                children = part.children
            else:
                children += part.children
        else:
            children.append(part)
    if pass_through and len(children) == 1:
        child = children[0]
        # Brackets around an expression belong to its place.
        return child if (child.start, child.end) == (start, end) else child._replace(start=start, end=end)
    return Node(name, children, start, end)
