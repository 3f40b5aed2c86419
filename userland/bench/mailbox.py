"""How long a message is on its way: from `send` until a process that waits in `recv` has it."""

import threading
import time
from statistics import median

from llmasos.kernel import values as v

from .figures import Bar, Suite, Take
from .rig import Rig, daemon
from .syscall import spawn

BARS = (
    Bar("mailbox.p50_us", "from send until the other process has the message, median", "us",
        "lower", 300),
)  # fmt: skip


def posted_us(rig: Rig, count: int) -> list[float]:
    """Each message's time; the next one leaves when it has arrived."""
    times: list[float] = []
    arrived: list[float] = []
    turn = threading.Semaphore(0)
    with rig.client() as sender, rig.client() as receiver:
        pids = [spawn(sender), spawn(sender)]

        def receive() -> None:
            for _ in range(count):
                receiver.call("recv", v.Recv(pids[1], 10.0), v.Mail)
                arrived.append(time.perf_counter())
                turn.release()

        thread = threading.Thread(target=receive)
        thread.start()
        for _ in range(count):
            begun = time.perf_counter()
            sender.call("send", v.Send(pids[1], "hello", sender=pids[0]), v.Sent)
            turn.acquire()
            times.append(1e6 * (arrived[-1] - begun))
        thread.join()
    return times


def take(tiny: bool) -> Take:
    repeats, count = (1, 10) if tiny else (5, 500)
    with daemon(mount=False) as rig:
        values = [round(median(posted_us(rig, count)), 1) for _ in range(repeats)]
    return Take({"mailbox.p50_us": values})


SUITE = Suite("mailbox", BARS, take)
