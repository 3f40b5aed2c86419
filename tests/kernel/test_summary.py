"""A summary while it is made: what cancels it, and what its answer is."""

import pytest

from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Delta, Exit, Finish, Generated, Progress, Usage
from llmasos.kernel.process.table import Process
from llmasos.kernel.summary import SummaryAnswer, SummaryJob

pytestmark = pytest.mark.anyio


def generated(finish: Finish) -> Generated:
    return Generated(1, 2, finish, 3, Usage(1, 0, 1, 0.0, 0.0, 0.0), [])


@pytest.mark.parametrize(
    ("finish", "text"),
    [(Finish.STOP, "a summary"), (Finish.LENGTH, "a summary"), (Finish.CANCELLED, "")],
)
async def test_the_answer_is_all_of_the_text_or_nothing(finish: Finish, text: str) -> None:
    answer = SummaryAnswer()
    answer.item(Progress("load", 0.5, "echo"))
    for part in (" a ", "summary "):
        answer.item(Delta(part, 1))
    answer.reply(generated(finish))
    assert await answer.text() == text


async def test_the_error_of_the_call_is_the_answers() -> None:
    answer = SummaryAnswer()
    answer.fail(SyscallError(Errno.EAGAIN, "too many calls"))
    with pytest.raises(SyscallError, match="too many calls"):
        await answer.text()


async def test_a_change_of_the_rules_ends_a_summary_of_an_ended_process_only() -> None:
    process = Process(1, 0, "ann", "app", "echo", 0.0, True, ())
    job = SummaryJob(process)
    job.reauthorise()  # it has no call yet that could be refused
    assert not job.scope.cancel_called
    process.ending = Exit(1, 0, "TERM")
    job.reauthorise()
    assert job.scope.cancel_called
