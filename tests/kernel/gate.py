"""A gate with own rules, and who asks it."""

from itertools import pairwise
from pathlib import Path

from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.access.decisions import Policy

CAREFUL = ("u:alice", "r:careful")
OPERATOR = ("u:alice", "r:operator")
A, B = "/dev/image/a", "/dev/image/b"
NO_A, NO_B = (f"p, r:careful, spawn, {path}, deny\n" for path in (A, B))


def policy(tmp_path: Path, rules: str = "") -> Policy:
    """As a kernel has it that alice started."""
    own = tmp_path / "policy.csv"
    own.write_text(rules, encoding="utf-8", newline="")
    return restarted(tmp_path)


def restarted(tmp_path: Path) -> Policy:
    """With what is on disk."""
    return Policy(TABLE, "alice", tmp_path / "policy.csv", tmp_path / "memory.csv")


def chain(length: int) -> list[str]:
    """Rows that nest roles so deep."""
    return [f"g, r:l{low}, r:l{high}" for low, high in pairwise(range(length + 1))]
