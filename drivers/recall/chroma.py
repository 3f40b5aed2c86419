"""Chroma in a process of its own: the one host of chromadb. It does one thing at a time.

    python -m llmasos.drivers.recall.chroma SOCKET_FD CHILD_PID

Chroma holds Python's lock while it writes, and broken files can kill the process that opens them.
So the child, who searches, keeps it at arm's length. A store is a directory, or what has one prefix
on a server; a collection is a space; an id is the number of a place, and nothing else is stored.
"""

import contextlib
import faulthandler
import os
import sys
from collections.abc import Callable, Generator
from typing import Any, cast
from urllib.parse import urlsplit

import chromadb as _untyped
import numpy as np
from chromadb.api.shared_system_client import SharedSystemClient as _SharedSystemClient
from chromadb.config import Settings as _Settings
from chromadb.errors import NotFoundError as _NotFoundError

from llmasos.drivers.door import Door, lower, outermost, tie_to
from llmasos.drivers.frames import ANSWER, Frame
from llmasos.kernel.errors import DeviceFault, SyscallError

from .rows import Vectors
from .work import CLOSE, COUNT, DELETE, DROP, DROP_ALL, GET, OPEN, PLACES, QUERY, WRITE

_NICE = 10  # whoever waits for an answer goes first
_SERVER_S = 20.0  # of silence of a server
_SEARCHED = 400  # vectors that a search looks at: twice what is asked for
_REASON_CHARS = 200
chromadb = cast("Any", _untyped)
_systems = cast("Any", _SharedSystemClient)._identifier_to_system


class Store:
    """An open store."""

    def __init__(self, place: str, url: str) -> None:
        """`place`: a directory, or on a server the prefix of the collections' names."""
        settings = _Settings(anonymized_telemetry=False)
        self._prefix = f"{place}-" if url else "space-"
        if not url:
            # What could not be opened before is kept by its path, and would be given to us.
            _systems.pop(place, None)
            self._client = chromadb.PersistentClient(place, settings=settings)
            return
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._client = chromadb.HttpClient(
            parts.hostname, port, ssl=parts.scheme == "https", settings=settings
        )
        # Without it a server that says nothing is waited for without an end.
        self._client._server._session.timeout = _SERVER_S

    def close(self) -> None:
        self._client.close()

    def _collection(self, space: int) -> Any:
        """None when there is none."""
        with contextlib.suppress(_NotFoundError):
            return self._client.get_collection(f"{self._prefix}{space}", embedding_function=None)
        return None

    def places(self, space: int) -> list[int]:
        found = self._collection(space)
        return [] if found is None else [int(one) for one in found.get(include=[])["ids"]]

    def get(self, space: int, places: list[int]) -> tuple[list[int], Vectors]:
        """Those of the places that there are, with their vectors."""
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

    def query(self, space: int, question: Vectors, many: int) -> list[int]:
        found = self._collection(space)
        if found is None:
            return []
        answer = found.query(query_embeddings=question[None], n_results=many, include=[])
        return [int(one) for one in answer["ids"][0]]


def _ids(places: list[int]) -> list[str]:
    return [str(place) for place in places]


class Stores:
    """The open stores, and what is done with them."""

    def __init__(self) -> None:
        self._stores: dict[str, Store] = {}

    def do(self, word: int, place: str, values: list[Any]) -> list[Any]:
        if word in (OPEN, CLOSE):
            if (store := self._stores.pop(place, None)) is not None:
                store.close()
            if word == OPEN:
                self._stores[place] = Store(place, *values)
            return []
        return _WORK[word](self._stores[place], *values)


def _places(data: bytes) -> list[int]:
    numbers: list[int] = np.frombuffer(data, np.int64).tolist()
    return numbers


def _bytes(places: list[int]) -> bytes:
    return np.array(places, np.int64).tobytes()


def _vectors(data: bytes, rows: int) -> Vectors:
    return np.frombuffer(data, np.float32).reshape(rows, -1)


def _held(store: Store, space: int) -> list[Any]:
    return [_bytes(store.places(space))]


def _count(store: Store, space: int) -> list[Any]:
    return [store.count(space)]


def _get(store: Store, space: int, places: bytes) -> list[Any]:
    found, vectors = store.get(space, _places(places))
    return [_bytes(found), vectors.tobytes()]


def _write(store: Store, space: int, places: bytes, vectors: bytes) -> list[Any]:
    at = _places(places)
    store.write(space, at, _vectors(vectors, len(at)))
    return []


def _delete(store: Store, space: int, places: bytes) -> list[Any]:
    store.delete(space, _places(places))
    return []


def _drop(store: Store, space: int) -> list[Any]:
    store.drop(space)
    return []


def _drop_all(store: Store) -> list[Any]:
    store.drop_all()
    return []


def _query(store: Store, space: int, question: bytes, many: int) -> list[Any]:
    return [_bytes(store.query(space, np.frombuffer(question, np.float32), many))]


_WORK: dict[int, Callable[..., list[Any]]] = {
    PLACES: _held,
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
    """Whatever Chroma raises as a DeviceFault.

    It has no common class for its own errors, its server's, the database's and panics of its Rust
    half, which are not even Exceptions. None of them knows a text: none was given to it.
    """
    try:
        yield
    except BaseException as error:
        words = " ".join(str(error).split())[:_REASON_CHARS]
        raise DeviceFault(words or type(error).__name__) from error


def main(fd: int, child_pid: int) -> None:
    faulthandler.enable()
    tie_to(child_pid)
    lower(_NICE)
    door = Door(fd)
    stores = Stores()

    def take(frame: Frame) -> None:
        word, number, place, *values = frame
        try:
            with _translated():
                answer = stores.do(word, os.fsdecode(place), values)
        except SyscallError as error:
            door.refuse(number, error)
        else:
            door.send([ANSWER, number, *answer])

    door.send([ANSWER, 0])
    with contextlib.suppress(ConnectionError):
        door.read(take)
    os._exit(0)


if __name__ == "__main__":
    outermost("Chroma", lambda: main(int(sys.argv[1]), int(sys.argv[2])))
