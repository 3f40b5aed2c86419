"""P-04: a process whose slot was taken returns to its context, as far as there is room for it."""

import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient
from tests.system.daemon import Machine
from tests.system.test_life import spawn, turn

TEXT = "a text that is long enough to be worth a copy, and not a computation, " * 3
SHORT = v.Sampling(temperature=0, max_tokens=8)


def alternating(line: BlockingClient, model: str) -> list[int]:
    """Cached tokens of two processes that take the only slot from each other."""
    pids = [spawn(line, model) for _ in range(2)]
    cached: list[int] = []
    for text in (TEXT, "and on", "and on"):
        for pid in pids:
            _, reply = turn(line, pid, text, SHORT)
            cached.append(reply.usage.cached_tokens)
    return cached


@pytest.mark.parametrize("room", [0, 10**6])
def test_contexts_are_saved_within_their_limit(machine: Machine, room: int) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        line.call("mount", v.Mount("echo", {"slots": 1, "kept_bytes": room}), v.DeviceInfo)
        first, second, *later = alternating(line, "echo")
        assert first == second == 0
        assert [cached > limits.SHARE_TOKENS for cached in later] == [bool(room)] * 4
        assert later == sorted(later)


def test_contexts_of_a_real_model_are_saved(machine: Machine) -> None:
    machine.start("--mount", "false")
    with BlockingClient(machine.paths.socket) as line:
        line.call("mount", v.Mount("smollm2", {"slots": 1, "window": 512}), v.DeviceInfo)
        *_, third, fourth = alternating(line, "smollm2")
        assert min(third, fourth) > limits.SHARE_TOKENS
