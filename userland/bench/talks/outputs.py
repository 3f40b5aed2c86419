"""Generated outputs of tools: long, with numbers and names, and at most one relevant line."""

import random
from collections.abc import Callable, Sequence

_LEVELS = ("INFO", "INFO", "INFO", "DEBUG", "WARN")
_EVENTS = (
    "request done in {n} ms", "cache hit ratio 0.{n}", "retrying, attempt {m}", "queue depth {n}",
    "connection to db-{m} opened", "flushed {n} events", "heartbeat", "config reloaded",
    "slow query: {n} ms", "worker {m} idle", "token refreshed", "skipping empty batch",
    "checksum ok", "lag {n} ms", "timeout while waiting for lock {m}", "gc pause {m} ms",
)  # fmt: skip
_CALLS = (
    "def load(path):", "    rows = parse(path)", "    if not rows:", "        return None",
    "    return [clean(row) for row in rows]", "class Client:", "    retries = {m}",
    "    def send(self, body):", "        self.log.debug('send %d', len(body))",
    "        return self.session.post(self.url, json=body)", "import json", "LIMIT = {n}",
    "# see the note on time zones", "    for part in chunks(rows, {n}):", "        store(part)",
    "def main():", "    with open_pool(size={m}) as pool:", "        pool.map(work, load(PATH))",
)  # fmt: skip
_CASES = (
    "empty_input", "unicode_names", "retry_once", "large_batch", "wrong_token", "page_two",
    "round_trip", "slow_upstream", "missing_field", "duplicate_key", "rollback", "leap_day",
)  # fmt: skip
_FILES = ("client", "loader", "boot", "views", "jobs", "models", "rates", "store", "routes")


def output(dice: random.Random, tool: str, line: str, things: Sequence[str]) -> str:
    """The output of a tool: lines of noise, and the relevant line, if any."""
    noise = _NOISE.get(tool, _log)
    lines = [noise(dice, dice.choice(things)) for _ in range(dice.randrange(6, 16))]
    if line:
        lines.insert(dice.randrange(1, len(lines)), line)
    return "\n".join(lines)


def _log(dice: random.Random, thing: str) -> str:
    time = f"{dice.randrange(24):02}:{dice.randrange(60):02}:{dice.randrange(60):02}"
    return f"{time} {dice.choice(_LEVELS)} {thing} {_numbered(dice, _EVENTS)}"


def _code(dice: random.Random, thing: str) -> str:
    return f"# {thing}" if dice.random() < 0.1 else _numbered(dice, _CALLS)


def _test(dice: random.Random, thing: str) -> str:
    return f"PASSED tests/test_{dice.choice(_FILES)}.py::test_{dice.choice(_CASES)}[{thing}]"


def _hit(dice: random.Random, thing: str) -> str:
    return (
        f"src/{dice.choice(_FILES)}.py:{dice.randrange(1, 400)}: {_numbered(dice, _CALLS).strip()}"
    )


def _row(dice: random.Random, thing: str) -> str:
    return f"| {dice.randrange(10_000):>5} | {thing} | {dice.randrange(90)}.{dice.randrange(10)} |"


def _numbered(dice: random.Random, patterns: Sequence[str]) -> str:
    return dice.choice(patterns).format(n=dice.randrange(10, 1000), m=dice.randrange(1, 9))


_NOISE: dict[str, Callable[[random.Random, str], str]] = {
    "read_file": _code,
    "run_tests": _test,
    "grep": _hit,
    "sql_query": _row,
}
