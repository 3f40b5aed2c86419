"""`llmasos policy`: lists, changes, tests and explains rules, and simulates them on recorded calls.

Verbs that change rules or read recorded calls connect as `owner`, queries as `operator`.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmasos.kernel.abi import limits
from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.errors import Denied, Errno, SyscallError, TooBig
from llmasos.userland.client import BlockingClient

from . import exits
from .connection import connect
from .show import cell, note, print_json, table

_SUBJECT_PREFIXES = ("u:", "r:", "app:", "pid:")
_NO_RULE = "no rule allows it"
_CODES = {
    v.Effect.ALLOW: exits.OK,
    v.Effect.ASK: exits.ASK,
    v.Effect.DENY: exits.DENIED,
}


def list_(arguments: Namespace) -> int:
    with connect() as client:
        found = rules(client, own=arguments.own)
    if arguments.json:
        print_json({"epoch": found.epoch, "own": found.own, "rules": found.rules})
    else:
        table(("RULE", "WHERE"), [(rule.text, _where(rule)) for rule in found.rules])
        note(f"file of your rules: {found.own}")
    return exits.OK


def rules(client: BlockingClient, *, own: bool) -> v.Rules:
    """All rules; one reply holds at most POLICY_ROWS."""
    found = client.call("policy_list", v.PolicyList(own=own), v.Rules)
    while found.more is not None:
        request = v.PolicyList(own=own, after=found.more)
        more = client.call("policy_list", request, v.Rules)
        found = replace(more, rules=found.rules + more.rules)
    return found


def _where(rule: v.RuleInfo) -> str:
    """File and line. Rules that the kernel generates, for users and the owner, have no line."""
    return f"{rule.file}:{rule.line}" if rule.line else rule.file


# --- changes ----------------------------------------------------------------------------------
def add(arguments: Namespace) -> int:
    return _change(v.PolicyEdit(add=arguments.rows), arguments)


def rm(arguments: Namespace) -> int:
    return _change(v.PolicyEdit(remove=arguments.rows), arguments)


def undo(arguments: Namespace) -> int:
    return _change(v.PolicyEdit(undo=True), arguments)


def reload(arguments: Namespace) -> int:
    return _change(v.PolicyEdit(), arguments)


def _change(request: v.PolicyEdit, arguments: Namespace) -> int:
    with connect(profile=v.Profile.OWNER) as client:
        changed = client.call("policy_edit", request, v.PolicyChanged)
    return report(changed, arguments)


def report(changed: v.PolicyChanged, arguments: Namespace) -> int:
    """Print the added and removed rules, or the mistakes if nothing was changed."""
    if arguments.json:
        print_json(changed)
    elif changed.mistakes:
        for mistake in changed.mistakes:
            note(mistake)
        _print_more(changed.more)
        note("nothing changed")
    else:
        for sign, rows in (("-", changed.removed), ("+", changed.added)):
            for row in rows:
                print(f"{sign} {cell(row)}")
        _print_more(changed.more)
        if not (changed.removed or changed.added):
            note("no rules added or removed")
    return exits.USAGE if changed.mistakes else exits.OK


def _print_more(more: int) -> None:
    if more:
        note(f"and {more} more")


# --- queries ----------------------------------------------------------------------------------
def test(arguments: Namespace) -> int:
    """Print the decision and its rule; the exit code encodes the decision."""
    problem = _usage_error(arguments.words)
    if problem:
        raise exits.UsageError(problem)
    verdict = _query(_request(arguments.words))
    if arguments.json:
        print_json(verdict)
    else:
        print(f"{verdict.effect}  {cell(_deciding_rule(verdict))}")
    return _CODES[verdict.effect]


def explain(arguments: Namespace) -> int:
    words: Sequence[str] = arguments.words
    number = int(words[0]) if len(words) == 1 and _digits(words[0]) else 0
    problem = "" if number else _usage_error(words)
    if problem:
        raise exits.UsageError(f"{problem}; or a call number")
    verdict = _query(v.PolicyCheck(call=number) if number else _request(words))
    if arguments.json:
        print_json(verdict)
    else:
        _show(verdict)
    return exits.OK


def _digits(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 17


def _usage_error(words: Sequence[str]) -> str:
    """Why the words are not SUBJECT... ACTION OBJECT; empty if they are."""
    if len(words) < 3:
        return "expected SUBJECT... ACTION OBJECT, as in `u:$USER r:careful ps /proc`"
    invalid = next((word for word in words[:-2] if not word.startswith(_SUBJECT_PREFIXES)), None)
    if invalid is not None:
        return f"{invalid!a} is not a subject: expected u:USER, r:ROLE, app:NAME or pid:NUMBER"
    if not words[-1].startswith("/"):
        return f"{words[-1]!a} is not an object: expected ACTION and a path, as in `ps /proc`"
    return ""


def _request(words: Sequence[str]) -> v.PolicyCheck:
    """The last two words are the action and the object."""
    *subjects, action, object_ = words
    return v.PolicyCheck(subjects, action, object_)


def _query(request: v.PolicyCheck) -> v.Verdict:
    """Query as operator; if that is refused or finds nothing, as owner, who may see all calls."""
    try:
        return _check(request, v.Profile.OPERATOR)
    except SyscallError as error:
        if error.errno not in (Errno.ENOENT, Errno.EACCES):
            raise
        try:
            return _check(request, v.Profile.OWNER)
        except Denied:
            raise error from None


def _check(request: v.PolicyCheck, profile: v.Profile) -> v.Verdict:
    with connect(profile=profile) as client:
        return client.call("policy_check", request, v.Verdict)


def _deciding_rule(verdict: v.Verdict) -> str:
    """The rule of the first subject with the final effect; for allow, of the first with a rule."""
    given = [ruling for ruling in verdict.rulings if ruling.effect is verdict.effect]
    deciding = given[0]
    if verdict.effect is v.Effect.ALLOW:
        deciding = next((one for one in given if one.rule), deciding)
    return _rule(deciding.rule) if deciding.rule else f"{_NO_RULE} for {deciding.subject}"


def _rule(rule: v.RuleInfo) -> str:
    """The rule with file and line, or the text of a decision without a file."""
    return f"{_where(rule)}: {rule.text}" if rule.file else rule.text


def _show(verdict: v.Verdict) -> None:
    """A block for each subject: rules are too long for columns."""
    print(f"{verdict.effect}  {cell(verdict.action)} {cell(verdict.object)}\n")
    width = max(len(one.subject) for one in verdict.rulings)
    for one in verdict.rulings:
        print(f"{one.subject:{width}}  {one.effect:5}  {cell(_reason(one))}")
        for role in one.roles:
            name = role.text.rpartition(", ")[2]
            print(f"{'':{width}}         through {cell(name)} ({_where(role)})")
    print(f"\nto {'deny' if verdict.effect is v.Effect.ALLOW else 'allow'} it:")
    for line in [verdict.final] if verdict.final else map(_command, verdict.change):
        print(f"  {cell(line)}")


def _reason(one: v.RulingInfo) -> str:
    if one.rule is not None:
        return _rule(one.rule)
    return "no rule denies it" if one.effect is v.Effect.ALLOW else _NO_RULE


def _command(change: v.RuleChange) -> str:
    """The change that the kernel suggests, as a shell command. Rows contain no quotes."""
    if change.add:
        return f'llmasos policy add "{change.rule.text}"'
    return f'llmasos policy rm "{change.rule.text}"  # {_where(change.rule)}'


# --- recorded calls ---------------------------------------------------------------------------
def simulate(arguments: Namespace) -> int:
    text, since_s = read(arguments.file), _seconds_since(arguments.since)
    request = v.PolicySimulate(text, since_s, arguments.file)
    with connect(profile=v.Profile.OWNER) as client:
        found = client.call("policy_simulate", request, v.Simulated)
    if arguments.json:
        print_json(found)
        return exits.OK
    differences = [*found.blocked, *found.allowed]
    for one in differences:
        print(f"{one.before} -> {one.after}  {one.calls} x {cell(one.action)} {cell(one.object)}")
        print(f"    by {cell(' as '.join(one.subjects))}")
        print(f"    {cell(one.rule or _NO_RULE)}")
    _print_more(found.more)
    note(f"recorded calls evaluated: {found.calls}; {_summary(differences)}")
    return exits.OK


def _seconds_since(moment: float) -> float:
    """Seconds since a Unix time, at least 1."""
    return max(1.0, time.time() - moment)


def _summary(differences: Sequence[v.Difference]) -> str:
    allow = v.Effect.ALLOW
    blocked = sum(one.calls for one in differences if one.before is allow)
    allowed = sum(one.calls for one in differences if one.after is allow)
    other = sum(one.calls for one in differences) - blocked - allowed
    rest = f", between ask and deny: {other}" if other else ""
    return f"newly blocked: {blocked}, newly allowed: {allowed}{rest}"


def learn(arguments: Namespace) -> int:
    who: str = arguments.who
    pid = int(who) if _digits(who) else 0
    request = v.PolicyLearn(pid, "" if pid else who, _seconds_since(arguments.since))
    with connect(profile=v.Profile.OWNER) as client:
        learned = client.call("policy_learn", request, v.Learned)
    if arguments.json:
        print_json(learned)
        return exits.OK
    for row in learned.rules:
        print(cell(row))
    if learned.rules:
        app = learned.rules[0].split(", ")[1]
        note(
            f"recorded calls: {learned.calls}; these rules allow {app} these calls and nothing else"
        )
    else:
        note(f"no recorded call needed a rule for {f'pid:{pid}' if pid else f'app:{who}'}")
    return exits.OK


# --- files ------------------------------------------------------------------------------------
def read(path: str | Path, most: int = limits.POLICY_CHARS) -> str:
    """The text of a file of rules. Raises ENOENT, EINVAL, E2BIG for over `most` characters."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(4 * most + 1)
        text = raw.decode("utf-8-sig") if len(raw) <= 4 * most else ""
    except UnicodeDecodeError as error:
        message = f"{path} is not valid UTF-8 at byte {error.start}"
        raise SyscallError(Errno.EINVAL, message, "give text in UTF-8") from error
    except OSError as error:
        errno = Errno.ENOENT if isinstance(error, FileNotFoundError) else Errno.EINVAL
        hint = "give the path of a file of rules"
        raise SyscallError(errno, f"{path}: {error.strerror}", hint) from error
    if len(raw) > 4 * most or len(text) > most:
        raise TooBig(f"{path} has more than {most} characters", "merge rules with roles and /*")
    return text
