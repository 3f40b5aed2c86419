"""After fork(): an error at once, nothing to wait for, the parent unharmed, and a fresh client."""

import subprocess
import sys

import pytest

from tests.conftest import Machine

GUARD_S = 60
HEAD = """
import asyncio, gc, multiprocessing, os, sys, traceback, warnings
from llmasos import AsyncLLMasOS, ForkError, LLMasOS, SyscallError
PATH = sys.argv[1]
def told(call):
    try:
        call()
    except ForkError as error:
        return isinstance(error, RuntimeError) and "create a new client" in str(error)
def fresh():
    with LLMasOS(socket=PATH) as other, other.spawn("echo") as process:
        return process.generate("from the child", temperature=0).text == "from the child"
def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
SYNC = """
client = LLMasOS(socket=PATH)
process = client.spawn("echo")
stream = process.stream("one two three", temperature=0)
pid = os.fork()
if pid == 0:
    good = all([told(client.stat), told(lambda: process.generate("x")), told(lambda: next(stream)),
                told(lambda: client.spawn("echo"))])
    process.close(); stream.close(); client.close()
    del process, stream, client
    gc.collect()
    sys.exit(0 if good and fresh() else 9)
code = ended(pid)
print(code, "".join(stream), process.generate("and the parent", temperature=0).text)
"""
BLOCKS = """
with LLMasOS(socket=PATH) as client, client.spawn("echo") as process:
    pid = os.fork()
    if pid == 0:
        sys.exit(3)  # through the blocks
    print(ended(pid), process.generate("still here", temperature=0).text)
"""
AT_EXIT = """
client = LLMasOS(socket=PATH)
process = client.spawn("echo")
pid = os.fork()
if pid:
    print(ended(pid), process.generate("still here", temperature=0).text)
"""
ASYNC = """
async def main():
    async with AsyncLLMasOS(socket=PATH) as client, await client.spawn("echo") as process:
        following = client.watch()
        pid = os.fork()
        if pid == 0:
            for call in (client.stat, lambda: process.generate("x"), lambda: client.spawn("echo")):
                try:
                    await call()
                    os._exit(8)
                except ForkError:
                    pass
            await process.close()
            await following.aclose()
            await client.__aexit__(None, None, None)
            os._exit(0 if fresh() else 9)
        code = await asyncio.to_thread(ended, pid)
        await following.aclose()
        print(code, (await process.generate("still here", temperature=0)).text)
raise SystemExit(asyncio.run(main()))
"""
NEW_LOOP = """
async def main():
    async with AsyncLLMasOS(socket=PATH) as client, await client.spawn("echo") as process:
        return (await process.generate("from the child", temperature=0)).text
async def parent():
    async with AsyncLLMasOS(socket=PATH) as client:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if asyncio.run(main()) == "from the child" else 9)
        print(ended(pid), bool(await client.stat()))
asyncio.run(parent())
"""
POOL = """
def work(number):
    return told(client.stat), fresh(), number
client = LLMasOS(socket=PATH)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(work, range(3)), bool(client.stat()))
"""
PROGRAMS = {
    "sync": (SYNC, "0 one two three and the parent"),
    "blocks": (BLOCKS, "3 still here"),
    "at exit": (AT_EXIT, "0 still here"),
    "async": (ASYNC, "0 still here"),
    "a new loop": (NEW_LOOP, "0 True"),
    "multiprocessing": (POOL, "[(True, True, 0), (True, True, 1), (True, True, 2)] True"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_child_of_fork_and_its_parent(shared: Machine, name: str) -> None:
    program, said = PROGRAMS[name]
    done = subprocess.run(
        [sys.executable, "-c", HEAD + program, str(shared.paths.socket)], env=shared.environment,
        capture_output=True, text=True, timeout=GUARD_S,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == [said]
    assert done.returncode == 0
