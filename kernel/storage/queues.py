"""Queues by key, served round-robin by a few threads, so a long queue does not delay short ones.

One thread at a time serves a queue, in the order of its items. It takes a limited batch of items;
if some are left, the queue is scheduled again after the other queues. Threads start on demand and
end in `close`, after all items are served.

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
    """`serve` is called on one of the threads with a key and `batch` of its items at most.

    It must not raise.
    """

    def __init__(
        self, name: str, serve: Callable[[Key, list[Item]], None], *, threads: int, batch: int
    ) -> None:
        self._name, self._serve, self._threads_max, self._batch = name, serve, threads, batch
        self._ready: queue.SimpleQueue[Key | None] = queue.SimpleQueue()  # None: end the thread
        self._items: dict[Key, deque[Item]] = {}  # of keys that are ready or being served
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
            if len(self._items) > len(self._threads) < self._threads_max:
                self._start()
        self._ready.put(key)

    def close(self) -> None:
        """Wait until all items are served, then end the threads."""
        with self._changed:
            while self._items:
                self._changed.wait()
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        name = f"{self._name}-{len(self._threads) + 1}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (key := self._ready.get()) is not None:
            with self._changed:
                waiting = self._items[key]
                items = [waiting.popleft() for _ in range(min(self._batch, len(waiting)))]
            self._serve(key, items)
            with self._changed:
                done = not waiting
                if done:
                    del self._items[key]
                    self._changed.notify_all()
            if not done:
                self._ready.put(key)
