"""How much of the evidence for a question is recalled: `llmasos bench recall [FILE.jsonl]`.

Conversations are written with `write_mem` and searched with `search_mem`, which ranks as the recall
of a request does. A ranking is filled greedily into token budgets, each page with its overhead. The
same pages are also ranked by time, by BM25 over single pages, by vectors alone, and by reciprocal
rank fusion of the last two. Without a file the conversations are generated (talks/), from seeds
that no constant was chosen on. The benchmark is valid only while it is as hard as real
conversations, so the suite fails when BM25 or vectors alone find more or less than they do on real
ones.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import mean, median
from typing import cast

from llmasos.kernel.abi import values as v
from llmasos.userland.client import BlockingClient

from . import talks
from .chinese import first_hits
from .conversations import when
from .figures import Bar, Suite, Take
from .rig import MODEL, Rig, RigError, daemon
from .talks import Question, Talk

BUDGETS = (1_000, 2_000, 4_000)  # tokens
DEPTHS = (5, 10, 20)
LINE_TOKENS = 8  # overhead of a page
RRF = 60
WAYS = ("both", "words", "recency")
BASELINE = "llmasos.drivers.recall.baseline"
BARS = (
    Bar("recall.evidence_2k", "mean share of the evidence within 2,000 tokens, conversations of "
        "about 20,000 tokens", "", "higher", 0.90),
    Bar("recall.all_2k", "share of questions with all of their evidence", "", "higher", 0.85),
    Bar("recall.no_embedder_2k", "share of the evidence without an embedder", "", "higher", 0.86),
    Bar("recall.bm25_2k", "BM25 over single pages; outside the range questions are not realistic",
        "", "higher", 0.65, 0.80),
    Bar("recall.dense_2k", "vectors alone; outside the range questions are not realistic",
        "", "higher", 0.55, 0.75),
    Bar("recall.zh_hit1", "Chinese questions that paraphrase Chinese pages, thirty in a pool, ten "
        "on the topic: first hit is right", "", "higher", 0.87),
    Bar("recall.en_zh_hit1", "the same with English questions", "", "higher", 0.87),
    Bar("recall.p50_ms", "time of a search in the kernel, median", "ms", "lower", None),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ranking:
    """What a way to search finds for a question, the best first: pages, or whole turns.

    Of each the id of its turn, and its tokens.
    """

    ranked: Sequence[tuple[str, int]]
    took_s: float

    def turns(self) -> list[str]:
        return list(dict.fromkeys(turn for turn, _ in self.ranked))


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question and the ranking of each way to search."""

    question: Question
    found: Mapping[str, Ranking]


# --- asking ---------------------------------------------------------------------------------------
def all_pages(client: BlockingClient, pid: int) -> Iterator[v.Page]:
    """All pages of a process, without their texts."""
    at: int | None = 0
    while at is not None:
        part = client.call("read_mem", v.ReadMem(pid, at, texts=False), v.Pages)
        yield from part.pages
        at = part.next


class StoredTalk:
    """A conversation as the pages of a process."""

    def __init__(self, rig: Rig, talk: Talk, model: str) -> None:
        self.talk = talk
        self._rig = rig
        self._turn: dict[int, str] = {}  # by page
        self._sizes: dict[str, int] = {}  # tokens, by turn
        with rig.client() as client:
            self.pid = client.call("spawn", v.Spawn(model, app="bench"), v.Spawned).pid
            for turn in talk.turns:
                request = v.WriteMem(
                    self.pid, turn.text, speaker=turn.author[:64],
                    time=when(turn), session=turn.session[:64],
                )  # fmt: skip
                for number in client.call("write_mem", request, v.Written).pages:
                    self._turn[number] = turn.id
            for page in all_pages(client, self.pid):
                name = self._turn[page.number]
                self._sizes[name] = self._sizes.get(name, 0) + page.tokens

    def by_vectors(self) -> list[Ranking]:
        """The ranking by vectors alone for every question: each turn by its own vector."""
        turns = [f"{turn.author}: {turn.text}" for turn in self.talk.turns]
        questions = [question.text for question in self.talk.questions]
        argv = [sys.executable, "-m", BASELINE]
        body = json.dumps({"pages": turns, "questions": questions})
        done = subprocess.run(argv, input=body, capture_output=True, text=True)
        if done.returncode:
            raise RigError(f"{BASELINE} failed: {done.stderr.strip().splitlines()[-1:]}")
        ids = [turn.id for turn in self.talk.turns]
        return [
            Ranking([(ids[at], self._sizes[ids[at]]) for at in order], 0.0)
            for order in cast("list[list[int]]", [*map(json.loads, done.stdout.splitlines())])
        ]

    def _ask(
        self, client: BlockingClient, question: Question, ways: Iterable[str]
    ) -> AskedQuestion:
        found: dict[str, Ranking] = {}
        for way in ways:
            request = v.SearchMem(self.pid, question.text, 1000, way=way, texts=False)
            reply = client.call("search_mem", request, v.Hits)
            pages = [(self._turn[hit.page.number], hit.page.tokens) for hit in reply.hits]
            found[way] = Ranking(pages, reply.took_s)
        return AskedQuestion(question, found)

    def ask_all(self, ways: Sequence[str]) -> list[AskedQuestion]:
        """Ask all questions. With the way `words` (BM25) also by vectors alone (`dense`), and by
        the fusion of both (`rrf`)."""
        with self._rig.client() as client:
            asked = [self._ask(client, question, ways) for question in self.talk.questions]
        if "words" not in ways:
            return asked
        with_baselines: list[AskedQuestion] = []
        for one, dense in zip(asked, self.by_vectors(), strict=True):
            found = {**one.found, "dense": dense, "rrf": reciprocal(one.found["words"], dense)}
            with_baselines.append(AskedQuestion(one.question, found))
        return with_baselines


def reciprocal(*rankings: Ranking) -> Ranking:
    """Reciprocal rank fusion (Cormack 2009), the usual hybrid: of turns, each with its tokens."""
    scores: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for ranking in rankings:
        turns = list(dict.fromkeys(turn for turn, _ in ranking.ranked))  # a turn may be many pages
        for rank, turn in enumerate(turns, 1):
            scores[turn] = scores.get(turn, 0.0) + 1 / (RRF + rank)
        for turn, size in ranking.ranked:
            tokens[turn] = max(tokens.get(turn, 0), size)
    best = sorted(scores, key=lambda turn: -scores[turn])
    return Ranking([(turn, tokens[turn]) for turn in best], sum(r.took_s for r in rankings))


def settle(client: BlockingClient) -> None:
    """Wait until every page has its vector."""
    while client.call("stat", v.Nothing(), v.Stat).pages_waiting:
        time.sleep(0.2)


def ask_on_new_daemon(
    conversations: Sequence[Talk], *, embedder: str, model: str = MODEL
) -> list[AskedQuestion]:
    """Ask all questions of all conversations, on a daemon for them only."""
    with daemon(mount=False, **{"memory-embedder": embedder}) as rig:
        return ask_on(rig, conversations, WAYS if embedder != "none" else ("both",), model)


def ask_on(
    rig: Rig, conversations: Sequence[Talk], ways: Sequence[str], model: str = MODEL
) -> list[AskedQuestion]:
    """Ask all questions of all conversations, on a running daemon."""
    with ThreadPoolExecutor(4) as pool:
        storing = [pool.submit(StoredTalk, rig, talk, model) for talk in conversations]
        stored = [one.result() for one in storing]
    with rig.client() as client:
        settle(client)
    return [asked for one in stored for asked in one.ask_all(ways)]


# --- reports --------------------------------------------------------------------------------------
def filled(ranking: Ranking, budget: int) -> set[str]:
    """The turns of which a part fits into the budget, filled greedily."""
    chosen: set[str] = set()
    for turn, tokens in ranking.ranked:
        if tokens + LINE_TOKENS <= budget:
            budget -= tokens + LINE_TOKENS
            chosen.add(turn)
    return chosen


def share(asked: AskedQuestion, chosen: set[str]) -> float:
    return mean(turn in chosen for turn in asked.question.evidence)


def row(questions: Sequence[AskedQuestion], way: str) -> dict[str, float]:
    """One way to search: shares of the evidence, and shares of questions with all of it."""
    found: dict[str, float] = {}
    for depth in DEPTHS:
        shares = [share(one, set(one.found[way].turns()[:depth])) for one in questions]
        found[f"R@{depth}"] = mean(shares)
    for budget in BUDGETS:
        shares = [share(one, filled(one.found[way], budget)) for one in questions]
        found[f"{budget // 1000}k"] = mean(shares)
        found[f"{budget // 1000}k all"] = mean(one == 1.0 for one in shares)
    found["p50 ms"] = 1000 * median(one.found[way].took_s for one in questions)
    return {name: round(value, 4) for name, value in found.items()}


def tables(questions: Sequence[AskedQuestion]) -> dict[str, dict[str, dict[str, float]]]:
    """A table for each category and one for all, with a row for each way to search."""
    groups: dict[str, Sequence[AskedQuestion]] = {"all": questions}
    for name in sorted({one.question.category for one in questions}):
        groups[name] = [one for one in questions if one.question.category == name]
    ways = list(questions[0].found)
    return {name: {way: row(some, way) for way in ways} for name, some in groups.items()}


def printed(found: Mapping[str, Mapping[str, Mapping[str, float]]], count: int) -> str:
    """The tables as text."""
    lines = [f"{count} questions; shares of the evidence (all: questions with all of it)"]
    for group, rows in found.items():
        head = list(next(iter(rows.values())))
        lines.append(f"{group:16}" + "".join(f"{name:>9}" for name in head))
        lines += [
            f"  {way:14}" + "".join(f"{row[name]:9.3f}" for name in head)
            for way, row in rows.items()
        ]
    return "\n".join(lines)


def figures(conversations: Sequence[Talk]) -> tuple[dict[str, object], str]:
    """The figures of a user's conversations, as JSON values and as text."""
    questions = ask_on_new_daemon(conversations, embedder="builtin")
    found = tables(questions)
    return {"questions": len(questions), "tables": found}, printed(found, len(questions))


def take(tiny: bool) -> Take:
    conversations = list(talks.talks(talks.SEEDS[:1] if tiny else talks.SEEDS))
    if tiny:
        conversations = [_shorter(one) for one in conversations]
    with daemon(mount=False, **{"memory-embedder": "builtin"}) as rig, rig.client() as client:
        chinese, english = first_hits(rig, client, topics=1 if tiny else None)
        questions = ask_on(rig, conversations, WAYS)
    without = ask_on_new_daemon(conversations, embedder="none")
    found = tables(questions)
    both, words, dense = (found["all"][way] for way in ("both", "words", "dense"))
    values = {
        "recall.evidence_2k": [both["2k"]],
        "recall.all_2k": [both["2k all"]],
        "recall.no_embedder_2k": [row(without, "both")["2k"]],
        "recall.bm25_2k": [words["2k"]],
        "recall.dense_2k": [dense["2k"]],
        "recall.zh_hit1": [round(mean(chinese), 4)],
        "recall.en_zh_hit1": [round(mean(english), 4)],
        "recall.p50_ms": [both["p50 ms"]],
    }
    facts: dict[str, object] = {
        "pairs": len(chinese),
        "questions": len(questions),
        "conversations": len(conversations),
        "tables": found,
    }
    return Take(values, facts)


def _shorter(one: Talk) -> Talk:
    """The beginning of a conversation and some questions about it."""
    turns = one.turns[:40]
    known = {turn.id for turn in turns}
    questions = [question for question in one.questions if known.issuperset(question.evidence)]
    return Talk(one.id, one.language, turns, questions[:5])


SUITE = Suite("recall", BARS, take)
