"""Random layers, schedules, rank counts, loads and routings: the emitted program equals the interpreter in fp32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, note, settings

from epsc import driver
from epsc.grammar import format_spec, parse
from epsc.ir.errors import EpsError
from epsc.ir.source import Source
from tests.programs.layers import Case, cases
from tests.programs.ranks import Job, Ranks

LIMIT = 1e-5
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def equals_the_interpreter(case: Case, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    source = Source("random.eps", case.text)
    note(format_spec(parse(source)))
    try:
        layer = driver.understand(source)
        job = prepare(layer, "s", case.tokens, routing=case.routing, seed=case.seed)
    except EpsError as error:
        # Two that share a lane cannot run beside each other, and partitions can ask for too much: these may be refused.
        assert {d.code for d in error.diagnostics} <= {"not-beside", "sms-over-chip"}, error
        return
    results = ranks_of(case.ep).run(job)
    worst = max(result.error for result in results)
    assert worst < LIMIT, f"tokens {case.tokens}, {case.routing} routing: {worst:.2e}"


@pytest.mark.distributed
@pytest.mark.timeout(600)
@settings(max_examples=40, deadline=None, suppress_health_check=SLOW, derandomize=True)
@given(case=cases())
def test_random_programs(case: Case, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    equals_the_interpreter(case, ranks_of, prepare)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=600, deadline=None, suppress_health_check=SLOW)
@given(case=cases())
def test_many_random_programs(case: Case, ranks_of: Callable[[int], Ranks], prepare: Callable[..., Job]) -> None:
    equals_the_interpreter(case, ranks_of, prepare)


@given(case=cases())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_strategy_makes_layers_that_are_understood(case: Case) -> None:
    """Else the tests above would test nothing."""
    driver.understand(Source("random.eps", case.text))
