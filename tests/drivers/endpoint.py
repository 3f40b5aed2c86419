"""A little endpoint on loopback that answers as badly as a test wants it to."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmasos.drivers import remote
from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import DeviceFault
from llmasos.kernel.driver import Option
from tests.drivers.rig import Outcome, Rig, check_end

KEY = "sk-a-key-that-nobody-may-see"
HOUR_S = 3600.0

MODELS = {"object": "list", "data": [{"id": "parrot", "object": "model"}]}
QUICK: dict[str, Option] = {"connect_s": 5.0, "first_s": 5.0, "stall_s": 5.0, "retries": 3}


@dataclass
class Request:
    """One request, and the way to answer it."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    writer: asyncio.StreamWriter

    def head(self, status: int = 200, **headers: object) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"HTTP/1.1 {status} Whatever", "connection: close"]
        lines += [f"{name}: {value}" for name, value in named.items()]
        self.write("\r\n".join([*lines, "", ""]))

    def write(self, data: str | bytes) -> None:
        self.writer.write(data.encode() if isinstance(data, str) else data)

    def json(self, value: object, status: int = 200, **headers: object) -> None:
        self.head(status, **headers)
        self.write(json.dumps(value))

    def event(self, value: object) -> None:
        self.write(f"data: {json.dumps(value)}\n\n")

    def text(self, text: str, **more: object) -> None:
        self.event({"choices": [{"index": 0, "delta": {"content": text}}], **more})

    def finish(self, reason: str = "stop", usage: object = None) -> None:
        choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": reason}
        self.event({"choices": [choice]})
        if usage is not None:
            self.event({"choices": [], "usage": {"completion_tokens": usage}})
        self.write("data: [DONE]\n\n")

    async def gone(self) -> None:
        """Wait until the other side has hung up."""
        while True:
            self.write(": still here\n\n")
            try:
                await self.writer.drain()
            except ConnectionError:
                return
            await asyncio.sleep(0.01)


Answer = Callable[[Request], Awaitable[None]]


@dataclass
class Endpoint:
    """`answer` takes every request but the one for the list of models."""

    answer: Answer
    models: object = field(default_factory=lambda: MODELS)
    requests: list[Request] = field(default_factory=list[Request])
    port: int = 0
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def bodies(self) -> list[Any]:
        return [request.body for request in self.requests if request.body is not None]

    async def __aenter__(self) -> "Endpoint":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    def rig(self, **options: Option) -> Rig:
        return Rig(remote, Path(), Path(), **{"url": self.url, **QUICK, **options})

    def list(self, request: Request) -> None:
        """Answer the request for the list of models."""
        request.json(self.models)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _read(reader, writer)
            self.requests.append(request)
            if request.path.endswith("/models"):
                self.list(request)
            else:
                await self.answer(request)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _version = head[0].split()
    pairs = (line.partition(": ") for line in head[1:] if line)
    headers = {name.lower(): value for name, _, value in pairs}
    data = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, json.loads(data) if data else None, writer)


# --- calls to one -----------------------------------------------------------------------------
async def refuse(request: Request) -> None:
    request.json({"error": {"message": "nobody asked"}}, 400)


async def one(
    answer: Answer, *, options: dict[str, Option] | None = None, **sampling: Any
) -> Outcome:
    """A call to such an endpoint."""
    async with Endpoint(answer) as endpoint, endpoint.rig(**(options or {})) as rig:
        outcome = await rig.run(await rig.ask(), **{"max_tokens": 50, **sampling})
        check_end(outcome, exact=False)
        # It was a fault of that call only.
        assert rig.ear.downs == []
        return outcome


async def fault(answer: Answer, *, options: dict[str, Option] | None = None) -> str:
    outcome = await one(answer, options=options)
    assert isinstance(outcome.last.error, DeviceFault)
    words: str = outcome.last.error.message
    assert words.startswith("http://127.0.0.1:")
    assert len(words) < 2 * limits.REMOTE_WORDS_CHARS
    assert "\n" not in words
    return words


def statuses(*before: int, **headers: object) -> Answer:
    """These statuses in turn, then an answer."""
    left = list(before)

    async def answer(request: Request) -> None:
        if left:
            request.json(
                {"error": {"message": f"no, and your key is {KEY}"}}, left.pop(0), **headers
            )
            return
        request.head()
        request.text("yes")
        request.finish()

    return answer
