"""Why a window is laid out as it is: the figures behind the choice. No bars.

Compared are the position of a recalled page (before the tail of the conversation, or just before
the request) and how the rest of a tail moves when its beginning leaves (computed again, or
shifted). Each figure is a loss, the mean negative log-likelihood of the correct answer, and the
tokens that had to be computed. The conversations are those of the `paging` suite, without their
first turns.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from statistics import mean

from .figures import Bar, Suite, Take
from .planted import FACTS, conversation
from .rig import RigError, facts, image, tuned

MODULE = "llmasos.drivers.llama.layouts"
SYSTEM = "You are a friendly companion. You answer in a few plain sentences."
REPLY = "That is a nice thought. I would say that it depends on the day and on who you are with."
WAYS = ("before", "after", "anew", "shifted")
CASES = 20
TURNS = 8  # of a tail: about 1,000 tokens
BARS = (
    *(Bar(f"layout.loss_{way}", f"loss on the correct answer: {what}", "nats", "lower")
      for way, what in zip(WAYS, (
          "recalled page before the tail", "recalled page before the request",
          "beginning of the tail removed, rest computed again", "rest shifted instead",
      ), strict=True)),
    *(Bar(f"layout.computed_{way}", "tokens computed for it", "", "lower") for way in WAYS),
)  # fmt: skip


def cases(count: int) -> Sequence[dict[str, object]]:
    """Questions about facts, after a conversation about other things."""
    made: list[dict[str, object]] = []
    for index, (fact, question) in enumerate(FACTS[:count]):
        turns = [turn.text for turn in conversation(60, index) if turn.tells is None]
        tail = [(role, text) for spoken in turns[:TURNS]
                for role, text in (("user", spoken), ("assistant", REPLY))]  # fmt: skip
        made.append({
            "system": SYSTEM, "tail": tail, "page": f"user: {fact}", "question": question,
            "answer": fact,
        })  # fmt: skip
    return made


def measured(path: str, count: int) -> list[dict[str, list[float]]]:
    line = [sys.executable, "-m", MODULE, "--model", path]
    done = subprocess.run(line, input=json.dumps(cases(count)), capture_output=True, text=True)
    if done.returncode:
        raise RigError(f"the layouts were not scored: {done.stderr.strip().splitlines()[-1:]}")
    return [json.loads(one) for one in done.stdout.splitlines()]


def take(tiny: bool) -> Take:
    with tuned() as (_rig, client):
        measured_on = facts(client)
        found = measured(image(client).path, 1 if tiny else CASES)
    values: dict[str, list[float]] = {}
    for way in WAYS:
        values[f"layout.loss_{way}"] = [round(mean(one[way][0] for one in found), 4)]
        values[f"layout.computed_{way}"] = [round(mean(one[way][1] for one in found))]
    return Take(values, {**measured_on, "cases": len(found)})


SUITE = Suite("layout", BARS, take, timed=False)
