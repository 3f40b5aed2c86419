"""A client made of a socket and frames, for what no well-behaved client does.

It is of the command line's application, as `Line` is, so that a test may use both.
"""

import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.wire import CALL, ERROR, ITEM, REPLY, Frames, pack, unpack_reply
from llmasos.userland.client import COMMAND


class Raw:
    """Sends what it is told to, well formed or not."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._frames = Frames()
        self._messages: list[list[Any]] = []
        self._number = 0

    def send(self, call: str, /, **fields: object) -> int:
        """One call; its id."""
        self._number += 1
        self.socket.sendall(pack([CALL, self._number, call, fields]))
        return self._number

    def receive(self) -> list[Any]:
        """The next message. EOFError when the kernel has closed."""
        while not self._messages:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self._messages += [unpack_reply(b) for b in self._frames.feed(data)]
        return self._messages.pop(0)

    def answer(self, number: int) -> list[Any]:
        """The reply or error of a call; what comes between is dropped."""
        while True:
            message = self.receive()
            if message[1] == number and message[0] != ITEM:
                return message

    def call(self, name: str, /, **fields: object) -> dict[str, Any]:
        """A reply's fields."""
        kind, _, reply = self.answer(self.send(name, **fields))
        assert kind == REPLY, reply
        out: dict[str, Any] = reply
        return out

    def refused(self, name: str, /, **fields: object) -> dict[str, Any]:
        """An error's fields."""
        kind, _, error = self.answer(self.send(name, **fields))
        assert kind == ERROR, error
        out: dict[str, Any] = error
        return out


def hung_up_on(path: Path) -> list[str]:
    """Whom the kernel closed the door on and why, as the journal has it."""
    with raw(path, "operator") as client:
        client.send("watch", since=0, kinds=["refused"], follow=False)
        kind, _, fields = client.receive()
        return [event["note"] for event in fields["events"]] if kind == ITEM else []


@contextmanager
def raw(path: Path, profile: str | None = "careful") -> Generator[Raw]:
    """A connection; profile None: it has not said hello."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        client = Raw(connection)
        if profile is not None:
            client.call("hello", version=limits.PROTOCOL_VERSION, profile=profile, app=COMMAND)
        yield client
