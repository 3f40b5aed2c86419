"""Chinese pages with a Chinese and an English question each, written and checked manually.

A question uses other words than its page, and no other page of its pool answers it. A pool is the
pages of a topic, filled up to thirty with other pages; deterministic.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

POOL = 30  # pages


@dataclass(frozen=True, slots=True)
class Pair:
    """A page and its questions."""

    topic: str
    page: str
    query_zh: str
    query_en: str


@cache
def pairs() -> Sequence[Pair]:
    """All pairs."""
    text = Path(__file__).with_name("pairs.json").read_text(encoding="utf-8")
    return [Pair(**one) for one in json.loads(text)]


@cache
def pool(topic: str) -> Sequence[Pair]:
    """The pages among which the questions of a topic are ranked."""
    same = [pair for pair in pairs() if pair.topic == topic]
    others = [pair for pair in pairs() if pair.topic != topic]
    dice = random.Random(topic)
    found = same + dice.sample(others, POOL - len(same))
    dice.shuffle(found)
    return found
