"""The client's protocol without a socket: bytes in, events out, whatever the kernel sends."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

from llmasos.kernel.abi import limits, wire
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Busy, Denied, EngineFailed, Errno, SyscallError
from llmasos.userland.protocol import (
    HELLO,
    CallEvent,
    CallFailed,
    ClientProtocol,
    ReplyReceived,
    error_from_frame,
    value_from_frame,
)
from tests.userland.frames import (
    ANSWER,
    GONE,
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
    sent,
)


def told(events: Sequence[CallEvent]) -> list[tuple[str, int, object]]:
    """Events as values that can be compared: an error as its errno."""
    return [
        (type(one).__name__, one.number,
         one.error.errno if isinstance(one, CallFailed) else one.fields)
        for one in events
    ]  # fmt: skip


# --- hello --------------------------------------------------------------------------------------
def test_the_first_bytes_are_hello_and_its_reply_opens_the_connection() -> None:
    protocol = ClientProtocol(GREETING)
    [[kind, number, name, fields]] = sent(protocol)
    assert (kind, number, name) == (wire.CALL, HELLO, "hello")
    assert fields == {"version": limits.PROTOCOL_VERSION, "app": "test", "profile": "operator",
                      "key": "sk-1"}  # fmt: skip
    [event] = protocol.receive(WELCOME)
    assert isinstance(event, ReplyReceived)
    assert event.number == HELLO
    assert value_from_frame(event.fields, v.Welcome) == ANSWER
    assert (protocol.has_output, protocol.error) == (False, None)
    assert protocol.receive(WELCOME) == []  # it has ended


def test_no_call_is_sent_before_the_reply_to_hello() -> None:
    protocol = ClientProtocol(GREETING)
    protocol.take_output()
    with pytest.raises(SyscallError, match="before the reply to hello") as caught:
        protocol.call(SHORT, v.Nothing())
    assert caught.value.errno is Errno.EPROTO
    assert not protocol.has_output
    protocol.receive(WELCOME)
    assert protocol.call(SHORT, v.Nothing()) > HELLO


def test_a_hello_over_its_limit_is_e2big_and_never_sent() -> None:
    with pytest.raises(SyscallError) as caught:
        ClientProtocol(v.Hello(1, key="x" * limits.HELLO_BYTES))
    assert caught.value.errno is Errno.E2BIG
    assert "key" in caught.value.hint


def test_what_an_earlier_client_of_the_connection_asked_for_is_ignored() -> None:
    """A program that the kernel started may run several clients on its connection in turn."""
    protocol = ClientProtocol(GREETING)
    events = protocol.receive(item(7, text="late") + reply(8) + failure(9) + WELCOME)
    assert [event.number for event in events] == [HELLO]
    assert protocol.receive(reply(8) + item(7, text="later")) == []
    assert protocol.error is None


@pytest.mark.parametrize(
    ("answer", "errno"),
    [
        (failure(HELLO, Errno.EACCES), Errno.EACCES),  # the profile is not allowed
        (failure(0, Errno.EAGAIN), Errno.EAGAIN),  # too many connections
        (b"", Errno.EPIPE),
        (b"\x00\x00\x00\x01\xc1", Errno.EPROTO),
    ],
    ids=["refused", "disconnected", "closed", "malformed"],
)
def test_a_handshake_that_fails_is_the_failure_of_hello(answer: bytes, errno: Errno) -> None:
    protocol = ClientProtocol(GREETING)
    protocol.take_output()
    assert told(protocol.receive(answer)) == [("CallFailed", HELLO, errno)]
    assert protocol.receive(WELCOME) == []  # too late
    with pytest.raises(SyscallError):
        protocol.call(SHORT, v.Nothing())
    assert not protocol.has_output


# --- calls ----------------------------------------------------------------------------------------
def test_a_call_is_one_frame_and_ends_with_its_reply() -> None:
    protocol = connected()
    number = protocol.call("kill", v.Kill(3))
    assert sent(protocol) == [[wire.CALL, number, "kill", {"pid": 3, "signal": "TERM"}]]
    assert told(protocol.receive(reply(number))) == [("ReplyReceived", number, {})]
    assert protocol.receive(reply(number) + item(number)) == []  # it has ended


def test_interleaved_calls_get_their_own_events_in_order() -> None:
    protocol = connected()
    one, two, three = (protocol.call(LONG, v.Nothing()) for _ in range(3))
    events = protocol.receive(
        item(two, text="b") + item(one, text="a") + failure(three) + item(two, text="c")
        + reply(two, seed=1) + item(one, text="d") + reply(one, seed=2)
    )  # fmt: skip
    assert told(events) == [
        ("ItemReceived", two, {"text": "b"}),
        ("ItemReceived", one, {"text": "a"}),
        ("CallFailed", three, Errno.ESRCH),
        ("ItemReceived", two, {"text": "c"}),
        ("ReplyReceived", two, {"seed": 1}),
        ("ItemReceived", one, {"text": "d"}),
        ("ReplyReceived", one, {"seed": 2}),
    ]


def pieces(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    bounds = [0, *(cut for cut in cuts if 0 < cut < len(data)), len(data)]
    return [data[begin:end] for begin, end in pairwise(bounds)]


def test_frames_that_are_split_at_any_byte_are_the_same_events() -> None:
    one, two = HELLO + 1, HELLO + 2
    stream = item(one, text="a\u00e9") + reply(two) + item(one, text="b" * 70) + failure(one)

    def events(cuts: Sequence[int]) -> list[tuple[str, int, object]]:
        protocol = ClientProtocol(GREETING)
        [event] = [event for piece in pieces(WELCOME, cuts) for event in protocol.receive(piece)]
        assert event.number == HELLO
        assert [protocol.call(name, v.Nothing()) for name in (LONG, SHORT)] == [one, two]
        return told([event for piece in pieces(stream, cuts) for event in protocol.receive(piece)])

    whole, length = events([]), max(len(WELCOME), len(stream))
    assert [(name, number) for name, number, _ in whole] == [
        ("ItemReceived", one), ("ReplyReceived", two), ("ItemReceived", one), ("CallFailed", one),
    ]  # fmt: skip
    for cut in range(length):
        assert events([cut]) == whole
    assert events(range(length)) == whole  # byte for byte


def test_a_request_that_cannot_be_sent_ends_its_own_call_alone() -> None:
    protocol = connected()
    before = protocol.call(LONG, v.Nothing())
    protocol.take_output()
    refused: list[tuple[object, Errno]] = [
        (v.Send(1, "x" * limits.REQUEST_BYTES), Errno.E2BIG),
        (v.Send(1, "", 0, ["x"] * (limits.ARRAY_ITEMS + 1)), Errno.E2BIG),
        (v.Send(1, "\ud800"), Errno.EINVAL),
        (object(), Errno.EINVAL),
        ({"a": 2**70}, Errno.EINVAL),
    ]
    for request, errno in refused * 2 * limits.CALLS_IN_FLIGHT:  # none of them takes a permit
        with pytest.raises(SyscallError) as caught:
            protocol.call("send", request)
        assert caught.value.errno is errno
    assert (protocol.has_output, protocol.error) == (False, None)
    after = protocol.call(SHORT, v.Nothing())
    assert [number for _kind, number, *_ in sent(protocol)] == [after]
    assert told(protocol.receive(reply(before) + reply(after))) == [
        ("ReplyReceived", before, {}), ("ReplyReceived", after, {}),
    ]  # fmt: skip


def test_a_number_is_never_used_again() -> None:
    protocol = connected()
    numbers = list[int]()
    for turn in range(200):
        numbers.append(protocol.call(SHORT, v.Nothing()))
        assert [frame[1] for frame in sent(protocol)] == numbers[-1:]
        if turn % 3 == 0:
            with pytest.raises(SyscallError):
                protocol.call(SHORT, object())
        elif turn % 3 == 1:
            protocol.cancel(numbers[-1])
            protocol.take_output()
        protocol.receive(reply(numbers[-1]) if turn % 2 else failure(numbers[-1]))
    assert len({HELLO, *numbers}) == 201
    assert all(wire.is_number(number) for number in numbers)


def test_a_signal_handler_starts_a_call_in_the_midst_of_another() -> None:
    protocol = connected()
    inside = list[int]()

    @dataclass
    class Interrupted:
        pid: int

        def __getattribute__(self, name: str) -> Any:
            if name == "pid":
                inside.append(protocol.call("kill", v.Kill(7)))
            return super().__getattribute__(name)

    outside = protocol.call("wait", Interrupted(7))
    frames = {number: (name, fields) for _kind, number, name, fields in sent(protocol)}
    assert frames == {
        inside[0]: ("kill", {"pid": 7, "signal": "TERM"}), outside: ("wait", {"pid": 7}),
    }  # fmt: skip


# --- cancellation ---------------------------------------------------------------------------------
def test_the_late_items_of_a_cancelled_call_are_dropped_and_its_end_is_not() -> None:
    protocol = connected()
    failing, winning, other = (protocol.call(LONG, v.Nothing()) for _ in range(3))
    protocol.take_output()
    assert told(protocol.receive(item(failing, text="early"))) == [
        ("ItemReceived", failing, {"text": "early"})
    ]
    assert protocol.cancel(failing) == protocol.cancel(winning) == protocol.cancel(failing) == []
    assert sent(protocol) == [[wire.CANCEL, failing], [wire.CANCEL, winning]]
    late = item(failing, text="late") + item(other, text="mine") + item(winning, text="late")
    late += failure(failing, Errno.ECANCELED) + reply(winning, seed=5) + item(winning)
    assert told(protocol.receive(late)) == [
        ("ItemReceived", other, {"text": "mine"}),
        ("CallFailed", failing, Errno.ECANCELED),
        ("ReplyReceived", winning, {"seed": 5}),  # the kernel had completed it
    ]


def test_cancelling_a_call_that_has_ended_sends_nothing() -> None:
    protocol = connected()
    number = protocol.call(SHORT, v.Nothing())
    protocol.take_output()
    protocol.receive(reply(number))
    assert protocol.cancel(number) == protocol.cancel(HELLO) == protocol.cancel(99) == []
    assert not protocol.has_output


# --- the limit of calls in flight -----------------------------------------------------------------
@pytest.mark.parametrize(("name", "most"), [(LONG, LONG_LIMIT), (SHORT, SHORT_LIMIT)])
def test_calls_above_the_limit_wait_in_order(name: str, most: int) -> None:
    protocol = connected()
    numbers = [protocol.call(name, v.Nothing()) for _ in range(most + 3)]
    other = protocol.call(SHORT if name == LONG else LONG, v.Nothing())
    endless = protocol.call("watch", v.Watch())
    assert [frame[1] for frame in sent(protocol)] == [*numbers[:most], other, endless]
    protocol.receive(item(numbers[0]) + reply(endless) + reply(other))
    assert not protocol.has_output
    protocol.receive(failure(numbers[3]))
    assert [frame[1] for frame in sent(protocol)] == [numbers[most]]
    protocol.cancel(numbers[0])  # it takes its place until the kernel has ended it
    assert sent(protocol) == [[wire.CANCEL, numbers[0]]]
    protocol.receive(reply(numbers[0]) + reply(numbers[1]))
    assert [frame[1] for frame in sent(protocol)] == numbers[most + 1 :]


def test_a_wait_that_ends_soon_takes_a_place_and_others_do_not() -> None:
    protocol = connected()
    for _ in range(SHORT_LIMIT):
        protocol.call("wait", v.Wait(1))
        protocol.call("wait", v.Wait(1), soon=True)
    assert len(sent(protocol)) == 2 * SHORT_LIMIT
    protocol.call("wait", v.Wait(1))
    assert len(sent(protocol)) == 1
    protocol.call("wait", v.Wait(1), soon=True)
    assert not protocol.has_output


def test_a_call_that_is_cancelled_while_it_waits_is_never_sent() -> None:
    protocol = connected()
    numbers = [protocol.call(SHORT, v.Nothing()) for _ in range(SHORT_LIMIT + 2)]
    protocol.take_output()
    cancelled, last = numbers[-2:]
    assert told(protocol.cancel(cancelled)) == [("CallFailed", cancelled, Errno.ECANCELED)]
    assert protocol.cancel(cancelled) == []
    assert not protocol.has_output
    assert told(protocol.receive(reply(numbers[0]) + reply(cancelled))) == [
        ("ReplyReceived", numbers[0], {})
    ]
    assert [frame[1] for frame in sent(protocol)] == [last]


# --- the end of the connection --------------------------------------------------------------------
MALFORMED = {
    "not msgpack": b"\x00\x00\x00\x01\xc1",
    "no body": b"\x00\x00\x00\x00",
    "not an array": b"\x00\x00\x00\x01\x01",
    "no fields": wire.pack([wire.REPLY, 2]),
    "too much": wire.pack([wire.REPLY, 2, {}, {}]),
    "a call": wire.pack([wire.CALL, 2, {}]),
    "a kind that is none": wire.pack(["x", 2, {}]),
    "a kind that is a list": wire.pack([[], 2, {}]),
    "a number that is none": wire.pack([wire.REPLY, "2", {}]),
    "fields that are none": wire.pack([wire.REPLY, 2, []]),
    "text that is not UTF-8": b"\x00\x00\x00\x08\x93\x02\x02\x81\xa1a\xa1\xff",
    "a length over the limit": (limits.REPLY_BYTES + 1).to_bytes(4, "big"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_frame_ends_every_call_after_what_came_before_it(name: str) -> None:
    protocol = connected()
    done, broken, cancelled = (protocol.call(LONG, v.Nothing()) for _ in range(3))
    protocol.cancel(cancelled)
    waiting = [protocol.call(SHORT, v.Nothing()) for _ in range(SHORT_LIMIT + 1)]
    events = protocol.receive(
        item(broken, text="a") + reply(done) + MALFORMED[name] + reply(broken)
    )
    assert told(events[:2]) == [
        ("ItemReceived", broken, {"text": "a"}), ("ReplyReceived", done, {}),
    ]  # fmt: skip
    assert [event.number for event in events[2:]] == [broken, cancelled, *waiting]
    errors = [event.error for event in events if isinstance(event, CallFailed)]
    assert len({id(error) for error in errors}) == len(waiting) + 2  # a copy for each
    assert {error.errno for error in errors} == {Errno.EPROTO}
    assert not protocol.has_output


@pytest.mark.parametrize("way", ["closed", "reported", "error"])
def test_the_end_of_the_connection_reaches_every_open_call_once(way: str) -> None:
    protocol = connected()
    numbers = [protocol.call(name, v.Nothing()) for name in [LONG, *[SHORT] * (SHORT_LIMIT + 1)]]
    if way == "closed":
        events = protocol.receive(b"")
    elif way == "reported":
        events = protocol.end("the line was cut")
    else:
        events = protocol.receive(failure(0, Errno.EACCES))
    errno = Errno.EACCES if way == "error" else Errno.EPIPE
    assert told(events) == [("CallFailed", number, errno) for number in numbers]
    assert protocol.receive(b"") == protocol.receive(reply(2)) == protocol.end("again") == []
    assert protocol.cancel(numbers[0]) == []
    assert not protocol.has_output
    with pytest.raises(SyscallError) as caught:
        protocol.call(SHORT, v.Nothing())
    assert caught.value.errno is errno
    assert caught.value is not protocol.error
    if way != "error":
        assert "daemon logs" in caught.value.hint
        assert "connect again" in caught.value.hint


def test_the_end_without_calls_is_a_state() -> None:
    protocol = connected()
    assert protocol.receive(b"") == []
    assert protocol.error is not None
    assert protocol.error.errno is Errno.EPIPE
    half = connected()
    number = half.call(SHORT, v.Nothing())
    assert half.receive(reply(number)[:-1]) == []
    assert told(half.receive(b"")) == [("CallFailed", number, Errno.EPIPE)]


# --- values and errors ----------------------------------------------------------------------------
def test_an_error_has_the_class_of_its_errno_and_never_fails_itself() -> None:
    assert isinstance(error_from_frame({"errno": int(Errno.EAGAIN)}, "stat"), Busy)
    denied = error_from_frame({"errno": int(Errno.EACCES), "needs_approval": True}, "stat")
    assert isinstance(denied, Denied)
    assert denied.needs_approval
    failed = error_from_frame({"errno": int(Errno.EIO), "engine": True}, "generate")
    assert isinstance(failed, EngineFailed)
    full = error_from_frame(GONE, "stat")
    assert (full.errno, full.call, full.pid) == (Errno.ESRCH, "wait", 9)
    for odd in (4242, "ESRCH", None, [3], 3.5):
        error = error_from_frame({"errno": odd, "message": 5, "pid": "x", "call": None}, "stat")
        assert (error.errno, error.message, error.call, error.pid) == (Errno.EIO, "5", "stat", 0)


@pytest.mark.parametrize(
    "fields", [{}, {"text": "x"}, {"code": 0, "pid": 1, "processes": 5}, {"processes": [5]}]
)
def test_a_value_that_is_not_whole_is_eproto(fields: dict[str, Any]) -> None:
    with pytest.raises(wire.ProtocolError, match="no valid Processes"):
        value_from_frame(fields, v.Processes)
