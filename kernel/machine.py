"""The machine: the parts that boot.py assembles, for the connections. No handler gets it."""

import time
from collections import Counter
from dataclasses import dataclass, field

from .abi import limits
from .abi.values import Event
from .access.permissions import Permissions
from .access.reauthorisation import Clients, PolicyChanges
from .access.users import UserTable
from .backpressure import UserLoads
from .counters import Counters
from .dispatch import CallParts
from .lifecycle import Lifecycle
from .memory.recall_device import RecallDevice
from .owners.owners import Owners
from .process.table import Process, ProcessTable
from .run import KernelRun
from .scheduling.images import ImageRegistry
from .scheduling.loader import Loader, Mounts
from .scheduling.requantise import Requantiser
from .storage.journal import Journal
from .summary import Summaries
from .supervisor import Supervisor
from .watch import Followers


@dataclass(slots=True)
class Connections:
    """What all connections share."""

    user_limit: int = limits.USER_CONNECTIONS  # for each user except the owner
    slots: Counter[str] = field(default_factory=Counter[str])  # connections, by their holder
    programs: dict[int, Process] = field(default_factory=dict[int, Process])  # by OS pid
    is_subreaper: bool = False  # the kernel adopts the orphans of programs
    last_closed: float = field(default_factory=time.monotonic)  # when one was last closed


@dataclass(frozen=True, slots=True)
class Machine:
    """The parts of a running kernel."""

    run: KernelRun
    jobs: Supervisor  # background jobs, which outlive the call that started them
    # Events.
    journal: Journal
    events: Followers[Event]
    # Access.
    users: UserTable
    permissions: Permissions
    changes: PolicyChanges
    clients: Clients
    # Processes and their data.
    processes: ProcessTable
    owners: Owners
    recall: RecallDevice
    lifecycle: Lifecycle
    # Models.
    images: ImageRegistry
    requantiser: Requantiser
    loader: Loader
    mounts: Mounts
    # Calls.
    call_parts: CallParts
    counters: Counters
    loads: UserLoads
    connections: Connections
    summaries: Summaries | None  # None: pages that leave a window are not summarised
