"""The prompts that an engine keeps, so that the next turn of a process travels without the others.

Bounded in bytes: the least recently used prompts of the largest domain are dropped first, so one
domain cannot evict another's. Of one process the newest PROMPTS_KEPT are kept. Used by several
threads.
"""

import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from llmasos.kernel.abi import limits
from llmasos.kernel.abi.errors import Errno, SyscallError
from llmasos.kernel.abi.values import Message
from llmasos.kernel.driver import Beginning, Keep

LOST = "the engine no longer has the prompt of this call"


def last_messages(messages: Sequence[Message], fresh: int) -> Sequence[Message]:
    """The last `fresh` messages, which become pages. EINVAL when there are fewer."""
    if not 0 <= fresh <= len(messages):
        message = f"cannot split the last {fresh} of {len(messages)} messages"
        raise SyscallError(Errno.EINVAL, message, "fresh is from 0 to the number of messages")
    return messages[len(messages) - fresh :]


class Conversation(Protocol):
    """What an engine keeps of a prompt."""

    @property
    def messages(self) -> Sequence[Message]: ...


P = TypeVar("P", bound=Conversation)


@dataclass(slots=True)
class KeptPrompt(Generic[P]):
    """A prompt, and the answer of the call that had it."""

    keep: Keep
    prompt: P
    bytes: int
    answer: str | None = None  # None: there is none yet


class KeptPrompts(Generic[P]):
    """Prompts by number."""

    def __init__(self, most_bytes: int = limits.PROMPTS_BYTES) -> None:
        self._limit = most_bytes
        self._lock = threading.Lock()
        self._kept: dict[int, KeptPrompt[P]] = {}  # the least recently used first
        self._histories: dict[int, list[int]] = {}  # numbers by process, the oldest first
        self._domains: Counter[str] = Counter()  # bytes by domain

    def put(self, keep: Keep, prompt: P, size: int) -> None:
        """Keep a prompt of `size` bytes."""
        with self._lock:
            self._kept[keep.number] = KeptPrompt(keep, prompt, size)
            self._domains[keep.domain] += size
            numbers = self._histories.setdefault(keep.history, [])
            numbers.append(keep.number)
            if len(numbers) > limits.PROMPTS_KEPT:
                self._drop(numbers[0])
            self._shrink()

    def get(self, number: int, domain: str) -> KeptPrompt[P] | None:
        """A prompt of this domain; it is now the most recently used one."""
        with self._lock:
            found = self._kept.get(number)
            if found is None or found.keep.domain != domain:
                return None
            self._kept[number] = self._kept.pop(number)
            return found

    def find(self, beginning: Beginning, domain: str) -> KeptPrompt[P] | None:
        """The prompt of a beginning; None when it has not all of that."""
        found = self.get(beginning.prompt, domain)
        if found is None:
            return None
        own = len(found.prompt.messages)
        if beginning.answered:
            return found if found.answer is not None and beginning.messages == own else None
        return found if beginning.messages <= own else None

    def answered(self, number: int, answer: str) -> None:
        """The call that had this prompt ended with this answer."""
        with self._lock:
            found = self._kept.get(number)
            if found is None:
                return
            size = sys.getsizeof(answer)
            found.answer = answer
            found.bytes += size
            self._domains[found.keep.domain] += size
            self._shrink()

    def forget(self, history: int) -> None:
        """Drop the prompts of a process."""
        with self._lock:
            for number in list(self._histories.get(history, ())):
                self._drop(number)

    def purge(self, domain: str) -> None:
        """Drop the prompts of a domain."""
        with self._lock:
            for number in [n for n, one in self._kept.items() if one.keep.domain == domain]:
                self._drop(number)

    def clear(self) -> None:
        with self._lock:
            for number in list(self._kept):
                self._drop(number)

    @property
    def bytes(self) -> int:
        return self._domains.total()

    def _shrink(self) -> None:
        while self.bytes > self._limit:
            largest = max(self._domains, key=lambda domain: self._domains[domain])
            self._drop(next(n for n, one in self._kept.items() if one.keep.domain == largest))

    def _drop(self, number: int) -> None:
        dropped = self._kept.pop(number)
        history, domain = dropped.keep.history, dropped.keep.domain
        self._histories[history].remove(number)
        if not self._histories[history]:
            del self._histories[history]
        self._domains[domain] -= dropped.bytes
        if not self._domains[domain]:
            del self._domains[domain]
