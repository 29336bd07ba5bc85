"""auto by tokens: the fewest plans that are each about as fast as `auto` at every load of a range.

Candidates are asked about at powers of two. Neighbours are joined where one plan is within the margin of `auto` at all
of them, priced with the room that a program for the most of them has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from epsc.passes.auto import MARGIN, Candidate, best_of

Seconds = Callable[[int, int, int], float]
"""Of the candidate of a number at a load, in a program for at most so many tokens."""


@dataclass(frozen=True)
class Piece:
    """A range of load and the candidate for it."""

    load: tuple[int, int]
    best: Candidate
    asked: tuple[Candidate, ...]
    """All that were considered, at the most tokens of the range."""


def loads_between(low: int, high: int) -> tuple[int, ...]:
    """The loads that are asked about: the powers of two from `low` to `high`, and these two."""
    powers = (1 << n for n in range(high.bit_length()))
    return tuple(sorted({max(low, min(1, high)), high, *(n for n in powers if low <= n <= high)}))


def pieces(
    low: int,
    asked: Mapping[int, Sequence[Candidate]],
    seconds: Seconds,
    allowed: Collection[str],
) -> tuple[Piece, ...]:
    """The ranges from `low` to the highest load of `asked`, which holds the candidates at each load, in one order;
    `allowed`: the names of those that may be taken.

    Of all ways with the fewest ranges the one whose plans are fastest, summed over the loads; of equals the first.
    """
    loads = sorted(asked)
    at = {load: {i: each for i, each in enumerate(asked[load]) if each.decl.name in allowed} for load in loads}
    least = {load: best_of(list(at[load].values())).seconds for load in loads}
    # ways[i]: ranges of loads[:i], as how many they are, the sum of what their plans take over the best, and where
    # each begins with which candidate.
    ways: list[tuple[int, float, tuple[tuple[int, int], ...]]] = [(0, 0.0, ())]
    for end in range(1, len(loads) + 1):
        found = []
        for begin in range(end):
            inside = loads[begin:end]
            for number in at[inside[0]]:
                over = _over(number, inside, at, least, seconds)
                if over is not None:
                    count, before, begun = ways[begin]
                    found.append((count + 1, before + over, (*begun, (begin, number))))
        ways.append(min(found))
    begun = ways[-1][2]
    ends = [*(begin for begin, _ in begun[1:]), len(loads)]
    edges = [low, *(loads[end - 1] + 1 for end in ends)]
    return tuple(
        Piece((edge, loads[end - 1]), at[loads[end - 1]][number], tuple(asked[loads[end - 1]]))
        for edge, end, (_, number) in zip(edges, ends, begun, strict=False)
    )


def _over(
    number: int,
    loads: Sequence[int],
    at: Mapping[int, Mapping[int, Candidate]],
    least: Mapping[int, float],
    seconds: Seconds,
) -> float | None:
    """How much longer than the best a candidate takes, summed over the loads; None where it is too much at one."""
    limits = [least[load] * (1 + MARGIN) for load in loads]
    # As if made for that load alone it is no slower than with room for more: most are out by this already.
    if any(at[load][number].seconds > limit for load, limit in zip(loads, limits, strict=True)):
        return None
    taken = [seconds(number, load, loads[-1]) for load in loads]
    if len(loads) > 1 and any(time > limit for time, limit in zip(taken, limits, strict=True)):
        return None
    return sum(time / least[load] - 1 for time, load in zip(taken, loads, strict=True))
