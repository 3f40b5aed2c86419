"""A load process: many connections, one call in flight on each, raw sockets and epoll.

    python -m llmasos.userland.bench.load SOCKET CLIENTS SECONDS stat|nice|write|stat@RATE [PID ...]

With a rate, calls are sent on schedule, answered or not. It prints one JSON line. Frames are packed
once and replies are decoded only up to their kind, to use as little CPU time as possible beside the
kernel.
"""

import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles

from llmasos.kernel.abi import limits, wire
from llmasos.kernel.abi import values as v
from llmasos.userland.client import connect

from .rig import RigError

WARM_S = 0.3  # or half of the duration
FEWEST = 2  # of the calls of one client: percentiles of one do not exist
KIND = wire.HEADER + 1  # after the array's own byte: a reply is an array of three


def frames(call: str, pids: Sequence[int], index: int) -> tuple[bytes, bytes]:
    """Two frames to send alternately, so that each `nice` call changes the value."""
    if call == "write":
        texts = ("The ship left at dawn with copper and bread.", "Nobody knew where it would go.")
        one, two = (
            wire.pack([wire.CALL, 1, "write_mem", v.WriteMem(pids[index], text)]) for text in texts
        )
        return one, two
    if call == "stat":
        frame = wire.pack([wire.CALL, 1, "stat", v.Nothing()])
        return frame, frame
    one, two = (wire.pack([wire.CALL, 1, "nice", v.Renice(pids[index], n)]) for n in (0, 1))
    return one, two


def whole(data: bytes) -> bool:
    """Whether a reply is complete. RigError when it is an error."""
    if len(data) <= KIND or len(data) < wire.HEADER + int.from_bytes(data[: wire.HEADER], "big"):
        return False
    if data[KIND] != wire.REPLY:
        raise RigError(f"the kernel refused: {wire.unpack_reply(data[wire.HEADER :])[-1]}")
    return True


def greet(path: Path) -> socket.socket:
    """A connection after hello."""
    connection = connect(path)
    hello = v.Hello(limits.PROTOCOL_VERSION, "bench", v.Profile.OPERATOR)
    connection.sendall(wire.pack([wire.CALL, 1, "hello", hello]))
    data = b""
    while not whole(data):
        data += connection.recv(65536)
    return connection


def one(connection: socket.socket, frame: bytes, seconds: float) -> dict[str, float]:
    """Latency of one client that calls in a blocking loop."""
    times, clock = list[int](), time.perf_counter_ns
    start = clock()
    end = start + int(seconds * 1e9)
    warm = start + int(min(WARM_S, seconds / 2) * 1e9)
    before = start
    while before < end or len(times) < FEWEST:
        before = clock()
        connection.sendall(frame)
        data = connection.recv(65536)
        while not whole(data):
            data += connection.recv(65536)
        if before > warm:
            times.append(clock() - before)
    return {**_cuts(times), "max_us": max(times) / 1000}


def _cuts(times: Sequence[int]) -> dict[str, float]:
    cuts = quantiles(times, n=100)
    return {"calls": len(times), "p50_us": cuts[49] / 1000, "p99_us": cuts[98] / 1000}


def many(clients: Sequence[socket.socket], call: str, pids: Sequence[int], seconds: float) -> float:
    """Calls a second over all connections, after a warm-up."""
    poll = select.epoll()
    sockets = {connection.fileno(): connection for connection in clients}
    turns = {fd: [*frames(call, pids, i)] for i, fd in enumerate(sockets)}
    partial = dict.fromkeys(sockets, b"")
    for fd, connection in sockets.items():
        connection.setblocking(False)
        poll.register(fd, select.EPOLLIN)
        connection.send(turns[fd][0])
    done, begun, deadline = 0, 0.0, time.perf_counter() + WARM_S
    while True:
        for fd, _event in poll.poll():
            data = partial[fd] + sockets[fd].recv(65536)
            if not whole(data):
                partial[fd] = data
                continue
            partial[fd] = b""
            done += 1
            turn = turns[fd]
            turn.reverse()
            sockets[fd].send(turn[0])
        now = time.perf_counter()
        if now < deadline:
            continue
        if begun:
            return done / (now - begun)
        done, begun, deadline = 0, now, now + seconds


def paced(clients: Sequence[socket.socket], rate: float, seconds: float) -> dict[str, float]:
    """Calls at a steady rate, client by client, each timed from its scheduled start.

    Calls do not wait for earlier answers, so the load continues while a kernel stalls.
    """
    poll, clock = select.epoll(), time.perf_counter_ns
    sockets = {connection.fileno(): connection for connection in clients}
    order = list(sockets)
    incoming = {fd: wire.Frames() for fd in sockets}
    due: dict[int, deque[int]] = {fd: deque() for fd in sockets}
    frame, _ = frames("stat", (), 0)
    for fd, connection in sockets.items():
        connection.setblocking(False)
        poll.register(fd, select.EPOLLIN)
    times, sent, total, start, gap = list[int](), 0, int(rate * seconds), clock(), 1e9 / rate
    while len(times) < total:
        at = start + int(sent * gap)
        while sent < total and at <= clock():
            fd = order[sent % len(order)]
            sockets[fd].send(frame)
            due[fd].append(at)
            sent += 1
            at = start + int(sent * gap)
        wait_s = max(0.0, (at - clock()) / 1e9) if sent < total else 1.0
        for fd, _event in poll.poll(wait_s):
            for body in incoming[fd].feed(sockets[fd].recv(65536)):
                if body[1] != wire.REPLY:
                    raise RigError(f"the kernel refused: {wire.unpack_reply(body)[-1]}")
                times.append(clock() - due[fd].popleft())
    return {**_cuts(times), "rate": 1e9 * len(times) / (clock() - start)}


def main(arguments: Sequence[str]) -> int:
    path, count, seconds, call, *rest = arguments
    pids = [int(pid) for pid in rest]
    clients = [greet(Path(path)) for _ in range(int(count))]
    call, _, rate = call.partition("@")
    if rate:
        print(json.dumps(paced(clients, float(rate), float(seconds))))
    elif len(clients) == 1:
        print(json.dumps(one(clients[0], frames(call, pids, 0)[0], float(seconds))))
    else:
        print(json.dumps({"rate": many(clients, call, pids, float(seconds))}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
