"""Chroma in a process of its own: the only module that imports chromadb. One request at a time.

    python -m llmasos.drivers.recall.chroma SOCKET_FD CHILD_PID

Chroma holds the interpreter lock while it writes, and corrupt files can kill the process that opens
them, so it must not run in the process that searches. A store is a directory, or the collections
with one prefix on a server. A collection is a space, an id is a place in it (the number of a
vector), and nothing else is stored.
"""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable, Generator
from typing import Any, cast

import chromadb as _untyped
import numpy as np
from chromadb.api.shared_system_client import SharedSystemClient as _SharedSystemClient
from chromadb.config import Settings as _Settings
from chromadb.errors import NotFoundError as _NotFoundError

from llmasos.drivers.child_runtime import (
    ParentConnection,
    exit_with_parent,
    lower_priority,
    run_or_exit,
)
from llmasos.drivers.frames import ANSWER, Frame
from llmasos.kernel.abi import service_url
from llmasos.kernel.abi.errors import DeviceFault, SyscallError

from .chroma_process import CLOSE, COUNT, DELETE, DROP, DROP_ALL, GET, OPEN, PLACES, QUERY, WRITE
from .rows import Vectors

_NICE = 19  # it writes for minutes after a rebuild, beside engines that want every core
_SERVER_S = 20.0  # without data from a server
_SEARCHED = 400  # ef_search: vectors that a query visits, twice the number requested
_REASON_CHARS = 200
chromadb = cast("Any", _untyped)
_systems = cast("Any", _SharedSystemClient)._identifier_to_system


class ChromaStore:
    """An open store."""

    def __init__(self, location: str, url: str) -> None:
        """`location`: a directory, or on a server the prefix of the collections' names."""
        settings = _Settings(anonymized_telemetry=False)
        self._prefix = f"{location}-" if url else "space-"
        if not url:
            # Chroma caches clients by path, also one that failed to open: do not reuse it.
            _systems.pop(location, None)
            self._client = chromadb.PersistentClient(location, settings=settings)
            return
        server = service_url.parse(url)
        self._client = chromadb.HttpClient(
            server.host, server.port, ssl=server.scheme == "https", settings=settings
        )
        # Without a timeout an unresponsive server would block for ever.
        self._client._server._session.timeout = _SERVER_S

    def close(self) -> None:
        self._client.close()

    def _collection(self, space: int) -> Any:
        """The collection of a space; None when it does not exist."""
        with contextlib.suppress(_NotFoundError):
            return self._client.get_collection(f"{self._prefix}{space}", embedding_function=None)
        return None

    def places(self, space: int) -> list[int]:
        found = self._collection(space)
        return [] if found is None else [int(one) for one in found.get(include=[])["ids"]]

    def get(self, space: int, places: list[int]) -> tuple[list[int], Vectors]:
        """Those of the places that exist, with their vectors."""
        found = self._collection(space).get(ids=_ids(places), include=["embeddings"])
        return [int(one) for one in found["ids"]], np.asarray(found["embeddings"], np.float32)

    def write(self, space: int, places: list[int], vectors: Vectors) -> None:
        collection = self._collection(space) or self._client.create_collection(
            f"{self._prefix}{space}",
            embedding_function=None,
            configuration={"hnsw": {"space": "cosine", "ef_search": _SEARCHED}},
        )
        collection.upsert(ids=_ids(places), embeddings=vectors)

    def delete(self, space: int, places: list[int]) -> None:
        collection = self._collection(space)
        if collection is not None and places:
            collection.delete(ids=_ids(places))

    def drop(self, space: int) -> None:
        with contextlib.suppress(_NotFoundError):
            self._client.delete_collection(f"{self._prefix}{space}")

    def drop_all(self) -> None:
        for name in [one.name for one in self._client.list_collections()]:
            if name.startswith(self._prefix):
                self._client.delete_collection(name)

    def count(self, space: int) -> int:
        found = self._collection(space)
        return 0 if found is None else int(found.count())

    def query(self, space: int, question: Vectors, count: int) -> list[int]:
        found = self._collection(space)
        if found is None:
            return []
        answer = found.query(query_embeddings=question[None], n_results=count, include=[])
        return [int(one) for one in answer["ids"][0]]


def _ids(places: list[int]) -> list[str]:
    return [str(place) for place in places]


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
                self._stores[location] = ChromaStore(location, *values)
            return []
        return _REQUESTS[kind](self._stores[location], *values)


def _places(data: bytes) -> list[int]:
    numbers: list[int] = np.frombuffer(data, np.int64).tolist()
    return numbers


def _bytes(places: list[int]) -> bytes:
    return np.array(places, np.int64).tobytes()


def _vectors(data: bytes, rows: int) -> Vectors:
    return np.frombuffer(data, np.float32).reshape(rows, -1)


def _list_places(store: ChromaStore, space: int) -> list[Any]:
    return [_bytes(store.places(space))]


def _count(store: ChromaStore, space: int) -> list[Any]:
    return [store.count(space)]


def _get(store: ChromaStore, space: int, places: bytes) -> list[Any]:
    found, vectors = store.get(space, _places(places))
    return [_bytes(found), vectors.tobytes()]


def _write(store: ChromaStore, space: int, places: bytes, vectors: bytes) -> list[Any]:
    numbers = _places(places)
    store.write(space, numbers, _vectors(vectors, len(numbers)))
    return []


def _delete(store: ChromaStore, space: int, places: bytes) -> list[Any]:
    store.delete(space, _places(places))
    return []


def _drop(store: ChromaStore, space: int) -> list[Any]:
    store.drop(space)
    return []


def _drop_all(store: ChromaStore) -> list[Any]:
    store.drop_all()
    return []


def _query(store: ChromaStore, space: int, question: bytes, count: int) -> list[Any]:
    return [_bytes(store.query(space, np.frombuffer(question, np.float32), count))]


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
