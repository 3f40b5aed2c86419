"""The order in which an engine feeds prompts: the last one that the kernel gave.

A call that is not in it is fed nothing. Before the first order, all are fed.
"""

from collections.abc import Sequence


class PromptOrder:
    """Calls by place."""

    def __init__(self) -> None:
        self._places: dict[int, int] | None = None
        self._once = 0  # leaves the order when it has been fed; 0: none

    def set(self, calls: Sequence[int], once: int) -> None:
        self._places = {call: place for place, call in enumerate(calls)}
        self._once = once

    def has(self, call: int) -> bool:
        """Whether the prompt of the call is fed."""
        return self._places is None or call in self._places

    def place(self, call: int) -> int:
        """Sorts the calls that it has."""
        return 0 if self._places is None else self._places[call]

    def fed(self, call: int) -> None:
        """The call was fed a part of its prompt."""
        if self._places is not None and call == self._once:
            del self._places[call]
            self._once = 0
