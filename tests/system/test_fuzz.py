"""Frames that make no sense, and frames that only look as if they did: the kernel answers on.

Each connection sends malformed frames, well-formed ones with wrong semantics, and one good call,
which must succeed. The short form always runs; `-m long` sends 700,000 frames, after which the
kernel had grown by 160 MiB when each connection that had gone waited for a full garbage collection.
"""

import dataclasses
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgpack
import psutil
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.abi.wire import CALL, CANCEL, ERROR, REPLY, Frames, pack, unpack_reply
from tests.system.daemon import Machine

packb = cast("Any", msgpack).packb  # untyped
GOOD = 2**40  # the id of the good call
GROWTH_BYTES = 24 * 1024 * 1024


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def junk(dice: random.Random, depth: int = 0) -> Any:
    """Any value that msgpack can carry."""
    makers: list[Callable[[], Any]] = [
        lambda: dice.randint(-(2**63), 2**63),
        lambda: dice.choice([0, 1, -1, 2**31, 2**53, 2**63 - 1]),
        lambda: dice.random() * 10 ** dice.randint(-300, 300),
        lambda: dice.choice([float("nan"), float("inf"), True, False, None]),
        lambda: "".join(chr(dice.randint(1, 0xD7FF)) for _ in range(dice.randint(0, 20))),
        lambda: dice.choice(["echo", "smollm2", "../../x", "KILL", "a" * 300, "\x00", "/proc/1"]),
        lambda: dice.randbytes(dice.randint(0, 20)),
        lambda: [junk(dice, depth + 1) for _ in range(dice.randint(0, 4))],
        lambda: {str(n): junk(dice, depth + 1) for n in range(dice.randint(0, 4))},
    ]
    return dice.choice(makers[: 7 if depth > 3 else 9])()


def wrong(dice: random.Random, number: int) -> bytes:
    """Well-formed, with fields of the right names and any values."""
    row = dice.choice([r for r in TABLE.values() if r.name not in ("hello", "watch")])
    names = [field.name for field in dataclasses.fields(row.request)]
    fields: Any = {name: junk(dice) for name in names if dice.random() < 0.8}
    if dice.random() < 0.3:
        fields |= {"pid": dice.randint(1, 50)} if "pid" in names else {}
    if dice.random() < 0.1:
        fields["surplus"] = junk(dice)
    if dice.random() < 0.1:
        fields = junk(dice)
    return frame(packb([CALL, number, row.name, fields]))


def malformed(dice: random.Random) -> bytes:
    good = pack([CALL, 5, "ps", {"pid": 3}])[4:]
    match dice.randint(0, 6):
        case 0:
            return frame(dice.randbytes(dice.randint(0, 200)))
        case 1:
            return frame(good[: dice.randrange(len(good))])
        case 2:
            return frame(good + b"\x00")
        case 3:
            return frame(packb(junk(dice)))
        case 4:
            return frame(b"\x91" * 600 + b"\x00")
        case 5:
            return frame(b"\xdd" + dice.randbytes(4) + b"\x80" * 50)
        case _:
            mutant = bytearray(good)
            mutant[dice.randrange(len(mutant))] ^= 1 << dice.randrange(8)
            return frame(bytes(mutant))


def connection(path: Path, dice: random.Random) -> Iterator[int]:
    """One connection's frames; yields how many were sent. The good call must be answered."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        sent = [pack([CALL, 1, "hello", {"version": limits.PROTOCOL_VERSION}])]
        calls = [wrong(dice, number) for number in range(2, 2 + limits.BAD_FRAMES)]
        calls += [malformed(dice) for _ in range(limits.BAD_FRAMES)]
        dice.shuffle(calls)
        fatal = dice.random() < 0.2
        # What ends the connection ends the calls in flight on it; `stat` is answered at once.
        good = pack([CALL, GOOD, "stat" if fatal else "ps", {}])
        sent += [good, *calls] if fatal else [*calls, good]
        if dice.random() < 0.3:
            sent.append(pack([CANCEL, dice.randint(1, 20)]))
        if fatal:
            sent.append(dice.choice([b"\xff\xff\xff\xff", b"\x00\x00\x00\x40half a frame"]))
        stream = b"".join(sent)
        if dice.random() < 0.5:
            client.sendall(stream)
        else:
            cut = dice.randrange(len(stream))
            client.sendall(stream[:cut])
            client.sendall(stream[cut:])
        yield len(sent)
        frames = Frames()
        while data := client.recv(65536):
            for body in frames.feed(data):
                kind, number, *_rest = unpack_reply(body)
                if number == GOOD:
                    assert kind == REPLY, _rest
                    return
                assert kind in (REPLY, ERROR)
        raise AssertionError("the kernel closed the connection without answering the good call")


@pytest.mark.parametrize(
    "frames", [15_000, pytest.param(700_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_the_wire_survives_nonsense(machine: Machine, frames: int) -> None:
    machine.start("--mount", "false")
    dice = random.Random(20261123)
    process = psutil.Process(machine.pid)
    sent = connections = 0
    before = 0
    while sent < frames:
        sent += sum(connection(machine.paths.socket, dice))
        connections += 1
        if connections == 400:
            before = process.memory_info().rss
    growth = process.memory_info().rss - before
    print(f"{sent} frames on {connections} connections, the kernel grew by {growth >> 20} MiB")
    assert growth < GROWTH_BYTES
    assert process.num_fds() < 200
    assert process.is_running()
