"""What is over a limit of the wire ends one call, and features do not end at the wire's limits."""

import random
import struct
from collections.abc import Iterator
from typing import Any, cast

import msgpack
import pytest

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Errno
from llmasos.kernel.abi.wire import CALL, ERROR, REPLY, pack
from tests.conftest import Machine
from tests.system.raw import Raw, raw

packb = cast("Any", msgpack).packb  # untyped
NUMBER = 77
USER = {"role": "user", "content": "hello"}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1}


@pytest.fixture
def client(shared: Machine) -> Iterator[Raw]:
    with raw(shared.paths.socket, "operator") as client:
        yield client


def body(*parts: object) -> bytes:
    packed: bytes = packb(list(parts))
    return packed


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


OPTIONS = {f"o{n}": 1 for n in range(257)}
LONG = "x" * limits.REQUEST_BYTES
REFUSED = {
    "a map of 257": body(CALL, NUMBER, "mount", {"image": "e", "options": OPTIONS}),
    "a list of 4097": body(CALL, NUMBER, "embed", {"model": "echo", "texts": ["t"] * 4097}),
    "65,537 items": body(CALL, NUMBER, "ps", {"pid": [[nested(1)] * 4000] * 20}),
    "17 levels": body(CALL, NUMBER, "ps", {"pid": nested(17)}),
    "no UTF-8": body(CALL, NUMBER, "ps", {"pid": 0})[:-1] + b"\xa2\xff\xfe",
    "a key twice": b"\x94\x00\x4d\xa2ps\x82\xa3pid\x01\xa3pid\x02",
    "an extension type": body(CALL, NUMBER, "ps", {"pid": msgpack.ExtType(4, b"x")}),
    "cut short": body(CALL, NUMBER, "ps", {"pid": 1})[:-1],
    "too much": body(CALL, NUMBER, "ps", {"pid": 0}) + b"\x00",
    "a name that is no text": body(CALL, NUMBER, 5, {}),
    "over the size of a frame": body(CALL, NUMBER, "tokenize", {"model": "e", "text": LONG}),
}  # fmt: skip
TOO_LARGE = (
    "a map of 257", "a list of 4097", "65,537 items", "17 levels", "over the size of a frame",
)  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_frame_ends_its_call_and_no_other(client: Raw, name: str) -> None:
    """More often than BAD_FRAMES, in the midst of another call's wait."""
    frame = REFUSED[name]
    pid = client.call("spawn", model="echo", keep=False)["pid"]
    waits = client.send("recv", pid=pid)
    for _ in range(limits.BAD_FRAMES + 1):
        client.socket.sendall(struct.pack(">I", len(frame)) + frame)
        kind, number, error = client.receive()
        assert (kind, number) == (ERROR, NUMBER), error
        assert error["errno"] == (Errno.E2BIG if name in TOO_LARGE else Errno.EPROTO)
    sent = client.send("send", pid=pid, body="still here")
    answers = {number: fields for _, number, fields in (client.receive(), client.receive())}
    assert answers[waits]["body"] == "still here"
    assert sent in answers
    client.call("kill", pid=pid)
    client.call("wait", pid=pid)


def test_frames_whose_id_cannot_be_read_end_the_connection_after_some(client: Raw) -> None:
    for _ in range(limits.BAD_FRAMES):
        client.socket.sendall(struct.pack(">I", 3) + b"\xc1\xc1\xc1")
        kind, number, _ = client.receive()
        assert (kind, number) == (ERROR, 0)
    assert client.call("ps")["processes"] is not None


def test_a_large_frame_is_refused_by_its_id_wherever_the_stream_is_cut(client: Raw) -> None:
    dice = random.Random(4)
    frame = REFUSED["over the size of a frame"]
    stream = struct.pack(">I", len(frame)) + frame + pack([CALL, NUMBER + 1, "ps", {}])
    at = 0
    for cut in [1, 3, 5, 9, 21, dice.randrange(len(stream)), len(stream) - 2, len(stream)]:
        client.socket.sendall(stream[at:cut])
        at = max(at, cut)
    assert client.receive()[:2] == [ERROR, NUMBER]
    assert client.receive()[:2] == [REPLY, NUMBER + 1]


# --- features go as far as they say -----------------------------------------------------------
def test_a_bias_for_a_whole_vocabulary_reaches_the_engine(client: Raw) -> None:
    """Echo has no biases: it refuses the call, which came in whole."""
    pid = client.call("spawn", model="echo", keep=False)["pid"]
    bias = v.pack_bias(dict.fromkeys(range(limits.BIASES), -1.5))
    sampling = {**GREEDY, "bias": bias}
    error = client.refused("generate", pid=pid, messages=[USER], sampling=sampling)
    assert error["errno"] == Errno.ENOTSUP
    for wrong in (bias[:-1], v.pack_bias({1: 1.0}) * 2, struct.pack("<If", 1, float("nan")),
                  struct.pack("<If", 1, 101.0), bias + bias[:8]):  # fmt: skip
        sampling = {**GREEDY, "bias": wrong}
        error = client.refused("generate", pid=pid, messages=[USER], sampling=sampling)
        assert error["errno"] == Errno.EINVAL
        assert "bias" in error["message"]


def test_thousands_of_messages_are_one_prompt(client: Raw) -> None:
    pid = client.call("spawn", model="echo", keep=False)["pid"]
    talk = [{"role": "user", "content": str(n % 10)} for n in range(1_000)]
    reply = client.call("generate", pid=pid, messages=talk, raw=True, sampling=GREEDY)
    assert len(reply["pages"]) >= 1_000


def test_the_tokens_of_a_long_text_are_one_reply(client: Raw) -> None:
    text = "ab " * (limits.MESSAGE_CHARS // 3)
    tokens = client.call("tokenize", model="echo", text=text)["tokens"]
    assert len(tokens) > 262_144
    wide = "\u6f22" * limits.MESSAGE_CHARS  # 3 MB
    assert client.call("tokenize", model="echo", text=wide)["tokens"]
