"""`llmasos policy`: the rules listed, changed, questioned, tried on what was recorded.

Who changes them or looks at recorded calls connects as `owner`; who only asks, as an operator.
"""

import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llmasos.kernel import limits, paths
from llmasos.kernel import values as v
from llmasos.kernel.errors import Denied, Errno, SyscallError, TooBig
from llmasos.userland.line import Line

from . import exits
from .door import connect
from .show import cell, document, note, table

_FORMS = ("u:", "r:", "app:", "pid:")
_MISSING = "no rule allows it"
_CODES = {
    v.Effect.ALLOW: exits.OK,
    v.Effect.ASK: exits.ASK,
    v.Effect.DENY: exits.DENIED,
}


def list_(arguments: Namespace) -> int:
    with connect() as line:
        found = rules(line, own=arguments.own)
    if arguments.json:
        document({"epoch": found.epoch, "own": found.own, "rules": found.rules})
    else:
        table(("RULE", "WHERE"), [(rule.text, _where(rule)) for rule in found.rules])
        note(f"own rules stand in {found.own}")
    return exits.OK


def rules(line: Line, *, own: bool) -> v.Rules:
    """All of them; a reply holds POLICY_ROWS."""
    found = line.call("policy_list", v.PolicyList(own=own), v.Rules)
    while found.more is not None:
        request = v.PolicyList(own=own, after=found.more)
        more = line.call("policy_list", request, v.Rules)
        found = replace(more, rules=found.rules + more.rules)
    return found


def _where(rule: v.RuleInfo) -> str:
    """Rows that the kernel makes, of users and of the socket's owner, stand in no line."""
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
    with connect(profile=v.Profile.OWNER) as line:
        changed = line.call("policy_edit", request, v.PolicyChanged)
    return tell(changed, arguments)


def tell(changed: v.PolicyChanged, arguments: Namespace) -> int:
    """What is other now, or why nothing is."""
    if arguments.json:
        document(changed)
    elif changed.mistakes:
        for mistake in changed.mistakes:
            note(mistake)
        _cut(changed.more)
        note("nothing was changed")
    else:
        for sign, rows in (("-", changed.removed), ("+", changed.added)):
            for row in rows:
                print(f"{sign} {cell(row)}")
        _cut(changed.more)
        if not (changed.removed or changed.added):
            note("no rule was added or removed")
    return exits.USAGE if changed.mistakes else exits.OK


def _cut(more: int) -> None:
    if more:
        note(f"and {more} more")


# --- questions --------------------------------------------------------------------------------
def test(arguments: Namespace) -> int:
    """One word and the rule that decides; the exit code says it too."""
    wrong = _slip(arguments.words)
    if wrong:
        raise exits.Usage(wrong)
    verdict = _verdict(_question(arguments.words))
    if arguments.json:
        document(verdict)
    else:
        print(f"{verdict.effect}  {cell(_deciding(verdict))}")
    return _CODES[verdict.effect]


def explain(arguments: Namespace) -> int:
    words: Sequence[str] = arguments.words
    number = int(words[0]) if len(words) == 1 and _digits(words[0]) else 0
    wrong = "" if number else _slip(words)
    if wrong:
        raise exits.Usage(f"{wrong}; or the number of a call")
    verdict = _verdict(v.PolicyCheck(call=number) if number else _question(words))
    if arguments.json:
        document(verdict)
    else:
        _show(verdict)
    return exits.OK


def _digits(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 17


def _slip(words: Sequence[str]) -> str:
    """Why this is no question, or nothing."""
    if len(words) < 3:
        return "want SUBJECT... ACTION OBJECT, as `u:$USER r:careful ps /proc`"
    odd = next((word for word in words[:-2] if not word.startswith(_FORMS)), None)
    if odd is not None:
        return f"{odd!a} is no subject: want u:USER, r:ROLE, app:NAME or pid:NUMBER"
    if not words[-1].startswith("/"):
        return f"{words[-1]!a} is no object: want ACTION and then a path, as `ps /proc`"
    return ""


def _question(words: Sequence[str]) -> v.PolicyCheck:
    """The last two words are the action and the object."""
    *subjects, action, object_ = words
    return v.PolicyCheck(subjects, action, object_)


def _verdict(request: v.PolicyCheck) -> v.Verdict:
    """Asked as an operator; an owner is told of everybody's calls, whatever operators may not."""
    try:
        return _asked(request, v.Profile.OPERATOR)
    except SyscallError as error:
        if error.errno not in (Errno.ENOENT, Errno.EACCES):
            raise
        try:
            return _asked(request, v.Profile.OWNER)
        except Denied:
            raise error from None


def _asked(request: v.PolicyCheck, profile: v.Profile) -> v.Verdict:
    with connect(profile=profile) as line:
        return line.call("policy_check", request, v.Verdict)


def _deciding(verdict: v.Verdict) -> str:
    """The rule of the first who gave the answer; who has no rule has only gone along."""
    given = [ruling for ruling in verdict.rulings if ruling.effect is verdict.effect]
    first = given[0]
    if verdict.effect is v.Effect.ALLOW:
        first = next((one for one in given if one.rule), first)
    return _rule(first.rule) if first.rule else f"{_MISSING} to {first.subject}"


def _rule(rule: v.RuleInfo) -> str:
    """The rule with its place, or the judge's own words."""
    return f"{_where(rule)}: {rule.text}" if rule.file else rule.text


def _show(verdict: v.Verdict) -> None:
    """A block for each subject: rules are too long for columns."""
    print(f"{verdict.effect}  {cell(verdict.action)} {cell(verdict.object)}\n")
    width = max(len(one.subject) for one in verdict.rulings)
    for one in verdict.rulings:
        print(f"{one.subject:{width}}  {one.effect:5}  {cell(_told(one))}")
        for role in one.roles:
            name = role.text.rpartition(", ")[2]
            print(f"{'':{width}}         by way of {cell(name)} ({_where(role)})")
    print(f"\nto {'deny' if verdict.effect is v.Effect.ALLOW else 'allow'} it:")
    for line in verdict.change:
        print(f"  {cell(_command(line))}")


def _told(one: v.RulingInfo) -> str:
    if one.rule is not None:
        return _rule(one.rule)
    return "no rule takes it away" if one.effect is v.Effect.ALLOW else _MISSING


def _command(change: str) -> str:
    """What the kernel tells to do, as a line that can be pasted; rows hold no quotes."""
    word, _, rest = change.partition(" `")
    row, _, place = rest.partition("`")
    verb = {"add": "add", "remove": "rm"}.get(word)
    if verb is None or not row:
        return change
    remark = f"  # {place.strip(' ()')}" if place.strip() else ""
    return f'llmasos policy {verb} "{row}"{remark}'


# --- what was recorded ------------------------------------------------------------------------
def simulate(arguments: Namespace) -> int:
    request = v.PolicySimulate(read(arguments.file), _ago(arguments.since))
    with connect(profile=v.Profile.OWNER) as line:
        try:
            found = line.call("policy_simulate", request, v.Simulated)
        except SyscallError as error:
            error.message = placed(error.message, arguments.file)
            error.hint = error.hint.replace("policy lint`", f"policy lint {arguments.file}`")
            raise
    sides = [[_of(one, arguments.file) for one in side] for side in (found.blocked, found.allowed)]
    if arguments.json:
        document({"calls": found.calls, "blocked": sides[0], "allowed": sides[1],
                  "more": found.more})  # fmt: skip
        return exits.OK
    differences = [*sides[0], *sides[1]]
    for one in differences:
        print(f"{one.before} -> {one.after}  {one.calls} x {cell(one.action)} {cell(one.object)}")
        print(f"    by {cell(' as '.join(one.subjects))}")
        print(f"    {cell(one.rule or _MISSING)}")
    _cut(found.more)
    note(f"recorded calls judged again: {found.calls}; {_count(differences)}")
    return exits.OK


def _ago(moment: float) -> float:
    """Seconds since then."""
    return max(1.0, time.time() - moment)


def _of(one: v.Difference, path: str) -> v.Difference:
    return replace(one, rule=placed(one.rule, path))


def _count(differences: Sequence[v.Difference]) -> str:
    allow = v.Effect.ALLOW
    blocked = sum(one.calls for one in differences if one.before is allow)
    allowed = sum(one.calls for one in differences if one.after is allow)
    other = sum(one.calls for one in differences) - blocked - allowed
    rest = f", between ask and deny: {other}" if other else ""
    return f"newly blocked: {blocked}, newly allowed: {allowed}{rest}"


def learn(arguments: Namespace) -> int:
    who: str = arguments.who
    pid = int(who) if _digits(who) else 0
    request = v.PolicyLearn(pid, "" if pid else who, _ago(arguments.since))
    with connect(profile=v.Profile.OWNER) as line:
        learned = line.call("policy_learn", request, v.Learned)
    if arguments.json:
        document(learned)
        return exits.OK
    for row in learned.rules:
        print(cell(row))
    if learned.rules:
        app = learned.rules[0].split(", ")[1]
        note(f"recorded calls: {learned.calls}; with these rows {app} may do this and nothing else")
    else:
        note(f"no recorded call needed the consent of {f'pid:{pid}' if pid else f'app:{who}'}")
    return exits.OK


# --- files ------------------------------------------------------------------------------------
def read(path: str | Path, most: int = limits.POLICY_CHARS) -> str:
    """The rules in a file, as the kernel reads them. ENOENT, EINVAL, E2BIG: over `most`."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(4 * most + 1)
        text = raw.decode("utf-8-sig") if len(raw) <= 4 * most else ""
    except UnicodeDecodeError as error:
        words = f"{path} is not valid UTF-8 at its byte {error.start}"
        raise SyscallError(Errno.EINVAL, words, "give text in UTF-8") from error
    except OSError as error:
        errno = Errno.ENOENT if isinstance(error, FileNotFoundError) else Errno.EINVAL
        hint = "give the path of a file with rules"
        raise SyscallError(errno, f"{path}: {error.strerror}", hint) from error
    if len(raw) > 4 * most or len(text) > most:
        raise TooBig(f"{path} has more than {most} characters", "join rules by roles and /*")
    return text


def placed(mistake: str, path: str | Path) -> str:
    """The kernel thinks of every text as of the own file: name the one that it is from."""
    own = f"{paths.find().policy_file.name}:"
    return f"{path}:{mistake.removeprefix(own)}" if mistake.startswith(own) else mistake
