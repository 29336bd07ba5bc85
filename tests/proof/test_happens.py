"""What the proof and `synchronise` both lean on, against brute force that shares nothing with it.

A fault in `Happens` or `overlap` would let `synchronise` leave out a wait, and keep the hazard check from missing it.
"""

from __future__ import annotations

from itertools import product

from epsc.ir.dims import Axis, Cut, overlap
from epsc.proof.happens import Happens
from tests.proof.mutations import Reach
from tests.proof.schedules import example_schedules, random_schedules


def test_vector_clocks_say_what_the_closure_says() -> None:
    pairs = 0
    for made in (*example_schedules()[::4], *random_schedules(60)):
        happens, reach = Happens.of(made.schedule), Reach(made.schedule)
        keys = [step.key for step in made.schedule.steps]
        for i, first in enumerate(keys):
            for then in keys[i + 1 :]:
                assert happens.before(first, then) == reach(first, then), f"{first}, {then}\n{made.origin}"
                assert not happens.before(then, first), f"{then}, {first}\n{made.origin}"
                pairs += 1
    assert pairs > 10_000


def test_cuts_overlap_if_any_number_of_items_lets_them() -> None:
    """Chunk i of n of m items is floor(i*m/n) up to floor((i+1)*m/n), as programs cut; m is not known to the proof."""

    def items(i: int, n: int, m: int) -> set[int]:
        return set(range(i * m // n, (i + 1) * m // n))

    for n, k in product(range(1, 7), repeat=2):
        for i, j in product(range(n), range(k)):
            meet = any(items(i, n, m) & items(j, k, m) for m in range(61))
            assert overlap((Cut(Axis.TOKENS, i, n),), (Cut(Axis.TOKENS, j, k),)) == meet, (i, n, j, k)
            assert overlap((Cut(Axis.TOKENS, i, n),), (Cut(Axis.EXPERT_GROUP, j, k),)), "different axes always cross"
            assert overlap((), (Cut(Axis.TOKENS, j, k),))
