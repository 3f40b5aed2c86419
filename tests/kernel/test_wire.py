"""Frames: whatever comes in, the answer is a message or a ProtocolError, in bounded memory."""

import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgpack
import pytest

from llmasos.kernel.abi import limits, values
from llmasos.kernel.abi.errors import Errno, SyscallError, TooBig
from llmasos.kernel.abi.values import pack_bias, unpack_bias
from llmasos.kernel.abi.wire import (
    CALL,
    Frames,
    FrameTooBig,
    ProtocolError,
    build,
    call,
    call_number,
    pack,
    unpack,
    unpack_reply,
)


def body(message: object) -> bytes:
    packed: bytes = cast("Any", msgpack).packb(message)
    return packed


def directly(act: Callable[[], object]) -> None:
    act()


def beside(act: Callable[[], object]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


@pytest.mark.parametrize("meanwhile", [directly, beside], ids=["signal", "thread"])
def test_a_frame_is_whole_whatever_is_packed_in_the_midst_of_it(
    meanwhile: Callable[[Callable[[], object]], None],
) -> None:
    """By a signal handler, or by a thread that has a connection of its own."""
    others: list[bytes] = []

    @dataclass
    class Interrupted:
        text: str

        def __getattribute__(self, name: str) -> Any:
            if name == "text":
                meanwhile(lambda: others.append(pack([1, "another"])))
            return super().__getattribute__(name)

    frame = pack([0, 7, "x", Interrupted("mine")])
    assert unpack(frame[4:]) == [0, 7, "x", {"text": "mine"}]
    assert [unpack(other[4:]) for other in others] == [[1, "another"]]


def test_a_frame_survives_any_cut_of_the_stream() -> None:
    random.seed(1)
    messages = [[0, n, "ps", {"pid": n}] for n in range(50)]
    stream = b"".join(pack(message) for message in messages)
    for _ in range(50):
        frames, at = Frames(), 0
        out: list[Any] = []
        while at < len(stream):
            step = random.randint(1, 40)
            out += [unpack(whole) for whole in frames.feed(stream[at : at + step])]
            at += step
        assert out == messages
        assert not frames.partial


def test_a_length_over_the_cap_is_fatal_before_any_body_comes() -> None:
    frames = Frames()
    with pytest.raises(ProtocolError) as caught:
        list(frames.feed((limits.REPLY_BYTES + 1).to_bytes(4, "big")))
    assert caught.value.fatal


def test_frames_before_a_bad_length_are_still_delivered() -> None:
    frames = Frames()
    good = pack([0, 1, "stat", {}])
    out: list[bytes] = []
    with pytest.raises(ProtocolError):
        out.extend(frames.feed(good + b"\xff\xff\xff\xff"))
    assert frames.partial


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (b"", "msgpack"),
        (b"\xc1", "msgpack"),
        (body({"a": 1}), "array"),
        (body([]), "array"),
        (body([1, 2]) + b"x", "msgpack"),
        (b"\xdd\xff\xff\xff\xff", "list .* 4294967295 items"),
        (b"\x92\x00\xa2\xff\xfe", "UTF-8"),
        (body([0, {1: 2}]), "msgpack"),
        (b"\x92\x00\x82\xa1a\x01\xa1a\x02", "duplicate"),
        (body([0, msgpack.ExtType(4, b"x")]), "msgpack"),
        (body([0] * (limits.ARRAY_ITEMS + 1)), "list .* 4097 items; 4096"),
        (body([0, {str(n): n for n in range(257)}]), "map .* 257 items; 256"),
    ],
)
def test_what_is_not_a_frame_says_why(bad: bytes, word: str) -> None:
    with pytest.raises(ProtocolError, match=word) as caught:
        unpack(bad)
    assert not caught.value.fatal


@pytest.mark.parametrize("innermost", [[], [0], {}, {"a": 0}])
def test_a_frame_may_be_nested_exactly_as_deep_as_the_limit(innermost: Any) -> None:
    frame = innermost
    for level in range(limits.FRAME_DEPTH - 1):
        frame = {"a": frame} if level % 2 and level < limits.FRAME_DEPTH - 2 else [0, frame]
    assert unpack(body(frame)) == frame
    with pytest.raises(FrameTooBig, match="deeper"):
        unpack(body([frame]))


def test_depth_and_number_of_containers_are_capped() -> None:
    deep: list[Any] = [0]
    for _ in range(limits.FRAME_DEPTH + 1):
        deep = [deep]
    for frame in (body(deep), b"\x91" * 5_000 + b"\x00"):  # the second is too deep for msgpack
        with pytest.raises(FrameTooBig, match="deeper than 16 levels") as caught:
            unpack(frame)
        assert caught.value.errno is Errno.E2BIG
    wide: Any = [[[] for _ in range(4000)] for _ in range(20)]
    with pytest.raises(FrameTooBig, match=f"more than {limits.FRAME_ITEMS} items"):
        unpack(body(wide))
    with pytest.raises(TooBig, match=f"more than {limits.FRAME_ITEMS} items"):
        call(1, "ps", wide)


def test_random_bytes_never_raise_anything_else() -> None:
    random.seed(2)
    good = pack(
        [0, 7, "generate", values.Generate(1, [values.Message(values.Role.USER, "é" * 50)])]
    )
    for _ in range(20_000):
        mutant = bytearray(good[4:])
        for _ in range(random.randint(1, 8)):
            mutant[random.randrange(len(mutant))] = random.randrange(256)
        try:
            message = unpack(bytes(mutant))
        except ProtocolError:
            continue
        assert message


def test_a_lone_surrogate_cannot_leave() -> None:
    with pytest.raises(SyscallError, match="surrogate"):
        pack([0, 1, "x", {"text": "\ud800"}])
    assert unpack(pack([1])[4:]) == [1]


def test_a_call_over_the_cap_is_told_with_both_numbers_and_a_way() -> None:
    with pytest.raises(TooBig, match=str(limits.REQUEST_BYTES)) as caught:
        call(7, "generate", {"text": "x" * (limits.REQUEST_BYTES + 1)})
    assert str(limits.REQUEST_BYTES + 24) in caught.value.message
    assert "`llmasos mem map PID FILE`" in caught.value.hint
    assert len(pack(["x" * 900], cap=1_000)) < 1_000
    with pytest.raises(TooBig):
        pack(["x" * 1_000], cap=1_000)


def test_values_come_back_as_they_were() -> None:
    usage = values.Usage(1, 2, 3, 0.1, 0.2, 0.3)
    reply = values.Generated(5, 9, values.Finish.STOP, 42, usage, [1, 2])
    assert build(values.Generated, unpack(pack([reply])[4:])[0]) == reply
    info = values.Processes(
        [values.ProcessInfo(1, 0, "a", "b", "m", values.State.READY, 0, 1.5, 2, 3, 4, 0.5, None)], 7
    )
    assert build(values.Processes, unpack(pack([info])[4:])[0]) == info


def test_fields_of_a_newer_kernel_are_dropped() -> None:
    assert build(values.Tokens, {"tokens": [1], "colour": "red"}) == values.Tokens([1])


@pytest.mark.parametrize(
    ("request_", "errno"),
    [
        ({"list": [0] * (limits.ARRAY_ITEMS + 1)}, Errno.E2BIG),
        ({"map": {str(n): 0 for n in range(limits.MAP_ITEMS + 1)}}, Errno.E2BIG),
        ({"number": 2**70}, Errno.EINVAL),
        ({"value": object()}, Errno.EINVAL),
        ({"text": "\ud800"}, Errno.EINVAL),
    ],
)
def test_a_call_that_no_frame_can_carry_is_refused_before_it_is_sent(
    request_: dict[str, Any], errno: Errno
) -> None:
    with pytest.raises(SyscallError) as caught:
        call(1, "mount", request_)
    assert caught.value.errno is errno


def test_the_id_of_a_call_is_read_from_the_beginning_of_its_frame() -> None:
    for number in (1, 127, 128, 65_535, 2**31, 2**53 - 1):
        whole = pack([CALL, number, "generate", {"text": "x" * 100}])[4:]
        assert call_number(whole) == call_number(whole[:16]) == number
    for none in (b"", b"\xff" * 16, b"\x94\x00", body([CALL, 2**53, "ps", 0]),
                 body([CALL, "5", "ps", 0]), body([CALL, True, "ps", 0]), body([1, 5]),
                 b"\x94\xdd\xff\xff\xff\xff", b"\x94\x00\xdb\xff\xff\xff\xff"):  # fmt: skip
        assert call_number(none) == 0


def test_a_reply_may_hold_more_than_a_call() -> None:
    numbers = list(range(300_000))
    assert unpack_reply(pack([2, 1, {"tokens": numbers}])[4:])[2]["tokens"] == numbers


def test_every_file_of_values_is_looked_into() -> None:
    folder = Path(str(values.__file__)).parent
    files = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert files == set(vars(values)["_FILES"])
    assert not hasattr(values, "Nonsense")


def test_a_bias_has_the_same_bytes_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose numbers begin with the high byte turns them round, both ways."""
    bias = {1: -100.0, 70_000: 2.5}
    little = pack_bias(bias)
    assert little[:4] == b"\1\0\0\0"
    monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")
    turned = pack_bias(bias)
    assert turned[:4] == little[:4][::-1]
    tokens, values = unpack_bias(turned)
    assert dict(zip(tokens, values, strict=True)) == bias
