"""The cost of permission checks, compared with plain pycasbin, and whether both agree.

Each role has ten rules: rows of the role, of its user, and of paths below a prefix. A caller is two
subjects, as the connection of a client is. Plain pycasbin is asked about each subject, and twice,
since it does not know `ask`. A cold decision is the first one of its caller.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import anyio

from llmasos.kernel.abi import values as v
from llmasos.kernel.abi.table import TABLE
from llmasos.kernel.access.decisions import Policy
from llmasos.kernel.access.evaluator import Evaluator, PlainEvaluator
from llmasos.kernel.access.rules import Rule
from llmasos.userland.client import BlockingClient

from .figures import Bar, Suite, Take
from .rig import Rig, RigError, daemon
from .syscall import load

SIZES = {"10": 10, "100": 100, "1k": 1_000, "10k": 10_000}
TINY = {"10": 10, "100": 20, "1k": 50, "10k": 500}
BARS = (
    Bar("gate.hot_us", "a cached decision", "us", "lower", 5),
    Bar("gate.cold_us_10k", "a caller's first decision, 10,000 rules, median", "us", "lower", 300),
    Bar("gate.cold_p99_us_10k", "the same, p99", "us", "lower", 1_000),
    *(Bar(f"gate.cold_us_{size}", f"a caller's first decision, {size} rules, median", "us", "lower")
      for size in ("10", "100", "1k")),
    *(Bar(f"gate.plain_us_{size}", f"plain pycasbin, {size} rules, median", "us", "lower")
      for size in SIZES),
    Bar("gate.reload_s_10k", "read 10,000 rules and put them into force", "s", "lower", 1.0),
    Bar("gate.reload_stop_ms", "longest round trip of a no-op syscall while a daemon changes "
        "10,000 rules", "ms", "lower", 5),
    Bar("gate.syscall_cost_us", "permission check of a syscall, median", "us", "lower", 15),
    Bar("gate.clients_1000_p99_ms", "1,000 clients, 10,000 syscalls a second in total, p99 latency",
        "ms", "lower", 50),
    Bar("gate.mismatch", "random requests with another answer than plain pycasbin", "requests",
        "lower", 0),
)  # fmt: skip
ALLOW, ASK, DENY = v.Effect.ALLOW, v.Effect.ASK, v.Effect.DENY
_STRICT = (DENY, ASK, ALLOW)
Request = tuple[tuple[str, ...], str, str]  # subjects, action, object


def model() -> str:
    return (files("llmasos.policies") / "model.conf").read_text(encoding="utf-8")


# --- generated rules ------------------------------------------------------------------------------
def rules(count: int, mark: str = "") -> str:
    """Ten rows for each role. `mark` varies the text."""
    return "".join(f"{row}\n" for role in range(count // 10) for row in _rows(role, mark))


def _rows(role: int, mark: str) -> Iterator[str]:
    who, user = f"r:role{role}", f"u:user{role}"
    yield f"g, {user}, {who}"
    for number in range(4):
        yield f"p, {who}, spawn, /dev/image/model{role}-{number}{mark}, allow"
    yield f"p, {who}, generate, /proc/{role + 1}/*, allow"
    yield f"p, {who}, read_mem, /proc/{role + 1}/*, allow"
    yield f"p, {who}, read_mem, /proc/{role + 1}/mem, ask"
    yield f"p, {user}, kill, /proc/{role + 1}, allow"
    yield f"p, {user}, spawn, /dev/image/model{role}-3{mark}, deny"


def request(role: int) -> Request:
    """A request of this role whose answer is allow, ask or deny."""
    action, object_ = (
        ("generate", f"/proc/{role + 1}/generate"),
        ("read_mem", f"/proc/{role + 1}/mem"),
        ("spawn", f"/dev/image/model{role}-3"),
        ("spawn", f"/dev/image/model{role}-1"),
    )[role % 4]
    return (f"u:user{role}", f"r:role{role}"), action, object_


def policy(folder: Path) -> Policy:
    return Policy(TABLE, "bench", folder / "policy.csv", folder / "policy.loaded")


def hot_us(gate: Policy, repeats: int) -> Iterator[float]:
    """The mean time of a thousand cached decisions, for each repeat."""
    asked = [request(role) for role in range(min(100, len(gate.evaluator.rules) // 20))]
    many = (asked * 1_000)[:1_000]
    for one in asked:
        gate.check(*one)
    for _ in range(repeats):
        begun = time.perf_counter()
        for subjects, action, object_ in many:
            gate.check(subjects, action, object_)
        yield 1e6 * (time.perf_counter() - begun) / len(many)


def cold_us(gate: Policy, roles: int) -> list[float]:
    """The first decision of each caller."""
    times = list[float]()
    for one in map(request, range(roles)):
        begun = time.perf_counter()
        gate.check(*one)
        times.append(1e6 * (time.perf_counter() - begun))
    return times


def plain_us(gate: Policy, count: int, roles: int) -> list[float]:
    """The same decisions by plain pycasbin over all rows."""
    plain = PlainEvaluator(model(), gate.evaluator.rules)
    times = list[float]()
    for number in range(count):
        subjects, action, object_ = request(number % roles)
        begun = time.perf_counter()
        for subject in subjects:
            plain.evaluate(subject, action, object_)
        times.append(1e6 * (time.perf_counter() - begun))
    return times


def p99(times: Sequence[float]) -> float:
    return quantiles(times, n=100)[98] if len(times) > 1 else times[0]


async def without_kernel(values: dict[str, list[float]], *, tiny: bool) -> None:
    """Measure decisions without a kernel."""
    repeats, plains = (1, 2) if tiny else (5, 8)
    with TemporaryDirectory() as folder:
        gate = policy(Path(folder))
        for name, size in (TINY if tiny else SIZES).items():
            for turn in range(repeats):
                begun = time.perf_counter()
                await gate.reload(rules(size) + f"# {turn}\n")
                took = time.perf_counter() - begun
                cold = cold_us(gate, size // 10)
                values[f"gate.cold_us_{name}"].append(round(median(cold), 2))
                if name == "10k":
                    values["gate.reload_s_10k"].append(round(took, 3))
                    values["gate.cold_p99_us_10k"].append(round(p99(cold), 1))
            times = plain_us(gate, plains, size // 10)
            values[f"gate.plain_us_{name}"] += [round(one, 1) for one in times]
        values["gate.hot_us"] += [round(one, 3) for one in hot_us(gate, 20 * repeats)]


# --- agreement with pycasbin ----------------------------------------------------------------------
ACTIONS = ("spawn", "kill", "read_mem")
SUBJECTS = ("u:a", "u:b", "u:c", "u:d", "r:a", "r:b", "r:c", "r:d", "r:e")
PARTS = ("a", "b", "c")
PLACES = tuple(
    f"/{'/'.join(path)}"
    for path in [*((a,) for a in PARTS), *((a, b) for a in PARTS for b in PARTS),
                 *((a, b, c) for a in PARTS for b in PARTS for c in PARTS)]
)  # fmt: skip


def small(chance: random.Random) -> list[Rule]:
    """A few random rows. Roles lead to later ones only, so there is no cycle."""
    found = list[Rule]()
    roles = [one for one in SUBJECTS if one.startswith("r:")]
    for number, member in enumerate(SUBJECTS):
        above = [role for role in roles if SUBJECTS.index(role) > number]
        for role in chance.sample(above, min(len(above), chance.randrange(3))):
            found.append(Rule("g", (member, role), "bench", len(found) + 1))
    for _ in range(chance.randrange(8, 20)):
        place = chance.choice(PLACES)
        pattern = chance.choice((place, f"{place}/*", "/*"))
        action = chance.choice((*ACTIONS, "*"))
        effect = chance.choices((ALLOW, ASK, DENY), (10, 5, 1))[0]
        row = (chance.choice(SUBJECTS), action, pattern, str(effect))
        found.append(Rule("p", row, "bench", len(found) + 1))
    chance.shuffle(found)
    return found


def question(known: Sequence[Rule], chance: random.Random) -> Request:
    """A random request, mostly about an object that a row names."""
    rows = [rule.fields for rule in known if rule.kind == "p"]
    subject, action, pattern, _ = chance.choice(rows)
    places = [one for one in PLACES if one == pattern or one.startswith(pattern[:-1])]
    if chance.random() < 0.1:
        places = list(PLACES)
    action = chance.choice(ACTIONS) if action == "*" or chance.random() < 0.1 else action
    more = chance.sample(SUBJECTS, chance.choice((0, 0, 1)))
    return (subject, *more), action, chance.choice(places or PLACES)


def strictest(plain: PlainEvaluator, asked: Request) -> v.Effect:
    subjects, action, object_ = asked
    answers = [plain.evaluate(subject, action, object_) for subject in subjects]
    return min(answers, key=_STRICT.index)


def compare(count: int, each: int, seed: int = 1) -> tuple[int, Counter[str]]:
    """How many of `count` answers differ, and how often each answer occurred."""
    chance, shares, wrong = random.Random(seed), Counter[str](), 0
    with TemporaryDirectory() as folder:
        gate = policy(Path(folder))
        for _ in range(count // each):
            known = small(chance)
            evaluator, plain = Evaluator(model(), known), PlainEvaluator(model(), known)
            for _ in evaluator.build():
                pass
            for _ in range(each):
                asked = question(known, chance)
                effect = gate.decide(evaluator, *asked).effect
                shares[effect] += 1
                wrong += effect is not strictest(plain, asked)
    return wrong, shares


# --- with a kernel --------------------------------------------------------------------------------
def stop_ms(rig: Rig, texts: Sequence[str], seconds: float) -> tuple[float, int]:
    """The longest round trip while the rules change repeatedly, and the number of changes."""
    changes = 0
    owner = BlockingClient(rig.socket, profile=v.Profile.OWNER)
    with owner, ThreadPoolExecutor(1) as pool:
        running = pool.submit(load, rig, 1, seconds, "stat")
        while not running.done():
            edit = v.PolicyEdit(text=texts[changes % len(texts)])
            changed = owner.call("policy_edit", edit, v.PolicyChanged)
            if changed.mistakes:
                raise RigError(changed.mistakes[0])
            changes += 1
        return running.result()["max_us"] / 1000, changes


def with_kernel(values: dict[str, list[float]], *, tiny: bool) -> dict[str, object]:
    """Measure through clients of a daemon."""
    repeats, seconds = (1, 0.3) if tiny else (5, 5.0)
    clients, rate, size = (20, 500, 500) if tiny else (1_000, 10_000, SIZES["10k"])
    texts = [rules(size, mark) for mark in ("", ".new")]
    idle, changes, rates = list[float](), list[int](), list[float]()
    with daemon(mount=False) as rig, rig.client() as client:
        for _ in range(repeats):
            idle.append(round(load(rig, 1, seconds, "stat")["max_us"] / 1000, 2))
            cost = client.call("stat", v.Nothing(), v.Stat).gate_p50_us
            values["gate.syscall_cost_us"].append(cost)
            many = load(rig, clients, seconds, f"stat@{rate}")
            values["gate.clients_1000_p99_ms"].append(round(many["p99_us"] / 1000, 2))
            rates.append(round(many["rate"]))
            stop, changed = stop_ms(rig, texts, seconds)
            values["gate.reload_stop_ms"].append(round(stop, 2))
            changes.append(changed)
    return {"idle_max_ms": idle, "changes": changes, "clients": clients, "answers_a_second": rates}


def take(tiny: bool) -> Take:
    values: dict[str, list[float]] = {bar.id: [] for bar in BARS}
    anyio.run(partial(without_kernel, values, tiny=tiny))
    wrong, shares = compare(200 if tiny else 102_400, 50 if tiny else 256)
    values["gate.mismatch"].append(wrong)
    facts = with_kernel(values, tiny=tiny)
    asked = shares.total()
    answers = {str(effect): round(count / asked, 3) for effect, count in shares.items()}
    return Take(values, {**facts, "compared": asked, "answers": answers})


SUITE = Suite("gate", BARS, take)
