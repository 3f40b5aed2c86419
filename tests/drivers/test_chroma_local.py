"""Recall writes Chroma's files as Chroma's own client does, without importing it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llmasos.drivers.recall.chroma_local import LocalStore
from tests.drivers.recall_rig import DEADLINE_S

# Prints what the client finds in space 7, and writes space 8.
OWN_CLIENT = """
import json, sys, chromadb
client = chromadb.PersistentClient(sys.argv[1])
one = client.get_collection("space-7", embedding_function=None)
found = one.get(include=["embeddings"])
print(json.dumps([found["ids"], found["embeddings"].tolist(), one.configuration["hnsw"]]))
two = client.create_collection("space-8", embedding_function=None)
two.upsert(ids=["3", "9"], embeddings=[[0.0, 1.0], [1.0, 0.0]])
client.close()
"""


def test_chroma_s_own_client_uses_the_same_files(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.write(7, [1, 5], [[1, 0], [0, 1]])
    store.close()
    done = subprocess.run(
        [sys.executable, "-c", OWN_CLIENT, str(tmp_path)],
        capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    places, held, index = json.loads(done.stdout)
    assert (places, held) == (["1", "5"], [[1, 0], [0, 1]])
    assert (index["space"], index["ef_search"]) == ("cosine", 400)
    store = LocalStore(str(tmp_path))
    assert sorted(store.spaces()) == [7, 8]
    assert store.places(8) == [3, 9]
    assert store.query(8, [0.1, 1], 1) == [3]
    store.close()


def test_a_space_without_a_collection_has_no_vectors(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    assert store.get(7, [1, 2]) == ([], [])
    assert (store.places(7), store.count(7), store.query(7, [1.0], 3)) == ([], 0, [])
    store.close()


def test_nothing_imports_chroma_s_python_package(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    assert store.spaces() == []
    absent = store.places(1), store.count(1), store.query(1, [1, 0], 1)
    assert absent == ([], 0, [])
    store.write(1, [4, 6, 8], [[1, 0], [0, 1], [0.6, 0.8]])
    store.write(1, [6], [[-1, 0]])
    store.delete(1, [8, 9])
    store.delete(2, [1])
    found, held = store.get(1, [4, 6, 8])
    assert dict(zip(found, held, strict=True)) == {4: [1, 0], 6: [-1, 0]}
    assert store.query(1, [-1, 0.1], 1) == [6]
    assert store.count(1) == 2
    store.drop(1)
    store.drop(1)
    assert store.spaces() == store.places(1) == []
    store.close()
    assert "chromadb" not in sys.modules


def test_the_process_that_writes_files_imports_no_other_large_package() -> None:
    code = "import sys, llmasos.drivers.recall.chroma; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=DEADLINE_S
    )
    assert not {"asyncio", "chromadb", "llmasos.kernel.driver", "numpy"} & {*done.stdout.split()}


def test_a_database_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "chroma.sqlite3").write_bytes(b"\xff" * 4096)
    with pytest.raises(BaseException, match="not a database"):
        LocalStore(str(tmp_path))
