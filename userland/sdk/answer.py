"""Answers of a model: AsyncAnswer streams one, Reply is a complete one."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import anyio

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v

from .connection import ReplyStream
from .fork import ForkError

_SHOWN_CHARS = 60  # of a text in a repr


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer. `finish` is "stop", or "length" when max_tokens or the window ended it."""

    text: str
    finish: v.Finish
    usage: v.Usage
    seed: int
    pages: list[int]  # numbers of the pages that this turn wrote
    call: int  # number of the call in the journal
    window: list[int]  # numbers of the pages in the window
    faults: list[v.Fault]  # pages that were brought back for this call
    evicted: list[int]  # numbers of the pages that were evicted
    notices: list[str]
    logprobs: list[v.Logprob]  # one per token; empty unless requested
    parse: Callable[[str], Any] | None = field(default=None, repr=False, compare=False)

    @property
    def parsed(self) -> Any:
        """The answer as an object of the call's `schema`: an instance of the pydantic model or
        dataclass, or the JSON value.

        None without a schema, and for a truncated answer (`finish` is not "stop"). Raises
        ValueError (pydantic's ValidationError is one) for a text that does not match the schema.
        """
        if self.parse is None or self.finish is not v.Finish.STOP:
            return None
        return self.parse(self.text)

    def __repr__(self) -> str:
        tokens = self.usage.completion_tokens
        return f"Reply({shortened(self.text)}, finish={str(self.finish)!r}, tokens={tokens})"


def shortened(text: str) -> str:
    """The repr of a text, cut to _SHOWN_CHARS."""
    return repr(text) if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]!r}..."


class AsyncAnswer:
    """An answer that is streamed: `async for` its pieces of text, then read `reply`.

    The call starts with the first iteration. Leaving the loop early does not end the call: use
    `async with`, or `await answer.close()`.
    """

    def __init__(
        self,
        begin: Callable[[], ReplyStream[v.Delta, v.Generated]],
        parse: Callable[[str], Any] | None = None,
    ) -> None:
        self._begin = begin
        self._parse = parse
        self._stream: ReplyStream[v.Delta, v.Generated] | None = None
        self._texts: list[str] = []
        self._logprobs: list[v.Logprob] = []

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        try:
            if self._stream is None:
                self._stream = self._begin()
            delta = await self._stream.__anext__()
            while delta.loading is not None:  # its model is being loaded
                delta = await self._stream.__anext__()
        except (StopAsyncIteration, ForkError):  # nothing to close; in a child no event loop either
            raise
        except BaseException:
            with anyio.move_on_after(limits.CLOSE_S, shield=True):
                await self.close()
            raise
        self._texts.append(delta.text)
        self._logprobs += delta.logprobs
        return delta.text

    @property
    def text(self) -> str:
        """The text received so far."""
        return "".join(self._texts)

    @property
    def reply(self) -> Reply:
        """The complete answer. Raises RuntimeError before the last piece has been read."""
        done = self._stream.reply if self._stream is not None else None
        if done is None:
            raise RuntimeError("the answer is not complete: iterate to its end first")
        return Reply(
            self.text, done.finish, done.usage, done.seed, done.pages, done.call, done.window,
            done.faults, done.evicted, done.notices, self._logprobs, self._parse,
        )  # fmt: skip

    async def whole(self) -> Reply:
        """Read to the end and return the answer. Raises SyscallError as `generate` does."""
        async for _ in self:
            pass
        return self.reply

    async def close(self) -> None:
        """Cancel the call if it is still running. The process keeps the text generated so far."""
        if self._stream is not None:
            await self._stream.aclose()

    def __repr__(self) -> str:
        done = self._stream is not None and self._stream.reply is not None
        return f"AsyncAnswer({shortened(self.text)}, {'complete' if done else 'running'})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
