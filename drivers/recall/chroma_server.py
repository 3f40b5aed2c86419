"""A store on a Chroma server, with Chroma's HTTP client: the only module that imports chromadb."""

import contextlib
from typing import Any, cast

import chromadb as _untyped
from chromadb.config import Settings as _Settings
from chromadb.errors import NotFoundError as _NotFoundError

from llmasos.kernel.abi import service_url

from .chroma_store import HNSW, Vector, ids, numbers

_SERVER_S = 20.0  # for which a request waits for data
_chromadb = cast("Any", _untyped)


class ServerStore:
    """The collections of one user on a server: one for each space."""

    def __init__(self, prefix: str, url: str) -> None:
        """`prefix`: of the names of the user's collections."""
        self._prefix = f"{prefix}-"
        server = service_url.parse(url)
        self._client = _chromadb.HttpClient(
            server.host,
            server.port,
            ssl=server.scheme == "https",
            settings=_Settings(anonymized_telemetry=False),
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

    def spaces(self) -> list[int]:
        names = [one.name for one in self._client.list_collections()]
        return numbers(
            name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)
        )

    def places(self, space: int) -> list[int]:
        collection = self._collection(space)
        return [] if collection is None else numbers(collection.get(include=[])["ids"])

    def get(self, space: int, places: list[int]) -> tuple[list[int], list[Vector]]:
        collection = self._collection(space)
        if collection is None:
            return [], []
        found = collection.get(ids=ids(places), include=["embeddings"])
        return numbers(found["ids"]), found["embeddings"].tolist()

    def write(self, space: int, places: list[int], vectors: list[Vector]) -> None:
        collection = self._collection(space) or self._client.create_collection(
            f"{self._prefix}{space}", embedding_function=None, configuration={"hnsw": HNSW}
        )
        collection.upsert(ids=ids(places), embeddings=vectors)

    def delete(self, space: int, places: list[int]) -> None:
        collection = self._collection(space)
        if collection is not None and places:
            collection.delete(ids=ids(places))

    def drop(self, space: int) -> None:
        with contextlib.suppress(_NotFoundError):
            self._client.delete_collection(f"{self._prefix}{space}")

    def count(self, space: int) -> int:
        collection = self._collection(space)
        return 0 if collection is None else int(collection.count())

    def query(self, space: int, vector: Vector, most: int) -> list[int]:
        collection = self._collection(space)
        if collection is None:
            return []
        answer = collection.query(query_embeddings=[vector], n_results=most, include=[])
        return numbers(answer["ids"][0])
