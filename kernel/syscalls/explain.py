"""policy_check: the decision on a call, the deciding rules, and a tested change of the rules."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..abi import values as v
from ..abi.errors import Denied, Errno, SyscallError
from ..abi.table import TABLE
from ..access.decisions import PROCESS_SEPARATOR, Decision, Policy, model, subject_objects
from ..access.evaluator import Evaluation, Evaluator
from ..access.identity import Caller
from ..access.permissions import Permissions, recorded_checks
from ..access.rules import Rule, canonical, matching, own_path
from ..storage.journal import Journal
from ..storage.threads import FairThreads
from ..yield_point import YieldPoint, release
from .call import CallContext

Subjects = Sequence[str]


@dataclass(frozen=True, slots=True)
class ExplainSyscalls:
    """The handlers, and the parts of the kernel that they use."""

    policy: Policy
    permissions: Permissions
    journal: Journal
    readers: FairThreads  # that read the journal, shared fairly between users

    async def policy_check(self, call: CallContext, request: v.PolicyCheck) -> v.Verdict:
        if request.call:
            event = await self._event(call, request.call)
            subjects = tuple(event.subject.split())
            checks = recorded_checks(event.syscall, event.object)
        else:
            subjects = tuple(request.subjects)
            checks = ((request.action, request.object),)
            _check_question(subjects, request.action, request.object)
            self._check_subjects(call, subjects)
        decision, action, object_ = self._deciding(subjects, checks)
        rulings = self._rulings(subjects, action, object_)
        change, final = await self._change(decision, subjects, action, object_)
        return v.Verdict(decision.effect, action, object_, rulings, change, final)

    def _deciding(
        self, subjects: Subjects, checks: Sequence[tuple[str, str]]
    ) -> tuple[Decision, str, str]:
        """The first check that is not allowed, else the first: decision, action and object."""
        found = [
            (self.policy.decide(self.policy.evaluator, subjects, action, object_), action, object_)
            for action, object_ in checks
        ]
        return next((one for one in found if not one[0].allowed), found[0])

    def _check_subjects(self, call: CallContext, subjects: Subjects) -> None:
        """EACCES: only callers that may list the rules may ask about other users."""
        caller = call.caller
        others = [one for one in subjects if one.startswith("u:") and one not in caller.subjects]
        may_list = self.policy.check(caller.subjects[:1], "policy_list", "/kernel/policy").allowed
        if others and not may_list:
            message = f"{caller.subjects[0]} is not allowed to ask about {others[0]}"
            raise Denied(message, "ask about yourself, or let the machine's owner ask")

    async def _event(self, call: CallContext, number: int) -> v.Event:
        """The journal's event of a call; of another user's only for callers that may simulate.

        ENOENT.
        """
        await self.journal.drain()
        event = await self.readers.run(call.caller.user, self.journal.event, number)
        caller = call.caller
        sees_all = self.policy.check(caller.subjects, "policy_simulate", "/kernel/policy").allowed
        hint = "`llmasos logs --kind refused` lists refusals"
        mine = event is not None and event.owner in ("", caller.user) and self._sees(caller, event)
        if event is None or not (sees_all or mine):
            raise SyscallError(Errno.ENOENT, f"the journal has no call {number} of yours", hint)
        if event.kind == "process" or not event.subject:
            message = f"no rules were evaluated for event {number}: {event.kind} {event.note}"
            raise SyscallError(Errno.ENOENT, message, hint)
        return event

    def _sees(self, caller: Caller, event: v.Event) -> bool:
        """Calls of other applications are visible only to callers that may follow them."""
        all_ = self.policy.check(caller.subjects, "watch", "/journal").allowed
        return all_ or self.permissions.may_see(caller, event)

    def _rulings(self, subjects: Subjects, action: str, object_: str) -> list[v.RulingInfo]:
        """Each subject's result. A subject that abstains shows allow, unless all abstain."""
        policy = self.policy
        found = policy.evaluations(policy.evaluator, subjects, action, object_)
        evaluated = {(subject, path) for subject, path, _ in found}
        rulings: list[v.RulingInfo] = []
        for subject, path in subject_objects(subjects, object_):
            ruling = self._ruling(subject, action, path)
            abstains = evaluated and (subject, path) not in evaluated
            rulings.append(replace(ruling, effect=v.Effect.ALLOW) if abstains else ruling)
        return rulings

    def _ruling(self, subject: str, action: str, object_: str) -> v.RulingInfo:
        ruling = self.policy.evaluate(self.policy.evaluator, subject, action, object_)
        if isinstance(ruling, str):
            return v.RulingInfo(subject, v.Effect.DENY, v.RuleInfo(ruling, "", 0), [])
        rule = rule_info(ruling.rule) if ruling.rule is not None else None
        return v.RulingInfo(
            subject, ruling.effect, rule, [rule_info(one) for one in ruling.role_path]
        )

    async def _change(
        self, decision: Decision, subjects: Subjects, action: str, object_: str
    ) -> tuple[list[v.RuleChange], str]:
        """The changes of the user rules that reverse the decision, or why none does.

        They are tested on the matching rules, so that the reported changes work.
        """
        if decision.allowed:
            temporary = ("pid:", PROCESS_SEPARATOR)
            lasting = [one for one in subjects if one[:4] not in temporary] or subjects
            return [_addition((lasting[-1], action, object_, "deny"))], ""
        rules = await self._matching(object_)
        found: list[v.RuleChange] = []
        while True:
            evaluator = await _evaluator(rules)
            refusal = refusing(self.policy, evaluator, subjects, action, object_)
            await release(evaluator.take_apart())
            if refusal is None:
                return found, ""
            subject, path, ruling = refusal
            if isinstance(ruling, str):  # refused independently of the rules
                return [], ruling
            if ruling.rule is None:
                fields = (subject, action, path, "allow")
                rules.append(Rule("p", fields, self.policy.user_rules.name, 0))
                found.append(_addition(fields))
                continue
            deciding, file = (ruling.rule, *ruling.role_path), self.policy.user_rules.name
            user_rules = [one for one in deciding if one.file == file]
            if not user_rules:
                place = f"{ruling.rule.file}:{ruling.rule.line}"
                return [], f"{place} is a shipped rule: it overrides every allow"
            rules.remove(user_rules[0])
            found.append(v.RuleChange(add=False, rule=rule_info(user_rules[0])))

    async def _matching(self, object_: str) -> list[Rule]:
        """The rules that match the object, and all role assignments: no other can matter.

        A process may be an own one of some subjects: its path as such has all patterns.
        """
        found: list[Rule] = []
        patterns = frozenset(matching(own_path(object_)))
        yield_point = YieldPoint()
        for rule in self.policy.evaluator.rules:
            await yield_point()
            if rule.kind == "g" or rule.fields[2] in patterns:
                found.append(rule)
        return found


def refusing(
    policy: Policy, evaluator: Evaluator, subjects: Subjects, action: str, object_: str
) -> tuple[str, str, Evaluation | str] | None:
    """The first subject that refuses, the object, and its evaluation."""
    found = list(policy.evaluations(evaluator, subjects, action, object_))
    if not found:  # all abstain: the first subject lacks an allow
        found = [
            (first, object_, policy.evaluate(evaluator, first, action, object_))
            for first in subjects[:1]
        ]
    for one, path, ruling in found:
        if isinstance(ruling, str) or ruling.effect is not v.Effect.ALLOW:
            return one, path, ruling
    return None


def _addition(fields: tuple[str, str, str, str]) -> v.RuleChange:
    return v.RuleChange(add=True, rule=rule_info(Rule("p", fields, "", 0)))


def _check_question(subjects: Subjects, action: str, object_: str) -> None:
    """EINVAL for a typing error, which would otherwise be reported as a deny."""
    if not (subjects and action and object_):
        message = "policy_check needs subjects, an action and an object, or the number of a call"
        raise SyscallError(Errno.EINVAL, message, "see `llmasos policy test --help`")
    if action not in TABLE:
        hint = f"the syscalls are {', '.join(TABLE)}"
        raise SyscallError(Errno.EINVAL, f"no syscall {action}", hint)
    if not canonical(object_):
        message = f"{object_!a:.100} is not the path of one object"
        hint = "give a path such as /proc/7/mem or /dev/image/NAME, without a *"
        raise SyscallError(Errno.EINVAL, message, hint)


async def _evaluator(rules: Sequence[Rule]) -> Evaluator:
    evaluator = Evaluator(model(), rules)
    yield_point = YieldPoint()
    for _ in evaluator.build():
        await yield_point()
    return evaluator


def rule_info(rule: Rule) -> v.RuleInfo:
    return v.RuleInfo(rule.text, rule.file, rule.line)
