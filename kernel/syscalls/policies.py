"""The rules: listed, changed, questioned, tried on what was recorded, learned from it."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from io import StringIO

from .. import limits
from .. import values as v
from ..abi import TABLE
from ..breath import Breath, release
from ..errors import Errno, SyscallError, TooBig
from ..journal import Recorded
from ..machine import Machine
from ..policy import ITSELF, Judge, about
from .call import Call
from .explain import rule_info

_LAX = {v.Effect.DENY: 0, v.Effect.ASK: 1, v.Effect.ALLOW: 2}
_LEARNED = "r:learned"  # a role without rows: an app that has any role may what rows allow it
Kind = tuple[tuple[str, ...], str, str]  # of calls: who did what to which object


async def policy_list(m: Machine, call: Call, request: v.PolicyList) -> v.Rules:
    own = m.policy.own
    if request.text:
        text = await m.readers.run(call.caller.owner, own.read)
        if len(text) > limits.POLICY_CHARS:
            words = f"{own.path} has {len(text)} characters, a reply takes {limits.POLICY_CHARS}"
            raise TooBig(words, "edit the file itself, then `llmasos policy reload`")
        return v.Rules(m.policy.epoch, str(own.path), [], None, text)
    rules = [rule for rule in m.policy.judge.rules if not request.own or rule.file == own.name]
    end = request.after + limits.POLICY_ROWS
    told = [rule_info(rule) for rule in rules[request.after : end]]
    return v.Rules(m.policy.epoch, str(own.path), told, end if end < len(rules) else None, "")


# --- changes ----------------------------------------------------------------------------------
async def policy_edit(m: Machine, call: Call, request: v.PolicyEdit) -> v.PolicyChanged:
    async with m.changing:  # two changes at once would lose one
        before = await m.readers.run(call.caller.owner, m.policy.own.read)
        text = await _changed(m, request, before)
        mistakes = await _mistakes(m, call, text)
        added, removed = await _difference(m.policy.text, text)
        if not mistakes and not request.dry:
            await m.revise(text, undo=request.undo)
        elif mistakes and not request.dry and request.text is None:
            words = _blame(mistakes, text, request.add)
            raise SyscallError(Errno.EINVAL, words, "nothing was changed")
        most = limits.DIFFERENCES
        more = sum(max(0, len(rows) - most) for rows in (added, removed, mistakes))
        return v.PolicyChanged(m.policy.epoch, added[:most], removed[:most], mistakes[:most], more)


async def _changed(m: Machine, request: v.PolicyEdit, before: str) -> str:
    """The text of the file after the change. ENOENT for a row that is not there."""
    if request.undo:
        if before != m.policy.text:
            words = f"{m.policy.own.path} was edited and never came into force: undo would lose it"
            hint = "`llmasos policy reload`, or put back what you do not want by hand"
            raise SyscallError(Errno.EBUSY, words, hint)
        return await m.readers.run(m.owner, m.policy.own.earlier)
    if request.text is not None:
        return request.text
    if not (request.add or request.remove):
        return before
    lines = before.removesuffix("\n").split("\n") if before else []  # as rules.py counts them
    if request.remove:
        lines = await _without(m, lines, request.remove)
    if any("\n" in row for row in request.add):
        raise SyscallError(Errno.EINVAL, "a row is one line", "give each row by itself")
    return "".join(f"{line}\n" for line in (*lines, *request.add))


async def _without(m: Machine, lines: Sequence[str], rows: Sequence[str]) -> list[str]:
    """The lines without the first one of each row. ENOENT for a row that is not there."""
    going = Counter(map(_row, rows))
    breath = Breath()
    left: list[str] = []
    for line in lines:
        row = _row(line)
        if row and going[row] > 0:
            going[row] -= 1
        else:
            left.append(line)
        await breath()
    missing = next(iter(+going), None)
    if missing is not None:
        words = f"{m.policy.own.path} has no row `{missing}`"
        raise SyscallError(Errno.ENOENT, words, "`llmasos policy list --own` shows them")
    return left


async def _mistakes(m: Machine, call: Call, text: str) -> list[str]:
    """What is wrong with the text, or that who brings it could bring no other afterwards."""
    try:
        judge = await m.policy.judged(text)
    except SyscallError:
        return await m.policy.mistakes(text)
    caller = call.caller
    for subjects, action, object_ in (
        (caller.subjects, "policy_edit", "/kernel/policy"),
        (caller.subjects[:1], "hello", f"/kernel/profile/{caller.profile}"),
    ):
        decision = m.policy.decide(judge, subjects, action, object_)
        if not decision.allowed:
            place = decision.rule.partition(": ")[0] or m.policy.own.name
            return [f"{place}: with this you could change the rules no more"]
    parts = judge.parts()
    del judge
    await release(parts)
    return []


def _blame(mistakes: Sequence[str], text: str, add: Sequence[str]) -> str:
    """The first mistake, by the row itself where it stands in no file."""
    first, more = mistakes[0], len(mistakes) - 1
    place, _, why = first.partition(": ")
    line = place.rpartition(":")[2]
    number = int(line) - 1 - (text.count("\n") - len(add)) if line.isdigit() else -1
    if 0 <= number < len(add):
        first = f"`{add[number].strip()}`: {why}"
    return f"{first} (and {more} more)" if more else first


def _row(line: str) -> str:
    """A row without its comment, as rules are spelled."""
    return ", ".join(field.strip() for field in line.split("#", 1)[0].split(","))


async def _difference(before: str, after: str) -> tuple[list[str], list[str]]:
    """Rows that came, and rows that went, as they stand."""
    if before == after:
        return [], []
    old, new = await _rows(before), await _rows(after)
    difference = await _surplus(new, old), await _surplus(old, new)
    rows = [*old, *new]
    del old, new
    await release(rows)
    return difference


async def _surplus(many: Counter[str], few: Counter[str]) -> list[str]:
    found, breath = list[str](), Breath()
    for row, count in many.items():
        found += [row] * (count - few.get(row, 0))
        await breath()
    return found


async def _rows(text: str) -> Counter[str]:
    """How often each row stands there."""
    found, breath = Counter[str](), Breath()
    for line in StringIO(text, newline="\n"):
        found[_row(line)] += 1
        await breath()
    del found[""]
    return found


# --- what was recorded ------------------------------------------------------------------------
async def policy_simulate(m: Machine, call: Call, request: v.PolicySimulate) -> v.Simulated:
    """The last RECORDED kinds of calls under other own rules. EINVAL for rules with mistakes.

    What becomes laxer counts as allowed, what becomes stricter as blocked: each says from what to
    what. They are compared with the rules of now.
    """
    judge = await m.policy.judged(request.text)
    since = time.time() - request.since_s
    await m.journal.settle()
    recorded = await m.readers.run(call.caller.owner, m.journal.recorded, since)
    kinds = await m.readers.run(call.caller.owner, _kinds, recorded)
    blocked: list[v.Difference] = []
    allowed: list[v.Difference] = []
    breath = Breath()
    for kind, calls in kinds:
        await breath()
        difference = _compare(m, judge, kind, calls)
        if difference is not None:
            laxer = _LAX[difference.after] > _LAX[difference.before]
            (allowed if laxer else blocked).append(difference)
    most = limits.DIFFERENCES
    more = sum(max(0, len(side) - most) for side in (blocked, allowed))
    return v.Simulated(sum(calls for _, calls in kinds), blocked[:most], allowed[:most], more)


def _kinds(recorded: Iterable[Recorded]) -> list[tuple[Kind, int]]:
    """Once each, however they ended; what was called most comes first."""
    found = Counter[Kind]()
    for one in recorded:
        found[one.subjects, one.syscall, one.object] += one.calls
    return found.most_common()


def _compare(m: Machine, judge: Judge, kind: Kind, calls: int) -> v.Difference | None:
    """None when the answer stays."""
    before = m.policy.check(*kind)
    after = m.policy.decide(judge, *kind)
    if before.effect is after.effect:
        return None
    subjects, action, object_ = kind
    who = [one for one in subjects if one != ITSELF]
    return v.Difference(who, action, object_, calls, before.effect, after.effect, after.rule)


async def policy_learn(m: Machine, call: Call, request: v.PolicyLearn) -> v.Learned:
    """Rows that allow an app what it, or one process of it, was allowed, and nothing more.

    Only calls that needed its consent count. The role gives it a voice: without one, rows of an
    app can only take away.
    """
    if not request.pid and not request.app:
        raise SyscallError(Errno.EINVAL, "whose calls?", "`llmasos policy learn PID` or APP")
    since = time.time() - request.since_s
    await m.journal.settle()
    recorded = await m.readers.run(call.caller.owner, m.journal.recorded, since)
    asked = f"app:{request.app}" if request.app else f"pid:{request.pid}"
    app, needed = await m.readers.run(call.caller.owner, _needed, recorded, asked)
    process = next((one for one in m.processes.all() if one.pid == request.pid), None)
    who = f"app:{request.app or (process.app if process else app) or 'APP'}"
    rows = [f"p, {who}, {action}, {object_}, allow" for action, object_ in sorted(needed)]
    return v.Learned(needed.total(), [f"g, {who}, {_LEARNED}", *rows] if rows else [])


def _needed(recorded: Iterable[Recorded], asked: str) -> tuple[str, Counter[tuple[str, str]]]:
    """What had its consent, and the app that stood before it: a process's own, if it is one."""
    app = ""
    needed = Counter[tuple[str, str]]()
    for one in recorded:
        if one.errno or asked not in one.subjects:
            continue
        above = one.subjects[: one.subjects.index(asked)]
        app = next((name[4:] for name in reversed(above) if name.startswith("app:")), app)
        path = dict(about(one.subjects, one.object))[asked]
        needed[one.syscall, _any_process(path)] += one.calls
        # The journal has the first object of a call; the second is a process of its own, too.
        if _has_second(one):
            needed[one.syscall, "/proc/own/*"] += 0
    return app, needed


def _has_second(one: Recorded) -> bool:
    """A child is spawned by the consent of its parent, so the parent is among the subjects."""
    below = one.syscall != "spawn" or any(name.startswith("pid:") for name in one.subjects)
    return below and one.syscall in TABLE and TABLE[one.syscall].second != ""


def _any_process(object_: str) -> str:
    """The next run has another pid: what holds of this one has to hold of its own then."""
    parts = object_.split("/")
    if parts[1:3] == ["proc", "own"] and len(parts) > 3:
        return "/proc/own/*"
    return "/proc/*" if parts[1:2] == ["proc"] and len(parts) > 2 else object_
