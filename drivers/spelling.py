"""Log probabilities beside the text that they are of: both are shown, held back and cut together.

The bytes of the tokens join to the text. A token that is part of a character comes when its
character does; the one in which a stop string begins is cut where the text is. An endpoint whose
tokens do not spell its text (it says other tokens, or none for some) is shown as it came.
"""

import codecs
from collections import deque
from dataclasses import replace

from llmasos.kernel.values import Logprob


def spelled(data: bytes) -> tuple[str, list[int]]:
    """A token's text; and its bytes, when it is part of a character and its text cannot say it."""
    try:
        return data.decode(), []
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace"), list(data)


def spelling(one: Logprob) -> bytes:
    return bytes(one.bytes) or one.text.encode("utf-8", "replace")


class Spelling:
    """One answer."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Logprob, bytes]] = deque()
        self._bytes = bytearray()  # of the waiting tokens, those that are not shown
        self._shown = 0  # bytes of the first waiting tokens that are shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._follows = True  # the tokens spell the text

    def add(self, one: Logprob) -> None:
        data = spelling(one)
        self._waiting.append((one, data))
        self._bytes += data

    def show(self, text: str) -> list[Logprob]:
        """The tokens that are whole in what has been shown now."""
        if self._follows:
            self._follows = self._follow(text)
        found: list[Logprob] = []
        while self._waiting:
            one, data = self._waiting[0]
            if self._follows and len(data) > self._shown:
                break
            self._shown -= len(data)
            self._waiting.popleft()
            found.append(one)
        return found

    def end(self) -> list[Logprob]:
        """What is left of a token that was cut. The others were never shown."""
        if not self._waiting or self._shown <= 0:
            return []
        one, data = self._waiting.popleft()
        text, part = spelled(data[: self._shown])
        self._waiting.clear()
        return [replace(one, text=text, bytes=part)]

    def _follow(self, text: str) -> bool:
        """Take the bytes of this text; False: the tokens say something else."""
        found, taken = "", 0
        while len(found) < len(text) and taken < len(self._bytes):
            found += self._decoder.decode(self._bytes[taken : taken + 1])
            taken += 1
        del self._bytes[:taken]
        self._shown += taken
        return found == text
