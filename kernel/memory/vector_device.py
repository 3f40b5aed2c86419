"""The recall device, which all owners share, and the embedder.

The device is a driver; its child process, the recall process, holds copies of vectors. They are
lost when that process ends, and each owner's index sends them again when a search needs them. The
process is started soon after boot when there are pages, when many pages wait, or at the first need:
a conversation that fits half of its window never needs it.
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


class DeviceUser(Protocol):
    """An owner's index, which is to know when the device is up."""

    def device_up(self) -> None: ...


class VectorDevice:
    """The device, and the spaces that it holds. Without a device, recall is lexical only."""

    def __init__(self, device: Recall | None, jobs: Supervisor) -> None:
        self.recall, self.jobs = device, jobs
        self.facts: RecallFacts | None = None  # None: it is not up
        self.process = RecallProcess(device, self, jobs)
        # Name and function of an embedder that replaces the device's own.
        self.embedder: tuple[str, Embed] | None = None
        self.disabled = device is None  # by configuration
        self.failure = "recall is lexical only: memory_embedder is none" if self.disabled else ""
        self.users: set[DeviceUser] = set()
        self._loaded: dict[Path, set[int]] = {}  # the spaces that it holds, by owner's directory

    # --- reports of the device --------------------------------------------------------------------
    def up(self, facts: RecallFacts) -> None:
        self.facts, self.failure = facts, ""
        self.process.up()
        for user in self.users:
            user.device_up()

    def down(self, death: Death) -> None:
        self.facts = None
        self._loaded.clear()
        self.failure = f"recall is lexical only: {death.reason}"
        log.warning("the recall process is down: %s", death.reason)
        self.process.down(death)

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
        return self.process.info(self.os_pid, self.embedder_name)

    def holds(self, directory: Path) -> bool:
        """Whether it may have files in an owner's directory open."""
        return directory in self._loaded

    def loaded(self, directory: Path) -> set[int]:
        """The spaces of an owner that it holds, for the caller to update."""
        return self._loaded.setdefault(directory, set())

    # --- commands ---------------------------------------------------------------------------------
    def request_start(self) -> None:
        if self.process.request_start():
            self.failure = "recall is lexical only for a moment: the recall process is starting"

    def prefetch(self, question: str) -> None:
        """Let the device embed the question while the text search runs."""
        if self.recall is not None and self.facts is not None and self.embedder is None:
            self.recall.prefetch(question)
