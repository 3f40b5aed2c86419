"""Tokens, slots and calls of the echo engine: what it reads and how it answers.

A token is 1 to 3 bytes of UTF-8: its id is 2^24 times their number plus their value, so any text
has one tokenization and an id alone gives its bytes back. A character of four bytes becomes two
tokens; no other is split. Five small ids mark messages and their end. Greedy, the answer repeats
the message once (for ever with `ignore_eos`); with a temperature its order is drawn by the seed.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmasos.kernel import limits
from llmasos.kernel.driver import Admission
from llmasos.kernel.values import Finish, Role

from .stops import Scan

END = 5
MARKS = {Role.SYSTEM: 1, Role.USER: 2, Role.ASSISTANT: 3}
_BYTES = 3  # of a token
_SHIFT = 24


def tokenize(text: str) -> list[int]:
    """The tokens of a text."""
    if text.isascii():  # much faster: every call reads its whole window
        return _ascii(text.encode())
    tokens: list[int] = []
    held = b""
    for char in text:
        data = char.encode()
        if len(held) + len(data) > _BYTES:
            tokens += [_token(held)] if held else []
            held = b""
        if len(data) > _BYTES:
            tokens.append(_token(data[:_BYTES]))
            data = data[_BYTES:]
        held += data
    return [*tokens, _token(held)] if held else tokens


def _ascii(data: bytes) -> list[int]:
    """Three bytes each, but for the last one."""
    count, rest = divmod(len(data), _BYTES)
    words = bytearray(4 * count)
    words[0::4] = bytes([_BYTES]) * count
    for place in range(_BYTES):
        words[place + 1 :: 4] = data[place : count * _BYTES : _BYTES]
    tokens = list(struct.unpack(f">{count}I", words))
    return [*tokens, _token(data[-rest:])] if rest else tokens


def _token(data: bytes) -> int:
    return len(data) << _SHIFT | int.from_bytes(data, "big")


def piece(token: int) -> bytes:
    """A token's bytes; nothing for a mark."""
    return (token & (1 << _SHIFT) - 1).to_bytes(_BYTES, "big")[_BYTES - (token >> _SHIFT) :]


def valid(token: int) -> bool:
    size, value = token >> _SHIFT, token & (1 << _SHIFT) - 1
    if size == 0:
        return 1 <= token <= END
    return 0 < size <= _BYTES and value < 1 << 8 * size


def _source(tokens: Sequence[int]) -> Sequence[int]:
    """What a prompt's answer is made of: the last user message, or all of a raw prompt."""
    user, begin = MARKS[Role.USER], -1
    for index, token in enumerate(tokens):
        begin = index if token == user else begin
    rest = tokens[begin + 1 :]
    end = next((index for index, token in enumerate(rest) if token <= END), len(rest))
    return rest[:end]


@dataclass(slots=True)
class Slot:
    tokens: list[int] = field(default_factory=list[int])
    history: int | None = None
    call: int | None = None


class Call:
    """An admitted call."""

    def __init__(self, admission: Admission, seed: int) -> None:
        self.admission = admission
        self.slot: int | None = admission.slot
        self.scan = Scan(admission.sampling.stop)
        self.source = _source(admission.prompt.tokens)
        self.seed = seed
        self.grant = 0  # tokens
        self.cached = 0
        self.tokens: list[int] = []  # in the slot, or parked
        self.script = admission.prompt.tokens  # what has to lie in the slot before it answers
        self.parked = False
        self.tail: int | None = None  # said, not yet in the slot
        self.texts: list[str] = []
        self.ends: list[int] = []  # characters whole after each token of the answer
        self.finish: Finish | None = None
        self.deadly = False  # the engine dies when its answer begins
        self.tainted = False  # its domain was purged meanwhile: what it leaves is for nobody

    @property
    def left(self) -> int:
        """Tokens that are not in the slot: of the prompt, or to be computed again."""
        return max(0, len(self.script) - len(self.tokens))

    @property
    def runnable(self) -> bool:
        return self.grant > 0 and self.slot is not None

    def drop(self) -> None:
        """What lay in its slot has to be computed again."""
        if len(self.tokens) > len(self.script):
            self.script = self.tokens
        self.tokens = []

    def next_token(self) -> int | None:
        """The answer's next token; None at its end."""
        at, size = len(self.ends), len(self.source)
        sampling = self.admission.sampling
        if at >= size and not (sampling.ignore_eos and size):
            return None
        if sampling.temperature > 0:
            at = zlib.crc32(f"{self.seed}:{at}".encode())
        return self.source[at % size]

    def say(self, window: int) -> tuple[str, int]:
        """Answer one token: its text and how many tokens it was."""
        token = self.next_token()
        if token is None:
            self.finish = Finish.STOP
            return "", 0
        if self.tail is not None:
            self.tokens.append(self.tail)
        self.tail = token
        self.grant -= 1
        text = self.scan.feed(piece(token))
        self.texts.append(text)
        self.ends.append(self.scan.seen)
        count = len(self.ends)
        most = self.admission.sampling.max_tokens or limits.MAX_TOKENS
        if self.scan.stopped:
            self.finish = Finish.STOP
        elif count >= most or len(self.admission.prompt.tokens) + count >= window:
            self.finish = Finish.LENGTH
        return text, 1
