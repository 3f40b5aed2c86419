"""Stop strings and pages against slow, obvious models, on random texts and random splits."""

import random

import pytest

from llmasos.drivers.pages import cut_answer, cut_text
from llmasos.drivers.stops import Scan
from llmasos.kernel.abi import limits


def obvious(text: str, stops: list[str]) -> str:
    """Read character by character; the first stop string that is complete ends the text."""
    for end in range(1, len(text) + 1):
        for begin in range(end):
            if text[begin:end] in stops:
                return text[:begin]
    return text


def split(data: bytes, chance: random.Random) -> list[bytes]:
    pieces: list[bytes] = []
    while data:
        size = chance.randint(1, 5)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("seed", range(300))
def test_a_random_split_gives_the_text_of_the_whole(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choice("aab€🦊") for _ in range(chance.randint(0, 30)))
    stops = ["".join(chance.choices("ab€🦊", k=chance.randint(1, 4))) for _ in range(seed % 4)]
    scan = Scan(stops)
    shown = ""
    for piece in split(text.encode(), chance):
        shown += scan.feed(piece)
        assert not any(stop in shown for stop in stops)
        assert obvious(text, stops).startswith(shown)
    assert shown + scan.flush() == obvious(text, stops)
    assert scan.stopped == (obvious(text, stops) != text)


def test_an_unfinished_character_is_held_back_and_dropped() -> None:
    scan = Scan([])
    assert [scan.feed(b"a\xf0\x9f"), scan.feed(b"\xa6"), scan.flush()] == ["a", "", ""]


def test_invalid_bytes_are_replaced() -> None:
    assert Scan([]).feed(b"a\xffb") == "a\ufffdb"


def test_nothing_is_said_after_a_stop_string() -> None:
    scan = Scan(["b"])
    assert [scan.feed(b"abc"), scan.feed(b"d"), scan.flush()] == ["a", "", ""]


@pytest.mark.parametrize("seed", range(50))
def test_an_answer_is_cut_without_loss(seed: int) -> None:
    chance = random.Random(seed)
    text = "".join(chance.choice("ab€🦊 ") for _ in range(chance.randint(0, 2000)))
    scan, ends, shown = Scan([]), list[int](), ""
    for piece in split(text.encode(), chance):
        shown += scan.feed(piece)
        ends.append(scan.seen)
    cuts = cut_answer(shown[: len(shown) - seed % 3], ends)
    assert "".join(cut.text for cut in cuts) == shown[: len(shown) - seed % 3]
    assert all(0 < cut.tokens <= limits.PAGE_TOKENS for cut in cuts)


@pytest.mark.parametrize("rate", [1, 3, 7])
def test_a_message_is_cut_without_loss(rate: int) -> None:
    chance = random.Random(rate)
    text = "".join(chance.choice("abc   ") for _ in range(5000))
    cuts = cut_text(text, lambda piece: -(-len(piece) * rate // 4))
    assert "".join(cut.text for cut in cuts) == text
    assert all(0 < cut.tokens <= limits.PAGE_TOKENS for cut in cuts)
    assert len(cuts) < 5000 * rate / 4 / limits.PAGE_TOKENS * 1.5 + 1
