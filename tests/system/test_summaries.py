"""Summaries of pages that left a window: single calls in the name of their process."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmasos import AsyncLLMasOS, AsyncProcess
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno
from llmasos.kernel.machine import Machine as Kernel
from llmasos.userland.client import BlockingClient
from llmasos.userland.sdk.connection import ReplyStream
from tests.system.daemon import Machine
from tests.system.raw import raw
from tests.system.test_paging import WINDOW, chat, pages, say, spawn
from tests.system.test_residency import running
from tests.waiting import until

SUMMARIES = ("--mount", "false", "--window", str(WINDOW), "--memory-summaries", "true")
APP = "app:system.summary"
DENY = f"p, {APP}, generate, /proc/*, deny"
LONG = "many words about nothing at all and the vault of the tangerine, " * 8

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def made_by(line: BlockingClient) -> list[v.Event]:
    """The events of calls that make summaries."""
    stream = line.stream("watch", v.Watch(since=0, follow=False), v.Events, v.Nothing)
    found = [event for batch in stream for event in batch.events]
    return [event for event in found if APP in event.subject.split()]


def test_summaries_are_made_beside_the_pages_marked_and_forgotten_with_them(
    machine: Machine,
) -> None:
    machine.start(*SUMMARIES)
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line, app="talk")
        say(line, pid, "The password of the vault is tangerine.")
        chat(line, pid, 8)
        made = until(lambda: [p for p in pages(line, pid) if p.kind is v.Kind.SUMMARY])
        assert made[0].key.startswith("summary of 0-")
        assert "tangerine" in made[0].text
        assert pages(line, pid)[0].text == "The password of the vault is tangerine."
        said, reply = say(line, pid, "Which password opens the vault?")
        faults = {fault.page for fault in reply.faults}
        assert 0 in faults
        assert ("talk (summary): " in said) is any(one.number in faults for one in made)
        line.call("forget", v.Forget(pid, 0), v.Forgotten)
        assert not [p for p in pages(line, pid) if "tangerine" in p.text and p.number == 0]
        left = [p.key for p in pages(line, pid) if p.kind is v.Kind.SUMMARY]
        assert not any(key.startswith("summary of 0-") for key in left)


def test_a_summary_is_in_the_journal_with_its_identity(machine: Machine) -> None:
    machine.start(*SUMMARIES)
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line, app="talk")
        chat(line, pid, 8)
        until(lambda: [p for p in pages(line, pid) if p.kind is v.Kind.SUMMARY])
        begun = [event for event in made_by(line) if event.kind == "begin"]
        assert begun
        for event in begun:
            user, *bounds = event.subject.split()
            assert user == f"u:{event.owner}"
            assert bounds == ["r:operator", "app:llmasos", "app:talk", f"pid:{pid}", APP]
            assert (event.syscall, event.object) == ("generate", "/dev/image/echo")
        ended = {event.call for event in until(lambda: _ended(line, len(begun)))}
        assert {event.seq for event in begun} <= ended


def _ended(line: BlockingClient, count: int) -> list[v.Event]:
    found = [event for event in made_by(line) if event.kind == "end"]
    return found if len(found) >= count else []


def test_a_rule_that_denies_summaries_stops_them_and_is_logged_once(machine: Machine) -> None:
    """P-06."""
    machine.start(*SUMMARIES)
    with raw(machine.paths.socket, "owner") as owner:
        owner.call("policy_edit", add=[DENY])
    with BlockingClient(machine.paths.socket) as line:
        pid = spawn(line, app="talk")
        chat(line, pid, 8)
        refused = until(lambda: [e for e in made_by(line) if e.kind == "refused"])
        assert refused[0].note == f"policy.csv:1: {DENY}"
        chat(line, pid, 8)
        assert {event.kind for event in made_by(line)} == {"refused"}
        assert not [page for page in pages(line, pid) if page.kind is v.Kind.SUMMARY]
        assert {info.app for info in line.call("ps", v.Ps(), v.Processes).processes} == {"talk"}
    assert machine.log.count("are not summarised") == 1


@asynccontextmanager
async def summarising(
    root: Path,
) -> AsyncGenerator[tuple[Kernel, AsyncLLMasOS, AsyncProcess, v.ProcessInfo]]:
    """A process, and the one that makes the summary of its pages, which takes some seconds."""
    async with running(root, summaries=True, rate=20.0, slots=4, window=512) as (kernel, client):
        process = await client.spawn("one", app="talk")
        async with client.watch(kinds=["begin"]) as events:
            evicted: list[int] = []
            while not evicted:
                evicted = (await process.generate(LONG, max_tokens=1, temperature=0)).evicted
            await anext(_of_summaries(events))
        [info] = [one for one in (await client.ps()).processes if one.pid != process.pid]
        yield kernel, client, process, info


async def _of_summaries(events: ReplyStream[v.Events, v.Nothing]) -> AsyncGenerator[v.Event]:
    """The next events of calls that make summaries."""
    async for batch in events:
        for event in batch.events:
            if APP in event.subject.split():
                yield event


async def test_a_summary_is_a_process_of_the_lowest_share(tmp_path: Path) -> None:
    async with summarising(tmp_path) as (_, client, process, info):
        assert (info.app, info.nice, info.parent) == ("system.summary", 19, process.pid)
        [of_process] = (await client.ps(pid=process.pid)).processes
        assert info.started_by == of_process.started_by


async def test_a_change_of_the_rules_cancels_a_summary(tmp_path: Path) -> None:
    async with summarising(tmp_path) as (_, client, process, info):
        async with (
            client.watch(kinds=["end"]) as events,
            AsyncLLMasOS(socket=tmp_path / "runtime" / "kernel.sock", profile="owner") as owner,
        ):
            await owner.policy_edit(add=[DENY])
            event = await anext(_of_summaries(events))
        assert (event.pid, event.errno) == (info.pid, Errno.EACCES)
        assert [one.pid for one in (await client.ps()).processes] == [process.pid]
        assert not [p for p in await process.read_mem() if p.kind is v.Kind.SUMMARY]


async def test_a_call_of_the_process_cancels_a_summary_that_is_made_afterwards(
    tmp_path: Path,
) -> None:
    async with summarising(tmp_path) as (_, client, process, info):
        async with client.watch(kinds=["begin", "end"]) as events:
            await process.generate("short", max_tokens=1, temperature=0)
            found = _of_summaries(events)
            ended, again = await anext(found), await anext(found)
        assert (ended.kind, ended.pid, ended.errno) == ("end", info.pid, Errno.ECANCELED)
        assert again.kind == "begin"


@pytest.mark.parametrize("way", ["kill", "forget", "shutdown"])
async def test_the_end_of_its_process_or_of_its_pages_cancels_a_summary(
    tmp_path: Path, way: str
) -> None:
    async with summarising(tmp_path) as (kernel, client, process, info):
        async with client.watch(kinds=["end"]) as events:
            if way == "kill":
                await process.kill("TERM")
            elif way == "forget":
                await process.forget(0)
            else:
                await client.stat()  # the kernel has the call before it stops
                kernel.run.stop("the test stops it", drain=True)
            event = await anext(_of_summaries(events))
        assert (event.pid, event.errno) == (info.pid, Errno.ECANCELED)
        if way == "kill":
            assert (await client.ps()).processes == []
