"""The trap's question to the gate: who wants to do what to which objects.

A process is /proc/PID, and /proc/own/PID where the caller's application started it, or a process
above it: that is how a rule tells an application's own processes from the others of its user. A
refusal is journaled, and its number is what `llmasos policy explain` takes.
"""

import os
import re
import time
from dataclasses import dataclass

from .abi import Syscall
from .errors import Denied, Errno
from .identity import Caller
from .journal import Entry
from .machine import Machine
from .policy import ITSELF, Decision, own
from .process import Process
from .values import RECALL, Event, Fork, Ps, Spawn

# Files have names that rules cannot hold: each byte of an odd letter is +HH there.
_ODD = re.compile(r"[^A-Za-z0-9._:/-]")
_NEW = "/proc/own/0"  # a process that is about to be made
_NUMBERED = re.compile(r"^(/proc/(?:own/)?)[0-9]+")
_PROCESS = re.compile(r"/proc/([0-9]+)(?=/|$)")


@dataclass(slots=True)
class Permit:
    """A question, and after it the rule that allowed it."""

    subjects: tuple[str, ...]
    told: str  # they, as the journal has them
    action: str
    objects: tuple[str, ...]  # all are to be allowed; the first is the one that is journaled
    own: bool = False  # of what is listed, only the part of the caller's application
    rule: str = ""

    @property
    def object(self) -> str:
        return self.objects[0]


def of(machine: Machine, caller: Caller, row: Syscall, request: object) -> Permit:
    """For a call. EACCES, and ESRCH for a process that is not there."""
    begin = time.perf_counter()
    try:
        subjects = _subjects(machine, caller, row, request)
        told = caller.told if subjects is caller.subjects else " ".join(subjects)
        absent: list[int] = []
        objects = [_object(machine, caller, row, request, absent)]
        if row.second and _field(row.second, request) != "0":
            objects.append(_own(machine, caller, _filled(row.second, request), absent))
        asked = Permit(subjects, told, row.name, tuple(objects))
        if row.own and _narrows(machine, caller, asked, row, request):
            asked.objects, asked.own = (row.own,), True
        ask(machine, asked, caller.owner, getattr(request, "pid", 0))
        _check_nice(machine, caller, asked, request)
        for pid in absent:  # it must not come between this question and the call
            machine.processes.get(pid, caller.owner)
        return asked
    finally:
        took = time.perf_counter() - begin
        machine.counters.gate_s += took
        machine.counters.gate_last_s.append(took)


def ask(machine: Machine, asked: Permit, owner: str, pid: int = 0) -> Permit:
    """The same with the rule that allows it. EACCES, journaled, when none does."""
    for number, object_ in enumerate(asked.objects):
        decision = machine.policy.check(asked.subjects, asked.action, object_)
        if not decision.allowed:
            raise _refused(machine, asked, object_, decision, (owner, pid))
        if number == 0:
            asked.rule = decision.rule
    return asked


def _check_nice(machine: Machine, caller: Caller, asked: Permit, request: object) -> None:
    """A child with a larger share than it would have by itself takes the right to `nice`. EACCES.

    It is asked about a process that is not there yet: the caller's own process 0.
    """
    match request:
        case Spawn(nice=wanted):
            usual = 0
        case Fork(nice=int(wanted), pid=pid):
            parent = machine.processes.find(pid, caller.owner)
            usual = parent.nice if parent is not None else 0
        case _:
            return
    if wanted < usual:
        ask(machine, Permit(asked.subjects, asked.told, "nice", (_NEW,)), caller.owner)


def also(machine: Machine, caller: Caller, action: str, path: str) -> None:
    """A call turns out to be about one more object. EACCES."""
    objects = (_own(machine, caller, path, []),)
    ask(machine, Permit(caller.subjects, caller.told, action, objects), caller.owner)


def sees(machine: Machine, caller: Caller, event: Event) -> bool:
    """Whether an event is of the caller's application, or of nobody."""
    if event.owner == "" or caller.made(event):
        return True
    process = machine.processes.find(event.pid, caller.owner) if event.pid else None
    return process is not None and process.is_own(caller)


def counted(object_: str) -> str:
    """An object as counters have it: all processes are process 0, or each had rows for months."""
    return _NUMBERED.sub(r"\g<1>0", object_) if object_.startswith("/proc/") else object_


def _refused(
    machine: Machine, asked: Permit, object_: str, decision: Decision, about: tuple[str, int]
) -> Denied:
    """The refusal, journaled. `about`: whose call it is, and the process in it."""
    owner, pid = about
    machine.counters.refused += 1
    number = machine.journal.refuse(Entry(
        "refused", pid, owner, syscall=asked.action, object=object_, errno=Errno.EACCES,
        note=decision.rule or f"no rule for {decision.subject}", subject=asked.told,
    ))  # fmt: skip
    refusal = machine.policy.refusal(asked.subjects, asked.action, object_, number)
    found = _PROCESS.match(object_)
    process = machine.processes.find(int(found[1]), owner) if found is not None else None
    if process is None or decision.rule:
        return refusal
    return _foreign(machine, asked, (object_, decision.subject), process, refusal)


def _foreign(
    machine: Machine, asked: Permit, refused: tuple[str, str], process: Process, refusal: Denied
) -> Denied:
    """The refusal; where an own process would be allowed, with whose it is and what allows it.

    `refused`: the object, and the subject that may not.
    """
    policy, (object_, subject) = machine.policy, refused
    mine = policy.rule(policy.judge, subject, asked.action, own(object_))
    if (
        isinstance(mine, str)
        or not policy.check(asked.subjects, asked.action, own(object_)).allowed
    ):
        return refusal
    rows = [
        f'"p, {subject}, {asked.action}, {path}, allow"'
        for subject, path, ruling in policy.voices(
            policy.judge, asked.subjects, asked.action, object_
        )
        if isinstance(ruling, str) or ruling.rule is None
    ]
    by = " and ".join(process.started_by) or "an application that is not known"
    return Denied(
        f"{refusal.message}; process {process.pid} was started by {by}, and own processes only are "
        f"allowed by {mine.rule}",
        f"`llmasos policy add {' '.join(rows)}` allows it; {refusal.hint}",
    )


def _narrows(
    machine: Machine, caller: Caller, asked: Permit, row: Syscall, request: object
) -> bool:
    """Whether the application's own part of a list is allowed, and no more is."""
    policy = machine.policy
    if policy.check(asked.subjects, row.name, row.object).allowed:
        return False
    if isinstance(request, Ps) and request.pid:
        process = machine.processes.find(request.pid, caller.owner)
        if process is not None and not process.is_own(caller):
            return False
    return policy.check(asked.subjects, row.name, row.own).allowed


def _subjects(machine: Machine, caller: Caller, row: Syscall, request: object) -> tuple[str, ...]:
    """The caller, and where a process itself acts or gets a child, all above that too. ESRCH."""
    pid = getattr(request, "pid" if row.acts else "parent", 0)
    if not pid:
        return caller.subjects
    process = machine.processes.get(pid, caller.owner)
    if process.is_own(caller):
        return tuple(dict.fromkeys((*caller.subjects, *process.subjects)))
    return (*caller.subjects, ITSELF, *process.subjects)


def _object(
    machine: Machine, caller: Caller, row: Syscall, request: object, absent: list[int]
) -> str:
    """The path of the table with the request's fields in it; aliases of models resolved."""
    path = row.object
    if "{" not in path:
        return path
    if path.startswith("/dev/image/"):
        return path[: path.index("{")] + machine.images.canonical(_field(path, request))
    if path == "/dev/{device}":
        name = _field(path, request)
        return (
            f"/dev/{RECALL}" if name == RECALL else f"/dev/image/{machine.images.canonical(name)}"
        )
    if path == "{source}":
        path = file_object(_field(path, request))
    return _own(machine, caller, _filled(path, request), absent)


def file_object(path: str) -> str:
    """A path as rules have it."""
    return _ODD.sub(lambda odd: "".join(f"+{byte:02x}" for byte in os.fsencode(odd[0])), path)


def path(caller: Caller, process: Process, rest: str = "") -> str:
    """What a process, or a part of it, is called for a caller."""
    own_ = "own/" if process.is_own(caller) else ""
    return f"/proc/{own_}{process.pid}{rest}"


def _own(machine: Machine, caller: Caller, path: str, absent: list[int]) -> str:
    """The path of a process by its full name, if it is the caller's own.

    So is the name of one that is not there, which is added to `absent`: who may do something to
    own processes learns that there is none, and nobody else does.
    """
    found = _PROCESS.match(path)
    if found is None:
        return path
    process = machine.processes.find(int(found[1]), caller.owner)
    if process is None:
        absent.append(int(found[1]))
    elif not process.is_own(caller):
        return path
    return own(path)


def _filled(path: str, request: object) -> str:
    """A path of the table with the request's field in it."""
    if "{" not in path:
        return path
    return f"{path[: path.index('{')]}{_field(path, request)}{path[path.index('}') + 1 :]}"


def _field(path: str, request: object) -> str:
    return str(getattr(request, path[path.index("{") + 1 : path.index("}")]))
