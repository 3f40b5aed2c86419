"""Text out of bytes: whole characters only, and never a part of a stop string.

`Scan` takes the bytes of one token at a time and returns the text that is safe to show. What may
yet become a stop string, and the bytes of an unfinished character, are held back. The stop string
that is complete first ends the text; of several that end at once, the one that began first. So
the answer does not depend on how the text was cut into tokens.
"""

import codecs
from collections.abc import Sequence


class Scan:
    """One answer as it grows."""

    __slots__ = ("_decoder", "_held", "_stops", "chars", "seen", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.chars = 0  # shown
        self.seen = 0  # whole characters, shown or held back
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """The text that may be shown now."""
        if self.stopped:
            return ""
        fresh = self._decoder.decode(piece)
        self.seen += len(fresh)
        text = self._held + fresh
        end = self._stop(text)
        if end is None:
            end = len(text) - self._doubtful(text)
            self._held = text[end:]
        else:
            self.stopped, self._held = True, ""
        self.chars += end
        return text[:end]

    def flush(self) -> str:
        """What was held back, now that no more comes. An unfinished character is dropped."""
        text, self._held = self._held, ""
        self.chars += len(text)
        return text

    def _stop(self, text: str) -> int | None:
        """Where the text ends, if a stop string is complete."""
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _doubtful(self, text: str) -> int:
        """The length of the longest tail that is the beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
