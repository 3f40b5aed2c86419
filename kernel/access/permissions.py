"""Authorisation of a call: what has to be allowed for it, whether it is, and why not.

Read from `authorise` down; decisions.py evaluates the rules. A process is an own process of a
caller when the caller's application started it or an ancestor of it. Its path is then
/proc/own/PID, otherwise /proc/PID. So a rule can allow an application its own processes and no
others of its user. A `generate` on a model needs what its two steps need: `spawn` on the model, and
`generate` for an own process that does not exist yet. A refusal is journaled, and `llmasos policy
explain` takes its number. This file must not know what a handler does.
"""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..abi.errors import Denied, Errno
from ..abi.table import Syscall
from ..abi.values import RECALL, Event, Fork, Generate, Ps, Spawn
from ..storage.journal import Entry, Journal
from .decisions import PROCESS_SEPARATOR, Decision, Policy
from .identity import Caller
from .rules import own_path

# Characters that a path in a rule cannot contain: each of their bytes is written as +HH.
_ESCAPED = re.compile(r"[^A-Za-z0-9._:/-]")
_NEW = "/proc/own/0"  # a process that does not exist yet; its caller will own it
_NEW_GENERATE = f"{_NEW}/generate"
_IMAGE = "/dev/image/"
_NUMBERED = re.compile(r"^(/proc/(?:own/)?)[0-9]+")
_PROCESS = re.compile(r"/proc/([0-9]+)(?=/|$)")


class Subject(Protocol):
    """A process, as far as permissions depend on it."""

    pid: int
    nice: int
    started_by: tuple[str, ...]

    @property
    def subjects(self) -> tuple[str, ...]: ...
    def is_own(self, caller: Caller) -> bool:
        """Whether it is an own process of the caller."""
        ...


class SubjectTable(Protocol):
    """Processes by pid; `get` raises ESRCH where `find` returns None."""

    def find(self, pid: int, owner: str) -> Subject | None: ...
    def get(self, pid: int, owner: str) -> Subject: ...


@dataclass(slots=True)
class Permit:
    """The subjects, action and objects of one call, and the rule that allows it."""

    subjects: tuple[str, ...]
    recorded: str  # the subjects joined, as the journal records them
    action: str
    objects: tuple[str, ...]  # all must be allowed; the journal records the first
    own_part_only: bool = (
        False  # only a list of what belongs to the caller's application is allowed
    )
    rule: str = ""
    also: "Permit | None" = None  # another action that must be allowed, too

    @property
    def object(self) -> str:
        return self.objects[0]


class Permissions:
    """Authorises the calls of all callers."""

    def __init__(
        self, policy: Policy, processes: SubjectTable, journal: Journal,
        canonical_image: Callable[[str], str],
    ) -> None:  # fmt: skip
        self._policy = policy
        self._processes = processes
        self._journal = journal
        self._canonical_image = canonical_image  # the name of an image, from an alias
        self.refused = 0  # calls
        self.spent_s = 0.0  # on all calls
        self.last_s = deque[float](maxlen=1024)  # on each of the last calls

    def authorise(self, caller: Caller, row: Syscall, request: object) -> Permit:
        """The permit of a call.

        Raises EACCES when no rule allows it, and ESRCH for a process that does not exist.
        """
        begin = time.perf_counter()
        absent: list[int] = []
        try:
            if isinstance(request, Generate) and not request.pid:
                permit = self._single(caller, request)
            else:
                permit = self._permit(caller, row, request, absent)
            self.require(permit, caller.user, getattr(request, "pid", 0))
            if isinstance(request, Spawn | Generate | Fork):
                self._check_nice(caller, permit, request)
            for pid in absent:  # ESRCH here: one could appear before the handler runs
                self._processes.get(pid, caller.user)
            return permit
        finally:
            elapsed_s = time.perf_counter() - begin
            self.spent_s += elapsed_s
            self.last_s.append(elapsed_s)

    def require(self, permit: Permit, owner: str, pid: int = 0) -> Permit:
        """The same permit with the rule that allows it. Raises EACCES, journaled, if none does."""
        for number, object_ in enumerate(permit.objects):
            decision = self._policy.check(permit.subjects, permit.action, object_)
            if not decision.allowed:
                raise self._refused(permit, object_, decision, (owner, pid))
            if number == 0:
                permit.rule = decision.rule
        if permit.also is not None:
            self.require(permit.also, owner, pid)
        return permit

    def require_also(self, caller: Caller, action: str, path: str) -> None:
        """Require permission for one more object of a call in progress. Raises EACCES."""
        objects = (self._path_for(caller, path, []),)
        self.require(Permit(caller.subjects, caller.recorded, action, objects), caller.user)

    def _check_nice(self, caller: Caller, permit: Permit, request: Spawn | Generate | Fork) -> None:
        """A child with a larger share than the default needs permission to `nice`.

        The object is the caller's own process 0, since the child does not exist yet. Raises EACCES.
        """
        match request:
            case Spawn(nice=nice) | Generate(pid=0, nice=nice):
                default = 0
            case Fork(nice=int(nice), pid=pid):
                parent = self._processes.find(pid, caller.user)
                default = parent.nice if parent is not None else 0
            case _:
                return
        if nice < default:
            self.require(Permit(permit.subjects, permit.recorded, "nice", (_NEW,)), caller.user)

    def may_see(self, caller: Caller, event: Event) -> bool:
        """Whether an event belongs to the caller's application, or has no owner."""
        if event.owner == "" or caller.is_source_of(event):
            return True
        process = self._processes.find(event.pid, caller.user) if event.pid else None
        return process is not None and process.is_own(caller)

    # --- what has to be allowed ---------------------------------------------------------------
    def _permit(self, caller: Caller, row: Syscall, request: object, absent: list[int]) -> Permit:
        """What has to be allowed for a call; `absent` gets the processes that do not exist."""
        subjects = self._subjects(caller, row, request)
        recorded = caller.recorded if subjects is caller.subjects else " ".join(subjects)
        objects: tuple[str, ...] = (self._object(caller, row, request, absent),)
        if row.second and _field(row.second, request) != "0":
            objects = *objects, self._path_for(caller, _filled(row.second, request), absent)
        permit = Permit(subjects, recorded, row.name, objects)
        if row.own_object and self._allows_own_part(caller, permit, row, request):
            permit.objects, permit.own_part_only = (row.own_object,), True
        return permit

    def _single(self, caller: Caller, request: Generate) -> Permit:
        """What has to be allowed for a `generate` on a model.

        The process is limited by the application that the request names, as after a spawn.
        """
        subjects, recorded = caller.subjects, caller.recorded
        if request.app and f"app:{request.app}" not in subjects:
            subjects = (*subjects, f"app:{request.app}")
            recorded = " ".join(subjects)
        image = f"{_IMAGE}{self._canonical_image(request.model)}"
        generate = Permit(subjects, recorded, "generate", (_NEW_GENERATE,))
        return Permit(subjects, recorded, "spawn", (image,), also=generate)

    def _allows_own_part(
        self, caller: Caller, permit: Permit, row: Syscall, request: object
    ) -> bool:
        """Whether not the whole list, but the part of the caller's application is allowed."""
        policy = self._policy
        if policy.check(permit.subjects, row.name, row.object).allowed:
            return False
        if isinstance(request, Ps) and request.pid:
            process = self._processes.find(request.pid, caller.user)
            if process is not None and not process.is_own(caller):
                return False
        return policy.check(permit.subjects, row.name, row.own_object).allowed

    def _subjects(self, caller: Caller, row: Syscall, request: object) -> tuple[str, ...]:
        """The caller's subjects, and those of a process that acts in the call or gets a child.

        The rules must allow the call to each of them that does not abstain (decisions.py). If the
        process is not an own one of the caller, PROCESS_SEPARATOR divides them: the rules must
        allow the caller's the call on /proc/PID, and the process's the call on /proc/own/PID.
        Raises ESRCH when there is no such process.
        """
        pid = getattr(request, "pid" if row.acts_as_process else "parent", 0)
        if not pid:
            return caller.subjects
        process = self._processes.get(pid, caller.user)
        if process.is_own(caller):
            return tuple(dict.fromkeys((*caller.subjects, *process.subjects)))
        return (*caller.subjects, PROCESS_SEPARATOR, *process.subjects)

    def _object(self, caller: Caller, row: Syscall, request: object, absent: list[int]) -> str:
        """The path from the syscall table, with the request's fields and with aliases resolved."""
        path = row.object
        if "{" not in path:
            return path
        if path.startswith(_IMAGE):
            return path[: path.index("{")] + self._canonical_image(_field(path, request))
        if path == "/dev/{device}":
            name = _field(path, request)
            return (
                f"/dev/{RECALL}" if name == RECALL else f"/dev/image/{self._canonical_image(name)}"
            )
        if path == "{source}":
            path = file_object(_field(path, request))
        return self._path_for(caller, _filled(path, request), absent)

    def _path_for(self, caller: Caller, path: str, absent: list[int]) -> str:
        """The path, with /proc/own instead of /proc if it is of an own process of the caller.

        A process that does not exist is treated as an own one and is added to `absent`: only a
        caller that is allowed this on its own processes gets ESRCH, all others EACCES.
        """
        found = _PROCESS.match(path)
        if found is None:
            return path
        process = self._processes.find(int(found[1]), caller.user)
        if process is None:
            absent.append(int(found[1]))
        elif not process.is_own(caller):
            return path
        return own_path(path)

    # --- why it is not ------------------------------------------------------------------------
    def _refused(
        self, permit: Permit, object_: str, decision: Decision, owner_pid: tuple[str, int]
    ) -> Denied:
        """The refusal, journaled. `owner_pid`: the owner of the call, and the process in it."""
        owner, pid = owner_pid
        self.refused += 1
        number = self._journal.refuse(Entry(
            "refused", pid, owner, syscall=permit.action, object=object_, errno=Errno.EACCES,
            note=decision.rule or f"no rule for {decision.subject}", subject=permit.recorded,
        ))  # fmt: skip
        refusal = self._policy.refusal(permit.subjects, permit.action, object_, number)
        found = _PROCESS.match(object_)
        process = self._processes.find(int(found[1]), owner) if found is not None else None
        if process is None or decision.rule:
            return refusal
        return self._of_another_application(permit, (object_, decision.subject), process, refusal)

    def _of_another_application(
        self, permit: Permit, refused: tuple[str, str], process: Subject, refusal: Denied
    ) -> Denied:
        """The refusal, or a better one if the call would be allowed on an own process.

        That one names the application that started this process, and the missing rules.
        `refused`: the object, and the subject that was denied.
        """
        policy, (object_, subject) = self._policy, refused
        if_own = own_path(object_)
        if not policy.check(permit.subjects, permit.action, if_own).allowed:
            return refusal
        allowing = policy.evaluate(policy.evaluator, subject, permit.action, if_own)
        if isinstance(allowing, str):  # the evaluation failed: this is the reason
            return refusal
        rows = [
            f'"p, {subject}, {permit.action}, {path}, allow"'
            for subject, path, result in policy.evaluations(
                policy.evaluator, permit.subjects, permit.action, object_
            )
            if isinstance(result, str) or result.rule is None  # no rule allows it
        ]
        by = " and ".join(process.started_by) or "an unknown application"
        return Denied(
            f"{refusal.message}; process {process.pid} was started by {by}, and {allowing.rule} "
            "allows only own processes",
            f"`llmasos policy add {' '.join(rows)}` allows it; {refusal.hint}",
        )


def recorded_checks(syscall: str, object_: str) -> Sequence[tuple[str, str]]:
    """The actions and objects that were checked for a call of the journal, which has one object.

    Without the second objects of other calls.
    """
    if syscall == "generate" and object_.startswith(_IMAGE):
        return ("spawn", object_), ("generate", _NEW_GENERATE)
    return ((syscall, object_),)


def counter_object(object_: str) -> str:
    """The object of a counter: all processes count as process 0, to bound the number of rows."""
    return _NUMBERED.sub(r"\g<1>0", object_) if object_.startswith("/proc/") else object_


def file_object(path: str) -> str:
    """The path of a file as rules spell it: other characters are escaped."""
    return _ESCAPED.sub(lambda found: "".join(f"+{b:02x}" for b in os.fsencode(found[0])), path)


def process_object(caller: Caller, process: Subject, rest: str = "") -> str:
    """The path of a process, or of a part of it, for a caller."""
    path = f"/proc/{process.pid}{rest}"
    return own_path(path) if process.is_own(caller) else path


def _filled(path: str, request: object) -> str:
    """A path of the syscall table with the request's field filled in."""
    if "{" not in path:
        return path
    return f"{path[: path.index('{')]}{_field(path, request)}{path[path.index('}') + 1 :]}"


def _field(path: str, request: object) -> str:
    return str(getattr(request, path[path.index("{") + 1 : path.index("}")]))
