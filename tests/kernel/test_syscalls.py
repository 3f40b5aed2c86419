"""The handlers of a running kernel."""

from pathlib import Path

import pytest

from llmasos.kernel.abi.table import TABLE
from tests.system.test_residency import running

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_every_syscall_has_a_handler_in_the_order_of_the_table(tmp_path: Path) -> None:
    async with running(tmp_path) as (kernel, _):
        handlers = list(kernel.call_parts.handlers)
    assert handlers == [name for name in TABLE if name != "hello"]  # the session handles hello
