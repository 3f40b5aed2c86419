"""Rules are edited, simulated on recorded calls, and learned from them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmasos import AsyncLLMasOS
from llmasos.kernel.abi.errors import SyscallError
from llmasos.kernel.access.decisions import Policy
from llmasos.kernel.access.rules import ROLE_DEPTH
from llmasos.kernel.machine import Machine as Kernel
from tests.system.test_residency import running

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def connected(root: Path, app: str, profile: str = "operator") -> AsyncLLMasOS:
    return AsyncLLMasOS(socket=root / "runtime" / "kernel.sock", app=app, profile=profile)


def policy_of(kernel: Kernel) -> Policy:
    handler: Any = kernel.call_parts.handlers["policy_simulate"]
    policy: Policy = handler.__self__.policy
    return policy


async def test_learned_rules_allow_a_call_on_a_process_that_another_application_started(
    tmp_path: Path,
) -> None:
    """The application is a subject of the caller and of the process, with a path for each."""
    async with (
        running(tmp_path),
        connected(tmp_path, "tool") as tool,
        connected(tmp_path, "x") as x,
        connected(tmp_path, "me", "owner") as owner,
    ):
        pid = (await tool.spawn("one", app="x")).pid
        await x.process(pid).generate("hello", max_tokens=1)
        learned = await owner.policy_learn(app="x")
        rows = {row for row in learned.rules if "generate" in row}
        assert rows == {f"p, app:x, generate, /proc/{own}*, allow" for own in ("", "own/")}
        assert learned.calls == 1
        await owner.policy_edit(add=learned.rules)
        await x.process(pid).generate("hello", max_tokens=1)


async def test_an_explanation_has_a_result_for_each_path_of_a_subject(tmp_path: Path) -> None:
    """The application abstains for the path of the caller, and allows that of the process."""
    async with (
        running(tmp_path),
        connected(tmp_path, "tool") as tool,
        connected(tmp_path, "x") as x,
        connected(tmp_path, "me", "owner") as owner,
    ):
        pid = (await tool.spawn("one", app="x")).pid
        reply = await x.process(pid).generate("hello", max_tokens=1)
        await owner.policy_edit(add=["p, app:x, generate, /proc/own/*, allow"])
        verdict = await owner.policy_check(call=reply.call)
        assert verdict.effect == "allow"
        assert [one.effect for one in verdict.rulings if one.subject == "app:x"] == ["allow"] * 2


async def test_a_simulation_leaves_the_cached_decisions_of_users_alone(tmp_path: Path) -> None:
    async with (
        running(tmp_path) as (kernel, client),
        connected(tmp_path, "me", "owner") as owner,
    ):
        process = await client.spawn("one")
        await process.generate("hello", max_tokens=1)
        await owner.policy_edit(add=["p, r:x, ps, /proc, deny"])  # now no decision is cached
        await owner.policy_simulate("", since_s=0)
        before = policy_of(kernel).cache_sizes
        assert (await owner.policy_simulate("p, r:x, ps, /*, deny\n")).calls > 1
        assert policy_of(kernel).cache_sizes == before


async def test_a_mistake_in_a_shipped_file_quotes_no_added_row(tmp_path: Path) -> None:
    """Its line is not one of the added rows, though it has the number of one."""
    chain = ["r:careful", *(f"r:l{number}" for number in range(ROLE_DEPTH))]
    rows = [f"g, {member}, {role}" for member, role in pairwise(chain)]
    rows += [f"p, r:x, ps, /proc/{number}, deny" for number in range(20)]
    async with running(tmp_path), connected(tmp_path, "me", "owner") as owner:
        with pytest.raises(SyscallError, match=r"operator\.csv:\d+: roles are nested deeper"):
            await owner.policy_edit(add=rows)
