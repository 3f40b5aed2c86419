"""Facts that are told in passing come back when they are asked for, in other words, much later."""

import pytest

from llmasos.userland.bench.paging import PagingSize, converse
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine

WINDOW, TURNS = 1024, 100


@pytest.mark.timeout(300)
@pytest.mark.parametrize("embedder", ["builtin", "none"])
def test_facts_told_in_passing_come_back_when_they_are_asked_for(
    machine: Machine, embedder: str
) -> None:
    machine.start("--mount", "false", "--window", str(WINDOW), "--memory-embedder", embedder)
    with BlockingClient(machine.paths.socket) as line:
        tally = converse(line, PagingSize(WINDOW, TURNS), 1, "echo")
    assert tally.asked >= 10
    assert tally.compactions > 2
    assert tally.there >= 0.9 * tally.asked, tally.missed
