"""The rules: listed, changed, questioned, tried on what was recorded, learned from it."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import anyio.lowlevel
import anyio.to_thread

from .. import limits
from .. import values as v
from ..abi import TABLE
from ..errors import Errno, SyscallError, TooBig
from ..journal import Recorded
from ..machine import Machine
from ..policy import Decision, Judge, Rule, under
from ..policy.gate import model
from ..policy.judge import Ruling
from ..policy.rules import SLICE, canonical
from .call import Call

_BREATH = 32  # slices of rules between two breaths
_LAX = {v.Effect.DENY: 0, v.Effect.ASK: 1, v.Effect.ALLOW: 2}
_LEARNED = "r:learned"  # a role without rows: an app that has any role may what rows allow it
Subjects = Sequence[str]
Kind = tuple[tuple[str, ...], str, str]  # of calls: who did what to which object


async def policy_list(m: Machine, call: Call, request: v.PolicyList) -> v.Rules:
    own = m.policy.own
    if request.text:
        text = await anyio.to_thread.run_sync(own.read)
        if len(text) > limits.POLICY_CHARS:
            words = f"{own.path} has {len(text)} characters, a reply takes {limits.POLICY_CHARS}"
            raise TooBig(words, "edit the file itself, then `llmasos policy reload`")
        return v.Rules(m.policy.epoch, str(own.path), [], None, text)
    rules = [rule for rule in m.policy.judge.rules if not request.own or rule.file == own.name]
    end = request.after + limits.POLICY_ROWS
    told = [_info(rule) for rule in rules[request.after : end]]
    return v.Rules(m.policy.epoch, str(own.path), told, end if end < len(rules) else None, "")


# --- changes ----------------------------------------------------------------------------------
async def policy_edit(m: Machine, call: Call, request: v.PolicyEdit) -> v.PolicyChanged:
    async with m.changing:  # two changes at once would lose one
        before = await anyio.to_thread.run_sync(m.policy.own.read)
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
        return await anyio.to_thread.run_sync(m.policy.own.earlier)
    if request.text is not None:
        return request.text
    if not (request.add or request.remove):
        return before
    lines = before.removesuffix("\n").split("\n") if before else []  # as rules.py counts them
    for row in request.remove:
        place = next((n for n, line in enumerate(lines) if _row(line) == _row(row) != ""), None)
        if place is None:
            words = f"{m.policy.own.path} has no row `{row}`"
            raise SyscallError(Errno.ENOENT, words, "`llmasos policy list --own` shows them")
        del lines[place]
    if any("\n" in row for row in request.add):
        raise SyscallError(Errno.EINVAL, "a row is one line", "give each row by itself")
    return "".join(f"{line}\n" for line in (*lines, *request.add))


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
    """Rows that came, and rows that went."""
    old, new = await _rows(before), await _rows(after)
    return sorted((new - old).elements()), sorted((old - new).elements())


async def _rows(text: str) -> Counter[str]:
    """How often each row stands there."""
    found = Counter[str]()
    for number, line in enumerate(text.split("\n"), 1):
        found[_row(line)] += 1
        if number % _BREATH == 0:
            await anyio.lowlevel.checkpoint()
    del found[""]
    return found


# --- questions --------------------------------------------------------------------------------
async def policy_check(m: Machine, call: Call, request: v.PolicyCheck) -> v.Verdict:
    if request.call:
        event = await _event(m, call, request.call)
        subjects, action, object_ = tuple(event.subject.split()), event.syscall, event.object
    else:
        subjects, action, object_ = tuple(request.subjects), request.action, request.object
        _makes_sense(subjects, action, object_)
    decision = m.policy.decide(m.policy.judge, subjects, action, object_)
    rulings = _rulings(m, subjects, action, object_)
    change = await _change(m, decision, subjects, action, object_)
    return v.Verdict(decision.effect, action, object_, rulings, change)


def _makes_sense(subjects: Subjects, action: str, object_: str) -> None:
    """EINVAL: a slip of the pen would be told as a deny."""
    if not (subjects and action and object_):
        words = "a question needs subjects, an action and an object, or the number of a call"
        raise SyscallError(Errno.EINVAL, words, "`llmasos policy test --help`")
    if action not in TABLE:
        raise SyscallError(
            Errno.EINVAL, f"there is no syscall {action}", f"known: {', '.join(TABLE)}"
        )
    if not canonical(object_):
        words = f"{object_!a:.100} is not the path of one object"
        raise SyscallError(Errno.EINVAL, words, "as /proc/7/mem or /dev/image/NAME, without a *")


async def _event(m: Machine, call: Call, number: int) -> v.Event:
    """A call that the gate was asked about; another user's only for who may simulate. ENOENT."""
    await m.journal.settle()
    event = await anyio.to_thread.run_sync(m.journal.event, number)
    caller = call.caller
    others = m.policy.check(caller.subjects, "policy_simulate", "/kernel/policy").allowed
    hint = "`llmasos logs --kind refused` lists refusals"
    if event is None or not (others or event.owner in ("", caller.owner)):
        raise SyscallError(Errno.ENOENT, f"the journal has no call {number} of yours", hint)
    if not event.subject:
        words = f"the rules were not asked about {number}: {event.kind} {event.note}"
        raise SyscallError(Errno.ENOENT, words, hint)
    return event


def _rulings(m: Machine, subjects: Subjects, action: str, object_: str) -> list[v.RulingInfo]:
    """Each subject's answer. Who has no voice consents, unless nobody else has one either."""
    found = [_ruling(m, subject, action, object_) for subject in subjects]
    mute = [one.rule is None and m.policy.judge.silent(one.subject) for one in found]
    return [
        replace(one, effect=v.Effect.ALLOW) if silent and not all(mute) else one
        for one, silent in zip(found, mute, strict=True)
    ]


def _ruling(m: Machine, subject: str, action: str, object_: str) -> v.RulingInfo:
    ruling = m.policy.rule(m.policy.judge, subject, action, object_)
    if isinstance(ruling, str):
        return v.RulingInfo(subject, v.Effect.DENY, v.RuleInfo(ruling, "", 0), [])
    rule = _info(ruling.rule) if ruling.rule is not None else None
    return v.RulingInfo(subject, ruling.effect, rule, [_info(one) for one in ruling.way])


async def _change(
    m: Machine, decision: Decision, subjects: Subjects, action: str, object_: str
) -> list[str]:
    """The lines that give the other answer, all of them: allowed if it is not, else denied.

    Each is tried on the rules that matter here, so that what is told works.
    """
    if decision.allowed:
        lasting = [one for one in subjects if not one.startswith("pid:")] or subjects
        return [f"add `p, {lasting[-1]}, {action}, {object_}, deny`"]
    rules = await _matching(m, action, object_)
    found: list[str] = []
    while True:
        judge = await _small(rules)
        refusal = _refusal(m, judge, subjects, action, object_)
        if refusal is None:
            return found
        subject, ruling = refusal
        if isinstance(ruling, str):  # whatever the rules say
            return [ruling]
        if ruling.rule is None:
            rules.append(Rule("p", (subject, action, object_, "allow"), m.policy.own.name, 0))
            found.append(f"add `{rules[-1].text}`")
            continue
        own = [one for one in (ruling.rule, *ruling.way) if one.file == m.policy.own.name]
        if not own:
            return [f"{ruling.rule.file}:{ruling.rule.line} is shipped and beats every allow"]
        rules.remove(own[0])
        found.append(f"remove `{own[0].text}` ({own[0].file}:{own[0].line})")


async def _matching(m: Machine, action: str, object_: str) -> list[Rule]:
    """The rules that can say something of a call, and who has which roles."""
    found: list[Rule] = []
    for number, rule in enumerate(m.policy.judge.rules):
        if number % (4 * SLICE) == 0:
            await anyio.lowlevel.checkpoint()
        if rule.kind == "g" or (rule.fields[1] in (action, "*") and under(object_, rule.fields[2])):
            found.append(rule)
    return found


async def _small(rules: Sequence[Rule]) -> Judge:
    judge = Judge(model(), rules)
    for number, _ in enumerate(judge.build()):
        if number % _BREATH == 0:
            await anyio.lowlevel.checkpoint()
    return judge


def _refusal(
    m: Machine, judge: Judge, subjects: Subjects, action: str, object_: str
) -> tuple[str, Ruling | str] | None:
    """Who refuses first, and by which rule."""
    heard = [(one, m.policy.rule(judge, one, action, object_)) for one in subjects]
    voices = [
        (one, ruling)
        for one, ruling in heard
        if isinstance(ruling, str) or ruling.rule is not None or not judge.silent(one)
    ]
    for one, ruling in voices or heard[:1]:
        if isinstance(ruling, str) or ruling.effect is not v.Effect.ALLOW:
            return one, ruling
    return None


# --- what was recorded ------------------------------------------------------------------------
async def policy_simulate(m: Machine, call: Call, request: v.PolicySimulate) -> v.Simulated:
    """The last RECORDED kinds of calls under other own rules. EINVAL for rules with mistakes.

    What becomes laxer counts as allowed, what becomes stricter as blocked: each says from what to
    what. They are compared with the rules of now.
    """
    judge = await m.policy.judged(request.text)
    since = time.time() - request.since_s
    await m.journal.settle()
    recorded = await anyio.to_thread.run_sync(m.journal.recorded, since)
    kinds = await anyio.to_thread.run_sync(_kinds, recorded)
    blocked: list[v.Difference] = []
    allowed: list[v.Difference] = []
    for number, (kind, calls) in enumerate(kinds):
        if number % 64 == 0:
            await anyio.lowlevel.checkpoint()
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
    return v.Difference(
        list(subjects), action, object_, calls, before.effect, after.effect, after.rule
    )


async def policy_learn(m: Machine, call: Call, request: v.PolicyLearn) -> v.Learned:
    """Rows that allow an app what it, or one process of it, was allowed, and nothing more.

    Only calls that needed its consent count. The role gives it a voice: without one, rows of an
    app can only take away.
    """
    if not request.pid and not request.app:
        raise SyscallError(Errno.EINVAL, "whose calls?", "`llmasos policy learn PID` or APP")
    since = time.time() - request.since_s
    await m.journal.settle()
    recorded = await anyio.to_thread.run_sync(m.journal.recorded, since)
    asked = f"app:{request.app}" if request.app else f"pid:{request.pid}"
    app, needed = await anyio.to_thread.run_sync(_needed, recorded, asked)
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
        needed[one.syscall, _any_process(one.object)] += one.calls
    return app, needed


def _any_process(object_: str) -> str:
    """The next run has another pid: what holds of this one has to hold of its own then."""
    parts = object_.split("/")
    return "/proc/*" if parts[1:2] == ["proc"] and len(parts) > 2 else object_


def _info(rule: Rule) -> v.RuleInfo:
    return v.RuleInfo(rule.text, rule.file, rule.line)
