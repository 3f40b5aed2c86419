"""The recall device, which all owners share, and the embedder.

The device is a driver and its child process, the recall process, which holds copies of vectors.
They are lost when that process ends: it starts without vectors, and each owner's index sends them
again when a search needs them. The process is started soon after boot when there are pages, else by
the first `write_mem`, `search_mem`, `mmap`, or conversation that fills half of its window, or when
INDEX_FIRST_PAGES pages wait for their vectors.
"""

import logging
from pathlib import Path
from typing import Protocol

from ..abi.values import RecallInfo
from ..driver import Death
from ..recall_driver import Recall, RecallFacts
from ..supervisor import Supervisor
from .indexing import Embed
from .recall_process import RecallProcess

log = logging.getLogger(__name__)


class IndexListener(Protocol):
    """An owner's vector index, which is to know when the device is up."""

    def device_up(self) -> None: ...


class RecallDevice:
    """The device, and the spaces whose vectors it has. Without a driver, recall is lexical only."""

    def __init__(self, driver: Recall | None, jobs: Supervisor) -> None:
        self.driver, self.jobs = driver, jobs
        self.facts: RecallFacts | None = None  # None: it is not up
        self.lifecycle = RecallProcess(driver, self, jobs)
        # Name and function of an embedder that replaces the device's own.
        self.embedder: tuple[str, Embed] | None = None
        self.disabled = driver is None  # by configuration
        self.unavailable_reason = (  # a message to users; empty: it is up, or was never needed
            "recall is lexical only: memory_embedder is none" if self.disabled else ""
        )
        self.indexes: set[IndexListener] = set()
        self._loaded: dict[Path, set[int]] = {}  # spaces, by owner's directory

    # --- reports from the driver ------------------------------------------------------------------
    def up(self, facts: RecallFacts) -> None:
        self.facts, self.unavailable_reason = facts, ""
        self.lifecycle.up()
        for index in self.indexes:
            index.device_up()

    def down(self, death: Death) -> None:
        self.facts = None
        self._loaded.clear()
        self.unavailable_reason = f"recall is lexical only: {death.reason}"
        log.warning("the recall process is down: %s", death.reason)
        self.lifecycle.down(death)

    # --- state ------------------------------------------------------------------------------------
    @property
    def os_pid(self) -> int:
        return self.facts.os_pid if self.facts is not None else 0

    @property
    def embedder_name(self) -> str:
        """The name of the embedder; empty while it is unknown or there is none."""
        if self.embedder is not None:
            return self.embedder[0]
        return self.facts.embedder if self.facts is not None else ""

    def info(self) -> RecallInfo:
        return self.lifecycle.info(self.os_pid, self.embedder_name)

    def holds(self, directory: Path) -> bool:
        """Whether it may have files in an owner's directory open."""
        return directory in self._loaded

    def loaded_spaces_for_update(self, directory: Path) -> set[int]:
        """The loaded spaces of an owner. The caller updates the set, and `holds` is true now."""
        return self._loaded.setdefault(directory, set())

    # --- commands ---------------------------------------------------------------------------------
    def request_start(self) -> None:
        if self.lifecycle.request_start():
            self.unavailable_reason = (
                "recall is lexical only for a moment: the recall process is starting"
            )

    def prefetch(self, question: str) -> None:
        """Let the device embed the question while the text search runs."""
        if self.driver is not None and self.facts is not None and self.embedder is None:
            self.driver.prefetch(question)
