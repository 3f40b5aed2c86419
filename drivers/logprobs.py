"""Log probabilities of streamed tokens, released and truncated together with the text.

The concatenated bytes of the tokens are the text. A token that is part of a character is released
with its character; the token in which a stop string begins is truncated where the text is. Of an
endpoint whose tokens do not match its text (other tokens, or none for some of the text), they are
released as they arrive.
"""

import codecs
from collections import deque
from dataclasses import replace

from llmasos.kernel.abi.values import Logprob


def token_text(data: bytes) -> tuple[str, list[int]]:
    """A token's text; and its bytes, if they are not valid UTF-8 by themselves."""
    try:
        return data.decode(), []
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace"), list(data)


def token_bytes(one: Logprob) -> bytes:
    """The bytes of a token."""
    return bytes(one.bytes) or one.text.encode("utf-8", "replace")


class LogprobStream:
    """The tokens of one answer."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Logprob, bytes]] = deque()
        self._bytes = bytearray()  # of the waiting tokens, those not released
        self._shown = 0  # bytes of the first waiting tokens that are released
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._matches = True  # the tokens match the text

    @property
    def waiting(self) -> list[Logprob]:
        """Those that are not released."""
        return [one for one, _ in self._waiting]

    def add(self, one: Logprob) -> None:
        data = token_bytes(one)
        self._waiting.append((one, data))
        self._bytes += data

    def show(self, text: str) -> list[Logprob]:
        """The tokens that are complete now that `text` is released."""
        if self._matches:
            self._matches = self._consume(text)
        found: list[Logprob] = []
        while self._waiting:
            one, data = self._waiting[0]
            if self._matches and len(data) > self._shown:
                break
            self._shown -= len(data)
            self._waiting.popleft()
            found.append(one)
        return found

    def end(self) -> list[Logprob]:
        """The released part of a truncated token. The tokens after it are dropped."""
        if not self._waiting or self._shown <= 0:
            return []
        one, data = self._waiting.popleft()
        text, part = token_text(data[: self._shown])
        self._waiting.clear()
        return [replace(one, text=text, bytes=part)]

    def _consume(self, text: str) -> bool:
        """Remove the bytes of `text`; False: the tokens do not match it."""
        found, taken = "", 0
        while len(found) < len(text) and taken < len(self._bytes):
            found += self._decoder.decode(self._bytes[taken : taken + 1])
            taken += 1
        del self._bytes[:taken]
        self._shown += taken
        return found == text
