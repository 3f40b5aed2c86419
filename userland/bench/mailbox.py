"""The latency of a message: from `send` until a process that waits in `recv` has it."""

import socket
import time
from statistics import median

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.wire import CALL, pack

from .figures import Bar, Suite, Take
from .load import greet, whole
from .rig import Rig, daemon
from .syscall import load, spawn

BARS = (
    Bar("mailbox.p50_us", "latency from send until the receiver has the message, median", "us",
        "lower", 300),
)  # fmt: skip


def posted_us(rig: Rig, count: int) -> list[float]:
    """The time of each message; the receiver already waits when it is sent."""
    with rig.client() as client:
        pids = [spawn(client), spawn(client)]
    wait = pack([CALL, 1, "recv", v.Recv(pids[1], 10.0)])
    post = pack([CALL, 1, "send", v.Send(pids[1], "hello", sender=pids[0])])
    noop = pack([CALL, 1, "stat", v.Nothing()])
    times: list[float] = []
    with greet(rig.socket) as sender, greet(rig.socket) as receiver:
        for _ in range(count):
            receiver.sendall(wait)
            sender.sendall(noop)  # once it is answered, the receiver waits
            answer(sender)
            begun = time.perf_counter()
            sender.sendall(post)
            answer(receiver)
            times.append(1e6 * (time.perf_counter() - begun))
            answer(sender)
    return times


def answer(connection: socket.socket) -> None:
    data = connection.recv(65536)
    while not whole(data):
        data += connection.recv(65536)


def take(tiny: bool) -> Take:
    repeats, count = (1, 10) if tiny else (5, 500)
    with daemon(mount=False) as rig:
        values = [round(median(posted_us(rig, count)), 1) for _ in range(repeats)]
        noop = round(load(rig, 1, 0.2 if tiny else 2.0, "stat")["p50_us"], 1)
    # The time of a no-op call indicates the current speed of the machine.
    return Take({"mailbox.p50_us": values}, {"noop_p50_us": noop})


SUITE = Suite("mailbox", BARS, take)
