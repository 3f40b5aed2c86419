"""A store in a directory, with Chroma's Rust library: the only module that imports it.

Chroma's Python package takes 0.6 s of a core to import, and its client checks, counts and reports
what recall has checked already. The library is what that client calls. The files are the same.
"""

import json
import resource
from typing import Any, cast

import chromadb_rust_bindings as _untyped

from .chroma_store import HNSW, Vector, ids, numbers

_PREFIX = "space-"  # of the names of collections
_DATABASE = {"tenant": "default_tenant", "database": "default_database"}
_INDEX_FILES = 5  # of each index that is open
_rust = cast("Any", _untyped)


class LocalStore:
    """The files of one directory, open. No other process may use them."""

    def __init__(self, location: str) -> None:
        database = _rust.SqliteDBConfig(
            url=f"{location}/chroma.sqlite3",
            hash_type=_rust.MigrationHash.MD5,
            migration_mode=_rust.MigrationMode.Apply,
        )
        self._chroma = _rust.Bindings(
            allow_reset=False,
            sqlite_db_config=database,
            persist_path=location,
            hnsw_cache_size=resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _INDEX_FILES,
        )
        # Kept, because Chroma imports its Python package to report that a name does not exist.
        self._collections = {
            int(one.name.removeprefix(_PREFIX)): str(one.id)
            for one in self._chroma.list_collections()
        }

    def close(self) -> None:
        del self._chroma

    def spaces(self) -> list[int]:
        return list(self._collections)

    def places(self, space: int) -> list[int]:
        if space not in self._collections:
            return []
        return numbers(self._chroma.get(self._collections[space], include=[]).ids)

    def get(self, space: int, places: list[int]) -> tuple[list[int], list[Vector]]:
        if space not in self._collections:
            return [], []
        found = self._chroma.get(self._collections[space], ids=ids(places), include=["embeddings"])
        return numbers(found.ids), found.embeddings

    def write(self, space: int, places: list[int], vectors: list[Vector]) -> None:
        if space not in self._collections:
            configuration = json.dumps({"hnsw": HNSW})
            made = self._chroma.create_collection(
                f"{_PREFIX}{space}", configuration_json_str=configuration
            )
            self._collections[space] = str(made.id)
        self._chroma.upsert(self._collections[space], ids=ids(places), embeddings=vectors)

    def delete(self, space: int, places: list[int]) -> None:
        if space in self._collections and places:
            self._chroma.delete(self._collections[space], ids=ids(places))

    def drop(self, space: int) -> None:
        if space in self._collections:
            self._chroma.delete_collection(f"{_PREFIX}{space}", **_DATABASE)
            del self._collections[space]

    def count(self, space: int) -> int:
        if space not in self._collections:
            return 0
        return int(self._chroma.count(self._collections[space]))

    def query(self, space: int, vector: Vector, most: int) -> list[int]:
        if space not in self._collections:
            return []
        found = self._chroma.query(
            self._collections[space],
            ids=None,
            query_embeddings=[vector],
            n_results=most,
            include=[],
        )
        return numbers(found.ids[0])
