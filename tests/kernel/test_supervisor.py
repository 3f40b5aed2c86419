# pyright: reportPossiblyUnboundVariable=false
# A task group may swallow an exception, as far as types tell: none of these does.
"""Background jobs that fail: they run again, others go on, and what happened can be seen."""

import logging

import anyio
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.supervisor import BackgroundJob, Supervisor

pytestmark = pytest.mark.anyio
DEADLINE_S = 20


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOB_RETRY_FIRST_S", 0.001)


class Job:
    """Fails a number of times, then runs until it is released."""

    def __init__(self, failures: int) -> None:
        self.left = failures
        self.works = anyio.Event()
        self.released = anyio.Event()

    async def __call__(self) -> None:
        if self.left:
            self.left -= 1
            raise ValueError("a person's text")
        self.works.set()
        await self.released.wait()


async def test_a_failed_job_runs_again_and_its_neighbour_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bad, good = Job(3), Job(0)
    reports: list[tuple[str, str]] = []
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            jobs = Supervisor(tasks)
            jobs.report = lambda job: reports.append((job.name, job.state))
            jobs.run("bad", bad, owner="alice")
            jobs.run("good", good)
            await bad.works.wait()
            assert good.works.is_set()
            seen = {job.name: job for job in jobs.jobs()}
            assert (seen["bad"].state, seen["bad"].failures) == ("running", 3)
            assert seen["bad"].owner == "alice"
            assert seen["bad"].error.startswith("ValueError at test_supervisor.py:")
            assert "text" not in seen["bad"].error
            assert (seen["good"].state, seen["good"].failures) == ("running", 0)
            bad.released.set()
            good.released.set()
    assert reports == [("bad", "waiting"), ("bad", "running")] * 3 + [("bad", "ended")]
    assert [(job.name, job.state) for job in jobs.jobs()] == [("bad", "ended")]
    assert jobs.failures == 3
    assert caplog.text.count("ValueError: a person's text") == 3  # with a traceback, in the log
    assert "Traceback" in caplog.text


async def test_pauses_double_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOB_RETRY_LAST_S", 0.004)
    pauses: list[float] = []

    def report(job: BackgroundJob) -> None:
        if job.state == "waiting":
            pauses.append(job.pause_s)
            assert 0 <= job.retry_s <= job.pause_s

    bad = Job(5)
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            jobs = Supervisor(tasks)
            jobs.report = report
            bad.released.set()
            jobs.run("bad", bad)
    assert pauses == [0.001, 0.002, 0.004, 0.004, 0.004]


async def test_a_job_that_ran_long_enough_begins_with_the_first_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "JOB_STEADY_S", -1.0)  # any time is long enough
    pauses: list[float] = []
    bad = Job(3)
    bad.released.set()
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            jobs = Supervisor(tasks)
            jobs.report = lambda job: pauses.append(job.pause_s)
            jobs.run("bad", bad)
    assert set(pauses) == {0.001}


async def test_a_job_that_must_not_be_repeated_is_reported_once() -> None:
    bad = Job(1)
    failed = anyio.Event()
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            jobs = Supervisor(tasks)
            jobs.once("bad", bad, failed=failed.set)
            await failed.wait()
    [job] = jobs.jobs()
    assert (job.name, job.state, job.failures, job.retry_s) == ("bad", "failed", 1, 0.0)
    assert bad.left == 0
    assert not bad.works.is_set()


async def test_only_so_many_ended_jobs_are_remembered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    with anyio.fail_after(DEADLINE_S):
        async with anyio.create_task_group() as tasks:
            jobs = Supervisor(tasks)
            for _ in range(50):
                jobs.once("bad", Job(1))
    assert jobs.failures == 50
    assert len(jobs.jobs()) == 20


class Broken(BaseException):
    """As Panic is: no Exception."""


async def raises(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("repeated", [True, False])
async def test_a_broken_invariant_stops_everything(repeated: bool) -> None:
    other = Job(0)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with anyio.create_task_group() as tasks:
            jobs = Supervisor(tasks)
            jobs.run("other", other)
            (jobs.run if repeated else jobs.once)("bad", raises, Broken())
    assert caught.value.subgroup(Broken) is not None
