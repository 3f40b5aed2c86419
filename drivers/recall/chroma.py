"""Chroma in a process of its own: opens stores and executes requests, one at a time.

    python -m llmasos.drivers.recall.chroma SOCKET_FD CHILD_PID

Chroma holds the interpreter lock while it writes, and corrupt files can kill the process that opens
them, so it must not run in the process that searches. Stores are in chroma_local.py (a directory)
and chroma_server.py (a server).
"""

import contextlib
import faulthandler
import os
import sys
from array import array
from collections.abc import Callable, Generator
from itertools import chain
from typing import Any

from llmasos.drivers.child_runtime import (
    ParentConnection,
    exit_with_parent,
    lower_priority,
    run_or_exit,
)
from llmasos.drivers.frames import ANSWER, Frame
from llmasos.kernel.abi.errors import DeviceFault, SyscallError

from .chroma_local import LocalStore
from .chroma_store import (
    CLOSE,
    COUNT,
    DELETE,
    DROP,
    DROP_ALL,
    GET,
    OPEN,
    PLACES,
    QUERY,
    WRITE,
    ChromaStore,
    Vector,
)
from .frames import numbers_in, numbers_out

_NICE = 19  # it writes for minutes after a rebuild, beside engines that want every core
_REASON_CHARS = 200


def _open(location: str, url: str) -> ChromaStore:
    """`location`: a directory, or on a server the prefix of the collections' names."""
    if not url:
        return LocalStore(location)
    from .chroma_server import ServerStore  # 0.6 s of a core, and 60 MB

    return ServerStore(location, url)


class Stores:
    """The open stores, by location."""

    def __init__(self) -> None:
        self._stores: dict[str, ChromaStore] = {}

    def do(self, kind: int, location: str, values: list[Any]) -> list[Any]:
        """Execute one request and return its answer."""
        if kind in (OPEN, CLOSE):
            if (store := self._stores.pop(location, None)) is not None:
                store.close()
            if kind == OPEN:
                self._stores[location] = _open(location, *values)
            return []
        return _REQUESTS[kind](self._stores[location], *values)


def _vectors(data: bytes, rows: int) -> list[Vector]:
    floats = array("f", data)
    width = len(floats) // rows
    return [floats[at : at + width].tolist() for at in range(0, rows * width, width)]


def _list_places(store: ChromaStore, space: int) -> list[Any]:
    return [numbers_out(store.places(space))]


def _count(store: ChromaStore, space: int) -> list[Any]:
    return [store.count(space)]


def _get(store: ChromaStore, space: int, places: bytes) -> list[Any]:
    found, vectors = store.get(space, numbers_in(places))
    return [numbers_out(found), array("f", chain.from_iterable(vectors)).tobytes()]


def _write(store: ChromaStore, space: int, places: bytes, vectors: bytes) -> list[Any]:
    numbers = numbers_in(places)
    store.write(space, numbers, _vectors(vectors, len(numbers)))
    return []


def _delete(store: ChromaStore, space: int, places: bytes) -> list[Any]:
    store.delete(space, numbers_in(places))
    return []


def _drop(store: ChromaStore, space: int) -> list[Any]:
    store.drop(space)
    return []


def _drop_all(store: ChromaStore) -> list[Any]:
    for space in store.spaces():
        store.drop(space)
    return []


def _query(store: ChromaStore, space: int, question: bytes, count: int) -> list[Any]:
    [vector] = _vectors(question, 1)
    return [numbers_out(store.query(space, vector, count))]


_REQUESTS: dict[int, Callable[..., list[Any]]] = {
    PLACES: _list_places,
    GET: _get,
    WRITE: _write,
    DELETE: _delete,
    DROP: _drop,
    DROP_ALL: _drop_all,
    COUNT: _count,
    QUERY: _query,
}


@contextlib.contextmanager
def _translated() -> Generator[None]:
    """Translate every error of Chroma to a DeviceFault.

    There is no common class for its own errors, its server's, the database's and panics of its Rust
    code, which are not even Exceptions. No message contains a user's text: Chroma gets none.
    """
    try:
        yield
    except BaseException as error:
        message = " ".join(str(error).split())[:_REASON_CHARS]
        raise DeviceFault(message or type(error).__name__) from error


def main(fd: int, child_pid: int) -> None:
    faulthandler.enable()
    exit_with_parent(child_pid)
    lower_priority(_NICE)
    parent = ParentConnection(fd)
    stores = Stores()

    def handle(frame: Frame) -> None:
        kind, number, location, *values = frame
        try:
            with _translated():
                answer = stores.do(kind, os.fsdecode(location), values)
        except SyscallError as error:
            parent.send_error(number, error)
        else:
            parent.send([ANSWER, number, *answer])

    parent.send([ANSWER, 0])
    with contextlib.suppress(ConnectionError):
        parent.read(handle)
    os._exit(0)


if __name__ == "__main__":
    run_or_exit("Chroma", lambda: main(int(sys.argv[1]), int(sys.argv[2])))
