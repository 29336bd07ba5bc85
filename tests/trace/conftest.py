"""Fixtures for tests of traced modules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.trace.ranks import Ranks


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny ops: threads of a busy machine would wait for each other longer than they compute."""
    torch.set_num_threads(1)
    # pytest listens to every logger, and this one then writes down each graph.
    logging.getLogger("torch.__trace").disabled = True


@pytest.fixture(scope="session")
def ranks_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Ranks]]:
    """Ranks by count, started when first asked for."""
    started: dict[int, Ranks] = {}

    def get(count: int) -> Ranks:
        if count not in started:
            started[count] = Ranks(count, tmp_path_factory.mktemp("ranks"))
        return started[count]

    yield get
    for ranks in started.values():
        ranks.stop()
