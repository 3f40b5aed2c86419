"""Frames of a kernel, and a connected protocol, for tests without a socket."""

from typing import Any

from llmasos.kernel.abi import limits, wire
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno
from llmasos.userland.protocol import HELLO, ClientProtocol

GREETING = v.Hello(limits.PROTOCOL_VERSION, "test", v.Profile.OPERATOR, "sk-1")
ANSWER = v.Welcome(limits.PROTOCOL_VERSION, "0.1", "me", v.Profile.OPERATOR, ["be kind"])
WELCOME = wire.pack([wire.REPLY, HELLO, ANSWER])
GONE = {"errno": int(Errno.ESRCH), "message": "no process 9", "hint": "", "call": "wait", "pid": 9}
LONG, SHORT = "generate", "stat"  # calls of the two queues
LONG_LIMIT, SHORT_LIMIT = 16, 8  # in flight


def connected() -> ClientProtocol:
    protocol = ClientProtocol(GREETING)
    protocol.take_output()
    [event] = protocol.receive(WELCOME)
    assert event.number == HELLO
    return protocol


def sent(protocol: ClientProtocol) -> list[list[Any]]:
    """The frames that a transport would write now."""
    return [wire.unpack(body) for body in wire.Frames().feed(protocol.take_output())]


def item(number: int, **fields: object) -> bytes:
    return wire.pack([wire.ITEM, number, fields])


def reply(number: int, **fields: object) -> bytes:
    return wire.pack([wire.REPLY, number, fields])


def failure(number: int, errno: Errno = Errno.ESRCH) -> bytes:
    return wire.pack([wire.ERROR, number, {**GONE, "errno": int(errno)}])
