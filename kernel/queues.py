"""Queues by key, served by a few threads, so that a long queue does not delay the short ones.

One thread at a time serves a queue, in the order of its items. A turn takes a limited number of
items; what is left goes to the end of the line behind the other queues. Threads start when they
are needed and end with `close`, after everything was served.

It must not know what the items mean.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")


class Queues(Generic[Key, Item]):
    """`serve` is called with a key and some of its items, on one of the threads; it never raises.

    `turn`: items of one call at most.
    """

    def __init__(
        self, name: str, serve: Callable[[Key, list[Item]], None], *, threads: int, turn: int
    ) -> None:
        self._name, self._serve, self._most, self._turn = name, serve, threads, turn
        self._line: queue.SimpleQueue[Key | None] = queue.SimpleQueue()  # keys in turn
        self._items: dict[Key, deque[Item]] = {}  # of the keys in line, and of those being served
        self._changed = threading.Condition(threading.Lock())
        self._threads: list[threading.Thread] = []

    def put(self, key: Key, items: Iterable[Item]) -> None:
        """Queue items. Never waits."""
        with self._changed:
            waiting = self._items.get(key)
            if waiting is not None:
                waiting.extend(items)
                return
            self._items[key] = deque(items)
            if len(self._items) > len(self._threads) < self._most:
                self._start()
        self._line.put(key)

    def close(self) -> None:
        """Wait until everything is served, then end the threads."""
        with self._changed:
            while self._items:
                self._changed.wait()
        for _ in self._threads:
            self._line.put(None)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        name = f"{self._name}-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (key := self._line.get()) is not None:
            with self._changed:
                waiting = self._items[key]
                items = [waiting.popleft() for _ in range(min(self._turn, len(waiting)))]
            self._serve(key, items)
            with self._changed:
                done = not waiting
                if done:
                    del self._items[key]
                    self._changed.notify_all()
            if not done:
                self._line.put(key)
