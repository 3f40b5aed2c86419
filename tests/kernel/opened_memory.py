"""The memory of one owner, opened as the kernel opens it."""

from llmasos.kernel.memory import loading
from llmasos.kernel.memory.memory import Memory
from llmasos.kernel.storage.store import Store

OWNER = "alice"


def opened(store: Store) -> Memory:
    return Memory(store, loading.load(store, OWNER))
