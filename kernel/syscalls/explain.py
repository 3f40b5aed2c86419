"""What the rules say of a call, why, and what would change the answer: tried before it is told."""

from collections.abc import Sequence
from dataclasses import replace

from .. import permit
from .. import values as v
from ..abi import TABLE
from ..breath import Breath
from ..errors import Denied, Errno, SyscallError
from ..identity import Caller
from ..machine import Machine
from ..policy import ITSELF, Decision, Judge, Rule, Ruling, about, canonical, model, under
from .call import Call

Subjects = Sequence[str]


async def policy_check(m: Machine, call: Call, request: v.PolicyCheck) -> v.Verdict:
    if request.call:
        event = await _event(m, call, request.call)
        subjects, action, object_ = tuple(event.subject.split()), event.syscall, event.object
    else:
        subjects, action, object_ = tuple(request.subjects), request.action, request.object
        _makes_sense(subjects, action, object_)
        _about_oneself(m, call, subjects)
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


def _about_oneself(m: Machine, call: Call, subjects: Subjects) -> None:
    """EACCES: what the rules say of other users is for whoever may list them."""
    caller = call.caller
    others = [one for one in subjects if one.startswith("u:") and one not in caller.subjects]
    lists = m.policy.check(caller.subjects[:1], "policy_list", "/kernel/policy").allowed
    if others and not lists:
        words = f"you may ask about yourself, {caller.subjects[0]}, and not about {others[0]}"
        raise Denied(words, "the machine's owner may")


async def _event(m: Machine, call: Call, number: int) -> v.Event:
    """A call that the gate was asked about; another user's only for who may simulate. ENOENT."""
    await m.journal.settle()
    event = await m.readers.run(call.caller.owner, m.journal.event, number)
    caller = call.caller
    others = m.policy.check(caller.subjects, "policy_simulate", "/kernel/policy").allowed
    hint = "`llmasos logs --kind refused` lists refusals"
    mine = event is not None and event.owner in ("", caller.owner) and _sees(m, caller, event)
    if event is None or not (others or mine):
        raise SyscallError(Errno.ENOENT, f"the journal has no call {number} of yours", hint)
    if event.kind == "process" or not event.subject:
        words = f"the rules were not asked about {number}: {event.kind} {event.note}"
        raise SyscallError(Errno.ENOENT, words, hint)
    return event


def _sees(m: Machine, caller: Caller, event: v.Event) -> bool:
    """Who may not follow the calls of other applications may not ask about them either."""
    all_ = m.policy.check(caller.subjects, "watch", "/journal").allowed
    return all_ or permit.sees(m, caller, event)


def _rulings(m: Machine, subjects: Subjects, action: str, object_: str) -> list[v.RulingInfo]:
    """Each subject's answer. Who has no voice consents, unless nobody else has one either."""
    found = [_ruling(m, subject, action, path) for subject, path in about(subjects, object_)]
    loud = {one for one, _, _ in m.policy.voices(m.policy.judge, subjects, action, object_)}
    return [
        replace(one, effect=v.Effect.ALLOW) if loud and one.subject not in loud else one
        for one in found
    ]


def _ruling(m: Machine, subject: str, action: str, object_: str) -> v.RulingInfo:
    ruling = m.policy.rule(m.policy.judge, subject, action, object_)
    if isinstance(ruling, str):
        return v.RulingInfo(subject, v.Effect.DENY, v.RuleInfo(ruling, "", 0), [])
    rule = rule_info(ruling.rule) if ruling.rule is not None else None
    return v.RulingInfo(subject, ruling.effect, rule, [rule_info(one) for one in ruling.way])


async def _change(
    m: Machine, decision: Decision, subjects: Subjects, action: str, object_: str
) -> list[str]:
    """The lines that give the other answer, all of them: allowed if it is not, else denied.

    Each is tried on the rules that matter here, so that what is told works.
    """
    if decision.allowed:
        lasting = [one for one in subjects if one[:4] not in ("pid:", ITSELF)] or subjects
        return [f"add `p, {lasting[-1]}, {action}, {object_}, deny`"]
    rules = await _matching(m, action, object_)
    found: list[str] = []
    while True:
        judge = await _small(rules)
        refusal = _refusal(m, judge, subjects, action, object_)
        if refusal is None:
            return found
        subject, path, ruling = refusal
        if isinstance(ruling, str):  # whatever the rules say
            return [ruling]
        if ruling.rule is None:
            rules.append(Rule("p", (subject, action, path, "allow"), m.policy.own.name, 0))
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
    breath = Breath()
    for rule in m.policy.judge.rules:
        await breath()
        if rule.kind == "g" or (rule.fields[1] in (action, "*") and under(object_, rule.fields[2])):
            found.append(rule)
    return found


async def _small(rules: Sequence[Rule]) -> Judge:
    judge = Judge(model(), rules)
    breath = Breath()
    for _ in judge.build():
        await breath()
    return judge


def _refusal(
    m: Machine, judge: Judge, subjects: Subjects, action: str, object_: str
) -> tuple[str, str, Ruling | str] | None:
    """Who refuses first, of which object, and by which rule."""
    voices = list(m.policy.voices(judge, subjects, action, object_))
    heard = [(one, object_, m.policy.rule(judge, one, action, object_)) for one in subjects[:1]]
    for one, path, ruling in voices or heard:
        if isinstance(ruling, str) or ruling.effect is not v.Effect.ALLOW:
            return one, path, ruling
    return None


def rule_info(rule: Rule) -> v.RuleInfo:
    return v.RuleInfo(rule.text, rule.file, rule.line)
