"""The client's protocol under random traffic: calls, cancels and damage in any order."""

import random
from collections import defaultdict

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi import wire
from llmasos.kernel.abi.errors import Errno
from llmasos.userland.protocol import (
    CallEvent,
    CallFailed,
    ClientProtocol,
    ItemReceived,
    ReplyReceived,
)
from tests.userland.frames import (
    GREETING,
    LONG,
    LONG_LIMIT,
    SHORT,
    SHORT_LIMIT,
    WELCOME,
    connected,
    failure,
    item,
    reply,
)


class ModelKernel:
    """A model of the other side: answers each call with some items and an end, in any order."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._frames = wire.Frames()
        self._left: dict[int, int] = {}  # call in flight -> items to send before its end
        self._names: dict[int, str] = {}
        self.sent: dict[int, list[int]] = defaultdict(list)  # call -> what its items contained
        self.ended: dict[int, bool] = {}  # call -> whether it succeeded

    @property
    def idle(self) -> bool:
        return not self._left

    def take(self, data: bytes) -> None:
        for body in self._frames.feed(data):
            kind, number, *rest = wire.unpack(body)
            if kind == wire.CALL:
                assert number not in self._names
                self._names[number] = rest[0]
                self._left[number] = self._dice.randrange(6)
            elif number in self._left:
                self._left[number] = self._dice.choice([0, self._left[number]])
        names = [self._names[number] for number in self._left]
        assert names.count(LONG) <= LONG_LIMIT
        assert names.count(SHORT) <= SHORT_LIMIT

    def step(self) -> bytes:
        """The next frame of any call in flight."""
        if not self._left:
            return b""
        number = self._dice.choice(list(self._left))
        if self._left[number]:
            self._left[number] -= 1
            self.sent[number].append(self._dice.randrange(1000))
            return item(number, value=self.sent[number][-1])
        del self._left[number]
        self.ended[number] = self._dice.random() < 0.7
        return reply(number) if self.ended[number] else failure(number)


class Conversation:
    """Calls and cancels at random, over a line that delays and splits the bytes."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._protocol = connected()
        self._kernel = ModelKernel(self._dice)
        self._line = b""  # sent by the kernel and not read
        self._cancelled = set[int]()
        self._got: dict[int, list[CallEvent]] = {}

    def start(self) -> None:
        name = self._dice.choice([LONG, SHORT, "wait", "watch"])
        soon = self._dice.random() < 0.5
        self._got[self._protocol.call(name, v.Nothing(), soon=soon)] = []

    def cancel(self) -> None:
        if self._got:
            number = self._dice.choice(list(self._got))
            self._cancelled.add(number)
            self._keep(self._protocol.cancel(number))

    def write(self) -> None:
        self._kernel.take(self._protocol.take_output())

    def answer(self) -> None:
        self._line += self._kernel.step()

    def read(self) -> None:
        cut = self._dice.randrange(len(self._line) + 1)
        if cut:
            self._keep(self._protocol.receive(self._line[:cut]))
            self._line = self._line[cut:]

    def _keep(self, events: list[CallEvent]) -> None:
        for event in events:
            self._got[event.number].append(event)

    def finish(self) -> None:
        while self._protocol.has_output or self._line or not self._kernel.idle:
            self.write()
            self.answer()
            self.read()

    def check(self) -> int:
        """Check what each call got. Returns the number of calls."""
        for number, (*items, last) in self._got.items():
            values = [one.fields["value"] for one in items if isinstance(one, ItemReceived)]
            assert len(values) == len(items)
            sent = self._kernel.sent[number]
            assert values == (sent[: len(values)] if number in self._cancelled else sent)
            if isinstance(last, CallFailed) and last.error.errno is Errno.ECANCELED:
                assert number in self._cancelled  # before it was sent
                assert number not in self._kernel.ended
            else:
                wanted = ReplyReceived if self._kernel.ended[number] else CallFailed
                assert isinstance(last, wanted)
        return len(self._got)


def play(seed: int) -> int:
    one, dice = Conversation(seed), random.Random(seed + 1_000)
    acts = [one.start, one.cancel, one.write, one.answer, one.read]
    for _ in range(400):
        dice.choices(acts, weights=(5, 1, 2, 8, 4))[0]()
    one.finish()
    return one.check()


def test_in_any_interleaving_each_call_gets_its_items_in_order_and_one_end() -> None:
    assert sum(play(seed) for seed in range(150)) > 10_000


def test_damaged_bytes_end_the_connection_and_raise_nothing() -> None:
    dice, ended = random.Random(5), 0
    for _ in range(2_000):
        protocol = ClientProtocol(GREETING)
        protocol.receive(WELCOME)
        numbers = [protocol.call(LONG, v.Nothing()) for _ in range(3)]
        stream = bytearray(b"".join(
            dice.choice([item, reply])(dice.choice(numbers), text="x" * dice.randrange(40))
            for _ in range(6)
        ))  # fmt: skip
        for _ in range(dice.randrange(1, 4)):
            stream[dice.randrange(len(stream))] = dice.randrange(256)
        events = protocol.receive(bytes(stream)) + protocol.receive(b"")
        lasts = [event.number for event in events if not isinstance(event, ItemReceived)]
        assert sorted(lasts) == numbers  # each of them ended once
        ended += protocol.error is not None and protocol.error.errno is Errno.EPROTO
    assert ended > 500
