"""Followers of one source: what they have not read, and what they are told instead."""

import anyio
import pytest

from llmasos.kernel.watch import Follower, Followers

pytestmark = pytest.mark.anyio


async def test_what_is_dropped_is_counted_and_never_shown() -> None:
    output: Followers[str] = Followers()
    follower: Follower[str] = Follower(lambda _: True)
    output.add(follower)
    for text in ("a secret", "more of it"):
        output.publish(text)
    output.drop()
    output.publish("what came later")
    with anyio.fail_after(30):
        assert await follower.batch(10) == ["what came later"]
    assert follower.missed == 2
