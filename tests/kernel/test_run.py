"""How a run of the kernel ends."""

import pytest

from llmasos.kernel.run import KernelRun


@pytest.fixture
def run() -> KernelRun:
    return KernelRun("alice", "test", private=True, shared=False, listens=False)


def test_the_first_reason_to_stop_is_the_one_that_is_recorded(run: KernelRun) -> None:
    run.stop("was stopped by alice", drain=True)
    assert (run.stopping.is_set(), run.drain) == (True, True)
    run.stop("was stopped by SIGTERM", drain=True)
    assert run.stop_reason == "was stopped by alice"


@pytest.mark.parametrize("drains", [(False,), (True, True)])
def test_a_second_stop_or_one_without_drain_ends_the_wait_for_calls(
    run: KernelRun, drains: tuple[bool, ...]
) -> None:
    skipped: list[bool] = []
    run.skip_drain = lambda: skipped.append(True)
    for drain in drains:
        run.stop("was stopped by alice", drain=drain)
    assert (run.drain, skipped) == (False, [True])
