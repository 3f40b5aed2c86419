"""Tokens, prompts, slots and calls of the echo engine.

A token is 1 to 3 bytes of UTF-8: its id is 2^24 times their number plus their value, so any text
has one tokenization and an id determines its bytes. Of a character of four bytes, the first three
are a token and the last one begins the next; no other character is split. Ids 1 to 5 mark messages
and their end. With greedy sampling the answer repeats the message once (endlessly with
`ignore_eos`); with a temperature each token is one of the message, chosen by the seed: some may
repeat, some may be absent.
"""

import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.values import Finish, Message, Role
from llmasos.kernel.driver import Admission, ContextSaved

from .stops import Scan

END = 5
MARKS = {Role.SYSTEM: 1, Role.USER: 2, Role.ASSISTANT: 3}
TOKEN_BYTES = 4  # simulated size of one token of a saved context
_BYTES = 3  # of a token at most
_SHIFT = 24


def tokenize(text: str) -> list[int]:
    """The tokens of a text."""
    if text.isascii():  # much faster: every call tokenizes its whole window
        return _ascii(text.encode())
    tokens: list[int] = []
    pending = b""
    for char in text:
        data = char.encode()
        if len(pending) + len(data) > _BYTES:
            tokens += [_token(pending)] if pending else []
            pending = b""
        if len(data) > _BYTES:
            tokens.append(_token(data[:_BYTES]))
            data = data[_BYTES:]
        pending += data
    return [*tokens, _token(pending)] if pending else tokens


def _ascii(data: bytes) -> list[int]:
    """Tokens of three bytes; the last one has the rest."""
    count, rest = divmod(len(data), _BYTES)
    cells = bytearray(4 * count)
    cells[0::4] = bytes([_BYTES]) * count
    for offset in range(_BYTES):
        cells[offset + 1 :: 4] = data[offset : count * _BYTES : _BYTES]
    tokens = list(struct.unpack(f">{count}I", cells))
    return [*tokens, _token(data[-rest:])] if rest else tokens


def _token(data: bytes) -> int:
    return len(data) << _SHIFT | int.from_bytes(data, "big")


def piece(token: int) -> bytes:
    """A token's bytes; none for a marker."""
    return (token & (1 << _SHIFT) - 1).to_bytes(_BYTES, "big")[_BYTES - (token >> _SHIFT) :]


def valid(token: int) -> bool:
    """Whether the id is a token."""
    size, value = token >> _SHIFT, token & (1 << _SHIFT) - 1
    if size == 0:
        return 1 <= token <= END
    return 0 < size <= _BYTES and value < 1 << 8 * size


def _source(tokens: Sequence[int]) -> Sequence[int]:
    """The tokens that the answer repeats: the last user message, or all of a raw prompt."""
    user, begin = MARKS[Role.USER], -1
    for index, token in enumerate(tokens):
        begin = index if token == user else begin
    rest = tokens[begin + 1 :]
    end = next((index for index, token in enumerate(rest) if token <= END), len(rest))
    return rest[:end]


class EchoPrompt:
    """A composed conversation: each message has a marker of its role, its content, and a marker of
    its end. A raw one is the contents only."""

    __slots__ = ("messages", "raw", "tokens")

    def __init__(self, messages: Sequence[Message], raw: bool) -> None:
        self.messages, self.raw = list(messages), raw
        if raw:
            self.tokens = tokenize("".join(message.content for message in messages))
            return
        self.tokens = list[int]()
        for message in messages:
            self.tokens += [MARKS[message.role], *tokenize(message.content), END]
        self.tokens.append(MARKS[Role.ASSISTANT])

    @property
    def bytes(self) -> int:
        texts = sum(sys.getsizeof(message.content) for message in self.messages)
        return texts + sys.getsizeof(self.tokens)


@dataclass(slots=True)
class EchoSlot:
    """A context: in a slot, or saved."""

    tokens: Sequence[int] = ()
    history: int | None = None
    domain: str = ""
    call: int | None = None

    def common(self, history: int, prompt: Sequence[int]) -> int:
        """The tokens of the prompt that it has, if it is of this process; the last one is always
        computed."""
        if self.history != history:
            return 0
        same = 0
        limit = min(len(self.tokens), len(prompt) - 1)
        while same < limit and self.tokens[same] == prompt[same]:
            same += 1
        return same


class EchoStore:
    """The saved contexts of idle processes, by number. A process may load only its own."""

    def __init__(self) -> None:
        self._saved: dict[int, EchoSlot] = {}

    def save(self, number: int, slot: EchoSlot) -> list[ContextSaved]:
        """Save what is in a slot. Returns what was saved. Number 0: nothing is saved."""
        if not number or slot.history is None:
            return [ContextSaved(number, 0)] if number else []
        tokens = list(slot.tokens)
        beginnings = [
            other
            for other, one in self._saved.items()
            if one.history == slot.history and tokens[: len(one.tokens)] == one.tokens
        ]
        self._saved[number] = EchoSlot(tokens, slot.history, slot.domain)
        return [ContextSaved(number, TOKEN_BYTES * len(tokens), beginnings)]

    def find(self, history: int, prompt: Sequence[int]) -> tuple[int, int]:
        """The number of the context with most tokens of a prompt, and so many; 0 and 0: none."""
        found = [(one.common(history, prompt), number) for number, one in self._saved.items()]
        same, number = max(found, default=(0, 0))
        return (number, same) if same else (0, 0)

    def drop(self, number: int) -> None:
        self._saved.pop(number, None)

    def forget(self, history: int) -> None:
        self._saved = {n: one for n, one in self._saved.items() if one.history != history}

    def purge(self, domain: str) -> None:
        self._saved = {n: one for n, one in self._saved.items() if one.domain != domain}

    def clear(self) -> None:
        self._saved.clear()


class EchoCall:
    """An admitted call."""

    def __init__(self, admission: Admission, seed: int) -> None:
        self.admission = admission
        self.slot: int | None = admission.slot
        self.scan = Scan(admission.sampling.stop)
        self.source = _source(admission.prompt.tokens)
        self.seed = seed
        self.grant = 0  # tokens that it may still compute; reused ones are subtracted
        self.cached = 0
        self.tokens: list[int] = []  # of its context, in the slot or parked
        self.to_feed = admission.prompt.tokens  # to be computed before it generates
        self.parked = False
        self.dropped = False  # its context was lost while it was parked
        self.tail: int | None = None  # generated, not yet in the context
        self.texts: list[str] = []
        self.chars_after: list[int] = []  # complete characters after each answer token
        self.finish: Finish | None = None
        self.crashes = False  # the engine crashes when its answer begins
        self.not_reusable = False  # its domain was purged: its context is not reused

    @property
    def left(self) -> int:
        """Tokens still to be computed: of the prompt, or recomputed after parking."""
        return max(0, len(self.to_feed) - len(self.tokens))

    @property
    def runnable(self) -> bool:
        return self.grant > 0 and self.slot is not None

    def drop(self) -> None:
        """Drop its context: it is recomputed."""
        if len(self.tokens) > len(self.to_feed):
            self.to_feed = self.tokens
        self.tokens, self.dropped = [], True

    def next_token(self) -> int | None:
        """The answer's next token; None at its end."""
        at, size = len(self.chars_after), len(self.source)
        sampling = self.admission.sampling
        if at >= size and not (sampling.ignore_eos and size):
            return None
        if sampling.temperature > 0:
            at = zlib.crc32(f"{self.seed}:{at}".encode())
        return self.source[at % size]

    def generate(self, window: int) -> tuple[str, int]:
        """Generate one token: its text, and 1, or 0 at the end of the answer."""
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
        self.chars_after.append(self.scan.seen)
        count = len(self.chars_after)
        max_tokens = self.admission.sampling.max_tokens or limits.MAX_TOKENS
        if self.scan.stopped:
            self.finish = Finish.STOP
        elif count >= max_tokens or len(self.admission.prompt.tokens) + count >= window:
            self.finish = Finish.LENGTH
        return text, 1
