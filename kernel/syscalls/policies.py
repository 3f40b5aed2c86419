"""The policy rules: list, edit, simulate on recorded calls, and learn rules from them."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..abi import limits
from ..abi import values as v
from ..abi.errors import Errno, SyscallError, TooBig
from ..abi.table import TABLE
from ..access.decisions import PROCESS_SEPARATOR, Policy, subject_objects
from ..access.evaluator import Evaluation, Evaluator
from ..access.permissions import recorded_checks
from ..access.reauthorisation import PolicyChanges
from ..access.rules import Mistake, split_lines
from ..process.table import ProcessTable
from ..storage.journal import Journal, Recorded
from ..storage.threads import FairThreads
from ..yield_point import YieldPoint, release
from .call import CallContext
from .explain import refusing, rule_info

_LAX = {v.Effect.DENY: 0, v.Effect.ASK: 1, v.Effect.ALLOW: 2}
_LEARNED = "r:learned"  # without rows of its own: rows of an app without a role can only deny
Check = tuple[tuple[str, ...], str, str]  # subjects, action, object


@dataclass(frozen=True, slots=True)
class PolicySyscalls:
    """The handlers, and the parts of the kernel that they use."""

    policy: Policy
    changes: PolicyChanges
    journal: Journal
    processes: ProcessTable
    readers: FairThreads  # that read journal and rules, shared fairly between users

    async def policy_list(self, call: CallContext, request: v.PolicyList) -> v.Rules:
        user_rules = self.policy.user_rules
        if request.text:
            text = await self.readers.run(call.caller.user, user_rules.read)
            if len(text) > limits.POLICY_CHARS:
                count, most = len(text), limits.POLICY_CHARS
                message = f"{user_rules.path} has {count} characters, the limit is {most}"
                raise TooBig(message, "edit the file directly, then `llmasos policy reload`")
            return v.Rules(self.policy.epoch, str(user_rules.path), [], None, text)
        rules = [
            rule
            for rule in self.policy.evaluator.rules
            if not request.own or rule.file == user_rules.name
        ]
        end = request.after + limits.POLICY_ROWS
        rows = [rule_info(rule) for rule in rules[request.after : end]]
        return v.Rules(
            self.policy.epoch, str(user_rules.path), rows, end if end < len(rules) else None, ""
        )

    # --- changes ----------------------------------------------------------------------------------
    async def policy_edit(self, call: CallContext, request: v.PolicyEdit) -> v.PolicyChanged:
        async with self.changes.lock:  # concurrent edits would lose one of them
            before = await self.readers.run(call.caller.user, self.policy.user_rules.read)
            text = await self._changed(call, request, before)
            checked = await self._checked(call, text, request.file if request.dry else "")
            # For an editor, mistakes of a `text` are in the reply, with the difference; `add` and
            # `remove` raise them.
            mistakes = checked if isinstance(checked, list) else []
            added, removed = await _difference(self.policy.text, text)
            if isinstance(checked, Evaluator):
                await self._finish(request, text, checked)
            elif not request.dry and request.text is None:
                message = self._describe(mistakes, text, request.add)
                raise SyscallError(Errno.EINVAL, message, "the rules are unchanged")
            most = limits.DIFFERENCES
            more = sum(max(0, len(rows) - most) for rows in (added, removed, mistakes))
            shown = [str(one) for one in mistakes[:most]]
            return v.PolicyChanged(self.policy.epoch, added[:most], removed[:most], shown, more)

    async def _changed(self, call: CallContext, request: v.PolicyEdit, before: str) -> str:
        """The text of the file after the change.

        ENOENT for a missing row, EINVAL for an added one of several lines, EBUSY when undo would
        discard edits that were not loaded.
        """
        if request.undo:
            if before != self.policy.text:
                path = self.policy.user_rules.path
                message = f"{path} was edited and not reloaded: undo would discard the edits"
                hint = "`llmasos policy reload` loads them; or revert them in an editor"
                raise SyscallError(Errno.EBUSY, message, hint)
            return await self.readers.run(call.caller.user, self.policy.user_rules.previous)
        if request.text is not None:
            return request.text
        if not (request.add or request.remove):
            return before
        lines = before.removesuffix("\n").split("\n") if before else []  # as rules.py counts them
        if request.remove:
            lines = await self._without(lines, request.remove)
        if any("\n" in row for row in request.add):
            raise SyscallError(Errno.EINVAL, "a row is one line", "pass each row separately")
        return "".join(f"{line}\n" for line in (*lines, *request.add))

    async def _without(self, lines: Sequence[str], rows: Sequence[str]) -> list[str]:
        """The lines without the first occurrence of each row. ENOENT for a missing row."""
        removed = Counter(map(_row, rows))
        yield_point = YieldPoint()
        left: list[str] = []
        for line in lines:
            row = _row(line)
            if row and removed[row] > 0:
                removed[row] -= 1
            else:
                left.append(line)
            await yield_point()
        missing = next(iter(+removed), None)
        if missing is not None:
            message = f"{self.policy.user_rules.path} has no row `{missing}`"
            raise SyscallError(Errno.ENOENT, message, "`llmasos policy list --own` lists the rows")
        return left

    async def _finish(self, request: v.PolicyEdit, text: str, evaluator: Evaluator) -> None:
        """Put the checked rules into force, or drop them: they were only tried."""
        if request.dry:
            await release(evaluator.take_apart())
        else:
            await self.changes.replace_user_rules(text, evaluator, undo=request.undo)

    async def _checked(self, call: CallContext, text: str, file: str) -> Evaluator | list[Mistake]:
        """The evaluator of the text, or its mistakes.

        A change after which the caller could no longer edit the rules is a mistake, too.
        """
        try:
            evaluator = await self.policy.evaluator_for(text, file)
        except SyscallError:
            return await self.policy.mistakes(text, file)
        caller = call.caller
        for subjects, action, object_ in (
            (caller.subjects, "policy_edit", "/kernel/policy"),
            (caller.subjects[:1], "hello", f"/kernel/profile/{caller.profile}"),
        ):
            refusal = refusing(self.policy, evaluator, subjects, action, object_)
            if refusal is not None:
                await release(evaluator.take_apart())
                rule = refusal[2].rule if isinstance(refusal[2], Evaluation) else None
                unknown = file or self.policy.user_rules.name, 0
                place = (rule.file, rule.line) if rule is not None else unknown
                return [Mistake(*place, "after this change you could no longer edit the rules")]
        return evaluator

    def _describe(self, mistakes: Sequence[Mistake], text: str, add: Sequence[str]) -> str:
        """The first mistake; an added row, which is in no file yet, is quoted."""
        first, more = mistakes[0], len(mistakes) - 1
        number = first.line - 1 - (text.count("\n") - len(add))  # of the added row
        added = first.file == self.policy.user_rules.name and 0 <= number < len(add)
        shown = f"`{add[number].strip()}`: {first.why}" if added else str(first)
        return f"{shown} (and {more} more)" if more else shown

    # --- recorded calls ---------------------------------------------------------------------------
    async def policy_simulate(self, call: CallContext, request: v.PolicySimulate) -> v.Simulated:
        """Decide the recorded calls by another text of the user rules. EINVAL for invalid rules.

        They are those of up to limits.RECORDED rows of the journal, newest first. Compared with
        the rules in force, a less strict effect counts as allowed and a stricter one as blocked;
        each difference has both effects.
        """
        evaluator = await self.policy.evaluator_for(request.text, request.file)
        try:
            return await self._simulated(evaluator, call.caller.user, request.since_s)
        finally:
            await release(evaluator.take_apart())

    async def _simulated(self, evaluator: Evaluator, user: str, since_s: float) -> v.Simulated:
        since = time.time() - since_s
        await self.journal.drain()
        recorded = await self.readers.run(user, self.journal.recorded, since)
        total, checks = await self.readers.run(user, _checks, recorded)
        blocked: list[v.Difference] = []
        allowed: list[v.Difference] = []
        yield_point = YieldPoint()
        for check, calls in checks:
            await yield_point()
            difference = self._compare(evaluator, check, calls)
            if difference is not None:
                laxer = _LAX[difference.after] > _LAX[difference.before]
                (allowed if laxer else blocked).append(difference)
        most = limits.DIFFERENCES
        more = sum(max(0, len(side) - most) for side in (blocked, allowed))
        return v.Simulated(total, blocked[:most], allowed[:most], more)

    def _compare(self, evaluator: Evaluator, check: Check, calls: int) -> v.Difference | None:
        """None when the effect is the same."""
        before = self.policy.decide(self.policy.evaluator, *check)  # the cache is for callers
        after = self.policy.decide(evaluator, *check)
        if before.effect is after.effect:
            return None
        subjects, action, object_ = check
        who = [one for one in subjects if one != PROCESS_SEPARATOR]
        return v.Difference(who, action, object_, calls, before.effect, after.effect, after.rule)

    async def policy_learn(self, call: CallContext, request: v.PolicyLearn) -> v.Learned:
        """Rows that allow an app exactly what it, or one of its processes, was allowed.

        Only calls that the app was evaluated for count. The row that assigns a role is needed
        because the rows of an app without a role can only deny.
        """
        if not request.pid and not request.app:
            message = "policy_learn needs a pid or an app"
            raise SyscallError(Errno.EINVAL, message, "see `llmasos policy learn --help`")
        since = time.time() - request.since_s
        await self.journal.drain()
        recorded = await self.readers.run(call.caller.user, self.journal.recorded, since)
        subject = f"app:{request.app}" if request.app else f"pid:{request.pid}"
        app, needed = await self.readers.run(call.caller.user, _needed, recorded, subject)
        process = next((one for one in self.processes.all() if one.pid == request.pid), None)
        who = f"app:{request.app or (process.app if process else app) or 'APP'}"
        rows = [f"p, {who}, {action}, {object_}, allow" for action, object_ in sorted(needed)]
        return v.Learned(needed.total(), [f"g, {who}, {_LEARNED}", *rows] if rows else [])


def _row(line: str) -> str:
    """A row in canonical form, without its comment."""
    return ", ".join(field.strip() for field in line.split("#", 1)[0].split(","))


async def _difference(before: str, after: str) -> tuple[list[str], list[str]]:
    """The added and the removed rows."""
    if before == after:
        return [], []
    old, new = await _rows(before), await _rows(after)
    difference = await _surplus(new, old), await _surplus(old, new)
    rows = [*old, *new]
    del old, new
    await release(rows)
    return difference


async def _surplus(many: Counter[str], few: Counter[str]) -> list[str]:
    found, yield_point = list[str](), YieldPoint()
    for row, count in many.items():
        found += [row] * (count - few.get(row, 0))
        await yield_point()
    return found


async def _rows(text: str) -> Counter[str]:
    """The count of each row."""
    found, yield_point = Counter[str](), YieldPoint()
    for line in split_lines(text):
        found[_row(line)] += 1
        await yield_point()
    del found[""]
    return found


def _checks(recorded: Iterable[Recorded]) -> tuple[int, list[tuple[Check, int]]]:
    """The number of calls, and each check with its count, whatever the outcome; the most frequent
    first."""
    found, total = Counter[Check](), 0
    for one in recorded:
        total += one.calls
        for action, object_ in recorded_checks(one.syscall, one.object):
            found[one.subjects, action, object_] += one.calls
    return total, found.most_common()


def _needed(recorded: Iterable[Recorded], subject: str) -> tuple[str, Counter[tuple[str, str]]]:
    """The calls that the subject was evaluated for, and the nearest app to the left of it.

    For the subject of a process, that is the app of the process.
    """
    app = ""
    needed = Counter[tuple[str, str]]()
    for one in recorded:
        if one.errno or subject not in one.subjects:
            continue
        above = one.subjects[: one.subjects.index(subject)]
        app = next((name[4:] for name in reversed(above) if name.startswith("app:")), app)
        for number, (action, object_) in enumerate(recorded_checks(one.syscall, one.object)):
            paths = subject_objects(one.subjects, object_)
            rows = {_any_process(path) for name, path in paths if name == subject}
            for row_number, path in enumerate(sorted(rows)):
                first = number == row_number == 0
                needed[action, path] += one.calls if first else 0  # each call is counted once
        # The journal has only the first object of a call; the second is also an own process.
        if _has_second(one):
            needed[one.syscall, "/proc/own/*"] += 0
    return app, needed


def _has_second(one: Recorded) -> bool:
    """Whether the call had a second object: for spawn, its parent, which is then a subject."""
    has_parent = one.syscall != "spawn" or any(name.startswith("pid:") for name in one.subjects)
    return has_parent and one.syscall in TABLE and TABLE[one.syscall].second != ""


def _any_process(object_: str) -> str:
    """The object for any pid: the next run of the app has another one."""
    parts = object_.split("/")
    if parts[1:3] == ["proc", "own"] and len(parts) > 3:
        return "/proc/own/*"
    return "/proc/*" if parts[1:2] == ["proc"] and len(parts) > 2 else object_
