"""The trap's question to the gate: who wants to do what to which object.

A refusal is journaled, and its number is what `llmasos policy explain` takes.
"""

import re
import time
from dataclasses import dataclass

from .abi import Syscall
from .errors import Errno
from .identity import Caller
from .journal import Entry
from .machine import Machine

# Files have names that rules cannot hold: each byte of an odd letter is +HH there.
_ODD = re.compile(r"[^A-Za-z0-9._:/-]")


@dataclass(slots=True)
class Permit:
    """A question, and after it the rule that allowed it."""

    subjects: tuple[str, ...]
    told: str  # they, as the journal has them
    action: str
    object: str
    rule: str = ""


def of(machine: Machine, caller: Caller, row: Syscall, request: object) -> Permit:
    """For a call. EACCES, and ESRCH for a process that is not there."""
    begin = time.perf_counter()
    try:
        subjects = _subjects(machine, caller, row, request)
        told = caller.told if subjects is caller.subjects else " ".join(subjects)
        asked = Permit(subjects, told, row.name, _object(machine, row, request))
        return ask(machine, asked, caller.owner, getattr(request, "pid", 0))
    finally:
        took = time.perf_counter() - begin
        machine.counters.gate_s += took
        machine.counters.gate_last_s.append(took)


def ask(machine: Machine, asked: Permit, owner: str, pid: int = 0) -> Permit:
    """The same with the rule that allows it. EACCES, journaled, when none does."""
    decision = machine.policy.check(asked.subjects, asked.action, asked.object)
    if decision.allowed:
        asked.rule = decision.rule
        return asked
    machine.counters.refused += 1
    number = machine.journal.append(Entry(
        "refused", pid, owner, syscall=asked.action, object=asked.object, errno=Errno.EACCES,
        note=decision.rule or f"no rule for {decision.subject}", subject=asked.told,
    ))  # fmt: skip
    raise machine.policy.refusal(asked.subjects, asked.action, asked.object, number)


def also(machine: Machine, caller: Caller, action: str, path: str) -> None:
    """A call is about a second object. EACCES."""
    ask(machine, Permit(caller.subjects, caller.told, action, path), caller.owner)


def _subjects(machine: Machine, caller: Caller, row: Syscall, request: object) -> tuple[str, ...]:
    """The caller, and where a process itself acts or gets a child, all above that too. ESRCH for
    one that is not there: it must not come between this question and the call."""
    pid = getattr(request, "pid" if row.acts else "parent", 0)
    if not pid:
        return caller.subjects
    process = machine.processes.get(pid, caller.owner)
    return tuple(dict.fromkeys((*caller.subjects, *process.subjects)))


def _object(machine: Machine, row: Syscall, request: object) -> str:
    """The path of the table with the request's fields in it; aliases of models resolved."""
    path = row.object
    if "{" not in path:
        return path
    field = path[path.index("{") + 1 : path.index("}")]
    value = str(getattr(request, field))
    if path.startswith("/dev/image/"):
        value = machine.images.canonical(value)
    if field == "source":
        value = _ODD.sub(lambda odd: "".join(f"+{byte:02x}" for byte in odd[0].encode()), value)
    return path.replace(f"{{{field}}}", value)
