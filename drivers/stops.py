"""Decodes the bytes of tokens to text: complete characters, and no part of a stop string.

`Scan` takes the bytes of one token at a time and returns the text that may be released. A suffix
that may become a stop string, and the bytes of an incomplete character, stay buffered. The stop
string that is complete first ends the text; of several that end at the same character, the one
that began first. So the answer does not depend on the tokenization.
"""

import codecs
from collections.abc import Sequence


class Scan:
    """The text of one answer."""

    __slots__ = ("_buffered", "_decoder", "_stops", "chars", "seen", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = [stop for stop in stops if stop]
        self._buffered = ""
        self.chars = 0  # released
        self.seen = 0  # complete characters, released or buffered
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """Add the bytes of a token; the text that may be released."""
        if self.stopped:
            return ""
        decoded = self._decoder.decode(piece)
        self.seen += len(decoded)
        if not self._stops:  # the usual case: nothing is buffered
            self.chars += len(decoded)
            return decoded
        text = self._buffered + decoded
        end = self._stop(text)
        if end is None:
            end = len(text) - self._partial_stop(text)
            self._buffered = text[end:]
        else:
            self.stopped, self._buffered = True, ""
        self.chars += end
        return text[:end]

    def flush(self) -> str:
        """End the input; the buffered text. An incomplete character is dropped."""
        text, self._buffered = self._buffered, ""
        self.chars += len(text)
        return text

    def _stop(self, text: str) -> int | None:
        """Where the first complete stop string begins, or None."""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _partial_stop(self, text: str) -> int:
        """The length of the longest suffix that is a prefix of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
